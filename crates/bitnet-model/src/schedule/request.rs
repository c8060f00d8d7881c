//! What a scheduler is asked, and what it tells.

use std::time::Duration;

use crate::{Error, Logprob, Result, Sampling, SpecialTokens};

/// How to continue a prompt. There may be more of it in a later version: `..GenerateOptions::default()`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to generate; `None` goes on until the model stops or the context is full. 0 computes the prompt alone.
    pub max_tokens: Option<usize>,
    /// Tokens of the answer before which none is chosen that would end it, and in whose text no stop string is looked for.
    pub min_tokens: usize,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Leaves the stop string that ended the text at its end.
    pub include_stop: bool,
    /// Tokens that end the sequence, beside the model's own end-of-sequence tokens.
    pub stop_ids: Vec<u32>,
    /// Treats the model's end-of-sequence tokens as ordinary ones.
    pub ignore_eos: bool,
    /// Which tokens become text.
    pub special: SpecialTokens,
    /// Most tokens to guess from what the text has said before, and to check in one step; 0 guesses none. It changes the speed and
    /// nothing else: a guess counts where it is what would have been chosen.
    pub draft_max: usize,
}

/// A constraint on the tokens of one answer, such as a grammar.
///
/// A scheduler asks it for the next token with [`Mask::allowed`] and tells it the token that was chosen. While a device computes, it
/// may also go ahead along guessed tokens and back.
pub trait Mask: Send {
    /// Sets bit `id % 32` of `bits[id / 32]` for each token that may come next; all bits are 0 before.
    ///
    /// # Errors
    /// When the constraint cannot be worked out; the request fails with it.
    fn allowed(&mut self, bits: &mut [u32]) -> Result<()>;
    /// Takes a token that [`Mask::allowed`] allowed. Whether the answer is complete, so that no other may follow.
    ///
    /// # Errors
    /// As for [`Mask::allowed`].
    fn accept(&mut self, id: u32) -> Result<bool>;
    /// Forgets the last `n` tokens taken.
    ///
    /// # Errors
    /// As for [`Mask::allowed`].
    fn rollback(&mut self, n: usize) -> Result<()>;
    /// One in the same state, for another answer of the same request.
    fn fork(&self) -> Box<dyn Mask>;
    /// Tokens that are likely to come next because the text of them is all that is allowed, such as the rest of a name. They are
    /// guesses, of ids of the vocabulary: what is chosen in the end is what would have been chosen without them.
    fn forced(&mut self) -> Vec<u32> {
        Vec::new()
    }
}

/// A prompt to continue.
pub struct Request {
    /// Its tokens; at least one.
    pub prompt: Vec<u32>,
    /// How to continue it.
    pub options: GenerateOptions,
    /// Answers to give. The prompt is computed once; answer `i` draws with a seed of its own, made of [`Sampling::seed`] and `i`, and
    /// answer 0 is what a request for one gets.
    pub n: usize,
    /// Asks for the log-probability of each token, and for those of so many most likely tokens.
    pub logprobs: Option<usize>,
    /// Asks for the log-probability of each token of the prompt after the first, and for those of so many most likely tokens. What the
    /// cache has of the prompt is computed again for it. With [`GenerateOptions::max_tokens`] 0 it says how likely a text is.
    pub prompt_logprobs: Option<usize>,
    /// Requests of a lower number go first; equal ones as they came.
    pub priority: i32,
    /// Only requests of the same salt find what another computed: one for each party that must not learn, from the time an answer
    /// takes, what others asked.
    pub salt: u64,
    /// What the answers must obey.
    pub mask: Option<Box<dyn Mask>>,
}

impl Request {
    /// For one answer, without more.
    #[must_use]
    pub fn new(prompt: Vec<u32>, options: GenerateOptions) -> Self {
        Self {
            prompt,
            options,
            n: 1,
            logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            salt: 0,
            mask: None,
        }
    }
}

/// What requests must fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most tokens of a prompt and its answer together.
    pub(crate) context: usize,
    pub(crate) vocab: usize,
    pub(crate) has_tokenizer: bool,
}

impl Bounds {
    /// Refuses what can never be computed.
    pub(crate) fn check(&self, request: &Request) -> Result<()> {
        let refuse = |message: String| Err(Error::Request(message));
        let (ids, options) = (&request.prompt, &request.options);
        if ids.is_empty() {
            return refuse("the prompt is empty; give at least one token".to_owned());
        }
        if ids.len() > self.context {
            return Err(Error::ContextFull {
                needed: ids.len(),
                have: self.context,
            });
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return refuse(format!(
                "prompt token {id} is not below the model's vocabulary size {}; \
                 does the tokenizer belong to this model?",
                self.vocab
            ));
        }
        if !self.has_tokenizer && !options.stop.is_empty() {
            return refuse("stop strings need a tokenizer, and the model folder has none".to_owned());
        }
        if request.n == 0 {
            return refuse("0 answers were asked for; ask for at least one".to_owned());
        }
        options.sampling.check()
    }
}

/// The name of a request while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(super) u64);

/// Something that happened to a request. It is over when every answer has finished, or with [`Event::Failed`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Its turn came.
    Started {
        /// Prompt tokens that need not be computed, since another request computed them.
        cached: usize,
    },
    /// A part of the prompt was computed.
    Prefill {
        /// Prompt tokens in the KV cache by now, found ones included.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// How likely tokens of the prompt were, where that was asked for with [`Request::prompt_logprobs`]: the log-softmax of the
    /// model's logits, without bias and penalties. They come in order, some at a time, each token once; the first token of a
    /// prompt follows on nothing and has none.
    PromptLogprobs {
        /// The place in the prompt of the first of them.
        first: usize,
        /// One for each token from there on.
        logprobs: Vec<Logprob>,
    },
    /// A token of an answer.
    Token {
        /// Which answer, below [`Request::n`].
        choice: usize,
        /// The token.
        id: u32,
        /// The text that is now certain; empty while a character or a possible stop string is incomplete, and where the scheduler has
        /// no tokenizer.
        text: String,
        /// How likely it was, where that was asked for.
        logprob: Option<Logprob>,
    },
    /// An answer has ended.
    Finished {
        /// Which one.
        choice: usize,
        /// Why.
        reason: FinishReason,
        /// What ended it; `None` where it was neither a token nor a stop string.
        ended_by: Option<EndedBy>,
        /// The text that was held back; may be empty.
        text: String,
        /// Where its time went.
        timings: Timings,
    },
    /// The request cannot go on; all of its answers end.
    Failed(Error),
}

/// What the model wrote that ended an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndedBy {
    /// An end-of-sequence token of the model or its tokenizer.
    Eos(u32),
    /// One of [`GenerateOptions::stop_ids`] that is not the model's own.
    StopId(u32),
    /// One of [`GenerateOptions::stop`].
    StopString(String),
}

/// Why generation ended. The list is closed, so that whoever maps it to something else hears of a new reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the sequence, or a mask says that it is complete.
    Stop,
    /// A stop string appeared.
    StopString,
    /// As many tokens as asked for.
    Length,
    /// The context is full.
    Context,
    /// The caller said so.
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

/// Where the time went. What is said of the prompt is the same for every answer of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Time from the request to its turn. An answer that was set back later waits again; that is part of the time it was in.
    pub queued: Duration,
    /// Prompt tokens computed, those that were computed again included.
    pub prefill_tokens: usize,
    /// Prompt tokens that an earlier generation had computed.
    pub reused_tokens: usize,
    /// Time to compute the prompt.
    pub prefill: Duration,
    /// Time from the request to the first token.
    pub first_token: Duration,
    /// Tokens chosen after the first.
    pub decode_tokens: usize,
    /// Time for those.
    pub decode: Duration,
    /// Tokens guessed and computed: see [`GenerateOptions::draft_max`].
    pub drafted: usize,
    /// Those of them that were right.
    pub accepted: usize,
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
