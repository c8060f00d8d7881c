//! Runs a text on two back ends, verb by verb, and prints where they differ and by how much:
//! `cargo run --release --example diff [-- <model folder> "<text>"]`.
//!
//! The reference is the scalar path of the processor; it is held against each other instruction set of this processor,
//! and against the first GPU where there is one.

use bitnet_examples::{model_folder, text_or};
use bitnet_model::conformance::compare;
use bitnet_model::{Checkpoint, Device, LoadOptions, Simd, Tokenizer, WeightSource, open_backend};

/// Tokens of a batch: the rest of a text goes on from them, as a prompt cut in pieces does.
const BATCH: usize = 64;

fn main() -> anyhow::Result<()> {
    let (folder, text) = (model_folder(), text_or("What is 17 + 25?"));
    let checkpoint = Checkpoint::open(&folder)?;
    let config = checkpoint.config();
    let ids = Tokenizer::from_folder(&folder, config.bos, &config.eos)?.encode_prompt(&text)?;
    let load = |device, simd| {
        let options = LoadOptions {
            device,
            simd,
            context: Some(ids.len()),
            max_batch: BATCH,
            ..LoadOptions::default()
        };
        open_backend(&checkpoint, options)
    };
    let batches = ids.chunks(BATCH).map(|ids| vec![(0, ids.to_vec())]);
    let batches: Vec<_> = batches.collect();

    let mut reference = load(Device::Cpu, Some(Simd::Scalar))?;
    let others = Simd::available().into_iter().filter(|&simd| simd != Simd::Scalar);
    for simd in others {
        let mut other = load(Device::Cpu, Some(simd))?;
        println!("{}\n", compare(reference.as_mut(), other.as_mut(), &batches)?);
    }
    match load(Device::Cuda(0), None) {
        Ok(mut gpu) => println!("{}", compare(reference.as_mut(), gpu.as_mut(), &batches)?),
        Err(error) => println!("no GPU: {error}"),
    }
    Ok(())
}
