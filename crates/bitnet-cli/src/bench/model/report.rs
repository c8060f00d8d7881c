//! Results of `bench model`, as a Markdown table, JSON or CSV.

use std::fmt::Write as _;
use std::time::Duration;

use bitnet_model::WeightForm;
use serde_json::{Value, json};

use super::super::Limits;
use super::measure::Outcome;

/// One model on a device, with its tests.
pub(super) struct Run {
    pub(super) weights: WeightForm,
    pub(super) backend: String,
    pub(super) memory_bytes: u64,
    /// Bytes of weights that a decode step reads.
    pub(super) weight_bytes: u64,
    pub(super) load: Duration,
    pub(super) outcomes: Vec<Outcome>,
}

/// Everything that was measured.
pub(super) struct Report {
    pub(super) command: String,
    pub(super) model: String,
    pub(super) parameters: u64,
    /// Weights of the linear layers.
    pub(super) linear_weights: u64,
    /// What the device can do at most.
    pub(super) limits: Limits,
    pub(super) runs: Vec<Run>,
}

/// As the reference project's table names them: weights and activations.
fn name(weights: WeightForm) -> &'static str {
    match weights {
        WeightForm::Ternary => "W2A8",
        WeightForm::Bf16 => "BF16",
    }
}

impl Report {
    /// How much faster a test is than with bfloat16 weights, where those were timed.
    fn speedup(&self, run: &Run, outcome: &Outcome) -> Option<f64> {
        let baseline = self.runs.iter().find(|r| r.weights == WeightForm::Bf16)?;
        let of_test = baseline.outcomes.iter().find(|o| o.test == outcome.test)?;
        (run.weights != WeightForm::Bf16).then(|| outcome.mean() / of_test.mean())
    }

    /// Bandwidth of the best read of this run in GB/s, and what read so: the plain read, or a test that was faster than all of those
    /// beside it.
    fn best_read(&self) -> (f64, String) {
        let plain = (self.limits.gb_per_s, "a plain one".to_owned());
        let tests = self
            .rows()
            .filter_map(|(_, o)| Some((o.gb_per_s()?, o.test.name())));
        tests.fold(plain, |best, test| if test.0 > best.0 { test } else { best })
    }

    /// Share of the best read's bandwidth.
    fn share(&self, outcome: &Outcome) -> Option<f64> {
        outcome.gb_per_s().map(|gb| gb / self.best_read().0)
    }

    /// Share of the plain 8-bit multiplies that the products of the linear layers are.
    fn share_of_products(&self, run: &Run, o: &Outcome) -> Option<f64> {
        let most = self.limits.g_products_per_s?;
        let read = o.zeros.map_or(1.0, |zeros| zeros.read);
        let products = o.mean() * read * self.linear_weights as f64 / 1e9;
        (run.weights == WeightForm::Ternary).then_some(products / most)
    }

    fn rows(&self) -> impl Iterator<Item = (&Run, &Outcome)> {
        self.runs
            .iter()
            .flat_map(|run| run.outcomes.iter().map(move |outcome| (run, outcome)))
    }

    pub(super) fn markdown(&self) -> String {
        let mut out = format!("- command: bitnet {}\n", self.command);
        for run in &self.runs {
            let _ = writeln!(
                out,
                "- {}, {} weights: {:.0} MB, loaded in {:.2} s",
                run.backend,
                name(run.weights),
                run.memory_bytes as f64 / 1e6,
                run.load.as_secs_f64()
            );
        }
        let _ = write!(out, "- plain read: {:.1} GB/s", self.limits.gb_per_s);
        if let Some(products) = self.limits.g_products_per_s {
            let _ = write!(out, "; plain 8-bit multiplies: {products:.0} G/s");
        }
        let (best, by) = self.best_read();
        if best > self.limits.gb_per_s {
            let _ = write!(out, "; best read: {best:.1} GB/s, by {by}");
        }
        for (run, o) in self.rows() {
            if let Some(zeros) = o.zeros.filter(|zeros| zeros.read < 1.0) {
                let _ = write!(
                    out,
                    "\n- {} {}: {:.0} % of the rows that are gated and {:.0} % of the columns after them are zero, and not read; \
                     {:.0} % of the layers' weights are",
                    name(run.weights),
                    o.test.name(),
                    100.0 * zeros.rows,
                    100.0 * zeros.columns,
                    100.0 * zeros.read
                );
            }
        }
        out += "\n\n";
        out += "| model | size | params | backend | weights | test | t/s | speedup | GB/s | of best read | of 8-bit \
                multiplies | first ms | p50 ms | p99 ms |\n|---|---:|---:|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n";
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for (run, o) in self.rows() {
            let _ = writeln!(
                out,
                "| {} | {:.2} GB | {:.2} B | {} | {} | {} | {:.2} ± {:.2} | {} | {} | {} | {} | {:.2} | {:.3} | {:.3} |",
                self.model,
                run.weight_bytes as f64 / 1e9,
                self.parameters as f64 / 1e9,
                run.backend,
                name(run.weights),
                o.test.name(),
                o.mean(),
                o.deviation(),
                or_dash(self.speedup(run, o).map(|x| format!("{x:.2}x"))),
                or_dash(o.gb_per_s().map(|gb| format!("{gb:.1}"))),
                or_dash(self.share(o).map(|share| format!("{:.0} %", share * 100.0))),
                or_dash(
                    self.share_of_products(run, o)
                        .map(|share| format!("{:.0} %", share * 100.0))
                ),
                o.first_ms(),
                o.token_ms(0.5),
                o.token_ms(0.99),
            );
        }
        out
    }

    pub(super) fn json(&self) -> Value {
        let test = |run: &Run, o: &Outcome| {
            json!({
                "test": o.test.name(),
                "weights": name(run.weights),
                "n_prompt": o.test.n_prompt,
                "n_gen": o.test.n_gen,
                "n_depth": o.test.depth,
                "n_sequences": o.test.sequences,
                "avg_ts": o.mean(),
                "stddev_ts": o.deviation(),
                "samples_ts": o.rates,
                "speedup": self.speedup(run, o),
                "zero_rows_pct": o.zeros.map(|zeros| 100.0 * zeros.rows),
                "zero_columns_pct": o.zeros.map(|zeros| 100.0 * zeros.columns),
                "weights_read_pct": o.zeros.map(|zeros| 100.0 * zeros.read),
                "eff_gbps": o.gb_per_s(),
                "pct_peak": self.share(o).map(|share| share * 100.0),
                "pct_multiply_peak": self.share_of_products(run, o).map(|share| share * 100.0),
                "ttft_ms": o.first_ms(),
                "tpot_p50_ms": o.token_ms(0.5),
                "tpot_p99_ms": o.token_ms(0.99),
            })
        };
        let run = |run: &Run| {
            json!({
                "weights": name(run.weights),
                "backends": run.backend,
                "model_size": run.weight_bytes,
                "memory_bytes": run.memory_bytes,
                "load_s": run.load.as_secs_f64(),
            })
        };
        json!({
            "command": format!("bitnet {}", self.command),
            "build_commit": env!("BITNET_COMMIT"),
            "model": self.model,
            "model_n_params": self.parameters,
            "plain_read_gbps": self.limits.gb_per_s,
            "best_read_gbps": self.best_read().0,
            "plain_multiply_gmacs": self.limits.g_products_per_s,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
            "tests": self.rows().map(|(run, o)| test(run, o)).collect::<Vec<_>>(),
        })
    }

    pub(super) fn csv(&self) -> String {
        let mut out = String::from(
            "model,backend,weights,test,avg_ts,stddev_ts,speedup,eff_gbps,pct_peak,pct_multiply_peak,ttft_ms,tpot_p50_ms,tpot_p99_ms\n",
        );
        let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.3}"));
        for (run, o) in self.rows() {
            let _ = writeln!(
                out,
                "{:?},{:?},{},{},{:.3},{:.3},{},{},{},{},{:.3},{:.4},{:.4}",
                self.model,
                run.backend,
                name(run.weights),
                o.test.name(),
                o.mean(),
                o.deviation(),
                number(self.speedup(run, o)),
                number(o.gb_per_s()),
                number(self.share(o).map(|share| share * 100.0)),
                number(self.share_of_products(run, o).map(|share| share * 100.0)),
                o.first_ms(),
                o.token_ms(0.5),
                o.token_ms(0.99),
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::{Test, Zeros};
    use super::*;

    #[test]
    fn the_speedup_is_that_over_bf16() {
        let outcome = |n_gen, rate| Outcome {
            test: Test {
                n_prompt: 0,
                n_gen,
                depth: 0,
                sequences: 2,
            },
            rates: vec![rate, rate],
            first: vec![Duration::from_millis(3)],
            between: vec![Duration::from_millis(2)],
            step_bytes: 4_000_000_000,
            zeros: None,
        };
        let run = |weights, rate| Run {
            weights,
            backend: "gpu".to_owned(),
            memory_bytes: 1,
            weight_bytes: 1,
            load: Duration::ZERO,
            outcomes: vec![outcome(64, rate), outcome(128, 2.0 * rate)],
        };
        let report = Report {
            command: "bench model".to_owned(),
            model: "m".to_owned(),
            parameters: 1,
            linear_weights: 1_000_000_000,
            limits: Limits {
                gb_per_s: 4000.0,
                g_products_per_s: None,
            },
            runs: vec![run(WeightForm::Bf16, 100.0), run(WeightForm::Ternary, 350.0)],
        };
        let text = report.markdown();
        assert!(
            text.contains("| BF16 | tg64 x2 | 100.00 ± 0.00 | - | 200.0 | 5 % | - | 3.00 | 2.000 | 2.000 |"),
            "{text}"
        );
        assert!(
            text.contains("| W2A8 | tg128 x2 | 700.00 ± 0.00 | 3.50x |"),
            "{text}"
        );
        assert_eq!(report.json()["tests"][3]["speedup"], 3.5);
        assert_eq!(
            report.csv().lines().nth(1),
            Some("\"m\",\"gpu\",BF16,tg64 x2,100.000,0.000,,200.000,5.000,,3.000,2.0000,2.0000")
        );
    }

    #[test]
    fn no_share_is_more_than_all() {
        let outcome = |n_prompt, n_gen, step_bytes| Outcome {
            test: Test {
                n_prompt,
                n_gen,
                depth: 0,
                sequences: 1,
            },
            rates: vec![50.0],
            first: vec![Duration::from_millis(3)],
            between: Vec::new(),
            step_bytes,
            zeros: (n_gen > 0).then_some(Zeros {
                rows: 0.5,
                columns: 0.75,
                read: 0.8,
            }),
        };
        let mut report = Report {
            command: "bench model".to_owned(),
            model: "m".to_owned(),
            parameters: 1,
            linear_weights: 2_000_000_000,
            limits: Limits {
                gb_per_s: 40.0,
                g_products_per_s: Some(400.0),
            },
            runs: vec![Run {
                weights: WeightForm::Ternary,
                backend: "cpu".to_owned(),
                memory_bytes: 1,
                weight_bytes: 1,
                load: Duration::ZERO,
                outcomes: vec![
                    outcome(512, 0, 0),
                    outcome(0, 8, 1_000_000_000),
                    outcome(0, 9, 500_000_000),
                ],
            }],
        };
        let text = report.markdown();
        assert!(text.contains("best read: 50.0 GB/s, by tg8"), "{text}");
        for row in [
            "| pp512 | 50.00 ± 0.00 | - | - | - | 25 % |",
            "| tg8 | 50.00 ± 0.00 | - | 50.0 | 100 % | 20 % |",
            "| tg9 | 50.00 ± 0.00 | - | 25.0 | 50 % | 20 % |",
        ] {
            assert!(text.contains(row), "{row} in {text}");
        }
        assert!(text.contains("80 % of the layers' weights are"), "{text}");
        let json = report.json();
        assert_eq!(json["best_read_gbps"], 50.0);
        assert_eq!(json["tests"][0]["pct_multiply_peak"], 25.0);
        report.limits.gb_per_s = 100.0;
        assert!(!report.markdown().contains("best read:"));
    }
}
