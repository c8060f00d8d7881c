//! Rotary embedding of queries and keys, and the way of keys and values into the cache of [`crate::cache`].

use crate::{Global, Launch};

/// Tokens of a block of [`RopeAppend`].
const TOKENS: u32 = 32;
/// Threads of a block of [`RopeAppend`].
const THREADS: u32 = 256;

kernel! {
    /// `q = rotate(q, pos) * q_scale`, `k_cache[place] = rotate(k, pos)`, `v_cache[place] = v` for every token and head.
    ///
    /// `rotate` turns the pair (`x[d]`, `x[d + head_dim / 2]`) by the angle whose cosine and sine are `cos[pos][d]` and
    /// `sin[pos][d]`: the half-split convention, each product rounded on its own.
    ///
    /// - Shapes: `qkv` (batch, n_heads + 2 n_kv_heads, head_dim) f32; `positions`, `places` (batch); `cos`, `sin`
    ///   (context, head_dim / 2); `q` (batch, n_heads, padded) bfloat16; caches as [`crate::cache`] says.
    /// - Launch: [`RopeAppend::launch`]; a block owns one head of 32 tokens.
    /// - Moves: `qkv` once, half of its bytes out.
    /// - Bound: L2; values pass through shared memory so that both sides move whole sectors.
    ///
    /// # Safety
    /// Lengths as above; `head_dim` a multiple of 4, `padded` its [`padded_head_dim`](crate::cache::padded_head_dim); `qkv`,
    /// `cos`, `sin` 16-byte aligned; every position below `context`; no two tokens with the same place.
    rope_append, block = [THREADS, 1, 1], body = device::run;
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
        /// Keys of the layer, two dimensions a word.
        pub k_cache: Global<u32>,
        /// Values of the layer.
        pub v_cache: Global<u16>,
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

impl RopeAppend {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch {
            grid: [self.batch.div_ceil(TOKENS), self.n_heads + 2 * self.n_kv_heads, 1],
            block: [THREADS, 1, 1],
            shared_bytes: TOKENS * (self.head_dim + 1) * 4,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device {
    use super::{RopeAppend, THREADS, TOKENS};
    use crate::Global;
    use crate::cache::PAGE;
    use crate::cache::device::Page;
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

    #[inline(always)]
    pub(super) unsafe fn run(p: RopeAppend) {
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
                let token = first + lane_id();
                if lane_id() < tokens {
                    let place = p.places.load(token as usize);
                    let kv_head = head - p.n_heads - p.n_kv_heads;
                    let to = Page::new(place / PAGE, p.n_kv_heads, kv_head, p.padded);
                    let mut d = warp_id();
                    while d < p.padded {
                        let value = if d < p.head_dim {
                            tile.load(lane_id() * width + d)
                        } else {
                            0.0
                        };
                        p.v_cache.store(to.value(place % PAGE, d), f32_to_bf16(value));
                        d += THREADS / WARP_SIZE;
                    }
                }
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
                    let page = Page::new(place / PAGE, p.n_kv_heads, head - p.n_heads, p.padded);
                    (p.k_cache, page.key(place % PAGE) / 2)
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
