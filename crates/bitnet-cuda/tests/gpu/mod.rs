//! What the GPU tests share: the GPU, where there is one, and numbers.

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

/// Uniform numbers from a seed (xorshift64*, Vigna 2016).
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 32 bits.
    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}
