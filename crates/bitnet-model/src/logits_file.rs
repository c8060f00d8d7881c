//! Logits of every position in a safetensors file, written as they are computed.

use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

use crate::score::each_logits;
use crate::source::Staging;
use crate::{Backend, Error, Result};

/// Runs `ids` through slot 0 of `backend` and writes a safetensors file with one tensor: `logits`, F32, (tokens, vocab),
/// row i for the token that follows `ids[..=i]`. The file appears when it is complete, and replaces one of that name.
/// After each row `on_row` is told how many there are.
///
/// # Errors
/// When `ids` is empty, does not fit the context or names no token of the model, the back end fails, or the file cannot
/// be written.
pub fn write_logits(
    backend: &mut dyn Backend,
    ids: &[u32],
    path: &Path,
    mut on_row: impl FnMut(usize),
) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::Request(format!(
            "{}: not the name of a file; give one such as logits.safetensors",
            path.display()
        ))
    })?;
    if path.is_dir() {
        let message = "is a folder; give the name of a file, such as logits.safetensors";
        return Err(Error::Request(format!("{}: {message}", path.display())));
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let io = |source| Error::io(path, source);
    let mut staging = Staging::begin(dir)?;
    let mut file = BufWriter::with_capacity(1 << 20, staging.create(name)?);
    file.write_all(&header(ids.len(), backend.config().vocab))
        .map_err(io)?;
    each_logits(backend, ids, 0..ids.len(), |position, logits| {
        let mut bytes = logits.iter().map(|x| x.to_le_bytes());
        bytes.try_for_each(|bytes| file.write_all(&bytes)).map_err(io)?;
        on_row(position + 1);
        Ok::<(), Error>(())
    })?;
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    staging.commit(&[])
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
