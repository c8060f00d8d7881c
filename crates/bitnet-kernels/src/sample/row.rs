//! What the kernels that choose a token share: settings, logits after penalties, and sums over a block.

use super::{DrawToken, DrawWhole, Settings};
use crate::Global;
use crate::intrinsics::*;
use crate::token::device::{State, state};
use bitnet_layout::draw::{ordered, unordered};

/// Key of no token.
pub(super) const NONE: u64 = 0;

/// Above every key of a token.
pub(super) const DAMAGED_KEY: u64 = u64::MAX;

/// The settings of a row.
///
/// # Safety
/// The row is one of those in the buffer.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub(crate) unsafe fn settings(all: Global<u32>, row: usize) -> Settings {
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
pub(crate) fn penalizes(s: &Settings) -> bool {
    s.last_n > 0 && (s.repeat_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0)
}

/// Sorts as candidates do: the larger logit, and of equals the lower token, has the larger key.
#[inline(always)]
pub(super) fn key(logit: f32, token: u32) -> u64 {
    u64::from(ordered(logit)) << 32 | u64::from(!token)
}

/// The logit of a key.
#[inline(always)]
pub(super) fn logit(key: u64) -> f32 {
    unordered((key >> 32) as u32)
}

/// The logits of a row, as the sampler sees them.
#[derive(Clone, Copy)]
pub(super) struct Logits {
    pub(super) logits: Global<f32>,
    pub(super) counts: Global<u32>,
    pub(super) vocab: u32,
    pub(super) row: usize,
}

impl Logits {
    /// The logit of a token after penalties, and whether the model's is a finite number.
    ///
    /// # Safety
    /// The token is below the vocabulary, and the row is one of those in the buffers.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn load(&self, s: &Settings, token: u32) -> (f32, bool) {
        let at = self.row * self.vocab as usize + token as usize;
        // SAFETY: the caller's promise.
        unsafe {
            let mut l = self.logits.load_l2(at)[0];
            let is_finite = l.abs() < f32::INFINITY;
            if penalizes(s) {
                let count = self.counts.load_l2(at)[0];
                if count > 0 {
                    let scaled = if l > 0.0 {
                        l / s.repeat_penalty
                    } else {
                        l * s.repeat_penalty
                    };
                    l = scaled - s.presence_penalty - s.frequency_penalty * count as f32;
                }
            }
            (l, is_finite)
        }
    }

    /// The key of a token; [`NONE`] past the vocabulary.
    ///
    /// # Safety
    /// The row is one of those in the buffers.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn key(&self, s: &Settings, token: u32) -> u64 {
        if token >= self.vocab {
            return NONE;
        }
        // SAFETY: the token is below the vocabulary; the rest is the caller's promise.
        let (mut l, is_finite) = unsafe { self.load(s, token) };
        if s.temperature == 0.0 {
            // Zeros of either sign are equal to the greedy choice.
            l += 0.0;
        }
        if is_finite { key(l, token) } else { DAMAGED_KEY }
    }
}

/// The sum of the values of the lanes before this one, and that of all lanes of a block of `WARPS` warps; `scratch` is a word a warp.
///
/// # Safety
/// All lanes of the block call this together. No barrier need lie between two calls with the same scratch.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub(super) unsafe fn scan<const WARPS: u32>(value: u64, scratch: Shared<u64>) -> (u64, u64) {
    // SAFETY: the caller's promise; a barrier lies before the stores, for the loads of an earlier call, and one behind.
    unsafe {
        let mut sum = value;
        let mut step = 1;
        while step < WARP_SIZE {
            let low = warp_shuffle_up(FULL_MASK, sum as u32, step);
            let high = warp_shuffle_up(FULL_MASK, (sum >> 32) as u32, step);
            if lane_id() >= step {
                sum += u64::from(high) << 32 | u64::from(low);
            }
            step *= 2;
        }
        sync_threads();
        if lane_id() == WARP_SIZE - 1 {
            scratch.store(warp_id(), sum);
        }
        sync_threads();
        let (mut before, mut total) = (sum - value, 0);
        let mut warp = 0;
        while warp < WARPS {
            let of_warp = scratch.load(warp);
            if warp < warp_id() {
                before += of_warp;
            }
            total += of_warp;
            warp += 1;
        }
        (before, total)
    }
}

/// Where a row's token goes: as the fields of [`DrawToken`](super::DrawToken) say.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub(super) counts: Global<u32>,
    pub(super) history: Global<u32>,
    pub(super) progress: Global<u32>,
    pub(super) vocab: u32,
    pub(super) history_len: u32,
    pub(super) state: State,
}

macro_rules! end {
    ($($Params:ty)*) => {$(
        impl $Params {
            #[inline(always)]
            pub(super) fn end(&self) -> End {
                let Self { counts, history, progress, vocab, history_len, .. } = *self;
                End { counts, history, progress, vocab, history_len, state: self.state() }
            }
        }
    )*};
}

state! { DrawToken DrawWhole }
end! { DrawToken DrawWhole }

/// Makes a token the row's next one.
///
/// # Safety
/// One lane of the row's block calls this, and no other reads what it changes.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub(super) unsafe fn finish(p: &End, row: usize, s: &Settings, token: u32) {
    // SAFETY: the token is compared with the vocabulary; lengths are the promise of the kernel's caller.
    unsafe {
        let is_token = token < p.vocab;
        p.state
            .advance(row, if is_token { Ok(token) } else { Err(token) });
        if is_token && penalizes(s) {
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
