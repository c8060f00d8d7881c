//! `bitnet bench grids`: which grids of a decoded token's linear layers are fastest on this GPU.

use std::fmt::Write as _;
use std::process::ExitCode;

use bitnet_model::{Backend, Grids};
use serde_json::{Value, json};

use super::on_gpu::{GpuArgs, ROOM, fill};
use super::report::Format;
use crate::failure::hinted;

/// Samples of a measurement, of 32 steps each.
const SAMPLES: usize = 3;
/// Combinations that are measured again beside the default, and how often.
const FINALISTS: usize = 5;
const ROUNDS: usize = 5;
/// Combinations of a table; JSON and CSV have all of them.
const SHOWN: usize = 20;

/// Search the grids of the linear layers of a decode step on a GPU
///
/// A grid says how many rows of tiles a block of a layer takes. Grids change no result, and the best depend on each other, on the
/// context and on the GPU: so every combination is timed in 128 whole steps, and the best are timed again, several times.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: GpuArgs,
    /// Tokens of context, separated by commas
    #[arg(
        short,
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "64,2048"
    )]
    depth: Vec<usize>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let saves = super::formats(&args.common.save)?;
    // A sequence for each depth.
    let mut backend = args.common.load(&args.common.open()?, &args.depth)?;
    let possible = backend.possible_grids();
    if possible.len() < 2 {
        return Err(hinted(
            format!(
                "{} has one grid for each layer of this model: there is nothing to search",
                backend.spec().name
            ),
            "grids are searched on GPUs of compute capability 9.0, for layers of up to 2560 columns and of more than 5120",
        ));
    }
    let name = backend.spec().name.clone();
    let mut session = fill(&mut backend, &args.depth)?;
    // Pages for every position that is measured; a measurement begins at the first.
    let batches = (0..args.depth.len())
        .map(|seq| session.batch(&[(seq, &[1; ROOM])]))
        .collect::<Result<Vec<_>, _>>()?;
    let mut depths = Vec::new();
    for (&depth, batch) in args.depth.iter().zip(&batches) {
        let default = backend.default_grids(depth + ROOM);
        let rows = search(&possible, default, |grids| {
            Ok(backend.time_grids(batch, grids, SAMPLES)?)
        })?;
        depths.push(Depth { depth, default, rows });
    }
    let report = Report {
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        backend: name,
        depths,
    };
    super::publish(&|format| report.text(format), args.common.output, &saves)?;
    Ok(ExitCode::SUCCESS)
}

/// Times every combination once, and the best and the default again, in turns so that a GPU that slows down does so for all.
fn search(
    possible: &[Grids],
    default: Grids,
    mut time: impl FnMut(&[Grids]) -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<Vec<Row>> {
    // What is timed first finds clocks and caches cold.
    time(&[default])?;
    let times = time(possible)?;
    let mut rows: Vec<Row> = possible
        .iter()
        .zip(times)
        .map(|(&grids, step_us)| Row {
            grids,
            step_us,
            times: 1,
        })
        .collect();
    rows.sort_by(|a, b| a.step_us.total_cmp(&b.step_us));
    let is_final = |(place, row): (usize, &Row)| place < FINALISTS || row.grids == default;
    let finalists: Vec<usize> = rows
        .iter()
        .enumerate()
        .filter(|&row| is_final(row))
        .map(|(place, _)| place)
        .collect();
    let grids: Vec<Grids> = finalists.iter().map(|&place| rows[place].grids).collect();
    let mut again = vec![Vec::new(); grids.len()];
    for _ in 0..ROUNDS {
        for (times, step_us) in again.iter_mut().zip(time(&grids)?) {
            times.push(step_us);
        }
    }
    for (&place, times) in finalists.iter().zip(&mut again) {
        // The time that made it a finalist was lucky more often than not, so it does not count.
        times.sort_by(f64::total_cmp);
        rows[place].step_us = times[times.len() / 2];
        rows[place].times = times.len();
    }
    // Of those that were timed once only the order is known to be about right, so they stand behind.
    rows.sort_by(|a, b| b.times.cmp(&a.times).then(a.step_us.total_cmp(&b.step_us)));
    Ok(rows)
}

/// A combination at a depth.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    grids: Grids,
    /// Microseconds a step: the median where it was timed several times.
    step_us: f64,
    /// How often it was timed.
    times: usize,
}

impl Row {
    fn tokens_per_s(&self) -> f64 {
        1e6 / self.step_us
    }
}

/// What was found at a depth.
struct Depth {
    depth: usize,
    default: Grids,
    /// Those that were timed again first, and each kind by its speed.
    rows: Vec<Row>,
}

impl Depth {
    fn default_us(&self) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.grids == self.default)?;
        Some(row.step_us)
    }

    /// How much faster than the default, in per cent.
    fn gain(&self, row: &Row) -> Option<f64> {
        Some((self.default_us()? / row.step_us - 1.0) * 100.0)
    }

    fn name(&self, row: &Row) -> &'static str {
        if row.grids == self.default { "default" } else { "" }
    }
}

struct Report {
    command: String,
    backend: String,
    depths: Vec<Depth>,
}

impl Report {
    fn text(&self, format: Format) -> String {
        match format {
            Format::Md => self.markdown(),
            Format::Json => format!("{:#}\n", self.json()),
            Format::Csv => self.csv(),
        }
    }

    fn markdown(&self) -> String {
        let mut out = format!(
            "- command: bitnet {}\n- backend: {}\n- rows of tiles of a block; all combinations compute the same bits\n",
            self.command, self.backend
        );
        for depth in &self.depths {
            let _ = write!(
                out,
                "\n{} tokens of context, the first {SHOWN} of {} combinations:\n\n\
                 | qkv | out_proj | up_gate | down | tokens/s | us | over default | timed | |\n\
                 |---:|---:|---:|---:|---:|---:|---:|---:|---|\n",
                depth.depth,
                depth.rows.len(),
            );
            for row in depth.rows.iter().take(SHOWN) {
                let Grids {
                    qkv,
                    out_proj,
                    up_gate,
                    down,
                } = row.grids;
                let _ = writeln!(
                    out,
                    "| {qkv} | {out_proj} | {up_gate} | {down} | {:.1} | {:.1} | {} | {} | {} |",
                    row.tokens_per_s(),
                    row.step_us,
                    depth
                        .gain(row)
                        .map_or("-".to_owned(), |gain| format!("{gain:+.1} %")),
                    row.times,
                    depth.name(row),
                );
            }
        }
        out
    }

    fn json(&self) -> Value {
        let grids =
            |g: Grids| json!({"qkv": g.qkv, "out_proj": g.out_proj, "up_gate": g.up_gate, "down": g.down});
        let depth = |depth: &Depth| {
            let row = |row: &Row| {
                let mut object = grids(row.grids);
                object["step_us"] = json!(row.step_us);
                object["tokens_per_s"] = json!(row.tokens_per_s());
                object["n_times"] = json!(row.times);
                object
            };
            json!({
                "n_depth": depth.depth,
                "default": grids(depth.default),
                "default_step_us": depth.default_us(),
                "combinations": depth.rows.iter().map(row).collect::<Vec<_>>(),
            })
        };
        json!({
            "command": format!("bitnet {}", self.command),
            "build_commit": env!("BITNET_COMMIT"),
            "backend": self.backend,
            "depths": self.depths.iter().map(depth).collect::<Vec<_>>(),
        })
    }

    fn csv(&self) -> String {
        let mut out = String::from("depth,qkv,out_proj,up_gate,down,step_us,tokens_per_s,n_times\n");
        for depth in &self.depths {
            for row in &depth.rows {
                let Grids {
                    qkv,
                    out_proj,
                    up_gate,
                    down,
                } = row.grids;
                let _ = writeln!(
                    out,
                    "{},{qkv},{out_proj},{up_gate},{down},{:.3},{:.2},{}",
                    depth.depth,
                    row.step_us,
                    row.tokens_per_s(),
                    row.times
                );
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grids(up_gate: u32) -> Grids {
        Grids {
            qkv: 4,
            out_proj: 4,
            up_gate,
            down: 4,
        }
    }

    /// One that was lucky at first falls behind; the default is timed again however slow it is.
    #[test]
    fn the_best_are_timed_again() {
        let possible: Vec<Grids> = (1..=9).map(grids).collect();
        let mut calls = 0;
        let rows = search(&possible, grids(9), |asked| {
            calls += 1;
            Ok(asked
                .iter()
                .map(|g| match g.up_gate {
                    3 if calls == 2 => 1.0,
                    3 => 50.0,
                    other => f64::from(other) * 10.0,
                })
                .collect())
        })
        .unwrap();
        assert_eq!(calls, 2 + ROUNDS);
        let order: Vec<u32> = rows.iter().map(|row| row.grids.up_gate).collect();
        assert_eq!(order, [1, 2, 4, 3, 5, 9, 6, 7, 8]);
        assert_eq!(rows[3].step_us, 50.0);
        assert_eq!(rows.iter().filter(|row| row.times == ROUNDS).count(), 6);
    }

    #[test]
    fn a_table_has_the_gain_over_the_default() {
        let row = |up_gate, step_us, times| Row {
            grids: grids(up_gate),
            step_us,
            times,
        };
        let report = Report {
            command: "bench grids".to_owned(),
            backend: "gpu".to_owned(),
            depths: vec![Depth {
                depth: 64,
                default: grids(4),
                rows: vec![row(10, 625.0, 5), row(4, 687.5, 5), row(8, 640.0, 1)],
            }],
        };
        let text = report.markdown();
        assert!(
            text.contains("| 4 | 4 | 10 | 4 | 1600.0 | 625.0 | +10.0 % | 5 |  |"),
            "{text}"
        );
        assert!(text.contains("| +0.0 % | 5 | default |"), "{text}");
        let json = report.json();
        assert_eq!(json["depths"][0]["default_step_us"], 687.5);
        assert_eq!(json["depths"][0]["combinations"][2]["up_gate"], 8);
        assert!(report.csv().contains("64,4,4,10,4,625.000,1600.00,5\n"));
    }
}
