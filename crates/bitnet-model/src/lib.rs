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

mod error;

mod config;

mod weights;

mod source;

mod jinja;
mod sampler;

mod generation_config;
mod tokenizer;

mod chat;
mod detokenizer;
mod pages;
mod transformer;

mod session;

mod embed;

pub mod schedule;

pub mod conformance;
mod score;

mod memory;

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod generate;

mod logits_file;

mod model;

mod engine;

pub use bitnet_cpu::{Ask, Best, KvType, Numa, Simd, ZeroCounts};
#[cfg(feature = "cuda")]
pub use bitnet_cuda::engine::{Grids, Part, PartTime, Profile};
pub use bitnet_layout::{DenseDtype, Dims, Token, WeightForm};
pub use chat::{ChatTemplate, Message};
pub use config::{ActQuant, Activation, Config};
pub use cpu::{CpuBackend, CpuOptions};
#[cfg(feature = "cuda")]
pub use cuda::{CudaBackend, CudaOptions, cuda_probe};
pub use detokenizer::{Detokenizer, SpecialTokens, StopStrings};
pub use embed::embed;
pub use engine::{Client, Engine, Health, Stream, Ticket};
pub use error::{Error, Result, Source};
pub use generate::{Event, Generation, Generator, Prompt};
pub use generation_config::GenerationConfig;
pub use logits_file::write_logits;
pub use memory::KvMemory;
pub use model::{Device, LoadOptions, Model, open_backend};
pub use pages::{Batch, Limits, PageCopy, Pages, Run, Seq, Start};
pub use sampler::{Choice, Chosen, Logits, Logprob, Need, Sampler, Sampling};
pub use schedule::{EndedBy, FinishReason, GenerateOptions, Scheduler, Timings};
pub use score::{Chunking, Perplexity, each_logits, negative_log_likelihood};
pub use session::Session;
pub use source::{
    Checkpoint, ConvertProgress, Converted, Existing, Files, GgufFile, GgufTernary, I2sLayout, Inspection,
    MemoryFiles, OpenOptions, Pooling, ScaleSummary, ShapeSummary, TensorSummary, TernaryCounts,
    Verification, Watched, convert, convert_to_gguf, inspect, read_file, replace_file, verify,
};
pub use tokenizer::Tokenizer;
pub use transformer::{Backend, CertifiedHead, Decoder, Spec, Tap, Verbs, Want, transformer};
pub use weights::{Dense, LayerWeights, LmHead, Segment, SkipZeros, TernaryTensor, WeightSource};
