//! Reads a GGUF file made of the input, as a back end, a tokenizer and the commands would: errors are welcome, panics and claims on
//! memory that the input does not justify are not.
//!
//! The first byte of the input has flags, the rest is the file: bits 0 and 1 choose the layout of I2_S, bit 2 makes real weights
//! ternary, bit 3 makes the file a tokenizer.model instead. fuzz/seeds/gguf has such inputs, made by fuzz/make_gguf_seeds.py.
//!
//! ```text
//! cargo +nightly fuzz run gguf fuzz/corpus/gguf fuzz/seeds/gguf -- -max_len=131072 -malloc_limit_mb=64 -max_total_time=60
//! ```
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use bitnet_model::{
    ChatTemplate, Checkpoint, I2sLayout, Message, OpenOptions, Pooling, Result, Tokenizer, WeightSource, inspect, verify,
};
use libfuzzer_sys::fuzz_target;

/// One folder for all runs, in memory where the system has such a place.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    folder.expect("a folder for the files")
});

fuzz_target!(|data: &[u8]| {
    let Some((flags, file)) = data.split_first() else {
        return;
    };
    if flags & 8 != 0 {
        let path = FOLDER.path().join("tokenizer.model");
        fs::write(&path, file).expect("room for the file");
        let _ = text(FOLDER.path());
        fs::remove_file(path).expect("the file was just written");
        return;
    }
    let path = FOLDER.path().join("model.gguf");
    fs::write(&path, file).expect("room for the file");
    let mut options = OpenOptions::default();
    options.i2s_layout = match flags & 3 {
        1 => I2sLayout::Arm64,
        2 => I2sLayout::Rows4,
        _ => I2sLayout::Canonical,
    };
    options.ternarize = flags & 4 != 0;
    let _ = weights(&path, options);
    let _ = text(&path);
});

/// Everything that a back end and the commands ask for. Parts are read whatever became of the others.
fn weights(path: &Path, options: OpenOptions) -> Result<()> {
    let checkpoint = Checkpoint::open_with(path, options)?;
    for table in [checkpoint.embedding().map(Some), checkpoint.head()]
        .into_iter()
        .flatten()
        .flatten()
    {
        let (rows, cols) = table.shape();
        let at_once = rows.min(64);
        let _ = table.read_rows(rows - at_once, &mut vec![0; at_once * cols * table.dtype().size()]);
    }
    let _ = checkpoint.final_norm();
    for layer in 0..checkpoint.config().n_layers {
        let _ = checkpoint.layer(layer);
    }
    let _ = Pooling::from_files(checkpoint.files());
    let _ = verify(&checkpoint, |_, _| ());
    inspect(&checkpoint, |_, _| ()).map(drop)
}

fn text(path: &Path) -> Result<()> {
    let tokenizer = Tokenizer::from_folder(path, None, &[])?;
    let ids = tokenizer.encode("Hello,  w\u{f6}rld!\n12345 <|eot_id|></s>")?;
    let _ = tokenizer.decode(&ids);
    if let Some(template) = ChatTemplate::from_folder(path, &tokenizer)? {
        let _ = template.render(&[Message::user("Hello")]);
    }
    Ok(())
}
