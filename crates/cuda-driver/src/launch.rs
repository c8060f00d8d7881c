//! `cuLaunchKernelEx`, with attributes for programmatic dependent launch and clusters.

use crate::library;
use crate::sys::{CUfunction, CUresult, CUstream};
use std::ffi::{c_uint, c_void};
use std::sync::OnceLock;

/// One launch attribute, `CUlaunchAttribute` of cuda.h.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct LaunchAttribute {
    id: c_uint,
    padding: [u8; 4],
    /// The union `CUlaunchAttributeValue`; all the variants offered here are 32-bit integers at its start.
    value: [u32; 16],
}

const _: () = assert!(size_of::<LaunchAttribute>() == 72);

impl LaunchAttribute {
    const fn new(id: c_uint, first: [u32; 3]) -> Self {
        let mut value = [0; 16];
        value[0] = first[0];
        value[1] = first[1];
        value[2] = first[2];
        Self {
            id,
            padding: [0; 4],
            value,
        }
    }

    /// Blocks come in clusters of `x` neighbors that share their shared memory, compute capability 9.0
    /// (`CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`).
    #[must_use]
    pub const fn cluster(x: u32) -> Self {
        Self::new(4, [x, 1, 1])
    }

    /// The kernel may start before its predecessor in the stream has ended, and waits for it with
    /// `griddepcontrol.wait`, compute capability 9.0 (`CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`).
    #[must_use]
    pub const fn programmatic_dependent() -> Self {
        Self::new(6, [1, 0, 0])
    }
}

/// Grid, block and stream of a launch, `CUlaunchConfig` of cuda.h.
#[repr(C)]
struct RawConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: CUstream,
    attributes: *const LaunchAttribute,
    n_attributes: c_uint,
}

const _: () = assert!(size_of::<RawConfig>() == 56);

/// Where and how a kernel runs.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// The stream.
    pub stream: CUstream,
    /// Attributes of this launch.
    pub attributes: &'a [LaunchAttribute],
}

/// Launches `function` with `params`, one pointer per kernel parameter.
///
/// # Safety
/// - `function` and `launch.stream` belong to the current context.
/// - `params` has a pointer to a value of the right size for every parameter of the kernel.
/// - The kernel's own contract holds for those values and this grid.
pub unsafe fn launch_kernel(function: CUfunction, launch: &Launch<'_>, params: &[*const c_void]) -> CUresult {
    type Symbol = unsafe extern "system" fn(
        *const RawConfig,
        CUfunction,
        *const *const c_void,
        *mut *mut c_void,
    ) -> CUresult;
    static SYMBOL: OnceLock<Option<Symbol>> = OnceLock::new();
    // SAFETY: cuda.h's signature; the driver does not write through its first and third parameters.
    let Some(symbol) = SYMBOL.get_or_init(|| unsafe { library::symbol("cuLaunchKernelEx") }) else {
        return library::missing();
    };
    let config = RawConfig {
        grid: launch.grid,
        block: launch.block,
        shared_bytes: launch.shared_bytes,
        stream: launch.stream,
        attributes: launch.attributes.as_ptr(),
        n_attributes: launch.attributes.len() as c_uint,
    };
    // SAFETY: the caller vouches for handles and parameters; `config` and the attributes outlive the call.
    unsafe { symbol(&raw const config, function, params.as_ptr(), std::ptr::null_mut()) }
}
