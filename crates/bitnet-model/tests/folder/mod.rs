//! Model folders made in memory and written where a test wants them: every form of the same tiny model.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_layout::ternary::{WeightQuant, abs_sum};
use bitnet_layout::{hf, words};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub(crate) const PROJECTIONS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 32, 48),
    ("self_attn.k_proj", 16, 48),
    ("self_attn.v_proj", 16, 48),
    ("self_attn.o_proj", 48, 32),
    ("mlp.gate_proj", 80, 48),
    ("mlp.up_proj", 80, 48),
    ("mlp.down_proj", 48, 80),
];
pub(crate) const LAYERS: usize = 2;
const VOCAB: usize = 20;
const D_MODEL: usize = 48;

/// Files of a folder, before they are written.
#[derive(Clone)]
pub(crate) struct Folder {
    pub(crate) config: Value,
    pub(crate) generation: Option<Value>,
    pub(crate) tensors: BTreeMap<String, Array>,
}

#[derive(Clone)]
pub(crate) struct Array {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// Numbers that bf16, f16 and f32 all hold exactly, from a seed.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as i32 % 128 - 64) as f32 / 32.0
        })
        .collect()
}

impl Array {
    pub(crate) fn floats(dtype: Dtype, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let bytes = values.iter().flat_map(|&x| match dtype {
            Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
            Dtype::F32 => x.to_le_bytes().to_vec(),
            other => panic!("{other:?} is not a float here"),
        });
        Self {
            dtype,
            shape: shape.to_vec(),
            bytes: bytes.collect(),
        }
    }

    pub(crate) fn bf16(shape: &[usize], values: &[f32]) -> Self {
        Self::floats(Dtype::BF16, shape, values)
    }

    pub(crate) fn set(&mut self, index: usize, value: f32) {
        let one = Self::floats(self.dtype, &[1], &[value]).bytes;
        self.bytes[index * one.len()..][..one.len()].copy_from_slice(&one);
    }
}

/// The real weights of projection `which` (an index of [`PROJECTIONS`]) of a layer.
pub(crate) fn master(layer: usize, which: usize) -> Vec<f32> {
    let (_, n, k) = PROJECTIONS[which];
    numbers((100 + 10 * layer + which) as u64, n * k)
}

/// Its quantization and ternary values.
pub(crate) fn ternary(layer: usize, which: usize) -> (WeightQuant, Vec<i8>) {
    let w = master(layer, which);
    let sum = w.chunks(PROJECTIONS[which].2).map(abs_sum).sum();
    let quant = WeightQuant::from_abs_sum(sum, w.len());
    (quant, w.iter().map(|&w| quant.quantize(w)).collect())
}

/// Its canonical words.
pub(crate) fn canonical(layer: usize, which: usize) -> Vec<u32> {
    let (_, t) = ternary(layer, which);
    let mut packed = vec![0; t.len() / 16];
    words::pack_row(&t, &mut packed);
    packed
}

impl Folder {
    /// `BitNetForCausalLM` with master weights of that type, ternarized at load.
    pub(crate) fn online(dtype: Dtype) -> Self {
        let mut folder = Self {
            config: json!({
                "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2", "hidden_size": D_MODEL,
                "intermediate_size": 80, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 8, "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 16, "eos_token_id": 17,
                "quantization_config": {
                    "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"
                }
            }),
            generation: Some(json!({"bos_token_id": 16, "eos_token_id": [17, 19]})),
            tensors: BTreeMap::new(),
        };
        folder.norm("model.norm.weight", D_MODEL, 1);
        let embedding = Array::bf16(&[VOCAB, D_MODEL], &numbers(2, VOCAB * D_MODEL));
        folder
            .tensors
            .insert("model.embed_tokens.weight".into(), embedding);
        for layer in 0..LAYERS {
            let name = |name: &str| format!("model.layers.{layer}.{name}.weight");
            for (seed, (norm, len)) in [
                ("input_layernorm", D_MODEL),
                ("post_attention_layernorm", D_MODEL),
                ("self_attn.attn_sub_norm", 32),
                ("mlp.ffn_sub_norm", 80),
            ]
            .into_iter()
            .enumerate()
            {
                folder.norm(&name(norm), len, (10 * layer + seed + 3) as u64);
            }
            for (which, (projection, n, k)) in PROJECTIONS.into_iter().enumerate() {
                let array = Array::floats(dtype, &[n, k], &master(layer, which));
                folder.tensors.insert(name(projection), array);
            }
        }
        folder
    }

    /// The same model with packed weights; `linear_class` says what weight_scale means.
    pub(crate) fn packed(linear_class: &str, scale_dtype: Dtype) -> Self {
        let mut folder = Self::online(Dtype::BF16);
        folder.config["quantization_config"] =
            json!({"quant_method": "bitnet", "linear_class": linear_class});
        folder.each_projection(|folder, name, layer, which| {
            let (_, n, k) = PROJECTIONS[which];
            let (quant, _) = ternary(layer, which);
            let words = canonical(layer, which);
            let mut packed = Array {
                dtype: Dtype::U8,
                shape: vec![n / 4, k],
                bytes: vec![0; n / 4 * k],
            };
            for (r, bytes) in packed.bytes.chunks_mut(k).enumerate() {
                let planes: Vec<&[u32]> = words.chunks(k / 16).skip(r).step_by(n / 4).collect();
                hf::pack_row(&planes, bytes);
            }
            folder.tensors.insert(name.into(), packed);
            let scale = if linear_class == "bitlinear" {
                quant.inverse
            } else {
                quant.scale
            };
            folder.tensors.insert(
                format!("{name}_scale"),
                Array::floats(scale_dtype, &[1], &[scale]),
            );
        });
        folder
    }

    /// The same model as `LlamaForCausalLM`, with its head, whose real weights are ternary as they stand.
    pub(crate) fn baked(dtype: Dtype) -> Self {
        let mut folder = Self::online(dtype);
        folder.llama();
        folder
            .config
            .as_object_mut()
            .unwrap()
            .remove("quantization_config");
        folder.each_projection(|folder, name, layer, which| {
            let (_, n, k) = PROJECTIONS[which];
            let scale = 0.375 * (which + 1) as f32;
            let values: Vec<f32> = ternary(layer, which)
                .1
                .iter()
                .map(|&t| f32::from(t) * scale)
                .collect();
            folder
                .tensors
                .insert(name.into(), Array::floats(dtype, &[n, k], &values));
        });
        folder
    }

    /// The same model as the first reproductions of the paper store it.
    pub(crate) fn one_bit(dtype: Dtype) -> Self {
        let mut folder = Self::online(dtype);
        let config = folder.config.as_object_mut().unwrap();
        config.remove("quantization_config");
        config["architectures"] = json!(["BitnetForCausalLM"]);
        config["model_type"] = json!("llama");
        config["hidden_act"] = json!("silu");
        config.insert("weight_bits".into(), json!(1));
        config.insert("input_bits".into(), json!(8));
        for layer in 0..LAYERS {
            for (from, to) in [
                ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
                ("mlp.ffn_sub_norm", "mlp.ffn_layernorm"),
            ] {
                folder.rename(
                    &format!("model.layers.{layer}.{from}.weight"),
                    &format!("model.layers.{layer}.{to}.weight"),
                );
            }
        }
        folder
    }

    /// Makes it a Llama: no sub-norms, silu, a head of its own.
    pub(crate) fn llama(&mut self) {
        let config = self.config.as_object_mut().unwrap();
        config["architectures"] = json!(["LlamaForCausalLM"]);
        config["model_type"] = json!("llama");
        config["hidden_act"] = json!("silu");
        config["tie_word_embeddings"] = json!(false);
        self.tensors.retain(|name, _| !name.contains("sub_norm"));
        let head = Array::bf16(&[VOCAB, D_MODEL], &numbers(9, VOCAB * D_MODEL));
        self.tensors.insert("lm_head.weight".into(), head);
    }

    /// Gives every projection a norm of its own.
    pub(crate) fn linear_norms(&mut self) {
        let quant = &mut self.config["quantization_config"];
        quant["use_rms_norm"] = json!(true);
        quant["rms_norm_eps"] = json!(2e-6);
        self.each_projection(|folder, name, layer, which| {
            let name = name.replace(".weight", ".rms_norm.weight");
            folder.norm(&name, PROJECTIONS[which].2, (1000 + 10 * layer + which) as u64);
        });
    }

    fn norm(&mut self, name: &str, len: usize, seed: u64) {
        self.tensors
            .insert(name.into(), Array::bf16(&[len], &numbers(seed, len)));
    }

    fn each_projection(&mut self, mut change: impl FnMut(&mut Self, &str, usize, usize)) {
        for layer in 0..LAYERS {
            for (which, (name, ..)) in PROJECTIONS.into_iter().enumerate() {
                change(self, &format!("model.layers.{layer}.{name}.weight"), layer, which);
            }
        }
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.tensors.remove(from).unwrap();
        self.tensors.insert(to.into(), tensor);
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Array {
        self.tensors.get_mut(name).unwrap()
    }

    /// Writes the folder with one safetensors file.
    pub(crate) fn write(&self, dir: &Path) {
        self.write_json(dir);
        write_tensors(&dir.join("model.safetensors"), self.tensors.iter());
    }

    /// Writes it with three shards and an index.
    pub(crate) fn write_sharded(&self, dir: &Path) {
        self.write_json(dir);
        let mut map = serde_json::Map::new();
        for shard in 0..3 {
            let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
            let part: Vec<_> = self.tensors.iter().skip(shard).step_by(3).collect();
            map.extend(part.iter().map(|(name, _)| ((*name).clone(), json!(file))));
            write_tensors(&dir.join(file), part.into_iter());
        }
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn write_json(&self, dir: &Path) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        if let Some(generation) = &self.generation {
            std::fs::write(dir.join("generation_config.json"), generation.to_string()).unwrap();
        }
    }
}

fn write_tensors<'a>(path: &Path, tensors: impl Iterator<Item = (&'a String, &'a Array)>) {
    let views = tensors.map(|(name, array)| {
        (
            name,
            TensorView::new(array.dtype, array.shape.clone(), &array.bytes).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
