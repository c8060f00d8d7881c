//! A scheduler on the GPU: random schedules, in which each request gets what it gets alone. Returns early, saying so, where
//! there is no GPU.
#![cfg(feature = "cuda")]

mod prompts;
mod schedules;

use bitnet_model::{Checkpoint, CudaBackend, CudaOptions, KvMemory, KvType, LmHead, WeightForm};
use schedules::check;

/// Positions of a sequence: four pages.
const CONTEXT: usize = 256;

fn options(n_seqs: usize, max_batch: usize, kv_type: KvType, kv_memory: KvMemory) -> CudaOptions {
    CudaOptions {
        device: 0,
        context: CONTEXT,
        n_seqs,
        kv_type,
        kv_memory,
        max_batch,
        lm_head: LmHead::Stored,
        weights: WeightForm::Ternary,
        sync: false,
    }
}

#[test]
fn each_request_gets_what_it_gets_alone() {
    if let Err(error) = bitnet_model::cuda_probe(0) {
        let is_required = std::env::var("BITNET_GPU").as_deref() == Ok("required");
        assert!(!is_required, "{error}");
        println!("not tested: {error}");
        return;
    }
    let is_checked = std::env::var_os("BITNET_GPU_CHECKED").is_some();
    let (n_seeds, n_requests) = if is_checked { (1, 4) } else { (12, 40) };
    let checkpoint = Checkpoint::open(prompts::folder("bitnet-bf16")).unwrap();
    let open = |options: CudaOptions| CudaBackend::new(&checkpoint, options).unwrap();
    // Plenty of pages, or hardly enough for one and a half sequences of four.
    let memory = [KvMemory::Auto, KvMemory::Tokens(9 * 64), KvMemory::Tokens(6 * 64)];
    let mut set_back = 0;
    for seed in 0..n_seeds {
        let n_seqs = 1 + seed as usize * 3;
        let kv_type = [KvType::Bf16, KvType::Int8][seed as usize / 3 % 2];
        let mut alone = open(options(4, 64, kv_type, KvMemory::Auto));
        let mut shared = open(options(
            n_seqs,
            1 + 7 * seed as usize % 40,
            kv_type,
            memory[seed as usize % 3],
        ));
        let seen = check(seed, n_requests, &mut alone, &mut shared);
        println!("seed {seed}: {seen:?}");
        set_back += seen.set_back;
    }
    println!("{set_back} times somebody was set back");
    assert!(is_checked || set_back > 0);
}
