//! What an engine runs and how much it holds, and which of that the kernels support.

use super::{Engine, PAGE_POSITIONS};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use bitnet_kernels::attention::Heads;
use bitnet_kernels::bit_gemm;
use bitnet_kernels::cache::{KvType, padded_head_dim};
use bitnet_layout::{Activation, Dims, WeightForm};

/// Most tokens of a batch.
pub const MAX_BATCH: usize = 1 << 15;
/// Most rows.
pub(super) const MAX_SEATS: usize = 256;
/// Most pages of a pool, the spare one included: their numbers, and 64 times those, fit the words in which tables and kernels count.
pub(super) const MAX_PAGES: usize = 1 << 25;

/// A model as an engine runs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Its sizes.
    pub dims: Dims,
    /// Epsilon of the norms.
    pub eps: f32,
    /// How the weights of linear layers are kept.
    pub weights: WeightForm,
    /// What the inputs of linear layers are.
    pub inputs: Inputs,
    /// Epsilon of a norm of its own before every linear layer, whose projections then stand apart; where there is one.
    pub linear_norm_eps: Option<f32>,
    /// What the output head is.
    pub head: HeadKind,
    /// How the elements of the embedding, and of a head of its own, are kept.
    pub table: TableForm,
    /// Whether decode steps find what they choose from in an 8-bit copy of the head, and compute of the head those logits alone: see
    /// [`bitnet_kernels::screen`]. Not of a head of 8 bits.
    pub is_certified: bool,
    /// Whether there are norms before the projections back to the residual stream.
    pub sub_norms: bool,
    /// Whether there is a norm of each head of queries and keys before its rotation.
    pub qk_norms: bool,
    /// Rotation of each pair of a head's elements, in radians a position, (head_dim / 2).
    pub frequencies: Vec<f32>,
    /// Gate of the feed-forward block.
    pub activation: Activation,
    /// How keys and values are kept.
    pub kv_type: KvType,
}

/// What the inputs of linear layers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Rounded to 8 bits, with one scale a token.
    Int8,
    /// f32: ternary weights are then kept as -1, 0 and 1 in bfloat16, eight times their size, and products get the scale.
    F32,
}

/// How rows of the embedding, and of an output head of its own, are kept: in bfloat16, as the sum of so many of them where one does not hold
/// an element exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableForm {
    /// Terms of an element: 1, 2 (f16) or 3 (f32).
    pub terms: usize,
}

impl TableForm {
    /// Elements from one row of `d_model` to the next: all first terms, all second ones, and so on, filled up with zeros for the products
    /// of bfloat16.
    #[must_use]
    pub const fn stride(self, d_model: usize) -> usize {
        (self.terms * d_model).next_multiple_of(32)
    }

    /// Whether a row is nothing but its elements in bfloat16.
    #[must_use]
    pub const fn is_plain(self, d_model: usize) -> bool {
        self.stride(d_model) == d_model
    }
}

/// What the output head of a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// None: the model gives no logits.
    None,
    /// The embedding.
    Embedding,
    /// A matrix of its own, bfloat16.
    Own,
    /// A matrix that is rounded to 8 bits when it is loaded, see [`bitnet_kernels::int8_head`]. The embedding, of which a
    /// token needs one row, then stays in the host's memory.
    Int8,
    /// One more ternary projection.
    Ternary,
}

/// How much an engine can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences of a batch; up to 256 of them can be decoded side by side.
    pub n_seqs: usize,
    /// Tokens of a batch.
    pub max_batch: usize,
    /// Pages of keys and values, which all sequences share: see [`Engine::kv_room`].
    pub n_pages: usize,
}

impl Limits {
    /// Sequences that are decoded side by side on the device.
    pub(super) fn seats(self) -> usize {
        self.n_seqs.min(MAX_SEATS)
    }

    /// Most rows of a step.
    pub(super) fn rows(self) -> usize {
        self.max_batch.max(self.seats())
    }

    /// Pages of a sequence.
    pub(super) fn table_len(self) -> usize {
        self.context.div_ceil(PAGE_POSITIONS)
    }
}

/// Refuses what would leave the 32 bits in which kernels count.
pub(super) fn check_limits(limits: Limits) -> Result<()> {
    for (what, found, most) in [
        ("context", limits.context, 1 << 26),
        ("number of sequences", limits.n_seqs, 1 << 16),
        ("batch", limits.max_batch, MAX_BATCH),
        ("number of pages", limits.n_pages, MAX_PAGES - 1),
    ] {
        if found == 0 || found > most {
            return Err(Error::Request(format!(
                "the GPU kernels do not support a {what} of {found}: it must be 1 to {most}"
            )));
        }
    }
    if limits.n_seqs.saturating_mul(limits.table_len()) > u32::MAX as usize {
        return Err(Error::Request(format!(
            "the GPU kernels do not support {} sequences of {} positions at once",
            limits.n_seqs, limits.context
        )));
    }
    Ok(())
}

/// The heads that there are kernels for, when the kernels can run a model of this shape.
pub(super) fn check_model(model: &Architecture, gpu: &Gpu) -> Result<Heads> {
    let refuse = |what: &str, found: usize, needed: &str| {
        Err(Error::Request(format!(
            "the GPU kernels do not support a {what} of {found}: {needed}"
        )))
    };
    let is_dense = model.weights == WeightForm::Bf16 || model.inputs == Inputs::F32;
    let (step, needed) = if is_dense {
        (
            32,
            "it must be a multiple of 32 where weights are kept in bfloat16",
        )
    } else {
        (4, "it must be a multiple of 4")
    };
    for (what, found) in [
        ("hidden size", model.dims.d_model),
        ("feed-forward size", model.dims.d_ffn),
        ("width of all heads", model.dims.d_q()),
    ] {
        if !found.is_multiple_of(step) {
            return refuse(what, found, needed);
        }
    }
    if model.dims.widest() > bit_gemm::MAX_K {
        let most = format!("sums would leave 32 bits beyond {}", bit_gemm::MAX_K);
        return refuse("layer width", model.dims.widest(), &most);
    }
    let is_plain = model.table.is_plain(model.dims.d_model);
    let has_copy = matches!(model.head, HeadKind::Embedding | HeadKind::Own) && is_plain;
    if model.is_certified && !(has_copy && Engine::certifies(gpu, model.dims.d_model)) {
        return Err(Error::Request(
            "the GPU kernels do not support a certified output head but of bfloat16, with a hidden size that is a multiple of 32 and that \
             shared memory has room for"
                .to_owned(),
        ));
    }
    if model.head == HeadKind::Int8 && !is_plain {
        return Err(Error::Request(
            "the GPU kernels do not support an output head of 8 bits but of a bfloat16 one with a hidden size that is a multiple of 32"
                .to_owned(),
        ));
    }
    if model.frequencies.len() != model.dims.head_dim / 2 {
        return refuse(
            "head size",
            model.dims.head_dim,
            "there must be a frequency for every pair of elements",
        );
    }
    match padded_head_dim(model.dims.head_dim as u32) {
        Some(padded) => match Heads::new(padded, model.kv_type) {
            Some(heads) => Ok(heads),
            None => refuse(
                "head size",
                model.dims.head_dim,
                "8-bit keys and values are of up to 128",
            ),
        },
        None => refuse(
            "head size",
            model.dims.head_dim,
            "it must be a multiple of 4 up to 256",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_kernels_cannot_count_are_refused() {
        let good = Limits {
            context: 4096,
            n_seqs: 1,
            max_batch: 512,
            n_pages: 64,
        };
        assert!(check_limits(good).is_ok());
        for (bad, what) in [
            (
                Limits {
                    context: usize::MAX,
                    ..good
                },
                "a context of 18446744073709551615",
            ),
            (
                Limits {
                    n_seqs: 1 << 20,
                    ..good
                },
                "a number of sequences of 1048576",
            ),
            (Limits { max_batch: 0, ..good }, "a batch of 0"),
            (Limits { n_pages: 0, ..good }, "a number of pages of 0"),
            (
                Limits {
                    n_pages: 1 << 25,
                    ..good
                },
                "a number of pages of 33554432",
            ),
        ] {
            let error = check_limits(bad).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
