//! Several prompts side by side give what each gives alone, whether host or device chooses the tokens.

mod prompts;

use std::ops::ControlFlow;

use bitnet_model::{
    Backend, Checkpoint, Config, CpuBackend, CpuOptions, Event, FinishReason, GenerateOptions, Generation,
    Generator, Prompt, Result, Sampler, Sampling, Tap, Token,
};
use prompts::{folder, ids};

const CONTEXT: usize = 64;

/// A CPU that decodes as a device does: without the host, and some tokens further than it is asked to.
struct Device {
    cpu: CpuBackend,
    /// Most sequences that it decodes.
    width: usize,
}

impl Backend for Device {
    fn config(&self) -> &Config {
        self.cpu.config()
    }
    fn name(&self) -> String {
        self.cpu.name()
    }
    fn n_seqs(&self) -> usize {
        self.cpu.n_seqs()
    }
    fn context(&self) -> usize {
        self.cpu.context()
    }
    fn max_batch(&self) -> usize {
        self.cpu.max_batch()
    }
    fn memory_bytes(&self) -> u64 {
        self.cpu.memory_bytes()
    }
    fn embed(&mut self, batch: &[Token]) -> Result<()> {
        self.cpu.embed(batch)
    }
    fn qkv(&mut self, layer: usize) -> Result<()> {
        self.cpu.qkv(layer)
    }
    fn attention(&mut self, layer: usize) -> Result<()> {
        self.cpu.attention(layer)
    }
    fn out_proj(&mut self, layer: usize) -> Result<()> {
        self.cpu.out_proj(layer)
    }
    fn up_gate(&mut self, layer: usize) -> Result<()> {
        self.cpu.up_gate(layer)
    }
    fn down(&mut self, layer: usize) -> Result<()> {
        self.cpu.down(layer)
    }
    fn logits(&mut self, rows: &[usize]) -> Result<&[f32]> {
        self.cpu.logits(rows)
    }
    fn read(&mut self, tap: Tap) -> Result<Option<Vec<f32>>> {
        self.cpu.read(tap)
    }
    fn decode(
        &mut self,
        first: &[Token],
        samplers: &mut [Sampler],
        n: usize,
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<bool> {
        if first.len() > self.width {
            return Ok(false);
        }
        let vocab = self.config().vocab;
        let rows: Vec<usize> = (0..first.len()).collect();
        let mut device = samplers.to_vec();
        let mut batch = first.to_vec();
        let mut flow = ControlFlow::Continue(());
        let mut ahead = 2;
        for _ in 0..n {
            let logits = self.step(&batch, &rows)?.to_vec();
            for (row, logits) in logits.chunks_exact(vocab).enumerate() {
                batch[row].id = device[row].sample(logits)?;
                batch[row].pos += 1;
                device[row].accept(batch[row].id);
            }
            if flow.is_break() {
                if ahead == 0 {
                    break;
                }
                ahead -= 1;
                continue;
            }
            let ids: Vec<u32> = batch.iter().map(|token| token.id).collect();
            for (sampler, &id) in samplers.iter_mut().zip(&ids) {
                sampler.chosen(id);
            }
            flow = on_tokens(&ids);
        }
        Ok(true)
    }
}

fn device(width: usize) -> Device {
    let checkpoint = Checkpoint::open(folder("bitnet-bf16")).unwrap();
    let options = CpuOptions {
        context: CONTEXT,
        n_seqs: 4,
        // On the host, fewer than the sequences: a step of all of them takes two batches.
        max_batch: 3 + width.min(1),
        threads: Some(1),
        ..CpuOptions::default()
    };
    Device {
        cpu: CpuBackend::new(&checkpoint, options).unwrap(),
        width,
    }
}

fn texts() -> Vec<Vec<u32>> {
    let long = ids(&folder("bitnet-bf16"), "long");
    [3, 20, 1, CONTEXT - 5].map(|n| long[..n].to_vec()).to_vec()
}

fn options() -> GenerateOptions {
    GenerateOptions {
        sampling: Sampling {
            repeat_penalty: 1.3,
            repeat_last_n: 6,
            temperature: 1.1,
            seed: 5,
            ..Sampling::default()
        },
        max_tokens: Some(12),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

fn parts(all: Vec<Generation>) -> Vec<(Vec<u32>, Vec<u32>, FinishReason)> {
    let parts = |g: Generation| (g.prompt_ids, g.ids, g.finish_reason);
    all.into_iter().map(parts).collect()
}

#[test]
fn each_gets_what_it_gets_alone() {
    let texts = texts();
    let prompts: Vec<Prompt<'_>> = texts.iter().map(|ids| Prompt::Ids(ids)).collect();
    let options = options();
    let mut alone = Vec::new();
    for &prompt in &prompts {
        let mut backend = device(0);
        let mut generator = Generator::new(&mut backend, None, None);
        alone.push(
            generator
                .generate(prompt, &options, |_| ControlFlow::Continue(()))
                .unwrap(),
        );
    }
    let alone = parts(alone);
    // The last one's context is full after 6: the last token needs no place.
    assert_eq!((alone[3].1.len(), alone[3].2), (6, FinishReason::Context));
    assert_eq!((alone[0].1.len(), alone[0].2), (12, FinishReason::Length));
    for width in [0, 1, 3, 4] {
        let mut backend = device(width);
        let mut generator = Generator::new(&mut backend, None, None);
        // Again with what is cached, and with fewer.
        for n in [4, 4, 2] {
            let mut seen = vec![Vec::new(); n];
            let all = generator.generate_many(&prompts[..n], &options, |i, event| {
                if let Event::Token { id, .. } = event {
                    seen[i].push(id);
                }
                ControlFlow::Continue(())
            });
            let all = parts(all.unwrap());
            assert_eq!(all, alone[..n], "{width} on the device");
            let ids: Vec<_> = all.into_iter().map(|(_, ids, _)| ids).collect();
            assert_eq!(seen, ids);
        }
    }
}

#[test]
fn the_callback_ends_one_of_them() {
    let texts = texts();
    let prompts: Vec<Prompt<'_>> = texts[..3].iter().map(|ids| Prompt::Ids(ids)).collect();
    for width in [0, 4] {
        let mut backend = device(width);
        let mut generator = Generator::new(&mut backend, None, None);
        let mut left = 4;
        let all = generator.generate_many(&prompts, &options(), |i, event| {
            let is_over = match event {
                Event::Token { .. } if i == 1 => {
                    left -= 1;
                    left == 0
                }
                Event::Prefill { .. } => i == 2,
                _ => false,
            };
            if is_over {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let ends: Vec<_> = all
            .unwrap()
            .iter()
            .map(|g| (g.ids.len(), g.finish_reason))
            .collect();
        let cancelled = FinishReason::Cancelled;
        assert_eq!(
            ends,
            [(12, FinishReason::Length), (4, cancelled), (0, cancelled)],
            "{width}"
        );
    }
}

#[test]
fn more_prompts_than_sequences_are_refused() {
    let mut backend = device(4);
    let mut generator = Generator::new(&mut backend, None, None);
    let prompts = [Prompt::Ids(&[1]); 5];
    let error = generator.generate_many(&prompts, &options(), |_, _| ControlFlow::Continue(()));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("5 prompts at once") && error.contains("loaded for 4"),
        "{error}"
    );
}
