//! `bitnet inspect`: what is in a model folder.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bitnet_model::{Checkpoint, Inspection, TensorSummary, TernaryCounts, Verification, inspect, verify};
use serde_json::json;

use crate::args::{ModelArgs, SourceArgs};
use crate::hub;
use crate::progress::{self, human_bytes};
use crate::report;
use crate::terminal::visible;

/// Show what is in a model folder: architecture, tensors, sizes, scales, ternary values
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model, which may also be named with -m
    #[arg(value_name = "MODEL")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    source: SourceArgs,
    /// List every tensor, not one line for all layers
    #[arg(long)]
    tensors: bool,
    /// Read every value, and compare each tensor with its checksum where the folder has them
    #[arg(long)]
    verify: bool,
    /// Print one JSON object, with every tensor
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let files = match &args.folder {
        Some(folder) => hub::files(folder)?,
        None => {
            args.model.introduce();
            args.model.files()?
        }
    };
    crate::model::require(&files)?;
    let checkpoint = Checkpoint::open_with(files, args.source.options())?;
    crate::model::say_notes(checkpoint.notes());
    let verification = match args.verify {
        true => {
            let bar = progress::Bar::bytes("verifying");
            Some(verify(&checkpoint, |done, total| bar.set(done, total))?)
        }
        false => None,
    };
    let bar = progress::Bar::bytes("reading");
    let inspection = inspect(&checkpoint, |done, total| bar.set(done, total))?;
    drop(bar);
    if args.json {
        let mut object = serde_json::to_value(&inspection).context("the report")?;
        object["verification"] = json!(verification);
        report::print(&object)?;
    } else {
        let mut out = std::io::stdout().lock();
        summary(&mut out, &inspection, verification)?;
        writeln!(out)?;
        tensors(&mut out, &inspection, args.tensors)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(
    out: &mut impl Write,
    found: &Inspection,
    verification: Option<Verification>,
) -> std::io::Result<()> {
    let shape = &found.shape;
    // Names are what the file says.
    let mut line = |name: &str, value: String| writeln!(out, "{name:<14}{}", visible(&value));
    line("architecture", found.architecture.clone())?;
    line("weights", found.storage.clone())?;
    line(
        "shape",
        format!(
            "{} layers, width {}, feed-forward {}, {} heads of {} ({} for keys and values), vocabulary {}",
            shape.n_layers,
            shape.d_model,
            shape.d_ffn,
            shape.n_heads,
            shape.head_dim,
            shape.n_kv_heads,
            shape.vocab
        ),
    )?;
    line(
        "constants",
        format!(
            "context {}, rope theta {}, norm epsilon {:e}, activation {}, linear inputs {}",
            shape.max_context,
            shape.rope_theta,
            shape.rms_eps,
            shape.activation,
            match shape.activation_quantization {
                "none" => "float",
                other => other,
            }
        ),
    )?;
    let mut features = Vec::new();
    features.extend(shape.sub_norms.then_some("norms before o_proj and down_proj"));
    features.extend(shape.linear_norms.then_some("a norm before every projection"));
    features.push(match shape.tied_head {
        true => "head tied to the embedding",
        false => "a head of its own",
    });
    line("features", features.join(", "))?;
    let bos = shape.bos.map_or("none".into(), |bos| bos.to_string());
    line("tokens", format!("begin {bos}, end {:?}", shape.eos))?;
    line(
        "parameters",
        format!(
            "{} ternary, {} dense",
            grouped(found.ternary_parameters),
            grouped(found.dense_parameters)
        ),
    )?;
    line(
        "size",
        format!(
            "{}; {:.3} bits for each ternary weight, {:.3} for each weight of the model",
            human_bytes(found.total_bytes),
            found.ternary_bits_per_weight,
            found.bits_per_weight
        ),
    )?;
    line(
        "scales",
        format!(
            "min {:.6}, mean {:.6}, max {:.6}",
            found.scales.min, found.scales.mean, found.scales.max
        ),
    )?;
    line("values", histogram(&found.values))?;
    for warning in &found.warnings {
        line("warning", warning.clone())?;
    }
    if let Some(checked) = verification {
        let sums = match checked.checksums {
            0 => "this folder has no checksums".into(),
            sums => format!("{sums} checksums match"),
        };
        line(
            "verified",
            format!("{} tensors read, all values sound, {sums}", checked.tensors),
        )?;
    }
    Ok(())
}

fn histogram(values: &TernaryCounts) -> String {
    let total = values.total() as f64;
    let percent = |count: u64| 100.0 * count as f64 / total;
    format!(
        "-1 {:.2} %, 0 {:.2} %, +1 {:.2} %",
        percent(values.minus),
        percent(values.zero),
        percent(values.plus)
    )
}

/// Tensors of one name in all layers.
#[derive(Default)]
struct Group {
    tensors: usize,
    bytes: u64,
    values: TernaryCounts,
    scales: Vec<f32>,
}

/// One line for each name, type and shape; with `each`, for each tensor.
fn tensors(out: &mut impl Write, found: &Inspection, each: bool) -> std::io::Result<()> {
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    for tensor in &found.tensors {
        let name = if each {
            visible(&tensor.name).into_owned()
        } else {
            without_layer(&visible(&tensor.name))
        };
        let kind = format!("{} {:?}", tensor.dtype, tensor.shape);
        groups.entry((name, kind)).or_default().add(tensor);
    }
    let width = groups.keys().map(|(name, _)| name.len()).max().unwrap_or(0);
    for ((name, kind), group) in groups {
        let count = if each {
            String::new()
        } else {
            format!("{:>4} x ", group.tensors)
        };
        write!(
            out,
            "{count}{name:<width$}  {kind:<22} {:>9}",
            human_bytes(group.bytes)
        )?;
        if let (Some(min), Some(max)) = (
            group.scales.iter().copied().reduce(f32::min),
            group.scales.iter().copied().reduce(f32::max),
        ) {
            let scales = if min == max {
                format!("{min:.6}")
            } else {
                format!("{min:.6} to {max:.6}")
            };
            write!(out, "  scale {scales}, {}", histogram(&group.values))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

impl Group {
    fn add(&mut self, tensor: &TensorSummary) {
        self.tensors += 1;
        self.bytes += tensor.bytes;
        self.scales.extend(tensor.scale);
        if let Some(values) = tensor.values {
            self.values.minus += values.minus;
            self.values.zero += values.zero;
            self.values.plus += values.plus;
        }
    }
}

/// `model.layers.12.mlp.up_proj.weight` is `model.layers.*.mlp.up_proj.weight`.
fn without_layer(name: &str) -> String {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split('.').map(|part| if number(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// `2412820480` as `2,412,820,480`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (2_412_820_480, "2,412,820,480"),
        ];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(
            without_layer("model.layers.12.mlp.up_proj.weight"),
            "model.layers.*.mlp.up_proj.weight"
        );
        assert_eq!(without_layer("model.norm.weight"), "model.norm.weight");
    }
}
