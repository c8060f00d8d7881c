//! The driver and the GPUs.

use bitnet_cuda::{Error, Gpu, ProbeError, Reporting, probe, ptx};
use bitnet_model::Device;

use super::check::Check;
use crate::machine;
use crate::progress::human_bytes;

/// NVIDIA's number on the PCI bus.
const NVIDIA: &str = "0x10de";

/// A line for each GPU that `device` means, with its index where it can be used; one line where there is none.
pub(super) fn checks(device: Device) -> Vec<(Option<usize>, Check)> {
    match device {
        Device::Cpu => Vec::new(),
        Device::Cuda(index) => match u32::try_from(index).map_err(|_| index).map(check) {
            Ok(Ok(check)) => vec![(Some(index), check)],
            Ok(Err(error)) => vec![(None, failure(&error))],
            Err(index) => vec![(None, no_such(index))],
        },
        Device::Auto => {
            if let Err(error) = probe(0)
                && !is_unusable(&error)
            {
                return vec![(None, none(&error))];
            }
            let mut checks = Vec::new();
            for index in 0.. {
                match check(index) {
                    Ok(check) => checks.push((Some(index as usize), check)),
                    Err(Error::Probe(ProbeError::NoSuchDevice { .. })) => break,
                    Err(error) => checks.push((None, failure(&error))),
                }
            }
            checks
        }
    }
}

/// Whether there is a GPU that does not serve, rather than none.
fn is_unusable(error: &ProbeError) -> bool {
    matches!(error, ProbeError::ComputeCapability { .. })
}

/// Opens a GPU, which loads the kernels.
fn check(index: u32) -> Result<Check, Error> {
    let gpu = Gpu::new(index, Reporting::Late)?;
    let (free, total) = gpu.memory()?;
    let properties = gpu.properties();
    let (major, minor) = properties.compute_capability;
    let variant = ptx::choose(properties.compute_capability).map_or(0, |module| module.sm);
    let driver = machine::nvidia_driver().unwrap_or_else(|| "of unknown number".to_owned());
    let message = format!(
        "cuda:{index} {}, compute capability {major}.{minor}, PTX for sm_{variant}, {} free of {}, driver {driver} \
         (CUDA {})",
        properties.name,
        human_bytes(free),
        human_bytes(total),
        properties.driver
    );
    let check = if free >= total / 4 {
        Check::ok("gpu", message)
    } else {
        Check::warning(
            "gpu",
            message,
            "other programs hold most of its memory; nvidia-smi lists them",
        )
    };
    Ok(check
        .fact("index", index)
        .fact("name", properties.name.clone())
        .fact("compute_capability", format!("{major}.{minor}"))
        .fact("ptx", format!("sm_{variant}"))
        .fact("free_bytes", free)
        .fact("total_bytes", total)
        .fact("driver", driver)
        .fact("cuda", properties.driver.to_string()))
}

/// What to do about a GPU that was asked for, or is there and fails; messages of missing parts bring their own remedy.
fn failure(error: &Error) -> Check {
    let remedy = match error {
        Error::Probe(_) => "run on the processor: --device cpu",
        _ => "restart the driver or the machine, or run on the processor: --device cpu",
    };
    Check::failure("gpu", error.to_string(), remedy)
}

fn no_such(index: usize) -> Check {
    Check::failure(
        "gpu",
        format!("there is no GPU {index}"),
        "nvidia-smi lists those there are",
    )
}

/// There is no GPU to use, which is well where none was bought.
fn none(error: &ProbeError) -> Check {
    if matches!(error, ProbeError::DriverMissing { .. }) && !has_nvidia_hardware() {
        return Check::ok("gpu", "none; models run on the processor");
    }
    Check::warning(
        "gpu",
        error.to_string(),
        "repair that to use the GPU; until then models run on the processor",
    )
}

/// Whether the system sees hardware of NVIDIA's, with or without a driver.
fn has_nvidia_hardware() -> bool {
    let devices = std::fs::read_dir("/sys/bus/pci/devices")
        .into_iter()
        .flatten()
        .flatten();
    devices
        .filter_map(|device| std::fs::read_to_string(device.path().join("vendor")).ok())
        .any(|vendor| vendor.trim() == NVIDIA)
}
