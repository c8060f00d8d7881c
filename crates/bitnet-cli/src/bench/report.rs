//! Results of `bench kernels`, as a Markdown table, JSON or CSV.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::failure::hinted;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A Markdown table
    Md,
    /// One JSON object
    Json,
    /// A line for each measurement
    Csv,
}

impl Format {
    /// The format that a file's name ends in.
    pub(crate) fn of_file(path: &Path) -> anyhow::Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("md") => Ok(Self::Md),
            Some("json") => Ok(Self::Json),
            Some("csv") => Ok(Self::Csv),
            _ => Err(hinted(
                format!("{}: the file's ending names no format", path.display()),
                "end it in .md, .json or .csv",
            )),
        }
    }
}

/// The kernel that the speedups are of: the product alone. These four are the names that `bitnet_cuda::bench` gives its kernels.
pub(super) const OURS: &str = "W2A8";
/// What a model runs: the product with the quantization before it.
pub(super) const LAYER: &str = "W2A8 layer";
/// The reference project's kernel.
pub(super) const REFERENCE: &str = "reference";
/// The unquantized product.
pub(super) const BF16: &str = "BF16";

/// One kernel on one shape.
#[derive(Clone, Debug)]
pub(super) struct Timing {
    /// [`OURS`], [`LAYER`], [`REFERENCE`] or [`BF16`].
    pub(super) kernel: &'static str,
    /// Microseconds a product, weights from memory.
    pub(super) cold_us: f64,
    /// Microseconds a product, weights from cache where they fit.
    pub(super) hot_us: f64,
    /// Bytes that a product must move.
    pub(super) bytes: u64,
}

impl Timing {
    /// Bandwidth of the cold product.
    fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.cold_us / 1e3
    }
}

/// One of the times of a measurement.
type Time = fn(&Timing) -> f64;

/// One shape.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Outputs.
    pub(super) n: usize,
    /// Inputs.
    pub(super) k: usize,
    /// The kernels that can do it.
    pub(super) timings: Vec<Timing>,
}

impl Row {
    /// The measurement of a kernel.
    pub(super) fn timing(&self, kernel: &str) -> Option<&Timing> {
        self.timings.iter().find(|timing| timing.kernel == kernel)
    }

    /// How much faster ours is, cold.
    fn speedup(&self, over: &str) -> Option<f64> {
        Some(self.timing(over)?.cold_us / self.timing(OURS)?.cold_us)
    }
}

/// Everything that was measured, and where.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// Names and values, in the order in which they are shown.
    pub(super) facts: Vec<(&'static str, String)>,
    /// Bandwidth of a plain read in the same run.
    pub(super) peak_gb_per_s: f64,
    /// A row a shape.
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// The kernels that were measured on any shape.
    pub(super) fn kernels(&self) -> Vec<&'static str> {
        let measured = |kernel: &&str| self.rows.iter().any(|row| row.timing(kernel).is_some());
        [OURS, LAYER, REFERENCE, BF16]
            .into_iter()
            .filter(measured)
            .collect()
    }

    /// The whole report.
    pub(super) fn text(&self, format: Format) -> String {
        match format {
            Format::Md => self.markdown(),
            Format::Json => format!("{:#}\n", self.json()),
            Format::Csv => self.csv(),
        }
    }

    fn markdown(&self) -> String {
        let mut out = String::new();
        for (name, value) in &self.facts {
            out += &format!("- {name}: {value}\n");
        }
        out += &format!("- plain read: {:.1} GB/s\n\n", self.peak_gb_per_s);
        let kernels = self.kernels();
        let names = |after: &str| {
            kernels
                .iter()
                .map(|name| format!(" {name} µs{after} |"))
                .collect::<String>()
        };
        let is_other = |name: &&str| ![OURS, LAYER].contains(name);
        let others: Vec<&str> = kernels.iter().copied().filter(is_other).collect();
        let over: String = others.iter().map(|name| format!(" vs {name} |")).collect();
        out += &format!(
            "| N x K | MB |{}{over} GB/s | of plain read |{}\n",
            names(""),
            names(", hot")
        );
        out += &format!("|---|{}\n", "---:|".repeat(3 + 2 * kernels.len() + others.len()));
        for row in &self.rows {
            // Bytes and bandwidth are those of ours, or of the one kernel that there is.
            let Some(main) = row.timing(OURS).or(row.timings.first()) else {
                continue;
            };
            let times = |of: Time| -> String {
                let time = |name: &&str| {
                    row.timing(name)
                        .map_or("-".to_owned(), |timing| format!("{:.2}", of(timing)))
                };
                kernels.iter().map(|name| format!(" {} |", time(name))).collect()
            };
            let speedup = |name: &&str| {
                row.speedup(name)
                    .map_or("-".to_owned(), |speedup| format!("{speedup:.2}x"))
            };
            let speedups: String = others
                .iter()
                .map(|name| format!(" {} |", speedup(name)))
                .collect();
            let _ = writeln!(
                out,
                "| {} x {} | {:.2} |{}{speedups} {:.1} | {:.0} % |{}",
                row.n,
                row.k,
                main.bytes as f64 / 1e6,
                times(|timing| timing.cold_us),
                main.gb_per_s(),
                main.gb_per_s() / self.peak_gb_per_s * 100.0,
                times(|timing| timing.hot_us),
            );
        }
        for other in [REFERENCE, BF16] {
            if let Some(mean) = self.mean_speedup(other) {
                out += &format!("\nGeometric mean over {other}: {mean:.2}x\n");
            }
        }
        out
    }

    /// Geometric mean of the speedups over a kernel; `None` where no shape has both.
    fn mean_speedup(&self, over: &str) -> Option<f64> {
        let logs: Vec<f64> = self
            .rows
            .iter()
            .filter_map(|row| row.speedup(over))
            .map(f64::ln)
            .collect();
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
    }

    fn json(&self) -> Value {
        let timing = |timing: &Timing| {
            json!({
                "kernel": timing.kernel,
                "cold_us": timing.cold_us,
                "hot_us": timing.hot_us,
                "bytes": timing.bytes,
                "gb_per_s": timing.gb_per_s(),
                "share_of_plain_read": timing.gb_per_s() / self.peak_gb_per_s,
            })
        };
        let row = |row: &Row| {
            json!({
                "n": row.n,
                "k": row.k,
                "kernels": row.timings.iter().map(timing).collect::<Vec<_>>(),
                "speedup_over_reference": row.speedup(REFERENCE),
                "speedup_over_bf16": row.speedup(BF16),
            })
        };
        let mut object: serde_json::Map<String, Value> = self
            .facts
            .iter()
            .map(|(name, value)| (name.replace(' ', "_"), json!(value)))
            .collect();
        object.insert("plain_read_gb_per_s".to_owned(), json!(self.peak_gb_per_s));
        object.insert(
            "mean_speedup_over_reference".to_owned(),
            json!(self.mean_speedup(REFERENCE)),
        );
        object.insert(
            "mean_speedup_over_bf16".to_owned(),
            json!(self.mean_speedup(BF16)),
        );
        object.insert("shapes".to_owned(), self.rows.iter().map(row).collect());
        Value::Object(object)
    }

    fn csv(&self) -> String {
        let mut out = "n,k,kernel,cold_us,hot_us,bytes,gb_per_s,share_of_plain_read\n".to_owned();
        for row in &self.rows {
            for t in &row.timings {
                let share = t.gb_per_s() / self.peak_gb_per_s;
                let _ = writeln!(
                    out,
                    "{},{},{},{:.4},{:.4},{},{:.2},{share:.4}",
                    row.n,
                    row.k,
                    t.kernel,
                    t.cold_us,
                    t.hot_us,
                    t.bytes,
                    t.gb_per_s()
                );
            }
        }
        out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two shapes, of which the second has one kernel.
    pub(in super::super) fn example() -> Report {
        let timing = |kernel, cold_us, bytes| Timing {
            kernel,
            cold_us,
            hot_us: cold_us / 2.0,
            bytes,
        };
        Report {
            facts: vec![("device", "a GPU".to_owned())],
            peak_gb_per_s: 4000.0,
            rows: vec![
                Row {
                    n: 2560,
                    k: 2560,
                    timings: vec![
                        timing(OURS, 2.0, 4_000_000),
                        timing(LAYER, 2.5, 4_000_000),
                        timing(REFERENCE, 5.0, 4_000_000),
                        timing(BF16, 8.0, 16_000_000),
                    ],
                },
                Row {
                    n: 128_256,
                    k: 2560,
                    timings: vec![timing(BF16, 200.0, 600_000_000)],
                },
            ],
        }
    }

    #[test]
    fn the_table_has_a_line_a_shape_and_dashes_where_nothing_was_measured() {
        let text = example().text(Format::Md);
        assert!(
            text.contains(
                "| 2560 x 2560 | 4.00 | 2.00 | 2.50 | 5.00 | 8.00 | 2.50x | 4.00x | 2000.0 | 50 % | 1.00 | 1.25 | 2.50 | 4.00 |"
            ),
            "{text}"
        );
        assert!(
            text.contains("| 128256 x 2560 | 600.00 | - | - | - | 200.00 | - | - | 3000.0 | 75 % |"),
            "{text}"
        );
        assert!(text.contains("Geometric mean over reference: 2.50x"), "{text}");
    }

    #[test]
    fn json_and_csv_hold_the_same_numbers() {
        let object: Value = serde_json::from_str(&example().text(Format::Json)).unwrap();
        assert_eq!(object["device"], "a GPU");
        assert_eq!(object["shapes"][0]["speedup_over_bf16"], 4.0);
        assert_eq!(object["shapes"][1]["kernels"][0]["gb_per_s"], 3000.0);
        assert_eq!(object["shapes"][1]["speedup_over_reference"], Value::Null);
        let csv = example().text(Format::Csv);
        assert_eq!(csv.lines().count(), 6);
        assert!(
            csv.contains("2560,2560,W2A8,2.0000,1.0000,4000000,2000.00,0.5000\n"),
            "{csv}"
        );
    }

    #[test]
    fn a_file_names_its_format() {
        assert_eq!(Format::of_file(Path::new("a/b.json")).unwrap(), Format::Json);
        assert!(
            Format::of_file(Path::new("a/b.txt"))
                .unwrap_err()
                .to_string()
                .contains("b.txt")
        );
    }
}
