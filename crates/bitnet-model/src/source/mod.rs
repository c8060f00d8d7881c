//! Where a model comes from: its files, what they hold in which form, and what is written of it again.
//!
//! Whatever the files are, the rest of the crate sees a [`Checkpoint`], which is a [`crate::WeightSource`]. A file here may use only
//! files whose `mod` line stands above its own.

mod pieces;

mod dtype;

mod tensors;
mod vocabulary;

mod gguf;
mod sentencepiece;

mod files;

mod fields;
mod roles;
mod storage;

mod hf_config;
mod pooling;
mod safetensors;

mod dense;
mod ternary_types;

mod projection;

mod checkpoint;

mod staging;

mod convert;
mod gguf_writer;

mod gguf_vocabulary;
mod inspect;

mod to_gguf;
mod watched;

pub use checkpoint::Checkpoint;
pub use convert::{ConvertProgress, Converted, Existing, convert};
pub(crate) use fields::Fields;
pub(crate) use files::MAX_TEXT;
pub use files::{Files, MemoryFiles};
pub use gguf::GgufFile;
pub(crate) use hf_config::special_ids;
pub use inspect::{
    Inspection, ScaleSummary, ShapeSummary, TensorSummary, TernaryCounts, Verification, inspect, verify,
};
pub use pieces::read_file;
pub use pooling::Pooling;
pub(crate) use staging::StagedFile;
pub use staging::replace_file;
pub use storage::{I2sLayout, OpenOptions};
pub use to_gguf::{GgufTernary, convert_to_gguf};
pub(crate) use vocabulary::BITNET_TEMPLATE;
pub use watched::Watched;
