//! What is in a checkpoint: shape, tensors, sizes, scales and how the ternary values are distributed.

use serde::Serialize;

use super::checkpoint::{PROJECTIONS, check_finite};
use super::projection::Projection;
use super::safetensors::Tensor;
use super::storage::Storage;
use crate::{ActQuant, Activation, Checkpoint, Config, Error, Result, WeightSource};

/// A description of a checkpoint, for people and (as JSON) for programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// What config.json calls the model.
    pub architecture: String,
    /// How the projections are stored, in words.
    pub storage: &'static str,
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
    for projection in &projections {
        let mut words = vec![0; projection.shape().words()];
        let scale = projection.read(&mut words)?;
        let counts = TernaryCounts::of(&words);
        let at = tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(projection.weight().name()));
        let tensor = &mut tensors[at.expect("the projection is one of the tensors")];
        (tensor.scale, tensor.values) = (Some(scale), Some(counts));
        values.add(counts);
        scales.push(scale);
        ternary_parameters += counts.total();
        scale_bytes += projection
            .scale_tensor()?
            .map_or(0, |scale| scale.n_bytes() as u64);
        done += n_bytes(projection);
        progress(done, total);
    }
    let total_bytes = tensors.iter().map(|tensor| tensor.bytes).sum();
    let dense_parameters = dense_parameters(checkpoint)?;
    Ok(Inspection {
        architecture: checkpoint.architecture().into(),
        storage: storage(checkpoint.hf().storage),
        shape: ShapeSummary::of(checkpoint.config()),
        ternary_parameters,
        dense_parameters,
        total_bytes,
        ternary_bits_per_weight: 8.0 * (total + scale_bytes) as f64 / ternary_parameters as f64,
        bits_per_weight: 8.0 * total_bytes as f64 / (ternary_parameters + dense_parameters) as f64,
        scales: ScaleSummary::of(&scales),
        values,
        tensors,
    })
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
        for tensor in [Some(projection.weight()), projection.scale_tensor()?]
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
        let dtype = tensor.float_dtype()?;
        let mut offset = 0;
        tensor.read_all(|bytes| {
            check_finite(&tensor, dtype, offset, bytes)?;
            offset += bytes.len();
            Ok::<_, Error>(())
        })?;
        passed(&tensor);
    }
    Ok(Verification { tensors, checksums })
}

fn projections(checkpoint: &Checkpoint) -> Result<Vec<Projection<'_>>> {
    let layers = 0..checkpoint.config().n_layers;
    let all = layers.flat_map(|layer| PROJECTIONS.map(|which| checkpoint.projection(layer, which)));
    all.collect()
}

fn dense_parameters(checkpoint: &Checkpoint) -> Result<u64> {
    let parameters = |tensor: Tensor<'_>| tensor.shape().iter().product::<usize>() as u64;
    let mut matrices = std::collections::HashSet::new();
    for projection in projections(checkpoint)? {
        matrices.insert(projection.weight().name());
        matrices.extend(projection.scale_tensor()?.map(|scale| scale.name()));
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
        dtype: format!("{:?}", tensor.dtype()),
        shape: tensor.shape().into(),
        bytes: tensor.n_bytes() as u64,
        scale: None,
        values: None,
    }
}

fn storage(storage: Storage) -> &'static str {
    match storage {
        Storage::Master => "real weights, made ternary when loaded",
        Storage::Baked => "real weights that are ternary as stored",
        Storage::PackedMultiply => "four weights to a byte, outputs multiplied by the scale",
        Storage::PackedDivide => "four weights to a byte, outputs divided by the stored scale",
        Storage::Words => "sixteen weights to a word, converted by this program",
    }
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
    /// Counts the codes of valid words: the low bit of a code is set for 0, the high one for +1.
    fn of(words: &[u32]) -> Self {
        let count = |mask: u32| {
            words
                .iter()
                .map(|word| u64::from((word & mask).count_ones()))
                .sum()
        };
        let (zero, plus) = (count(0x5555_5555), count(0xaaaa_aaaa));
        Self {
            minus: 16 * words.len() as u64 - zero - plus,
            zero,
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
