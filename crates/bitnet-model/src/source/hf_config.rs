//! config.json and generation_config.json of a checkpoint: what they say, what they leave out, and what is refused.
//!
//! Missing keys take the defaults of transformers' `BitNetConfig` and `LlamaConfig`. Whatever would change the numbers and
//! is not implemented is an error, never ignored.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::files::Files;
use super::roles::HfNames;
use super::storage::{Quantization, Storage, quantization};
use crate::config::{MAX_COLUMNS, MAX_POSITIONS};
use crate::{ActQuant, Activation, Config, Error, Result};

/// A parsed configuration.
#[derive(Clone, Debug)]
pub(crate) struct HfConfig {
    pub(crate) config: Config,
    pub(crate) storage: Storage,
    /// What its tensors are called.
    pub(crate) names: HfNames,
    /// `architectures[0]`, else the family's.
    pub(crate) architecture: String,
    /// All of config.json.
    pub(crate) json: Map<String, Value>,
}

/// Reads the configuration files among `files`.
pub(crate) fn read(files: &Files) -> Result<HfConfig> {
    let fields = Fields::read(files, "config.json")?.ok_or_else(|| {
        Error::invalid(
            files.root(),
            "holds no config.json; name a model folder as it is downloaded, or as `bitnet convert` writes it",
        )
    })?;
    let generation = Fields::read(files, "generation_config.json")?;
    parse(&fields, generation.as_ref(), None)
}

/// Reads the configuration of a file of another kind, in the words of config.json, with what it says of its weights.
pub(crate) fn from_json(
    path: &Path,
    json: Map<String, Value>,
    quantization: Quantization,
) -> Result<HfConfig> {
    parse(&Fields::new(path, json), None, Some(quantization))
}

/// The first token and the end tokens of the model among `files`, none where there is no config.json.
pub(crate) fn special_ids(files: &Files) -> Result<(Option<u32>, Vec<u32>)> {
    let Some(fields) = Fields::read(files, "config.json")? else {
        return Ok((None, Vec::new()));
    };
    let generation = Fields::read(files, "generation_config.json")?;
    // Of a model that is not implemented, the tokenizer's own files decide.
    let Ok(family) = family(&fields) else {
        return Ok((None, Vec::new()));
    };
    let vocab = fields.size("vocab_size", family.vocab)?;
    Ok((
        bos(&fields, generation.as_ref(), family.bos, vocab)?,
        eos(&fields, generation.as_ref(), family.eos, vocab)?,
    ))
}

/// What differs between the families; sizes are the defaults of missing keys.
struct Family {
    architecture: &'static str,
    sub_norms: bool,
    names: HfNames,
    /// Norms of the heads of queries and keys.
    qk_norms: bool,
    head: bool,
    vocab: usize,
    d_model: usize,
    d_ffn: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    activation: &'static str,
    rms_eps: f64,
    rope_theta: f64,
    bos: u32,
    eos: u32,
}

const BITNET: Family = Family {
    architecture: "BitNetForCausalLM",
    sub_norms: true,
    names: HfNames::BITNET,
    qk_norms: false,
    head: true,
    vocab: 128_256,
    d_model: 2560,
    d_ffn: 6912,
    n_layers: 30,
    n_heads: 20,
    n_kv_heads: Some(5),
    activation: "relu2",
    rms_eps: 1e-5,
    rope_theta: 500_000.0,
    bos: 128_000,
    eos: 128_001,
};

const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    sub_norms: false,
    names: HfNames::BITNET,
    qk_norms: false,
    head: true,
    vocab: 32_000,
    d_model: 4096,
    d_ffn: 11_008,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: None,
    activation: "silu",
    rms_eps: 1e-6,
    rope_theta: 10_000.0,
    bos: 1,
    eos: 2,
};

/// The first reproductions of the paper, `BitnetForCausalLM` of 1bitLLM: Llama with norms of other names.
const ONE_BIT: Family = Family {
    architecture: "BitnetForCausalLM",
    sub_norms: true,
    names: HfNames {
        sub_norms: ["self_attn.inner_attn_ln", "mlp.ffn_layernorm"],
        ..HfNames::BITNET
    },
    ..LLAMA
};

/// The body of the BitNet embedding models: Qwen 3 with a norm before each projection.
const QWEN3: Family = Family {
    architecture: "Qwen3Model",
    sub_norms: false,
    names: HfNames {
        input_norm: "norm",
        ..HfNames::BITNET
    },
    qk_norms: true,
    head: false,
    vocab: 151_936,
    d_model: 1024,
    d_ffn: 3072,
    n_layers: 28,
    n_heads: 16,
    n_kv_heads: Some(8),
    activation: "silu",
    rms_eps: 1e-6,
    rope_theta: 1_000_000.0,
    bos: u32::MAX,
    eos: 151_643,
};

fn parse(fields: &Fields, generation: Option<&Fields>, given: Option<Quantization>) -> Result<HfConfig> {
    let family = family(fields)?;
    refuse_what_is_not_implemented(fields)?;
    let d_model = fields.size("hidden_size", family.d_model)?;
    let d_ffn = fields.size("intermediate_size", family.d_ffn)?;
    let n_heads = fields.size("num_attention_heads", family.n_heads)?;
    let n_kv_heads = match (
        fields.get("num_key_value_heads"),
        fields.map.contains_key("num_key_value_heads"),
    ) {
        (None, false) => family.n_kv_heads.unwrap_or(n_heads),
        _ => fields.size("num_key_value_heads", n_heads)?,
    };
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(fields.invalid(format!(
            "num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}"
        )));
    }
    if fields.get("head_dim").is_none() && !d_model.is_multiple_of(n_heads) {
        return Err(fields.invalid(format!(
            "hidden_size {d_model} is not a multiple of num_attention_heads {n_heads}, and there is no head_dim"
        )));
    }
    let head_dim = fields.size("head_dim", d_model / n_heads)?;
    if !head_dim.is_multiple_of(2) {
        return Err(fields.invalid(format!(
            "head_dim {head_dim} is odd, which rotary embeddings cannot be"
        )));
    }
    let d_q = n_heads.saturating_mul(head_dim);
    for (what, columns) in [
        ("hidden_size", d_model),
        ("intermediate_size", d_ffn),
        ("num_attention_heads * head_dim", d_q),
    ] {
        if !columns.is_multiple_of(4) || columns > MAX_COLUMNS {
            return Err(fields.unsupported(format!(
                "{what} is {columns}; it must be a multiple of 4 and at most {MAX_COLUMNS}"
            )));
        }
    }
    let max_context = fields.size("max_position_embeddings", 2048)?;
    if max_context > MAX_POSITIONS {
        return Err(fields.unsupported(format!(
            "max_position_embeddings is {max_context}; it must be at most {MAX_POSITIONS}"
        )));
    }
    let vocab = fields.size("vocab_size", family.vocab)?;
    let mut quantization = match given {
        Some(given) => given,
        None => quantization(fields)?,
    };
    let rms_eps = fields.positive("rms_norm_eps", family.rms_eps)?;
    if family.names.input_norm != HfNames::BITNET.input_norm && quantization.storage == Storage::Baked {
        // These models name no quantization: their weights are made ternary in each forward pass.
        quantization = Quantization {
            storage: Storage::Master,
            act_quant: ActQuant::Int8,
            linear_norm_eps: Some(rms_eps),
        };
    }
    let config = Config {
        d_model,
        d_ffn,
        n_layers: fields.size("num_hidden_layers", family.n_layers)?,
        n_heads,
        n_kv_heads,
        head_dim,
        vocab,
        max_context,
        rms_eps,
        rope_theta: rope_theta(fields, family.rope_theta)?,
        activation: activation(fields, family.activation)?,
        sub_norms: family.sub_norms,
        qk_norms: family.qk_norms,
        linear_norm_eps: quantization.linear_norm_eps,
        act_quant: quantization.act_quant,
        tied_head: fields.flag("tie_word_embeddings", !family.head)?,
        has_head: family.head,
        ternary_head: false,
        bos: bos(fields, generation, family.bos, vocab)?,
        eos: eos(fields, generation, family.eos, vocab)?,
    };
    Ok(HfConfig {
        config,
        storage: quantization.storage,
        names: family.names,
        architecture: architecture(fields)?.unwrap_or_else(|| family.architecture.into()),
        json: fields.map.clone(),
    })
}

fn architecture(fields: &Fields) -> Result<Option<String>> {
    match fields.get("architectures") {
        None => Ok(None),
        Some(Value::Array(names)) if names.is_empty() => Ok(None),
        Some(Value::Array(names)) if names.len() == 1 && names[0].is_string() => {
            Ok(names[0].as_str().map(Into::into))
        }
        Some(other) => {
            Err(fields.unsupported(format!("architectures is {other}; expected a list of one name")))
        }
    }
}

fn family(fields: &Fields) -> Result<Family> {
    let architecture = architecture(fields)?;
    let architecture = architecture.as_deref();
    let model_type = match fields.get("model_type") {
        Some(Value::String(name)) => name.as_str(),
        Some(other) => return Err(fields.invalid(format!("model_type is {other}; expected a string"))),
        None => return Err(fields.invalid("has no model_type; expected `bitnet` or `llama`")),
    };
    let one_bit = architecture == Some("BitnetForCausalLM") || fields.get("weight_bits").is_some();
    match (model_type, architecture) {
        ("bitnet", None | Some("BitNetForCausalLM" | "BitnetForCausalLM")) => Ok(BITNET),
        ("llama", None | Some("LlamaForCausalLM" | "BitnetForCausalLM")) if one_bit => Ok(ONE_BIT),
        ("llama", None | Some("LlamaForCausalLM")) => Ok(LLAMA),
        ("qwen3", None | Some("Qwen3Model" | "Qwen3ForCausalLM")) => Ok(QWEN3),
        (_, Some(architecture)) => Err(fields.unsupported(format!(
            "model_type `{model_type}` with architecture `{architecture}`; supported are bitnet with BitNetForCausalLM, llama \
             with LlamaForCausalLM or BitnetForCausalLM, and qwen3 with Qwen3Model"
        ))),
        (_, None) => Err(fields.unsupported(format!(
            "model_type `{model_type}`; supported are `bitnet`, `llama` and `qwen3`"
        ))),
    }
}

fn refuse_what_is_not_implemented(fields: &Fields) -> Result<()> {
    for key in ["attention_bias", "mlp_bias"] {
        if fields.flag(key, false)? {
            return Err(fields.unsupported(format!(
                "{key} is true; linear layers with biases are not implemented"
            )));
        }
    }
    if let Some(window) = fields.get("sliding_window")
        && fields.flag("use_sliding_window", true)?
    {
        return Err(fields.unsupported(format!(
            "sliding_window is {window}; only full attention is implemented"
        )));
    }
    if let Some(types) = fields.get("layer_types") {
        let full = |value: &Value| value == "full_attention";
        if !types.as_array().is_some_and(|types| types.iter().all(full)) {
            return Err(fields.unsupported("layer_types names other layers than `full_attention`"));
        }
    }
    Ok(())
}

fn activation(fields: &Fields, default: &str) -> Result<Activation> {
    match fields.get("hidden_act").map_or(Some(default), Value::as_str) {
        Some("relu2") => Ok(Activation::Relu2),
        Some("silu" | "swish") => Ok(Activation::Silu),
        _ => Err(fields.unsupported(format!(
            "hidden_act is {}; supported are `relu2` and `silu`",
            fields.map["hidden_act"]
        ))),
    }
}

/// The rotary base: at the top level, or in `rope_parameters` in files saved by transformers 5.
fn rope_theta(fields: &Fields, default: f64) -> Result<f32> {
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = fields.get(key) else { continue };
        let nested = fields.nested(key, value)?;
        for (name, value) in &nested.map {
            let harmless = match name.as_str() {
                "rope_theta" => value.is_number(),
                "rope_type" | "type" => value == "default" || value.is_null(),
                "partial_rotary_factor" => value.is_null() || value.as_f64() == Some(1.0),
                _ => value.is_null(),
            };
            if !harmless {
                return Err(fields.unsupported(format!(
                    "{key} has `{name}`: {value}; only the default rotary embedding is implemented, without scaling"
                )));
            }
        }
        if nested.get("rope_theta").is_some() {
            return nested.positive("rope_theta", default);
        }
    }
    if let Some(factor) = fields.get("partial_rotary_factor")
        && factor.as_f64() != Some(1.0)
    {
        return Err(fields.unsupported(format!(
            "partial_rotary_factor is {factor}; only 1 is implemented"
        )));
    }
    fields.positive("rope_theta", default)
}

/// First token: of config.json, else of generation_config.json, else the family's where the vocabulary has it.
fn bos(fields: &Fields, generation: Option<&Fields>, default: u32, vocab: usize) -> Result<Option<u32>> {
    let given = |fields: &Fields| match fields.map.contains_key("bos_token_id") {
        true => fields.ids("bos_token_id").map(|ids| Some(ids.first().copied())),
        false => Ok(None),
    };
    let bos = match given(fields)? {
        Some(given) => given,
        None => match generation.map(given).transpose()?.flatten() {
            Some(given) => given,
            None => Some(default).filter(|&id| (id as usize) < vocab),
        },
    };
    match bos {
        Some(id) if id as usize >= vocab => {
            Err(fields.invalid(format!("bos_token_id {id} is not below vocab_size {vocab}")))
        }
        bos => Ok(bos),
    }
}

/// Tokens that end a sequence: of both files; the family's where neither names any and the vocabulary has it.
fn eos(fields: &Fields, generation: Option<&Fields>, default: u32, vocab: usize) -> Result<Vec<u32>> {
    let (mut eos, mut seen) = (Vec::new(), std::collections::HashSet::new());
    let mut named = false;
    for fields in [Some(fields), generation].into_iter().flatten() {
        named |= fields.map.contains_key("eos_token_id");
        for id in fields.ids("eos_token_id")? {
            if id as usize >= vocab {
                return Err(fields.invalid(format!("eos_token_id {id} is not below vocab_size {vocab}")));
            }
            if seen.insert(id) {
                eos.push(id);
            }
        }
    }
    if !named && (default as usize) < vocab {
        eos.push(default);
    }
    Ok(eos)
}
