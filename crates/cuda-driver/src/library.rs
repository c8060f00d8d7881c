//! `libcuda.so.1`, opened once, and the error codes of calls that do not reach it.

use cust::sys::CUresult;
use libloading::Library;
use std::error::Error;
use std::sync::OnceLock;

/// The driver's library, as its installer names it.
pub(crate) const NAME: &str = "libcuda.so.1";

/// The library, or why it could not be opened.
pub(crate) fn open() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        // SAFETY: the initializers of NVIDIA's driver library may run on any thread; it is never unloaded.
        unsafe { Library::new(NAME) }
            .map_err(|e| e.source().map_or_else(|| e.to_string(), ToString::to_string))
    });
    library.as_ref().map_err(String::as_str)
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

/// Every value of `cust`'s `CUresult`, which has CUDA 11.4's.
#[rustfmt::skip]
const KNOWN: [i32; 86] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 34, 100, 101, 102, 200, 201, 202, 205, 206, 207, 208, 209, 210, 211, 212, 213, 214,
    215, 216, 217, 218, 219, 220, 221, 222, 223, 224, 300, 301, 302, 303, 304, 400, 401, 500, 600, 700, 701, 702, 703,
    704, 705, 708, 709, 710, 711, 712, 713, 714, 715, 716, 717, 718, 719, 720, 800, 801, 802, 803, 804, 805, 806, 807,
    808, 809, 900, 901, 902, 903, 904, 905, 906, 907, 908, 909, 910,
    911,
];

/// A driver's return value as `cust`'s enum. A newer driver returns codes that the enum lacks, and such a value in a
/// Rust enum is undefined behavior: they become `CUDA_ERROR_UNKNOWN`.
pub(crate) fn result(code: i32) -> CUresult {
    if KNOWN.binary_search(&code).is_ok() {
        // SAFETY: `KNOWN` lists discriminants of this `repr(i32)` enum only.
        unsafe { std::mem::transmute::<i32, CUresult>(code) }
    } else {
        CUresult::CUDA_ERROR_UNKNOWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_value_and_new_ones_become_unknown() {
        assert!(KNOWN.is_sorted());
        for code in KNOWN {
            assert_eq!(result(code) as i32, code);
            assert!(format!("{:?}", result(code)).starts_with("CUDA_"));
        }
        // CUDA_ERROR_CONTAINED of CUDA 12.8, a negative value, and the enum's own last.
        for code in [721, -1, 999] {
            assert_eq!(result(code), CUresult::CUDA_ERROR_UNKNOWN, "{code}");
        }
    }
}
