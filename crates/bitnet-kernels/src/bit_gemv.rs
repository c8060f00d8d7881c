//! `y = W x` for ternary `W` and up to eight columns of 8-bit activations: the product every decoded token is made of.
//!
//! A warp multiplies whole tiles of [`bitnet_layout::mma_tile`] on the int8 tensor cores. One 16-byte load a lane brings 16
//! rows by 128 columns; masking plane `p` of its four words gives the A fragment of one `mma.m16n8k32` without a shift,
//! because codes scaled by `4^p` are kept in an accumulator of their own and scaled back once at the end, which is exact.
//! Codes are `t + 1`, so the sum of the activations is subtracted at the end. Of the 8 columns that the tensor core
//! computes in any case, `cols` are used.
//!
//! The warps of a block split k and keep `T` rows of tiles: every weight that a block will need is requested before it
//! waits for the kernel that writes `x` (programmatic dependent launch), all in registers, so the loads of one product run
//! under the arithmetic of the product before it.

use crate::{Global, Launch};
use bitnet_layout::mma_tile;

/// Widest batch of [`BitGemvT2K1`] and its siblings.
pub const MAX_COLS: u32 = 8;

macro_rules! bit_gemv {
    ($($name:ident, $Params:ident, $t:literal, $kpw:literal, $warps:literal, $min_blocks:literal;)*) => {$(
        kernel! {
            /// `y[c][n] = (sum over k of t[n][k] x[c][k]) * (scale(n) * unit[c])` for `cols` columns c.
            ///
            /// - Shapes: `w` tiles of (n, k); `x` (cols, k padded to 128) i8, padded with zeros; `unit` (cols); `y` (cols, n).
            /// - Launch: a block owns
            #[doc = concat!(stringify!($t), " rows of tiles and its warps split k, ", stringify!($kpw), " tiles a warp at a time;")]
            ///   grid, warps and shared memory as [`Plan`] says.
            /// - Layout: [`bitnet_layout::mma_tile`]. Moves: `n k / 4` bytes of weights once, `x` once a block.
            /// - Bound: latency of the dependent part (x from L2, products, one barrier) below about 4 MB of weights, above
            ///   that DRAM: 61 % of it at 20480 x 3200 on an H200.
            ///
            /// # Safety
            /// Lengths as above; `w` and `x` 16-byte aligned; `1 <= cols <= 8`; `n`, `k` at least 1; the launch is the plan's.
            $name, block = [$warps * 32, 1, 1], min_blocks = $min_blocks, body = device::run::<$t, $kpw, { device::ahead($t, $kpw) }>;
            pub struct $Params {
                /// Weights in tiles.
                pub w: Global<u32>,
                /// Activations, four a word in the order of [`mma_tile::activation_word`], (cols, k padded / 4).
                pub x: Global<u32>,
                /// What a unit of the activations of column c is worth, (cols).
                pub unit: Global<f32>,
                /// Output, (cols, n).
                pub y: Global<f32>,
                /// Rows.
                pub n: u32,
                /// Columns.
                pub k: u32,
                /// Columns of activations.
                pub cols: u32,
                /// First row that has `scale_b`.
                pub row_b: u32,
                /// First row that has `scale_c`.
                pub row_c: u32,
                /// What a ternary unit of the first rows is worth.
                pub scale_a: f32,
                /// What a ternary unit of rows `row_b ..` is worth.
                pub scale_b: f32,
                /// What a ternary unit of rows `row_c ..` is worth.
                pub scale_c: f32,
            }
        }
    )*};
}

bit_gemv! {
    bit_gemv_t2k1, BitGemvT2K1, 2, 1, 20, 1;
    bit_gemv_t4k1, BitGemvT4K1, 4, 1, 20, 1;
    bit_gemv_t2k2, BitGemvT2K2, 2, 2, 13, 2;
    bit_gemv_t4k2, BitGemvT4K2, 4, 2, 10, 2;
    bit_gemv_t5k2, BitGemvT5K2, 5, 2, 13, 2;
    bit_gemv_t2k3, BitGemvT2K3, 2, 3, 18, 1;
    bit_gemv_t2k5, BitGemvT2K5, 2, 5, 16, 1;
}

/// The variant and launch for a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Rows of tiles of a block.
    pub tile_rows: u32,
    /// Tiles along k that a warp holds at a time.
    pub tiles_per_warp: u32,
    /// Grid, block and shared memory.
    pub launch: Launch,
}

impl Plan {
    /// The variants, as (`tile_rows`, `tiles_per_warp`), in the order of the declarations above.
    pub const VARIANTS: [(u32, u32); 7] = [(2, 1), (4, 1), (2, 2), (4, 2), (5, 2), (2, 3), (2, 5)];

    /// Most warps of a block of a variant: what the registers suffice for, twice over for the variants whose kernels
    /// follow each other most closely.
    #[must_use]
    pub const fn max_warps(tile_rows: u32, tiles_per_warp: u32) -> u32 {
        match (tile_rows, tiles_per_warp) {
            (_, 1) => 20,
            (4, 2) => 10,
            (_, 2) => 13,
            (_, 3) => 18,
            _ => 16,
        }
    }

    /// The fastest variant for an (n, k) matrix and `cols` columns, measured on an H200 with cold caches.
    ///
    /// Fewer tiles a warp mean a shorter dependent part; more mean fewer warps, so that the next kernel's blocks find
    /// room beside this one's and start their loads.
    #[must_use]
    pub fn new(n: usize, k: usize, cols: u32) -> Self {
        let tiles_k = mma_tile::tiles_k(k) as u32;
        let tiles_per_warp = match tiles_k {
            0..=20 if n < 4096 => 1,
            0..=26 => 2,
            27..=54 => 3,
            _ => 5,
        };
        let tile_rows = match (tiles_per_warp, mma_tile::tiles_n(n)) {
            (1, 200..) => 4,
            (2, 400..) if tiles_k <= 20 => 4,
            (2, 1000..) => 5,
            _ => 2,
        };
        Self::with(n, k, cols, tile_rows, tiles_per_warp)
    }

    /// A launch of one variant, for measuring.
    #[must_use]
    pub fn with(n: usize, k: usize, cols: u32, tile_rows: u32, tiles_per_warp: u32) -> Self {
        let warps = (mma_tile::tiles_k(k) as u32)
            .div_ceil(tiles_per_warp)
            .min(Self::max_warps(tile_rows, tiles_per_warp));
        Self {
            tile_rows,
            tiles_per_warp,
            launch: Launch {
                grid: [(mma_tile::tiles_n(n) as u32).div_ceil(tile_rows), 1, 1],
                block: [warps * 32, 1, 1],
                shared_bytes: warps * cols * (tile_rows * mma_tile::ROWS as u32 + 1) * 4,
            },
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device {
    use crate::Global;
    use crate::intrinsics::*;

    /// Whether to ask early for what an output needs at the end. Without programmatic dependent launch there is no time to hide
    /// it in, and it costs registers.
    pub(crate) const EARLY: bool = cfg!(any(not(target_arch = "nvptx64"), sm_90));

    /// Rows of tiles that are on their way together, of the `t` of a block whose warps hold `kpw` tiles of each: as many as
    /// there are registers for.
    pub(crate) const fn ahead(t: usize, kpw: usize) -> usize {
        match (t * kpw > 8 && t > 2, EARLY) {
            (false, _) => t,
            (true, true) => 3,
            (true, false) => 2,
        }
    }

    /// Warps whose parts of a sum are loaded together.
    pub(crate) const WARPS_AT_A_TIME: u32 = 4;

    /// What a ternary unit of row `row` is worth in a matrix of up to three parts: the second begins at row `starts[0]`, the
    /// third at `starts[1]`.
    #[inline(always)]
    pub(crate) fn row_scale(row: u32, starts: [u32; 2], scales: [f32; 3]) -> f32 {
        if row >= starts[1] {
            scales[2]
        } else if row >= starts[0] {
            scales[1]
        } else {
            scales[0]
        }
    }

    /// Sums of one row of tiles over the `KPW` tiles of a warp: the four accumulators of the mma, scaled back.
    ///
    /// `x[i]` are the eight words of tile i's 32 columns that this lane feeds.
    #[inline(always)]
    pub(crate) unsafe fn tile_sums<const KPW: usize>(w: &[[u32; 4]; KPW], x: &[[u32; 8]; KPW]) -> [i32; 4] {
        let mut sums = [0; 4];
        // Plane by plane, so that one accumulator is alive at a time where registers are short.
        let mut p = 0;
        while p < 4 {
            let mask = 0x0303_0303 << (2 * p);
            let mut plane = [0i32; 4];
            let mut i = 0;
            while i < KPW {
                let a = [w[i][0] & mask, w[i][1] & mask, w[i][2] & mask, w[i][3] & mask];
                // SAFETY: the whole warp is here: every branch around this call is uniform.
                plane = unsafe { mma_m16n8k32_u8_s8(a, [x[i][2 * p], x[i][2 * p + 1]], plane) };
                i += 1;
            }
            let mut j = 0;
            while j < 4 {
                sums[j] += plane[j] >> (2 * p);
                j += 1;
            }
            p += 1;
        }
        sums
    }

    /// Gives the parameter structs of all variants one shape.
    pub(crate) trait Params: Copy {
        /// The fields, as the `T2K1` variant.
        fn get(self) -> super::BitGemvT2K1;
    }

    macro_rules! params {
        ($($Params:ident)*) => {$(
            impl Params for super::$Params {
                #[inline(always)]
                fn get(self) -> super::BitGemvT2K1 {
                    let super::$Params { w, x, unit, y, n, k, cols, row_b, row_c, scale_a, scale_b, scale_c } = self;
                    super::BitGemvT2K1 { w, x, unit, y, n, k, cols, row_b, row_c, scale_a, scale_b, scale_c }
                }
            }
        )*};
    }
    params! { BitGemvT2K1 BitGemvT4K1 BitGemvT2K2 BitGemvT4K2 BitGemvT5K2 BitGemvT2K3 BitGemvT2K5 }

    /// This warp's tiles of an (n, k) matrix from tile `chunk` along k of row `r` of tiles. Tiles past the end repeat the last.
    ///
    /// # Safety
    /// The launch is the plan's.
    #[inline(always)]
    pub(crate) unsafe fn weights<const KPW: usize>(
        tiles: Global<u32>,
        (n, k): (u32, u32),
        r: u32,
        chunk: u32,
    ) -> [[u32; 4]; KPW] {
        let (tiles_n, tiles_k) = (n.div_ceil(16), k.div_ceil(128));
        let warps = block_dim_x() / WARP_SIZE;
        let band = r.min(tiles_n - 1) * tiles_k;
        let mut w = [[0; 4]; KPW];
        let mut i = 0;
        while i < KPW {
            let tile = (chunk + i as u32 * warps + warp_id()).min(tiles_k - 1);
            // SAFETY: the tile is clamped to the matrix.
            w[i] = unsafe { tiles.load_stream_x4(((band + tile) * 128 + lane_id() * 4) as usize) };
            i += 1;
        }
        w
    }

    /// The activations that this lane feeds to the products with those tiles; adds them to `sum`.
    ///
    /// # Safety
    /// As for [`weights`], and the activations were written.
    #[inline(always)]
    unsafe fn activations<const KPW: usize>(
        p: &super::BitGemvT2K1,
        chunk: u32,
        sum: &mut i32,
    ) -> [[u32; 8]; KPW] {
        let (tiles_k, warps) = (p.k.div_ceil(128), block_dim_x() / WARP_SIZE);
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        // Lanes of unused columns repeat the last one; their results are not stored.
        let row = g.min(p.cols - 1) * tiles_k * 32;
        let mut x = [[0; 8]; KPW];
        let mut i = 0;
        while i < KPW {
            let tile = chunk + i as u32 * warps + warp_id();
            // A tile past the end is the last one again, times zero.
            if tile < tiles_k {
                let at = (row + tile * 32 + t * 8) as usize;
                // SAFETY: the tile is in the row.
                let (low, high) = unsafe { (p.x.load_l2_x4(at), p.x.load_l2_x4(at + 4)) };
                x[i] = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
            }
            let mut j = 0;
            while j < 8 {
                *sum = dp4a(x[i][j], 0x0101_0101, *sum);
                j += 1;
            }
            i += 1;
        }
        x
    }

    #[inline(always)]
    pub(super) unsafe fn run<const T: usize, const KPW: usize, const AHEAD: usize>(p: impl Params) {
        let p = p.get();
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        let (g, t) = (lane / 4, lane % 4);
        let tiles_k = p.k.div_ceil(128);
        let first = block_idx_x() * T as u32;
        let rows = T as u32 * 16;
        // (warp, column, row of the block), then (warp, column).
        let parts = Shared::<i32>::at(0);
        let sums = Shared::<i32>::at(warps * p.cols * rows * 4);
        let mut sum = 0;
        // d[j] of row r of tiles: row g or g + 8, column 2 t or 2 t + 1.
        let part = |r: u32, j: u32| {
            let (row, col) = (r * 16 + g + j / 2 * 8, 2 * t + j % 2);
            (col < p.cols).then_some((warp * p.cols + col) * rows + row)
        };
        // SAFETY: tile indices are clamped to the matrix, shared indices are below the plan's size; every branch around a
        // warp or block operation is uniform.
        unsafe {
            let mut w = [[[0; 4]; KPW]; AHEAD];
            let mut r = 0;
            while r < AHEAD {
                w[r] = weights(p.w, (p.n, p.k), first + r as u32, 0);
                r += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            let mut unit = 0.0;
            if EARLY {
                unit = p.unit.load_l2((thread_idx_x() / rows).min(p.cols - 1) as usize)[0];
            }
            let x = activations::<KPW>(&p, 0, &mut sum);
            let mut r = 0;
            while r < T {
                let d = tile_sums(&w[r % AHEAD], &x);
                if r + AHEAD < T {
                    w[r % AHEAD] = weights(p.w, (p.n, p.k), first + (r + AHEAD) as u32, 0);
                }
                let mut j = 0;
                while j < 4 {
                    if let Some(at) = part(r as u32, j as u32) {
                        parts.store(at, d[j]);
                    }
                    j += 1;
                }
                r += 1;
            }
            // What a wider matrix has beyond the first tiles of every warp, one row of tiles at a time: in a loop that the
            // compiler cannot unroll, whose registers the loads above would lack.
            let own = (p.n.div_ceil(16) - first).min(T as u32);
            let mut chunk = warps * KPW as u32;
            while chunk < tiles_k {
                let x = activations::<KPW>(&p, chunk, &mut sum);
                let mut r = 0;
                while r < own {
                    let d = tile_sums(&weights(p.w, (p.n, p.k), first + r, chunk), &x);
                    let mut j = 0;
                    while j < 4 {
                        if let Some(at) = part(r, j as u32) {
                            parts.store(at, parts.load(at) + d[j]);
                        }
                        j += 1;
                    }
                    r += 1;
                }
                chunk += warps * KPW as u32;
            }
            sum += warp_shuffle_xor(FULL_MASK, sum, 1);
            sum += warp_shuffle_xor(FULL_MASK, sum, 2);
            if t == 0 && g < p.cols {
                sums.store(warp * p.cols + g, sum);
            }
            // Orders every warp's parts and sums before the additions below.
            sync_threads();
            let mut at = thread_idx_x_again();
            while at < p.cols * rows {
                let (col, row) = (at / rows, first * 16 + at % rows);
                let mut total = 0;
                let mut base = 0;
                while base < warps {
                    // Several at a time, so that the loads do not wait for each other.
                    let mut i = 0;
                    while i < WARPS_AT_A_TIME {
                        let (from, keep) = if base + i < warps { (base + i, -1) } else { (0, 0) };
                        total +=
                            (parts.load(from * p.cols * rows + at) - sums.load(from * p.cols + col)) & keep;
                        i += 1;
                    }
                    base += WARPS_AT_A_TIME;
                }
                if row < p.n {
                    let scale = row_scale(row, [p.row_b, p.row_c], [p.scale_a, p.scale_b, p.scale_c]);
                    if !EARLY || at >= block_dim_x() {
                        unit = p.unit.load_l2(col as usize)[0];
                    }
                    p.y.store((col * p.n + row) as usize, total as f32 * (scale * unit));
                }
                at += block_dim_x();
            }
        }
    }
}
