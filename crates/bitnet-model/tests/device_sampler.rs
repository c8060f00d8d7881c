//! The sampling kernels, run in the emulator, choose the tokens that the host's sampler chooses.

use bitnet_kernels::emulator::Emulator;
use bitnet_kernels::sample::{
    BestKey, CHUNK, CutWhole, DAMAGED, DrawToken, DrawWhole, FORBIDDEN, SelectKeys, SelectLogits, Settings,
    WeighWhole, Whole, keep,
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

fn settings(sampling: &Sampling, vocab: usize) -> Settings {
    let keeps_all = sampling.top_k >= vocab && sampling.temperature > 0.0;
    Settings {
        temperature: sampling.temperature,
        top_k: if keeps_all { 0 } else { sampling.top_k as u32 },
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
    let all: Vec<Settings> = sampling.iter().map(|s| settings(s, vocab)).collect();
    let whole = all.iter().any(Settings::is_whole);
    let sorted = all.iter().filter(|s| !s.is_whole());
    // Greedy rows alone are sorted where nothing else needs it only if nothing is weighed.
    let kept = sorted
        .filter(|s| !whole || s.temperature > 0.0)
        .map(|s| if s.temperature == 0.0 { 1 } else { s.top_k })
        .max()
        .map_or(0, |top_k| keep(top_k).unwrap());
    let chunks = vocab.div_ceil(CHUNK as usize);
    let mut emulator = Emulator::new(seed);
    let words: Vec<u32> = all.iter().flat_map(Settings::to_words).collect();
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
    let mut draw_whole = DrawWhole {
        logits: emulator.constant(&logits.concat()),
        state: emulator.buffer(&vec![0; rows * Whole::WORDS]),
        sums: emulator.uninit(rows * chunks * 2),
        settings,
        counts,
        history: draw.history,
        progress: draw.progress,
        positions: draw.positions,
        tokens: draw.tokens,
        steps: draw.steps,
        ring: draw.ring,
        vocab: vocab as u32,
        history_len: HISTORY as u32,
        ring_len: ring_len as u32,
        ring_rows: rows as u32,
        all: (kept == 0).into(),
    };
    let bins = emulator.buffer(&vec![0; rows * Whole::BINS]);
    let done = emulator.buffer(&vec![0; rows]);
    for _ in 0..steps {
        if whole {
            // Every step computes them anew.
            draw_whole.logits = emulator.buffer(&logits.concat());
            let best = BestKey {
                logits: draw_whole.logits,
                settings,
                counts,
                state: draw_whole.state,
                vocab: vocab as u32,
                all: draw_whole.all,
            };
            emulator.launch(&best.launch(rows as u32), &best).unwrap();
            for (by_mass, pass) in
                (0..2).flat_map(|by_mass| (0..Whole::PASSES).map(move |pass| (by_mass, pass)))
            {
                let cut = CutWhole {
                    logits: draw_whole.logits,
                    settings,
                    state: draw_whole.state,
                    bins,
                    done,
                    vocab: vocab as u32,
                    pass,
                    by_mass,
                };
                emulator.launch(&cut.launch(rows as u32), &cut).unwrap();
            }
            let weigh = WeighWhole {
                logits: draw_whole.logits,
                settings,
                state: draw_whole.state,
                sums: draw_whole.sums,
                vocab: vocab as u32,
            };
            emulator.launch(&weigh.launch(rows as u32), &weigh).unwrap();
            emulator
                .launch(&DrawWhole::launch(rows as u32), &draw_whole)
                .unwrap();
        }
        if kept == 0 {
            continue;
        }
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
                settings,
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
    // The next step finds what this one found.
    assert_eq!(
        emulator.read(draw_whole.state).unwrap(),
        vec![0; rows * Whole::WORDS]
    );
    assert_eq!(emulator.read(bins).unwrap(), vec![0; rows * Whole::BINS]);
    assert_eq!(emulator.read(done).unwrap(), vec![0; rows]);
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

/// Draws without sorting, of every kind.
fn whole_samplings() -> Vec<Sampling> {
    let plain = Sampling {
        repeat_last_n: 0,
        seed: 3,
        ..Sampling::plain()
    };
    vec![
        plain.clone(),
        Sampling {
            top_p: 0.9,
            temperature: 1.3,
            ..plain.clone()
        },
        Sampling {
            top_p: 0.0,
            ..plain.clone()
        },
        Sampling {
            min_p: 0.02,
            temperature: 2.5,
            seed: u64::MAX,
            ..plain.clone()
        },
        Sampling {
            top_k: 300,
            ..plain.clone()
        },
        Sampling {
            top_k: 1000,
            top_p: 0.8,
            min_p: 0.001,
            temperature: 0.6,
            ..plain.clone()
        },
        Sampling {
            top_p: 0.95,
            repeat_penalty: 1.3,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repeat_last_n: 3,
            ..plain
        },
    ]
}

fn check_equal(seed: u64, sampling: &[Sampling], logits: &[Vec<f32>], n_steps: usize) {
    let device = device_tokens(seed, sampling, logits, n_steps, 0);
    for (row, sampling) in sampling.iter().enumerate() {
        let host = host_tokens(sampling, &vec![&logits[row]; n_steps]);
        let host: Vec<u32> = host.iter().map(|token| token + 1).collect();
        assert_eq!(
            device[row],
            host,
            "row {row} of {}: {sampling:?}",
            logits[row].len()
        );
    }
}

/// With greedy rows and such that are sorted among them, and without.
#[test]
fn whole_vocabularies_equal_the_host() {
    let mut sampling = whole_samplings();
    sampling.push(Sampling::greedy());
    for (vocab, n_steps) in [(1, 2), (3, 4), (1500, 2), (CHUNK as usize + 1, 1), (5000, 1)] {
        let logits: Vec<Vec<f32>> = (0..sampling.len() as u64).map(|row| logits(vocab, row)).collect();
        check_equal(vocab as u64, &sampling, &logits, n_steps);
    }
    sampling.insert(2, Sampling::default());
    let logits: Vec<Vec<f32>> = (0..sampling.len() as u64)
        .map(|row| logits(CHUNK as usize + 70, row))
        .collect();
    check_equal(5, &sampling, &logits, 2);
}

/// Equals across blocks, one token that outweighs all, both zeros, logits that are far apart, and the largest numbers.
#[test]
fn whole_vocabularies_of_unusual_logits_equal_the_host() {
    let vocab = CHUNK as usize + 500;
    let of = |f: &dyn Fn(usize) -> f32| (0..vocab).map(f).collect::<Vec<f32>>();
    let rows = [
        of(&|_| 1.25),
        of(&|i| if i == 2100 { 200.0 } else { -3.0 }),
        of(&|i| if i % 3 == 0 { -0.0 } else { 0.0 }),
        of(&|i| -(i as f32) * 40.0),
        of(&|i| if i % 2 == 0 { f32::MIN } else { f32::MAX }),
        of(&|i| (i % 5) as f32),
    ];
    let all = whole_samplings();
    for (i, row) in rows.iter().enumerate() {
        // Two kinds of each, so that all are seen.
        let sampling = [1, 0, 4, 5].map(|kind| all[(kind + i) % all.len()].clone());
        check_equal(i as u64, &sampling, &vec![row.clone(); sampling.len()], 1);
    }
}

#[test]
fn whole_vocabularies_of_any_size_and_settings_equal_the_host() {
    for seed in 0..24 {
        let pick = |i: u64, n: usize| (uniform(500 + seed, i) * n as f64) as usize;
        let vocab = 1 + pick(1, 900);
        let sampling = Sampling {
            temperature: [0.3, 1.0, 4.0][pick(2, 3)],
            top_k: [0, 257, 400, 900][pick(3, 4)],
            top_p: [1.0, 0.999, 0.5, 0.01][pick(4, 4)],
            min_p: [0.0, 0.0, 0.1, 1.0][pick(5, 4)],
            frequency_penalty: [0.0, 0.7][pick(6, 2)],
            repeat_last_n: 3,
            seed,
            ..Sampling::plain()
        };
        check_equal(seed, &[sampling], &[logits(vocab, seed)], 2);
    }
}

#[test]
fn whole_vocabularies_say_when_there_is_no_token() {
    let plain = Sampling {
        repeat_last_n: 0,
        ..Sampling::plain()
    };
    let cut = Sampling {
        top_p: 0.5,
        ..plain.clone()
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = logits(50, 1);
        row[20] = value;
        let tokens = device_tokens(1, &[plain.clone(), cut.clone()], &[row.clone(), row], 1, 0);
        assert_eq!(tokens, [[DAMAGED], [DAMAGED]], "{value}");
    }
    // A token that was drawn is never drawn again, until none is left.
    let once = |sampling: &Sampling| Sampling {
        presence_penalty: f32::MAX,
        frequency_penalty: f32::MAX,
        repeat_last_n: 7,
        ..sampling.clone()
    };
    let row = vec![0.5, 1.0, 0.75];
    for mut tokens in device_tokens(1, &[once(&plain), once(&cut)], &[row.clone(), row], 4, 0) {
        assert_eq!(tokens.pop(), Some(FORBIDDEN));
        tokens.sort_unstable();
        assert_eq!(tokens, [1, 2, 3]);
    }
}
