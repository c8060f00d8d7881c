//! Packed weights are read from their files once; of master weights each matrix is read again at once, because its scale
//! comes before its codes. A test of its own program: it counts what the process reads.
#![cfg(target_os = "linux")]

mod prompts;

use bitnet_model::{Checkpoint, CpuBackend, CpuOptions};
use prompts::folder;

/// Bytes that this process has read so far, by any call.
fn read_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let count = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    count.unwrap().parse().unwrap()
}

#[test]
fn weights_are_read_once() {
    for (name, times) in [("bitnet-packed", 1), ("bitnet-bf16", 2)] {
        let folder = folder(name);
        let files = std::fs::read_dir(&folder).unwrap();
        let weights = files.filter_map(|file| {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            (name.starts_with("model") && name.ends_with(".safetensors"))
                .then(|| file.metadata().unwrap().len())
        });
        let size: u64 = weights.sum();
        let before = read_bytes();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        CpuBackend::new(&checkpoint, CpuOptions::default()).unwrap();
        let read = read_bytes() - before;
        // Beside the weights: their header, which is read to look for what is in the file, and the configuration.
        assert!(
            read >= size * 9 / 10 && read < times * size + 100_000,
            "{name}: read {read} bytes, the files have {size}"
        );
    }
}
