//! Codes on their way from memory to tiles: unpacked a few steps of columns before they are multiplied, because what was stored a
//! moment ago cannot be loaded as a tile at once.

use std::arch::x86_64::*;

use bitnet_layout::row_tiles::Group;

use super::super::Quad;

/// Groups of a step of columns.
pub(super) const GROUPS: usize = 4;

/// Quads of a tile in a step of columns: 1 KiB, a tile register.
const QUADS: usize = 16;

/// Steps of columns that a ring holds.
const SLOTS: usize = 4;

/// Steps of columns between what is unpacked and what is multiplied.
pub(super) const AHEAD: usize = 2;

/// A step of columns of `W` tiles, unpacked.
pub(super) type Slot<const W: usize> = [[Quad; QUADS]; W];

/// [`SLOTS`] steps of columns of two tiles, which are written and read in turns. It lies at a multiple of twice its size: past its end an
/// address has one bit more than the same place from the beginning, bit 13.
#[repr(C, align(16384))]
pub(super) struct OfTwo(pub(super) [Slot<2>; SLOTS]);

/// The same of four tiles; the bit is 14.
#[repr(C, align(32768))]
pub(super) struct OfFour(pub(super) [Slot<4>; SLOTS]);

impl OfTwo {
    pub(super) fn new() -> Self {
        Self([[[[0; 16]; QUADS]; 2]; SLOTS])
    }
}

impl OfFour {
    pub(super) fn new() -> Self {
        Self([[[[0; 16]; QUADS]; 4]; SLOTS])
    }
}

const _: () = assert!(size_of::<OfTwo>() == 16384 && size_of::<OfFour>() == 32768 && AHEAD < SLOTS);

/// Step `step` of a tile, as far as it goes, and zeros.
pub(super) fn groups(tile: &[Group], step: usize) -> [Group; GROUPS] {
    let mut groups = [[0; 16]; GROUPS];
    let rest = tile.get(GROUPS * step..).unwrap_or_default();
    groups.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    groups
}

/// Unpacks step `step` of a tile.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack(tile: &[Group], step: usize, to: &mut [Quad; QUADS]) {
    for (group, quads) in groups(tile, step).iter().zip(to.as_chunks_mut::<4>().0) {
        // SAFETY: a group is 64 readable bytes.
        let mut words = unsafe { _mm512_loadu_si512(group.as_ptr().cast()) };
        for quad in quads {
            // SAFETY: a quad is 64 writable bytes.
            unsafe { _mm512_storeu_si512(quad.as_mut_ptr().cast(), _mm512_and_si512(words, mask())) };
            words = _mm512_srli_epi32::<2>(words);
        }
    }
}

/// The bits of a code in each byte.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn mask() -> __m512i {
    _mm512_set1_epi8(3)
}

/// Assembly that unpacks a group of a tile: group `$group` from `{$from}` on, as the `$tile`th of a slot at `{to}`, with [`mask`] in zmm4 and
/// zmm0 to zmm3 to be used; and asks for the line `{ask}` bytes further on.
macro_rules! unpack_group {
    ($from:literal, $group:literal, $tile:literal) => {
        concat!(
            "vmovdqu64 zmm0, [{",
            $from,
            "} + 64 * ",
            $group,
            "]\n",
            "prefetcht0 [{",
            $from,
            "} + {ask} + 64 * ",
            $group,
            "]\n",
            "vpandd zmm1, zmm0, zmm4\n",
            "vpsrld zmm2, zmm0, 2\n",
            "vmovdqa64 [{to} + 1024 * ",
            $tile,
            " + 256 * ",
            $group,
            "], zmm1\n",
            "vpandd zmm2, zmm2, zmm4\n",
            "vpsrld zmm3, zmm0, 4\n",
            "vmovdqa64 [{to} + 1024 * ",
            $tile,
            " + 256 * ",
            $group,
            " + 64], zmm2\n",
            "vpandd zmm3, zmm3, zmm4\n",
            "vpsrld zmm0, zmm0, 6\n",
            "vmovdqa64 [{to} + 1024 * ",
            $tile,
            " + 256 * ",
            $group,
            " + 128], zmm3\n",
            "vpandd zmm0, zmm0, zmm4\n",
            "vmovdqa64 [{to} + 1024 * ",
            $tile,
            " + 256 * ",
            $group,
            " + 192], zmm0\n",
        )
    };
}

/// The same for two groups from `$group` on.
macro_rules! unpack_groups {
    ($from:literal, 0, $tile:literal) => {
        concat!(unpack_group!($from, "0", $tile), unpack_group!($from, "1", $tile))
    };
    ($from:literal, 2, $tile:literal) => {
        concat!(unpack_group!($from, "2", $tile), unpack_group!($from, "3", $tile))
    };
}

pub(super) use {unpack_group, unpack_groups};
