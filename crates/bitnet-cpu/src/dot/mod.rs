//! Integer products of one tile of 16 weight rows with rows of 8-bit activations, one file an instruction set.
//!
//! Every path multiplies the codes as they stand (0, 1, 2), so its sums exceed the ternary ones by the sum of the
//! activations, which the caller takes off once a row. Sums are exact: at most `2 * 128 * k` in an i32.

mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;

use bitnet_layout::row_tiles::Group;

use crate::Simd;

/// Rows of 8-bit activations, each `stride` after the one before.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// All rows.
    pub(crate) x: &'a [i8],
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

impl<'a> Rows<'a> {
    /// Columns `16 c ..` of row `t` by word, for as many words as `tile` has.
    ///
    /// # Panics
    /// When the row is shorter.
    #[inline(always)]
    fn words(self, t: usize, tile: &[Group]) -> &'a [[i8; 16]] {
        &self.x[t * self.stride..].as_chunks().0[..tile.len()]
    }

    /// The rows from `t` on.
    #[inline(always)]
    fn skip(self, t: usize) -> Self {
        Self {
            x: &self.x[t * self.stride..],
            stride: self.stride,
        }
    }
}

/// `out[t][r] = sum over k of code[r][k] * x[t][k]` for the 16 rows r of a tile and `out.len()` rows of activations.
/// The bits do not depend on the path.
///
/// Panics when a row of activations is shorter than the tile.
pub(crate) type DotFn = fn(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]]);

/// The code of an instruction set; `None` where this processor lacks it.
pub(crate) fn path(simd: Simd) -> Option<DotFn> {
    if !simd.is_available() {
        return None;
    }
    match simd {
        Simd::Scalar => Some(scalar::dot),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `is_available` found the features, above.
        Simd::Avx2 => Some(|tile, x, out| unsafe { avx2::dot(tile, x, out) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Simd::AvxVnni => Some(|tile, x, out| unsafe { avx_vnni::dot(tile, x, out) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Simd::Avx512Vnni | Simd::Amx => Some(|tile, x, out| unsafe { avx512_vnni::dot(tile, x, out) }),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Simd::Neon => Some(|tile, x, out| unsafe { neon::dot(tile, x, out) }),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Simd::NeonDotprod => Some(|tile, x, out| unsafe { neon_dotprod::dot(tile, x, out) }),
        _ => None,
    }
}

/// Every path this processor can run, best first; the last is scalar.
#[cfg(test)]
pub(crate) fn paths() -> Vec<(Simd, DotFn)> {
    let available = Simd::available().into_iter();
    available.filter_map(|simd| Some((simd, path(simd)?))).collect()
}

/// Bytes that a stream of weights is asked for ahead of its use.
pub(crate) const AHEAD: usize = 2048;

/// Asks for the line [`AHEAD`] of a group: the processor's own prefetchers stop at pages of 4 KiB.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(group: &Group) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let ahead = group.as_ptr().cast::<i8>().wrapping_add(AHEAD);
    // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) };
}

/// Calls `many` for whole blocks of `T` rows of activations and `one` for those left over.
#[inline(always)]
fn in_blocks<const T: usize>(
    x: Rows<'_>,
    out: &mut [[i32; 16]],
    many: impl Fn(Rows<'_>, &mut [[i32; 16]; T]),
    one: impl Fn(Rows<'_>, &mut [[i32; 16]; 1]),
) {
    let n_blocks = out.len() / T;
    let (blocks, rest) = out.as_chunks_mut::<T>();
    for (block, out) in blocks.iter_mut().enumerate() {
        many(x.skip(block * T), out);
    }
    for (t, out) in rest.as_chunks_mut::<1>().0.iter_mut().enumerate() {
        one(x.skip(n_blocks * T + t), out);
    }
}

#[cfg(test)]
mod tests {
    use bitnet_layout::{reference, row_tiles, words};

    use super::*;

    /// A generator of test data, the same on every machine.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
    }

    /// Every path on a 16-row tile of `t` (16, k) and `x` (tokens, k), against the reference.
    fn check(k: usize, t: &[i8], x: &[i8]) {
        let shape = words::Shape::new(16, k).unwrap();
        let mut packed = vec![0; shape.words()];
        words::pack_row(t, &mut packed);
        let mut tile = vec![[0; 16]; k / 16];
        row_tiles::fill(&packed, k / 16, 0, &mut tile);
        let n_tokens = x.len() / k;
        let mut expected = vec![0; 16 * n_tokens];
        reference::linear(shape, &packed, x, &mut expected);
        // A stride past the row, and what lies between is no zero: reading it shows.
        let stride = k + 16;
        let mut strided = vec![77; n_tokens * stride];
        for (row, x) in strided.chunks_exact_mut(stride).zip(x.chunks_exact(k)) {
            row[..k].copy_from_slice(x);
        }
        for (simd, dot) in paths() {
            let mut out = vec![[i32::MIN; 16]; n_tokens];
            dot(&tile, Rows { x: &strided, stride }, &mut out);
            for (token, x) in x.chunks_exact(k).enumerate() {
                let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
                let found = out[token].map(|codes| codes - sum);
                let expected = &expected[token * 16..][..16];
                assert_eq!(found, expected, "{simd}, k = {k}, token {token} of {n_tokens}");
            }
        }
    }

    #[test]
    fn every_path_equals_the_reference() {
        let mut random = Random(1);
        // Every k up to two of the longest unroll (16 words) and one word, then the columns of real models.
        for k in (16..=528).step_by(16).chain([640, 2560, 6912]) {
            for n_tokens in if k < 200 { 0..19 } else { 1..3 } {
                let t: Vec<i8> = (0..16 * k).map(|_| (random.next() % 3) as i8 - 1).collect();
                let x: Vec<i8> = (0..n_tokens * k).map(|_| random.next() as i8).collect();
                check(k, &t, &x);
            }
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        for k in [16, 256, 6912, 16384] {
            for t in [-1, 0, 1] {
                for x in [-128, -127, 127] {
                    check(k, &vec![t; 16 * k], &vec![x; 9 * k]);
                }
            }
        }
    }

    #[test]
    fn rows_of_a_tile_are_independent() {
        let k = 64;
        for row in 0..16 {
            let mut t = vec![0; 16 * k];
            t[row * k..][..k].fill(1);
            let x: Vec<i8> = (0..k as i8).collect();
            check(k, &t, &x);
        }
    }
}
