//! Configurations that must be refused: models that are not implemented, and values that make no sense.

mod folder;
mod refusal;

use bitnet_model::Error;
use folder::Folder;
use refusal::refuse_folder;
use safetensors::Dtype;
use serde_json::json;

#[test]
fn models_that_are_not_implemented() {
    for (key, value, expected) in [
        ("model_type", json!("gpt2"), "model_type `gpt2`"),
        (
            "architectures",
            json!(["LlamaForSequenceClassification"]),
            "LlamaForSequenceClassification",
        ),
        ("architectures", json!(["A", "B"]), "a list of one name"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        ("hidden_act", json!(3), "hidden_act is 3"),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("sliding_window", json!(4096), "sliding_window is 4096"),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "layer_types",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "rope_scaling",
        ),
        ("rope_scaling", json!({"type": "linear"}), "`type`: \"linear\""),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1e4}),
            "`rope_type`: \"yarn\"",
        ),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_theta": 1e4}}),
            "full_attention",
        ),
        (
            "partial_rotary_factor",
            json!(0.5),
            "partial_rotary_factor is 0.5",
        ),
        ("hidden_size", json!(50), "must be a multiple of 4"),
        ("intermediate_size", json!(74), "must be a multiple of 4"),
        (
            "max_position_embeddings",
            json!(4_000_000_000u32),
            "max_position_embeddings",
        ),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            "quant_method is `gptq`",
        ),
        ("quantization_config", json!({}), "quant_method is ``"),
        (
            "quantization_config",
            json!({"quant_method": "bitnet", "linear_class": "x"}),
            "linear_class `x`",
        ),
        (
            "quantization_config",
            json!({"quant_method": "bitnet", "quantization_mode": "x"}),
            "quantization_mode `x`",
        ),
        (
            "quantization_config",
            json!({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"]}),
            "modules_to_not_convert has \"model.layers.0.mlp.down_proj\"",
        ),
        (
            "quantization_config",
            json!({"quant_method": "bitnet-words", "format_version": 2, "activations": "int8"}),
            "format_version is 2",
        ),
        (
            "quantization_config",
            json!({"quant_method": "bitnet-words", "format_version": 1, "activations": "fp4"}),
            "activations is `fp4`",
        ),
        (
            "quantization_config",
            json!(null),
            "so it is not ternary: config.json has no quantization_config",
        ),
    ] {
        let mut folder = Folder::online(Dtype::BF16);
        folder.config[key] = value;
        let error = refuse_folder(key, &folder, expected);
        assert!(
            matches!(error, Error::Unsupported { .. } | Error::NotTernary { .. }),
            "{key}: {error}"
        );
    }
    let mut folder = Folder::one_bit(Dtype::BF16);
    folder.config["input_bits"] = json!(4);
    refuse_folder(
        "other widths",
        &folder,
        "weight_bits is 1 and input_bits is 4; supported are 1 and 8",
    );
}

#[test]
fn absurd_configs() {
    for (key, value, expected) in [
        ("hidden_size", json!(1u64 << 40), "hidden_size is 1099511627776"),
        ("hidden_size", json!(0), "hidden_size is 0"),
        ("hidden_size", json!(-48), "hidden_size is -48"),
        ("hidden_size", json!(48.5), "hidden_size is 48.5"),
        ("hidden_size", json!("48"), "hidden_size is \"48\""),
        (
            "hidden_size",
            json!(64),
            "`model.embed_tokens.weight` has shape [20, 48]",
        ),
        (
            "hidden_size",
            json!(1 << 20),
            "`model.embed_tokens.weight` has shape",
        ),
        (
            "vocab_size",
            json!(4_000_000_000u32),
            "`model.embed_tokens.weight` has shape",
        ),
        (
            "vocab_size",
            json!(10),
            "bos_token_id 16 is not below vocab_size 10",
        ),
        (
            "num_hidden_layers",
            json!(4_000_000_000u32),
            "tensor `model.layers.2.self_attn.q_proj.weight` is missing",
        ),
        ("num_hidden_layers", json!(1), "`model.layers.1."),
        (
            "num_attention_heads",
            json!(3),
            "not a multiple of num_key_value_heads",
        ),
        (
            "num_attention_heads",
            json!(4_000_000_000u32),
            "num_attention_heads * head_dim",
        ),
        ("num_key_value_heads", json!(0), "num_key_value_heads is 0"),
        (
            "num_key_value_heads",
            json!(4),
            "k_proj.weight` has shape [16, 48]",
        ),
        ("head_dim", json!(7), "head_dim 7 is odd"),
        ("head_dim", json!(null), "q_proj.weight` has shape"),
        (
            "intermediate_size",
            json!(96),
            "gate_proj.weight` has shape [80, 48]",
        ),
        ("rms_norm_eps", json!(0), "rms_norm_eps is 0"),
        ("rms_norm_eps", json!(1e300), "rms_norm_eps is 1e+300"),
        ("rope_theta", json!("10000"), "rope_theta is \"10000\""),
        ("rope_scaling", json!("linear"), "rope_scaling is \"linear\""),
        (
            "tie_word_embeddings",
            json!(false),
            "tensor `lm_head.weight` is missing",
        ),
        (
            "tie_word_embeddings",
            json!("yes"),
            "tie_word_embeddings is \"yes\"",
        ),
        ("bos_token_id", json!(-5), "bos_token_id has -5"),
        ("eos_token_id", json!([17, "x"]), "eos_token_id has \"x\""),
        ("eos_token_id", json!(1u64 << 33), "eos_token_id has 8589934592"),
        (
            "eos_token_id",
            json!(vec![17; 1_000_000].into_iter().chain([20]).collect::<Vec<_>>()),
            "eos_token_id 20 is not below vocab_size 20",
        ),
        ("quantization_config", json!([1]), "quantization_config is [1]"),
        ("model_type", json!(null), "has no model_type"),
    ] {
        let mut folder = Folder::online(Dtype::BF16);
        folder.config[key] = value;
        refuse_folder(key, &folder, expected);
    }
    let mut folder = Folder::online(Dtype::BF16);
    folder.generation = Some(json!({"eos_token_id": {"x": 1}}));
    refuse_folder(
        "generation_config",
        &folder,
        "generation_config.json: eos_token_id has",
    );
}
