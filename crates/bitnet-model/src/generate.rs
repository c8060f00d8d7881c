//! Prompts in, text out, for one caller: a thin face over the scheduler.

use std::ops::ControlFlow;

use bitnet_cpu::ZeroCounts;

use crate::chat::{ChatTemplate, Message};
use crate::detokenizer::Detokenizer;
use crate::error::{Error, Result};
use crate::schedule::{
    self, FinishReason, GenerateOptions, Mask, Request, ScheduleOptions, Scheduler, Stats, Timings,
};
use crate::tokenizer::Tokenizer;
use crate::transformer::Backend;

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

impl Prompt<'_> {
    /// Its token ids; those of text and conversations begin with exactly one beginning-of-sequence token.
    ///
    /// # Errors
    /// When there is no tokenizer or no chat template and the prompt needs one, or the template refuses.
    pub fn ids(self, tokenizer: Option<&Tokenizer>, chat: Option<&ChatTemplate>) -> Result<Vec<u32>> {
        self.ids_within(usize::MAX, tokenizer, chat)
    }

    /// As [`Prompt::ids`], where more than `limit` tokens are an error before they are made, as far as the length tells.
    fn ids_within(
        self,
        limit: usize,
        tokenizer: Option<&Tokenizer>,
        chat: Option<&ChatTemplate>,
    ) -> Result<Vec<u32>> {
        let check = |tokenizer: &Tokenizer, text: &str| match tokenizer.fewest_tokens(text) {
            needed if needed > limit => Err(Error::ContextFull { needed, have: limit }),
            _ => Ok(()),
        };
        match self {
            Self::Ids(ids) => Ok(ids.to_vec()),
            Self::Text(text) => {
                let tokenizer = needed(tokenizer)?;
                check(tokenizer, text)?;
                tokenizer.encode_prompt(text)
            }
            Self::Chat(messages) => {
                let chat = chat.ok_or_else(|| {
                    Error::Request(
                        "the model folder has no chat template: prompt it with plain text".to_owned(),
                    )
                })?;
                let (tokenizer, text) = (needed(tokenizer)?, chat.render(messages)?);
                check(tokenizer, &text)?;
                tokenizer.encode_rendered(&text)
            }
        }
    }
}

/// The tokenizer of those who cannot do without.
fn needed(tokenizer: Option<&Tokenizer>) -> Result<&Tokenizer> {
    tokenizer.ok_or_else(|| {
        Error::Request("the model has no tokenizer (no tokenizer.json in its folder, nor one in its GGUF file): only token ids can be prompts".to_owned())
    })
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

/// Continues prompts on a back end, computing once what they have in common.
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
    scheduler: Scheduler<'m>,
    chat: Option<&'m ChatTemplate>,
}

/// One of the prompts that are continued side by side.
struct Run {
    id: schedule::Id,
    generation: Generation,
    is_over: bool,
    /// Whether the caller has had enough, and how many tokens came after that.
    is_cancelled: bool,
    dropped: usize,
}

impl<'m> Generator<'m> {
    /// A generator that has `backend` for itself. Without a tokenizer it takes and gives token ids alone. It stops at the
    /// model's end-of-sequence tokens and at the tokenizer's ([`Tokenizer::end_ids`]).
    pub fn new(
        backend: &'m mut dyn Backend,
        tokenizer: Option<&Tokenizer>,
        chat: Option<&'m ChatTemplate>,
    ) -> Self {
        let options = ScheduleOptions {
            // Whoever gave all the prompts waits for all the answers.
            chunk: Some(usize::MAX),
            keeps_last: true,
            ..ScheduleOptions::default()
        };
        Self {
            scheduler: Scheduler::new(Box::new(backend), tokenizer, options),
            chat,
        }
    }

    /// Tokens that prompt and answer together may have.
    #[must_use]
    pub fn context(&self) -> usize {
        self.scheduler.context()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.scheduler.stats()
    }

    /// What the back end left out so far because it was zero.
    #[must_use]
    pub fn zeros(&self) -> ZeroCounts {
        self.scheduler.backend().zeros()
    }

    /// The share of the weights of the linear layers that was read where `zeros` were counted, see [`Config::share_read`].
    ///
    /// [`Config::share_read`]: crate::Config::share_read
    #[must_use]
    pub fn share_read(&self, zeros: ZeroCounts) -> Option<f64> {
        self.scheduler.backend().spec().config.share_read(zeros)
    }

    /// The text of `ids`, special tokens spelled out.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        needed(self.scheduler.tokenizer())?.decode(ids)
    }

    /// The token ids of a prompt; those of text and conversations begin with exactly one beginning-of-sequence token.
    ///
    /// # Errors
    /// As for [`Prompt::ids`], and [`Error::ContextFull`] for a text so long that no context holds it, with the fewest tokens that
    /// it can have; others are given whole, however many tokens they have.
    pub fn prompt_ids(&self, prompt: Prompt<'_>) -> Result<Vec<u32>> {
        prompt.ids_within(self.context(), self.scheduler.tokenizer(), self.chat)
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
        on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        self.generate_masked(prompt, options, None, on_event)
    }

    /// As [`Generator::generate`], for an answer that obeys `mask` where one is given.
    ///
    /// # Errors
    /// As for [`Generator::generate`], and what the mask says.
    pub fn generate_masked(
        &mut self,
        prompt: Prompt<'_>,
        options: &GenerateOptions,
        mask: Option<Box<dyn Mask>>,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut request = Request::new(self.prompt_ids(prompt)?, options.clone());
        request.mask = mask;
        let mut all = self.run(vec![request], options, |_, event| on_event(event))?;
        Ok(all.swap_remove(0))
    }

    /// Continues several prompts side by side: as [`Generator::generate`] does one after the other, to the token, and much faster
    /// where the back end computes several tokens in the time of one. Those for whom there is no room wait for others to end.
    /// `on_event` is told the number of the prompt too; a break ends that one alone.
    ///
    /// ```
    /// use bitnet_model::{Device, LoadOptions, Model, Prompt};
    /// use std::ops::ControlFlow;
    ///
    /// # let folder = "../bitnet-cli/demo-model";
    /// let mut model = Model::load(folder, LoadOptions { n_seqs: 2, ..Device::Auto.into() })?;
    /// let options = model.generate_options();
    /// let prompts = ["1 + 1", "2 + 2", "3 + 3"].map(|sum| format!("User:{sum}<|eot_id|>Assistant:"));
    /// let prompts: Vec<Prompt<'_>> = prompts.iter().map(|text| Prompt::Text(text)).collect();
    /// let answers = model
    ///     .generator()
    ///     .generate_many(&prompts, &options, |_, _| ControlFlow::Continue(()))?;
    /// assert_eq!(answers[0].text, "1 + 1 = 2");
    /// assert_eq!(answers[2].text, "3 + 3 = 6");
    /// # Ok::<(), bitnet_model::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Generator::generate`].
    pub fn generate_many(
        &mut self,
        prompts: &[Prompt<'_>],
        options: &GenerateOptions,
        on_event: impl FnMut(usize, Event<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        // All are checked before anything is computed.
        let requests = prompts.iter().map(|&prompt| {
            let request = Request::new(self.prompt_ids(prompt)?, options.clone());
            self.scheduler.check_request(&request)?;
            Ok(request)
        });
        let requests: Vec<Request> = requests.collect::<Result<_>>()?;
        self.run(requests, options, on_event)
    }

    /// Continues what was checked.
    fn run(
        &mut self,
        requests: Vec<Request>,
        options: &GenerateOptions,
        mut on_event: impl FnMut(usize, Event<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let runs = requests.into_iter().map(|request| {
            let prompt_ids = request.prompt.clone();
            Ok(Run {
                id: self.scheduler.submit(request)?,
                generation: Generation {
                    prompt_ids,
                    ids: Vec::new(),
                    text: String::new(),
                    finish_reason: FinishReason::Cancelled,
                    timings: Timings::default(),
                },
                is_over: false,
                is_cancelled: false,
                dropped: 0,
            })
        });
        let mut runs: Vec<Run> = runs.collect::<Result<_>>()?;
        let mut failure = None;
        while runs.iter().any(|run| !run.is_over) {
            for (id, event) in self.scheduler.step() {
                let Some(i) = runs.iter().position(|run| run.id == id) else {
                    continue;
                };
                match self.take(&mut runs[i], event, options, &mut |event| on_event(i, event)) {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => {
                        runs[i].is_cancelled = true;
                        self.scheduler.cancel(id);
                    }
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            if failure.is_some() {
                runs.iter().for_each(|run| self.scheduler.cancel(run.id));
                self.scheduler.step();
                break;
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(runs.into_iter().map(|run| run.generation).collect()),
        }
    }

    /// Takes what happened to one of them, and tells the caller.
    fn take(
        &self,
        run: &mut Run,
        event: schedule::Event,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let generation = &mut run.generation;
        match event {
            schedule::Event::Prefill { done, total } if !run.is_cancelled => {
                return Ok(on_event(Event::Prefill { done, total }));
            }
            // Several tokens can come at once; the caller saw none after the one it stopped at.
            schedule::Event::Token { .. } if run.is_cancelled => run.dropped += 1,
            schedule::Event::Token { id, text, .. } => {
                generation.ids.push(id);
                generation.text.push_str(&text);
                return Ok(on_event(Event::Token { id, text: &text }));
            }
            schedule::Event::Finished {
                reason,
                mut text,
                timings,
                ..
            } => {
                run.is_over = true;
                generation.timings = timings;
                let is_own_end = matches!(reason, FinishReason::Stop | FinishReason::StopString)
                    || generation.ids.is_empty() && reason == FinishReason::Length;
                generation.finish_reason = if run.is_cancelled && (run.dropped > 0 || !is_own_end) {
                    FinishReason::Cancelled
                } else {
                    reason
                };
                if run.dropped > 0 {
                    text = self.held_back(generation, options)?;
                }
                let has_end = self.scheduler.tokenizer().is_some() && !generation.ids.is_empty();
                if has_end && generation.finish_reason != FinishReason::StopString {
                    generation.text.push_str(&text);
                    let _ = on_event(Event::End { text: &text });
                }
            }
            schedule::Event::Failed(error) => {
                run.is_over = true;
                return Err(error);
            }
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The end of the text of a generation's tokens that was not shown with them.
    fn held_back(&self, generation: &Generation, options: &GenerateOptions) -> Result<String> {
        let Some(tokenizer) = self.scheduler.tokenizer() else {
            return Ok(String::new());
        };
        let mut detokenizer = Detokenizer::new(tokenizer, options.special);
        let mut text = String::new();
        for &id in &generation.ids {
            text.push_str(&detokenizer.push(id)?);
        }
        text.push_str(&detokenizer.finish()?);
        Ok(text.strip_prefix(&generation.text).unwrap_or_default().to_owned())
    }
}
