//! The body of the kernels, and what [`crate::quantize_rows`] shares with it.

use super::product::Product;
use super::{DecodeLinear, Epilogue, RELU2};
use crate::intrinsics::*;
use crate::reduce::warp_sum;
use crate::tiles::{EARLY, WARPS_AT_A_TIME, row_scale, weights};

/// Epilogue: the product is added to the output.
pub(crate) const ADD: u32 = Epilogue::Add as u32;
/// Epilogue: pairs of products, gate and up, become one output.
pub(crate) const GATED: u32 = Epilogue::Gated as u32;

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

/// The norm's weights of the columns that this lane quantizes of this warp's tiles from tile `chunk` along k.
///
/// # Safety
/// The launch is [`super::DecodeStoreK2::launch`]'s.
#[inline(always)]
unsafe fn norms<const KPW: usize>(p: &DecodeLinear, chunk: u32) -> [[f32; 4]; KPW] {
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

/// The first of the four columns of a tile that this lane quantizes: those of word `lane / 4`, in the order of
/// [`mma_tile::activation_word`], of the eight words of columns `32 (lane % 4) ..`.
#[inline(always)]
pub(crate) fn tile_column() -> u32 {
    let (word, t) = (lane_id() / 4, lane_id() % 4);
    32 * t + 16 * (word % 2) + 4 * (word / 2)
}

/// Those columns of tile `i` of its warp.
#[inline(always)]
fn column(chunk: u32, i: u32) -> u32 {
    let tile = chunk + i * (block_dim_x() / WARP_SIZE) + warp_id();
    tile * 128 + tile_column()
}

/// The elements of those columns of row `row`, or of the last row.
///
/// # Safety
/// As for [`norms`], and the row was written.
#[inline(always)]
unsafe fn elements<const KPW: usize>(p: &DecodeLinear, row: u32, chunk: u32) -> [[f32; 4]; KPW] {
    let first = if row == 0 { 0 } else { row.min(p.cols - 1) * p.k };
    let mut x = [[0.0; 4]; KPW];
    let mut i = 0;
    while i < KPW {
        let col = column(chunk, i as u32);
        if col < p.k {
            // SAFETY: the column is compared with k.
            x[i] = unsafe { p.x.load_l2_x4((first + col) as usize) };
        }
        i += 1;
    }
    x
}

/// The largest `|x norm|` of a lane's columns.
#[inline(always)]
fn largest<const KPW: usize>(x: &[[f32; 4]; KPW], norm: &[[f32; 4]; KPW]) -> f32 {
    let mut max = 0.0f32;
    let mut i = 0;
    while i < KPW {
        let mut j = 0;
        while j < 4 {
            max = max.max((x[i][j] * norm[i][j]).abs());
            j += 1;
        }
        i += 1;
    }
    max
}

/// Sums over the columns of a lane.
#[derive(Clone, Copy)]
struct Totals {
    codes: i32,
    squares: f32,
}

impl Totals {
    /// Quantizes, adds to the totals, and gives what this lane feeds to the products.
    ///
    /// # Safety
    /// The whole warp calls this.
    #[inline(always)]
    unsafe fn quantize<P: Product, const KPW: usize>(
        &mut self,
        x: &[[f32; 4]; KPW],
        norm: &[[f32; 4]; KPW],
        scale: f32,
    ) -> [P::Fed; KPW] {
        let mut fed = [P::ZERO; KPW];
        let mut i = 0;
        while i < KPW {
            self.squares = add_squares(self.squares, x[i]);
            let word = codes(x[i], norm[i], scale);
            self.codes = dp4a(word, 0x0101_0101, self.codes);
            // SAFETY: the caller's promise.
            fed[i] = unsafe { P::feed(word) };
            i += 1;
        }
        fed
    }
}

#[inline(always)]
pub(super) unsafe fn run<
    P: Product,
    const EPILOGUE: u32,
    const T: usize,
    const KPW: usize,
    const COLS: usize,
>(
    p: DecodeLinear,
) {
    let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
    let (g, t) = (lane / 4, lane % 4);
    let tiles_k = p.k.div_ceil(128);
    // Matrices whose warps hold two tiles of a row have no more.
    let has_more = KPW > 2;
    let first = block_idx_x() * T as u32;
    let rows = T as u32 * 16;
    let cols = COLS as u32;
    // (column, warp, row of the block), then (column, warp) sums of codes and of squares.
    let parts = Shared::<i32>::at(0);
    let sums = Shared::<i32>::at(cols * warps * rows * 4);
    let squares = Shared::<f32>::at(cols * warps * (rows + 1) * 4);
    let maxima = Shared::<u32>::at(cols * warps * (rows + 2) * 4);
    // What a code of each column is worth, which does not stay in a register through the products.
    let worth = Shared::<f32>::at(cols * warps * (rows + 3) * 4);

    // The outputs that this lane will write, if any: of a column a row, or a pair of rows that is one output.
    let outputs = if EPILOGUE == GATED { rows / 2 } else { rows };
    let n_out = if EPILOGUE == GATED { p.n / 2 } else { p.n };
    let output = |at: u32| {
        let (col, me) = if COLS == 1 {
            (0, at)
        } else {
            (at / outputs, at % outputs)
        };
        let out = first * (outputs / T as u32) + me;
        let is_one = at < outputs * cols && out < n_out && (COLS == 1 || col < p.cols);
        (col, me, out, is_one)
    };
    let place = |col: u32, out: u32| (if COLS == 1 { out } else { col * n_out + out }) as usize;
    let (col, _, out, writes) = output(thread_idx_x());

    let mut totals = [Totals {
        codes: 0,
        squares: 0.0,
    }; COLS];
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
        let mut before = 0.0;
        grid_dependency_launch();
        grid_dependency_wait();
        let mut x = [[[0.0; 4]; KPW]; COLS];
        let mut c = 0;
        while c < COLS {
            x[c] = elements::<KPW>(&p, c as u32, 0);
            c += 1;
        }
        if EARLY && EPILOGUE == ADD && writes {
            before = p.y.load_l2(place(col, out))[0];
        }
        let mut max = [0.0f32; COLS];
        let mut c = 0;
        while c < COLS {
            max[c] = largest(&x[c], &norm);
            c += 1;
        }
        let mut chunk = warps * KPW as u32;
        while has_more && chunk < tiles_k {
            let mut c = 0;
            while c < COLS {
                let x = elements::<KPW>(&p, c as u32, chunk);
                max[c] = max[c].max(largest(&x, &norms(&p, chunk)));
                c += 1;
            }
            chunk += warps * KPW as u32;
        }
        let mut c = 0;
        while c < COLS {
            // Bits of floats that are not negative order as the floats do.
            let max = warp_reduce_max_u32(FULL_MASK, max[c].to_bits());
            if lane == 0 {
                maxima.store(c as u32 * warps + warp, max);
            }
            c += 1;
        }
        // Orders every warp's maxima before the loads below.
        sync_threads();
        let mut scales = [0.0; COLS];
        let mut fed = [[P::ZERO; KPW]; COLS];
        let mut c = 0;
        while c < COLS {
            let max = maxima.load(c as u32 * warps + if lane < warps { lane } else { 0 });
            let scale = Scale::new(f32::from_bits(warp_reduce_max_u32(FULL_MASK, max)));
            if thread_idx_x() == 0 {
                worth.store(c as u32, scale.worth);
            }
            scales[c] = scale.of_codes;
            fed[c] = totals[c].quantize::<P, KPW>(&x[c], &norm, scale.of_codes);
            c += 1;
        }
        // Two columns at a time, since what is fed stays in registers in several forms. Lane t of a row's has the sums of one.
        let mut c = 0;
        while c < COLS {
            let mut r = 0;
            while r < T {
                let d = if COLS == 1 {
                    P::sums(&w[r], &fed[0])
                } else {
                    P::sums_of_two(&w[r], [&fed[c], &fed[(c + 1) % COLS]])
                };
                if t < 2 && t < cols {
                    let at = ((c as u32 + t) * warps + warp) * rows + r as u32 * 16 + g;
                    parts.store(at, d[0]);
                    parts.store(at + 8, d[1]);
                }
                r += 1;
            }
            c += 2;
        }
        // What a wider matrix has beyond the first tiles of every warp, one row of tiles at a time: in a loop that the
        // compiler cannot unroll, whose registers the loads above would lack.
        let own = (p.n.div_ceil(16) - first).min(T as u32);
        let mut chunk = warps * KPW as u32;
        while has_more && chunk < tiles_k {
            let norm = norms(&p, chunk);
            let mut fed = [[P::ZERO; KPW]; COLS];
            let mut c = 0;
            while c < COLS {
                let x = elements::<KPW>(&p, c as u32, chunk);
                fed[c] = totals[c].quantize::<P, KPW>(&x, &norm, scales[c]);
                c += 1;
            }
            let mut r = 0;
            while r < own {
                let w = weights(p.w, (p.n, p.k), first + r, chunk);
                let mut c = 0;
                while c < COLS {
                    let d = if COLS == 1 {
                        P::sums(&w, &fed[0])
                    } else {
                        P::sums_of_two(&w, [&fed[c], &fed[(c + 1) % COLS]])
                    };
                    if t < 2 && t < cols {
                        let at = ((c as u32 + t) * warps + warp) * rows + r * 16 + g;
                        parts.store(at, parts.load(at) + d[0]);
                        parts.store(at + 8, parts.load(at + 8) + d[1]);
                    }
                    c += 2;
                }
                r += 1;
            }
            chunk += warps * KPW as u32;
        }
        let mut c = 0;
        while c < COLS {
            let sum = warp_reduce_add(FULL_MASK, totals[c].codes);
            let square = warp_sum(totals[c].squares);
            if lane == 0 {
                sums.store(c as u32 * warps + warp, sum);
                squares.store(c as u32 * warps + warp, square);
            }
            c += 1;
        }
        // Orders every warp's parts and sums, and the worths, before the additions below.
        sync_threads();

        let mut at = thread_idx_x_again();
        // Lanes of these warps that have no output go along and store nothing.
        while at < (outputs * cols).next_multiple_of(WARP_SIZE) {
            let (col, me, out, writes) = output(at);
            let row = if EPILOGUE == GATED {
                me / 8 * 16 + me % 8
            } else {
                me
            } % rows;
            let of_column = if COLS == 1 { 0 } else { col.min(cols - 1) * warps };
            let (mut a, mut b, mut square) = (0, 0, 0.0);
            let mut i = 0;
            while i < warps {
                // Several at a time, so that the loads do not wait for each other.
                let mut j = 0;
                while j < WARPS_AT_A_TIME {
                    let (from, keep) = if i + j < warps { (i + j, -1) } else { (0, 0) };
                    let from = of_column + from;
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
            let is_first = COLS == 1 || at < block_dim_x();
            if (!EARLY || !is_first) && EPILOGUE == ADD && writes {
                before = p.y.load_l2(place(col, out))[0];
            }
            let worth = worth.load(if COLS == 1 { 0 } else { col.min(cols - 1) });
            let unit = unit(worth, square, p.k, p.eps);
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
                p.y.store(place(col, out), value);
            }
            if COLS == 1 {
                // A block has a lane for each of its outputs.
                break;
            }
            at += block_dim_x();
        }
    }
}
