//! Several prompts side by side give what each gives alone, whether host or device chooses the tokens.

mod schedules;

use std::ops::ControlFlow;

use bitnet_model::{Event, FinishReason, GenerateOptions, Generation, Generator, Prompt, Sampling};
use schedules::toy::Toy;

/// Positions of a sequence, as the back end has them.
const CONTEXT: usize = 48;

/// A back end with as many seats for sequences that it decodes by itself; on the host a step takes fewer tokens than there are
/// sequences.
fn device(seats: usize) -> Toy {
    Toy::new(4, 100, 3 + seats.min(1), seats)
}

fn texts() -> Vec<Vec<u32>> {
    let text = |n: usize| (0..n as u32).map(|i| (i * i + 9) % 60).collect();
    [3, 20, 1, CONTEXT - 5].map(text).to_vec()
}

fn options() -> GenerateOptions {
    GenerateOptions {
        sampling: Sampling {
            repeat_penalty: 1.3,
            repeat_last_n: 6,
            temperature: 0.9,
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
    for seats in [0, 1, 3, 4] {
        let mut backend = device(seats);
        let mut generator = Generator::new(&mut backend, None, None);
        // Again with what is cached, with fewer, and with guesses.
        for (n, draft_max) in [(4, 0), (4, 0), (2, 0), (4, 5)] {
            let mut seen = vec![Vec::new(); n];
            let options = GenerateOptions {
                draft_max,
                ..options.clone()
            };
            let all = generator.generate_many(&prompts[..n], &options, |i, event| {
                if let Event::Token { id, .. } = event {
                    seen[i].push(id);
                }
                ControlFlow::Continue(())
            });
            let all = parts(all.unwrap());
            assert_eq!(all, alone[..n], "{seats} on the device");
            let ids: Vec<_> = all.into_iter().map(|(_, ids, _)| ids).collect();
            assert_eq!(seen, ids);
        }
    }
}

#[test]
fn the_callback_ends_one_of_them() {
    let texts = texts();
    let prompts: Vec<Prompt<'_>> = texts[..3].iter().map(|ids| Prompt::Ids(ids)).collect();
    for seats in [0, 4] {
        let mut backend = device(seats);
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
            "{seats}"
        );
    }
}

#[test]
fn more_prompts_than_sequences_wait_for_others_to_end() {
    let options = options();
    let prompts: Vec<[u32; 2]> = (0..100).map(|i| [i % 50, i / 50]).collect();
    let prompts: Vec<Prompt<'_>> = prompts.iter().map(|ids| Prompt::Ids(ids)).collect();
    let mut backend = device(4);
    let mut generator = Generator::new(&mut backend, None, None);
    let all = generator.generate_many(&prompts, &options, |_, _| ControlFlow::Continue(()));
    let all = parts(all.unwrap());
    for i in [0, 63, 64, 99] {
        let mut backend = device(0);
        let mut generator = Generator::new(&mut backend, None, None);
        let alone = generator.generate_many(&prompts[i..=i], &options, |_, _| ControlFlow::Continue(()));
        assert_eq!(parts(alone.unwrap())[0], all[i]);
    }
}
