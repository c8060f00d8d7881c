//! Groups of 8-bit weights times rows of 16-bit activations, written once over the registers of an instruction set.
//!
//! A group is [`COLUMNS`] columns of [`ROWS`] rows with a scale for each row. Its products are summed exactly in 32 bits, then
//! scaled in f32; beside them runs the sum that bounds what the 8 bits leave out.
#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over arrays are what becomes registers and vectors"
)]

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::Simd;
use crate::memory::Plain;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// Columns of a group, which share a scale.
pub(super) const COLUMNS: usize = 128;

/// Pairs of them: what one instruction multiplies and adds up.
const PAIRS: usize = COLUMNS / 2;

/// Tiles that are read side by side: one stream for each thread does not keep all of the memory busy.
pub(super) const TILES: usize = 4;

/// Two columns of the rows of a tile.
type Pair = [[i8; 2]; ROWS];

/// A group of a tile.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Group {
    /// What a unit of each row is worth.
    pub(super) scales: [f32; ROWS],
    pub(super) pairs: [Pair; PAIRS],
}

// SAFETY: floats and integers, of which every bit pattern is a value, without padding: 64 bytes and 64 times 32.
unsafe impl Plain for Group {}

/// A group of a row of activations.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Column {
    /// What a unit is worth.
    pub(super) unit: f32,
    /// At least the Euclidean length of the activations.
    pub(super) length: f32,
    pub(super) x: [[i16; 2]; PAIRS],
}

// SAFETY: floats and integers, of which every bit pattern is a value, without padding: 8 bytes and 64 times 4.
unsafe impl Plain for Column {}

/// What bounds the rows of a tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// At least the length of what a group of the row leaves out, as a share of the group's scale.
    pub(super) ratio: [f32; ROWS],
    /// At least the length of the row and that of what it leaves out, together.
    pub(super) length: [f32; ROWS],
}

/// Between what the exact products of a tile are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) lower: [f32; ROWS],
    pub(super) upper: [f32; ROWS],
}

/// Tiles and rows of activations.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) tiles: [&'a [Group]; TILES],
    /// Those that come next, whose beginnings are asked for; any where there are none.
    pub(super) next: [&'a [Group]; TILES],
    pub(super) bounds: [&'a Bounds; TILES],
    /// (groups, tokens)
    pub(super) x: &'a [Column],
    /// By token, what a unit of [`Bounds::length`] adds to the width of an interval.
    pub(super) spread: &'a [f32],
}

/// Added to every bound: more than the roundings of numbers near zero come to.
pub(super) const LEAST: f32 = 1e-30;

/// Fills `out`, (tokens, tiles).
pub(super) type ScreenFn = fn(job: &Job<'_>, out: &mut [Interval]);

/// The code of an instruction set, the portable one where this processor lacks it.
pub(super) fn path(simd: Simd) -> ScreenFn {
    if !simd.is_available() {
        return |job, out| screen(Portable, job, out);
    }
    match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features are available, checked above.
        Simd::Amx | Simd::Avx512Vnni => |job, out| unsafe { x86::avx512(job, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Simd::AvxVnni => |job, out| unsafe { x86::avx_vnni(job, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Simd::Avx2 => |job, out| unsafe { x86::avx2(job, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Simd::Neon | Simd::NeonDotprod | Simd::NeonI8mm => |job, out| unsafe { arm::neon(job, out) },
        _ => |job, out| screen(Portable, job, out),
    }
}

/// Proof that an instruction set may be used here, and its operations.
trait Isa: Copy {
    /// A pair of columns, widened.
    type Weights: Copy;
    /// A pair of activations for every row.
    type Lane: Copy;
    /// A sum for each row.
    type Sums: Copy;
    /// How many [`Isa::Sums`] the registers hold, operands left over.
    const SUMS: usize;

    fn widen(self, pair: &Pair) -> Self::Weights;
    fn lane(self, x: [i16; 2]) -> Self::Lane;
    fn zero(self) -> Self::Sums;
    fn add(self, sums: Self::Sums, weights: Self::Weights, x: Self::Lane) -> Self::Sums;
    fn store(self, sums: Self::Sums) -> [i32; ROWS];

    /// Asks for a line, where the instruction set can.
    #[inline(always)]
    fn prefetch(self, line: *const Pair) {
        let _ = line;
    }
}

#[inline(always)]
fn screen<I: Isa>(isa: I, job: &Job<'_>, out: &mut [Interval]) {
    let n = job.spread.len();
    let n_groups = job.tiles[0].len();
    assert!(
        job.x.len() == n_groups * n && out.len() == n * TILES,
        "groups and tokens"
    );
    out.fill(Interval {
        lower: [0.0; ROWS],
        upper: [0.0; ROWS],
    });
    for g in 0..n_groups {
        let x = &job.x[g * n..][..n];
        let mut t = 0;
        while t < n {
            // Weights come from memory for the first rows of activations, and from the cache for the others.
            let (x, out, is_first) = (&x[t..], &mut out[t * TILES..], t == 0);
            t += match n - t {
                8.. if I::SUMS >= 16 => rows::<I, 8>(isa, job, g, x, is_first, out),
                4.. if I::SUMS >= 4 => rows::<I, 4>(isa, job, g, x, is_first, out),
                2.. if I::SUMS >= 2 => rows::<I, 2>(isa, job, g, x, is_first, out),
                _ => rows::<I, 1>(isa, job, g, x, is_first, out),
            };
        }
    }
    for (out, &spread) in out.chunks_exact_mut(TILES).zip(job.spread) {
        for (out, bounds) in out.iter_mut().zip(job.bounds) {
            for r in 0..ROWS {
                let (sum, slack) = (out.lower[r], out.upper[r]);
                let bound = bounds.ratio[r] * slack + bounds.length[r] * spread + LEAST;
                (out.lower[r], out.upper[r]) = (sum - bound, sum + bound);
            }
        }
    }
}

/// Group `g` of all tiles times the first `T` rows of activations; returns `T`. Until the end `lower` is the sum of products and
/// `upper` that of scales times lengths.
#[inline(always)]
fn rows<I: Isa, const T: usize>(
    isa: I,
    job: &Job<'_>,
    g: usize,
    x: &[Column],
    is_first: bool,
    out: &mut [Interval],
) -> usize {
    match I::SUMS / T {
        4.. => tiles::<I, T, 4>(isa, job, 0, g, x, is_first, out),
        2.. => {
            tiles::<I, T, 2>(isa, job, 0, g, x, is_first, out);
            tiles::<I, T, 2>(isa, job, 2, g, x, is_first, out);
        }
        _ => {
            for i in 0..TILES {
                tiles::<I, T, 1>(isa, job, i, g, x, is_first, out);
            }
        }
    }
    T
}

/// `W` of the tiles, from `first`.
#[inline(always)]
fn tiles<I: Isa, const T: usize, const W: usize>(
    isa: I,
    job: &Job<'_>,
    first: usize,
    g: usize,
    x: &[Column],
    is_first: bool,
    out: &mut [Interval],
) {
    let x: &[Column; T] = x.first_chunk().expect("as many rows of activations");
    let mut groups = [&job.tiles[0][g]; W];
    let mut later = [std::ptr::null::<Pair>(); W];
    for w in 0..W {
        groups[w] = &job.tiles[first + w][g];
        let next = job.tiles[first + w].get(g + 1).or(job.next[first + w].first());
        later[w] = next.map_or(std::ptr::null(), |next| next.pairs.as_ptr());
    }
    let mut sums = [[isa.zero(); T]; W];
    for c in 0..PAIRS {
        if is_first && c % 2 == 0 {
            for w in 0..W {
                isa.prefetch(later[w].wrapping_add(c));
            }
        }
        let mut pairs = [&groups[0].pairs[c]; W];
        for w in 1..W {
            pairs[w] = &groups[w].pairs[c];
        }
        sums = add_pair(isa, sums, pairs, x, c);
    }
    for w in 0..W {
        let scales = &groups[w].scales;
        for t in 0..T {
            let sums = isa.store(sums[w][t]);
            let (unit, length) = (x[t].unit, x[t].length);
            let out = &mut out[t * TILES + first + w];
            for r in 0..ROWS {
                out.lower[r] += sums[r] as f32 * (scales[r] * unit);
                out.upper[r] += scales[r] * length;
            }
        }
    }
}

/// Adds the products of pair `c` of columns of each tile. By value, because sums behind a reference would leave the registers.
#[inline(always)]
fn add_pair<I: Isa, const T: usize, const W: usize>(
    isa: I,
    mut sums: [[I::Sums; T]; W],
    pairs: [&Pair; W],
    x: &[Column; T],
    c: usize,
) -> [[I::Sums; T]; W] {
    let mut weights = [isa.widen(pairs[0]); W];
    for w in 1..W {
        weights[w] = isa.widen(pairs[w]);
    }
    for t in 0..T {
        let lane = isa.lane(x[t].x[c]);
        for w in 0..W {
            sums[w][t] = isa.add(sums[w][t], weights[w], lane);
        }
    }
    sums
}

/// Portable Rust.
#[derive(Clone, Copy)]
struct Portable;

impl Isa for Portable {
    type Weights = Pair;
    type Lane = [i16; 2];
    type Sums = [i32; ROWS];
    const SUMS: usize = 1;

    #[inline(always)]
    fn widen(self, pair: &Pair) -> Pair {
        *pair
    }

    #[inline(always)]
    fn lane(self, x: [i16; 2]) -> [i16; 2] {
        x
    }

    #[inline(always)]
    fn zero(self) -> [i32; ROWS] {
        [0; ROWS]
    }

    #[inline(always)]
    fn add(self, mut sums: [i32; ROWS], weights: Pair, x: [i16; 2]) -> [i32; ROWS] {
        for r in 0..ROWS {
            sums[r] +=
                i32::from(weights[r][0]) * i32::from(x[0]) + i32::from(weights[r][1]) * i32::from(x[1]);
        }
        sums
    }

    #[inline(always)]
    fn store(self, sums: [i32; ROWS]) -> [i32; ROWS] {
        sums
    }
}
