//! The path without intrinsics, and the plainest statement of what a quad means.

use super::{Isa, Quad};

/// Portable Rust.
#[derive(Clone, Copy)]
pub(in super::super) struct Portable;

impl Isa for Portable {
    type Words = [u32; 16];
    type Four = [i32; 4];
    type Sums = [i32; 16];
    const RUN: usize = usize::MAX;
    const BLOCK: (usize, usize) = (1, 1);

    #[inline(always)]
    fn load(self, words: &[u32; 16]) -> [u32; 16] {
        *words
    }

    #[inline(always)]
    fn store(self, words: [u32; 16], to: &mut Quad) {
        *to = words;
    }

    #[inline(always)]
    fn plane(self, group: [u32; 16]) -> [u32; 16] {
        group.map(|word| word & 0x0303_0303)
    }

    #[inline(always)]
    fn next(self, group: [u32; 16]) -> [u32; 16] {
        group.map(|word| word >> 2)
    }

    #[inline(always)]
    fn four(self, x: [i8; 4]) -> [i32; 4] {
        x.map(i32::from)
    }

    #[inline(always)]
    fn zero(self) -> [i32; 16] {
        [0; 16]
    }

    #[inline(always)]
    fn add(self, mut sums: [i32; 16], quad: [u32; 16], x: [i32; 4]) -> [i32; 16] {
        for (sum, codes) in sums.iter_mut().zip(quad) {
            for (j, x) in x.iter().enumerate() {
                *sum += ((codes >> (8 * j)) & 3) as i32 * x;
            }
        }
        sums
    }

    #[inline(always)]
    fn add_lanes(self, mut sums: [i32; 16], quad: [u32; 16], x: [u32; 16]) -> [i32; 16] {
        for ((sum, codes), x) in sums.iter_mut().zip(quad).zip(x) {
            for (code, x) in codes.to_le_bytes().into_iter().zip(x.to_le_bytes()) {
                *sum += i32::from(code) * i32::from(x as i8);
            }
        }
        sums
    }

    #[inline(always)]
    fn interleave(self, lines: [[u32; 16]; 4]) -> [[u32; 16]; 4] {
        let byte = |line: &[u32; 16], at: usize| (line[at / 4] >> (8 * (at % 4))) as u8;
        std::array::from_fn(|v| {
            std::array::from_fn(|l| {
                let at = 16 * (l / 4) + 4 * v + l % 4;
                u32::from_le_bytes(std::array::from_fn(|i| byte(&lines[i], at)))
            })
        })
    }

    #[inline(always)]
    fn flush(self, sums: [i32; 16], to: &mut [i32; 16]) {
        for (to, sum) in to.iter_mut().zip(sums) {
            *to += sum;
        }
    }
}
