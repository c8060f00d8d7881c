//! A GPU: its context, its properties, and the kernels, each resolved once.

use crate::error::{Error, Result, check};
use crate::ptx::{self, Part, PtxModule};
use bitnet_kernels::bit_gemm::HopperStore128;
use bitnet_kernels::dense_gemv::Machine;
use bitnet_kernels::{Kernel, KernelInfo};
use cuda_driver::sys::{self, CUfunction, CUfunction_attribute, CUjit_option, CUmodule};
use cuda_driver::{Context, CudaVersion, Device, DeviceAttribute, probe, require_driver};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;

/// When errors of kernels are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reporting {
    /// At the next call that waits for the GPU; fast, and the message cannot name the kernel.
    #[default]
    Late,
    /// After each launch, which waits for it; the message names the kernel. Not while a graph is being captured.
    EachLaunch,
}

/// What a GPU is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Index, as the driver counts.
    pub index: u32,
    /// `NVIDIA H200`.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// The CUDA version that the driver supports.
    pub driver: CudaVersion,
    /// Multiprocessors.
    pub n_sms: u32,
    /// L2 cache.
    pub l2_bytes: u64,
    /// Device memory.
    pub memory_bytes: u64,
    /// Most shared memory a block can have, static and dynamic.
    pub shared_bytes_per_block: u32,
}

/// A GPU ready for use. Clones share it; it is closed when the last clone, stream, buffer and graph of it is gone.
#[derive(Clone, Debug)]
pub struct Gpu {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    properties: Properties,
    reporting: Reporting,
    functions: HashMap<&'static str, Function>,
    modules: Vec<Module>,
    context: Context,
}

/// A kernel of the loaded module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) handle: CUfunction,
    /// Static shared memory of a block.
    pub(crate) static_shared_bytes: u32,
    /// Registers of a thread, as the driver compiled it.
    registers: u32,
    /// Local memory of a thread.
    local_bytes: u32,
}

// SAFETY: a function handle is an identifier, valid in any thread while its module is loaded.
unsafe impl Send for Function {}
// SAFETY: as above; it is never written through.
unsafe impl Sync for Function {}

/// What the driver's compiler made of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelUsage {
    /// Name.
    pub name: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub static_shared_bytes: u32,
    /// Local memory of a thread; 0 unless registers are spilled or an array is indexed at run time.
    pub local_bytes: u32,
}

impl Gpu {
    /// Opens GPU `index` and loads the kernels that models run.
    ///
    /// # Errors
    /// When there is no such GPU, or its driver or compute capability is too old, or the kernels do not load.
    pub fn new(index: u32, reporting: Reporting) -> Result<Self> {
        Self::open(index, reporting, &[PtxModule::model])
    }

    /// [`Gpu::new`], with the kernels of [`bitnet_kernels::bench`] too.
    ///
    /// # Errors
    /// As for [`Gpu::new`].
    #[cfg(feature = "bench")]
    pub fn with_bench(index: u32, reporting: Reporting) -> Result<Self> {
        Self::open(index, reporting, &[PtxModule::model, PtxModule::bench])
    }

    fn open(index: u32, reporting: Reporting, parts: &[fn(&PtxModule) -> Part]) -> Result<Self> {
        let found = probe(index)?;
        let Some(ptx) = ptx::choose(found.compute_capability) else {
            return Err(Error::Request(format!("no kernels are built for {}", found.name)));
        };
        if let Some(needed) = ptx.needs() {
            require_driver(found.driver, needed)?;
        }
        let doing = || format!("opening GPU {index} ({})", found.name);
        let device = Device::get(index).map_err(|e| Error::cuda(doing(), e))?;
        let context = Context::new(device).map_err(|e| Error::cuda(doing(), e))?;
        let attribute = |which| {
            device
                .attribute(which)
                .map(i32::unsigned_abs)
                .map_err(|e| Error::cuda(doing(), e))
        };
        let properties = Properties {
            index,
            compute_capability: found.compute_capability,
            driver: found.driver,
            n_sms: attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
            memory_bytes: device.total_memory().map_err(|e| Error::cuda(doing(), e))? as u64,
            shared_bytes_per_block: attribute(
                DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            name: found.name.clone(),
        };
        let mut modules = Vec::with_capacity(parts.len());
        let mut functions = HashMap::new();
        let exact = ptx
            .exact()
            .filter(|_| found.compute_capability == (ptx.sm / 10, ptx.sm % 10));
        for (text, kernels) in parts.iter().map(|part| part(ptx)).chain(exact) {
            let module = Module::load(text, &found.name)?;
            for kernel in kernels {
                let function = module.function(kernel, properties.shared_bytes_per_block)?;
                functions.insert(kernel.name, function);
            }
            modules.push(module);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                properties,
                reporting,
                functions,
                modules,
                context,
            }),
        })
    }

    /// What it is.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.inner.properties
    }

    /// What launches of the dense products depend on.
    #[must_use]
    pub fn machine(&self) -> Machine {
        let properties = self.properties();
        Machine {
            multiprocessors: properties.n_sms,
            shared_limit: properties.shared_bytes_per_block,
        }
    }

    /// Whether its tensor cores multiply single bits: those of compute capability 8 and 9 do, for later ones the instruction is made
    /// of dozens of others.
    #[must_use]
    pub fn multiplies_bits(&self) -> bool {
        matches!(self.properties().compute_capability.0, 8 | 9)
    }

    /// Whether its tensor cores multiply for four warps at once, as those of capability 9.0 do: see
    /// [`Shape::new`](bitnet_kernels::bit_gemm::Shape::new).
    #[must_use]
    pub fn multiplies_by_warpgroups(&self) -> bool {
        self.has::<HopperStore128>()
    }

    /// When errors are reported.
    #[must_use]
    pub fn reporting(&self) -> Reporting {
        self.inner.reporting
    }

    /// Free and total device memory, in bytes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are valid places; the context is current.
        let code = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        check(code, || "asking for free GPU memory")?;
        Ok((free as u64, total as u64))
    }

    /// What the driver's compiler made of every kernel, by name.
    #[must_use]
    pub fn kernels(&self) -> Vec<KernelUsage> {
        let mut kernels: Vec<KernelUsage> = self
            .inner
            .functions
            .iter()
            .map(|(&name, f)| KernelUsage {
                name,
                registers: f.registers,
                static_shared_bytes: f.static_shared_bytes,
                local_bytes: f.local_bytes,
            })
            .collect();
        kernels.sort_by_key(|kernel| kernel.name);
        kernels
    }

    /// Whether this GPU has the kernel: some need a newer architecture.
    #[must_use]
    pub fn has<K: Kernel>(&self) -> bool {
        self.inner.functions.contains_key(K::INFO.name)
    }

    /// Makes this GPU's context the calling thread's. Every call of the driver needs that first.
    pub(crate) fn enter(&self) -> Result<()> {
        self.inner
            .context
            .set_current()
            .map_err(|e| Error::cuda("entering the GPU's context", e))
    }

    pub(crate) fn function(&self, kernel: &KernelInfo) -> Result<Function> {
        self.inner.functions.get(kernel.name).copied().ok_or_else(|| {
            let (major, minor) = self.inner.properties.compute_capability;
            let reason = if kernel.min_sm <= 10 * major + minor && !kernel.is_exact {
                "its module was not loaded; `Gpu::with_bench` loads it".to_owned()
            } else {
                format!(
                    "it needs compute capability {}.{}, and {} has {major}.{minor}",
                    kernel.min_sm / 10,
                    kernel.min_sm % 10,
                    self.inner.properties.name
                )
            };
            Error::Launch {
                kernel: kernel.name,
                reason,
            }
        })
    }
}

/// A loaded module; unloaded when dropped, before the context.
#[derive(Debug)]
struct Module(CUmodule);

// SAFETY: a module handle is an identifier; the driver's calls on it are thread-safe.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Has the driver compile `text`; its complaints become the error.
    fn load(text: &str, gpu: &str) -> Result<Self> {
        const LOG_BYTES: usize = 4096;
        let doing = || format!("loading the kernels on {gpu}");
        let text = CString::new(text).map_err(|e| Error::Request(format!("the PTX is damaged: {e}")))?;
        let mut log = [0u8; LOG_BYTES];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // Values stand in the pointers themselves (cuda.h: an option's value is cast to `void *`).
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), LOG_BYTES as *mut c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends in a zero byte; two options with two values; the log has the size the second value says.
        let code = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut module,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        check(code, || {
            let log = CStr::from_bytes_until_nul(&log)
                .map(CStr::to_string_lossy)
                .unwrap_or_default();
            if log.trim().is_empty() {
                doing()
            } else {
                format!("{} ({})", doing(), log.trim())
            }
        })?;
        Ok(Self(module))
    }

    /// Resolves a kernel and lets it have all the shared memory that a block can have.
    fn function(&self, kernel: &KernelInfo, shared_limit: u32) -> Result<Function> {
        let doing = || format!("resolving kernel `{}`", kernel.name);
        let name = CString::new(kernel.name).map_err(|e| Error::Request(format!("{}: {e}", kernel.name)))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is a valid place, the module is loaded and the name ends in a zero byte.
        let code = unsafe { sys::cuModuleGetFunction(&raw mut handle, self.0, name.as_ptr()) };
        check(code, doing)?;
        let get = |attribute: CUfunction_attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: `value` is a valid place and `handle` was resolved above.
            let code = unsafe { sys::cuFuncGetAttribute(&raw mut value, attribute, handle) };
            check(code, doing)?;
            Ok(value.unsigned_abs())
        };
        let function = Function {
            handle,
            static_shared_bytes: get(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            registers: get(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: get(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        };
        let dynamic = shared_limit.saturating_sub(function.static_shared_bytes);
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: `handle` was resolved above; the driver checks the value.
        let code = unsafe { sys::cuFuncSetAttribute(handle, attribute, dynamic as i32) };
        check(code, doing)?;
        Ok(function)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Errors have nowhere to go here, and the process's end frees what is left.
        if self.context.set_current().is_ok() {
            for module in &self.modules {
                // SAFETY: nothing uses the module any more: streams, buffers and graphs hold a `Gpu` each.
                let _ = unsafe { sys::cuModuleUnload(module.0) };
            }
        }
    }
}
