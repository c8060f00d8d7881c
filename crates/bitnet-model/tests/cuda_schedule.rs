//! A scheduler on a GPU: random schedules give each request what it gets alone there. Returns early, saying so, where there is none.
#![cfg(feature = "cuda")]

mod prompts;
mod schedules;

use bitnet_model::{Backend, Checkpoint, Device, LoadOptions, open_backend};

const CONTEXT: usize = 256;

#[test]
fn each_request_gets_what_it_gets_alone() {
    if let Err(error) = bitnet_model::cuda_probe(0) {
        assert!(
            std::env::var("BITNET_GPU").as_deref() != Ok("required"),
            "a GPU is required: {error}"
        );
        println!("not tested: {error}");
        return;
    }
    let checkpoint = Checkpoint::open(prompts::folder("bitnet-bf16")).unwrap();
    let open = |n_seqs: usize, max_batch: usize| -> Box<dyn Backend> {
        let options = LoadOptions {
            context: Some(CONTEXT),
            n_seqs,
            max_batch,
            ..Device::Cuda(0).into()
        };
        open_backend(&checkpoint, &options).unwrap()
    };
    let seeds = if std::env::var_os("BITNET_GPU_CHECKED").is_some() {
        1
    } else {
        12
    };
    let mut single = open(8, 128);
    for seed in 0..seeds {
        // As many pages as a few sequences need, so that some are set back.
        let mut shared = open(2 + seed as usize % 4, 1 + (seed as usize * 37) % 128);
        let seen = schedules::check(seed, 40, single.as_mut(), shared.as_mut());
        println!("seed {seed}: {seen:?}");
    }
}
