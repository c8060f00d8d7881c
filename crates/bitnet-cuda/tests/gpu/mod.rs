//! The GPU that the tests share, where there is one.

use bitnet_cuda::{Error, Gpu, ProbeError, Reporting};
use std::sync::OnceLock;

/// The first GPU, opened once; `None`, saying so, on a machine without one. A GPU that cannot be used fails the test.
pub(crate) fn open() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| match Gpu::new(0, Reporting::EachLaunch) {
        Ok(gpu) => Some(gpu),
        Err(Error::Probe(error @ (ProbeError::DriverMissing { .. } | ProbeError::NoDevice))) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    });
    gpu.as_ref()
}
