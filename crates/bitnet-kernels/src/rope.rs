//! Rotary embedding of queries and keys, and the way of keys and values into the cache of [`crate::cache`].

use crate::cache::KvType;
use crate::{Global, Launch};

/// Tokens of a block of [`RopeAppend`].
const TOKENS: u32 = 32;
/// Threads of a block of [`RopeAppend`].
const THREADS: u32 = 256;

family! {
    /// Parameters of the kernels that rotate and append, one for each [`KvType`].
    ///
    /// `q = rotate(q, pos) * q_scale`, `k_cache[place] = rotate(k, pos)`, `v_cache[place] = v` for every token and head.
    ///
    /// `rotate` turns the pair (`x[d]`, `x[d + head_dim / 2]`) by the angle whose cosine and sine are `cos[pos][d]` and
    /// `sin[pos][d]`: the half-split convention, each product rounded on its own.
    ///
    /// - Shapes: `qkv` (batch, n_heads + 2 n_kv_heads, head_dim) f32; `positions`, `places` (batch); `cos`, `sin`
    ///   (context, head_dim / 2); `q` (batch, n_heads, padded) bfloat16; caches as [`crate::cache`] says.
    /// - Launch: [`RopeAppendBf16::launch`]; a block owns one head of 32 tokens.
    /// - Moves: `qkv` once, half of its bytes out; keys of 8-bit integers twice, from L1 the second time.
    /// - Bound: L2; values pass through shared memory so that both sides move whole sectors.
    ///
    /// # Safety
    /// Lengths as above; `head_dim` a multiple of 4, `padded` its [`padded_head_dim`](crate::cache::padded_head_dim); `qkv`,
    /// `cos`, `sin` 16-byte aligned; every position below `context`; no two tokens with the same place.
    pub struct RopeAppend {
        /// Output of the fused linear layer.
        pub qkv: Global<f32>,
        /// Position of every token in its sequence.
        pub positions: Global<u32>,
        /// Place of every token in the cache: 64 times its page, plus the position in that.
        pub places: Global<u32>,
        /// Cosines.
        pub cos: Global<f32>,
        /// Sines.
        pub sin: Global<f32>,
        /// Queries, two dimensions a word.
        pub q: Global<u32>,
        /// Keys of the layer.
        pub k_cache: Global<u32>,
        /// Values of the layer.
        pub v_cache: Global<u32>,
        /// Tokens.
        pub batch: u32,
        /// Query heads.
        pub n_heads: u32,
        /// Key and value heads.
        pub n_kv_heads: u32,
        /// Dimensions of a head.
        pub head_dim: u32,
        /// Dimensions of a head in `q` and in the caches.
        pub padded: u32,
        /// Factor of the queries: `log2(e) / sqrt(head_dim)`, see [`q_scale`].
        pub q_scale: f32,
    }
    each KvType;
    []
    rope_append, RopeAppendBf16, "keys and values in bfloat16", [false], [KvType::Bf16];
    rope_append_int8, RopeAppendInt8, "keys and values of 8-bit integers", [true], [KvType::Int8];
}

/// Threads of a block.
const fn threads(_kv: KvType) -> u32 {
    THREADS
}

/// The grid, and the shared memory: the values of a block's tokens, and how each is rounded.
const fn launch(kv: KvType, p: &RopeAppend) -> Launch {
    let scales = match kv {
        KvType::Bf16 => 0,
        KvType::Int8 => 4 * TOKENS,
    };
    Launch {
        grid: [p.batch.div_ceil(TOKENS), p.n_heads + 2 * p.n_kv_heads, 1],
        block: [THREADS, 1, 1],
        shared_bytes: TOKENS * (p.head_dim + 1) * 4 + scales,
    }
}

/// What queries are multiplied by, so that `2^(q k)` is the softmax's exponential.
#[cfg(not(target_arch = "nvptx64"))]
#[must_use]
pub fn q_scale(head_dim: u32) -> f32 {
    // `core` has no square root. From above, Newton's steps fall until rounding stops them.
    let square = f64::from(head_dim).max(1.0);
    let mut root = square;
    loop {
        let next = 0.5 * (root + square / root);
        if next >= root {
            break;
        }
        root = next;
    }
    (core::f64::consts::LOG2_E / root) as f32
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device {
    use super::{RopeAppend, THREADS, TOKENS};
    use crate::Global;
    use crate::cache::PAGE;
    use crate::cache::device::{Page, Scale};
    use crate::intrinsics::*;

    /// Cosines and sines of the angles of two neighboring pairs of dimensions.
    #[derive(Clone, Copy)]
    pub(crate) struct Angle {
        cos: [f32; 2],
        sin: [f32; 2],
    }

    impl Angle {
        /// Element `at`, even, of the tables and the next.
        ///
        /// # Safety
        /// They are readable.
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub(crate) unsafe fn load(cos: Global<f32>, sin: Global<f32>, at: usize) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                Self {
                    cos: cos.load_x2(at),
                    sin: sin.load_x2(at),
                }
            }
        }

        /// The rotated dimensions d and d + 1 (`low`), and those half a head further (`high`).
        #[inline(always)]
        pub(crate) fn rotate(self, low: [f32; 2], high: [f32; 2]) -> ([f32; 2], [f32; 2]) {
            let Self { cos: c, sin: s } = self;
            (
                [low[0] * c[0] - high[0] * s[0], low[1] * c[1] - high[1] * s[1]],
                [high[0] * c[0] + low[0] * s[0], high[1] * c[1] + low[1] * s[1]],
            )
        }
    }

    /// Rotates, rounds to 8 bits and stores the keys of the block's head: a warp takes every eighth token, a lane two neighboring
    /// pairs at a time.
    ///
    /// # Safety
    /// As for [`RopeAppend`]; all lanes of the block call this.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn store_keys(p: &RopeAppend, first: u32, tokens: u32) {
        let (head, half) = (block_idx_y(), p.head_dim / 2);
        let mut token = warp_id();
        // SAFETY: the caller's promise; a token is a warp's alone, and its elements a lane's.
        unsafe {
            while token < tokens {
                let row = (first + token) as usize * (p.n_heads + 2 * p.n_kv_heads) as usize + head as usize;
                let x = p.qkv.offset(row * p.head_dim as usize);
                let position = p.positions.load((first + token) as usize);
                let rotated = |item: u32| {
                    let angle = position as usize * half as usize + 2 * item as usize;
                    let (low, high) = Angle::load(p.cos, p.sin, angle).rotate(
                        x.load_x2(2 * item as usize),
                        x.load_x2((half + 2 * item) as usize),
                    );
                    [low[0], low[1], high[0], high[1]]
                };
                let mut largest = 0;
                let mut item = lane_id();
                while item < half / 2 {
                    for x in rotated(item) {
                        largest = largest.max(Scale::magnitude(x));
                    }
                    item += WARP_SIZE;
                }
                let scale = Scale::new(warp_reduce_max_u32(FULL_MASK, largest));
                let place = p.places.load((first + token) as usize);
                let page = Page::<true>::new(place / PAGE, p.n_kv_heads, head - p.n_heads, p.padded);
                let to = p.k_cache.offset(page.key(place % PAGE)).cast::<u16>();
                let mut item = lane_id();
                while item < half / 2 {
                    let codes = scale.codes(rotated(item));
                    to.store(item as usize, codes as u16);
                    to.store((half / 2 + item) as usize, (codes >> 16) as u16);
                    item += WARP_SIZE;
                }
                let mut two = half + lane_id();
                while two < p.padded / 2 {
                    to.store(two as usize, 0);
                    two += WARP_SIZE;
                }
                if lane_id() == 0 {
                    p.k_cache.cast().store(page.scale(place % PAGE), scale.worth);
                }
                token += THREADS / WARP_SIZE;
            }
        }
    }

    /// Rounds to 8 bits and stores the values of the block's head, which lie in shared memory: a warp finds the scales of every
    /// eighth token, then a lane is a token.
    ///
    /// # Safety
    /// As for [`RopeAppend`]; all lanes of the block call this, after the barrier that follows the stores.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn store_values(p: &RopeAppend, first: u32, tokens: u32) {
        let (tile, width) = (Shared::<f32>::at(0), p.head_dim + 1);
        let magnitudes = Shared::<u32>::at(TOKENS * width * 4);
        // SAFETY: the caller's promise; a word of the cache is one lane's.
        unsafe {
            let mut token = warp_id();
            while token < tokens {
                let mut largest = 0;
                let mut d = lane_id();
                while d < p.head_dim {
                    largest = largest.max(Scale::magnitude(tile.load(token * width + d)));
                    d += WARP_SIZE;
                }
                let largest = warp_reduce_max_u32(FULL_MASK, largest);
                if lane_id() == 0 {
                    magnitudes.store(token, largest);
                }
                token += THREADS / WARP_SIZE;
            }
            // Orders the stores of the magnitudes before the loads below.
            sync_threads();
            let token = lane_id();
            if token < tokens {
                let scale = Scale::new(magnitudes.load(token));
                let place = p.places.load((first + token) as usize);
                let kv_head = block_idx_y() - p.n_heads - p.n_kv_heads;
                let page = Page::<true>::new(place / PAGE, p.n_kv_heads, kv_head, p.padded);
                let mut d = warp_id();
                while d < p.padded {
                    let value = if d < p.head_dim {
                        tile.load(token * width + d)
                    } else {
                        0.0
                    };
                    let [code, ..] = scale.codes([value; 4]).to_le_bytes();
                    p.v_cache.cast().store(page.value_element(place % PAGE, d), code);
                    d += THREADS / WARP_SIZE;
                }
                if warp_id() == 0 {
                    p.v_cache.cast().store(page.scale(place % PAGE), scale.worth);
                }
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn run<const INT8: bool>(p: RopeAppend) {
        let head = block_idx_y();
        let first = block_idx_x() * TOKENS;
        let tokens = (p.batch - first).min(TOKENS);
        let heads = p.n_heads + 2 * p.n_kv_heads;
        // Element of a token's first dimension.
        let row = |token: u32| (token as usize * heads as usize + head as usize) * p.head_dim as usize;
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: tokens are below the batch, dimensions below the head's, positions below the context, places in the cache.
        unsafe {
            if head >= p.n_heads + p.n_kv_heads {
                // A row of the tile is a token; the odd width keeps the lanes of a column in different banks.
                // Never zero; this spares the division its trap.
                let head_dim = p.head_dim.max(1);
                let (tile, width) = (Shared::<f32>::at(0), head_dim + 1);
                let mut i = thread_idx_x();
                while i < tokens * p.head_dim {
                    let (token, d) = (i / head_dim, i % head_dim);
                    tile.store(
                        token * width + d,
                        p.qkv.load_l2(row(first + token) + d as usize)[0],
                    );
                    i += THREADS;
                }
                // Orders the stores of the tile before the loads below.
                sync_threads();
                if INT8 {
                    store_values(&p, first, tokens);
                    return;
                }
                let token = first + lane_id();
                if lane_id() < tokens {
                    let place = p.places.load(token as usize);
                    let kv_head = head - p.n_heads - p.n_kv_heads;
                    let to = Page::<false>::new(place / PAGE, p.n_kv_heads, kv_head, p.padded);
                    let mut d = warp_id();
                    while d < p.padded {
                        let value = if d < p.head_dim {
                            tile.load(lane_id() * width + d)
                        } else {
                            0.0
                        };
                        let to = to.value_element(place % PAGE, d);
                        p.v_cache.cast().store(to, f32_to_bf16(value));
                        d += THREADS / WARP_SIZE;
                    }
                }
                return;
            }
            if INT8 && head >= p.n_heads {
                store_keys(&p, first, tokens);
                return;
            }
            let (half, words) = (p.head_dim / 2, p.padded / 2);
            let is_query = head < p.n_heads;
            let scale = if is_query { p.q_scale } else { 1.0 };
            // A thread makes two words of a rotated head, or one of the padding.
            let items = (half / 2 + words - half).max(1);
            let mut i = thread_idx_x();
            while i < tokens * items {
                let (token, item) = (first + i / items, i % items);
                let position = p.positions.load(token as usize);
                let (out, to) = if is_query {
                    (
                        p.q,
                        (token as usize * p.n_heads as usize + head as usize) * words as usize,
                    )
                } else {
                    let place = p.places.load(token as usize);
                    let page = Page::<false>::new(place / PAGE, p.n_kv_heads, head - p.n_heads, p.padded);
                    (p.k_cache, page.key(place % PAGE))
                };
                if item < half / 2 {
                    let x = p.qkv.offset(row(token));
                    let angle = position as usize * half as usize + 2 * item as usize;
                    let (low, high) = Angle::load(p.cos, p.sin, angle).rotate(
                        x.load_l2_x2(2 * item as usize),
                        x.load_l2_x2((half + 2 * item) as usize),
                    );
                    out.store(to + item as usize, f32_to_bf16x2(low[0] * scale, low[1] * scale));
                    out.store(
                        to + (half / 2 + item) as usize,
                        f32_to_bf16x2(high[0] * scale, high[1] * scale),
                    );
                } else {
                    out.store(to + (half / 2 + item) as usize, 0);
                }
                i += THREADS;
            }
        }
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::q_scale;

    #[test]
    fn the_scale_of_queries_is_that_of_softmax() {
        for head_dim in 1..=256 {
            let expected = std::f64::consts::LOG2_E / f64::from(head_dim).sqrt();
            let error = (f64::from(q_scale(head_dim)) / expected - 1.0).abs();
            assert!(error < 2f64.powi(-24), "{head_dim}: {error}");
        }
    }
}
