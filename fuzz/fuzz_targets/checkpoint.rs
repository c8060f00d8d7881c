//! Reads a checkpoint folder made of the input, as a back end would: errors are welcome, panics and claims on memory that
//! the input does not justify are not.
//!
//! The input is a byte of flags, the length of config.json (two bytes, little endian), config.json, and the rest: with bit 0
//! of the flags model.safetensors.index.json, which may name the one shard `s`, and else model.safetensors. With bit 1
//! config.json is generation_config.json too. fuzz/seeds/checkpoint has such inputs.
//!
//! ```text
//! cargo +nightly fuzz run checkpoint fuzz/corpus/checkpoint fuzz/seeds/checkpoint -- \
//!     -dict=fuzz/checkpoint.dict -max_len=65536 -malloc_limit_mb=64 -max_total_time=60
//! ```
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use bitnet_model::{Checkpoint, Result, WeightSource, inspect, verify};
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
    let Some((&[flags, low, high], rest)) = data.split_first_chunk() else {
        return;
    };
    let Some((config, weights)) = rest.split_at_checked(u16::from_le_bytes([low, high]).into()) else {
        return;
    };
    let write = |name: &str, content: Option<&[u8]>| {
        let path = FOLDER.path().join(name);
        match content {
            Some(content) => fs::write(path, content).expect("room for the files"),
            None => drop(fs::remove_file(path)),
        }
    };
    let (index, generation) = (flags & 1 != 0, flags & 2 != 0);
    write("config.json", Some(config));
    write("generation_config.json", generation.then_some(config));
    write("model.safetensors", (!index).then_some(weights));
    write("model.safetensors.index.json", index.then_some(weights));
    write("s", index.then_some(&[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']));
    let _ = read(FOLDER.path());
});

/// Everything that can be asked of a folder. Parts are read whatever became of the others.
fn read(folder: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(folder)?;
    for table in [checkpoint.embedding().map(Some), checkpoint.head()]
        .into_iter()
        .flatten()
        .flatten()
    {
        let (rows, cols) = table.shape();
        let _ = table.read_rows(0, &mut vec![0; rows * cols * table.dtype().size()]);
    }
    let _ = checkpoint.final_norm();
    for layer in 0..checkpoint.config().n_layers {
        let _ = checkpoint.layer(layer);
    }
    let _ = verify(&checkpoint, |_, _| ());
    inspect(&checkpoint, |_, _| ()).map(drop)
}
