//! Several prompts side by side give what each gives alone, whether host or device chooses the tokens.

mod prompts;

use std::collections::VecDeque;
use std::ops::ControlFlow;

use bitnet_model::{
    Backend, Batch, Checkpoint, CpuBackend, CpuOptions, Decoder, Event, FinishReason, GenerateOptions,
    Generation, Generator, Pages, Prompt, Result, Run, Sampler, Sampling, Seq, Spec, Start, Token, Want,
};
use prompts::{folder, ids};

const CONTEXT: usize = 64;

/// A CPU that decodes as a device does: without the host, and some tokens further than are read. It computes those with
/// a cache of its own, from the tokens that the host's steps had.
struct Device {
    cpu: CpuBackend,
    other: CpuBackend,
    pages: Pages,
    /// By page, which holds a whole sequence, the tokens in it.
    texts: Vec<Vec<u32>>,
    seats: Vec<Option<Seat>>,
    ready: VecDeque<Vec<(usize, u32)>>,
}

struct Seat {
    next: Token,
    page: usize,
    seq: Seq,
    sampler: Sampler,
}

impl Backend for Device {
    fn spec(&self) -> &Spec {
        self.cpu.spec()
    }
    fn step(&mut self, batch: &Batch, want: Want<'_>) -> Result<&[f32]> {
        for (token, &row) in batch.tokens().iter().zip(batch.rows()) {
            let text = &mut self.texts[batch.table(row as usize)[0] as usize];
            text.truncate(token.pos as usize);
            text.push(token.id);
        }
        self.cpu.step(batch, want)
    }
    fn decoder(&mut self) -> Option<&mut dyn Decoder> {
        if self.seats.is_empty() { None } else { Some(self) }
    }
}

impl Decoder for Device {
    fn seats(&self) -> usize {
        self.seats.len()
    }
    fn lookahead(&self) -> usize {
        3
    }
    fn seat(&mut self, seat: usize, start: Start<'_>, sampler: &Sampler) -> Result<bool> {
        let page = start.pages()[0] as usize;
        let text = &mut self.texts[page];
        text.truncate(start.token().pos as usize);
        assert_eq!(text.len(), start.token().pos as usize);
        let (seq, _) = self.pages.open(&[], 0);
        for ids in text.chunks(3) {
            let batch = self.pages.batch(&[Run { seq: &seq, ids }])?;
            self.other.step(&batch, Want::Nothing)?;
        }
        assert!(self.seats[seat].is_none());
        self.seats[seat] = Some(Seat {
            next: start.token(),
            page,
            seq,
            sampler: sampler.clone(),
        });
        Ok(true)
    }
    fn pages(&mut self, _: usize, _: &[u32]) -> Result<()> {
        Ok(())
    }
    fn leave(&mut self, seat: usize) {
        if let Some(taken) = self.seats[seat].take() {
            self.pages.close(taken.seq, false);
        }
        for step in &mut self.ready {
            step.retain(|&(of, _)| of != seat);
        }
    }
    fn ahead(&mut self, steps: usize) -> Result<()> {
        for _ in 0..steps {
            let mut step = Vec::new();
            for (seat, taken) in self.seats.iter_mut().enumerate() {
                let Some(Seat {
                    next,
                    page,
                    seq,
                    sampler,
                }) = taken
                else {
                    continue;
                };
                self.texts[*page].push(next.id);
                let batch = self.pages.batch(&[Run { seq, ids: &[next.id] }])?;
                assert_eq!(batch.tokens(), [*next]);
                next.id = sampler.sample(self.other.step(&batch, Want::Logits(&[0]))?)?;
                next.pos += 1;
                sampler.accept(next.id);
                step.push((seat, next.id));
            }
            self.ready.push_back(step);
        }
        Ok(())
    }
    fn next(&mut self, out: &mut Vec<(usize, u32)>) -> Result<()> {
        out.extend(self.ready.pop_front().unwrap());
        Ok(())
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
    let cpu = CpuBackend::new(&checkpoint, options.clone()).unwrap();
    Device {
        pages: Pages::new(cpu.spec()),
        texts: vec![Vec::new(); options.n_seqs],
        cpu,
        other: CpuBackend::new(&checkpoint, options).unwrap(),
        seats: (0..width).map(|_| None).collect(),
        ready: VecDeque::new(),
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
