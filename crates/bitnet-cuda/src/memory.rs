//! Device memory, and host memory that the device can write to.

use crate::error::{Error, Result, check};
use crate::gpu::Gpu;
use bitnet_kernels::Global;
use cuda_driver::sys::{self, CUdeviceptr, CUresult};
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::atomic::AtomicU32;

/// A number that can be copied to and from the device.
///
/// # Safety
/// Every bit pattern is a value and there is no padding.
pub unsafe trait Element: Copy + Send + Sync + 'static {}

macro_rules! element {
    ($($type:ty),*) => { $(
        // SAFETY: a primitive number has no padding and no invalid bit pattern.
        unsafe impl Element for $type {}
    )* };
}
element!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// Device memory for `len` elements; freed when dropped.
#[derive(Debug)]
pub struct DeviceBuffer<T: Element> {
    address: CUdeviceptr,
    len: usize,
    gpu: Gpu,
    element: PhantomData<T>,
}

impl Gpu {
    /// Memory for `len` elements, with whatever is in it; `what` is for the error message: `"the KV cache"`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the device is full.
    pub fn alloc<T: Element>(&self, what: &str, len: usize) -> Result<DeviceBuffer<T>> {
        self.enter()?;
        let mut address = 0;
        let bytes = len.checked_mul(size_of::<T>());
        if bytes == Some(0) {
            return Ok(DeviceBuffer {
                address,
                len,
                gpu: self.clone(),
                element: PhantomData,
            });
        }
        let bytes = bytes.unwrap_or(usize::MAX);
        // SAFETY: `address` is a valid place and the context is current.
        match unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) } {
            CUresult::CUDA_SUCCESS => Ok(DeviceBuffer {
                address,
                len,
                gpu: self.clone(),
                element: PhantomData,
            }),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY | CUresult::CUDA_ERROR_INVALID_VALUE => {
                let (free_bytes, total_bytes) = self.memory()?;
                let needed_bytes = bytes as u64;
                Err(Error::OutOfMemory {
                    what: what.to_owned(),
                    needed_bytes,
                    free_bytes,
                    total_bytes,
                })
            }
            code => Err(Error::cuda(format!("allocating {bytes} bytes for {what}"), code)),
        }
    }
}

impl<T: Element> DeviceBuffer<T> {
    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    /// The address, for a kernel's parameters. At least 256-byte aligned.
    #[must_use]
    pub fn global(&self) -> Global<T> {
        Global::new(self.address)
    }

    /// The address of element `index`, which may be one past the end.
    ///
    /// # Errors
    /// [`Error::Range`] when it is further than that.
    pub fn global_at(&self, index: usize) -> Result<Global<T>> {
        self.address_of("addressing device memory", index..index)
            .map(Global::new)
    }

    /// The address of `range`, which must lie inside.
    pub(crate) fn address_of(&self, what: &'static str, range: Range<usize>) -> Result<CUdeviceptr> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::Range {
                what,
                start: range.start,
                end: range.end,
                len: self.len,
            });
        }
        Ok(self.address + (range.start * size_of::<T>()) as u64)
    }
}

impl<T: Element> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.address != 0 && self.gpu.enter().is_ok() {
            // The driver waits for kernels that run before it frees. An error has nowhere to go here.
            // SAFETY: allocated by `Gpu::alloc` and freed once.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Host memory, words that kernels can read and write by the same address while the host looks at them.
///
/// For results that the host reads behind the device: a kernel's store becomes visible to [`AtomicU32::load`].
#[derive(Debug)]
pub struct SharedWords {
    words: *mut AtomicU32,
    len: usize,
    gpu: Gpu,
}

// SAFETY: the memory belongs to this value alone on the host, and is only reached as atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl Gpu {
    /// `len` words of host memory that the device can reach, all zero.
    ///
    /// # Errors
    /// When the driver cannot pin the memory.
    pub fn alloc_shared(&self, len: usize) -> Result<SharedWords> {
        self.enter()?;
        let Some(bytes) = len.max(1).checked_mul(size_of::<AtomicU32>()) else {
            return Err(Error::Request(format!(
                "{len} words of pinned host memory are more than there can be"
            )));
        };
        let mut words = std::ptr::null_mut();
        // SAFETY: `words` is a valid place and the context is current.
        let code = unsafe { sys::cuMemAllocHost_v2(&raw mut words, bytes) };
        check(code, || format!("pinning {bytes} bytes of host memory"))?;
        // SAFETY: just allocated with this size, and nothing else refers to it yet.
        unsafe { words.cast::<u8>().write_bytes(0, bytes) };
        Ok(SharedWords {
            words: words.cast(),
            len,
            gpu: self.clone(),
        })
    }
}

impl SharedWords {
    /// The address for a kernel's parameters: unified addressing gives host and device the same.
    #[must_use]
    pub fn global(&self) -> Global<u32> {
        Global::new(self.words as u64)
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: `len` words were allocated and zeroed; atomics allow the device to write meanwhile.
        unsafe { std::slice::from_raw_parts(self.words, self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: allocated by `Gpu::alloc_shared` and freed once; the driver waits for work that uses it.
            let _ = unsafe { sys::cuMemFreeHost(self.words.cast()) };
        }
    }
}
