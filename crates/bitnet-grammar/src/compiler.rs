//! Grammars in, masks out.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bitnet_model::schedule::Mask;
use bitnet_model::{Config, Tokenizer};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};

use crate::error::GrammarError;
use crate::grammar::Grammar;
use crate::guard::guarded;
use crate::mask::Follower;
use crate::vocabulary;

/// Compiles grammars for the vocabulary of one model. A clone is cheap and shares what is made of the vocabulary, which happens with
/// the first grammar, and the grammars compiled last: programs send the same one with every request.
///
/// ```
/// use bitnet_grammar::{Compiler, Grammar};
/// use bitnet_model::Tokenizer;
///
/// # let folder = "../bitnet-cli/demo-model";
/// let tokenizer = Tokenizer::of_model(folder)?;
/// let compiler = Compiler::new(&tokenizer, 768, tokenizer.end_ids());
/// let mut mask = compiler.compile(&Grammar::Choice(vec!["yes".into(), "no".into()]))?;
/// let mut bits = [0u32; 24];
/// mask.allowed(&mut bits)?;
/// let is_allowed = |id: u32| bits[id as usize / 32] >> (id % 32) & 1 == 1;
/// assert!(is_allowed(tokenizer.token_to_id("y").unwrap()));
/// assert!(!is_allowed(tokenizer.token_to_id("x").unwrap()));
/// assert_eq!(compiler.compile(&Grammar::Regex("((((".into())).err().map(|error| error.to_string().contains("regex")), Some(true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Compiler {
    shared: Arc<Shared>,
}

struct Shared {
    tokenizer: Tokenizer,
    vocab: usize,
    eos: Vec<u32>,
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    /// At the beginning of an answer, the one used last at the end.
    recent: Mutex<VecDeque<(Grammar, Box<dyn Mask>)>>,
}

/// Compiled grammars that are kept.
const KEPT: usize = 8;

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler")
            .field("vocab", &self.shared.vocab)
            .field("eos", &self.shared.eos)
            .finish_non_exhaustive()
    }
}

/// What a grammar may cost, in the library's units. The first, third and fourth bound how long it takes to compile, about 200 ms for
/// the worst; the others how long a mask takes, about 20 ms for the worst, and the memory that a grammar uses, some tens of megabytes.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 200_000,
        max_grammar_size: 200_000,
        max_items_in_row: 10_000,
        step_max_items: 50_000,
        max_lexer_states: 25_000,
        // Its cost would not be bounded by any of them.
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

impl Compiler {
    /// For a model of `vocab` tokens whose answers end at the tokens `eos`.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32]) -> Self {
        Self {
            shared: Arc::new(Shared {
                tokenizer: tokenizer.clone(),
                vocab,
                eos: eos.to_vec(),
                factory: OnceLock::new(),
                recent: Mutex::new(VecDeque::new()),
            }),
        }
    }

    /// For a model of this tokenizer and shape, whose answers end where a scheduler ends them.
    #[must_use]
    pub fn of_model(tokenizer: &Tokenizer, config: &Config) -> Self {
        let eos: Vec<u32> = config.eos.iter().chain(tokenizer.end_ids()).copied().collect();
        Self::new(tokenizer, config.vocab, &eos)
    }

    /// Makes what the vocabulary needs, where it is not made: for those who want the first grammar to be as fast as others.
    ///
    /// # Errors
    /// When the vocabulary cannot be constrained.
    pub fn prepare(&self) -> Result<(), GrammarError> {
        self.factory().map(|_| ())
    }

    fn factory(&self) -> Result<&ParserFactory, GrammarError> {
        let made = self
            .shared
            .factory
            .get_or_init(|| guarded(|| self.shared.factory()));
        made.as_ref().map_err(Clone::clone)
    }

    /// The constraint of `grammar`, at the beginning of an answer. It takes up to a few hundred milliseconds, on a thread of its
    /// own, whatever the grammar is; less than one, where it is among those used last.
    ///
    /// # Errors
    /// When the grammar has a mistake, has something that is not supported, allows no answer, is too large or takes too long.
    pub fn compile(&self, grammar: &Grammar) -> Result<Box<dyn Mask>, GrammarError> {
        let factory = self.factory()?;
        if let Some(mask) = self.shared.recalled(grammar) {
            return Ok(mask);
        }
        let mask = guarded(|| {
            let parsed: TopLevelGrammar = grammar.to_library()?;
            let matcher = Matcher::new(factory.create_parser(parsed));
            let follower = Follower::new(
                matcher,
                factory.tok_env().clone(),
                matches!(grammar, Grammar::Lark(_)),
            )?;
            Ok(Box::new(follower) as Box<dyn Mask>)
        })?;
        self.shared.keep(grammar, mask.fork());
        Ok(mask)
    }
}

impl Shared {
    fn recent(&self) -> MutexGuard<'_, VecDeque<(Grammar, Box<dyn Mask>)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recalled(&self, grammar: &Grammar) -> Option<Box<dyn Mask>> {
        let mut recent = self.recent();
        let at = recent.iter().position(|(kept, _)| kept == grammar)?;
        let found = recent.remove(at)?;
        let mask = found.1.fork();
        recent.push_back(found);
        Some(mask)
    }

    fn keep(&self, grammar: &Grammar, mask: Box<dyn Mask>) {
        let mut recent = self.recent();
        if recent.iter().all(|(kept, _)| kept != grammar) {
            recent.push_back((grammar.clone(), mask));
        }
        if recent.len() > KEPT {
            recent.pop_front();
        }
    }

    fn factory(&self) -> Result<ParserFactory, GrammarError> {
        let tokens = vocabulary::environment(&self.tokenizer, self.vocab, &self.eos)?;
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices)
            .map_err(|error| GrammarError::from_library(&error.to_string(), false))?;
        *factory.limits_mut() = limits();
        factory.quiet();
        Ok(factory)
    }
}
