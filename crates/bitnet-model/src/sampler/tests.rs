use super::*;
use proptest::prelude::*;

fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
    let mut sampling = Sampling {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        temperature: 1.0,
        ..Sampling::default()
    };
    change(&mut sampling);
    Sampler::new(sampling).unwrap()
}

/// How often each of `logits` is drawn in `n` draws.
fn counts(sampler: &mut Sampler, logits: &[f32], n: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(logits).unwrap() as usize] += 1;
    }
    counts
}

/// Logits as pseudorandom as the draws.
fn logits(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| (uniform(seed, i) * 20.0 - 10.0) as f32)
        .collect()
}

/// Text made with a seed must stay the same from release to release.
#[test]
fn draws_of_a_seed_never_change() {
    let logits = logits(1000, 7);
    let draw = |seed| {
        let mut sampler = Sampler::new(Sampling {
            seed,
            ..Sampling::default()
        })
        .unwrap();
        (0..8)
            .map(|_| sampler.sample(&logits).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_eq!(draw(1), [289, 494, 638, 840, 474, 654, 193, 778]);
    assert_eq!(draw(2), [610, 72, 807, 652, 228, 248, 27, 840]);
}

/// The same for draws from all tokens, which devices make too.
#[test]
fn plain_draws_of_a_seed_never_change() {
    let logits = logits(1000, 7);
    let draw = |change: fn(&mut Sampling)| {
        let mut sampler = sampler(change);
        (0..8)
            .map(|_| sampler.sample(&logits).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(|s| s.seed = 1), [791, 296, 866, 27, 664, 182, 660, 496]);
    assert_eq!(
        draw(|s| (s.seed, s.top_p) = (1, 0.5)),
        [789, 335, 840, 27, 654, 193, 654, 494]
    );
    assert_eq!(
        draw(|s| (s.seed, s.top_k) = (1, 300)),
        [791, 296, 866, 27, 664, 182, 660, 496]
    );
    assert_eq!(
        draw(|s| (s.seed, s.min_p, s.temperature) = (1, 0.1, 2.0)),
        [807, 295, 880, 27, 660, 193, 660, 501]
    );
}

#[test]
fn equals_are_cut_from_the_highest_id() {
    let ids = |change: fn(&mut Sampling)| {
        let counts = counts(&mut sampler(change), &[1.5; 600], 20_000);
        let drawn = counts.iter().filter(|&&n| n > 0).count();
        (drawn, counts.iter().rposition(|&n| n > 0).unwrap())
    };
    assert_eq!(ids(|_| ()), (600, 599));
    assert_eq!(ids(|s| s.top_k = 300), (300, 299));
    assert_eq!(ids(|s| s.top_p = 0.25), (150, 149));
    assert_eq!(ids(|s| (s.top_k, s.top_p) = (300, 0.5)), (150, 149));
    assert_eq!(ids(|s| s.top_p = 0.0), (1, 0));
    assert_eq!(ids(|s| s.min_p = 1.0), (600, 599));
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let mut sampler = Sampler::new(Sampling::greedy()).unwrap();
    assert_eq!(sampler.sample(&[0.5, 2.0, 2.0, -1.0]).unwrap(), 1);
}

#[test]
fn frequencies_follow_the_softmax() {
    let logits = [0.0f32, 1.0, 2.0, -1.0];
    for temperature in [0.5f32, 1.0, 2.0] {
        let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let n = 100_000;
        let counts = counts(&mut sampler(|s| s.temperature = temperature), &logits, n);
        for (count, weight) in counts.iter().zip(weights) {
            let p = weight / total;
            let deviation = (p * (1.0 - p) / n as f64).sqrt();
            assert!(
                (*count as f64 / n as f64 - p).abs() < 5.0 * deviation,
                "{counts:?}"
            );
        }
    }
}

#[test]
fn cuts_keep_what_they_say() {
    // Probabilities 0.643, 0.237, 0.087, 0.032.
    let logits = [1.0f32, 4.0, 3.0, 2.0];
    let kept = |change: fn(&mut Sampling)| {
        let counts = counts(&mut sampler(change), &logits, 2000);
        (0..4).filter(|&i| counts[i] > 0).collect::<Vec<_>>()
    };
    assert_eq!(kept(|s| s.top_k = 2), [1, 2]);
    assert_eq!(kept(|s| s.top_k = 9), [0, 1, 2, 3]);
    assert_eq!(kept(|s| s.top_p = 0.0), [1]);
    assert_eq!(kept(|s| s.top_p = 0.64), [1]);
    assert_eq!(kept(|s| s.top_p = 0.65), [1, 2]);
    assert_eq!(kept(|s| s.min_p = 0.3), [1, 2]);
    assert_eq!(kept(|s| s.min_p = 0.1), [1, 2, 3]);
    assert_eq!(kept(|s| s.logit_bias = vec![(1, f32::NEG_INFINITY)]), [0, 2, 3]);
    assert_eq!(kept(|s| (s.logit_bias, s.top_k) = (vec![(0, 10.0)], 1)), [0]);
    // The cuts come before the temperature: heat does not bring back what they removed.
    assert_eq!(kept(|s| (s.min_p, s.temperature) = (0.3, 100.0)), [1, 2]);
}

#[test]
fn penalties_look_at_the_recent_tokens_alone() {
    let logits = [1.0f32, 2.0, -1.0, 0.5];
    let after = |change: fn(&mut Sampling)| {
        let mut sampler = sampler(change);
        for id in [3, 1, 2, 1] {
            sampler.accept(id);
        }
        sampler.logits = logits.to_vec();
        sampler.penalize();
        sampler.logits
    };
    assert_eq!(after(|s| s.repeat_penalty = 2.0), [1.0, 1.0, -2.0, 0.25]);
    assert_eq!(after(|s| s.presence_penalty = 0.5), [1.0, 1.5, -1.5, 0.0]);
    assert_eq!(after(|s| s.frequency_penalty = 0.5), [1.0, 1.0, -1.5, 0.0]);
    assert_eq!(
        after(|s| (s.repeat_penalty, s.repeat_last_n) = (2.0, 2)),
        [1.0, 1.0, -2.0, 0.5]
    );
    assert_eq!(after(|s| (s.repeat_penalty, s.repeat_last_n) = (2.0, 0)), logits);
}

#[test]
fn unusable_numbers_are_errors() {
    let error = |logits: &[f32]| sampler(|_| ()).sample(logits).unwrap_err().to_string();
    assert!(error(&[0.0, f32::NAN]).contains("NaN as the logit of token 1"));
    assert!(error(&[f32::INFINITY, 0.0]).contains("inf as the logit of token 0"));
    for temperature in [0.0, 1.0] {
        let mut sampler =
            sampler(|s| (s.temperature, s.logit_bias) = (temperature, vec![(0, f32::NEG_INFINITY)]));
        assert!(
            sampler
                .sample(&[1.0])
                .unwrap_err()
                .to_string()
                .contains("every token is forbidden")
        );
        assert!(sampler.sample(&[]).is_err());
    }
    let mut outside = sampler(|s| s.logit_bias = vec![(4, 1.0)]);
    assert!(
        outside
            .sample(&[0.0; 4])
            .unwrap_err()
            .to_string()
            .contains("token 4")
    );
    let bad: [fn(&mut Sampling); 9] = [
        |s| s.temperature = f32::NAN,
        |s| s.temperature = -1.0,
        |s| s.top_p = 1.5,
        |s| s.min_p = -0.1,
        |s| s.repeat_penalty = 0.0,
        |s| s.presence_penalty = f32::INFINITY,
        |s| s.frequency_penalty = f32::NAN,
        |s| s.logit_bias = vec![(0, f32::NAN)],
        |s| s.bad_words = vec![vec![1], vec![]],
    ];
    for change in bad {
        let mut sampling = Sampling::default();
        change(&mut sampling);
        assert!(Sampler::new(sampling).is_err());
    }
}

/// As transformers' NoBadWordsLogitsProcessor and NoRepeatNGramLogitsProcessor: what a text may not go on with.
#[test]
fn bad_words_and_repeated_n_grams_are_forbidden() {
    let forbidden = |text: &[u32], change: &dyn Fn(&mut Sampling)| -> Vec<u32> {
        let mut sampler = sampler(change);
        assert!(sampler.sampling().has_token_rules() && !sampler.sampling().is_plain_greedy());
        text.iter().for_each(|&id| sampler.accept(id));
        sampler.logits = vec![0.0; 6];
        sampler.obey_rules();
        (0..6)
            .filter(|&id| sampler.logits[id as usize] == f32::NEG_INFINITY)
            .collect()
    };
    let words = |words: &'static [&'static [u32]]| {
        move |s: &mut Sampling| s.bad_words = words.iter().map(|word| word.to_vec()).collect()
    };
    assert_eq!(forbidden(&[], &words(&[&[5], &[9], &[1, 2]])), [5]);
    assert_eq!(
        forbidden(&[0, 1], &words(&[&[5], &[1, 2], &[0, 1, 3], &[4, 0, 1, 4]])),
        [2, 3, 5]
    );
    assert!(forbidden(&[1, 0], &words(&[&[1, 2]])).is_empty());
    let grams = |n: usize| move |s: &mut Sampling| s.no_repeat_ngram = n;
    assert_eq!(forbidden(&[0, 3, 0], &grams(1)), [0, 3]);
    assert_eq!(forbidden(&[1, 2, 1, 3, 1], &grams(2)), [2, 3]);
    assert_eq!(forbidden(&[1, 1, 1], &grams(2)), [1]);
    assert_eq!(forbidden(&[1, 2, 3, 1, 2], &grams(3)), [3]);
    assert!(forbidden(&[1, 2], &grams(4)).is_empty());
    assert!(forbidden(&[1, 2], &grams(usize::MAX)).is_empty());
}

#[test]
fn a_rule_holds_from_token_to_token() {
    let mut sampler = sampler(|s| (s.temperature, s.no_repeat_ngram) = (0.0, 1));
    let mut next = || {
        let id = sampler.sample(&[1.0, 3.0, 2.0])?;
        sampler.accept(id);
        Ok::<_, Error>(id)
    };
    assert_eq!([next().unwrap(), next().unwrap(), next().unwrap()], [1, 2, 0]);
    let error = next().unwrap_err().to_string();
    assert!(error.contains("every token is forbidden"), "{error}");
}

proptest! {
    #[test]
    fn repetitions_are_found_as_by_comparing_windows(text in prop::collection::vec(0u32..3, 0..40), n in 0usize..6) {
        let mut found = Vec::new();
        repeated(&text, n, |id| found.push(id));
        let expected: Vec<u32> = match n {
            0 => Vec::new(),
            n => text.windows(n).filter(|w| text.len() + 1 >= n && w[..n - 1] == text[text.len() + 1 - n..]).map(|w| w[n - 1]).collect(),
        };
        prop_assert_eq!(found, expected);
    }

    /// The heads that top-k and top-p select are those of a full sort.
    #[test]
    fn selection_equals_sorting(n in 1usize..3000, k in 1usize..300, p in 0.0f32..1.0, seed in 0u64..1000, steps in prop::bool::ANY) {
        let mut logits = logits(n, seed);
        if steps {
            logits.iter_mut().for_each(|l| *l = l.round());
        }
        let mut sorted = (0..).zip(&logits).map(|(id, &logit)| Candidate { id, logit }).collect::<Vec<_>>();
        sorted.sort_by(order);
        let ids = |c: &[Candidate]| c.iter().map(|c| c.id).collect::<Vec<_>>();

        let mut head = Vec::new();
        top_k(&logits, k, &mut head);
        prop_assert_eq!(ids(&head), ids(&sorted[..k.min(n)]));

        let mut weights = Vec::new();
        weigh(&head, sorted[0].logit, 1.0, &mut weights);
        let mut nucleus = head.clone();
        top_p(&mut nucleus, &weights, p);
        prop_assert_eq!(ids(&nucleus), ids(&head[..nucleus.len()]));
        let part = |n: usize| weights[..n].iter().sum::<f64>() / weights.iter().sum::<f64>();
        prop_assert!(part(nucleus.len()) >= f64::from(p) - 1e-12);
        prop_assert!(nucleus.len() == 1 || part(nucleus.len() - 1) < f64::from(p) + 1e-12);
    }

    /// A draw from more than is sorted is the one that a full sort gives, for every place in the mass.
    #[test]
    fn a_wide_draw_equals_one_from_a_full_sort(
        n in 300usize..3000, k in 257usize..3500, cuts in prop::bool::ANY, p in 0.0f32..1.2, min_p in -0.5f32..0.5,
        temperature in 0.1f32..3.0, seed in 0u64..1000, steps in prop::bool::ANY,
    ) {
        let mut sampler = sampler(|s| {
            (s.temperature, s.seed) = (temperature, seed);
            (s.top_p, s.min_p) = (p.min(1.0), min_p.max(0.0));
            s.top_k = if cuts { k } else { 0 };
        });
        let mut logits = logits(n, seed);
        if steps {
            logits.iter_mut().for_each(|l| *l = (*l / 4.0).round());
        }
        logits[7] = -0.0;
        sampler.sampling.logit_bias = vec![(seed as u32 % 50, f32::NEG_INFINITY)];
        for draw in 0..3 {
            let expected = {
                let mut logits = logits.clone();
                logits[seed as usize % 50] = f32::NEG_INFINITY;
                wide_draw(&logits, &sampler.sampling, draw)
            };
            prop_assert_eq!(sampler.sample(&logits).unwrap(), expected);
        }
    }
}

/// The same draw by sorting, and by adding up one after the other.
fn wide_draw(logits: &[f32], s: &Sampling, draw: u64) -> u32 {
    use bitnet_layout::draw::{mass, share};
    let mut kept = (0..)
        .zip(logits)
        .map(|(id, &logit)| Candidate { id, logit })
        .collect::<Vec<_>>();
    kept.sort_by(order);
    let max = kept[0].logit;
    if s.top_k > 0 {
        kept.truncate(s.top_k);
    }
    let of =
        |c: &Candidate, temperature: f32| u128::from(mass(share(c.logit, max, 1.0 / f64::from(temperature))));
    if s.top_p < 1.0 {
        let total: u128 = kept.iter().map(|c| of(c, 1.0)).sum();
        let mut head = 0;
        // In units of 2^-53, which `top_p` is a whole number of where it is 2^-29 or more.
        let reached = |head: u128| (head << 53) as f64 >= f64::from(s.top_p) * (total << 53) as f64;
        let end = kept.iter().position(|c| {
            head += of(c, 1.0);
            reached(head)
        });
        kept.truncate(end.unwrap() + 1);
    }
    kept.retain(|c| share(c.logit, max, 1.0) >= f64::from(s.min_p));
    kept.sort_by_key(|c| c.id);
    let total: u128 = kept.iter().map(|c| of(c, s.temperature)).sum();
    let place = (u128::from(random_bits(s.seed, draw)) * total) >> 53;
    let mut sum = 0;
    let drawn = kept.iter().find(|c| {
        sum += of(c, s.temperature);
        sum > place
    });
    drawn.unwrap().id
}

#[test]
fn log_probabilities_are_of_the_logits_after_bias_and_penalties() {
    let logits = [1.0f32, 3.0, 2.0, 0.5];
    let mut sampler = sampler(|s| {
        (s.temperature, s.top_k) = (0.0, 1);
        s.logit_bias = vec![(0, 4.0), (3, f32::NEG_INFINITY)];
        (s.repeat_penalty, s.presence_penalty) = (2.0, 0.5);
    });
    sampler.accept(1);
    let choice = Choice {
        logprobs: Some(4),
        ..Choice::default()
    };
    let chosen = sampler.choose(&logits, &choice).unwrap();
    let after = [5.0f64, 1.0, 2.0];
    let log_sum = after.iter().map(|x| x.exp()).sum::<f64>().ln();
    let expected = after.map(|x| (x - log_sum) as f32);
    let logprob = chosen.logprob.unwrap();
    assert_eq!((chosen.id, logprob.logprob), (0, expected[0]));
    let top = [
        (0, expected[0]),
        (2, expected[2]),
        (1, expected[1]),
        (3, f32::NEG_INFINITY),
    ];
    assert_eq!(logprob.top, top);
    // Asking for them, for none or for more than there are changes no choice.
    let none = sampler
        .choose(
            &logits,
            &Choice {
                logprobs: Some(0),
                ..choice
            },
        )
        .unwrap();
    assert_eq!(
        none.logprob.unwrap(),
        Logprob {
            logprob: expected[0],
            top: vec![]
        }
    );
    let many = sampler
        .choose(
            &logits,
            &Choice {
                logprobs: Some(9),
                ..choice
            },
        )
        .unwrap();
    assert_eq!(many.logprob.unwrap().top, top);
    assert_eq!(sampler.choose(&logits, &Choice::default()).unwrap().logprob, None);
}

#[test]
fn masks_and_forbidden_tokens_are_not_chosen_and_change_no_log_probability() {
    let logits = logits(70, 11);
    let mut greedy = sampler(|s| s.temperature = 0.0);
    let all = Choice {
        logprobs: Some(0),
        ..Choice::default()
    };
    let best = greedy.choose(&logits, &all).unwrap();
    let forbidden = [best.id];
    let second = greedy
        .choose(
            &logits,
            &Choice {
                forbidden: &forbidden,
                ..all
            },
        )
        .unwrap();
    assert_ne!(second.id, best.id);
    assert!(second.logprob.unwrap().logprob < best.logprob.unwrap().logprob);
    // One token of each word; the last word is missing, which forbids its tokens.
    let mask = [1u32 << 5, 1 << 31];
    for temperature in [0.0, 3.0] {
        let mut sampler = sampler(|s| s.temperature = temperature);
        for _ in 0..20 {
            let id = sampler
                .choose(
                    &logits,
                    &Choice {
                        mask: Some(&mask),
                        ..all
                    },
                )
                .unwrap()
                .id;
            assert!([5, 63].contains(&id), "{id}");
        }
        let nothing = Choice {
            mask: Some(&mask),
            forbidden: &[5, 63],
            ..all
        };
        let error = sampler.choose(&logits, &nothing).unwrap_err().to_string();
        assert!(error.contains("every token is forbidden"), "{error}");
    }
}

#[test]
fn penalties_can_leave_the_prompt_alone() {
    let mut counted = sampler(|s| {
        (s.temperature, s.penalize_prompt) = (0.0, false);
        (s.frequency_penalty, s.presence_penalty, s.repeat_penalty) = (1.0, 0.25, 2.0);
        s.repeat_last_n = usize::MAX;
    });
    [0, 0, 0, 1].iter().for_each(|&id| counted.accept(id));
    counted.begin_answer();
    [1, 2, 2].iter().for_each(|&id| counted.accept(id));
    let choice = Choice {
        logprobs: Some(3),
        ..Choice::default()
    };
    let chosen = counted.choose(&[8.0, 8.0, 8.0], &choice).unwrap();
    // The repetition penalty halves all three; the answer has token 1 once and token 2 twice.
    let after = [4.0f32, 4.0 - 0.25 - 1.0, 4.0 - 0.25 - 2.0];
    let top = chosen.logprob.unwrap().top;
    assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1, 2]);
    for (i, (_, logprob)) in top.iter().enumerate() {
        assert!(
            (logprob - top[0].1 - (after[i] - after[0])).abs() < 1e-6,
            "{top:?}"
        );
    }
}

#[test]
fn each_answer_of_a_request_has_a_seed_of_its_own() {
    let of = |seed, choice| {
        Sampling {
            seed,
            ..Sampling::default()
        }
        .of_choice(choice)
        .seed
    };
    let seeds: std::collections::BTreeSet<u64> = (0..4)
        .flat_map(|seed| (0..16).map(move |choice| of(seed, choice)))
        .collect();
    assert_eq!(seeds.len(), 64);
    assert_eq!(of(7, 0), 7);
}

#[test]
fn the_logits_that_are_needed_are_enough() {
    let mut n_checked = 0;
    for seed in 0..400 {
        let vocab = 50 + seed as usize % 40;
        let pick = |i: u64, n: usize| (uniform(1000 + seed, i) * n as f64) as usize;
        // Every third has equals.
        let mut logits = logits(vocab, seed);
        if seed % 3 == 0 {
            logits
                .iter_mut()
                .for_each(|logit| *logit = (*logit / 4.0).round());
        }
        let sampling = Sampling {
            temperature: [0.0, 0.7, 1.5][pick(1, 3)],
            top_k: [1, 5, 20][pick(2, 3)],
            top_p: [1.0, 0.9][pick(3, 2)],
            min_p: [0.0, 0.1][pick(4, 2)],
            repeat_penalty: [1.0, 1.3, 0.8][pick(5, 3)],
            presence_penalty: [0.0, 0.5, -2.0][pick(6, 3)],
            penalize_prompt: pick(7, 2) == 0,
            logit_bias: vec![(3, 4.0), (7, f32::NEG_INFINITY)],
            bad_words: vec![vec![pick(8, 20) as u32], vec![1, 2]],
            seed,
            ..Sampling::default()
        };
        let mut all = Sampler::new(sampling).unwrap();
        (0..10).for_each(|i| all.accept(pick(20 + i, vocab) as u32));
        all.begin_answer();
        all.accept(1);
        let mut some = all.clone();
        let words = vec![[u32::MAX, 0x5555_5555, 0xffff_0f0f][pick(9, 3)]; vocab.div_ceil(32)];
        let choice = Choice {
            mask: (pick(10, 2) == 0).then_some(&words[..]),
            forbidden: &[11, 13],
            logprobs: None,
        };
        let need = some.need(vocab, &[], choice.forbidden).unwrap();
        let allowed = |id: u32| {
            choice
                .mask
                .is_none_or(|mask| mask[id as usize / 32] >> (id % 32) & 1 == 1)
        };
        let mut ids: Vec<u32> = (0..vocab as u32)
            .filter(|id| !need.known.contains(id) && allowed(*id))
            .collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        ids.truncate(need.k);
        ids.extend(need.known.iter().filter(|&&id| (id as usize) < vocab));
        // One that nobody needs.
        ids.push(pick(11, vocab) as u32);
        ids.sort_unstable();
        ids.dedup();
        let best: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        let from = Logits::Some {
            ids: &ids,
            logits: &best,
            vocab,
        };
        let expected = all.choose(&logits, &choice);
        let found = some.choose_from(from, &choice);
        match (expected, found) {
            (Ok(expected), Ok(found)) => assert_eq!(expected, found, "seed {seed}"),
            (expected, found) => assert_eq!(
                expected.unwrap_err().to_string(),
                found.unwrap_err().to_string(),
                "seed {seed}"
            ),
        }
        n_checked += 1;
    }
    assert_eq!(n_checked, 400);
}

#[test]
fn all_logits_are_needed_where_no_k_bounds_them() {
    let need = |sampling: Sampling| Sampler::new(sampling).unwrap().need(1000, &[], &[]);
    assert_eq!(need(Sampling::plain()), None);
    assert_eq!(
        need(Sampling {
            no_repeat_ngram: 3,
            ..Sampling::greedy()
        }),
        None
    );
    assert_eq!(need(Sampling::default()).map(|need| need.k), Some(40));
    assert_eq!(need(Sampling::greedy()).map(|need| need.k), Some(1));
    let mut sampler = Sampler::new(Sampling::greedy()).unwrap();
    let from = Logits::Some {
        ids: &[5, 9],
        logits: &[1.0, f32::NAN],
        vocab: 10,
    };
    let error = sampler.choose_from(from, &Choice::default()).unwrap_err();
    assert!(
        error.to_string().contains("NaN as the logit of token 9"),
        "{error}"
    );
}
