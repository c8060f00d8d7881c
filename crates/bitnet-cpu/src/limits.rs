//! What a processor can do at most: the figures that others are a share of.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::cpu::Cpu;
use crate::integer::Spun;
use crate::memory::{Buffer, Pages};
use crate::{Error, Result};

/// Passes of a measurement, of which the median counts.
const RUNS: usize = 7;

/// Groups of lanes of a claim: 256 KiB, as products have them.
const LANES_AT_ONCE: usize = 4096;

/// How long multiplications are counted, for each thread and pass.
const PASS: Duration = Duration::from_millis(20);

impl Cpu {
    /// Bytes a second of a plain read of `bytes` bytes by all threads, from pages like those of weights.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn read_rate(&self, bytes: usize) -> Result<f64> {
        let n_claims = bytes.div_ceil(LANES_AT_ONCE * size_of::<[f32; 16]>()).max(1);
        let (what, bytes) = ("a plain read", usize::MAX);
        let len = n_claims
            .checked_mul(LANES_AT_ONCE)
            .ok_or(Error::Memory { what, bytes })?;
        let mut data = Buffer::<[f32; 16]>::zeroed(what, len, Pages::Huge)?;
        // Until it is written all of it is one page.
        data.as_flattened_mut().fill(1.0);
        Ok(median(|| {
            let start = Instant::now();
            self.pool.run(n_claims, &|claim, _| {
                black_box((self.float.read)(&data[claim * LANES_AT_ONCE..][..LANES_AT_ONCE]));
            });
            data.bytes() as f64 / start.elapsed().as_secs_f64()
        }))
    }

    /// Products of a code and an activation a second that all threads add up together, with nothing to wait for.
    #[must_use]
    pub fn multiply_rate(&self) -> f64 {
        median(|| {
            let rates = std::sync::Mutex::new(0.0);
            std::thread::scope(|scope| {
                for _ in 0..self.n_threads() {
                    scope.spawn(|| {
                        let (mut n_products, start) = (0, Instant::now());
                        while start.elapsed() < PASS {
                            let mut spun = Spun::default();
                            (self.integer.spin)(100, &mut spun);
                            n_products += black_box(spun).n_products;
                        }
                        let rate = n_products as f64 / start.elapsed().as_secs_f64();
                        *rates.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += rate;
                    });
                }
            });
            rates
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        })
    }
}

/// The median of [`RUNS`] measurements.
fn median(mut measure: impl FnMut() -> f64) -> f64 {
    let mut rates: [f64; RUNS] = std::array::from_fn(|_| measure());
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Simd;

    #[test]
    fn every_path_has_limits() {
        for simd in Simd::available() {
            let cpu = Cpu::new(Some(simd), Some(2)).unwrap();
            assert!(cpu.read_rate(1).unwrap() > 0.0, "{simd}");
            assert!(cpu.multiply_rate() > 0.0, "{simd}");
            assert!(cpu.read_rate(usize::MAX).is_err(), "{simd}");
            let mut spun = Spun::default();
            (cpu.integer.spin)(3, &mut spun);
            // Each product is of four codes and activations: `2 * 1 + 0 * -2 + 1 * 3 + 2 * -4`.
            assert_eq!(
                i64::from(spun.sums[7]),
                -3 * (spun.n_products / 64) as i64,
                "{simd}"
            );
        }
    }
}
