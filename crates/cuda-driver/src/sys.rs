//! The part of cuda.h that is used here: types, codes, and functions that look their namesakes up in the driver's library
//! when they are first called.
//!
//! Names are those of the header, so that NVIDIA's documentation of the driver API can be searched for them.
#![allow(non_snake_case, non_camel_case_types, missing_docs)]

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::fmt;
use std::sync::OnceLock;

use crate::library;

pub use crate::codes::CUresult;

pub type CUdevice = c_int;
pub type CUdeviceptr = c_ulonglong;

macro_rules! handles {
    ($($name:ident: $target:ident;)*) => { $(
        /// What the handle points to; only the driver knows it.
        #[repr(C)]
        #[derive(Debug)]
        pub struct $target([u8; 0]);
        pub type $name = *mut $target;
    )* };
}
handles! {
    CUcontext: CUctx_st;
    CUmodule: CUmod_st;
    CUfunction: CUfunc_st;
    CUstream: CUstream_st;
    CUevent: CUevent_st;
    CUgraph: CUgraph_st;
    CUgraphExec: CUgraphExec_st;
    CUgraphNode: CUgraphNode_st;
}

/// A property of a device.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CUdevice_attribute {
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
}

/// A property of a kernel.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CUfunction_attribute {
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
}

/// An option of the driver's compiler.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CUjit_option {
    CU_JIT_ERROR_LOG_BUFFER = 5,
    CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
}

/// Which other calls of the program end a capture.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CUstreamCaptureMode {
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    CU_STREAM_CAPTURE_MODE_RELAXED = 2,
}

impl fmt::Display for CUresult {
    /// The driver's description.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = std::ptr::null();
        // SAFETY: `text` is a valid place for the pointer.
        let known = unsafe { cuGetErrorString(*self, &raw mut text) } == Self::CUDA_SUCCESS;
        if !known || text.is_null() {
            return f.write_str("unknown error");
        }
        // SAFETY: the driver's texts are static and end in a zero byte, and so is the one given without a driver.
        f.write_str(&unsafe { CStr::from_ptr(text) }.to_string_lossy())
    }
}

impl std::error::Error for CUresult {}

macro_rules! functions {
    ($( $name:ident($( $arg:ident: $ty:ty ),* $(,)?); )*) => { $(
        #[doc = concat!("`", stringify!($name), "` of the driver, or an error code where the driver or it is missing.")]
        ///
        /// # Safety
        /// What NVIDIA's documentation of the function asks for: valid places, handles of the current context, sizes that
        /// are true.
        pub unsafe fn $name($( $arg: $ty ),*) -> CUresult {
            type Symbol = unsafe extern "system" fn($( $ty ),*) -> CUresult;
            static SYMBOL: OnceLock<Option<Symbol>> = OnceLock::new();
            // SAFETY: the signature is that of cuda.h.
            match SYMBOL.get_or_init(|| unsafe { library::symbol(stringify!($name)) }) {
                // SAFETY: the caller upholds the contract of the function.
                Some(symbol) => unsafe { symbol($( $arg ),*) },
                None => library::missing(),
            }
        }
    )* };
}

functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuCtxSetCurrent(context: CUcontext);

    cuModuleLoadDataEx(
        module: *mut CUmodule, image: *const c_void, n_options: c_uint, options: *mut CUjit_option,
        values: *mut *mut c_void,
    );
    cuModuleUnload(module: CUmodule);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);

    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemAllocHost_v2(address: *mut *mut c_void, bytes: usize);
    cuMemFreeHost(address: *mut c_void);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemsetD8Async(to: CUdeviceptr, byte: c_uchar, bytes: usize, stream: CUstream);

    cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, n_nodes: *mut usize);
    cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    cuGraphDestroy(graph: CUgraph);
    cuGraphExecDestroy(exec: CUgraphExec);
}

/// `cuGetErrorString` of the driver. Without a driver it gives a text, too: errors are formatted with it.
///
/// # Safety
/// `text` is a valid place for a pointer.
pub unsafe fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    type Symbol = unsafe extern "system" fn(CUresult, *mut *const c_char) -> CUresult;
    static SYMBOL: OnceLock<Option<Symbol>> = OnceLock::new();
    // SAFETY: the signature is that of cuda.h.
    match SYMBOL.get_or_init(|| unsafe { library::symbol("cuGetErrorString") }) {
        // SAFETY: the caller gives a valid place.
        Some(symbol) => unsafe { symbol(error, text) },
        None => {
            // SAFETY: as above; the text is static.
            unsafe { *text = c"the NVIDIA driver is not installed".as_ptr() };
            CUresult::CUDA_SUCCESS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_names_and_new_ones_their_number() {
        assert_eq!(
            format!("{:?}", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
            "CUDA_ERROR_ILLEGAL_ADDRESS"
        );
        assert_eq!(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, CUresult(700));
        assert_eq!(format!("{:?}", CUresult(12345)), "CUDA error 12345");
        assert_eq!(CUresult(0).result(), Ok(()));
        assert_eq!(CUresult(2).result(), Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert_eq!(size_of::<CUresult>(), size_of::<c_int>());
    }
}
