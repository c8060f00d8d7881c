//! `Y = X W^T` for ternary `W` and many rows of 8-bit activations: prompts and batches, straight from the packed weights.
//!
//! The same tiles as [`crate::bit_gemv`], unpacked by shift and mask into A fragments of int8 tensor cores; each unpacked
//! fragment meets several columns of activations. Two shapes of block:
//!
//! - *wide*: 128 rows by 64 columns, both operands brought to shared memory by `cp.async` in a ring of stages;
//! - *narrow*: 32 rows by 8 or 32 columns, the warps split k and load weights straight into registers, for batches too
//!   small to fill the machine with wide blocks.
//!
//! Products are exact, so both give the same bits as [`crate::bit_gemv`] and [`crate::decode_linear`].

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
use crate::decode_linear::device::{ADD, GATED, STORE};
use crate::{Global, Launch};
use bitnet_layout::mma_tile;

/// Most columns of a matrix: what sums of codes 0, 1 and 2 times 64 and activations up to 127 have room for in 32 bits.
pub const MAX_K: usize = (1 << 31) / (2 * 64 * 128);

/// Rows of a wide block.
const WIDE_ROWS: u32 = 128;
/// Columns of a wide block; 128 would need more registers than two blocks a multiprocessor have.
const WIDE_COLS: u32 = 64;
/// Stages of the wide kernel's ring.
const STAGES: u32 = 3;
/// Tiles along k of a stage: the block meets once for all of them.
const STAGE_TILES: u32 = 2;
/// Bytes of a tile along k in a stage: 8 tiles of weights, then 128 codes of each column.
const TILE_BYTES: u32 = 8 * 512 + WIDE_COLS * 128;
/// Rows of a narrow block.
const NARROW_ROWS: u32 = 32;
/// Most warps of a narrow block.
const NARROW_WARPS: u32 = 16;
/// Tiles along k that a warp of a narrow block asks for before it waits for the activations.
const NARROW_TILES: usize = 3;

macro_rules! bit_gemm {
    ($($name:ident, $Params:ident, $body:ident<$($arg:tt),*>, $block:expr, $min_blocks:expr, $what:literal, $shape:literal;)*) => {
        $(kernel! {
            /// `z[c][n] = (sum over k of t[n][k] x[c][k]) * (scale(n) * unit[c])`, then
            #[doc = $what]
            ///
            /// - Shapes: `w` tiles of (n, k); `x` (cols, k padded to 128) i8, padded with zeros; `y` as said, row per column c.
            /// - Launch: [`Plan`];
            #[doc = $shape]
            /// - Layout: [`bitnet_layout::mma_tile`]. Moves: weights once for every block along the columns, `x` once for every
            ///   block along the rows, from L2.
            /// - Bound: the rate of the tensor cores, and of unpacking, for wide blocks; latency and L2 for narrow ones.
            ///
            /// # Safety
            /// Lengths as above; `w` and `x` 16-byte aligned; sizes at least 1; the launch is the plan's.
            $name, block = [$block, 1, 1], min_blocks = $min_blocks, body = device::$body::<$($arg),*>;
            pub struct $Params {
                /// Weights in tiles; in pairs of rows for the gated kernels.
                pub w: Global<u32>,
                /// Codes, four a word in the order of [`mma_tile::activation_word`], (cols, k padded / 4).
                pub x: Global<u32>,
                /// What a code of column c is worth, (cols).
                pub unit: Global<f32>,
                /// Sum of the codes of column c, (cols).
                pub sum: Global<i32>,
                /// Output, (cols, n); gated, (cols, n / 2).
                pub y: Global<f32>,
                /// Rows.
                pub n: u32,
                /// Columns of the matrix.
                pub k: u32,
                /// Rows of activations.
                pub cols: u32,
                /// [`crate::decode_linear::RELU2`] or [`crate::decode_linear::SILU`], for the gated kernels.
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
            use super::WideStore;
            use super::device::Params;
            $(
                impl Params for super::$Params {
                    #[inline(always)]
                    #[rustfmt::skip]
                    fn get(self) -> WideStore {
                        let super::$Params { w, x, unit, sum, y, n, k, cols, activation, row_b, row_c, scale_a, scale_b,
                            scale_c } = self;
                        WideStore { w, x, unit, sum, y, n, k, cols, activation, row_b, row_c, scale_a, scale_b, scale_c }
                    }
                }
            )*
        }
    };
}

bit_gemm! {
    wide_store, WideStore, wide<STORE>, 256, 2, "`y = z`.", "128 rows by 64 columns a block.";
    wide_add, WideAdd, wide<ADD>, 256, 2, "`y += z`.", "128 rows by 64 columns a block.";
    wide_gated, WideGated, wide<GATED>, 256, 2, "`y[i] = activation(z[i]) z[n / 2 + i]`.", "128 rows by 64 columns a block.";
    narrow_store_8, NarrowStore8, narrow<STORE, 1>, NARROW_WARPS * 32, 1, "`y = z`.", "32 rows by 8 columns a block.";
    narrow_add_8, NarrowAdd8, narrow<ADD, 1>, NARROW_WARPS * 32, 1, "`y += z`.", "32 rows by 8 columns a block.";
    narrow_gated_8, NarrowGated8, narrow<GATED, 1>, NARROW_WARPS * 32, 1, "`y[i] = activation(z[i]) z[n / 2 + i]`.",
        "32 rows by 8 columns a block.";
    narrow_store_32, NarrowStore32, narrow<STORE, 4>, NARROW_WARPS * 32, 1, "`y = z`.", "32 rows by 32 columns a block.";
    narrow_add_32, NarrowAdd32, narrow<ADD, 4>, NARROW_WARPS * 32, 1, "`y += z`.", "32 rows by 32 columns a block.";
    narrow_gated_32, NarrowGated32, narrow<GATED, 4>, NARROW_WARPS * 32, 1, "`y[i] = activation(z[i]) z[n / 2 + i]`.",
        "32 rows by 32 columns a block.";
}

/// The kernel for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// [`WideStore`] and its siblings.
    Wide,
    /// [`NarrowStore32`] and its siblings.
    Narrow32,
    /// [`NarrowStore8`] and its siblings.
    Narrow8,
}

/// The kernel and launch for a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which kernel.
    pub shape: Shape,
    /// Grid, block and shared memory.
    pub launch: Launch,
}

impl Plan {
    /// For an (n, k) matrix and `cols` rows of activations.
    #[must_use]
    pub fn new(n: usize, k: usize, cols: usize) -> Self {
        let shape = match cols {
            0..=8 => Shape::Narrow8,
            9..=64 => Shape::Narrow32,
            _ => Shape::Wide,
        };
        Self::with(n, k, cols, shape)
    }

    /// A launch of one kernel, for measuring.
    #[must_use]
    pub fn with(n: usize, k: usize, cols: usize, shape: Shape) -> Self {
        let rows = (mma_tile::tiles_n(n) * mma_tile::ROWS) as u32;
        let cols = cols as u32;
        let narrow = |width: u32| {
            let warps = (mma_tile::tiles_k(k).div_ceil(NARROW_TILES) as u32).min(NARROW_WARPS);
            Launch {
                grid: [rows.div_ceil(NARROW_ROWS), cols.div_ceil(width), 1],
                block: [warps * 32, 1, 1],
                shared_bytes: (warps * NARROW_ROWS + 2) * width * 4,
            }
        };
        let launch = match shape {
            Shape::Wide => Launch {
                grid: [rows.div_ceil(WIDE_ROWS), cols.div_ceil(WIDE_COLS), 1],
                block: [256, 1, 1],
                shared_bytes: STAGES * STAGE_TILES * TILE_BYTES,
            },
            Shape::Narrow32 => narrow(32),
            Shape::Narrow8 => narrow(8),
        };
        Self { shape, launch }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{ADD, GATED};
    use super::{NARROW_ROWS, NARROW_TILES, STAGE_TILES, STAGES, TILE_BYTES, WIDE_COLS, WideStore};
    use crate::bit_gemv::device::row_scale;
    use crate::decode_linear::device::gated;
    use crate::intrinsics::*;

    /// Gives the parameter structs of all kernels here one shape.
    pub(super) trait Params: Copy {
        /// The fields, as those of one of them.
        fn get(self) -> WideStore;
    }

    /// Plane `p` of a lane's four words: an A fragment of codes 0, 1 and 2 times `2^`[`CODE_BITS`].
    #[inline(always)]
    fn unpack(w: [u32; 4], p: u32) -> [u32; 4] {
        w.map(|w| (w << (6 - 2 * p)) & 0xc0c0_c0c0)
    }

    /// Planes are shifted to the top of their bytes: multipliers can shift left, which leaves the masks alone to the units for
    /// logic. Sums stay below 2^31 for up to [`super::MAX_K`] columns.
    const CODE_BITS: u32 = 6;

    // What the kernel before this one wrote is read past L1: with programmatic dependent launch a block can start, and
    // its L1 be filled, before that kernel has finished.

    /// What a code of column `col` is worth, and the sum of its codes.
    ///
    /// # Safety
    /// `col` is below `cols`, and the activations were written.
    #[inline(always)]
    unsafe fn column(p: &WideStore, col: u32) -> (f32, i32) {
        // SAFETY: the caller's promise.
        unsafe { (p.unit.load_l2(col as usize)[0], p.sum.load_l2(col as usize)[0]) }
    }

    /// Scales the products of one row (gated: of a pair of rows) with one column, which has that unit and sum, and writes the
    /// output.
    ///
    /// # Safety
    /// `col` is below `cols`; a `tile_row` past the matrix writes nothing.
    #[inline(always)]
    unsafe fn finish<const EPILOGUE: u32>(
        p: &WideStore,
        tile_row: u32,
        col: u32,
        (unit, sum): (f32, i32),
        upper: i32,
        lower: i32,
    ) {
        // SAFETY: rows are compared with n, the column is the caller's.
        unsafe {
            if EPILOGUE == GATED {
                let out = tile_row / 16 * 8 + tile_row % 8;
                if out < p.n / 2 {
                    let gate = (upper - sum) as f32 * (p.scale_a * unit);
                    let up = (lower - sum) as f32 * (p.scale_b * unit);
                    p.y.store((col * (p.n / 2) + out) as usize, gated(gate, up, p.activation));
                }
                return;
            }
            let mut i = 0;
            while i < 2 {
                let row = tile_row + 8 * i;
                if row < p.n {
                    let scale = row_scale(row, [p.row_b, p.row_c], [p.scale_a, p.scale_b, p.scale_c]);
                    let z = ((if i == 0 { upper } else { lower }) - sum) as f32 * (scale * unit);
                    let at = (col * p.n + row) as usize;
                    let before = if EPILOGUE == ADD { p.y.load_l2(at)[0] } else { 0.0 };
                    p.y.store(at, before + z);
                }
                i += 1;
            }
        }
    }

    /// Byte offset, in a stage's activations, of 16-byte chunk `chunk` (0..8) of column `col`: neighbors in a column of
    /// chunks fall into different banks.
    #[inline(always)]
    fn swizzled(col: u32, chunk: u32) -> u32 {
        col * 128 + (chunk ^ (col & 7)) * 16
    }

    /// Copies the tiles of stage `stage` along k of this block's weights and activations into its place in the ring.
    ///
    /// # Safety
    /// All 256 threads call this; the place is free.
    #[inline(always)]
    unsafe fn fetch(p: &WideStore, stage: u32, tiles_n: u32, tiles_k: u32) {
        let me = thread_idx_x();
        let mut i = 0;
        while i < STAGE_TILES {
            let tile = stage * STAGE_TILES + i;
            let place = (stage % STAGES * STAGE_TILES + i) * TILE_BYTES;
            if tile < tiles_k {
                // SAFETY: tiles and columns are clamped to what exists; the offsets are below the stage's size.
                unsafe {
                    // 8 tiles of 32 chunks of 16 bytes: one a thread.
                    let band = (block_idx_x() * 8 + me / 32).min(tiles_n - 1);
                    async_copy_16(
                        Shared::<u32>::at(place + me * 16),
                        p.w.offset(((band * tiles_k + tile) * 128 + me % 32 * 4) as usize),
                    );
                    // 64 columns of 8 chunks: two a thread.
                    let mut j = 0;
                    while j < 2 {
                        let (col, chunk) = (j * 32 + me / 8, me % 8);
                        let source = (block_idx_y() * WIDE_COLS + col).min(p.cols - 1) * tiles_k + tile;
                        async_copy_16(
                            Shared::<u32>::at(place + 8 * 512 + swizzled(col, chunk)),
                            p.x.offset((source * 32 + chunk * 4) as usize),
                        );
                        j += 1;
                    }
                }
            }
            i += 1;
        }
    }

    /// Adds the products of a warp's two rows of tiles from `band` with four groups of 8 columns from `group`, of the tile that
    /// stands at byte `place`.
    ///
    /// # Safety
    /// The whole warp calls this, after the copies.
    #[inline(always)]
    unsafe fn multiply_tile(acc: &mut [[[i32; 4]; 4]; 2], place: u32, band: u32, group: u32) {
        let (lane, g, t) = (lane_id(), lane_id() / 4, lane_id() % 4);
        // SAFETY: the caller's promise; offsets are below the tile's size.
        unsafe {
            let mut a = [[[0; 4]; 4]; 2];
            let mut m = 0;
            while m < 2 {
                let w = Shared::<u32>::at(place + ((band + m as u32) * 32 + lane) * 16).load_x4(0);
                let mut plane = 0;
                while plane < 4 {
                    a[m][plane] = unpack(w, plane as u32);
                    plane += 1;
                }
                m += 1;
            }
            let mut c = 0;
            while c < 4 {
                let col = (group + c as u32) * 8 + g;
                let x = place + 8 * 512;
                let low = Shared::<u32>::at(x + swizzled(col, 2 * t)).load_x4(0);
                let high = Shared::<u32>::at(x + swizzled(col, 2 * t + 1)).load_x4(0);
                let mut plane = 0;
                while plane < 4 {
                    let b = if plane < 2 {
                        [low[2 * plane], low[2 * plane + 1]]
                    } else {
                        [high[2 * plane - 4], high[2 * plane - 3]]
                    };
                    acc[0][c] = mma_m16n8k32_u8_s8(a[0][plane], b, acc[0][c]);
                    acc[1][c] = mma_m16n8k32_u8_s8(a[1][plane], b, acc[1][c]);
                    plane += 1;
                }
                c += 1;
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn wide<const EPILOGUE: u32>(p: impl Params) {
        let p = p.get();
        let warp = warp_id();
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        // Each warp owns 2 of the 8 rows of tiles and 4 of the 8 groups of 8 columns.
        let (band, group) = (warp % 4 * 2, warp / 4 * 4);
        let (tiles_n, tiles_k) = (p.n.div_ceil(16), p.k.div_ceil(128));
        let mut acc = [[[0; 4]; 4]; 2];
        // SAFETY: see `fetch`; every branch around a warp or block operation is uniform.
        unsafe {
            grid_dependency_launch();
            grid_dependency_wait();
            let mut stage = 0;
            while stage < STAGES - 1 {
                fetch(&p, stage, tiles_n, tiles_k);
                async_copy_commit();
                stage += 1;
            }
            let mut stage = 0;
            while stage * STAGE_TILES < tiles_k {
                async_copy_wait::<{ STAGES as usize - 2 }>();
                // Orders this stage's copies of all threads before the loads below, and the loads of the stage that the next
                // fetch overwrites before it.
                sync_threads();
                fetch(&p, stage + STAGES - 1, tiles_n, tiles_k);
                async_copy_commit();
                let mut i = 0;
                while i < STAGE_TILES {
                    if stage * STAGE_TILES + i < tiles_k {
                        let place = (stage % STAGES * STAGE_TILES + i) * TILE_BYTES;
                        multiply_tile(&mut acc, place, band, group);
                    }
                    i += 1;
                }
                stage += 1;
            }
            let mut m = 0;
            while m < 2 {
                let row = (block_idx_x() * 8 + band + m as u32) * 16 + g;
                let mut c = 0;
                while c < 4 {
                    let col = block_idx_y() * WIDE_COLS + (group + c as u32) * 8 + 2 * t;
                    let d = acc[m][c];
                    if col < p.cols {
                        finish::<EPILOGUE>(
                            &p,
                            row,
                            col,
                            column(&p, col),
                            d[0] >> CODE_BITS,
                            d[2] >> CODE_BITS,
                        );
                    }
                    if col + 1 < p.cols {
                        finish::<EPILOGUE>(
                            &p,
                            row,
                            col + 1,
                            column(&p, col + 1),
                            d[1] >> CODE_BITS,
                            d[3] >> CODE_BITS,
                        );
                    }
                    c += 1;
                }
                m += 1;
            }
        }
    }

    /// This lane's words of tile `tile` along k of two rows of tiles from `first`; zeros past the end of k.
    ///
    /// # Safety
    /// The launch is the plan's.
    #[inline(always)]
    unsafe fn narrow_weights(p: &WideStore, first: u32, tile: u32) -> [[u32; 4]; 2] {
        let (tiles_n, tiles_k) = (p.n.div_ceil(16), p.k.div_ceil(128));
        let mut w = [[0; 4]; 2];
        if tile < tiles_k {
            let mut m = 0;
            while m < 2 {
                let band = (first + m as u32).min(tiles_n - 1);
                // SAFETY: the tile is one of the matrix.
                w[m] = unsafe {
                    p.w.load_stream_x4(((band * tiles_k + tile) * 128 + lane_id() * 4) as usize)
                };
                m += 1;
            }
        }
        w
    }

    /// Adds the products of those words with the columns from `first_col` on; a tile past the end adds nothing.
    ///
    /// # Safety
    /// The whole warp calls this, after the activations were written.
    #[inline(always)]
    unsafe fn multiply<const GROUPS: usize>(
        p: &WideStore,
        acc: &mut [[[i32; 4]; GROUPS]; 2],
        w: [[u32; 4]; 2],
        first_col: u32,
        tile: u32,
    ) {
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        let tiles_k = p.k.div_ceil(128);
        let mut x = [[0; 8]; GROUPS];
        let mut c = 0;
        while c < GROUPS {
            let col = (first_col + c as u32 * 8 + g).min(p.cols - 1);
            let at = ((col * tiles_k + tile.min(tiles_k - 1)) * 32 + t * 8) as usize;
            // SAFETY: tile and column are clamped to what exists.
            let (low, high) = unsafe { (p.x.load_l2_x4(at), p.x.load_l2_x4(at + 4)) };
            x[c] = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
            c += 1;
        }
        let mut plane = 0;
        while plane < 4 {
            let a = [unpack(w[0], plane as u32), unpack(w[1], plane as u32)];
            let mut c = 0;
            while c < GROUPS {
                let b = [x[c][2 * plane], x[c][2 * plane + 1]];
                // SAFETY: the caller's promise.
                unsafe {
                    acc[0][c] = mma_m16n8k32_u8_s8(a[0], b, acc[0][c]);
                    acc[1][c] = mma_m16n8k32_u8_s8(a[1], b, acc[1][c]);
                }
                c += 1;
            }
            plane += 1;
        }
    }

    #[inline(always)]
    pub(super) unsafe fn narrow<const EPILOGUE: u32, const GROUPS: usize>(p: impl Params) {
        let p = p.get();
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        let (g, t) = (lane / 4, lane % 4);
        let tiles_k = p.k.div_ceil(128);
        let width = GROUPS as u32 * 8;
        let (first, first_col) = (block_idx_x() * 2, block_idx_y() * width);
        let mut acc = [[[0; 4]; GROUPS]; 2];
        // (warp, column, row of the block), then (column) twice.
        let parts = Shared::<i32>::at(0);
        let units = Shared::<f32>::at(warps * width * NARROW_ROWS * 4);
        let sums = Shared::<i32>::at((warps * NARROW_ROWS + 1) * width * 4);
        // SAFETY: tiles and columns are clamped to what exists; every branch around a warp or block operation is uniform.
        unsafe {
            // Weights do not depend on the kernel before this one.
            let mut w = [[[0; 4]; 2]; NARROW_TILES];
            let mut i = 0;
            while i < NARROW_TILES {
                w[i] = narrow_weights(&p, first, warp + i as u32 * warps);
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            // Asked for with the first codes, so that nothing is when the sums are there.
            let me = thread_idx_x();
            let mut of_column = (0.0, 0);
            if me < width {
                of_column = column(&p, (first_col + me).min(p.cols - 1));
            }
            let mut i = 0;
            while i < NARROW_TILES {
                multiply(&p, &mut acc, w[i], first_col, warp + i as u32 * warps);
                i += 1;
            }
            // What a wider matrix has beyond those, in a loop that takes no registers from the loads above.
            let mut tile = warp + NARROW_TILES as u32 * warps;
            while tile < tiles_k {
                multiply(&p, &mut acc, narrow_weights(&p, first, tile), first_col, tile);
                tile += warps;
            }
            if me < width {
                units.store(me, of_column.0);
                sums.store(me, of_column.1);
            }
            let mut m = 0;
            while m < 2 {
                let mut c = 0;
                while c < GROUPS {
                    let mut j = 0;
                    while j < 4 {
                        let col = c as u32 * 8 + 2 * t + j as u32 % 2;
                        let row = m as u32 * 16 + g + j as u32 / 2 * 8;
                        parts.store((warp * width + col) * NARROW_ROWS + row, acc[m][c][j]);
                        j += 1;
                    }
                    c += 1;
                }
                m += 1;
            }
            // Orders every warp's parts, the units and the sums before their loads below.
            sync_threads();
            // A pair of rows 8 apart of one column at a time.
            let mut at = thread_idx_x();
            while at < width * NARROW_ROWS / 2 {
                let (col, pair) = (at / (NARROW_ROWS / 2), at % (NARROW_ROWS / 2));
                let row = pair / 8 * 16 + pair % 8;
                let (mut upper, mut lower) = (0, 0);
                let mut i = 0;
                while i < warps {
                    let part = (i * width + col) * NARROW_ROWS + row;
                    upper += parts.load(part);
                    lower += parts.load(part + 8);
                    i += 1;
                }
                if first_col + col < p.cols {
                    let of_column = (units.load(col), sums.load(col));
                    finish::<EPILOGUE>(
                        &p,
                        first * 16 + row,
                        first_col + col,
                        of_column,
                        upper >> CODE_BITS,
                        lower >> CODE_BITS,
                    );
                }
                at += block_dim_x();
            }
        }
    }
}
