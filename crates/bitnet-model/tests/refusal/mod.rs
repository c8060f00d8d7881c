//! How tests ask for an error: the folder is read as a back end reads it, and must end in one readable line.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::Path;

use bitnet_model::{Checkpoint, Error, Result, WeightSource};

use crate::folder::Folder;

/// Opens a folder and reads all of it, as a back end does.
fn load(dir: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(dir)?;
    let tables = [Some(checkpoint.embedding()?), checkpoint.head()?];
    for table in tables.into_iter().flatten() {
        let (rows, cols) = table.shape();
        table.read_rows(0, &mut vec![0; rows * cols * table.dtype().size()])?;
    }
    for layer in 0..checkpoint.config().n_layers {
        checkpoint.layer(layer)?;
    }
    checkpoint.final_norm().map(drop)
}

pub(crate) fn refusal(dir: &Path) -> Error {
    load(dir).expect_err("the folder must be refused")
}

pub(crate) fn check(what: &str, error: Error, expected: &str) {
    let text = error.to_string();
    assert!(
        text.contains(expected),
        "{what}: expected `{expected}` in: {text}"
    );
    assert!(
        !text.contains('\n') && text.len() < 600,
        "{what}: one readable line, not: {text}"
    );
}

pub(crate) fn refuse_folder(what: &str, folder: &Folder, expected: &str) -> Error {
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    check(what, refusal(dir.path()), expected);
    refusal(dir.path())
}
