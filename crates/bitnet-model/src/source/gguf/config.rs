//! The configuration in the metadata of a GGUF file, as the config.json of a model folder that says the same.
//!
//! Whatever would change the numbers and is not implemented is an error, never ignored.

use serde_json::{Map, Value, json};

use super::super::tensors::TensorFiles;
use super::metadata::Metadata;
use super::tokenizer;
use crate::Result;

/// What a file says of its model.
pub(crate) struct GgufConfig {
    /// As config.json has it.
    pub(crate) json: Map<String, Value>,
    /// Whether rows of q and k stand in pairs that are rotated together, as converters to `llama` write them.
    pub(crate) paired_heads: bool,
    /// Whether each projection has a norm of its own.
    pub(crate) linear_norms: bool,
    /// What was decided that the file does not say, or that differs from what it says.
    pub(crate) notes: Vec<String>,
}

/// What an architecture means.
struct Family {
    model_type: &'static str,
    name: &'static str,
    /// Of the gate of the feed-forward block, where only the architecture tells.
    activation: Option<&'static str>,
}

fn family(metadata: &Metadata, architecture: &str) -> Result<Family> {
    let family = |model_type, name, activation| {
        Ok(Family {
            model_type,
            name,
            activation,
        })
    };
    match architecture {
        "bitnet" | "bitnet-b1.58" => family("bitnet", "BitNetForCausalLM", None),
        "bitnet-25" => family("bitnet", "BitNetForCausalLM", Some("relu2")),
        "llama" => family("llama", "LlamaForCausalLM", Some("silu")),
        "qwen3" => family("qwen3", "Qwen3Model", Some("silu")),
        other => Err(metadata.unsupported(format!(
            "key `general.architecture` is `{other}`; supported are bitnet, bitnet-25, bitnet-b1.58, llama and qwen3"
        ))),
    }
}

/// The keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        self.metadata.count(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize> {
        match self.count(name)? {
            Some(count @ 1..=0xffff_ffff) => Ok(count),
            Some(count) => Err(self
                .metadata
                .invalid(format!("key `{}` is {count}", self.key(name)))),
            None => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> crate::Error {
        self.metadata.invalid(format!(
            "has no key `{}`, which its architecture needs",
            self.key(name)
        ))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(name))
    }

    fn refuse(&self, name: &str, value: impl std::fmt::Display, why: &str) -> crate::Error {
        self.metadata
            .unsupported(format!("key `{}` is {value}; {why}", self.key(name)))
    }
}

/// Reads the configuration.
pub(super) fn read(metadata: &Metadata, tensors: &TensorFiles) -> Result<GgufConfig> {
    if let Some(key) = metadata.keys().find(|key| key.starts_with("prism.")) {
        return Err(metadata.unsupported(format!(
            "key `{key}` says that the weights are rotated, as in PrismML's Bonsai models; only their own programs run those"
        )));
    }
    let architecture = metadata
        .text("general.architecture")?
        .ok_or_else(|| metadata.invalid("has no key `general.architecture`; it holds no model"))?;
    let family = family(metadata, architecture)?;
    let keys = Keys {
        metadata,
        architecture,
    };
    refuse_what_is_not_implemented(&keys, tensors)?;
    let (n_heads, width) = (
        keys.required("attention.head_count")?,
        keys.required("embedding_length")?,
    );
    let n_kv_heads = match keys.count("attention.head_count_kv")? {
        Some(_) => keys.required("attention.head_count_kv")?,
        None => n_heads,
    };
    let head_dim = head_dim(&keys, n_heads, width)?;
    let (bos, eos) = tokenizer::ids(metadata)?;
    let linear_norms = tensors.find("blk.0.attn_q_norm_in.weight").is_some();
    let eps = keys
        .number("attention.layer_norm_rms_epsilon")?
        .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?;
    let (activation, note) = activation(&keys, &family, vocab(&keys, tensors)?)?;
    let mut json = json!({
        "architectures": [family.name],
        "model_type": family.model_type,
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_hidden_layers": keys.required("block_count")?,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab(&keys, tensors)?,
        "max_position_embeddings": keys.required("context_length")?,
        "rms_norm_eps": eps as f32,
        "rope_theta": keys.number("rope.freq_base")?.unwrap_or(10_000.0) as f32,
        "tie_word_embeddings": tensors.find("output.weight").is_none(),
        "bos_token_id": bos,
        "eos_token_id": eos,
    });
    if linear_norms {
        json["quantization_config"] = json!({"use_rms_norm": true, "rms_norm_eps": eps as f32});
    }
    if family.model_type == "qwen3" && !linear_norms {
        return Err(metadata.unsupported(
            "a Qwen 3 model without norms before its projections is no BitNet model: its inputs are not quantized",
        ));
    }
    let mut notes = tokenizer::notes(metadata)?;
    notes.extend(note);
    let Value::Object(json) = json else {
        unreachable!("an object was written above")
    };
    Ok(GgufConfig {
        json,
        paired_heads: architecture == "llama",
        linear_norms,
        notes,
    })
}

/// The activation, and what to say of how it was found.
fn activation(keys: &Keys<'_>, family: &Family, vocab: usize) -> Result<(String, Option<String>)> {
    if let Some(name) = keys.metadata.text(&keys.key("hidden_activation"))? {
        return Ok((name.into(), None));
    }
    if let Some(name) = family.activation {
        return Ok((name.into(), None));
    }
    // No published file of these architectures says it. 1bitLLM's models have Llama 2's tokenizer and SiLU, 2B-4T has Llama 3's and
    // a squared ReLU.
    let one_bit = tokenizer::is_sentencepiece(keys.metadata)? || vocab == 32_002;
    let (name, why) = if one_bit {
        ("silu", "as 1bitLLM's models have it, by the tokenizer")
    } else {
        (
            "relu2",
            "as BitNet b1.58 2B-4T has it; llama.cpp and bitnet.cpp compute another one",
        )
    };
    Ok((
        name.into(),
        Some(format!(
            "the file does not name its activation: {name} is used, {why}"
        )),
    ))
}

fn head_dim(keys: &Keys<'_>, n_heads: usize, width: usize) -> Result<usize> {
    let given = keys.count("attention.key_length")?;
    let values = keys.count("attention.value_length")?;
    if given.is_none() && !width.is_multiple_of(n_heads) {
        return Err(keys.metadata.invalid(format!(
            "key `{}` is {width}, no multiple of the {n_heads} heads, and there is no key `{}`",
            keys.key("embedding_length"),
            keys.key("attention.key_length")
        )));
    }
    let head_dim = given.unwrap_or(width / n_heads);
    for (name, value) in [
        ("attention.value_length", values),
        ("rope.dimension_count", keys.count("rope.dimension_count")?),
    ] {
        if let Some(value) = value
            && value != head_dim
        {
            return Err(keys.refuse(
                name,
                value,
                &format!("only {head_dim}, the length of a head, is implemented"),
            ));
        }
    }
    Ok(head_dim)
}

fn vocab(keys: &Keys<'_>, tensors: &TensorFiles) -> Result<usize> {
    let table = tensors.get("token_embd.weight")?;
    let rows = *table.shape().first().unwrap_or(&0);
    let key = keys.key("vocab_size");
    for (what, count) in [
        (format!("key `{key}` says"), keys.metadata.count(&key)?),
        ("there are".to_owned(), tokenizer::n_tokens(keys.metadata)?),
    ] {
        if let Some(count) = count
            && count != rows
        {
            return Err(keys.metadata.invalid(format!(
                "tensor `token_embd.weight` has {rows} rows, and {what} {count} tokens"
            )));
        }
    }
    Ok(rows)
}

fn refuse_what_is_not_implemented(keys: &Keys<'_>, tensors: &TensorFiles) -> Result<()> {
    let only = |what: &str| format!("only {what} is implemented");
    if let Some(kind) = keys.metadata.text(&keys.key("rope.scaling.type"))?
        && kind != "none"
        && !(kind == "linear" && keys.number("rope.scaling.factor")?.unwrap_or(1.0) == 1.0)
    {
        return Err(keys.refuse(
            "rope.scaling.type",
            kind,
            &only("the rotary embedding without scaling"),
        ));
    }
    for name in [
        "rope.scaling.factor",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
    ] {
        if let Some(factor) = keys.number(name)?
            && factor != 1.0
        {
            return Err(keys.refuse(name, factor, &only("the rotary embedding without scaling")));
        }
    }
    for name in [
        "attention.sliding_window",
        "expert_count",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "logit_scale",
        "residual_scale",
        "embedding_scale",
        "attention.scale",
    ] {
        if let Some(value) = keys.number(name)?
            && value != 0.0
        {
            return Err(keys.refuse(name, value, "models with it are not implemented"));
        }
    }
    if keys.metadata.flag(&keys.key("attention.causal"))? == Some(false) {
        return Err(keys.refuse("attention.causal", false, &only("causal attention")));
    }
    if let Some(factors) = tensors.find("rope_freqs.weight") {
        let floats = factors.read_floats(*factors.shape().first().unwrap_or(&0))?;
        if floats.iter().any(|&factor| factor != 1.0) {
            return Err(factors.unsupported("scales the rotary embedding, which is not implemented"));
        }
    }
    Ok(())
}
