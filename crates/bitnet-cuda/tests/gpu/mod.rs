//! The GPU that the tests share, where there is one.

use bitnet_cuda::{Error, Gpu, ProbeError, Reporting};
use std::sync::OnceLock;

/// The first GPU, opened once; `None`, saying so, on a machine without one. A GPU that cannot be used fails the test, and so
/// does none where the environment says `BITNET_GPU=required`.
pub(crate) fn open() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| match Gpu::with_bench(0, Reporting::EachLaunch) {
        Ok(gpu) => Some(gpu),
        Err(Error::Probe(error @ (ProbeError::DriverMissing { .. } | ProbeError::NoDevice)))
            if std::env::var("BITNET_GPU").as_deref() != Ok("required") =>
        {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    });
    gpu.as_ref()
}
