//! From logits to the next token: bias, penalties, top-k, top-p, min-p, temperature, then a draw.
//!
//! The order is llama.cpp's. Everything is plain arithmetic in a fixed order, the exponential included, so the same logits
//! and seed give the same token on every machine. Up to [`MAX_SORTED`] candidates are sorted; draws from more are those of `mass`.

mod mass;

use std::collections::VecDeque;

use bitnet_layout::draw::{random_bits, uniform, weight};

use crate::{Error, Result};

/// Most candidates that are sorted before they are drawn from.
pub(crate) const MAX_SORTED: usize = 256;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits before the draw; 0 takes the most likely token (the lowest id of equals) and ignores the rest.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many recent tokens, prompt included, the three penalties look at; 0 turns them off, `usize::MAX` is all.
    pub repeat_last_n: usize,
    /// Taken from the logit of every recent token.
    pub presence_penalty: f32,
    /// Taken from the logit of every recent token, times how often it occurs.
    pub frequency_penalty: f32,
    /// Whether presence and frequency count the tokens of the prompt too, as llama.cpp does; OpenAI's count the answer's alone.
    pub penalize_prompt: bool,
    /// Added to the logits of these tokens first of all; negative infinity forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Sequences of tokens that never appear: the last token of one is forbidden where the others stand before it.
    pub bad_words: Vec<Vec<u32>>,
    /// No sequence of so many tokens appears twice, prompt included; 0 turns it off.
    pub no_repeat_ngram: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// llama.cpp's defaults: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties; seed 0.
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalize_prompt: true,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            no_repeat_ngram: 0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether the choice is the largest logit as the model computed it.
    #[must_use]
    pub fn is_plain_greedy(&self) -> bool {
        let Self {
            temperature,
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            ..
        } = self;
        *temperature == 0.0
            && *repeat_penalty == 1.0
            && *presence_penalty == 0.0
            && *frequency_penalty == 0.0
            && !self.has_token_rules()
    }

    /// Whether single tokens are forbidden or favored, by id or by what stands before them.
    #[must_use]
    pub fn has_token_rules(&self) -> bool {
        !self.logit_bias.is_empty() || !self.bad_words.is_empty() || self.no_repeat_ngram > 0
    }

    /// Draws from the model's own distribution: temperature 1, no cuts, no penalties, which is what OpenAI's API does where a request
    /// says nothing. Its penalties count the answer alone.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_last_n: usize::MAX,
            penalize_prompt: false,
            ..Self::default()
        }
    }

    /// Always the most likely token.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// The settings of answer `choice` of a request for several: the first one's are these; each other one's have a seed of its own,
    /// made of this seed and the number.
    #[must_use]
    pub fn of_choice(&self, choice: usize) -> Self {
        let seed = match choice as u64 {
            0 => self.seed,
            // 53 bits of a draw that no answer comes to, since draws count from 0.
            n => (uniform(self.seed, u64::MAX - n) * (1u64 << 53) as f64) as u64,
        };
        Self { seed, ..self.clone() }
    }

    /// How many candidates are sorted of a vocabulary: `None` where that is all, or more than [`MAX_SORTED`].
    pub(crate) fn n_sorted(&self, vocab: usize) -> Option<usize> {
        let k = if self.temperature == 0.0 { 1 } else { self.top_k };
        (1..vocab.min(MAX_SORTED + 1)).contains(&k).then_some(k)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn check(&self) -> Result<()> {
        let check = |ok: bool, name: &str, value: f32, expected: &str| {
            let message = || Error::Request(format!("{name} is {value}; expected {expected}"));
            if ok { Ok(()) } else { Err(message()) }
        };
        let unit = 0.0..=1.0;
        let (t, r) = (self.temperature, self.repeat_penalty);
        check(t >= 0.0 && t.is_finite(), "temperature", t, "0 (greedy) or more")?;
        check(
            unit.contains(&self.top_p),
            "top-p",
            self.top_p,
            "0 to 1 (1 turns it off)",
        )?;
        check(unit.contains(&self.min_p), "min-p", self.min_p, "0 (off) to 1")?;
        check(
            r > 0.0 && r.is_finite(),
            "repeat-penalty",
            r,
            "more than 0 (1 turns it off)",
        )?;
        for (name, penalty) in [
            ("presence-penalty", self.presence_penalty),
            ("frequency-penalty", self.frequency_penalty),
        ] {
            check(
                penalty.is_finite(),
                name,
                penalty,
                "a finite number (0 turns it off)",
            )?;
        }
        for &(id, bias) in &self.logit_bias {
            let ok = !bias.is_nan() && bias < f32::INFINITY;
            check(ok, &format!("logit-bias of token {id}"), bias, "a number or -inf")?;
        }
        if self.bad_words.iter().any(Vec::is_empty) {
            return Err(Error::Request(
                "bad-words holds an empty sequence of tokens; expected at least one token in each".to_owned(),
            ));
        }
        Ok(())
    }
}

/// What is asked of one choice beside the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice<'a> {
    /// Bit `id % 32` of word `id / 32` says whether `id` may be chosen, and a token past its end may not; `None` allows all.
    pub mask: Option<&'a [u32]>,
    /// Tokens that may not be chosen.
    pub forbidden: &'a [u32],
    /// Asks for the token's log-probability, and those of so many most likely tokens.
    pub logprobs: Option<usize>,
}

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Its id.
    pub id: u32,
    /// How likely it was, where that was asked for.
    pub logprob: Option<Logprob>,
}

/// How likely a token was: the log-softmax of the logits after bias and penalties, before temperature, cuts and masks.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Natural logarithm of its probability; negative infinity where the bias forbids it.
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities, best first, the lower id of equals first.
    pub top: Vec<(u32, f32)>,
}

impl Logprob {
    /// How likely token `id` is by its `logits` (vocab), as the model gives them, beside the `n` most likely ones.
    ///
    /// ```
    /// use bitnet_model::Logprob;
    ///
    /// let likely = Logprob::of(&[1.0, 1.0, f32::MIN], 1, 1)?;
    /// assert_eq!(likely.logprob, 0.5_f32.ln());
    /// assert_eq!(likely.top, [(0, 0.5_f32.ln())]);
    /// # Ok::<(), bitnet_model::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a logit is NaN or infinite, or there is none for `id`.
    pub fn of(logits: &[f32], id: u32, n: usize) -> Result<Self> {
        check_finite(logits)?;
        let logit = logits.get(id as usize).ok_or_else(|| {
            Error::Request(format!(
                "token {id} is not below the vocabulary size {}",
                logits.len()
            ))
        })?;
        Ok(Likely::new(logits, n).of(*logit))
    }
}

/// Refuses what no sound model computes.
fn check_finite(logits: &[f32]) -> Result<()> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        None => Ok(()),
        Some(id) => Err(not_finite(id, logits[id])),
    }
}

fn not_finite(id: usize, logit: f32) -> Error {
    Error::Damaged(format!(
        "the model gave {logit} as the logit of token {id}: its weights are damaged or a device failed"
    ))
}

/// The logit of a token among those of `ids`, or of all where there are none.
fn logit_of<'l>(logits: &'l mut [f32], ids: &[u32], id: u32) -> Option<&'l mut f32> {
    let place = match ids.is_empty() {
        true => id as usize,
        false => ids.binary_search(&id).ok()?,
    };
    logits.get_mut(place)
}

/// What a token is chosen from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Logits<'a> {
    /// The logits of all tokens, (vocab).
    All(&'a [f32]),
    /// Those of some tokens of a vocabulary: at least what [`Sampler::need`] says.
    Some {
        /// Tokens, ascending.
        ids: &'a [u32],
        /// Their logits.
        logits: &'a [f32],
        /// Size of the vocabulary.
        vocab: usize,
    },
}

/// The logits that a choice depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// So many of the largest that are not `known`.
    pub k: usize,
    /// Tokens whose logits are changed before they are compared, ascending.
    pub known: Vec<u32>,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Chooses tokens of one sequence.
///
/// ```
/// use bitnet_model::{Sampler, Sampling};
///
/// let mut greedy = Sampler::new(Sampling::greedy())?;
/// assert_eq!(greedy.sample(&[0.5, 2.0, 1.0])?, 1);
/// // The same seed gives the same draws.
/// let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
/// let (mut a, mut b) = (Sampler::new(sampling.clone())?, Sampler::new(sampling)?);
/// assert_eq!(a.sample(&[1.0, 1.1, 0.9])?, b.sample(&[1.0, 1.1, 0.9])?);
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    recent: VecDeque<u32>,
    /// Tokens accepted since the prompt.
    answered: usize,
    /// All of the text, where rules look back as far.
    text: Vec<u32>,
    draws: u64,
    logits: Vec<f32>,
    /// Whose they are; none where they are those of all tokens.
    ids: Vec<u32>,
    vocab: usize,
    candidates: Vec<Candidate>,
    weights: Vec<f64>,
    masses: Vec<u64>,
}

impl Sampler {
    /// A sampler at the start of a sequence.
    ///
    /// # Errors
    /// As for [`Sampling::check`].
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        Ok(Self {
            sampling,
            recent: VecDeque::new(),
            answered: 0,
            text: Vec::new(),
            draws: 0,
            logits: Vec::new(),
            ids: Vec::new(),
            vocab: 0,
            candidates: Vec::new(),
            weights: Vec::new(),
            masses: Vec::new(),
        })
    }

    /// Tells the penalties and rules of a token of the text: each of the prompt, then each that was chosen.
    pub fn accept(&mut self, id: u32) {
        let s = &self.sampling;
        if s.no_repeat_ngram > 0 || s.bad_words.iter().any(|word| word.len() > 1) {
            self.text.push(id);
        }
        if self.penalizes() {
            self.answered += 1;
            self.recent.push_back(id);
            if self.recent.len() > self.sampling.repeat_last_n {
                self.recent.pop_front();
            }
        }
    }

    /// Says that all of the prompt was accepted, and that what follows is the answer: see [`Sampling::penalize_prompt`].
    pub fn begin_answer(&mut self) {
        self.answered = 0;
    }

    /// The settings.
    #[must_use]
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// The last tokens of the text, oldest first, as far as penalties look back; none where they are off.
    pub fn recent(&self) -> impl ExactSizeIterator<Item = u32> {
        self.recent.iter().copied()
    }

    /// Those of [`Self::recent`] that presence and frequency penalties count.
    pub fn counted(&self) -> impl ExactSizeIterator<Item = u32> {
        let first = match self.sampling.penalize_prompt {
            true => 0,
            false => self.recent.len().saturating_sub(self.answered),
        };
        self.recent.range(first..).copied()
    }

    /// Tokens drawn so far with this seed; taking the most likely one is no draw.
    #[must_use]
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// Takes note of a token that a device chose as this sampler would have: instead of [`Self::sample`] and
    /// [`Self::accept`].
    pub fn chosen(&mut self, id: u32) {
        if self.sampling.temperature > 0.0 {
            self.draws += 1;
        }
        self.accept(id);
    }

    /// The next token, given its `logits` (vocab).
    ///
    /// # Errors
    /// When a logit is NaN or infinite, when every token is forbidden, or when a biased token is not in the vocabulary.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        Ok(self.choose(logits, &Choice::default())?.id)
    }

    /// As [`Self::sample`], and with what `choice` asks for.
    ///
    /// # Errors
    /// As for [`Self::sample`].
    pub fn choose(&mut self, logits: &[f32], choice: &Choice<'_>) -> Result<Chosen> {
        self.choose_from(Logits::All(logits), choice)
    }

    /// Which logits the next choice depends on, if tokens `ahead` are taken before it and `forbidden` ones may be; `None` where it
    /// is all of them, or so many that it is no use to look for them.
    #[must_use]
    pub fn need(&self, vocab: usize, ahead: &[u32], forbidden: &[u32]) -> Option<Need> {
        let s = &self.sampling;
        let k = s.n_sorted(vocab).filter(|_| s.no_repeat_ngram == 0)?;
        let mut known = forbidden.to_vec();
        known.extend(s.logit_bias.iter().map(|(id, _)| id));
        known.extend(s.bad_words.iter().filter_map(|word| word.last()));
        if self.penalizes() {
            known.extend(self.recent.iter().chain(ahead));
        }
        known.sort_unstable();
        known.dedup();
        Some(Need { k, known })
    }

    /// As [`Self::choose`], from no more logits than the choice depends on. From any that are at least what [`Self::need`] says it
    /// chooses as from all.
    ///
    /// # Errors
    /// As for [`Self::sample`], and when log-probabilities are asked for and there are not all logits.
    pub fn choose_from(&mut self, logits: Logits<'_>, choice: &Choice<'_>) -> Result<Chosen> {
        self.logits.clear();
        self.ids.clear();
        match logits {
            Logits::All(logits) => {
                check_finite(logits)?;
                self.vocab = logits.len();
                self.logits.extend_from_slice(logits);
            }
            Logits::Some { ids, logits, vocab } => {
                if choice.logprobs.is_some() {
                    return Err(Error::Request(
                        "log-probabilities need the logits of all tokens".to_owned(),
                    ));
                }
                if let Some((id, logit)) = ids.iter().zip(logits).find(|(_, logit)| !logit.is_finite()) {
                    return Err(not_finite(*id as usize, *logit));
                }
                if ids.is_empty() {
                    return Err(all_forbidden());
                }
                self.vocab = vocab;
                self.logits.extend_from_slice(logits);
                self.ids.extend_from_slice(ids);
            }
        }
        self.bias()?;
        self.penalize();
        let likely = choice.logprobs.map(|n| Likely::new(&self.logits, n));
        self.forbid(choice);
        self.obey_rules();
        // Tokens ascend with their places, so that what goes first among equals does, too.
        let place = self.pick()?;
        let logprob = likely.map(|likely| likely.of(self.logits[place as usize]));
        let id = self.ids.get(place as usize).copied().unwrap_or(place);
        Ok(Chosen { id, logprob })
    }

    /// Takes the best of `self.logits`, or draws from them: its place among them.
    fn pick(&mut self) -> Result<u32> {
        let s = &self.sampling;
        if s.temperature == 0.0 {
            let best = best(&self.logits).filter(|&id| self.logits[id as usize] > f32::NEG_INFINITY);
            return best.ok_or_else(all_forbidden);
        }

        let draws = self.draws;
        let Some(k) = s.n_sorted(self.vocab) else {
            let draw = mass::Draw {
                temperature: s.temperature,
                top_k: (1..self.vocab).contains(&s.top_k).then_some(s.top_k),
                top_p: s.top_p,
                min_p: s.min_p,
                random: random_bits(s.seed, draws),
            };
            let drawn = draw.from(&self.logits, &mut self.masses)?;
            let place = drawn.ok_or_else(all_forbidden)?;
            self.draws += 1;
            return Ok(place);
        };
        let candidates = &mut self.candidates;
        candidates.clear();
        top_k(&self.logits, k, candidates);
        candidates.retain(|c| c.logit > f32::NEG_INFINITY);
        let Some(max) = candidates.iter().map(|c| c.logit).reduce(f32::max) else {
            return Err(all_forbidden());
        };
        let buffer = &mut self.weights;
        if s.top_p < 1.0 {
            weigh(candidates, max, 1.0, buffer);
            top_p(candidates, buffer, s.top_p);
        }
        if s.min_p > 0.0 {
            weigh(candidates, max, 1.0, buffer);
            let mut weights = buffer.iter();
            candidates.retain(|_| weights.next().is_some_and(|&weight| weight >= f64::from(s.min_p)));
        }
        weigh(candidates, max, s.temperature, buffer);
        self.draws += 1;
        Ok(draw(candidates, buffer, uniform(s.seed, draws)))
    }

    /// Whether penalties can change a logit.
    #[must_use]
    pub fn penalizes(&self) -> bool {
        let s = &self.sampling;
        s.repeat_last_n > 0
            && (s.repeat_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0)
    }

    fn bias(&mut self) -> Result<()> {
        for &(id, bias) in &self.sampling.logit_bias {
            let vocab = self.vocab;
            if id as usize >= vocab {
                return Err(Error::Request(format!(
                    "logit-bias names token {id}, which is not below the vocabulary size {vocab}"
                )));
            }
            if let Some(logit) = logit_of(&mut self.logits, &self.ids, id) {
                *logit += bias;
            }
        }
        Ok(())
    }

    fn forbid(&mut self, choice: &Choice<'_>) {
        for &id in choice.forbidden {
            if let Some(logit) = logit_of(&mut self.logits, &self.ids, id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let Some(mask) = choice.mask else {
            return;
        };
        if !self.ids.is_empty() {
            for (&id, logit) in self.ids.iter().zip(&mut self.logits) {
                let word = mask.get(id as usize / 32).copied().unwrap_or(0);
                if word >> (id % 32) & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        } else {
            for (i, logits) in self.logits.chunks_mut(32).enumerate() {
                let word = mask.get(i).copied().unwrap_or(0);
                if word != u32::MAX {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }

    /// Takes out what bad words and repeated n-grams forbid here. What names no token of the vocabulary cannot be chosen anyway.
    fn obey_rules(&mut self) {
        let (text, logits, ids) = (&self.text, &mut self.logits, &self.ids);
        let mut forbid = |id: u32| {
            if let Some(logit) = logit_of(logits, ids, id) {
                *logit = f32::NEG_INFINITY;
            }
        };
        for word in &self.sampling.bad_words {
            if let Some((&last, before)) = word.split_last()
                && text.ends_with(before)
            {
                forbid(last);
            }
        }
        repeated(text, self.sampling.no_repeat_ngram, &mut forbid);
    }

    fn penalize(&mut self) {
        let prompt = self.recent.len() - self.counted().len();
        // (token, whether presence and frequency count it)
        let recent = self.recent.iter().enumerate();
        let mut recent: Vec<(u32, bool)> = recent.map(|(i, &id)| (id, i >= prompt)).collect();
        recent.sort_unstable();
        for run in recent.chunk_by(|a, b| a.0 == b.0) {
            let Some(logit) = logit_of(&mut self.logits, &self.ids, run[0].0) else {
                continue;
            };
            let s = &self.sampling;
            let scaled = if *logit > 0.0 {
                *logit / s.repeat_penalty
            } else {
                *logit * s.repeat_penalty
            };
            let counted = run.iter().filter(|(_, counted)| *counted).count();
            *logit = if counted > 0 {
                scaled - s.presence_penalty - s.frequency_penalty * counted as f32
            } else {
                scaled
            };
        }
    }
}

/// The log-softmax of some logits.
struct Likely {
    max: f32,
    /// Logarithm of the sum of `exp(logit - max)`, summed in f64 from the lowest id.
    log_sum: f64,
    top: Vec<Candidate>,
}

impl Likely {
    fn new(logits: &[f32], n: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| weight(logit, max, 1.0)).sum();
        let mut top = Vec::new();
        if n > 0 {
            top_k(logits, n.min(logits.len()), &mut top);
        }
        Self {
            max,
            log_sum: sum.ln(),
            top,
        }
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }

    /// For the chosen token, whose logit is `logit`.
    fn of(&self, logit: f32) -> Logprob {
        Logprob {
            logprob: self.logprob(logit),
            top: self.top.iter().map(|c| (c.id, self.logprob(c.logit))).collect(),
        }
    }
}

/// Tells of every token that followed the last `n - 1` tokens of `text` somewhere in it, in time linear in the text (the
/// failure function of Knuth, Morris and Pratt).
fn repeated(text: &[u32], n: usize, mut each: impl FnMut(u32)) {
    let Some(start) = n.checked_sub(1).and_then(|len| text.len().checked_sub(len)) else {
        return;
    };
    let pattern = &text[start..];
    let mut failure = vec![0; pattern.len()];
    for at in 1..pattern.len() {
        let mut len = failure[at - 1];
        while len > 0 && pattern[len] != pattern[at] {
            len = failure[len - 1];
        }
        failure[at] = len + usize::from(pattern[len] == pattern[at]);
    }
    let mut matched = 0;
    for &id in text {
        if matched == pattern.len() {
            each(id);
            matched = failure.last().copied().unwrap_or(0);
        }
        while matched > 0 && pattern[matched] != id {
            matched = failure[matched - 1];
        }
        matched += usize::from(pattern.get(matched) == Some(&id));
    }
}

fn all_forbidden() -> Error {
    Error::Request(
        "every token is forbidden, by logit-bias, by a mask or by the rules of generation_config.json; leave at least one"
            .to_owned(),
    )
}

/// The lowest id of the largest logit.
pub(crate) fn best(logits: &[f32]) -> Option<u32> {
    let mut best = (0, *logits.first()?);
    for (id, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    Some(best.0)
}

/// Most likely first, the lower id of equals first: a total order, so that cuts do not depend on the algorithm.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The `k` best of all, sorted. Batches of `k` new ones are cut back by selection: one comparison for nearly every token
/// of a large vocabulary, and never a sort of it.
fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        if logit.total_cmp(&threshold).is_gt() || out.len() < k {
            out.push(Candidate { id, logit });
            if out.len() == 2 * k {
                out.select_nth_unstable_by(k - 1, order);
                out.truncate(k);
                threshold = out[k - 1].logit;
            }
        }
    }
    out.sort_unstable_by(order);
    out.truncate(k);
}

/// The weight of each candidate at `temperature`.
fn weigh(candidates: &[Candidate], max: f32, temperature: f32, out: &mut Vec<f64>) {
    out.clear();
    out.extend(candidates.iter().map(|c| weight(c.logit, max, temperature)));
}

/// Keeps the fewest candidates, which are sorted, whose part of all `weights` reaches `p`; at least one.
fn top_p(candidates: &mut Vec<Candidate>, weights: &[f64], p: f32) {
    let goal = weights.iter().sum::<f64>() * f64::from(p);
    let mut mass = 0.0;
    let reached = weights.iter().position(|weight| {
        mass += weight;
        mass >= goal
    });
    if let Some(last) = reached {
        candidates.truncate(last + 1);
    }
}

/// The candidate at `uniform` (in [0, 1)) of the distribution that `weights` are.
fn draw(candidates: &[Candidate], weights: &[f64], uniform: f64) -> u32 {
    let total: f64 = weights.iter().sum();
    let (goal, mut mass) = (uniform * total, 0.0);
    for (candidate, weight) in candidates.iter().zip(weights) {
        mass += weight;
        if mass > goal {
            return candidate.id;
        }
    }
    // `goal < total` and both sums run in the same order, so this is reached by rounding alone.
    candidates.last().map_or(0, |c| c.id)
}

#[cfg(test)]
mod tests;
