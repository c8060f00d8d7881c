//! `libcuda.so.1`, opened once, and the error codes of calls that do not reach it.

use crate::codes::CUresult;
use libloading::Library;
use std::error::Error;
use std::sync::OnceLock;

/// The driver's library, as its installer names it.
pub(crate) const NAME: &str = if cfg!(windows) {
    "nvcuda.dll"
} else {
    "libcuda.so.1"
};

/// The library, or why it could not be opened.
pub(crate) fn open() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let library = LIBRARY
        .get_or_init(|| load().map_err(|e| e.source().map_or_else(|| e.to_string(), ToString::to_string)));
    library.as_ref().map_err(String::as_str)
}

#[cfg(not(windows))]
fn load() -> Result<Library, libloading::Error> {
    // SAFETY: the initializers of NVIDIA's driver library may run on any thread; it is never unloaded.
    unsafe { Library::new(NAME) }
}

/// From the system's folder alone: elsewhere a file of that name is not NVIDIA's.
#[cfg(windows)]
fn load() -> Result<Library, libloading::Error> {
    use libloading::os::windows::{LOAD_LIBRARY_SEARCH_SYSTEM32, Library};
    // SAFETY: the initializers of NVIDIA's driver library may run on any thread; it is never unloaded.
    unsafe { Library::load_with_flags(NAME, LOAD_LIBRARY_SEARCH_SYSTEM32) }.map(Into::into)
}

/// The address of the driver's `name`, as the function pointer `F`.
///
/// # Safety
/// - `F` is the function pointer type of `name` in `cuda.h`.
pub(crate) unsafe fn symbol<F: Copy>(name: &str) -> Option<F> {
    // SAFETY: the caller gives the type; the library is never unloaded, so the pointer stays valid.
    unsafe { open().ok()?.get::<F>(name.as_bytes()) }
        .ok()
        .map(|symbol| *symbol)
}

/// What a call returns whose symbol was not found.
pub(crate) fn missing() -> CUresult {
    match open() {
        Err(_) => CUresult::CUDA_ERROR_NOT_INITIALIZED,
        Ok(_) => CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND,
    }
}
