//! The next token, chosen on the device: penalties, top-k, top-p, min-p, temperature, then a draw by seed.
//!
//! The same tokens as the host's sampler for every setting that keeps at most [`MAX_TOP_K`] tokens before top-p (greedy
//! included): the same order of candidates, and [`bitnet_layout::draw`]'s arithmetic summed in the same order.
//!
//! [`SelectLogits`] turns logits into keys that sort as candidates do and keeps the best of each 2048; [`SelectKeys`] does
//! so again until one list is left; [`DrawToken`] draws from it. A key is 64 bits: the logit's bits, made to order as
//! unsigned numbers, then the complement of the token, so that of equals the lowest token comes first.

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
    /// Lengths as above; `keep` at most [`MAX_TOP_K`]; `ring_len` a power of two; `history_len` a power of two above every
    /// `last_n` of the settings.
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
        /// In memory that the host sees, (ring_len, rows): word (`steps % ring_len`, row) gets the token plus 1, or
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

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{
        CHUNK, DAMAGED, DrawToken, FORBIDDEN, MAX_TOP_K, SelectKeys, SelectLogits, Settings, THREADS,
    };
    use crate::Global;
    use crate::intrinsics::*;
    use bitnet_layout::draw::{uniform, weight};

    /// Key of no token.
    const NONE: u64 = 0;

    /// Above every key of a token.
    const DAMAGED_KEY: u64 = u64::MAX;

    /// The settings of a row.
    ///
    /// # Safety
    /// The row is one of those in the buffer.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn settings(all: Global<u32>, row: usize) -> Settings {
        let word = |i: usize| {
            // SAFETY: the caller's promise.
            unsafe { all.load_l2(row * Settings::WORDS + i)[0] }
        };
        let float = |i: usize| f32::from_bits(word(i));
        Settings {
            temperature: float(0),
            top_k: word(1),
            top_p: float(2),
            min_p: float(3),
            repeat_penalty: float(4),
            presence_penalty: float(5),
            frequency_penalty: float(6),
            last_n: word(7),
            seed: u64::from(word(9)) << 32 | u64::from(word(8)),
        }
    }

    /// Whether penalties can change a logit.
    #[inline(always)]
    fn penalizes(s: &Settings) -> bool {
        s.last_n > 0 && (s.repeat_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0)
    }

    #[inline(always)]
    fn key(logit: f32, token: u32) -> u64 {
        let bits = logit.to_bits();
        let ordered = bits ^ ((bits as i32 >> 31) as u32 | 0x8000_0000);
        u64::from(ordered) << 32 | u64::from(!token)
    }

    #[inline(always)]
    fn logit(key: u64) -> f32 {
        let ordered = (key >> 32) as u32;
        let sign = (!ordered as i32 >> 31) as u32 | 0x8000_0000;
        f32::from_bits(ordered ^ sign)
    }

    #[inline(always)]
    pub(super) unsafe fn select_logits(p: SelectLogits) {
        let (first, row) = (block_idx_x() * CHUNK, block_idx_y() as usize);
        let keys = Shared::<u64>::at(0);
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: tokens are compared with the vocabulary, shared indices are below CHUNK.
        unsafe {
            let s = settings(p.settings, row);
            let penalizes = penalizes(&s);
            let mut i = thread_idx_x();
            while i < CHUNK {
                let token = first + i;
                let mut k = NONE;
                if token < p.vocab {
                    let at = row * p.vocab as usize + token as usize;
                    let mut l = p.logits.load_l2(at)[0];
                    let is_finite = l.abs() < f32::INFINITY;
                    if penalizes {
                        let count = p.counts.load_l2(at)[0];
                        if count > 0 {
                            let scaled = if l > 0.0 {
                                l / s.repeat_penalty
                            } else {
                                l * s.repeat_penalty
                            };
                            l = scaled - s.presence_penalty - s.frequency_penalty * count as f32;
                        }
                    }
                    if s.temperature == 0.0 {
                        // Zeros of either sign are equal to the greedy choice.
                        l += 0.0;
                    }
                    k = if is_finite { key(l, token) } else { DAMAGED_KEY };
                }
                keys.store(i, k);
                i += THREADS;
            }
            sort(keys);
            put(
                keys,
                p.keys.offset(row * (grid_dim_x() * p.keep) as usize),
                p.keep,
            );
        }
    }

    #[inline(always)]
    pub(super) unsafe fn select_keys(p: SelectKeys) {
        let (first, row) = (block_idx_x() * CHUNK, block_idx_y() as usize);
        let keys = Shared::<u64>::at(0);
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: indices are compared with n, shared indices are below CHUNK.
        unsafe {
            let mut i = thread_idx_x();
            while i < CHUNK {
                let inside = first + i < p.n;
                let at = row * p.n as usize + (first + i) as usize;
                keys.store(i, if inside { p.from.load(at) } else { NONE });
                i += THREADS;
            }
            sort(keys);
            put(
                keys,
                p.keys.offset(row * (grid_dim_x() * p.keep) as usize),
                p.keep,
            );
        }
    }

    /// Writes this block's best keys.
    #[inline(always)]
    unsafe fn put(keys: Shared<u64>, to: Global<u64>, keep: u32) {
        if thread_idx_x() < keep {
            // SAFETY: `keep` is at most the threads of the block, and `to` holds `keep` keys a block.
            unsafe {
                let at = (block_idx_x() * keep + thread_idx_x()) as usize;
                to.store(at, keys.load(thread_idx_x()));
            }
        }
    }

    /// Sorts the block's keys, largest first: Batcher's bitonic network.
    ///
    /// # Safety
    /// The whole block calls this; a barrier need not lie between the stores of the keys and the call.
    #[inline(always)]
    unsafe fn sort(keys: Shared<u64>) {
        // SAFETY: pairs are disjoint, indices below CHUNK; the barriers order each round before the next.
        unsafe {
            let mut size = 2;
            while size <= CHUNK {
                let mut step = size / 2;
                while step > 0 {
                    sync_threads();
                    let mut pair = thread_idx_x();
                    while pair < CHUNK / 2 {
                        // The pair-th index without the bit `step`.
                        let low = 2 * pair - (pair & (step - 1));
                        let (a, b) = (keys.load(low), keys.load(low + step));
                        let falls = low & size == 0;
                        if (a < b) == falls {
                            keys.store(low, b);
                            keys.store(low + step, a);
                        }
                        pair += THREADS;
                    }
                    step /= 2;
                }
                size *= 2;
            }
            sync_threads();
        }
    }

    #[inline(always)]
    pub(super) unsafe fn draw_token(p: DrawToken) {
        let (me, row) = (thread_idx_x(), block_idx_x() as usize);
        // At temperature 1, for the cuts; then at the temperature, 0 for what was cut.
        let plain = Shared::<u64>::at(0);
        let tempered = Shared::<u64>::at(MAX_TOP_K * 8);
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: lanes are compared with `keep`; lengths are the caller's promise; barriers are on every lane's way.
        unsafe {
            let s = settings(p.settings, row);
            let keys = p.keys.offset(row * p.keep as usize);
            let best = keys.load(0);
            let max = logit(best);
            let is_greedy = s.temperature == 0.0;
            let limit = s.top_k.min(p.keep);
            let (mut one, mut hot) = (0.0f64, 0.0f64);
            if !is_greedy && me < limit {
                let k = keys.load(me as usize);
                let l = logit(k);
                if k != NONE && k != DAMAGED_KEY && l > f32::NEG_INFINITY {
                    one = weight(l, max, 1.0);
                    hot = if one >= f64::from(s.min_p) {
                        weight(l, max, s.temperature)
                    } else {
                        0.0
                    };
                    // A weight that underflows still is a candidate where nothing is cut; it is never drawn.
                }
            }
            plain.store(me, one.to_bits());
            tempered.store(me, hot.to_bits());
            // Orders every weight before the sums below.
            sync_threads();
            if me == 0 {
                let token = if best == DAMAGED_KEY {
                    DAMAGED
                } else if max == f32::NEG_INFINITY {
                    FORBIDDEN
                } else if is_greedy {
                    !(best as u32)
                } else {
                    let at = |weights: Shared<u64>, i: u32| f64::from_bits(weights.load(i));
                    let mut end = limit;
                    if s.top_p < 1.0 {
                        let mut total = 0.0;
                        let mut i = 0;
                        while i < limit {
                            total += at(plain, i);
                            i += 1;
                        }
                        let goal = total * f64::from(s.top_p);
                        let mut mass = 0.0;
                        let mut i = 0;
                        while i < limit {
                            mass += at(plain, i);
                            i += 1;
                            if mass >= goal {
                                end = i;
                                break;
                            }
                        }
                    }
                    let mut total = 0.0;
                    let mut i = 0;
                    while i < end {
                        total += at(tempered, i);
                        i += 1;
                    }
                    let drawn = p.progress.load_l2(row * 2 + 1)[0];
                    p.progress.store(row * 2 + 1, drawn + 1);
                    let goal = uniform(s.seed, u64::from(drawn)) * total;
                    let (mut mass, mut chosen) = (0.0, 0);
                    let mut i = 0;
                    while i < end {
                        let w = at(tempered, i);
                        mass += w;
                        if w > 0.0 {
                            chosen = i;
                        }
                        if mass > goal {
                            break;
                        }
                        i += 1;
                    }
                    !(keys.load(chosen as usize) as u32)
                };
                // The next step must find a row of the embedding whatever happened here.
                let is_token = token < p.vocab;
                if is_token {
                    p.tokens.store(row, token);
                }
                let step = p.steps.load_l2(row)[0];
                let place = (step & (p.ring_len - 1)) * grid_dim_x();
                let word = if is_token { token + 1 } else { token };
                p.ring.store_relaxed(place as usize + row, word);
                p.steps.store(row, step + 1);
                p.positions.store(row, p.positions.load_l2(row)[0] + 1);
                if is_token && penalizes(&s) {
                    let n = p.progress.load_l2(row * 2)[0];
                    p.progress.store(row * 2, n + 1);
                    let wrap = p.history_len - 1;
                    let ring = p.history.offset(row * p.history_len as usize);
                    let counts = p.counts.offset(row * p.vocab as usize);
                    if n >= s.last_n {
                        let old = ring.load_l2(((n - s.last_n) & wrap) as usize)[0] as usize;
                        counts.store(old, counts.load_l2(old)[0] - 1);
                    }
                    ring.store((n & wrap) as usize, token);
                    counts.store(token as usize, counts.load_l2(token as usize)[0] + 1);
                }
            }
        }
    }
}
