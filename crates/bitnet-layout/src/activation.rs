//! The gate of a feed-forward block, as models, hosts and devices name it.

/// The gate of a feed-forward block. Kernels get the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Activation {
    /// `relu(x)^2`, of the `BitNetForCausalLM` models.
    Relu2 = 0,
    /// `x * sigmoid(x)`, of the Llama-architecture models.
    Silu = 1,
}
