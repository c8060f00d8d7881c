//! The decode loop over a back end whose next token is known: a function of every token before it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bitnet_model::{
    Backend, Batch, ChatTemplate, Checkpoint, Decoder, Error, Event, FinishReason, GenerateOptions,
    Generation, Generator, KvType, Message, Prompt, Result, Sampler, Sampling, Spec, SpecialTokens, Start,
    Token, Tokenizer, Want, WeightSource,
};

/// Token ids of the test vocabulary.
const EOT: u32 = 1017;

struct Scripted {
    spec: Spec,
    next: fn(&[u32]) -> u32,
    text: Vec<u32>,
    out: Vec<f32>,
    /// Tokens computed, step by step.
    steps: Vec<usize>,
    fail: bool,
    /// Decodes without the host, computing this many tokens past those that are read.
    ahead: Option<usize>,
    seat: Option<(Token, Sampler)>,
    /// Tokens of steps that were not read; none where the sequence has left.
    ready: Vec<Option<u32>>,
}

impl Scripted {
    /// Appends tokens; the logits after each of `rows` of them.
    fn compute(&mut self, tokens: &[Token], rows: &[usize]) {
        let first = tokens[0].pos as usize;
        assert!(first <= self.text.len(), "a gap in the positions");
        self.text.truncate(first);
        for token in tokens {
            assert_eq!(token.pos as usize, self.text.len());
            self.text.push(token.id);
        }
        self.out.clear();
        for row in rows {
            let start = self.out.len();
            self.out.resize(start + self.spec.config.vocab, 0.0);
            let next = (self.next)(&self.text[..=first + row]);
            self.out[start + next as usize] = 9.0;
        }
    }
}

impl Backend for Scripted {
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn step(&mut self, batch: &Batch, want: Want<'_>) -> Result<&[f32]> {
        self.spec.check(batch, want)?;
        if self.fail {
            return Err(Error::Device("unplugged".to_owned()));
        }
        self.compute(batch.tokens(), want.rows());
        self.steps.push(batch.tokens().len());
        Ok(&self.out)
    }
    fn decoder(&mut self) -> Option<&mut dyn Decoder> {
        if self.ahead.is_some() { Some(self) } else { None }
    }
}

impl Decoder for Scripted {
    fn seats(&self) -> usize {
        1
    }
    fn lookahead(&self) -> usize {
        1 + self.ahead.unwrap_or(0)
    }
    fn seat(&mut self, _: usize, start: Start<'_>, sampler: &Sampler) -> Result<bool> {
        self.seat = Some((start.token(), sampler.clone()));
        Ok(true)
    }
    fn pages(&mut self, _: usize, _: &[u32]) -> Result<()> {
        Ok(())
    }
    fn leave(&mut self, _: usize) {
        self.seat = None;
        self.ready.fill(None);
    }
    fn ahead(&mut self, steps: usize) -> Result<()> {
        let (mut token, mut sampler) = self.seat.take().unwrap();
        for _ in 0..steps {
            self.compute(&[token], &[0]);
            token.id = sampler.sample(&self.out)?;
            token.pos += 1;
            sampler.accept(token.id);
            self.ready.push(Some(token.id));
        }
        self.seat = Some((token, sampler));
        Ok(())
    }
    fn next(&mut self, out: &mut Vec<(usize, Result<u32>)>) -> Result<()> {
        out.extend(self.ready.remove(0).map(|id| (0, Ok(id))));
        Ok(())
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/bitnet-bf16")
}

fn backend(next: fn(&[u32]) -> u32) -> Scripted {
    let spec = Spec {
        config: Checkpoint::open(folder()).unwrap().config().clone(),
        name: "scripted".to_owned(),
        page: 2,
        n_pages: 16,
        max_seqs: 1,
        context: 32,
        max_batch: 5,
        kv_type: KvType::F32,
        head_bytes: 0,
        memory_bytes: 0,
        weight_bytes: 0,
        kv_bytes: 0,
    };
    Scripted {
        spec,
        next,
        text: Vec::new(),
        out: Vec::new(),
        steps: Vec::new(),
        fail: false,
        ahead: None,
        seat: None,
        ready: Vec::new(),
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(folder(), None, &[]).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        ..GenerateOptions::default()
    }
}

/// Generates and checks that the streamed text is the whole text.
fn run(generator: &mut Generator<'_>, prompt: Prompt<'_>, options: &GenerateOptions) -> Generation {
    let (mut ids, mut text) = (Vec::new(), String::new());
    let generation = generator
        .generate(prompt, options, |event| {
            text.push_str(event.text());
            if let Event::Token { id, .. } = event {
                ids.push(id);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((&ids, &text), (&generation.ids, &generation.text));
    generation
}

fn successor(text: &[u32]) -> u32 {
    text[text.len() - 1] + 1
}

#[test]
fn a_prompt_is_computed_in_batches_and_continued() {
    let mut backend = backend(successor);
    let prompt: Vec<u32> = (100..112).collect();
    let generation = run(
        &mut Generator::new(&mut backend, None, None),
        Prompt::Ids(&prompt),
        &greedy(3),
    );
    assert_eq!(generation.ids, [112, 113, 114]);
    assert_eq!(generation.finish_reason, FinishReason::Length);
    assert_eq!(
        (
            generation.timings.prefill_tokens,
            generation.timings.decode_tokens
        ),
        (12, 2)
    );
    assert_eq!(backend.steps, [5, 5, 2, 1, 1]);
}

#[test]
fn what_two_prompts_share_is_computed_once() {
    let mut backend = backend(|text| text.iter().sum::<u32>() % 1000);
    let mut generator = Generator::new(&mut backend, None, None);
    let first = run(&mut generator, Prompt::Ids(&[1, 2, 3]), &greedy(3));
    assert_eq!(first.ids, [6, 12, 24]);
    // The last token chosen was never computed.
    let turn = [1, 2, 3, 6, 12, 24, 7];
    let second = run(&mut generator, Prompt::Ids(&turn), &greedy(2));
    assert_eq!(
        (second.timings.reused_tokens, second.timings.prefill_tokens),
        (5, 2)
    );
    assert_eq!(second.ids, [55, 110]);
    let again = run(&mut generator, Prompt::Ids(&turn), &greedy(2));
    assert_eq!((again.timings.reused_tokens, again.ids), (6, vec![55, 110]));
    let other = run(&mut generator, Prompt::Ids(&[2, 2]), &greedy(1));
    assert_eq!((other.timings.reused_tokens, other.ids), (0, vec![4]));
}

#[test]
fn a_failed_step_leaves_nothing_to_reuse() {
    let mut backend = backend(successor);
    run(
        &mut Generator::new(&mut backend, None, None),
        Prompt::Ids(&[1, 2]),
        &greedy(1),
    );
    backend.fail = true;
    let mut generator = Generator::new(&mut backend, None, None);
    let failed = generator.generate(Prompt::Ids(&[1, 2, 3]), &greedy(1), |_| ControlFlow::Continue(()));
    assert_eq!(failed.unwrap_err().to_string(), "unplugged");
    let failed = generator.generate(Prompt::Ids(&[1, 2, 3]), &greedy(1), |_| ControlFlow::Continue(()));
    assert!(failed.is_err());
}

#[test]
fn it_stops_at_every_end_token_unless_told_not_to() {
    let tokenizer = tokenizer();
    for (end, next) in [
        (
            1009,
            (|t| if t.len() < 4 { 45 } else { 1009 }) as fn(&[u32]) -> u32,
        ),
        (EOT, |t| if t.len() < 4 { 45 } else { EOT }),
    ] {
        let mut backend = backend(next);
        let mut generator = Generator::new(&mut backend, Some(&tokenizer), None);
        let generation = run(&mut generator, Prompt::Ids(&[1, 2]), &greedy(6));
        assert_eq!(generation.ids, [45, 45, end]);
        assert_eq!(
            (generation.text.as_str(), generation.finish_reason),
            ("NN", FinishReason::Stop)
        );

        let ignoring = GenerateOptions {
            ignore_eos: true,
            special: SpecialTokens::Show,
            ..greedy(4)
        };
        let generation = run(&mut generator, Prompt::Ids(&[1, 2]), &ignoring);
        assert_eq!(generation.ids, [45, 45, end, end]);
        assert_eq!(generation.finish_reason, FinishReason::Length);
        assert!(generation.text.starts_with("NN<|e"), "{}", generation.text);
    }
}

#[test]
fn stop_strings_match_across_tokens_and_are_not_shown() {
    let tokenizer = tokenizer();
    let mut backend = backend(|text| 32 + (text.len() as u32) % 26);
    let mut generator = Generator::new(&mut backend, Some(&tokenizer), None);
    let stopping = GenerateOptions {
        stop: vec!["GHI".to_owned(), "never".to_owned()],
        ..greedy(20)
    };
    let generation = run(&mut generator, Prompt::Ids(&[1]), &stopping);
    assert_eq!((generation.text.as_str(), generation.ids.len()), ("BCDEF", 8));
    assert_eq!(generation.finish_reason, FinishReason::StopString);
    // What might have become a stop string is shown when it did not.
    let generation = run(
        &mut generator,
        Prompt::Ids(&[1]),
        &GenerateOptions {
            max_tokens: Some(7),
            ..stopping
        },
    );
    assert_eq!(generation.text, "BCDEFGH");
}

#[test]
fn half_a_character_at_the_end_is_replaced() {
    let tokenizer = tokenizer();
    // The first of three bytes.
    let first = tokenizer.token_to_id("æ").unwrap();
    assert_eq!(tokenizer.decode(&[first]).unwrap(), "\u{fffd}");
    let mut backend = backend(|text| if text.len() < 3 { 45 } else { 162 });
    assert_eq!(first, 162);
    let generation = run(
        &mut Generator::new(&mut backend, Some(&tokenizer), None),
        Prompt::Ids(&[1]),
        &greedy(3),
    );
    assert_eq!(generation.text, "NN\u{fffd}");
}

#[test]
fn the_context_ends_it_and_a_longer_prompt_is_refused() {
    let mut backend = backend(|_| 3);
    let mut generator = Generator::new(&mut backend, None, None);
    let unlimited = GenerateOptions {
        max_tokens: None,
        ..greedy(0)
    };
    let generation = run(&mut generator, Prompt::Ids(&[1; 30]), &unlimited);
    assert_eq!(
        (generation.ids.len(), generation.finish_reason),
        (3, FinishReason::Context)
    );
    let generation = run(&mut generator, Prompt::Ids(&[1; 32]), &greedy(5));
    assert_eq!(
        (generation.ids.len(), generation.finish_reason),
        (1, FinishReason::Context)
    );
    let refused = |prompt: &[u32]| {
        let mut backend = self::backend(|_| 3);
        let mut generator = Generator::new(&mut backend, None, None);
        let error = generator.generate(Prompt::Ids(prompt), &greedy(5), |_| ControlFlow::Continue(()));
        let message = error.unwrap_err().to_string();
        drop(generator);
        assert!(backend.steps.is_empty());
        message
    };
    assert!(
        refused(&[1; 33]).starts_with("the context holds 32 tokens, and 33 are needed; shorten the prompt")
    );
    assert!(refused(&[]).starts_with("the prompt is empty"));
    assert!(refused(&[1024]).starts_with("prompt token 1024 is not below the model's vocabulary size 1024"));
}

#[test]
fn no_tokens_asked_for_computes_the_prompt_alone() {
    let mut backend = backend(|_| 3);
    let generation = run(
        &mut Generator::new(&mut backend, None, None),
        Prompt::Ids(&[1; 7]),
        &greedy(0),
    );
    assert_eq!(
        (generation.ids.len(), generation.finish_reason),
        (0, FinishReason::Length)
    );
    assert_eq!(generation.timings.prefill_tokens, 7);
}

#[test]
fn the_callback_ends_it_between_batches_and_tokens() {
    let mut backend = backend(successor);
    let mut generator = Generator::new(&mut backend, None, None);
    let mut prompt = |stop_at: usize| {
        let mut events = 0;
        let generation = generator.generate(Prompt::Ids(&[1; 12]), &greedy(9), |_| {
            events += 1;
            if events == stop_at {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let generation = generation.unwrap();
        assert_eq!(generation.finish_reason, FinishReason::Cancelled);
        (
            generation.timings.reused_tokens,
            generation.timings.prefill_tokens,
            generation.ids,
        )
    };
    assert_eq!(prompt(1), (0, 5, vec![]));
    // What was computed before counts; two more events: a batch of seven is 5 + 2, then tokens.
    assert_eq!(prompt(4), (5, 7, vec![2, 3]));
}

#[test]
fn same_seed_same_text() {
    let mut backend = backend(|text| text.len() as u32);
    let mut generator = Generator::new(&mut backend, None, None);
    let mut sample = |seed| {
        let mut options = greedy(20);
        options.sampling = Sampling {
            temperature: 3.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            ..Sampling::default()
        };
        run(&mut generator, Prompt::Ids(&[1]), &options).ids
    };
    let first = sample(1);
    assert_eq!(sample(1), first);
    assert_ne!(sample(2), first);
}

#[test]
fn decoding_on_the_device_changes_nothing() {
    // Penalties forbid what the script would repeat, so the choice depends on the sampler's state.
    let sampling = Sampling {
        repeat_penalty: 9.0,
        repeat_last_n: 4,
        temperature: 1.3,
        seed: 3,
        ..Sampling::default()
    };
    let conversation = |ahead| {
        let mut backend = backend(|text| text.iter().sum::<u32>() % 7);
        backend.ahead = ahead;
        let mut generator = Generator::new(&mut backend, None, None);
        let mut options = greedy(8);
        let first = run(&mut generator, Prompt::Ids(&[1, 2, 3]), &options);
        options.sampling = sampling.clone();
        let turn = [&first.prompt_ids[..], &first.ids, &[5]].concat();
        let second = run(&mut generator, Prompt::Ids(&turn), &options);
        // The caller stops after three tokens, while more are on their way.
        let mut n = 0;
        let third = generator.generate(Prompt::Ids(&turn), &options, |event| {
            n += usize::from(matches!(event, Event::Token { .. }));
            if n == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let third = third.unwrap();
        let turn = [&third.prompt_ids[..], &third.ids, &[6]].concat();
        let fourth = run(&mut generator, Prompt::Ids(&turn), &options);
        assert_eq!(fourth.timings.reused_tokens, turn.len() - 2);
        [first, second, third, fourth].map(|generation| (generation.ids, generation.finish_reason))
    };
    let host = conversation(None);
    assert_eq!(conversation(Some(0)), host);
    assert_eq!(conversation(Some(3)), host);
}

/// Stop strings match special tokens, which the text leaves out.
#[test]
fn a_stop_string_may_name_a_special_token() {
    let tokenizer = tokenizer();
    for (stop, n, text) in [
        ("<|reserved_special_token_0|>", 3, "ab"),
        ("b<|reserved_special_token_0|>", 3, "a"),
        ("token_0|>c", 4, "ab"),
    ] {
        let mut backend = backend(|text| [64, 65, 1010, 66, 67][text.len() - 1]);
        let mut generator = Generator::new(&mut backend, Some(&tokenizer), None);
        let options = GenerateOptions {
            stop: vec![stop.to_owned()],
            ..greedy(5)
        };
        let generation = run(&mut generator, Prompt::Ids(&[1]), &options);
        assert_eq!(generation.finish_reason, FinishReason::StopString, "{stop}");
        assert_eq!((generation.ids.len(), &generation.text[..]), (n, text), "{stop}");
    }
}

#[test]
fn a_conversation_goes_through_the_template() {
    let tokenizer = tokenizer();
    let chat = ChatTemplate::from_folder(folder(), &tokenizer).unwrap().unwrap();
    let mut backend = backend(|_| EOT);
    let mut generator = Generator::new(&mut backend, Some(&tokenizer), Some(&chat));
    let messages = [Message::user("Hello there")];
    let generation = run(&mut generator, Prompt::Chat(&messages), &greedy(5));
    let text = tokenizer.decode(&generation.prompt_ids).unwrap();
    assert_eq!(text, "<|begin_of_text|>User: Hello there<|eot_id|>Assistant: ");
    assert_eq!(generation.text, "");

    let mut bare = self::backend(|_| EOT);
    let mut bare = Generator::new(&mut bare, None, None);
    let error = |generator: &mut Generator<'_>, prompt, options: &GenerateOptions| {
        let result = generator.generate(prompt, options, |_| ControlFlow::Continue(()));
        result.unwrap_err().to_string()
    };
    assert!(error(&mut bare, Prompt::Text("a"), &greedy(1)).contains("no tokenizer.json"));
    let stop = GenerateOptions {
        stop: vec!["a".to_owned()],
        ..greedy(1)
    };
    assert!(error(&mut bare, Prompt::Ids(&[1]), &stop).contains("stop strings need a tokenizer"));
    let mut plain = self::backend(|_| EOT);
    let mut plain = Generator::new(&mut plain, Some(&tokenizer), None);
    assert!(error(&mut plain, Prompt::Chat(&messages), &greedy(1)).contains("no chat template"));
}
