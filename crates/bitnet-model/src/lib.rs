//! BitNet b1.58 models: checkpoints, tokenizer, the transformer and text generation.
//!
//! A file may use only files whose `mod` line stands above its own, so the list below is also the reading order.
#![forbid(unsafe_code)]

mod config;
mod error;
mod tokenizer;
mod transformer;
mod weights;

pub use config::{ActQuant, Activation, Config};
pub use error::{Error, Result};
pub use tokenizer::Tokenizer;
pub use transformer::{Backend, Tap, Token, check_batch};
pub use weights::{Dense, DenseDtype, LayerWeights, Segment, TernaryTensor, WeightSource};
