//! The GPU's side of `bench kernels`.

use bitnet_cuda::bench::{Bench, Bf16, GEMVS, Gemv};
use bitnet_cuda::{Error, Gpu, Reporting};

use super::report::{Report, Row, Timing};
use super::shapes::{HEAD, SHAPES};
use crate::machine;

/// Measures GPU `index`.
pub(super) fn measure(index: usize) -> Result<Report, Error> {
    let index = u32::try_from(index).map_err(|_| Error::Request(format!("there is no GPU {index}")))?;
    let gpu = Gpu::with_bench(index, Reporting::Late)?;
    let properties = gpu.properties();
    let (major, minor) = properties.compute_capability;
    let mut facts = vec![
        (
            "device",
            format!(
                "{} (compute capability {major}.{minor}, {} multiprocessors, {} MB L2, {:.0} GB)",
                properties.name,
                properties.n_sms,
                properties.l2_bytes >> 20,
                properties.memory_bytes as f64 / 1e9
            ),
        ),
        ("driver", driver(&properties.driver.to_string())),
    ];
    let bench = Bench::new(&gpu)?;
    let peak_gb_per_s = bench.peak_gb_per_s()?;
    let mut rows = Vec::new();
    for (n, k) in SHAPES {
        let timings = GEMVS.into_iter().map(|kernel| timing(&bench, kernel, n, k));
        rows.push(Row {
            n,
            k,
            timings: timings.filter_map(Result::transpose).collect::<Result<_, _>>()?,
        });
    }
    let (n, k) = HEAD;
    rows.push(Row {
        n,
        k,
        timings: timing(&bench, &Bf16, n, k)?.into_iter().collect(),
    });
    facts.push((
        "method",
        "median of 11 CUDA graphs of 16 to 400 products; cold: over copies of the weights, 400 MB or more in all"
            .to_owned(),
    ));
    Ok(Report {
        facts,
        peak_gb_per_s,
        rows,
    })
}

/// Bandwidth of a plain read on GPU `index`, in GB/s.
pub(super) fn peak(index: usize) -> Result<f64, Error> {
    let index = u32::try_from(index).map_err(|_| Error::Request(format!("there is no GPU {index}")))?;
    Bench::new(&Gpu::with_bench(index, Reporting::Late)?)?.peak_gb_per_s()
}

fn timing(bench: &Bench, kernel: &dyn Gemv, n: usize, k: usize) -> Result<Option<Timing>, Error> {
    let measured = bench.measure(kernel, n, k)?;
    Ok(measured.map(|m| Timing {
        kernel: kernel.name(),
        cold_us: m.cold_us,
        hot_us: m.hot_us,
        bytes: m.bytes,
    }))
}

/// The driver's own version number, where the system tells it, and the CUDA version it supports.
fn driver(cuda: &str) -> String {
    match machine::nvidia_driver() {
        Some(number) => format!("{number}, CUDA {cuda}"),
        None => format!("CUDA {cuda}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{BF16, LAYER, OURS, REFERENCE};
    use super::*;

    #[test]
    fn the_report_knows_every_kernel() {
        assert_eq!(GEMVS.map(Gemv::name), [OURS, LAYER, REFERENCE, BF16]);
    }
}
