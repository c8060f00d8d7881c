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

    /// Share of the plain read's bandwidth.
    fn share(&self, outcome: &Outcome) -> Option<f64> {
        outcome.gb_per_s().map(|gb| gb / self.limits.gb_per_s)
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
        for (run, o) in self.rows() {
            if let Some((rows, columns)) = o.zeros {
                let _ = write!(
                    out,
                    "\n- {} {}: {:.0} % of the rows that are gated and {:.0} % of the columns after them are zero, and not read",
                    name(run.weights),
                    o.test.name(),
                    100.0 * rows,
                    100.0 * columns
                );
            }
        }
        out += "\n\n";
        out += "| model | size | params | backend | weights | test | t/s | speedup | GB/s | of plain read | first ms | p50 ms | \
                p99 ms |\n|---|---:|---:|---|---|---|---:|---:|---:|---:|---:|---:|---:|\n";
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for (run, o) in self.rows() {
            let _ = writeln!(
                out,
                "| {} | {:.2} GB | {:.2} B | {} | {} | {} | {:.2} ± {:.2} | {} | {} | {} | {:.2} | {:.3} | {:.3} |",
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
                "zero_rows_pct": o.zeros.map(|(rows, _)| 100.0 * rows),
                "zero_columns_pct": o.zeros.map(|(_, columns)| 100.0 * columns),
                "eff_gbps": o.gb_per_s(),
                "pct_peak": self.share(o).map(|share| share * 100.0),
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
            "plain_multiply_gmacs": self.limits.g_products_per_s,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
            "tests": self.rows().map(|(run, o)| test(run, o)).collect::<Vec<_>>(),
        })
    }

    pub(super) fn csv(&self) -> String {
        let mut out = String::from(
            "model,backend,weights,test,avg_ts,stddev_ts,speedup,eff_gbps,pct_peak,ttft_ms,tpot_p50_ms,tpot_p99_ms\n",
        );
        let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.3}"));
        for (run, o) in self.rows() {
            let _ = writeln!(
                out,
                "{:?},{:?},{},{},{:.3},{:.3},{},{},{},{:.3},{:.4},{:.4}",
                self.model,
                run.backend,
                name(run.weights),
                o.test.name(),
                o.mean(),
                o.deviation(),
                number(self.speedup(run, o)),
                number(o.gb_per_s()),
                number(self.share(o).map(|share| share * 100.0)),
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
    use super::super::measure::Test;
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
            limits: Limits {
                gb_per_s: 4000.0,
                g_products_per_s: None,
            },
            runs: vec![run(WeightForm::Bf16, 100.0), run(WeightForm::Ternary, 350.0)],
        };
        let text = report.markdown();
        assert!(
            text.contains("| BF16 | tg64 x2 | 100.00 ± 0.00 | - | 200.0 | 5 % | 3.00 | 2.000 | 2.000 |"),
            "{text}"
        );
        assert!(
            text.contains("| W2A8 | tg128 x2 | 700.00 ± 0.00 | 3.50x |"),
            "{text}"
        );
        assert_eq!(report.json()["tests"][3]["speedup"], 3.5);
        assert_eq!(
            report.csv().lines().nth(1),
            Some("\"m\",\"gpu\",BF16,tg64 x2,100.000,0.000,,200.000,5.000,3.000,2.0000,2.0000")
        );
    }
}
