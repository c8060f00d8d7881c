//! What is constrained: the vocabularies of the models that the other crates test with, and texts made by walks through masks.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::{Path, PathBuf};

use bitnet_grammar::{Compiler, Grammar};
use bitnet_model::schedule::Mask;
use bitnet_model::{Device, Model, Tokenizer};

/// A vocabulary, and a compiler for it.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) vocab: usize,
    pub(crate) eos: Vec<u32>,
    pub(crate) bytes: Vec<Vec<u8>>,
    pub(crate) compiler: Compiler,
}

/// The demo model: a byte-level vocabulary of 768 tokens.
pub(crate) fn demo() -> Subject {
    Subject::of("../bitnet-cli/demo-model")
}

/// Vocabularies of every kind: byte-level ones and SentencePiece's, from folders and from GGUF files.
pub(crate) fn all() -> Vec<Subject> {
    let models = Path::new("../bitnet-model/tests");
    let names = [
        "oracle/llama-bitnet",
        "oracle/bitnet-bf16",
        "oracle-models/onebit-3b",
        "oracle-models/onebit-xl",
        "oracle-gguf/b158-i2s/model.gguf",
        "oracle-gguf/bitnet-i2s-spm/model.gguf",
        "oracle-gguf/llama-tq2/model.gguf",
    ];
    let others = names.map(|name| Subject::of(models.join(name)));
    std::iter::once(demo()).chain(others).collect()
}

impl Subject {
    pub(crate) fn of(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path.display().to_string();
        let model = Model::load(path, Device::Cpu).unwrap_or_else(|error| panic!("{name}: {error}"));
        let tokenizer = model.tokenizer().unwrap().clone();
        let config = model.config();
        let eos: Vec<u32> = config.eos.iter().chain(tokenizer.end_ids()).copied().collect();
        Self {
            name,
            vocab: config.vocab,
            bytes: tokenizer.vocabulary(config.vocab).unwrap(),
            compiler: Compiler::new(&tokenizer, config.vocab, &eos),
            eos,
            tokenizer,
        }
    }

    pub(crate) fn mask(&self, grammar: &Grammar) -> Box<dyn Mask> {
        let mask = self.compiler.compile(grammar);
        mask.unwrap_or_else(|error| panic!("{}: {grammar:?}: {error}", self.name))
    }

    pub(crate) fn error(&self, grammar: &Grammar) -> String {
        match self.compiler.compile(grammar) {
            Ok(_) => panic!("{}: {grammar:?} is taken", self.name),
            Err(error) => error.to_string(),
        }
    }

    pub(crate) fn bits(&self, mask: &mut dyn Mask) -> Vec<u32> {
        let mut bits = vec![0; self.vocab.div_ceil(32)];
        mask.allowed(&mut bits)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        bits
    }

    pub(crate) fn allowed(&self, mask: &mut dyn Mask) -> Vec<u32> {
        let bits = self.bits(mask);
        (0..self.vocab as u32).filter(|&id| has(&bits, id)).collect()
    }

    pub(crate) fn may_end(&self, mask: &mut dyn Mask) -> bool {
        let bits = self.bits(mask);
        let ends: Vec<bool> = self.eos.iter().map(|&id| has(&bits, id)).collect();
        assert!(ends.iter().all(|&end| end == ends[0]), "all of them or none");
        ends[0]
    }

    /// Takes a text by the longest tokens that are allowed. Whether the mask says at its end that nothing may follow; `None` where
    /// the text is not allowed.
    pub(crate) fn take(&self, mask: &mut dyn Mask, text: &str) -> Option<bool> {
        let mut rest = text.as_bytes();
        let mut is_over = false;
        while !rest.is_empty() {
            if is_over {
                return None;
            }
            let allowed = self.allowed(mask);
            let fits = |id: &u32| {
                !self.bytes[*id as usize].is_empty() && rest.starts_with(&self.bytes[*id as usize])
            };
            let ordinary = |id: &u32| !self.eos.contains(id) && !self.tokenizer.is_special(*id);
            let longest = allowed
                .into_iter()
                .filter(ordinary)
                .filter(fits)
                .max_by_key(|&id| self.bytes[id as usize].len())?;
            is_over = mask.accept(longest).unwrap();
            rest = &rest[self.bytes[longest as usize].len()..];
        }
        Some(is_over)
    }

    /// Whether an answer may be exactly this text.
    pub(crate) fn accepts(&self, grammar: &Grammar, text: &str) -> bool {
        let mut mask = self.mask(grammar);
        match self.take(mask.as_mut(), text) {
            None => false,
            Some(true) => true,
            Some(false) => self.may_end(mask.as_mut()),
        }
    }

    /// A text that a walk by chance gives, or `None` where it did not end; after some steps it prefers to close what is open.
    pub(crate) fn walk(&self, mask: &mut dyn Mask, chance: &mut Chance) -> Option<String> {
        let mut bytes = Vec::new();
        for step in 0..2_000 {
            let mut allowed = self.allowed(mask);
            assert!(!allowed.is_empty());
            if step > 40 {
                let closes = |id: &&u32| {
                    let word = &self.bytes[**id as usize];
                    self.eos.contains(id) || matches!(word.as_slice(), b"\"" | b"}" | b"]" | b"</")
                };
                let closing: Vec<u32> = allowed.iter().filter(closes).copied().collect();
                if !closing.is_empty() {
                    allowed = closing;
                }
            }
            let id = allowed[chance.below(allowed.len())];
            if self.eos.contains(&id) {
                assert!(mask.accept(id).unwrap(), "an end token ends it");
                return Some(String::from_utf8(bytes).unwrap());
            }
            bytes.extend_from_slice(&self.bytes[id as usize]);
            if mask.accept(id).unwrap() {
                return Some(String::from_utf8(bytes).unwrap());
            }
        }
        None
    }
}

pub(crate) fn has(bits: &[u32], id: u32) -> bool {
    bits[id as usize / 32] >> (id % 32) & 1 == 1
}

/// Numbers from a seed.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}
