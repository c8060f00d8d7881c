//! Attention of decoded tokens: every step of 64 keys is a block's, the query is rotated and the new key and value are
//! appended on the way.

use crate::rope::BLOCK_KEYS;
use crate::{Global, Launch};

/// Warps of a block: each takes 16 of the keys, then a quarter of the dimensions.
const WARPS: u32 = 4;

/// Query heads that a block takes at a time: half the rows of the tensor cores' tile.
const HEADS: u32 = 8;

kernels_by_width! {
    /// Parameters of the decode kernels, one for each padded width of a head: convert it into that kernel's.
    ///
    /// For every token b, head h and step: `m`, `l` and `o` of [`crate::attention`] for the query of the token, rotated as
    /// [`crate::rope::RopeAppend`] does it, over the keys of the cache before the token and its own, which the block of
    /// the token's step puts into the cache. [`crate::attention::AttentionCombine`] folds the steps.
    ///
    /// - Shapes: as for [`crate::rope::RopeAppend`]; `values` (batch, n_heads, steps, padded); `sums` (batch, n_heads,
    ///   steps, 2).
    /// - Launch: a block owns the query heads of one key head, one token and one step. Blocks of steps past the token's
    ///   position return at once, so that one grid serves every position below `64 steps`.
    /// - Moves: keys and values up to the position once, requested before the kernel waits for the one that writes `qkv`.
    /// - Bound: latency from `qkv` to the partial results.
    ///
    /// # Safety
    /// Lengths and alignment as for `RopeAppend`, caches 16-byte and partial results 8-byte aligned; positions below
    /// `64 steps` and `context`; at most one token of a sequence in the batch. `positions`, `sequences` and the cache before
    /// the positions are written by no kernel that this one may overlap.
    pub struct AttentionDecode {
        /// Output of the fused linear layer, (batch, n_heads + 2 n_kv_heads, head_dim).
        pub qkv: Global<f32>,
        /// Position of every token in its sequence, (batch).
        pub positions: Global<u32>,
        /// Sequence of every token, (batch).
        pub sequences: Global<u32>,
        /// Cosines, (context, head_dim / 2).
        pub cos: Global<f32>,
        /// Sines, (context, head_dim / 2).
        pub sin: Global<f32>,
        /// Keys of the layer, two dimensions a word.
        pub k_cache: Global<u32>,
        /// Values of the layer, two positions a word.
        pub v_cache: Global<u32>,
        /// Weighted values of every step.
        pub values: Global<f32>,
        /// Maximum and sum of weights of every step.
        pub sums: Global<f32>,
        /// Tokens.
        pub batch: u32,
        /// Query heads.
        pub n_heads: u32,
        /// Key and value heads.
        pub n_kv_heads: u32,
        /// Dimensions of a head.
        pub head_dim: u32,
        /// Positions a sequence has in the cache.
        pub context: u32,
        /// Steps that partial results have room for.
        pub steps: u32,
        /// Factor of the queries, [`crate::rope::q_scale`].
        pub q_scale: f32,
    }
    attention_decode_32, AttentionDecode32, 1, 32;
    attention_decode_64, AttentionDecode64, 2, 64;
    attention_decode_128, AttentionDecode128, 4, 128;
    attention_decode_256, AttentionDecode256, 8, 256;
}

/// Threads of a block.
const fn threads(_padded: u32) -> u32 {
    WARPS * 32
}

/// The grid, and the shared memory that `device` divides.
fn launch(padded: u32, p: &AttentionDecode) -> Launch {
    Launch {
        grid: [p.n_kv_heads, p.steps, p.batch],
        block: [threads(padded), 1, 1],
        shared_bytes: HEADS * row_bytes(padded) + 4 * padded + 32 * SCORES_STRIDE,
    }
}

/// Bytes from a query row in shared memory to the next: 64 more than its elements, so that two rows lie in different banks.
const fn row_bytes(padded: u32) -> u32 {
    2 * padded + 64
}

/// Bytes from a lane's 16 scores in shared memory to the next lane's: 16 more than the scores, to spread the banks.
const SCORES_STRIDE: u32 = 80;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::super::math;
    use super::{AttentionDecode, BLOCK_KEYS, HEADS, SCORES_STRIDE, WARPS, row_bytes};
    use crate::intrinsics::*;
    use crate::rope::device::{Angle, Head};

    /// Threads of a block.
    const THREADS: u32 = WARPS * WARP_SIZE;

    #[inline(always)]
    pub(super) unsafe fn run<const CHUNKS: usize>(p: impl Into<AttentionDecode>) {
        let p: AttentionDecode = p.into();
        let padded = 32 * CHUNKS as u32;
        let (lane, warp) = (lane_id(), warp_id());
        let (group, quad) = (lane / 4, lane % 4);
        let token = block_idx_z() as usize;
        let first_key = block_idx_y() * BLOCK_KEYS;
        // SAFETY: the token is below the batch.
        let (position, sequence) = unsafe { (p.positions.load(token), p.sequences.load(token)) };
        grid_dependency_launch();
        if first_key > position {
            return;
        }
        let kv_head = block_idx_x();
        let all_heads = p.n_heads / p.n_kv_heads.max(1);
        let cache = Head::new(sequence, p.n_kv_heads, kv_head, p.context, padded);
        // The place of the new key in the step; 64 or more if it belongs to a later one.
        let new_key = position - first_key;
        let is_last = new_key < BLOCK_KEYS;

        let queries = Shared::<u32>::at(0);
        let new_k = Shared::<u32>::at(HEADS * row_bytes(padded));
        let new_v = new_k.offset(padded / 2);
        let scores = Shared::<f32>::at(HEADS * row_bytes(padded) + 4 * padded + lane * SCORES_STRIDE);
        let query_row = row_bytes(padded) / 4;

        // SAFETY: keys before the position lie in the cache, dimensions below the padded ones, shared indices inside the
        // launch's bytes; every branch around a warp or block operation is uniform.
        unsafe {
            // What does not depend on the kernel before is requested first.
            let mut k = [[[0; 4]; CHUNKS]; 2];
            let mut v = [[[0; 4]; 2]; CHUNKS];
            let mut tile = 0;
            while tile < 2 {
                let key = math::key_of(2 * warp + tile, group);
                if key < new_key {
                    let at = cache.key(first_key + key) / 2 + 4 * quad as usize;
                    let mut i = 0;
                    while i < CHUNKS {
                        k[tile as usize][i] = p.k_cache.load_l2_x4(at + 16 * i);
                        i += 1;
                    }
                }
                tile += 1;
            }
            let first_dim = warp * 8 * CHUNKS as u32;
            let mut n = 0;
            while n < CHUNKS {
                let mut i = 0;
                while i < 2 {
                    let key = 32 * i + 8 * quad;
                    if key < new_key {
                        let at = cache.value(first_key + key, first_dim + 8 * n as u32 + group) / 2;
                        v[n][i as usize] = p.v_cache.load_l2_x4(at);
                    }
                    i += 1;
                }
                n += 1;
            }

            let half = p.head_dim / 2;
            let thread = thread_idx_x();
            let angles = position as usize * half as usize;
            let row = p
                .qkv
                .offset(token * ((p.n_heads + 2 * p.n_kv_heads) * p.head_dim) as usize);
            let queries_of = |head: u32| row.offset(((kv_head * all_heads + head) * p.head_dim) as usize);
            let keys_of = row.offset(((p.n_heads + kv_head) * p.head_dim) as usize);
            let values_of = row.offset(((p.n_heads + p.n_kv_heads + kv_head) * p.head_dim) as usize);
            // A thread rotates two pairs of a head at a time.
            let items = (half / 2).max(1);
            let makes_key = is_last && thread < items;
            let makes_value = is_last && thread < 2 * items && !makes_key;
            let angle = |item: u32| Angle::load(p.cos, p.sin, angles + 2 * item as usize);

            grid_dependency_wait();
            // The new key and value are requested with the first queries.
            let mut key = [[0.0; 2]; 2];
            let mut value = [0.0; 4];
            if makes_key {
                key = [
                    keys_of.load_l2_x2(2 * thread as usize),
                    keys_of.load_l2_x2((half + 2 * thread) as usize),
                ];
            }
            if makes_value {
                value = values_of.load_l2_x4(4 * (thread - items) as usize);
            }
            let mut first_head = 0;
            while first_head < all_heads {
                let heads = (all_heads - first_head).min(HEADS);
                let (mut head, mut item) = (thread / items, thread % items);
                while head < heads {
                    let x = queries_of(first_head + head);
                    let low = x.load_l2_x2(2 * item as usize);
                    let high = x.load_l2_x2((half + 2 * item) as usize);
                    let (low, high) = angle(item).rotate(low, high);
                    let to = queries.offset(head * query_row);
                    to.store(item, f32_to_bf16x2(low[0] * p.q_scale, low[1] * p.q_scale));
                    to.store(
                        half / 2 + item,
                        f32_to_bf16x2(high[0] * p.q_scale, high[1] * p.q_scale),
                    );
                    head += THREADS / items;
                    item += THREADS % items;
                    if item >= items {
                        head += 1;
                        item -= items;
                    }
                }
                if first_head == 0 && makes_key {
                    let (low, high) = angle(thread).rotate(key[0], key[1]);
                    let words = [f32_to_bf16x2(low[0], low[1]), f32_to_bf16x2(high[0], high[1])];
                    new_k.store(thread, words[0]);
                    new_k.store(half / 2 + thread, words[1]);
                    let to = p.k_cache.offset(cache.key(position) / 2);
                    to.store(thread as usize, words[0]);
                    to.store((half / 2 + thread) as usize, words[1]);
                }
                if first_head == 0 && makes_value {
                    let item = thread - items;
                    let words = [
                        f32_to_bf16x2(value[0], value[1]),
                        f32_to_bf16x2(value[2], value[3]),
                    ];
                    new_v.store_x2(2 * item, words);
                }
                if p.head_dim < padded {
                    // Zeros of the padding: queries, and the new key and value.
                    let pad = ((padded - p.head_dim) / 2).max(1);
                    let mut i = thread;
                    while i < heads * pad {
                        queries.store(i / pad * query_row + half + i % pad, 0);
                        i += THREADS;
                    }
                    if first_head == 0 && is_last && thread < pad {
                        new_k.store(half + thread, 0);
                        new_v.store(half + thread, 0);
                        p.k_cache
                            .store(cache.key(position) / 2 + (half + thread) as usize, 0);
                    }
                }
                // Orders queries and the new key and value, in shared memory, before the loads below.
                sync_threads();

                let mut q = [[[0; 4]; 2]; CHUNKS];
                if group < heads {
                    let mut i = 0;
                    while i < CHUNKS {
                        let w = queries.load_x4(group * query_row + 16 * i as u32 + 4 * quad);
                        q[i] = [[w[0], 0, w[1], 0], [w[2], 0, w[3], 0]];
                        i += 1;
                    }
                }
                if first_head == 0 && is_last {
                    let mut tile = 0;
                    while tile < 2 {
                        if math::key_of(2 * warp + tile, group) == new_key {
                            let mut i = 0;
                            while i < CHUNKS {
                                k[tile as usize][i] = new_k.load_x4(16 * i as u32 + 4 * quad);
                                i += 1;
                            }
                        }
                        tile += 1;
                    }
                    let mut n = 0;
                    while n < CHUNKS {
                        let dim = first_dim + 8 * n as u32 + group;
                        let new = u32::from(new_v.cast::<u16>().load(dim));
                        let mut word = 0;
                        while word < 8 {
                            let key = 32 * (word / 4) + 8 * quad + 2 * (word % 4);
                            let w = &mut v[n][word as usize / 4][word as usize % 4];
                            // Nothing past the new key may reach a product, not even a NaN times zero.
                            *w = if key + 1 < new_key {
                                *w
                            } else if key + 1 == new_key {
                                (*w & 0xffff) | new << 16
                            } else if key == new_key {
                                new
                            } else {
                                0
                            };
                            word += 1;
                        }
                        if quad == 0 {
                            let to = cache.value(position, dim);
                            p.v_cache.cast::<u16>().store(to, new as u16);
                        }
                        n += 1;
                    }
                }

                let mut s = [0.0; 4];
                let mut tile = 0;
                while tile < 2 {
                    let mut d = [0.0; 4];
                    let mut i = 0;
                    while i < CHUNKS {
                        d = math::score(&q[i], &k[tile as usize][i], d);
                        i += 1;
                    }
                    let key = math::key_of(2 * warp + tile, 2 * quad);
                    let at = 2 * tile as usize;
                    s[at] = if key <= new_key { d[0] } else { f32::NEG_INFINITY };
                    s[at + 1] = if key < new_key { d[1] } else { f32::NEG_INFINITY };
                    tile += 1;
                }
                scores.store_x4(4 * warp, s);
                // Orders every warp's scores before the loads below.
                sync_threads();
                let mut s = [[0.0; 2]; 8];
                let mut i = 0;
                while i < 4 {
                    let w = scores.load_x4(4 * i);
                    s[2 * i as usize] = [w[0], w[1]];
                    s[2 * i as usize + 1] = [w[2], w[3]];
                    i += 1;
                }
                let (max, low) = math::weights(&s);
                let weights = math::fragments(low, [[0; 2]; 4]);

                let row = token * p.n_heads as usize + (kv_head * all_heads + first_head + group) as usize;
                let at = row * p.steps as usize + block_idx_y() as usize;
                let mut n = 0;
                while n < CHUNKS {
                    let o = math::values(&weights, &v[n]);
                    if group < heads {
                        let dim = first_dim + 8 * n as u32 + 2 * quad;
                        p.values
                            .store_x2(at * padded as usize + dim as usize, [o[0], o[1]]);
                    }
                    n += 1;
                }
                if warp == 0 {
                    let sum = math::sums(&weights);
                    if group < heads && quad == 0 {
                        p.sums.store_x2(2 * at, [max, sum[0]]);
                    }
                }
                first_head += HEADS;
            }
        }
    }
}
