//! The next token, chosen on the device: penalties, top-k, top-p, min-p, temperature, then a draw by seed.
//!
//! The same tokens as the host's sampler, by [`bitnet_layout::draw`]'s arithmetic.
//!
//! Of settings that keep at most [`MAX_TOP_K`] tokens before top-p, and greedy ones: [`SelectLogits`] turns logits into keys that sort
//! as candidates do and keeps the best of each 2048; [`SelectKeys`] does so again until one list is left; [`DrawToken`] draws from it,
//! with sums in the host's order. A key is 64 bits: the logit's bits, made to order as unsigned numbers, then the complement of the
//! token, so that of equals the lowest token comes first.
//!
//! Of all others ([`Settings::is_whole`]), nothing is sorted: [`BestKey`] finds the largest logit, [`CutWhole`] where top-k and top-p
//! cut, digit by digit of the logits, [`WeighWhole`] what each 2048 tokens weigh, and [`DrawWhole`] the token. A token weighs an
//! integer, so that sums are the host's in whatever order. Rows of both kinds may be in one step.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod row;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod whole;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod draw;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;

use crate::{Global, Launch};
use bitnet_layout::draw::Cut;

/// Most candidates that the device sorts.
pub const MAX_TOP_K: u32 = 256;
/// Keys of a block of the selection.
pub const CHUNK: u32 = 2048;
/// In the ring where a logit was NaN or infinite.
pub const DAMAGED: u32 = crate::token::NO_TOKEN;
/// In the ring where penalties leave no token.
pub const FORBIDDEN: u32 = u32::MAX - 1;

/// Threads of a block of the selection, and of a block that weighs.
const THREADS: u32 = 512;
/// Threads of a block that draws.
const DRAW_THREADS: u32 = 256;
/// Values of a digit of a logit.
const BINS: u32 = Cut::BINS;

/// How the tokens of one sequence are chosen; lies in device memory, so that a recorded graph serves every request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Candidates to keep, fewer than the vocabulary; 0 keeps all; ignored at temperature 0.
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

    /// Whether tokens are drawn without sorting them: from all, or from more than [`MAX_TOP_K`].
    #[inline(always)]
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.temperature > 0.0 && (self.top_k == 0 || self.top_k > MAX_TOP_K)
    }

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

kernels! {
    /// The `keep` best keys of each 2048 logits, sorted, after penalties; nothing of rows that are drawn without sorting.
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

    /// The `keep` best of each 2048 keys, sorted; nothing of rows that are drawn without sorting.
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
        /// [`Settings`] of each row, (rows, [`Settings::WORDS`]).
        pub settings: Global<u32>,
        /// Sorted keys, (rows, blocks, keep).
        pub keys: Global<u64>,
        /// Keys of a row.
        pub n: u32,
        /// Keys that a block keeps.
        pub keep: u32,
    }

    /// Penalizes each row's logits, and finds the largest key of them, or that of damaged ones.
    ///
    /// - Shapes: as the fields say.
    /// - Launch: [`BestKey::launch`]; a block owns 2048 logits of a row.
    /// - Moves: `4 rows vocab` bytes, from L2. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above.
    best_key, block = [THREADS, 1, 1], body = whole::best_key;
    pub struct BestKey {
        /// Logits, (rows, vocab); of rows whose penalties are on, those after penalties take their place.
        pub logits: Global<f32>,
        /// [`Settings`] of each row, (rows, [`Settings::WORDS`]).
        pub settings: Global<u32>,
        /// How often each token is recent, (rows, vocab); read where the row's penalties are on.
        pub counts: Global<u32>,
        /// Best key, sums and cut, (rows, [`Whole::WORDS`]); 0 before and after a step.
        pub state: Global<u64>,
        /// Tokens of the vocabulary.
        pub vocab: u32,
        /// 1 for all rows, 0 for those alone that are drawn without sorting.
        pub all: u32,
    }

    /// A digit of the logit at which top-k (`by_mass` 0) or top-p (1) cuts a row, for rows that are cut like this.
    ///
    /// - Shapes: as the fields say.
    /// - Launch: [`CutWhole::launch`], [`Whole::PASSES`] times for top-k, then as often for top-p; a block owns 2048 logits of a row,
    ///   and the last one done finds the digit.
    /// - Bound: additions to shared memory where logits are alike, and latency.
    ///
    /// # Safety
    /// Lengths as above; behind [`BestKey`], passes in order.
    cut_whole, block = [THREADS, 1, 1], body = whole::cut_whole;
    pub struct CutWhole {
        /// Logits after penalties, (rows, vocab).
        pub logits: Global<f32>,
        /// [`Settings`] of each row, (rows, [`Settings::WORDS`]).
        pub settings: Global<u32>,
        /// Best key, sums and cut, (rows, [`Whole::WORDS`]); 0 before and after a step.
        pub state: Global<u64>,
        /// What the tokens of each value of the digit weigh, (rows, [`Whole::BINS`]); 0 before and after.
        pub bins: Global<u64>,
        /// Blocks that are done, (rows); 0 before and after.
        pub done: Global<u32>,
        /// Tokens of the vocabulary.
        pub vocab: u32,
        /// Which digit, from 0.
        pub pass: u32,
        /// Whether mass at temperature 1 counts, or tokens.
        pub by_mass: u32,
    }

    /// What each 2048 tokens of a row weigh at the row's temperature after its cuts.
    ///
    /// - Shapes: as the fields say.
    /// - Launch: [`WeighWhole::launch`]; a block owns 2048 logits of a row.
    /// - Bound: about 40 operations in f64 a token; GPUs that do 1/64 as many of those as of f32 are bound by them.
    ///
    /// # Safety
    /// Lengths as above; behind [`BestKey`] and the passes of [`CutWhole`] that the rows need.
    weigh_whole, block = [THREADS, 1, 1], body = whole::weigh_whole;
    pub struct WeighWhole {
        /// Logits after penalties, (rows, vocab).
        pub logits: Global<f32>,
        /// [`Settings`] of each row, (rows, [`Settings::WORDS`]).
        pub settings: Global<u32>,
        /// Best key, sums and cut, (rows, [`Whole::WORDS`]); 0 before and after a step.
        pub state: Global<u64>,
        /// Mass above the cut and tokens at it, of each 2048 tokens, (rows, chunks, 2).
        pub sums: Global<u64>,
        /// Tokens of the vocabulary.
        pub vocab: u32,
    }

    /// Draws each row's token from its sorted candidates, appends it to the row's history, puts it into the host's ring, and
    /// moves the row's position on; nothing of rows that are drawn without sorting.
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

    /// Draws the token of each row that is drawn without sorting, and does with it what [`DrawToken`] does; with `all` the most likely
    /// one of greedy rows too.
    ///
    /// - Shapes: as the fields say, and as for [`DrawToken`].
    /// - Launch: [`DrawWhole::launch`]; a block a row.
    /// - Bound: latency of its barriers, and of two reads that depend on each other.
    ///
    /// # Safety
    /// As for [`DrawToken`]; behind [`BestKey`] with the same `all`, and [`WeighWhole`].
    draw_whole, block = [DRAW_THREADS, 1, 1], min_blocks = 4, body = draw::draw_whole;
    pub struct DrawWhole {
        /// Logits after penalties, (rows, vocab).
        pub logits: Global<f32>,
        /// Best key, sums and cut, (rows, [`Whole::WORDS`]); 0 before and after a step.
        pub state: Global<u64>,
        /// Mass above the cut and tokens at it, of each 2048 tokens, (rows, chunks, 2).
        pub sums: Global<u64>,
        /// [`Settings`] of each row, (rows, [`Settings::WORDS`]).
        pub settings: Global<u32>,
        /// As for [`DrawToken`].
        pub counts: Global<u32>,
        /// As for [`DrawToken`].
        pub history: Global<u32>,
        /// As for [`DrawToken`].
        pub progress: Global<u32>,
        /// As for [`DrawToken`].
        pub positions: Global<u32>,
        /// As for [`DrawToken`].
        pub tokens: Global<u32>,
        /// As for [`DrawToken`].
        pub steps: Global<u32>,
        /// As for [`DrawToken`].
        pub ring: Global<u32>,
        /// Tokens of the vocabulary.
        pub vocab: u32,
        /// Length of the ring of recent tokens.
        pub history_len: u32,
        /// Steps that the host's ring holds.
        pub ring_len: u32,
        /// Rows that a step has in the host's ring.
        pub ring_rows: u32,
        /// 1 for all rows, 0 for those alone that are drawn without sorting.
        pub all: u32,
    }
}

/// Sizes of what the kernels that draw without sorting keep of a row.
#[derive(Clone, Copy, Debug)]
pub struct Whole;

impl Whole {
    /// Words of its state.
    pub const WORDS: usize = 4;
    /// Bins, one for each value of a digit.
    pub const BINS: usize = BINS as usize;
    /// Passes of [`CutWhole`] that make a cut.
    pub const PASSES: u32 = Cut::PASSES;
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

impl BestKey {
    /// Blocks of 2048 logits by rows.
    #[must_use]
    pub const fn launch(&self, rows: u32) -> Launch {
        Launch {
            shared_bytes: THREADS / 32 * 8,
            ..selection(self.vocab, rows)
        }
    }
}

impl CutWhole {
    /// Blocks of 2048 logits by rows.
    #[must_use]
    pub const fn launch(&self, rows: u32) -> Launch {
        Launch {
            shared_bytes: THREADS / 32 * 8 + 8 + BINS * 8,
            ..selection(self.vocab, rows)
        }
    }
}

impl WeighWhole {
    /// Blocks of 2048 logits by rows.
    #[must_use]
    pub const fn launch(&self, rows: u32) -> Launch {
        Launch {
            shared_bytes: THREADS / 32 * 8,
            ..selection(self.vocab, rows)
        }
    }
}

impl DrawWhole {
    /// A block a row.
    #[must_use]
    pub const fn launch(rows: u32) -> Launch {
        Launch {
            grid: [rows, 1, 1],
            block: [DRAW_THREADS, 1, 1],
            shared_bytes: DRAW_THREADS / 32 * 8 + 5 * 8 + CHUNK * 8,
        }
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
