//! A whole model of any size on the GPU beside the CPU: the folder that `BITNET_GPU_MODEL` names. Returns early, saying so,
//! where there is none or no GPU.
#![cfg(feature = "cuda")]

use std::ops::ControlFlow;

use bitnet_model::{
    Checkpoint, CpuBackend, CpuOptions, CudaBackend, CudaOptions, KvMemory, KvType, LmHead, Sampler,
    Sampling, Session, Want, WeightForm, WeightSource,
};

const PROMPT: usize = 64;
const TOKENS: usize = 256;
const CONTEXT: usize = 512;
/// Sequences of the batch: more than the kernels for few columns take.
const BATCH: usize = 11;

/// Greedy tokens of every sequence from the prompt's last token.
fn decode(session: &mut Session<'_>, last: u32, n_seqs: usize) -> Vec<Vec<u32>> {
    let first: Vec<(usize, u32)> = (0..n_seqs).map(|seq| (seq, last)).collect();
    let samplers = vec![Sampler::new(Sampling::greedy()).unwrap(); n_seqs];
    let mut rows = vec![Vec::new(); n_seqs];
    let take = |ids: &[u32]| {
        rows.iter_mut().zip(ids).for_each(|(row, &id)| row.push(id));
        ControlFlow::Continue(())
    };
    (0..n_seqs).for_each(|seq| session.rewind(seq, PROMPT - 1));
    assert!(session.decode(&first, &samplers, TOKENS, take).unwrap());
    rows
}

fn arg_max(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    let Some(folder) = std::env::var_os("BITNET_GPU_MODEL") else {
        println!("skipped: BITNET_GPU_MODEL names no model");
        return;
    };
    if let Err(error) = bitnet_model::cuda_probe(0) {
        let is_required = std::env::var("BITNET_GPU").as_deref() == Ok("required");
        assert!(!is_required, "{error}");
        println!("skipped: {error}");
        return;
    }
    let checkpoint = Checkpoint::open(std::path::PathBuf::from(folder)).unwrap();
    let vocab = checkpoint.config().vocab;
    let options = CudaOptions {
        device: 0,
        context: CONTEXT,
        n_seqs: BATCH,
        kv_type: KvType::Bf16,
        kv_memory: KvMemory::Auto,
        max_batch: 512,
        lm_head: LmHead::Stored,
        weights: WeightForm::Ternary,
        sync: false,
    };
    let mut gpu = CudaBackend::new(&checkpoint, options).unwrap();
    let prompt: Vec<u32> = (0..PROMPT).map(|i| ((i * 7919 + 13) % vocab) as u32).collect();
    let last = prompt[PROMPT - 1];
    let before = &prompt[..PROMPT - 1];
    let mut session = Session::new(&mut gpu);
    // The prompt at once, cut, and token by token.
    for seq in 0..BATCH {
        for part in before.chunks([PROMPT, 1, 7, 20][seq % 4]) {
            session.step(&[(seq, part)], Want::Nothing).unwrap();
        }
    }
    let tokens = decode(&mut session, last, 1).swap_remove(0);
    assert_eq!(decode(&mut session, last, 1)[0], tokens, "another run");
    for (seq, row) in decode(&mut session, last, BATCH).iter().enumerate() {
        assert_eq!(*row, tokens, "sequence {seq} of {BATCH}");
    }

    // The GPU's text, computed by both: where the CPU would have chosen another token, it was a matter of noise.
    let text = [&prompt[..], &tokens[..TOKENS - 1]].concat();
    let runs = [(0, &text[..])];
    let rows: Vec<usize> = (PROMPT - 1..text.len()).collect();
    session.rewind(0, 0);
    let on_gpu = session.step(&runs, Want::Logits(&rows)).unwrap().to_vec();
    drop(gpu);
    let options = CpuOptions {
        context: CONTEXT,
        max_batch: CONTEXT,
        ..CpuOptions::default()
    };
    let mut cpu = CpuBackend::new(&checkpoint, options).unwrap();
    let mut session = Session::new(&mut cpu);
    let on_cpu = session.step(&runs, Want::Logits(&rows)).unwrap();
    let squares = |of: &dyn Fn(f32, f32) -> f64| -> f64 {
        let sum: f64 = on_gpu.iter().zip(on_cpu).map(|(&a, &b)| of(a, b).powi(2)).sum();
        (sum / on_cpu.len() as f64).sqrt()
    };
    let noise = squares(&|a, b| f64::from(a - b));
    let size = squares(&|_, b| f64::from(b));
    let mut n_same = 0;
    let mut largest = 0.0f64;
    for (row, (logits, &token)) in on_cpu.chunks_exact(vocab).zip(&tokens).enumerate() {
        assert_eq!(
            arg_max(&on_gpu[row * vocab..][..vocab]),
            token as usize,
            "token {row} decoded and computed with the text"
        );
        let best = arg_max(logits);
        n_same += usize::from(best == token as usize);
        largest = largest.max(f64::from(logits[best] - logits[token as usize]) / noise);
    }
    println!(
        "{n_same} of {TOKENS} tokens are the CPU's; logits differ by {noise:.2e} (rms) of {size:.2e}; the largest margin that was \
         overturned is {largest:.2} times that"
    );
    // A last bit moves an activation to the next of its 8-bit codes, and random nets amplify that, layer after layer.
    assert!(noise < 0.3 * size, "logits differ by {noise} of {size}");
    // The difference of two logits has noise of 1.4 times that; six sigma of it.
    assert!(
        largest < 8.5,
        "a token differs although its margin is {largest} times the noise"
    );
}
