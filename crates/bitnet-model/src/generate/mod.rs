//! Tokens in, steps, tokens out: prefill, the decode loop, streamed text, and when to stop.

mod many;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use many::{Many, Rules, Sequence};

use crate::{
    Backend, ChatTemplate, Detokenizer, Error, Message, Result, Sampler, Sampling, Session, SpecialTokens,
    StopStrings, Tokenizer, Want,
};

/// What to continue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prompt<'a> {
    /// Text, as it is.
    Text(&'a str),
    /// A conversation, to be put into the model's chat template; the model answers as the assistant.
    Chat(&'a [Message]),
    /// Token ids, as they are; needs no tokenizer.
    Ids(&'a [u32]),
}

/// How to continue it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to generate; `None` goes on until the model stops or the context is full. 0 computes the prompt alone.
    pub max_tokens: Option<usize>,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Treats end-of-sequence tokens as ordinary ones.
    pub ignore_eos: bool,
    /// Which tokens become text.
    pub special: SpecialTokens,
}

/// Something that happened while generating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A part of the prompt was computed.
    Prefill {
        /// Prompt tokens in the KV cache by now, reused ones included.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// A token was chosen.
    Token {
        /// Its id.
        id: u32,
        /// The text that is now certain; empty while a character or a possible stop string is incomplete.
        text: &'a str,
    },
    /// The end: text that was held back.
    End {
        /// May be empty.
        text: &'a str,
    },
}

impl<'a> Event<'a> {
    /// The text to append to what was shown so far.
    #[must_use]
    pub fn text(&self) -> &'a str {
        match self {
            Self::Prefill { .. } => "",
            Self::Token { text, .. } | Self::End { text } => text,
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the sequence.
    Stop,
    /// A stop string appeared.
    StopString,
    /// As many tokens as asked for.
    Length,
    /// The context is full.
    Context,
    /// The caller's callback said so.
    Cancelled,
}

impl FinishReason {
    /// Its name in JSON: `stop`, `stop_string`, `length`, `context`, `cancelled`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopString => "stop_string",
            Self::Length => "length",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Prompt tokens computed.
    pub prefill_tokens: usize,
    /// Prompt tokens found in the KV cache of the generation before.
    pub reused_tokens: usize,
    /// Time to compute the prompt.
    pub prefill: Duration,
    /// Time from the call to the first token.
    pub first_token: Duration,
    /// Tokens computed one at a time, after the first.
    pub decode_tokens: usize,
    /// Time for those.
    pub decode: Duration,
}

impl Timings {
    /// Prompt tokens a second; 0 where none were computed.
    #[must_use]
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill)
    }

    /// Generated tokens a second, the first apart; 0 where there was only one.
    #[must_use]
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 {
        0.0
    } else {
        tokens as f64 / time.as_secs_f64().max(1e-9)
    }
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// Every token chosen, the end-of-sequence token included.
    pub ids: Vec<u32>,
    /// Their text; empty without a tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Where the time went.
    pub timings: Timings,
}

/// Continues prompts on the sequence slots of a back end, keeping what two prompts in a row have in common.
///
/// A conversation is one `Generator`: each turn passes all the messages so far, and only what is new is computed.
///
/// ```
/// use bitnet_model::{Device, Message, Model, Prompt};
/// use std::ops::ControlFlow;
///
/// # let folder = "../bitnet-cli/demo-model";
/// let mut model = Model::load(folder, Device::Auto)?;
/// let options = model.generate_options();
/// let mut generator = model.generator();
/// let mut messages = Vec::new();
/// for question in ["What is 3 + 4?", "plus 20?"] {
///     messages.push(Message::user(question));
///     let answer = generator.generate(Prompt::Chat(&messages), &options, |_| ControlFlow::Continue(()))?;
///     messages.push(Message::assistant(answer.text));
/// }
/// assert_eq!(messages[1].content, "3 + 4 = 7");
/// assert_eq!(messages[3].content, "7 + 20 = 27");
/// # Ok::<(), bitnet_model::Error>(())
/// ```
pub struct Generator<'m> {
    /// Its sequences keep what they have from one prompt to the next.
    session: Session<'m>,
    tokenizer: Option<&'m Tokenizer>,
    chat: Option<&'m ChatTemplate>,
    stop_ids: Vec<u32>,
}

impl<'m> Generator<'m> {
    /// A generator on the sequences of `backend`. Without a tokenizer it takes and gives token ids alone. It stops at the
    /// model's end-of-sequence tokens and at the tokenizer's ([`Tokenizer::end_ids`]).
    pub fn new(
        backend: &'m mut dyn Backend,
        tokenizer: Option<&'m Tokenizer>,
        chat: Option<&'m ChatTemplate>,
    ) -> Self {
        let mut stop_ids = backend.spec().config.eos.clone();
        for &id in tokenizer.map_or(&[][..], Tokenizer::end_ids) {
            if !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        Self {
            session: Session::new(backend),
            tokenizer,
            chat,
            stop_ids,
        }
    }

    /// Tokens that prompt and answer together may have.
    #[must_use]
    pub fn context(&self) -> usize {
        self.session.spec().context
    }

    /// The text of `ids`, special tokens spelled out.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer()?.decode(ids)
    }

    /// The token ids of a prompt; those of text and conversations begin with exactly one beginning-of-sequence token.
    ///
    /// # Errors
    /// When the model has no tokenizer or no chat template and the prompt needs one, or the template refuses.
    pub fn prompt_ids(&self, prompt: Prompt<'_>) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Ids(ids) => Ok(ids.to_vec()),
            Prompt::Text(text) => self.tokenizer()?.encode_prompt(text),
            Prompt::Chat(messages) => {
                let chat = self.chat.ok_or_else(|| {
                    Error::Request(
                        "the model folder has no chat template: prompt it with plain text".to_owned(),
                    )
                })?;
                self.tokenizer()?.encode_rendered(&chat.render(messages)?)
            }
        }
    }

    /// Generates until something ends it, telling `on_event` of every token; [`ControlFlow::Break`] ends it as well.
    ///
    /// # Errors
    /// As for [`Generator::prompt_ids`]; when the prompt is empty or does not fit the context, or an option is out of
    /// range, before anything is computed; when the back end fails.
    pub fn generate(
        &mut self,
        prompt: Prompt<'_>,
        options: &GenerateOptions,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut all = self.generate_many(&[prompt], options, |_, event| on_event(event))?;
        Ok(all.swap_remove(0))
    }

    /// Continues several prompts side by side, each in a sequence slot of its own: as [`Generator::generate`] does one after the
    /// other, to the token, and much faster where the back end computes several tokens in the time of one. `on_event` is
    /// told the number of the prompt too; a break ends that one alone.
    ///
    /// ```
    /// use bitnet_model::{Device, LoadOptions, Model, Prompt};
    /// use std::ops::ControlFlow;
    ///
    /// # let folder = "../bitnet-cli/demo-model";
    /// let mut model = Model::load(folder, LoadOptions { n_seqs: 2, ..Device::Auto.into() })?;
    /// let options = model.generate_options();
    /// let prompts = ["User:1 + 1<|eot_id|>Assistant:", "User:2 + 2<|eot_id|>Assistant:"].map(Prompt::Text);
    /// let answers = model
    ///     .generator()
    ///     .generate_many(&prompts, &options, |_, _| ControlFlow::Continue(()))?;
    /// assert_eq!(answers[0].text, "1 + 1 = 2");
    /// assert_eq!(answers[1].text, "2 + 2 = 4");
    /// # Ok::<(), bitnet_model::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Generator::generate`]; and when there are more prompts than sequence slots.
    pub fn generate_many(
        &mut self,
        prompts: &[Prompt<'_>],
        options: &GenerateOptions,
        mut on_event: impl FnMut(usize, Event<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let start = Instant::now();
        let n_seqs = self.session.spec().max_seqs;
        if prompts.len() > n_seqs {
            return Err(Error::Request(format!(
                "{} prompts at once, and the model was loaded for {n_seqs}; load it for more sequences",
                prompts.len()
            )));
        }
        let ids = prompts.iter().map(|&prompt| {
            let ids = self.prompt_ids(prompt)?;
            self.check(&ids, options)?;
            Ok(ids)
        });
        let ids: Vec<Vec<u32>> = ids.collect::<Result<_>>()?;
        let sampler = Sampler::new(options.sampling.clone())?;
        let rules = Rules {
            options,
            stop_ids: self.stop_ids.clone(),
        };
        let mut many = Many::default();
        for (slot, ids) in ids.into_iter().enumerate() {
            let mut on_event = |event: Event<'_>| on_event(slot, event);
            let mut sampler = sampler.clone();
            let begun = if slot == 0 { start } else { Instant::now() };
            let mut sequence = self.begin(slot, ids, options);
            let prompt = &sequence.run.prompt_ids;
            prompt.iter().for_each(|&id| sampler.accept(id));
            let reused = self.session.ids(slot).len();
            let first = self.prefill(slot, prompt, sequence.limit, &mut sampler, &mut on_event)?;
            let timings = &mut sequence.run.timings;
            timings.prefill_tokens = self.session.ids(slot).len() - reused;
            timings.prefill = begun.elapsed();
            if let Some(id) = first {
                timings.first_token = start.elapsed();
                sampler.accept(id);
                sequence.take(id, &rules, &mut on_event)?;
            } else {
                sequence.not_begun();
            }
            many.add(sequence, sampler, &mut on_event)?;
        }
        many.decode(self, &rules, &mut on_event)
    }

    /// A sequence in `slot`, whose cache keeps what it has of the prompt.
    fn begin(&mut self, slot: usize, prompt_ids: Vec<u32>, options: &GenerateOptions) -> Sequence {
        // The last prompt token is computed even if it is cached: its logits are not.
        let cached = self.session.ids(slot).iter();
        let same = cached.zip(&prompt_ids).take_while(|(a, b)| a == b);
        let reused = same.count().min(prompt_ids.len() - 1);
        self.session.rewind(slot, reused);
        // The last token chosen needs no place in the cache.
        let room = self.context() - prompt_ids.len() + 1;
        let limit = options.max_tokens.unwrap_or(usize::MAX).min(room);
        let writer = self.tokenizer.map(|tokenizer| Writer {
            detokenizer: Detokenizer::new(tokenizer, options.special),
            stops: StopStrings::new(&options.stop),
        });
        Sequence::new(slot, prompt_ids, reused, limit, writer)
    }

    fn tokenizer(&self) -> Result<&'m Tokenizer> {
        self.tokenizer.ok_or_else(|| {
            Error::Request("the model folder has no tokenizer.json: only token ids can be prompts".to_owned())
        })
    }

    /// Refuses what cannot be computed.
    fn check(&self, ids: &[u32], options: &GenerateOptions) -> Result<()> {
        let (context, vocab) = (self.context(), self.session.spec().config.vocab);
        if ids.is_empty() {
            return Err(Error::Request(
                "the prompt is empty; give at least one token".to_owned(),
            ));
        }
        if ids.len() > context {
            return Err(Error::ContextFull {
                needed: ids.len(),
                have: context,
            });
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Request(format!(
                "prompt token {id} is not below the model's vocabulary size {vocab}; \
                 does the tokenizer belong to this model?"
            )));
        }
        if self.tokenizer.is_none() && !options.stop.is_empty() {
            let message = "stop strings need a tokenizer, and the model folder has none";
            return Err(Error::Request(message.to_owned()));
        }
        Ok(())
    }

    /// Computes what is not cached of the prompt, in batches, and chooses the first token; `None` when `limit` is 0 or
    /// the callback ended it.
    fn prefill(
        &mut self,
        slot: usize,
        prompt: &[u32],
        limit: usize,
        sampler: &mut Sampler,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Option<u32>> {
        let max_batch = self.session.spec().max_batch;
        while self.session.ids(slot).len() < prompt.len() {
            let rest = &prompt[self.session.ids(slot).len()..];
            let batch = &rest[..rest.len().min(max_batch)];
            let runs = [(slot, batch)];
            let chosen = if batch.len() == rest.len() && limit > 0 {
                let logits = self.session.step(&runs, Want::Logits(&[batch.len() - 1]))?;
                Some(sampler.sample(logits)?)
            } else {
                self.session.step(&runs, Want::Nothing)?;
                None
            };
            let (done, total) = (self.session.ids(slot).len(), prompt.len());
            if on_event(Event::Prefill { done, total }).is_break() {
                return Ok(None);
            }
            if chosen.is_some() {
                return Ok(chosen);
            }
        }
        Ok(None)
    }
}

/// Tokens to text, stop strings taken out.
struct Writer {
    detokenizer: Detokenizer,
    stops: StopStrings,
}

impl Writer {
    fn push(&mut self, id: u32) -> Result<(String, bool)> {
        // A stop string may name a special token, which is not shown.
        match self.detokenizer.hidden(id) {
            Some(token) => Ok(self.stops.push_hidden(&token)),
            None => Ok(self.stops.push(&self.detokenizer.push(id)?)),
        }
    }

    fn finish(mut self) -> Result<String> {
        let (mut text, stopped) = self.stops.push(&self.detokenizer.finish()?);
        if !stopped {
            text.push_str(&self.stops.finish());
        }
        Ok(text)
    }
}
