//! What can go wrong on the way to a GPU and on it.

use cuda_driver::ProbeError;
use cuda_driver::sys::CUresult;

/// An error of this crate. Every variant says what was being done, and what to do where that is known.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no GPU to use.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The driver refused a call, or work that was given to it before failed.
    #[error("{doing}: {reason} ({name})")]
    Cuda {
        /// What was being done; the kernel's name where it is known.
        doing: String,
        /// The driver's name for it: `CUDA_ERROR_ILLEGAL_ADDRESS`.
        name: String,
        /// The driver's description.
        reason: String,
    },
    /// The device is full.
    #[error(
        "not enough GPU memory for {what}: {needed} MB needed, {free} MB free of {total} MB; choose a smaller context or \
         batch, or stop other programs that use the GPU",
        needed = needed_bytes.div_ceil(MEGABYTE), free = free_bytes / MEGABYTE, total = total_bytes / MEGABYTE
    )]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Size of the allocation.
        needed_bytes: u64,
        /// Free memory on the device.
        free_bytes: u64,
        /// All memory of the device.
        total_bytes: u64,
    },
    /// A copy does not fit its buffer.
    #[error("{what}: elements {start}..{end} of a buffer of {len}")]
    Range {
        /// What was being done.
        what: &'static str,
        /// First element.
        start: usize,
        /// One past the last element.
        end: usize,
        /// Elements the buffer has.
        len: usize,
    },
    /// A kernel cannot be launched like this on this GPU.
    #[error("kernel `{kernel}` cannot be launched: {reason}")]
    Launch {
        /// The kernel.
        kernel: &'static str,
        /// The limit, and what was asked for.
        reason: String,
    },
    /// The model computed something that is no number.
    #[error(
        "the model computed a NaN or an infinity: its weights are damaged, or a kernel is wrong on this GPU; compare with the CPU"
    )]
    NotFinite,
    /// The request makes no sense on this back end.
    #[error("{0}")]
    Request(String),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

const MEGABYTE: u64 = 1_000_000;

impl Error {
    /// The error of `code` while `doing` something.
    pub(crate) fn cuda(doing: impl Into<String>, code: CUresult) -> Self {
        Self::Cuda {
            doing: doing.into(),
            name: format!("{code:?}"),
            reason: code.to_string() + remedy(code),
        }
    }
}

/// What to do after an error that ends all work on the GPU: every later call fails with the same.
fn remedy(code: CUresult) -> &'static str {
    match code {
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_LAUNCH_FAILED => {
            "; a kernel broke down, and the program must be started again: please report it, with the GPU's name and what was \
             computed"
        }
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
        | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUresult::CUDA_ERROR_SYSTEM_NOT_READY
        | CUresult::CUDA_ERROR_UNKNOWN => {
            "; the GPU failed or is gone: look for it with nvidia-smi and for `Xid` in the system's log, then start again"
        }
        CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => {
            "; the system stops long kernels on a GPU with a display: use another GPU, or the processor"
        }
        _ => "",
    }
}

/// `Ok` for success, otherwise the error with what `doing` says.
pub(crate) fn check<D: Into<String>>(code: CUresult, doing: impl FnOnce() -> D) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(Error::cuda(doing(), code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_is_needed() {
        let error = Error::OutOfMemory {
            what: "the KV cache".into(),
            needed_bytes: 1_200_000_000,
            free_bytes: 800_000_000,
            total_bytes: 16_000_000_000,
        };
        let text = error.to_string();
        assert!(
            text.contains("the KV cache: 1200 MB needed, 800 MB free of 16000 MB"),
            "{text}"
        );
        let error = check(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, || "kernel `f`")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("kernel `f`: ")
                && error.contains("started again")
                && error.ends_with("(CUDA_ERROR_ILLEGAL_ADDRESS)"),
            "{error}"
        );
        let error = Error::cuda("running a graph", CUresult::CUDA_ERROR_ECC_UNCORRECTABLE).to_string();
        assert!(error.contains("nvidia-smi"), "{error}");
        let error = Error::cuda("making a stream", CUresult::CUDA_ERROR_INVALID_VALUE).to_string();
        assert!(!error.contains(';'), "{error}");
        assert!(check(CUresult::CUDA_SUCCESS, || "nothing").is_ok());
    }
}
