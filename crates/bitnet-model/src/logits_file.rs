//! Logits of every position in a safetensors file, written as they are computed.

use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;

use crate::score::each_logits;
use crate::source::StagedFile;
use crate::{Backend, Error, Result};

/// Runs `ids` through slot 0 of `backend` and writes a safetensors file with one tensor: `logits`, F32, (tokens, vocab),
/// row i for the token that follows `ids[..=i]`. The file appears when it is complete, and replaces one of that name.
/// After each row `on_row` is told how many there are, and says whether to go on; nothing is left where it breaks off.
///
/// # Errors
/// When `ids` is empty, does not fit the context or names no token of the model, the back end fails, or the file cannot
/// be written; [`Error::Cancelled`] when `on_row` broke off.
pub fn write_logits(
    backend: &mut dyn Backend,
    ids: &[u32],
    path: &Path,
    mut on_row: impl FnMut(usize) -> ControlFlow<()>,
) -> Result<()> {
    let io = |source| Error::io(path, source);
    let mut staged = StagedFile::begin(path)?;
    let mut file = BufWriter::with_capacity(1 << 20, staged.file());
    file.write_all(&header(ids.len(), backend.spec().config.vocab))
        .map_err(io)?;
    each_logits(backend, ids, 0..ids.len(), |position, logits| {
        let mut bytes = logits.iter().map(|x| x.to_le_bytes());
        bytes.try_for_each(|bytes| file.write_all(&bytes)).map_err(io)?;
        match on_row(position + 1) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    })?;
    file.flush().map_err(io)?;
    drop(file);
    staged.commit()
}

/// The file up to the tensor, which begins at a multiple of 8 bytes.
fn header(n_tokens: usize, vocab: usize) -> Vec<u8> {
    let header = json!({
        "__metadata__": { "format": "pt" },
        "logits": { "dtype": "F32", "shape": [n_tokens, vocab], "data_offsets": [0, n_tokens * vocab * 4] },
    });
    let mut text = header.to_string();
    text.extend(std::iter::repeat_n(
        ' ',
        text.len().next_multiple_of(8) - text.len(),
    ));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
