//! Whether this machine can run kernels, and if not, which of the four reasons it is.

use crate::handles::{Device, DeviceAttribute, driver_version, init};
use crate::library;
use crate::sys::CUresult;
use std::fmt;

/// A version of CUDA: of a driver, what it supports; of PTX, what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl CudaVersion {
    /// The version `major.minor`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The first CUDA whose drivers load PTX of ISA version `major.minor`, from the release table of the PTX ISA
    /// ("Release Notes"). `None` for a PTX version before 7.0.
    #[must_use]
    pub const fn for_ptx(major: u32, minor: u32) -> Option<Self> {
        match (major, minor) {
            // Each came with the CUDA of the same minor number, but CUDA 12.6 brought no new PTX.
            (7, minor) => Some(Self::new(11, minor)),
            (8, minor) if minor <= 5 => Some(Self::new(12, minor)),
            (8, minor) => Some(Self::new(12, minor + 1)),
            (9, minor) => Some(Self::new(13, minor)),
            _ => None,
        }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The lowest compute capability whose kernels are built: Ampere.
pub const MIN_COMPUTE_CAPABILITY: (u32, u32) = (8, 0);

/// The driver that the launches need: `cuLaunchKernelEx` came with it.
pub const MIN_CUDA: CudaVersion = CudaVersion::new(11, 8);

/// Why there is no GPU to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// `libcuda.so.1` cannot be opened.
    #[error(
        "no NVIDIA driver: {name} could not be opened ({reason}); install NVIDIA's driver, or run on the CPU",
        name = library::NAME
    )]
    DriverMissing {
        /// What the loader said.
        reason: String,
    },
    /// The driver supports only an older CUDA.
    #[error(
        "the NVIDIA driver is too old: it supports CUDA {found}, and the kernels need CUDA {needed} or newer; \
         update the driver"
    )]
    DriverTooOld {
        /// What the driver supports.
        found: CudaVersion,
        /// What is needed.
        needed: CudaVersion,
    },
    /// The driver is there and does not start.
    #[error("the NVIDIA driver does not start: {reason} (error {code})")]
    DriverFailed {
        /// The driver's own words.
        reason: String,
        /// The driver's error code.
        code: u32,
    },
    /// The driver sees no GPU.
    #[error("the NVIDIA driver finds no GPU; check `nvidia-smi` and CUDA_VISIBLE_DEVICES")]
    NoDevice,
    /// The index names no GPU.
    #[error("there is no GPU {index}: this machine has {count}, numbered from 0")]
    NoSuchDevice {
        /// The index asked for.
        index: u32,
        /// GPUs there are.
        count: u32,
    },
    /// The GPU is older than Ampere.
    #[error(
        "GPU {index} ({name}) has compute capability {}.{}, and the kernels need {}.{} or newer (Ampere: A100, RTX 30)",
        found.0, found.1, MIN_COMPUTE_CAPABILITY.0, MIN_COMPUTE_CAPABILITY.1
    )]
    ComputeCapability {
        /// The GPU's index.
        index: u32,
        /// Its name.
        name: String,
        /// Its compute capability.
        found: (u32, u32),
    },
}

/// A GPU that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its index, as the driver counts.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub compute_capability: (u32, u32),
    /// The CUDA that the driver supports.
    pub driver: CudaVersion,
}

/// Starts the driver and looks at GPU `index`.
///
/// # Errors
/// What is missing, and what is needed instead.
pub fn probe(index: u32) -> Result<Gpu, ProbeError> {
    if let Err(reason) = library::open() {
        return Err(ProbeError::DriverMissing {
            reason: reason.to_owned(),
        });
    }
    init().map_err(failed)?;
    let version = driver_version().map_err(failed)?.unsigned_abs();
    let driver = CudaVersion::new(version / 1000, version % 1000 / 10);
    require_driver(driver, MIN_CUDA)?;
    let count = Device::count().map_err(failed)?;
    if count == 0 {
        return Err(ProbeError::NoDevice);
    }
    if index >= count {
        return Err(ProbeError::NoSuchDevice { index, count });
    }
    let device = Device::get(index).map_err(failed)?;
    let name = device.name().map_err(failed)?;
    let attribute = |which| device.attribute(which).map(i32::unsigned_abs).map_err(failed);
    let compute_capability = (
        attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    if compute_capability < MIN_COMPUTE_CAPABILITY {
        return Err(ProbeError::ComputeCapability {
            index,
            name,
            found: compute_capability,
        });
    }
    Ok(Gpu {
        index,
        name,
        compute_capability,
        driver,
    })
}

/// Checks that a driver supporting `found` can do what needs `needed`.
///
/// # Errors
/// [`ProbeError::DriverTooOld`].
pub fn require_driver(found: CudaVersion, needed: CudaVersion) -> Result<(), ProbeError> {
    if found < needed {
        return Err(ProbeError::DriverTooOld { found, needed });
    }
    Ok(())
}

fn failed(error: CUresult) -> ProbeError {
    match error {
        CUresult::CUDA_ERROR_NO_DEVICE => ProbeError::NoDevice,
        CUresult(code) => ProbeError::DriverFailed {
            reason: error.to_string(),
            code: code.unsigned_abs(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_versions_name_the_cuda_that_brought_them() {
        for (ptx, cuda) in [
            ((7, 0), (11, 0)),
            ((7, 8), (11, 8)),
            ((8, 0), (12, 0)),
            ((8, 5), (12, 5)),
        ] {
            assert_eq!(
                CudaVersion::for_ptx(ptx.0, ptx.1),
                Some(CudaVersion::new(cuda.0, cuda.1)),
                "{ptx:?}"
            );
        }
        assert_eq!(CudaVersion::for_ptx(8, 7), Some(CudaVersion::new(12, 8)));
        assert_eq!(CudaVersion::for_ptx(9, 0), Some(CudaVersion::new(13, 0)));
        assert_eq!(CudaVersion::for_ptx(6, 5), None);
    }

    #[test]
    fn an_old_driver_is_named_with_what_is_needed() {
        let old = require_driver(CudaVersion::new(11, 4), CudaVersion::new(12, 0))
            .unwrap_err()
            .to_string();
        assert!(
            old.contains("CUDA 11.4") && old.contains("CUDA 12.0 or newer"),
            "{old}"
        );
        assert_eq!(
            require_driver(CudaVersion::new(12, 0), CudaVersion::new(12, 0)),
            Ok(())
        );
    }
}
