//! What each tensor of a model is for, and what the files call it.

use crate::Config;

/// A linear layer with ternary weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Linear {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Linear {
    /// Those of a transformer layer.
    pub(crate) const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Outputs and inputs.
    pub(crate) fn shape(self, config: &Config) -> (usize, usize) {
        match self {
            Self::Q => (config.d_q(), config.d_model),
            Self::K | Self::V => (config.d_kv(), config.d_model),
            Self::O => (config.d_model, config.d_q()),
            Self::Gate | Self::Up => (config.d_ffn, config.d_model),
            Self::Down => (config.d_model, config.d_ffn),
        }
    }

    fn hf(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    fn gguf(self) -> &'static str {
        match self {
            Self::Q => "attn_q",
            Self::K => "attn_k",
            Self::V => "attn_v",
            Self::O => "attn_output",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }
}

/// What a tensor is for; the number is the layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Embedding,
    FinalNorm,
    /// The output head.
    Head,
    /// Of a ternary output head, the norm of its input.
    HeadNorm,
    AttnNorm(usize),
    FfnNorm(usize),
    /// Before o.
    AttnSubNorm(usize),
    /// Before down.
    FfnSubNorm(usize),
    /// Of each head of the query.
    QNorm(usize),
    /// Of each head of the key.
    KNorm(usize),
    Weight(usize, Linear),
    /// Of the input of one linear layer.
    InputNorm(usize, Linear),
}

/// What a kind of files calls its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// transformers and what saves as it does.
    Hf(HfNames),
    /// GGUF.
    Gguf,
}

/// Where Hugging Face folders differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HfNames {
    /// `model.`, or nothing where a body without a head was saved.
    pub(crate) prefix: &'static str,
    /// Before o and before down.
    pub(crate) sub_norms: [&'static str; 2],
    /// Of the input of one linear layer.
    pub(crate) input_norm: &'static str,
}

impl HfNames {
    /// Those of `BitNetForCausalLM`, which this project's own folders have whatever the source's.
    pub(crate) const BITNET: Self = Self {
        prefix: "model.",
        sub_norms: ["self_attn.attn_sub_norm", "mlp.ffn_sub_norm"],
        input_norm: "rms_norm",
    };
}

impl Names {
    /// The name of the tensor of a role.
    pub(crate) fn of(&self, role: Role) -> String {
        match self {
            Self::Hf(names) => names.of(role),
            Self::Gguf => gguf(role),
        }
    }

    /// What the names of all tensors of a layer begin with.
    pub(crate) fn layer_prefix(&self, layer: usize) -> String {
        match self {
            Self::Hf(names) => format!("{}layers.{layer}.", names.prefix),
            Self::Gguf => format!("blk.{layer}."),
        }
    }

    /// The name of the tensor with the scale of the weights named `weight`.
    pub(crate) fn scale(&self, weight: &str) -> String {
        match self {
            Self::Hf(_) => format!("{weight}_scale"),
            Self::Gguf => format!("{}.scale", weight.trim_end_matches(".weight")),
        }
    }
}

impl HfNames {
    fn of(&self, role: Role) -> String {
        let (prefix, [attn, ffn]) = (self.prefix, self.sub_norms);
        let layer = |layer: usize, name: &str| format!("{prefix}layers.{layer}.{name}.weight");
        match role {
            Role::Embedding => format!("{prefix}embed_tokens.weight"),
            Role::FinalNorm => format!("{prefix}norm.weight"),
            Role::Head => "lm_head.weight".into(),
            Role::HeadNorm => format!("lm_head.{}.weight", self.input_norm),
            Role::AttnNorm(n) => layer(n, "input_layernorm"),
            Role::FfnNorm(n) => layer(n, "post_attention_layernorm"),
            Role::AttnSubNorm(n) => layer(n, attn),
            Role::FfnSubNorm(n) => layer(n, ffn),
            Role::QNorm(n) => layer(n, "self_attn.q_norm"),
            Role::KNorm(n) => layer(n, "self_attn.k_norm"),
            Role::Weight(n, linear) => layer(n, linear.hf()),
            Role::InputNorm(n, linear) => layer(n, &format!("{}.{}", linear.hf(), self.input_norm)),
        }
    }
}

fn gguf(role: Role) -> String {
    let layer = |layer: usize, name: &str| format!("blk.{layer}.{name}.weight");
    match role {
        Role::Embedding => "token_embd.weight".into(),
        Role::FinalNorm => "output_norm.weight".into(),
        Role::Head => "output.weight".into(),
        Role::HeadNorm => "output_norm_in.weight".into(),
        Role::AttnNorm(n) => layer(n, "attn_norm"),
        Role::FfnNorm(n) => layer(n, "ffn_norm"),
        Role::AttnSubNorm(n) => layer(n, "attn_sub_norm"),
        Role::FfnSubNorm(n) => layer(n, "ffn_sub_norm"),
        Role::QNorm(n) => layer(n, "attn_q_norm"),
        Role::KNorm(n) => layer(n, "attn_k_norm"),
        Role::Weight(n, linear) => layer(n, linear.gguf()),
        Role::InputNorm(n, linear) => layer(n, &format!("{}_norm_in", linear.gguf())),
    }
}
