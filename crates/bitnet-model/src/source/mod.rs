//! Where a model comes from: its files, what they hold in which form, and what is written of it again.
//!
//! Whatever the files are, the rest of the crate sees a [`Checkpoint`], which is a [`crate::WeightSource`]. A file here may use only
//! files whose `mod` line stands above its own.

mod files;

mod fields;
mod storage;

mod hf_config;
mod safetensors;

mod projection;

mod checkpoint;

mod staging;

mod convert;
mod inspect;
mod watched;

pub use checkpoint::Checkpoint;
pub use convert::{ConvertProgress, Converted, Existing, convert};
pub(crate) use fields::Fields;
pub(crate) use files::MAX_TEXT;
pub use files::{Files, MemoryFiles, read_file};
pub(crate) use hf_config::special_ids;
pub use inspect::{
    Inspection, ScaleSummary, ShapeSummary, TensorSummary, TernaryCounts, Verification, inspect, verify,
};
pub(crate) use staging::StagedFile;
pub use staging::replace_file;
pub use watched::Watched;
