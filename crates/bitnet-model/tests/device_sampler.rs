//! The sampling kernels, run in the emulator, choose the tokens that the host's sampler chooses.

use bitnet_kernels::emulator::Emulator;
use bitnet_kernels::sample::{
    CHUNK, DAMAGED, DrawToken, FORBIDDEN, SelectKeys, SelectLogits, Settings, keep,
};
use bitnet_layout::draw::uniform;
use bitnet_model::{Sampler, Sampling};

const HISTORY: usize = 8;

/// Logits between -8 and 8, on a coarse grid so that there are equals.
fn logits(vocab: usize, seed: u64) -> Vec<f32> {
    (0..vocab as u64)
        .map(|i| ((uniform(seed, i) * 64.0).floor() / 4.0 - 8.0) as f32)
        .collect()
}

fn settings(sampling: &Sampling) -> Settings {
    Settings {
        temperature: sampling.temperature,
        top_k: sampling.top_k as u32,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repeat_penalty: sampling.repeat_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        last_n: sampling.repeat_last_n as u32,
        seed: sampling.seed,
    }
}

/// Tokens that the kernels choose for these logits of every row, step after step; `recent` counts every token as recent
/// this often.
fn device_tokens(
    seed: u64,
    sampling: &[Sampling],
    logits: &[Vec<f32>],
    steps: usize,
    recent: u32,
) -> Vec<Vec<u32>> {
    let rows = sampling.len();
    let vocab = logits[0].len();
    let kept = sampling
        .iter()
        .map(|s| s.top_k as u32)
        .max()
        .and_then(keep)
        .unwrap();
    let mut emulator = Emulator::new(seed);
    let words: Vec<u32> = sampling.iter().flat_map(|s| settings(s).to_words()).collect();
    let settings = emulator.constant(&words);
    let counts = emulator.buffer(&vec![recent; rows * vocab]);
    let ring_len = steps.next_power_of_two();
    let draw = DrawToken {
        keys: bitnet_kernels::Global::new(0),
        settings,
        counts,
        history: emulator.buffer(&vec![0; rows * HISTORY]),
        progress: emulator.buffer(&vec![0; rows * 2]),
        positions: emulator.buffer(&vec![10; rows]),
        tokens: emulator.buffer(&vec![77; rows]),
        steps: emulator.buffer(&vec![ring_len as u32; rows]),
        ring: emulator.buffer(&vec![0; rows * ring_len]),
        vocab: vocab as u32,
        keep: kept,
        history_len: HISTORY as u32,
        ring_len: ring_len as u32,
        ring_rows: rows as u32,
    };
    for _ in 0..steps {
        let mut blocks = (vocab as u32).div_ceil(CHUNK);
        let mut keys = emulator.uninit(rows * (blocks * kept) as usize);
        let select = SelectLogits {
            logits: emulator.constant(&logits.concat()),
            settings,
            counts,
            keys,
            vocab: vocab as u32,
            keep: kept,
        };
        emulator.launch(&select.launch(rows as u32), &select).unwrap();
        while blocks > 1 {
            let n = blocks * kept;
            blocks = n.div_ceil(CHUNK);
            let select = SelectKeys {
                from: keys,
                keys: emulator.uninit(rows * (blocks * kept) as usize),
                n,
                keep: kept,
            };
            emulator.launch(&select.launch(rows as u32), &select).unwrap();
            keys = select.keys;
        }
        emulator
            .launch(&DrawToken::launch(rows as u32), &DrawToken { keys, ..draw })
            .unwrap();
    }
    let read = |buffer| emulator.read(buffer).unwrap();
    assert_eq!(read(draw.positions), vec![10 + steps as u32; rows]);
    assert_eq!(read(draw.steps), vec![(ring_len + steps) as u32; rows]);
    let ring = read(draw.ring);
    let tokens = read(draw.tokens);
    let row = |row: usize| -> Vec<u32> {
        let words: Vec<u32> = (0..steps).map(|step| ring[step * rows + row]).collect();
        // The token to embed is the last that was one.
        let mut tokens_of = words.iter().filter(|&&word| word <= vocab as u32);
        assert_eq!(tokens[row], tokens_of.next_back().map_or(77, |word| word - 1));
        words
    };
    (0..rows).map(row).collect()
}

fn host_tokens(sampling: &Sampling, rows: &[&Vec<f32>]) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling.clone()).unwrap();
    let choose = |logits: &&Vec<f32>| {
        let token = sampler.sample(logits).unwrap();
        sampler.accept(token);
        token
    };
    rows.iter().map(choose).collect()
}

#[test]
fn equals_the_host() {
    let plain = Sampling {
        top_k: 40,
        top_p: 1.0,
        min_p: 0.0,
        temperature: 1.0,
        repeat_last_n: 0,
        seed: 7,
        ..Sampling::default()
    };
    let sampling = [
        Sampling::greedy(),
        plain.clone(),
        Sampling {
            top_k: 1,
            ..plain.clone()
        },
        Sampling {
            top_p: 0.6,
            temperature: 0.7,
            seed: u64::MAX - 3,
            ..plain.clone()
        },
        Sampling {
            min_p: 0.3,
            temperature: 1.7,
            ..plain.clone()
        },
        Sampling {
            top_k: 3,
            top_p: 0.9,
            min_p: 0.05,
            ..plain.clone()
        },
        Sampling {
            repeat_penalty: 1.3,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repeat_last_n: 3,
            ..plain.clone()
        },
        Sampling {
            temperature: 0.0,
            repeat_penalty: 2.0,
            repeat_last_n: 5,
            ..plain
        },
    ];
    // One chunk, one off it, and a vocabulary of several lists.
    for (vocab, n_steps) in [(50, 7), (CHUNK as usize + 1, 2)] {
        // The same logits again and again, so that penalties matter; every row its own.
        let logits: Vec<Vec<f32>> = (0..sampling.len() as u64).map(|row| logits(vocab, row)).collect();
        let device = device_tokens(vocab as u64, &sampling, &logits, n_steps, 0);
        for (row, sampling) in sampling.iter().enumerate() {
            let host = host_tokens(sampling, &vec![&logits[row]; n_steps]);
            let host: Vec<u32> = host.iter().map(|token| token + 1).collect();
            assert_eq!(device[row], host, "row {row} of {vocab}");
        }
    }
}

#[test]
fn says_when_there_is_no_token() {
    let greedy = Sampling {
        top_k: 2,
        ..Sampling::greedy()
    };
    let drawn = Sampling {
        temperature: 1.0,
        ..greedy.clone()
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = logits(50, 1);
        row[20] = value;
        let tokens = device_tokens(1, &[greedy.clone(), drawn.clone()], &[row.clone(), row], 1, 0);
        assert_eq!(tokens, [[DAMAGED], [DAMAGED]], "{value}");
    }
    let forbid = |sampling: &Sampling| Sampling {
        presence_penalty: f32::MAX,
        frequency_penalty: f32::MAX,
        repeat_last_n: 3,
        ..sampling.clone()
    };
    let row = logits(50, 1);
    let tokens = device_tokens(1, &[forbid(&greedy), forbid(&drawn)], &[row.clone(), row], 1, 1);
    assert_eq!(tokens, [[FORBIDDEN], [FORBIDDEN]]);
}
