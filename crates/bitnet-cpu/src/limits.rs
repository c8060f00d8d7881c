//! What a processor can do at most: the figures that others are a share of.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::cpu::Cpu;
use crate::integer::{AHEAD, Spun};
use crate::memory::{Buffer, Pages};
use crate::{Error, Result};

/// Passes of a measurement: of multiplications the median counts, of reads the best.
const RUNS: usize = 7;

/// Ways to read, of which the best counts: groups of lanes of a claim, 256 KiB as products have them or 2 MiB, and how many bytes are asked
/// for ahead of their use.
const WAYS: [(usize, usize); 4] = [(4096, 0), (4096, AHEAD), (32768, 0), (32768, AHEAD)];

/// Groups of lanes of the smallest read: 256 KiB.
const LANES_OF_LEAST: usize = 4096;

/// How long multiplications are counted, for each thread and pass, and how long a way to read is tried at least.
const PASS: Duration = Duration::from_millis(20);

impl Cpu {
    /// Bytes a second of the best plain read of `bytes` bytes by all threads, from pages like those of weights: the best of several
    /// ways and passes, since nothing else reads faster then.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn read_rate(&self, bytes: usize) -> Result<f64> {
        let least = LANES_OF_LEAST * size_of::<[f32; 16]>();
        let (what, most) = ("a plain read", usize::MAX);
        let len = bytes
            .div_ceil(least)
            .max(1)
            .checked_mul(LANES_OF_LEAST)
            .ok_or(Error::Memory { what, bytes: most })?;
        let _stay = self.pool.stay();
        let mut data = Buffer::<[f32; 16]>::zeroed(what, len, Pages::Huge)?;
        // Until it is written all of it is one page.
        data.as_flattened_mut().fill(1.0);
        if let Some(nodes) = self.pool.nodes() {
            data.spread(what, nodes, 1)?;
        }
        let pass = |(at_once, ahead): (usize, usize)| {
            let start = Instant::now();
            self.pool.run(len.div_ceil(at_once), &|claim, _| {
                let first = claim * at_once;
                black_box((self.float.read)(&data[first..len.min(first + at_once)], ahead));
            });
            data.bytes() as f64 / start.elapsed().as_secs_f64()
        };
        let mut best = 0.0;
        for way in WAYS {
            let start = Instant::now();
            // What a cache holds is read in no time: more often then.
            for run in 0.. {
                if run >= RUNS && start.elapsed() >= PASS {
                    break;
                }
                best = f64::max(best, pass(way));
            }
        }
        Ok(best)
    }

    /// Products of a code and an activation a second that all threads add up together, with nothing to wait for.
    #[must_use]
    pub fn multiply_rate(&self) -> f64 {
        median(|| {
            let rates = std::sync::Mutex::new(0.0);
            std::thread::scope(|scope| {
                for thread in 0..self.n_threads() {
                    let rates = &rates;
                    scope.spawn(move || {
                        let _stay = self.pool.nodes().map(|nodes| nodes.stay(thread));
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
