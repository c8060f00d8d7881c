//! What is in a checkpoint: shape, tensors, sizes, scales and how the ternary values are distributed.

use serde::Serialize;

use super::checkpoint::Checkpoint;
use super::dense::{DenseTensor, check_finite};
use super::dtype::Dtype;
use super::projection::Projection;
use super::roles::{Linear, Role};
use super::storage::Storage;
use super::tensors::Tensor;
use crate::{ActQuant, Activation, Config, Dense, Error, Result, WeightSource};

/// Scales of the same projection that differ by more between layers are reported.
const SCALE_RATIO: f32 = 50.0;

/// A description of a checkpoint, for people and (as JSON) for programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// What config.json calls the model.
    pub architecture: String,
    /// How the projections are stored, in words.
    pub storage: String,
    /// Dimensions and constants.
    pub shape: ShapeSummary,
    /// Weights of the projections.
    pub ternary_parameters: u64,
    /// All other weights: embedding, head, norms.
    pub dense_parameters: u64,
    /// Bytes of all tensors as they are stored.
    pub total_bytes: u64,
    /// Stored bits for each weight of the projections, scales included.
    pub ternary_bits_per_weight: f64,
    /// Stored bits for each weight of the model.
    pub bits_per_weight: f64,
    /// Over the scales of all projections.
    pub scales: ScaleSummary,
    /// Over all projections.
    pub values: TernaryCounts,
    /// What looks like damage, and may be none.
    pub warnings: Vec<String>,
    /// Every tensor of the files, by name.
    pub tensors: Vec<TensorSummary>,
}

/// The dimensions and constants of a [`Config`], by their names there.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Config")]
#[non_exhaustive]
pub struct ShapeSummary {
    pub d_model: usize,
    pub d_ffn: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub max_context: usize,
    pub rms_eps: f32,
    pub rope_theta: f32,
    pub activation: &'static str,
    pub activation_quantization: &'static str,
    pub sub_norms: bool,
    pub linear_norms: bool,
    pub tied_head: bool,
    pub bos: Option<u32>,
    pub eos: Vec<u32>,
}

/// Statistics of scales: what a ternary unit is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScaleSummary {
    /// Smallest.
    pub min: f32,
    /// Arithmetic mean.
    pub mean: f64,
    /// Largest.
    pub max: f32,
}

/// How often each ternary value occurs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TernaryCounts {
    /// -1.
    pub minus: u64,
    /// 0.
    pub zero: u64,
    /// +1.
    pub plus: u64,
}

/// One tensor of the files.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorSummary {
    /// Its name.
    pub name: String,
    /// Its element type, as safetensors writes it.
    pub dtype: String,
    /// Its stored shape.
    pub shape: Vec<usize>,
    /// Its stored size.
    pub bytes: u64,
    /// What a projection's weights are worth; `None` for other tensors.
    pub scale: Option<f32>,
    /// A projection's values; `None` for other tensors.
    pub values: Option<TernaryCounts>,
}

/// What [`verify`] has checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Tensors read from end to end, every value of them finite and every code valid.
    pub tensors: usize,
    /// Those among them with a checksum, which matched.
    pub checksums: usize,
}

/// Describes a checkpoint. Reads all projections, and calls `progress` with the done and total bytes of them.
///
/// ```
/// use bitnet_model::{Checkpoint, inspect};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let inspection = inspect(&Checkpoint::open(folder)?, |_, _| ())?;
/// assert_eq!(inspection.values.total(), inspection.ternary_parameters);
/// # Ok::<(), bitnet_model::Error>(())
/// ```
///
/// # Errors
/// When a tensor cannot be read or is damaged.
pub fn inspect(checkpoint: &Checkpoint, mut progress: impl FnMut(u64, u64)) -> Result<Inspection> {
    let projections = projections(checkpoint)?;
    let mut tensors: Vec<TensorSummary> = checkpoint
        .tensors()
        .iter()
        .map(|tensor| summary(&tensor))
        .collect();
    let n_bytes = |projection: &Projection<'_>| projection.weight().n_bytes() as u64;
    let (mut done, total) = (0, projections.iter().map(n_bytes).sum());
    let mut values = TernaryCounts::default();
    let mut scales = Vec::with_capacity(projections.len());
    let (mut ternary_parameters, mut scale_bytes) = (0, 0);
    let (mut warnings, mut nonzero) = (Vec::new(), Vec::new());
    for projection in &projections {
        let mut words = vec![0; projection.shape().words()];
        let scale = projection.read(&mut words)?;
        let shape = projection.shape();
        let counts = TernaryCounts::of(&words, shape.n() * (shape.k() - projection.cols()));
        let at = tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(projection.weight().name()));
        let tensor = &mut tensors[at.expect("the projection is one of the tensors")];
        (tensor.scale, tensor.values) = (Some(scale), Some(counts));
        values.add(counts);
        scales.push(scale);
        ternary_parameters += counts.total();
        scale_bytes += projection
            .scale_tensor()
            .map_or(0, |scale| scale.n_bytes() as u64);
        if counts.zero == counts.total() {
            warnings.push(format!(
                "{} is all zero: damaged or pruned?",
                projection.weight().name()
            ));
        } else {
            nonzero.push((projection, scale));
        }
        done += n_bytes(projection);
        progress(done, total);
    }
    warnings.extend(scale_warnings(checkpoint, &nonzero));
    let total_bytes = tensors.iter().map(|tensor| tensor.bytes).sum();
    let dense_parameters = dense_parameters(checkpoint)?;
    Ok(Inspection {
        architecture: checkpoint.architecture().into(),
        storage: storage(checkpoint),
        shape: ShapeSummary::of(checkpoint.config()),
        ternary_parameters,
        dense_parameters,
        total_bytes,
        ternary_bits_per_weight: 8.0 * (total + scale_bytes) as f64 / ternary_parameters as f64,
        bits_per_weight: 8.0 * total_bytes as f64 / (ternary_parameters + dense_parameters) as f64,
        scales: ScaleSummary::of(&scales),
        values,
        warnings,
        tensors,
    })
}

/// The projections whose scales differ too much between layers.
fn scale_warnings(checkpoint: &Checkpoint, scales: &[(&Projection<'_>, f32)]) -> Vec<String> {
    let mut warnings = Vec::new();
    for linear in Linear::ALL {
        let names: std::collections::HashSet<String> = (0..checkpoint.config().n_layers)
            .map(|layer| checkpoint.name(Role::Weight(layer, linear)))
            .collect();
        let of_linear = || {
            let all = scales.iter();
            all.filter(|(projection, _)| names.contains(projection.weight().name()))
        };
        let least = of_linear().min_by(|a, b| a.1.total_cmp(&b.1));
        let most = of_linear().max_by(|a, b| a.1.total_cmp(&b.1));
        if let (Some(least), Some(most)) = (least, most)
            && most.1 > SCALE_RATIO * least.1
        {
            warnings.push(format!(
                "scales of {} and {} are {} and {}, more than {SCALE_RATIO} times apart: damaged, or divided where to multiply?",
                least.0.weight().name(),
                most.0.weight().name(),
                least.1,
                most.1
            ));
        }
    }
    warnings
}

/// Reads everything: refuses values that are not finite, invalid codes and scales, and, in folders written by
/// [`crate::convert`], bytes that do not match their checksum. Calls `progress` with the done and total bytes.
///
/// # Errors
/// Names the first tensor that is damaged.
pub fn verify(checkpoint: &Checkpoint, mut progress: impl FnMut(u64, u64)) -> Result<Verification> {
    let total = checkpoint
        .tensors()
        .iter()
        .map(|tensor| tensor.n_bytes() as u64)
        .sum();
    let (mut done, mut checksums, mut tensors) = (0, 0, 0);
    let mut passed = |tensor: &Tensor<'_>| {
        tensors += 1;
        checksums += usize::from(tensor.has_checksum());
        done += tensor.n_bytes() as u64;
        progress(done, total);
    };
    let mut seen = std::collections::HashSet::new();
    for projection in projections(checkpoint)? {
        projection.read(&mut vec![0; projection.shape().words()])?;
        for tensor in [Some(projection.weight()), projection.scale_tensor()]
            .into_iter()
            .flatten()
        {
            seen.insert(tensor.name());
            passed(&tensor);
        }
    }
    for tensor in checkpoint
        .tensors()
        .iter()
        .filter(|tensor| !seen.contains(tensor.name()))
    {
        dense(&tensor)?;
        passed(&tensor);
    }
    Ok(Verification { tensors, checksums })
}

fn projections(checkpoint: &Checkpoint) -> Result<Vec<Projection<'_>>> {
    let layers = 0..checkpoint.config().n_layers;
    let all = layers.flat_map(|layer| Linear::ALL.map(|linear| checkpoint.projection(layer, linear)));
    all.chain(checkpoint.head_projection().transpose()).collect()
}

/// Reads a dense tensor from end to end; its checksum too, where it has one.
fn dense(tensor: &Tensor<'_>) -> Result<()> {
    if let Dtype::Float(dtype) = tensor.dtype() {
        let mut offset = 0;
        return tensor.read_all(|bytes| {
            check_finite(tensor, dtype, offset, bytes)?;
            offset += bytes.len();
            Ok::<_, Error>(())
        });
    }
    let [rows, cols] = *tensor.shape() else {
        return tensor.float_dtype().map(drop);
    };
    let table = DenseTensor::new(*tensor, (rows, cols))?;
    let at_once = ((1 << 20) / (4 * cols)).max(1);
    let mut out = Vec::new();
    for first in (0..rows).step_by(at_once) {
        out.resize(at_once.min(rows - first) * cols * table.dtype().size(), 0);
        table.read_rows(first, &mut out)?;
    }
    Ok(())
}

fn dense_parameters(checkpoint: &Checkpoint) -> Result<u64> {
    let parameters = |tensor: Tensor<'_>| tensor.shape().iter().product::<usize>() as u64;
    let mut matrices = std::collections::HashSet::new();
    for projection in projections(checkpoint)? {
        matrices.insert(projection.weight().name());
        matrices.extend(projection.scale_tensor().map(|scale| scale.name()));
    }
    let tensors = checkpoint.tensors().iter();
    Ok(tensors
        .filter(|tensor| !matrices.contains(tensor.name()))
        .map(parameters)
        .sum())
}

fn summary(tensor: &Tensor<'_>) -> TensorSummary {
    TensorSummary {
        name: tensor.name().into(),
        dtype: tensor.dtype().to_string(),
        shape: tensor.shape().into(),
        bytes: tensor.n_bytes() as u64,
        scale: None,
        values: None,
    }
}

fn storage(checkpoint: &Checkpoint) -> String {
    let text = match checkpoint.storage() {
        Storage::Gguf(_) => {
            let kinds = projections(checkpoint).unwrap_or_default();
            let mut kinds: Vec<String> = kinds
                .iter()
                .map(|projection| projection.weight().dtype().to_string())
                .collect();
            kinds.sort_unstable();
            kinds.dedup();
            return format!("GGUF, {}", kinds.join(" and "));
        }
        Storage::Master => "real weights, made ternary when loaded",
        Storage::Baked => "real weights that are ternary as stored",
        Storage::PackedMultiply => "four weights to a byte, outputs multiplied by the scale",
        Storage::PackedDivide => "four weights to a byte, outputs divided by the stored scale",
        Storage::Words => "sixteen weights to a word, converted by this program",
    };
    text.into()
}

impl ShapeSummary {
    fn of(config: &Config) -> Self {
        Self {
            d_model: config.d_model,
            d_ffn: config.d_ffn,
            n_layers: config.n_layers,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            vocab: config.vocab,
            max_context: config.max_context,
            rms_eps: config.rms_eps,
            rope_theta: config.rope_theta,
            activation: match config.activation {
                Activation::Relu2 => "relu2",
                Activation::Silu => "silu",
            },
            activation_quantization: match config.act_quant {
                ActQuant::Int8 => "int8",
                ActQuant::None => "none",
            },
            sub_norms: config.sub_norms,
            linear_norms: config.linear_norm_eps.is_some(),
            tied_head: config.tied_head,
            bos: config.bos,
            eos: config.eos.clone(),
        }
    }
}

impl ScaleSummary {
    fn of(scales: &[f32]) -> Self {
        Self {
            min: scales.iter().copied().fold(f32::INFINITY, f32::min),
            mean: scales.iter().copied().map(f64::from).sum::<f64>() / scales.len() as f64,
            max: scales.iter().copied().fold(0.0, f32::max),
        }
    }
}

impl TernaryCounts {
    /// Counts the codes of valid words, `padding` of which are zeros that are not the matrix's: the low bit of a code is set for 0,
    /// the high one for +1.
    fn of(words: &[u32], padding: usize) -> Self {
        let count = |mask: u32| {
            words
                .iter()
                .map(|word| u64::from((word & mask).count_ones()))
                .sum()
        };
        let (zero, plus) = (count(0x5555_5555), count(0xaaaa_aaaa));
        Self {
            minus: 16 * words.len() as u64 - zero - plus,
            zero: zero - padding as u64,
            plus,
        }
    }

    fn add(&mut self, other: Self) {
        self.minus += other.minus;
        self.zero += other.zero;
        self.plus += other.plus;
    }

    /// All values.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.minus + self.zero + self.plus
    }
}
