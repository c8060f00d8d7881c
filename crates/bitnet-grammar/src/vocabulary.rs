//! The vocabulary of a model as the library wants it: a tree of the bytes of all tokens.

use std::sync::Arc;

use bitnet_model::Tokenizer;
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::error::GrammarError;

/// Longer tokens are never chosen: the tree has places for 1,024 bytes.
const LONGEST: usize = 512;
/// Ids that the tree can tell apart.
const MOST: usize = 0x00ff_ffff;

/// The tokens of `tokenizer` below `vocab`; those of `eos` end an answer.
pub(crate) fn environment(tokenizer: &Tokenizer, vocab: usize, eos: &[u32]) -> Result<TokEnv, GrammarError> {
    let n = u32::try_from(vocab)
        .ok()
        .filter(|&n| (n as usize) < MOST && n > 0);
    let n =
        n.ok_or_else(|| GrammarError::new(format!("a vocabulary of {vocab} tokens cannot be constrained")))?;
    let mut words = tokenizer
        .vocabulary(vocab)
        .map_err(|error| GrammarError::new(error.to_string()))?;
    let eos: Vec<u32> = eos.iter().copied().filter(|&id| id < n).collect();
    for (id, word) in (0..n).zip(&mut words) {
        if eos.contains(&id) || tokenizer.is_special(id) {
            // No text can ask for it, only its name can.
            let name = tokenizer.id_to_token(id).unwrap_or_else(|| format!("<[{id}]>"));
            *word = [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
        } else if word.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
            // That byte occurs in no text.
            word.clear();
        }
        if word.len() > LONGEST {
            word.clear();
        }
    }
    let info = TokRxInfo::new(n, eos.first().copied().unwrap_or(INVALID_TOKEN));
    let mut tree = TokTrie::from(&info, &words);
    if !eos.is_empty() {
        tree = tree.with_eos_tokens(&eos);
    }
    Ok(Arc::new(ApproximateTokEnv::new(tree)))
}
