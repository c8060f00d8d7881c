//! Flags that several subcommands share.

use std::path::{Path, PathBuf};

use crate::failure::hinted;

/// Which model.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model folder: a Hugging Face BitNet checkpoint as downloaded, or what `bitnet convert` wrote
    #[arg(short, long, value_name = "FOLDER")]
    model: Option<PathBuf>,
}

impl ModelArgs {
    /// The model folder.
    pub(crate) fn folder(&self) -> anyhow::Result<&Path> {
        self.model.as_deref().ok_or_else(|| {
            hinted(
                "no model given",
                "name a model folder with -m, for example: bitnet generate -m models/bitnet-b1.58-2B-4T -p \"Hello\"",
            )
        })
    }
}

/// Token ids separated by commas, spaces or both: `1,2,3`.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    text.split([',', ' ', '\n', '\t'])
        .filter(|field| !field.is_empty())
        .map(|field| {
            field
                .parse()
                .map_err(|_| format!("`{field}` is not a token id; expected numbers such as 1,2,3"))
        })
        .collect()
}
