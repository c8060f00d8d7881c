//! How likely a given text is, and what ends an answer: of the model that the program carries.

use std::path::PathBuf;

use bitnet_model::schedule::{
    EndedBy, Event, FinishReason, GenerateOptions, Request, ScheduleOptions, Scheduler,
};
use bitnet_model::{Device, LoadOptions, Model, Tokenizer, each_logits, negative_log_likelihood};

fn model() -> Model {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bitnet-cli/demo-model");
    let options = LoadOptions {
        threads: Some(1),
        context: Some(256),
        n_seqs: 3,
        max_batch: 24,
        ..Device::Cpu.into()
    };
    Model::load(folder, options).unwrap()
}

fn scheduler() -> Scheduler<'static> {
    model().into_scheduler(ScheduleOptions::default())
}

fn ids(tokenizer: Option<&Tokenizer>, text: &str) -> Vec<u32> {
    tokenizer.unwrap().encode_prompt(text).unwrap()
}

/// All that happens to one request.
fn events(scheduler: &mut Scheduler<'_>, request: Request) -> Vec<Event> {
    let id = scheduler.submit(request).unwrap();
    let mut events = Vec::new();
    while !scheduler.is_idle() {
        events.extend(
            scheduler
                .step()
                .into_iter()
                .filter(|(of, _)| *of == id)
                .map(|(_, event)| event),
        );
    }
    events
}

#[test]
fn a_text_is_scored_by_the_logits_of_its_positions_cached_or_not() {
    let text = "User:What is 17 + 25?<|eot_id|>Assistant:17 + 25 = 42<|eot_id|>User:Spell \"garden\" backwards.<|eot_id|>";
    let mut own = model();
    let prompt = ids(own.tokenizer(), &text.repeat(2));
    // More than a page.
    assert!(prompt.len() > 80);
    let mut expected = Vec::new();
    each_logits(own.backend_mut(), &prompt, 0..prompt.len() - 1, |at, logits| {
        expected.push(negative_log_likelihood(logits, prompt[at + 1]));
        Ok::<_, bitnet_model::Error>(())
    })
    .unwrap();

    let mut scheduler = scheduler();
    let score = |scheduler: &mut Scheduler<'_>| {
        let options = GenerateOptions {
            max_tokens: Some(0),
            ..GenerateOptions::default()
        };
        let request = Request {
            prompt_logprobs: Some(2),
            ..Request::new(prompt.clone(), options)
        };
        let mut found = Vec::new();
        for event in events(scheduler, request) {
            match event {
                Event::PromptLogprobs { first, logprobs } => {
                    assert_eq!(first, 1 + found.len());
                    found.extend(logprobs);
                }
                Event::Finished { reason, ended_by, .. } => {
                    assert_eq!((reason, ended_by), (FinishReason::Length, None));
                }
                Event::Token { .. } => panic!("a token that nobody asked for"),
                _ => {}
            }
        }
        found
    };
    let first = score(&mut scheduler);
    assert_eq!(first.len(), expected.len());
    for (found, expected) in first.iter().zip(&expected) {
        assert!((f64::from(found.logprob) + expected).abs() < 1e-5);
        assert_eq!(found.top.len(), 2);
        assert!(found.top[0].1 >= found.top[1].1 && found.top[0].1 >= found.logprob);
    }
    // What the cache has of it has no logits.
    assert!(scheduler.stats().pages_idle > 0);
    assert_eq!(score(&mut scheduler), first);
}

#[test]
fn an_answer_says_what_ended_it() {
    let mut scheduler = scheduler();
    let prompt = ids(scheduler.tokenizer(), "User:What is 17 + 25?<|eot_id|>Assistant:");
    let eot = *ids(scheduler.tokenizer(), "<|eot_id|>").last().unwrap();
    let mut ask = |options: GenerateOptions| {
        let (mut text, mut n, mut end) = (String::new(), 0, None);
        let request = Request {
            logprobs: Some(0),
            ..Request::new(prompt.clone(), options)
        };
        for event in events(&mut scheduler, request) {
            match event {
                Event::Token {
                    text: piece, logprob, ..
                } => {
                    // Tokens of the stop string too.
                    assert!(logprob.is_some());
                    text.push_str(&piece);
                    n += 1;
                }
                Event::Finished {
                    reason,
                    ended_by,
                    text: rest,
                    ..
                } => {
                    text.push_str(&rest);
                    end = Some((reason, ended_by));
                }
                _ => {}
            }
        }
        let (reason, ended_by) = end.unwrap();
        (text, n, reason, ended_by)
    };
    let plain = GenerateOptions {
        sampling: bitnet_model::Sampling::greedy(),
        max_tokens: Some(64),
        ..GenerateOptions::default()
    };
    let (text, n, reason, ended_by) = ask(plain.clone());
    assert_eq!(
        (text.as_str(), reason, ended_by),
        ("17 + 25 = 42", FinishReason::Stop, Some(EndedBy::Eos(eot)))
    );

    // The model's own token stays its own where the request names it too; without, it is the request's.
    let named = |ignore_eos| GenerateOptions {
        stop_ids: vec![eot],
        ignore_eos,
        ..plain.clone()
    };
    assert_eq!(ask(named(false)).3, Some(EndedBy::Eos(eot)));
    assert_eq!(ask(named(true)).3, Some(EndedBy::StopId(eot)));

    // Over the borders of tokens, the first to be complete.
    let stopped = |include_stop, min_tokens| GenerateOptions {
        stop: vec!["25 = 4".to_owned(), "+ 25".to_owned(), "7 + 2".to_owned()],
        include_stop,
        min_tokens,
        ..plain.clone()
    };
    let by = |stop: &str| Some(EndedBy::StopString(stop.to_owned()));
    let (text, fewer, reason, ended_by) = ask(stopped(false, 0));
    assert_eq!(
        (text.as_str(), reason, ended_by),
        ("1", FinishReason::StopString, by("7 + 2"))
    );
    assert!(fewer < n);
    let (text, _, _, ended_by) = ask(stopped(true, 0));
    assert_eq!((text.as_str(), ended_by), ("17 + 2", by("7 + 2")));
    // None is looked for in the tokens that there must be.
    let (text, _, _, ended_by) = ask(stopped(false, n));
    assert!(text.starts_with("17 + 25 = 42"), "{text}");
    assert_eq!(ended_by, Some(EndedBy::Eos(eot)));

    let (text, _, reason, ended_by) = ask(GenerateOptions {
        max_tokens: Some(2),
        ..plain
    });
    assert!("17 + 25 = 42".starts_with(&text));
    assert_eq!((reason, ended_by), (FinishReason::Length, None));
}
