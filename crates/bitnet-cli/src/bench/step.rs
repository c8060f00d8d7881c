//! `bitnet bench step`: where the time of a decode step on a GPU goes.

use std::fmt::Write as _;
use std::process::ExitCode;

use bitnet_model::{Backend, PartTime, Profile};
use serde_json::{Value, json};

use super::on_gpu::{GpuArgs, ROOM, fill};
use super::report::Format;

/// Time the parts of a decode step on a GPU
///
/// Kernels overlap, so a part has two times: what the step takes less without it, and what its kernels take with nothing
/// between them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: GpuArgs,
    /// Tokens of context
    #[arg(short, long, value_name = "N", default_value = "64")]
    depth: usize,
    /// Sequences decoded side by side
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = crate::args::at_least_one)]
    batch: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let saves = super::formats(&args.common.save)?;
    let depths = vec![args.depth; args.batch];
    let checkpoint = args.common.open()?;
    let peak_gb_per_s = super::kernels::gpu_peak(args.common.gpu as usize)?;
    let mut backend = args.common.load(&checkpoint, &depths)?;
    let name = backend.spec().name.clone();
    let mut session = fill(&mut backend, &depths)?;
    // Pages for every position that is measured; the profile begins at the first.
    let first: Vec<(usize, &[u32])> = (0..args.batch).map(|seq| (seq, &[1; ROOM][..])).collect();
    let batch = session.batch(&first)?;
    let report = Report {
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        backend: name,
        depth: args.depth,
        batch: args.batch,
        peak_gb_per_s,
        profile: backend.profile(&batch)?,
    };
    super::publish(&|format| report.text(format), args.common.output, &saves)?;
    Ok(ExitCode::SUCCESS)
}

struct Report {
    command: String,
    backend: String,
    depth: usize,
    batch: usize,
    peak_gb_per_s: f64,
    profile: Profile,
}

impl Report {
    /// Bandwidth of a part alone; none where it reads nothing that counts.
    fn gb_per_s(part: &PartTime) -> Option<f64> {
        (part.bytes > 0 && part.alone_us > 0.0).then(|| part.bytes as f64 / part.alone_us / 1e3)
    }

    /// Microseconds at the plain read's bandwidth.
    fn floor_us(&self, bytes: u64) -> f64 {
        bytes as f64 / self.peak_gb_per_s / 1e3
    }

    fn bytes(&self) -> u64 {
        self.profile.parts.iter().map(|part| part.bytes).sum()
    }

    /// What no part's absence saves: kernels overlap, and where one is missing its successor waits for its predecessor.
    fn rest_us(&self) -> f64 {
        self.profile.step_us - self.profile.parts.iter().map(|p| p.marginal_us).sum::<f64>()
    }

    fn text(&self, format: Format) -> String {
        match format {
            Format::Md => self.markdown(),
            Format::Json => format!("{:#}\n", self.json()),
            Format::Csv => self.csv(),
        }
    }

    fn markdown(&self) -> String {
        let step_us = self.profile.step_us;
        let mut out = format!(
            "- command: bitnet {}\n- backend: {}\n- plain read: {:.1} GB/s\n- a step: {:.1} us, {:.1} MB, floor {:.1} us\n\n\
             | part | kernels | MB | floor us | step less without it, us | share | alone us | GB/s alone | of plain read |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
            self.command,
            self.backend,
            self.peak_gb_per_s,
            step_us,
            self.bytes() as f64 / 1e6,
            self.floor_us(self.bytes()),
        );
        for part in &self.profile.parts {
            let gb = Self::gb_per_s(part);
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            let _ = writeln!(
                out,
                "| {} | {} | {:.1} | {:.1} | {:.1} | {:.0} % | {:.1} | {} | {} |",
                part.part.name(),
                part.kernels,
                part.bytes as f64 / 1e6,
                self.floor_us(part.bytes),
                part.marginal_us,
                part.marginal_us / step_us * 100.0,
                part.alone_us,
                or_dash(gb.map(|gb| format!("{gb:.0}"))),
                or_dash(gb.map(|gb| format!("{:.0} %", gb / self.peak_gb_per_s * 100.0))),
            );
        }
        let _ = writeln!(
            out,
            "| in no part | | | | {:.1} | {:.0} % | | | |",
            self.rest_us(),
            self.rest_us() / step_us * 100.0
        );
        out
    }

    fn json(&self) -> Value {
        let part = |p: &PartTime| {
            json!({
                "part": p.part.name(),
                "kernels": p.kernels,
                "bytes": p.bytes,
                "floor_us": self.floor_us(p.bytes),
                "marginal_us": p.marginal_us,
                "alone_us": p.alone_us,
                "alone_gbps": Self::gb_per_s(p),
                "alone_share_of_plain_read": Self::gb_per_s(p).map(|gb| gb / self.peak_gb_per_s),
            })
        };
        json!({
            "command": format!("bitnet {}", self.command),
            "build_commit": env!("BITNET_COMMIT"),
            "backend": self.backend,
            "n_depth": self.depth,
            "n_sequences": self.batch,
            "plain_read_gbps": self.peak_gb_per_s,
            "step_us": self.profile.step_us,
            "bytes": self.bytes(),
            "floor_us": self.floor_us(self.bytes()),
            "in_no_part_us": self.rest_us(),
            "parts": self.profile.parts.iter().map(part).collect::<Vec<_>>(),
        })
    }

    fn csv(&self) -> String {
        let mut out = String::from("part,kernels,bytes,floor_us,marginal_us,alone_us\n");
        for p in &self.profile.parts {
            let _ = writeln!(
                out,
                "{},{},{},{:.3},{:.3},{:.3}",
                p.part.name(),
                p.kernels,
                p.bytes,
                self.floor_us(p.bytes),
                p.marginal_us,
                p.alone_us
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use bitnet_model::Part;

    use super::*;

    #[test]
    fn shares_and_the_rest() {
        let part = |part, bytes, marginal_us, alone_us| PartTime {
            part,
            kernels: 2,
            bytes,
            marginal_us,
            alone_us,
        };
        let report = Report {
            command: "bench step".to_owned(),
            backend: "gpu".to_owned(),
            depth: 64,
            batch: 1,
            peak_gb_per_s: 4000.0,
            profile: Profile {
                step_us: 500.0,
                parts: vec![
                    part(Part::Qkv, 400_000_000, 150.0, 200.0),
                    part(Part::Choose, 0, 5.0, 10.0),
                ],
            },
        };
        let text = report.markdown();
        assert!(
            text.contains("| qkv | 2 | 400.0 | 100.0 | 150.0 | 30 % | 200.0 | 2000 | 50 % |"),
            "{text}"
        );
        assert!(
            text.contains("| choose | 2 | 0.0 | 0.0 | 5.0 | 1 % | 10.0 | - | - |"),
            "{text}"
        );
        assert_eq!(report.json()["in_no_part_us"], 345.0);
    }
}
