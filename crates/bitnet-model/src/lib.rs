//! BitNet b1.58 models: checkpoints, tokenizer, the transformer and text generation.
//!
//! ```
//! use bitnet_model::{Device, Message, Model, Prompt};
//! use std::ops::ControlFlow;
//!
//! # let folder = "../bitnet-cli/demo-model";
//! let mut model = Model::load(folder, Device::Auto)?;
//! let options = model.generate_options();
//! let question = [Message::user("What is 17 + 25?")];
//! let answer = model
//!     .generator()
//!     .generate(Prompt::Chat(&question), &options, |_| ControlFlow::Continue(()))?;
//! assert_eq!(answer.text, "17 + 25 = 42");
//! # Ok::<(), bitnet_model::Error>(())
//! ```
//!
//! A file may use only files whose `mod` line stands above its own, so the list below is also the reading order.
#![forbid(unsafe_code)]

mod config;
mod error;

mod files;

mod tokenizer;

mod chat;
mod detokenizer;
mod sampler;
mod transformer;
mod weights;

pub mod conformance;
mod score;

mod fields;
mod storage;

mod hf_config;
mod tensors;

mod projection;

mod checkpoint;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod generate;

mod staging;

mod logits_file;

mod convert;
mod inspect;
mod watched;

mod model;

pub use bitnet_cpu::{KvType, Simd};
#[cfg(feature = "cuda")]
pub use bitnet_cuda::engine::{Part, PartTime, Profile};
pub use chat::{ChatTemplate, Message};
pub use checkpoint::Checkpoint;
pub use config::{ActQuant, Activation, Config};
pub use convert::{ConvertProgress, Converted, Existing, convert};
pub use cpu::{CpuBackend, CpuOptions, LmHead};
#[cfg(feature = "cuda")]
pub use cuda::{CudaBackend, CudaOptions, cuda_probe};
pub use detokenizer::{Detokenizer, SpecialTokens, StopStrings};
pub use error::{Error, Result};
pub use files::Files;
pub use generate::{Event, FinishReason, GenerateOptions, Generation, Generator, Prompt, Timings};
pub use inspect::{
    Inspection, ScaleSummary, ShapeSummary, TensorSummary, TernaryCounts, Verification, inspect, verify,
};
pub use logits_file::write_logits;
pub use model::{Device, LoadOptions, Model, open_backend};
pub use sampler::{Sampler, Sampling};
pub use score::{Chunking, Perplexity, each_logits, negative_log_likelihood};
pub use tokenizer::Tokenizer;
pub use transformer::{Backend, Tap, Token, check_batch};
pub use watched::Watched;
pub use weights::{Dense, DenseDtype, LayerWeights, Segment, TernaryTensor, WeightForm, WeightSource};
