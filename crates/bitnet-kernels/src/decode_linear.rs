//! The linear layers of one decoded token: RMSNorm, 8-bit quantization, ternary product and epilogue in one kernel.
//!
//! What a layer's input is worth depends on two numbers about all of it: the largest magnitude (for the codes) and the sum
//! of squares (for the norm). The kernel that writes the input publishes the first in 32 slots; the second only scales the
//! result, so each block sums it beside its products. The codes themselves need no norm:
//! `round(x w r * 127 / max|x w r|)` is `round(x w * 127 / max|x w|)` for the `r = 1 / rms(x)` of the norm. So a warp
//! quantizes just the columns it multiplies, in registers, and the one barrier of the kernel is that of the products.
//!
//! [`crate::quantize_rows`] computes the same codes and the same `unit`, bit for bit, for batches.

use crate::{Global, Launch};
use bitnet_layout::mma_tile;

/// Slots through which a kernel publishes the largest magnitude of its output.
pub const SLOTS: usize = 32;

/// Gate of the feed-forward block: `relu(x)^2`.
pub const RELU2: u32 = 0;
/// Gate of the feed-forward block: `x sigmoid(x)`.
pub const SILU: u32 = 1;

macro_rules! decode_linear {
    ($($name:ident, $Params:ident, $epilogue:ident, $t:literal, $kpw:literal, $what:literal;)*) => {
        $(kernel! {
            /// `z[n] = (sum over k of t[n][k] q[k]) * (scale(n) * unit)` for the codes q of one normalized row, then
            #[doc = $what]
            ///
            /// - Shapes: `w` tiles of (n, k); `x`, `norm` (k); the rest as the fields say.
            /// - Launch: [`launch`]; a block owns
            #[doc = concat!(stringify!($t), " rows of tiles, its warps split k, ", stringify!($kpw), " tiles a warp at a time.")]
            /// - Layout: [`bitnet_layout::mma_tile`]. Moves: `n k / 4` bytes of weights once; `x` once a block, from L2.
            /// - Bound: the latency of the dependent part, and DRAM for the largest matrix.
            ///
            /// # Safety
            /// Lengths as above; `w`, `x` and `norm` 16-byte aligned; `k` a multiple of 4; the launch is [`launch`]'s.
            $name, block = [max_warps($kpw) * 32, 1, 1], min_blocks = if $kpw == 2 { 2 } else { 1 }, body = device::run::<{ device::$epilogue }, $t, $kpw>;
            pub struct $Params {
                /// Weights in tiles; in pairs of rows for the gated kernels.
                pub w: Global<u32>,
                /// Input row, (k).
                pub x: Global<f32>,
                /// Weight of the norm before the layer, (k); ones where there is no norm.
                pub norm: Global<f32>,
                /// Bits of the largest `|x norm|`, in parts, ([`SLOTS`]).
                pub absmax: Global<u32>,
                /// Output; the residual stream (n), which is added to; gated, (n / 2).
                pub y: Global<f32>,
                /// Weight of the norm of the output's reader, of the output's length; ones where there is none.
                pub next_norm: Global<f32>,
                /// Where to publish the largest `|output next_norm|`, ([`SLOTS`]).
                pub next_absmax: Global<u32>,
                /// Rows.
                pub n: u32,
                /// Columns.
                pub k: u32,
                /// Epsilon of the norm; negative where there is no norm.
                pub eps: f32,
                /// [`RELU2`] or [`SILU`], for the gated kernels.
                pub activation: u32,
                /// First row that has `scale_b`.
                pub row_b: u32,
                /// First row that has `scale_c`.
                pub row_c: u32,
                /// What a ternary unit of the first rows (gated: of the gate) is worth.
                pub scale_a: f32,
                /// What a ternary unit of rows `row_b ..` (gated: of up) is worth.
                pub scale_b: f32,
                /// What a ternary unit of rows `row_c ..` is worth.
                pub scale_c: f32,
            }
        })*

        #[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
        mod params {
            use super::DecodeStoreK2;
            use super::device::Params;
            $(
                impl Params for super::$Params {
                    #[inline(always)]
                    #[rustfmt::skip]
                    fn get(self) -> DecodeStoreK2 {
                        let super::$Params { w, x, norm, absmax, y, next_norm, next_absmax, n, k, eps, activation, row_b,
                            row_c, scale_a, scale_b, scale_c } = self;
                        DecodeStoreK2 { w, x, norm, absmax, y, next_norm, next_absmax, n, k, eps, activation, row_b, row_c,
                            scale_a, scale_b, scale_c }
                    }
                }
            )*
        }
    };
}

decode_linear! {
    decode_store_k2, DecodeStoreK2, STORE, 2, 2, "`y = z`: the projections to q, k and v.";
    decode_store_k3, DecodeStoreK3, STORE, 2, 3, "`y = z`: the projections to q, k and v.";
    decode_store_k4, DecodeStoreK4, STORE, 2, 4, "`y = z`: the projections to q, k and v.";
    decode_add_k2, DecodeAddK2, ADD, 2, 2, "`y += z`: a projection back to the residual stream.";
    decode_add_k3, DecodeAddK3, ADD, 2, 3, "`y += z`: a projection back to the residual stream.";
    decode_add_k4, DecodeAddK4, ADD, 2, 4, "`y += z`: a projection back to the residual stream.";
    decode_gated_k2, DecodeGatedK2, GATED, 4, 2, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
    decode_gated_k3, DecodeGatedK3, GATED, 2, 3, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
    decode_gated_k4, DecodeGatedK4, GATED, 2, 4, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
}

/// Most warps of a block whose warps hold `tiles_per_warp` tiles of each of their rows: what the registers suffice for, twice
/// over where a warp holds two.
const fn max_warps(tiles_per_warp: u32) -> u32 {
    match tiles_per_warp {
        2 => 10,
        3 => 18,
        _ => 16,
    }
}

/// Tiles along k that a warp holds at a time, for `k` columns. It also fixes the order in which squares are added.
#[must_use]
pub const fn tiles_per_warp(k: usize) -> u32 {
    match mma_tile::tiles_k(k) {
        0..=20 => 2,
        21..=54 => 3,
        _ => 4,
    }
}

/// Warps of a block that shares `k` columns.
#[must_use]
pub const fn warps(k: usize) -> u32 {
    let warps = (mma_tile::tiles_k(k) as u32).div_ceil(tiles_per_warp(k));
    let most = max_warps(tiles_per_warp(k));
    if warps < most { warps } else { most }
}

/// Launch of the kernel whose name ends in [`tiles_per_warp`] of `k`, `gated` or not.
#[must_use]
pub fn launch(n: usize, k: usize, gated: bool) -> Launch {
    let tile_rows = if gated && tiles_per_warp(k) == 2 { 4 } else { 2 };
    Launch {
        grid: [(mma_tile::tiles_n(n) as u32).div_ceil(tile_rows), 1, 1],
        block: [warps(k) * 32, 1, 1],
        shared_bytes: warps(k) * (tile_rows * mma_tile::ROWS as u32 + 2) * 4 + 4,
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device {
    use super::{DecodeStoreK2, RELU2, SLOTS};
    use crate::Global;
    use crate::bit_gemv::device::{EARLY, WARPS_AT_A_TIME, row_scale, tile_sums, weights};
    use crate::intrinsics::*;
    use crate::reduce::warp_sum;
    use bitnet_layout::mma_tile;

    /// Epilogue: the product is the output.
    pub(crate) const STORE: u32 = 0;
    /// Epilogue: the product is added to the output.
    pub(crate) const ADD: u32 = 1;
    /// Epilogue: pairs of products, gate and up, become one output.
    pub(crate) const GATED: u32 = 2;

    /// Gives the parameter structs of all kernels here one shape.
    pub(super) trait Params: Copy {
        /// The fields, as those of one of them.
        fn get(self) -> DecodeStoreK2;
    }

    /// What is known of a row before its elements are: the scale of its codes, and what a code is worth before the norm.
    #[derive(Clone, Copy)]
    pub(crate) struct Scale {
        /// `127 / absmax`, finite for a row of zeros. Approximate, because every product waits for it: an activation next to a
        /// half may be rounded the other way than on the host, as any other order of multiplying would have it.
        pub(crate) of_codes: f32,
        /// `absmax / 127`.
        pub(crate) worth: f32,
    }

    impl Scale {
        /// Of a row whose largest magnitude is `absmax`.
        #[inline(always)]
        pub(crate) fn new(absmax: f32) -> Self {
            let absmax = absmax.max(1e-30);
            Self {
                of_codes: 127.0 * reciprocal_approx(absmax),
                worth: absmax * (1.0 / 127.0),
            }
        }
    }

    /// What a code is worth after the norm: `worth / rms`, or `worth` for a negative `eps`, which means no norm.
    #[inline(always)]
    pub(crate) fn unit(worth: f32, squares: f32, k: u32, eps: f32) -> f32 {
        if eps < 0.0 {
            worth
        } else {
            worth * rsqrt_approx(fma(squares, reciprocal_approx(k as f32), eps))
        }
    }

    /// Four codes of a row, `round(x norm * scale)`, one a byte.
    #[inline(always)]
    pub(crate) fn codes(x: [f32; 4], norm: [f32; 4], scale: f32) -> u32 {
        pack_i8x4(core::array::from_fn(|j| round_to_i32(x[j] * norm[j] * scale)))
    }

    /// `total` with the squares of `x` added, in order.
    #[inline(always)]
    pub(crate) fn add_squares(total: f32, x: [f32; 4]) -> f32 {
        fma(
            x[3],
            x[3],
            fma(x[2], x[2], fma(x[1], x[1], fma(x[0], x[0], total))),
        )
    }

    /// `activation(gate) * up`.
    #[inline(always)]
    pub(crate) fn gated(gate: f32, up: f32, activation: u32) -> f32 {
        if activation == RELU2 {
            let gate = gate.max(0.0);
            gate * gate * up
        } else {
            gate / (1.0 + exp2_approx(gate * -core::f32::consts::LOG2_E)) * up
        }
    }

    /// Publishes the largest `magnitude` of the warp.
    ///
    /// # Safety
    /// The whole warp calls this; `slots` is [`SLOTS`] words.
    #[inline(always)]
    pub(crate) unsafe fn publish_absmax(slots: Global<u32>, magnitude: f32) {
        // SAFETY: the caller's promise. Bits of floats that are not negative order as the floats do.
        unsafe {
            let bits = warp_reduce_max_u32(FULL_MASK, magnitude.to_bits());
            if lane_id() == 0 {
                slots.fetch_max((block_idx_x() % SLOTS as u32) as usize, bits);
            }
        }
    }

    /// The norm's weights of the columns that this lane quantizes of this warp's tiles from tile `chunk` along k.
    ///
    /// # Safety
    /// The launch is [`super::launch`]'s.
    #[inline(always)]
    unsafe fn norms<const KPW: usize>(p: &DecodeStoreK2, chunk: u32) -> [[f32; 4]; KPW] {
        let mut norm = [[0.0; 4]; KPW];
        let mut i = 0;
        while i < KPW {
            let col = column(chunk, i as u32);
            if col < p.k {
                // SAFETY: the column is compared with k.
                norm[i] = unsafe { p.norm.load_constant_x4(col as usize) };
            }
            i += 1;
        }
        norm
    }

    /// The first of the four columns that this lane quantizes of tile `i` of its warp: lane (g, t) takes columns 32 t + 4 g.
    #[inline(always)]
    fn column(chunk: u32, i: u32) -> u32 {
        let tile = chunk + i * (block_dim_x() / WARP_SIZE) + warp_id();
        tile * 128 + lane_id() % 4 * 32 + lane_id() / 4 * 4
    }

    /// The elements of those columns.
    ///
    /// # Safety
    /// As for [`norms`], and the row was written.
    #[inline(always)]
    unsafe fn elements<const KPW: usize>(p: &DecodeStoreK2, chunk: u32) -> [[f32; 4]; KPW] {
        let mut x = [[0.0; 4]; KPW];
        let mut i = 0;
        while i < KPW {
            let col = column(chunk, i as u32);
            if col < p.k {
                // SAFETY: the column is compared with k.
                x[i] = unsafe { p.x.load_l2_x4(col as usize) };
            }
            i += 1;
        }
        x
    }

    /// Sums over the columns of a lane.
    #[derive(Clone, Copy)]
    struct Totals {
        codes: i32,
        squares: f32,
    }

    impl Totals {
        /// Quantizes, adds to the totals, and hands each lane the words that it feeds to the products.
        ///
        /// # Safety
        /// The whole warp calls this.
        #[inline(always)]
        unsafe fn quantize<const KPW: usize>(
            &mut self,
            x: [[f32; 4]; KPW],
            norm: [[f32; 4]; KPW],
            scale: f32,
        ) -> [[u32; 8]; KPW] {
            let mut q = [[0; 8]; KPW];
            let mut i = 0;
            while i < KPW {
                self.squares = add_squares(self.squares, x[i]);
                let word = codes(x[i], norm[i], scale);
                self.codes = dp4a(word, 0x0101_0101, self.codes);
                let mut j = 0;
                while j < 8 {
                    let from = j as u32 * 4 + lane_id() % 4;
                    // SAFETY: the caller's promise.
                    let word = unsafe { warp_shuffle_idx(FULL_MASK, word, from) };
                    q[i][mma_tile::activation_word(j as u32) as usize] = word;
                    j += 1;
                }
                i += 1;
            }
            q
        }
    }

    #[inline(always)]
    pub(super) unsafe fn run<const EPILOGUE: u32, const T: usize, const KPW: usize>(p: impl Params) {
        let p = p.get();
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        let (g, t) = (lane / 4, lane % 4);
        let tiles_k = p.k.div_ceil(128);
        let first = block_idx_x() * T as u32;
        let rows = T as u32 * 16;
        // (warp, row of the block), then (warp) sums of codes and of squares.
        let parts = Shared::<i32>::at(0);
        let sums = Shared::<i32>::at(warps * rows * 4);
        let squares = Shared::<f32>::at(warps * (rows + 1) * 4);
        // What a code is worth, which does not stay in a register through the products.
        let worth = Shared::<f32>::at(warps * (rows + 2) * 4);

        // The output that this lane will write, if any: a row, or a pair of rows that is one output.
        let outputs = if EPILOGUE == GATED { rows / 2 } else { rows };
        let n_out = if EPILOGUE == GATED { p.n / 2 } else { p.n };
        let output = |me: u32| {
            let out = first * (outputs / T as u32) + me;
            (out, me < outputs && out < n_out)
        };
        let (out, writes) = output(thread_idx_x());

        let mut totals = Totals {
            codes: 0,
            squares: 0.0,
        };
        // SAFETY: tile indices are clamped to the matrix, columns are compared with k, shared indices are below the
        // launch's size; every branch around a warp or block operation is uniform.
        unsafe {
            let mut w = [[[0; 4]; KPW]; T];
            let mut r = 0;
            while r < T {
                w[r] = weights(p.w, (p.n, p.k), first + r as u32, 0);
                r += 1;
            }
            let norm = norms::<KPW>(&p, 0);
            let (mut next_norm, mut before) = (0.0, 0.0);
            if EARLY && EPILOGUE != STORE && writes {
                next_norm = p.next_norm.load_constant(out as usize)[0];
            }
            grid_dependency_launch();
            grid_dependency_wait();
            let bits = p.absmax.load_l2(lane as usize)[0];
            let x = elements::<KPW>(&p, 0);
            if EARLY && EPILOGUE == ADD && writes {
                before = p.y.load_l2(out as usize)[0];
            }
            let scale = Scale::new(f32::from_bits(warp_reduce_max_u32(FULL_MASK, bits)));
            if thread_idx_x() == 0 {
                worth.store(0, scale.worth);
            }
            let q = totals.quantize(x, norm, scale.of_codes);
            let mut r = 0;
            while r < T {
                // Every column of the product is the same row of activations: take column 0.
                let d = tile_sums(&w[r], &q);
                if t == 0 {
                    let at = warp * rows + r as u32 * 16 + g;
                    parts.store(at, d[0]);
                    parts.store(at + 8, d[2]);
                }
                r += 1;
            }
            // What a wider matrix has beyond the first tiles of every warp, one row of tiles at a time: in a loop that the
            // compiler cannot unroll, whose registers the loads above would lack.
            let own = (p.n.div_ceil(16) - first).min(T as u32);
            let mut chunk = warps * KPW as u32;
            while chunk < tiles_k {
                let x = elements::<KPW>(&p, chunk);
                let q = totals.quantize(x, norms(&p, chunk), scale.of_codes);
                let mut r = 0;
                while r < own {
                    let d = tile_sums(&weights(p.w, (p.n, p.k), first + r, chunk), &q);
                    if t == 0 {
                        let at = warp * rows + r * 16 + g;
                        parts.store(at, parts.load(at) + d[0]);
                        parts.store(at + 8, parts.load(at + 8) + d[2]);
                    }
                    r += 1;
                }
                chunk += warps * KPW as u32;
            }
            let sum = warp_reduce_add(FULL_MASK, totals.codes);
            let square = warp_sum(totals.squares);
            if lane == 0 {
                sums.store(warp, sum);
                squares.store(warp, square);
            }
            // Orders every warp's parts and sums, and the worth, before the additions below.
            sync_threads();

            let me = thread_idx_x_again();
            let (out, writes) = output(me);
            // Whole warps go on, so that they can reduce.
            if me < outputs.next_multiple_of(WARP_SIZE) {
                let row = if EPILOGUE == GATED {
                    me / 8 * 16 + me % 8
                } else {
                    me
                } % rows;
                let (mut a, mut b, mut square) = (0, 0, 0.0);
                let mut i = 0;
                while i < warps {
                    // Several at a time, so that the loads do not wait for each other.
                    let mut j = 0;
                    while j < WARPS_AT_A_TIME {
                        let (from, keep) = if i + j < warps { (i + j, -1) } else { (0, 0) };
                        let sum = sums.load(from);
                        a += (parts.load(from * rows + row) - sum) & keep;
                        if EPILOGUE == GATED {
                            b += (parts.load(from * rows + row + 8) - sum) & keep;
                        }
                        // Adding zero changes no sum of squares.
                        square += f32::from_bits(squares.load(from).to_bits() & keep as u32);
                        j += 1;
                    }
                    i += WARPS_AT_A_TIME;
                }
                if !EARLY && EPILOGUE != STORE && writes {
                    next_norm = p.next_norm.load_constant(out as usize)[0];
                    if EPILOGUE == ADD {
                        before = p.y.load_l2(out as usize)[0];
                    }
                }
                let unit = unit(worth.load(0), square, p.k, p.eps);
                let value = if EPILOGUE == GATED {
                    gated(
                        a as f32 * (p.scale_a * unit),
                        b as f32 * (p.scale_b * unit),
                        p.activation,
                    )
                } else {
                    let scale = row_scale(out, [p.row_b, p.row_c], [p.scale_a, p.scale_b, p.scale_c]);
                    before + a as f32 * (scale * unit)
                };
                if writes {
                    p.y.store(out as usize, value);
                }
                if EPILOGUE != STORE {
                    publish_absmax(
                        p.next_absmax,
                        if writes { (value * next_norm).abs() } else { 0.0 },
                    );
                }
            }
        }
    }
}
