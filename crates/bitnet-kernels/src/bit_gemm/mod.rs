//! `Y = X W^T` for ternary `W` and many rows of 8-bit activations: prompts and batches, straight from the packed weights.
//!
//! The tiles of [`bitnet_layout::mma_tile`], unpacked by shift and mask into A fragments of int8 tensor cores; each unpacked
//! fragment meets several columns of activations. Shapes of block:
//!
//! - *wide*: 128 rows by 64 or 128 columns, both operands brought to shared memory by `cp.async` in a ring of stages;
//! - *hopper*: 64 or 128 rows by 128 or 160 columns, by warpgroups, with weights in registers and codes in shared memory, for more columns
//!   than 64 on GPUs of capability 9.0;
//! - *slim*: 64 or 128 rows by 32 or 64 columns, by warpgroups, with all codes of a part of k in shared memory at once;
//! - *flat*: 32 or 64 rows by 8, 16 or 32 columns, the warps split k and load weights straight into registers, and the columns' codes
//!   come to shared memory once for all rows, all at once, in two blocks a multiprocessor, or in one for more columns of the matrix;
//! - *mid*: the same for any number of columns of the matrix, whose codes come tile by tile;
//! - *narrow*: 32 rows by 8 columns, the warps split k and load weights and codes straight into registers, for batches too small to
//!   fill the machine otherwise.
//!
//! Of the wide ones the larger reads shared memory and copies less for every product, and is taken where that outweighs that
//! fewer, larger blocks share out less evenly.
//!
//! Products are exact, so all give the same bits as [`crate::decode_linear`].

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod flat;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod hopper;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod mid;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod narrow;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod slim;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod wide;

use crate::decode_linear::Epilogue;
use crate::{Global, Launch};
use bitnet_layout::mma_tile::{self, CodeOrder};

/// Most columns of a matrix: what sums of codes 0, 1 and 2 times 64 and activations up to 127 have room for in 32 bits.
pub const MAX_K: usize = (1 << 31) / (2 * 64 * 128);

/// Rows of a wide block.
const WIDE_ROWS: u32 = 128;
/// Warps of a wide block.
const WIDE_WARPS: u32 = 8;
/// The wide block of 64 columns.
const WIDE_64: Wide = Wide {
    bands: 2,
    tiles: 2,
    ahead: 1,
};
/// The wide block of 128 columns. Its ring of 80 KB leaves room for two blocks a multiprocessor on data-center GPUs, and for one
/// within the 99 KB of others.
const WIDE_128: Wide = Wide {
    bands: 4,
    tiles: 1,
    ahead: 2,
};
/// Wide blocks that run at once on the GPU that [`Shape::new`] has in mind: two on each of 132 multiprocessors.
const WIDE_SLOTS: u32 = 264;
/// Products that a wide block of 128 columns finishes in the time in which one of 64 columns finishes 100, measured on an H200.
const WIDE_128_RATE: u32 = 104;
/// Hundredths of a turn's time that a turn takes in which no more than half of the slots have a block: a block runs faster alone on
/// its multiprocessor.
const WIDE_HALF_TURN: u64 = 60;

/// Hundredths of turns that so many blocks take in slots of which two are a multiprocessor's; `half` of one that half fills them.
fn turns(blocks: u32, slots: u32, half: u64) -> u64 {
    let last = match blocks % slots {
        0 => 0,
        left if left <= slots / 2 => half,
        _ => 100,
    };
    u64::from(blocks / slots) * 100 + last
}

/// The blocks of 64 rows, with two and four parts of k, and those of 128 rows by 128 and by 160 columns: two blocks share a
/// multiprocessor, but for four parts, which fill it.
const HOPPER_64_X2: Hopper = Hopper {
    warpgroups: 1,
    split: 2,
    stages: 6,
    columns: 128,
};
const HOPPER_64_X4: Hopper = Hopper {
    warpgroups: 1,
    split: 4,
    stages: 12,
    columns: 128,
};
const HOPPER_128: Hopper = Hopper {
    warpgroups: 2,
    split: 1,
    stages: 6,
    columns: 128,
};
const HOPPER_160: Hopper = Hopper {
    warpgroups: 2,
    split: 1,
    stages: 5,
    columns: 160,
};
/// Multiprocessors of the GPU that [`Shape::new`] has in mind for products by warpgroups.
const HOPPER_MULTIPROCESSORS: u32 = 132;
/// Columns whose products take as long as what a block of 128 rows does beside them, by the times of `down` and `out` of 2,048 tokens on
/// an H100.
const HOPPER_BESIDE: u32 = 32;
/// As [`WIDE_HALF_TURN`], by those of q, k and v in both widths.
const HOPPER_HALF_TURN: u64 = 80;

/// What the sizes of blocks of warpgroups differ in.
struct Hopper {
    /// Warpgroups along the rows, 64 each.
    warpgroups: u32,
    /// Parts of k, with as many warpgroups each.
    split: u32,
    /// Tiles along k whose codes the block holds.
    stages: u32,
    /// Columns, a multiple of 32.
    columns: u32,
}

/// Words of a column's sums of `warpgroups` times 64 rows in shared memory: lanes write sums that lie in different banks.
const fn hopper_stride(warpgroups: u32) -> u32 {
    warpgroups * 64 + 4
}

/// Bytes of the ring of codes of so many columns, and then of the sums in their place.
const fn hopper_bytes(warpgroups: u32, stages: u32, columns: u32) -> u32 {
    let (codes, sums) = (stages * columns * 128, columns * hopper_stride(warpgroups) * 4);
    if codes > sums { codes } else { sums }
}

impl Hopper {
    const fn warps(&self) -> u32 {
        4 * self.warpgroups * self.split
    }

    /// Blocks along the rows of a matrix of `rows` rows, and along `cols` columns.
    fn grid(&self, rows: u32, cols: u32) -> [u32; 2] {
        [rows.div_ceil(64 * self.warpgroups), cols.div_ceil(self.columns)]
    }

    fn launch(&self, rows: u32, cols: u32) -> Launch {
        let [x, y] = self.grid(rows, cols);
        let ring = hopper_bytes(self.warpgroups, self.stages, self.columns);
        Launch {
            grid: [x, y, 1],
            block: [self.warps() * 32, 1, 1],
            // Two barriers a stage; and for each column what a code is worth, and the sum of the codes.
            shared_bytes: ring + self.stages * 16 + self.columns * 8,
        }
    }

    /// About how long a product takes in blocks of which two share a multiprocessor: hundredths of turns, times the columns of a
    /// block and what it spends beside its products.
    fn time(&self, rows: u32, cols: u32) -> u64 {
        let [x, y] = self.grid(rows, cols);
        turns(x * y, 2 * HOPPER_MULTIPROCESSORS, HOPPER_HALF_TURN) * u64::from(self.columns + HOPPER_BESIDE)
    }
}

/// Most blocks of a cluster that divide k.
const SLIM_CLUSTER: u32 = 8;

/// What the sizes of slim blocks differ in.
struct Slim {
    /// Warpgroups along the rows, 64 each: more of gate and up, of which there are more rows.
    warpgroups: u32,
    /// Parts of k, with as many warpgroups each.
    split: u32,
    columns: u32,
    /// Tiles along k whose weights a warp has asked for before it uses them: all of a part's in the 2B model.
    #[cfg_attr(
        not(any(target_arch = "nvptx64", feature = "emulator")),
        expect(dead_code, reason = "the host launches without it")
    )]
    ahead: usize,
}

impl Slim {
    const fn new(epilogue: Epilogue, shape: Shape) -> Self {
        let is_gated = matches!(epilogue, Epilogue::Gated);
        let warpgroups = if is_gated { 2 } else { 1 };
        Self {
            warpgroups,
            split: 4 / warpgroups,
            columns: match shape {
                Shape::Slim32 => 32,
                _ => 64,
            },
            ahead: match (shape, epilogue) {
                (_, Epilogue::Gated) => 10,
                (Shape::Slim32, Epilogue::Add) => 7,
                _ => 5,
            },
        }
    }

    const fn warps(&self) -> u32 {
        4 * self.warpgroups * self.split
    }
}

/// Blocks of the clusters that divide k of a product in slim blocks: as few as have room for all codes.
const fn slim_cluster(columns: u32, k: usize) -> u32 {
    (mma_tile::tiles_k(k) as u32).div_ceil(if columns == 64 { 24 } else { 32 })
}

/// Where things are in the shared memory of a slim block: parts of k, with codes and then with sums in their place, what other blocks of
/// the cluster send, what belongs to the columns, and barriers.
#[cfg_attr(
    not(any(target_arch = "nvptx64", feature = "emulator")),
    expect(dead_code, reason = "the host needs the end alone")
)]
struct SlimPlan {
    /// Tiles of a part of k.
    tiles: u32,
    /// Bytes of a part.
    part_bytes: u32,
    /// Words of a column's sums: lanes write sums that lie in different banks.
    stride: u32,
    /// Columns that the block's threads finish at once, and how many times a block of the cluster does so.
    at_once: u32,
    turns: u32,
    received: u32,
    of_columns: u32,
    barriers: u32,
    end: u32,
}

impl SlimPlan {
    #[inline(always)]
    const fn new(warpgroups: u32, split: u32, columns: u32, tiles_k: u32, blocks: u32) -> Self {
        // Device code would end a kernel where it divides by zero.
        let blocks = if blocks == 0 { 1 } else { blocks };
        let tiles = tiles_k.div_ceil(blocks).div_ceil(split);
        let at_once = 4 * split;
        let turns = (columns / at_once).div_ceil(blocks);
        let stride = hopper_stride(warpgroups);
        let (codes, sums) = (tiles * columns * 128, columns * stride * 4);
        let part_bytes = (if codes > sums { codes } else { sums }).next_multiple_of(1024);
        let received = split * part_bytes;
        let of_columns = received + (blocks - 1) * turns * at_once * warpgroups * 32 * 8;
        let barriers = of_columns + columns * 8;
        Self {
            tiles,
            part_bytes,
            stride,
            at_once,
            turns,
            received,
            of_columns,
            barriers,
            end: barriers + (split * tiles + 1) * 8,
        }
    }
}

/// Most warps of a narrow block, and of one of gate and up, of which two share a multiprocessor.
const NARROW_WARPS: u32 = 18;
const NARROW_GATED_WARPS: u32 = 10;
/// Rows of tiles of a narrow block, and of one of gate and up, of which there are more rows.
const NARROW_BANDS: usize = 2;
const NARROW_GATED_BANDS: usize = 4;
/// Tiles along k that a warp of a narrow block asks for before it waits for the activations.
const NARROW_TILES: usize = 3;
const NARROW_GATED_TILES: usize = 2;
/// Columns of a narrow block.
const NARROW_COLUMNS: u32 = 8;

/// Words of a column's sums of so many rows of tiles in shared memory: columns that lanes write together lie in different banks.
const fn narrow_stride(bands: u32) -> u32 {
    16 * bands + 4
}

/// Most warps of a flat block.
const FLAT_WARPS: u32 = 10;
/// Most tiles along k that a flat block takes: what its warps have registers for where two blocks share a multiprocessor.
const FLAT_TILES_K: usize = 20;
/// The flat block, and that of gate and up, of which there are more rows.
const FLAT: Flat = Flat { pairs: 1, tiles: 2 };
const FLAT_GATED: Flat = Flat { pairs: 2, tiles: 4 };
/// The long flat block, one a multiprocessor, and its most warps.
const FLAT_LONG: Flat = Flat { pairs: 1, tiles: 4 };
const FLAT_LONG_WARPS: u32 = 14;

/// What flat blocks differ in.
struct Flat {
    /// Pairs of rows of tiles.
    pairs: u32,
    /// Tiles along k of a warp.
    tiles: usize,
}

/// Words from one pair of rows of tiles to the next in a column's sums in the shared memory of a flat block: lanes that load two rows of
/// either together read different banks.
const FLAT_PAIR: u32 = 40;

/// Words of a column's sums of so many pairs: columns that lanes write together lie in different banks.
const fn flat_stride(pairs: u32) -> u32 {
    (pairs - 1) * FLAT_PAIR + 36
}

/// Words of shared memory of a part of k: the codes of `width` columns, and then the part's sums in their place.
const fn flat_part(pairs: u32, tiles: u32, width: u32) -> u32 {
    let (codes, sums) = (tiles * width * 32, width * flat_stride(pairs));
    if codes > sums { codes } else { sums }
}

/// Most warps of a mid block, and of one of gate and up, of which two share a multiprocessor.
const MID_WARPS: u32 = 16;
const MID_GATED_WARPS: u32 = 8;
/// Tiles along k of a warp of a mid block, and of one of gate and up, whose weights it asks for before it waits for the activations.
const MID_TILES: usize = 4;
const MID_GATED_TILES: usize = 5;
/// Pairs of rows of tiles of a mid block, and of one of gate and up, of which there are more rows.
const MID_PAIRS: u32 = 1;
const MID_GATED_PAIRS: u32 = 2;
/// Tiles along k up to which a warp of a mid block takes two: more warps begin earlier, and the blocks of several products find
/// room on a multiprocessor.
const MID_SHALLOW: u32 = 2 * MID_WARPS;

/// Pairs of rows of tiles of a mid block.
const fn mid_pairs(epilogue: Epilogue) -> u32 {
    match epilogue {
        Epilogue::Gated => MID_GATED_PAIRS,
        Epilogue::Store | Epilogue::Add => MID_PAIRS,
    }
}

/// Tiles along k of a warp of a mid block.
const fn mid_tiles(epilogue: Epilogue) -> usize {
    match epilogue {
        Epilogue::Gated => MID_GATED_TILES,
        Epilogue::Store | Epilogue::Add => MID_TILES,
    }
}

/// Parts of k in a mid block.
const fn mid_parts(epilogue: Epilogue, tiles_k: u32) -> u32 {
    let (tiles, most) = match epilogue {
        Epilogue::Gated => (MID_GATED_TILES as u32, MID_GATED_WARPS / MID_GATED_PAIRS),
        _ if tiles_k <= MID_SHALLOW => (2, MID_WARPS),
        _ => (MID_TILES as u32, MID_WARPS),
    };
    let parts = tiles_k.div_ceil(tiles);
    if parts < most { parts } else { most }
}

/// Bytes of shared memory of the codes of `width` columns, and then of the sums of `parts` parts of k in their place.
const fn mid_bytes(slots: u32, parts: u32, pairs: u32, width: u32) -> u32 {
    let (codes, sums) = (slots * parts * width * 128, parts * pairs * width * 128);
    if codes > sums { codes } else { sums }
}

/// What the sizes of wide blocks differ in.
struct Wide {
    /// Rows of tiles of a warp, which is 4 groups of 8 columns wide.
    bands: usize,
    /// Tiles along k of a stage: the block meets once for all of them.
    tiles: u32,
    /// Stages on their way while the one before them is waited for; the ring has two more.
    ahead: usize,
}

/// Bytes of a tile along k in a stage: 8 tiles of weights, then 128 codes of each of the `32 bands` columns.
const fn wide_tile_bytes(bands: u32) -> u32 {
    8 * 512 + bands * 32 * 128
}

impl Wide {
    /// Blocks along the rows of a matrix of `rows` rows, and along `cols` columns.
    fn grid(&self, rows: u32, cols: u32) -> [u32; 2] {
        [rows.div_ceil(WIDE_ROWS), cols.div_ceil(self.bands as u32 * 32)]
    }

    fn launch(&self, rows: u32, cols: u32) -> Launch {
        let [x, y] = self.grid(rows, cols);
        Launch {
            grid: [x, y, 1],
            block: [WIDE_WARPS * 32, 1, 1],
            shared_bytes: (self.ahead as u32 + 2) * self.tiles * wide_tile_bytes(self.bands as u32),
        }
    }

    /// About how long a product takes: hundredths of turns of all slots, by the columns of a block.
    fn time(&self, rows: u32, cols: u32) -> u64 {
        let [x, y] = self.grid(rows, cols);
        turns(x * y, WIDE_SLOTS, WIDE_HALF_TURN) * self.bands as u64
    }
}

/// The block of a shape, for products with this epilogue.
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
macro_rules! block {
    (Wide64 $epilogue:ident) => { wide::Wide<{ WIDE_64.bands }, { WIDE_64.tiles }, { WIDE_64.ahead }> };
    (Wide128 $epilogue:ident) => { wide::Wide<{ WIDE_128.bands }, { WIDE_128.tiles }, { WIDE_128.ahead }> };
    (Hopper64x2 $epilogue:ident) => { block!(HOPPER_64_X2) };
    (Hopper64x4 $epilogue:ident) => { block!(HOPPER_64_X4) };
    (Hopper128 $epilogue:ident) => { block!(HOPPER_128) };
    (Hopper160 $epilogue:ident) => { block!(HOPPER_160) };
    ($hopper:ident) => {
        hopper::Hopper<{ $hopper.warpgroups }, { $hopper.split }, { $hopper.stages }, { $hopper.columns as usize / 2 }>
    };
    (Slim64 $epilogue:ident) => { block!(slim Epilogue::$epilogue, Shape::Slim64) };
    (Slim32 $epilogue:ident) => { block!(slim Epilogue::$epilogue, Shape::Slim32) };
    (slim $epilogue:expr, $shape:expr) => {
        slim::Slim<
            { Slim::new($epilogue, $shape).warpgroups },
            { Slim::new($epilogue, $shape).split },
            { Slim::new($epilogue, $shape).columns as usize / 2 },
            { Slim::new($epilogue, $shape).ahead },
        >
    };
    (Narrow8 Gated) => { narrow::Narrow<NARROW_GATED_BANDS, NARROW_GATED_TILES, 1> };
    (Narrow8 $epilogue:ident) => { narrow::Narrow<NARROW_BANDS, NARROW_TILES, 2> };
    (Flat8 Gated) => { flat::Flat<{ FLAT_GATED.pairs }, { FLAT_GATED.tiles }, 1> };
    (Flat8 $epilogue:ident) => { flat::Flat<{ FLAT.pairs }, { FLAT.tiles }, 1> };
    (FlatLong8 $epilogue:ident) => { flat::Flat<{ FLAT_LONG.pairs }, { FLAT_LONG.tiles }, 1> };
    (Flat16 Gated) => { flat::Flat<{ FLAT_GATED.pairs }, { FLAT_GATED.tiles }, 2> };
    (Flat16 $epilogue:ident) => { flat::Flat<{ FLAT.pairs }, { FLAT.tiles }, 2> };
    (FlatLong16 $epilogue:ident) => { flat::Flat<{ FLAT_LONG.pairs }, { FLAT_LONG.tiles }, 2> };
    (Flat32 Gated) => { flat::Flat<{ FLAT_GATED.pairs }, { FLAT_GATED.tiles }, 4> };
    (Flat32 $epilogue:ident) => { flat::Flat<{ FLAT.pairs }, { FLAT.tiles }, 4> };
    (Mid16 $epilogue:ident) => { mid::Mid<{ mid_pairs(Epilogue::$epilogue) }, { mid_tiles(Epilogue::$epilogue) }, 2> };
    (Mid32 $epilogue:ident) => { mid::Mid<{ mid_pairs(Epilogue::$epilogue) }, { mid_tiles(Epilogue::$epilogue) }, 4> };
}

/// Declares the [`family!`] of kernels by their epilogue and the shape of their block.
macro_rules! products {
    (
        $(#[$meta:meta])*
        pub struct $Params:ident $fields:tt
        $( [$($options:tt)*] $($name:ident, $Kernel:ident, $epilogue:ident, $shape:ident $(or $other:ident)?;)+ )+
    ) => {
        family! {
            $(#[$meta])*
            pub struct $Params $fields
            each (Epilogue, Shape);
            $(
                [$($options)*]
                $(
                    $name, $Kernel, concat!("products that end in `", stringify!($epilogue), "`"),
                    [block!($shape $epilogue), { Epilogue::$epilogue as u32 }],
                    [(Epilogue::$epilogue, Shape::$shape)] $(or [(Epilogue::$epilogue, Shape::$other)])?;
                )+
            )+
        }
    };
}

products! {
    /// Parameters of the kernels here, one for each epilogue and shape of block.
    ///
    /// `z[c][n] = (sum over k of t[n][k] x[c][k]) * (scale(n) * unit[c])`, then `y = z` (store), `y += z` (add), or
    /// `y[i] = activation(z[i]) z[n / 2 + i]` (gated).
    ///
    /// - Shapes: `w` tiles of (n, k); `x` (cols padded for the order, k padded to 128) i8, padded with zeros; `y` as said, row per column c.
    /// - Launch: [`WideStore64::launch`] and its like; blocks are those of [`Shape`].
    /// - Layout: [`bitnet_layout::mma_tile`]. Moves: weights once for every block along the columns, `x` once for every
    ///   block along the rows, from L2.
    /// - Bound: the rate of the tensor cores, and of unpacking, for wide blocks; latency and L2 for the others.
    ///
    /// # Safety
    /// Lengths as above; `w` and `x` 16-byte aligned; sizes at least 1; `slots` as [`Shape::slots`] gives them; of slim blocks `cols` more
    /// than half of theirs, and at most 64; the launch is that of the parameters.
    pub struct BitGemm {
        /// Weights in tiles; in pairs of rows for the gated kernels.
        pub w: Global<u32>,
        /// Codes, four a word in the order of the shape ([`Shape::order`]).
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
        /// Tiles of codes that a part of k of a mid block has room for, or blocks of a cluster of slim ones: [`Shape::slots`].
        pub slots: u32,
    }
    [min_blocks = 2,]
    wide_store_64, WideStore64, Store, Wide64;
    wide_add_64, WideAdd64, Add, Wide64;
    wide_gated_64, WideGated64, Gated, Wide64;
    wide_store_128, WideStore128, Store, Wide128;
    wide_add_128, WideAdd128, Add, Wide128;
    wide_gated_128, WideGated128, Gated, Wide128;
    flat_store_16, FlatStore16, Store, Flat16 or FlatLong16;
    flat_add_16, FlatAdd16, Add, Flat16;
    flat_gated_16, FlatGated16, Gated, Flat16 or FlatLong16;
    flat_store_32, FlatStore32, Store, Flat32;
    flat_add_32, FlatAdd32, Add, Flat32;
    flat_gated_32, FlatGated32, Gated, Flat32;
    mid_gated_16, MidGated16, Gated, Mid16;
    mid_gated_32, MidGated32, Gated, Mid32;
    narrow_gated_8, NarrowGated8, Gated, Narrow8;
    [min_blocks = 1,]
    narrow_store_8, NarrowStore8, Store, Narrow8;
    narrow_add_8, NarrowAdd8, Add, Narrow8;
    mid_store_16, MidStore16, Store, Mid16;
    mid_add_16, MidAdd16, Add, Mid16;
    mid_store_32, MidStore32, Store, Mid32;
    mid_add_32, MidAdd32, Add, Mid32;
    [min_blocks = 2, arch = sm_90a,]
    hopper_store_64x2, HopperStore64x2, Store, Hopper64x2;
    hopper_add_64x2, HopperAdd64x2, Add, Hopper64x2;
    hopper_gated_64x2, HopperGated64x2, Gated, Hopper64x2;
    hopper_store_128, HopperStore128, Store, Hopper128;
    hopper_add_128, HopperAdd128, Add, Hopper128;
    hopper_gated_128, HopperGated128, Gated, Hopper128;
    hopper_store_160, HopperStore160, Store, Hopper160;
    hopper_add_160, HopperAdd160, Add, Hopper160;
    hopper_gated_160, HopperGated160, Gated, Hopper160;
    flat_store_8, FlatStore8, Store, Flat8 or FlatLong8;
    flat_add_8, FlatAdd8, Add, Flat8;
    flat_gated_8, FlatGated8, Gated, Flat8 or FlatLong8;
    [min_blocks = 1, arch = sm_90a,]
    flat_add_long_8, FlatAddLong8, Add, FlatLong8;
    slim_store_32, SlimStore32, Store, Slim32;
    slim_add_32, SlimAdd32, Add, Slim32;
    slim_gated_32, SlimGated32, Gated, Slim32;
    slim_store_64, SlimStore64, Store, Slim64;
    slim_add_64, SlimAdd64, Add, Slim64;
    slim_gated_64, SlimGated64, Gated, Slim64;
    flat_add_long_16, FlatAddLong16, Add, FlatLong16;
    hopper_store_64x4, HopperStore64x4, Store, Hopper64x4;
    hopper_add_64x4, HopperAdd64x4, Add, Hopper64x4;
    hopper_gated_64x4, HopperGated64x4, Gated, Hopper64x4;
}

/// A shape of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 128 rows by 160 columns, by warpgroups: capability 9.0 alone.
    Hopper160,
    /// 128 rows by 128 columns, by warpgroups.
    Hopper128,
    /// 64 rows by 128 columns, by a warpgroup for each of two parts of k.
    Hopper64x2,
    /// 64 rows by 128 columns, by a warpgroup for each of four parts of k.
    Hopper64x4,
    /// 128 rows by 128 columns.
    Wide128,
    /// 128 rows by 64 columns.
    Wide64,
    /// 64 rows (gated: 128) by 64 columns, by warpgroups: capability 9.0 alone.
    Slim64,
    /// 64 rows (gated: 128) by 32 columns.
    Slim32,
    /// 32 rows (gated: 64) by 32 columns at a time.
    Mid32,
    /// 32 rows (gated: 64) by 16 columns.
    Mid16,
    /// 32 rows (gated: 64) by 32 columns; of up to 20 tiles along k.
    Flat32,
    /// 32 rows (gated: 64) by 16 columns; of as many.
    Flat16,
    /// 32 rows (gated: 64) by 8 columns; of as many: capability 9.0 alone.
    Flat8,
    /// The same, of products that are added of up to 56 tiles along k: capability 9.0 alone, whose blocks have the shared memory.
    FlatLong16,
    /// The same by 8 columns.
    FlatLong8,
    /// 32 rows (gated: 64) by 8 columns.
    Narrow8,
}

impl Shape {
    /// The order of the activations that it takes.
    #[must_use]
    pub const fn order(self) -> CodeOrder {
        match self {
            Self::Hopper160 | Self::Hopper128 | Self::Hopper64x2 | Self::Hopper64x4 => CodeOrder::Warpgroup,
            Self::Slim64 | Self::Slim32 => CodeOrder::WarpgroupFew,
            _ => CodeOrder::Warp,
        }
    }

    /// The fastest for an (n, k) matrix, what becomes of its product, and `cols` rows of activations, on a GPU that multiplies by
    /// warpgroups or not.
    #[must_use]
    pub fn new(epilogue: Epilogue, n: usize, k: usize, cols: usize, has_warpgroups: bool) -> Self {
        if has_warpgroups && cols > 64 {
            let (rows, columns) = (padded_rows(n), cols as u32);
            let [x, y] = HOPPER_64_X2.grid(rows, columns);
            return match x * y {
                blocks if blocks <= HOPPER_MULTIPROCESSORS => Self::Hopper64x4,
                blocks if blocks <= 2 * HOPPER_MULTIPROCESSORS => Self::Hopper64x2,
                _ if HOPPER_160.time(rows, columns) < HOPPER_128.time(rows, columns) => Self::Hopper160,
                _ => Self::Hopper128,
            };
        }
        if has_warpgroups && cols > 16 {
            // Few rows that are added to are too few blocks for all multiprocessors: there are two of them for 64 columns.
            let (columns, shape) = if cols > 32 && epilogue != Epilogue::Add {
                (64, Self::Slim64)
            } else {
                (32, Self::Slim32)
            };
            if Self::is_slim(epilogue, k, columns) {
                return shape;
            }
        }
        let (rows, columns) = (padded_rows(n), cols as u32);
        let tiles_k = mma_tile::tiles_k(k);
        let is_flat = tiles_k <= FLAT_TILES_K;
        let is_long = tiles_k <= FLAT_LONG_WARPS as usize * FLAT_LONG.tiles;
        match (cols, epilogue) {
            (_, Epilogue::Store) | (5.., _) if has_warpgroups && cols <= 8 && is_flat => Self::Flat8,
            (5..=8, Epilogue::Add) if has_warpgroups && is_long => Self::FlatLong8,
            (0..=8, _) => Self::Narrow8,
            (9..=16, _) if is_flat => Self::Flat16,
            (9..=16, Epilogue::Add) if has_warpgroups && is_long => Self::FlatLong16,
            (9..=16, _) => Self::Mid16,
            (17..=32, Epilogue::Gated) | (33..=64, _) if is_flat => Self::Flat32,
            (17..=64, _) => Self::Mid32,
            _ if WIDE_128.time(rows, columns) * 100
                < WIDE_64.time(rows, columns) * u64::from(WIDE_128_RATE) =>
            {
                Self::Wide128
            }
            _ => Self::Wide64,
        }
    }

    /// Whether slim blocks have room for the codes of such matrices.
    const fn is_slim(epilogue: Epilogue, k: usize, columns: u32) -> bool {
        let most = match epilogue {
            Epilogue::Gated => 1,
            Epilogue::Store | Epilogue::Add => SLIM_CLUSTER,
        };
        slim_cluster(columns, k) <= most
    }

    /// Blocks of the clusters in which this shape's kernels are launched, of parameters with these slots.
    #[must_use]
    pub const fn cluster(self, slots: u32) -> u32 {
        match self {
            Self::Slim64 | Self::Slim32 => slots,
            _ => 1,
        }
    }

    /// [`BitGemm::slots`] of a product with matrices of `k` columns in blocks that may have `room` bytes of shared memory: no more than
    /// a part has tiles.
    #[must_use]
    pub const fn slots(self, epilogue: Epilogue, k: usize, room: u32) -> u32 {
        let width = match self {
            Self::Mid32 => 32,
            Self::Mid16 => 16,
            Self::Slim64 => return slim_cluster(64, k),
            Self::Slim32 => return slim_cluster(32, k),
            _ => return 1,
        };
        let (tiles_k, most) = (mma_tile::tiles_k(k) as u32, mid_tiles(epilogue) as u32);
        let parts = mid_parts(epilogue, tiles_k);
        let tiles = tiles_k.div_ceil(parts);
        let mut slots = if tiles < most { tiles } else { most };
        while slots > 1 && mid_bytes(slots, parts, mid_pairs(epilogue), width) + width * 8 > room {
            slots -= 1;
        }
        slots
    }
}

/// Most threads of a block.
const fn threads((epilogue, shape): (Epilogue, Shape)) -> u32 {
    32 * match (shape, epilogue) {
        (Shape::Hopper160, _) => HOPPER_160.warps(),
        (Shape::Hopper128, _) => HOPPER_128.warps(),
        (Shape::Hopper64x2, _) => HOPPER_64_X2.warps(),
        (Shape::Hopper64x4, _) => HOPPER_64_X4.warps(),
        (Shape::Wide128 | Shape::Wide64, _) => WIDE_WARPS,
        (Shape::Slim64 | Shape::Slim32, _) => Slim::new(epilogue, shape).warps(),
        (Shape::Narrow8, Epilogue::Gated) => NARROW_GATED_WARPS,
        (Shape::Narrow8, _) => NARROW_WARPS,
        (Shape::Flat32 | Shape::Flat16 | Shape::Flat8, _) => FLAT_WARPS,
        (Shape::FlatLong16 | Shape::FlatLong8, _) => FLAT_LONG_WARPS,
        (Shape::Mid32 | Shape::Mid16, Epilogue::Gated) => MID_GATED_WARPS,
        (Shape::Mid32 | Shape::Mid16, _) => MID_WARPS,
    }
}

fn launch((epilogue, shape): (Epilogue, Shape), p: &BitGemm) -> Launch {
    let (rows, tiles_k) = (padded_rows(p.n as usize), mma_tile::tiles_k(p.k as usize) as u32);
    let mid = |width: u32| {
        let (pairs, parts) = (mid_pairs(epilogue), mid_parts(epilogue, tiles_k));
        // Blocks that fill a multiprocessor, or of which there is one for each, keep their weights, if these are all, for all columns.
        let is_large = matches!(epilogue, Epilogue::Gated) || tiles_k > MID_SHALLOW;
        let stays = is_large && tiles_k <= parts * mid_tiles(epilogue) as u32;
        let turns = if stays { 1 } else { p.cols.div_ceil(width) };
        Launch {
            grid: [rows.div_ceil(32 * pairs), turns, 1],
            block: [parts * pairs * 32, 1, 1],
            shared_bytes: mid_bytes(p.slots, parts, pairs, width) + width * 8,
        }
    };
    let narrow = || {
        let (bands, tiles, most) = match epilogue {
            Epilogue::Gated => (NARROW_GATED_BANDS, NARROW_GATED_TILES, NARROW_GATED_WARPS),
            Epilogue::Store | Epilogue::Add => (NARROW_BANDS, NARROW_TILES, NARROW_WARPS),
        };
        let (height, warps) = (16 * bands as u32, tiles_k.div_ceil(tiles as u32).min(most));
        Launch {
            grid: [rows.div_ceil(height), p.cols.div_ceil(NARROW_COLUMNS), 1],
            block: [warps * 32, 1, 1],
            shared_bytes: (warps * narrow_stride(bands as u32) + 2) * NARROW_COLUMNS * 4,
        }
    };
    let slim = || {
        let slim = Slim::new(epilogue, shape);
        Launch {
            grid: [
                rows.div_ceil(64 * slim.warpgroups) * p.slots,
                p.cols.div_ceil(slim.columns),
                1,
            ],
            block: [slim.warps() * 32, 1, 1],
            shared_bytes: SlimPlan::new(slim.warpgroups, slim.split, slim.columns, tiles_k, p.slots).end,
        }
    };
    let flat = |width: u32| {
        let Flat { pairs, tiles } = match (shape, epilogue) {
            (Shape::FlatLong16 | Shape::FlatLong8, _) => FLAT_LONG,
            (_, Epilogue::Gated) => FLAT_GATED,
            _ => FLAT,
        };
        let parts = tiles_k.div_ceil(tiles as u32);
        Launch {
            grid: [rows.div_ceil(32 * pairs), p.cols.div_ceil(width), 1],
            block: [parts * pairs * 32, 1, 1],
            shared_bytes: (parts * flat_part(pairs, tiles as u32, width) + width * 2) * 4,
        }
    };
    match shape {
        Shape::Hopper160 => HOPPER_160.launch(rows, p.cols),
        Shape::Hopper128 => HOPPER_128.launch(rows, p.cols),
        Shape::Hopper64x2 => HOPPER_64_X2.launch(rows, p.cols),
        Shape::Hopper64x4 => HOPPER_64_X4.launch(rows, p.cols),
        Shape::Flat32 => flat(32),
        Shape::Flat16 | Shape::FlatLong16 => flat(16),
        Shape::Flat8 | Shape::FlatLong8 => flat(8),
        Shape::Narrow8 => narrow(),
        Shape::Slim64 | Shape::Slim32 => slim(),
        Shape::Wide128 => WIDE_128.launch(rows, p.cols),
        Shape::Wide64 => WIDE_64.launch(rows, p.cols),
        Shape::Mid32 => mid(32),
        Shape::Mid16 => mid(16),
    }
}

/// Rows of the tiles of a matrix of `n` rows.
fn padded_rows(n: usize) -> u32 {
    (mma_tile::tiles_n(n) * mma_tile::ROWS) as u32
}
