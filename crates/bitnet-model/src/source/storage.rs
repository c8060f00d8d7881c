//! How the projections of a checkpoint are stored, and what their inputs go through: the quantization_config of config.json.

use serde_json::Value;

use super::fields::Fields;
use crate::{ActQuant, Result};

/// `quant_method` of folders written by [`crate::convert`].
pub(crate) const WORDS_METHOD: &str = "bitnet-words";
/// Version of the format of those folders.
pub(crate) const WORDS_VERSION: u64 = 1;

/// How the projections are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Real weights, made ternary when they are read.
    Master,
    /// Real weights that are `t * scale` already.
    Baked,
    /// Four rows to a byte and a scale; `y * weight_scale`.
    PackedMultiply,
    /// The same; `y / weight_scale`.
    PackedDivide,
    /// Words of the canonical layout and a scale.
    Words,
    /// Whatever the type of each tensor of a GGUF file says.
    Gguf(GgufForm),
}

/// What the types of a GGUF file leave open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GgufForm {
    /// How I2_S is laid out.
    pub(crate) i2s: I2sLayout,
    /// Whether rows of q and k stand in pairs that are rotated together.
    pub(crate) paired_heads: bool,
    /// Whether real weights of more than one magnitude may be made ternary.
    pub(crate) ternarize: bool,
}

/// How the codes of I2_S tensors are laid out: nothing in a GGUF file tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum I2sLayout {
    /// As converters write it on any machine: blocks of 128.
    #[default]
    Canonical,
    /// As `llama-quantize` of bitnet.cpp writes it on ARM processors since November 2025: blocks of 64.
    Arm64,
    /// As `llama-quantize` of bitnet.cpp writes it on x86 without `ACT_PARALLEL`: four rows to a byte.
    Rows4,
}

/// How a model is read, where its files leave it open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// How I2_S tensors of a GGUF file are laid out. The wrong one gives noise.
    pub i2s_layout: I2sLayout,
    /// What happens to the inputs of linear layers; `None`: what the files say, and in GGUF files, which do not, 8 bits.
    pub activations: Option<ActQuant>,
    /// Makes real weights ternary by their mean, although nothing says that they are a BitNet model's. Without it such weights are
    /// refused.
    pub ternarize: bool,
}

/// What a quantization_config says.
pub(crate) struct Quantization {
    pub(crate) storage: Storage,
    pub(crate) act_quant: ActQuant,
    /// Epsilon of a norm before every projection.
    pub(crate) linear_norm_eps: Option<f32>,
}

/// Reads the quantization_config of a config.json, or decides what its absence means.
pub(crate) fn quantization(fields: &Fields) -> Result<Quantization> {
    let Some(value) = fields.get("quantization_config") else {
        return unquantized(fields);
    };
    let quant = fields.nested("quantization_config", value)?;
    let linear_norm_eps = match quant.flag("use_rms_norm", false)? {
        true => Some(quant.positive("rms_norm_eps", 1e-6)?),
        false => None,
    };
    let mut act_quant = ActQuant::Int8;
    let storage = match quant.text("quant_method", "")? {
        "bitnet" => {
            let linear_class = quant.text("linear_class", "bitlinear")?;
            let mode = quant.text("quantization_mode", "offline")?;
            match (linear_class, mode) {
                ("bitlinear", "offline") => Storage::PackedDivide,
                ("autobitlinear", "offline") => Storage::PackedMultiply,
                ("autobitlinear", "online") => Storage::Master,
                _ => {
                    return Err(quant.unsupported(format!(
                        "quantization_config: linear_class `{linear_class}` with quantization_mode `{mode}`; supported are \
                         autobitlinear with online or offline, and bitlinear with offline"
                    )));
                }
            }
        }
        WORDS_METHOD => {
            let version = quant.get("format_version");
            if version.and_then(Value::as_u64) != Some(WORDS_VERSION) {
                return Err(quant.unsupported(format!(
                    "quantization_config: format_version is {}; this program reads {WORDS_VERSION}: convert the original folder again",
                    version.unwrap_or(&Value::Null)
                )));
            }
            act_quant = match quant.text("activations", "")? {
                "int8" => ActQuant::Int8,
                "none" => ActQuant::None,
                other => {
                    return Err(quant.unsupported(format!(
                        "quantization_config: activations is `{other}`; expected `int8` or `none`"
                    )));
                }
            };
            Storage::Words
        }
        other => {
            return Err(quant.unsupported(format!(
                "quantization_config: quant_method is `{other}`; supported are `bitnet` and `{WORDS_METHOD}`"
            )));
        }
    };
    match quant.get("modules_to_not_convert") {
        None => {}
        Some(Value::Array(modules)) => {
            for module in modules {
                let last = module
                    .as_str()
                    .and_then(|name| name.rsplit('.').next())
                    .unwrap_or_default();
                if !["lm_head", "embed_tokens"].contains(&last) && !last.ends_with("norm") {
                    return Err(quant.unsupported(format!(
                        "quantization_config: modules_to_not_convert has {module}; only models whose seven projections are all \
                         ternary are implemented"
                    )));
                }
            }
        }
        Some(other) => {
            return Err(quant.invalid(format!(
                "quantization_config: modules_to_not_convert is {other}; expected a list"
            )));
        }
    }
    Ok(Quantization {
        storage,
        act_quant,
        linear_norm_eps,
    })
}

/// Without a quantization_config: the older 1bitLLM models say `weight_bits`; anything else must be ternary as stored.
fn unquantized(fields: &Fields) -> Result<Quantization> {
    let bits = |key| fields.get(key).map(|value| value.as_u64());
    let (storage, act_quant) = match (bits("weight_bits"), bits("input_bits")) {
        (None, None) => (Storage::Baked, ActQuant::None),
        (Some(Some(1)), Some(Some(8)) | None) => (Storage::Master, ActQuant::Int8),
        _ => {
            let show = |key| fields.get(key).map_or("missing".into(), Value::to_string);
            return Err(fields.unsupported(format!(
                "weight_bits is {} and input_bits is {}; supported are 1 and 8",
                show("weight_bits"),
                show("input_bits")
            )));
        }
    };
    Ok(Quantization {
        storage,
        act_quant,
        linear_norm_eps: None,
    })
}
