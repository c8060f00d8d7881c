//! The next token, chosen on the device: penalties, top-k, top-p, min-p, temperature, then a draw by seed.
//!
//! The same tokens as the host's sampler for every setting that keeps at most [`MAX_TOP_K`] tokens before top-p (greedy
//! included): the same order of candidates, and [`bitnet_layout::draw`]'s arithmetic summed in the same order.
//!
//! [`SelectLogits`] turns logits into keys that sort as candidates do and keeps the best of each 2048; [`SelectKeys`] does
//! so again until one list is left; [`DrawToken`] draws from it. A key is 64 bits: the logit's bits, made to order as
//! unsigned numbers, then the complement of the token, so that of equals the lowest token comes first.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device;

use crate::{Global, Launch};

/// Most candidates that the device can keep.
pub const MAX_TOP_K: u32 = 256;
/// Keys of a block of the selection.
pub const CHUNK: u32 = 2048;
/// In the ring where a logit was NaN or infinite.
pub const DAMAGED: u32 = crate::token::NO_TOKEN;
/// In the ring where penalties leave no token.
pub const FORBIDDEN: u32 = u32::MAX - 1;

/// Threads of a block of the selection.
const THREADS: u32 = 512;

/// How the tokens of one sequence are chosen; lies in device memory, so that a recorded graph serves every request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Candidates to keep, 1 to [`MAX_TOP_K`], fewer than the vocabulary; ignored at temperature 0.
    pub top_k: u32,
    /// Keeps the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Taken from the logit of every recent token.
    pub presence_penalty: f32,
    /// Taken from the logit of every recent token, times how often it occurs.
    pub frequency_penalty: f32,
    /// How many recent tokens the penalties look at, below the capacity of the history; 0 turns them off.
    pub last_n: u32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Settings {
    /// Words of the encoded form.
    pub const WORDS: usize = 10;

    /// As the kernels read them.
    #[must_use]
    pub const fn to_words(&self) -> [u32; Self::WORDS] {
        [
            self.temperature.to_bits(),
            self.top_k,
            self.top_p.to_bits(),
            self.min_p.to_bits(),
            self.repeat_penalty.to_bits(),
            self.presence_penalty.to_bits(),
            self.frequency_penalty.to_bits(),
            self.last_n,
            self.seed as u32,
            (self.seed >> 32) as u32,
        ]
    }
}

kernel! {
    /// The `keep` best keys of each 2048 logits, sorted, after penalties.
    ///
    /// - Shapes: as the fields say.
    /// - Launch: [`SelectLogits::launch`]; a block owns 2048 logits of a row.
    /// - Moves: `4 rows vocab` bytes of logits, and as many of counts where they are in use.
    /// - Bound: latency of the sort, 66 barriers.
    ///
    /// # Safety
    /// Lengths as above; `keep` a power of two from 2 to [`MAX_TOP_K`].
    select_logits, block = [THREADS, 1, 1], body = device::select_logits;
    pub struct SelectLogits {
        /// Logits, (rows, vocab).
        pub logits: Global<f32>,
        /// [`Settings`] of each row, (rows, [`Settings::WORDS`]).
        pub settings: Global<u32>,
        /// How often each token is recent, (rows, vocab); read where the row's penalties are on.
        pub counts: Global<u32>,
        /// Sorted keys, (rows, blocks, keep).
        pub keys: Global<u64>,
        /// Tokens of the vocabulary.
        pub vocab: u32,
        /// Keys that a block keeps.
        pub keep: u32,
    }
}

kernel! {
    /// The `keep` best of each 2048 keys, sorted.
    ///
    /// - Shapes: `from` (rows, n), `keys` (rows, blocks, keep).
    /// - Launch: [`SelectKeys::launch`]; a block owns 2048 keys of a row.
    /// - Bound: latency of the sort.
    ///
    /// # Safety
    /// Lengths as above; `keep` a power of two from 2 to [`MAX_TOP_K`].
    select_keys, block = [THREADS, 1, 1], body = device::select_keys;
    pub struct SelectKeys {
        /// Keys, (rows, n).
        pub from: Global<u64>,
        /// Sorted keys, (rows, blocks, keep).
        pub keys: Global<u64>,
        /// Keys of a row.
        pub n: u32,
        /// Keys that a block keeps.
        pub keep: u32,
    }
}

kernel! {
    /// Draws each row's token from its sorted candidates, appends it to the row's history, puts it into the host's ring, and
    /// moves the row's position on.
    ///
    /// - Shapes: as the fields say; `keep` keys a row.
    /// - Launch: [`DrawToken::launch`]; a block a row.
    /// - Bound: latency of the sums, which one lane adds in order.
    ///
    /// # Safety
    /// Lengths as above; `keep` at most [`MAX_TOP_K`]; `ring_len` a power of two; at most `ring_rows` rows; `history_len` a
    /// power of two above every `last_n` of the settings.
    draw_token, block = [MAX_TOP_K, 1, 1], body = device::draw_token;
    pub struct DrawToken {
        /// Sorted keys, (rows, keep).
        pub keys: Global<u64>,
        /// [`Settings`] of each row, (rows, [`Settings::WORDS`]).
        pub settings: Global<u32>,
        /// How often each token is recent, (rows, vocab); kept where the row's penalties are on.
        pub counts: Global<u32>,
        /// Ring of recent tokens, (rows, history_len); token i of the text at `i % history_len`.
        pub history: Global<u32>,
        /// Tokens in the text, for the ring of recent ones; tokens drawn, (rows, 2).
        pub progress: Global<u32>,
        /// Position of each row's next token, (rows).
        pub positions: Global<u32>,
        /// The token, where the next step's embedding reads it, (rows); as it was for [`DAMAGED`] and [`FORBIDDEN`].
        pub tokens: Global<u32>,
        /// Steps taken since the host last set it, (rows).
        pub steps: Global<u32>,
        /// In memory that the host sees, (ring_len, ring_rows): word (`steps % ring_len`, row) gets the token plus 1, or
        /// [`DAMAGED`] or [`FORBIDDEN`].
        pub ring: Global<u32>,
        /// Tokens of the vocabulary.
        pub vocab: u32,
        /// Keys of a row.
        pub keep: u32,
        /// Length of the ring of recent tokens.
        pub history_len: u32,
        /// Steps that the host's ring holds.
        pub ring_len: u32,
        /// Rows that a step has in the host's ring.
        pub ring_rows: u32,
    }
}

impl SelectLogits {
    /// Blocks of 2048 logits by rows.
    #[must_use]
    pub const fn launch(&self, rows: u32) -> Launch {
        selection(self.vocab, rows)
    }
}

impl SelectKeys {
    /// Blocks of 2048 keys by rows.
    #[must_use]
    pub const fn launch(&self, rows: u32) -> Launch {
        selection(self.n, rows)
    }
}

impl DrawToken {
    /// A block a row.
    #[must_use]
    pub const fn launch(rows: u32) -> Launch {
        Launch {
            grid: [rows, 1, 1],
            block: [MAX_TOP_K, 1, 1],
            shared_bytes: MAX_TOP_K * 16,
        }
    }
}

const fn selection(n: u32, rows: u32) -> Launch {
    Launch {
        grid: [n.div_ceil(CHUNK), rows, 1],
        block: [THREADS, 1, 1],
        shared_bytes: CHUNK * 8,
    }
}

/// The `keep` for requests of `top_k` candidates or fewer; nothing above [`MAX_TOP_K`].
#[must_use]
pub const fn keep(top_k: u32) -> Option<u32> {
    match top_k {
        0 | 1 => Some(2),
        2..=MAX_TOP_K => Some(top_k.next_power_of_two()),
        _ => None,
    }
}
