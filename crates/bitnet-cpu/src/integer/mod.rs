//! Integer products of tiles of 16 weight rows with rows of 8-bit activations, written once over the registers of an
//! instruction set and compiled once for each.
//!
//! Every instruction set multiplies the codes as they stand (0, 1, 2), so its sums exceed the ternary ones by the sum of
//! the activations, which the caller takes off once a row. Sums are exact: at most `2 * 128 * k` in an i32.

mod isa;

mod block;
mod dot;
mod spin;

mod few;
mod sweep;
mod zeros;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "aarch64")]
mod i8mm;

use bitnet_layout::row_tiles::Group;

pub(crate) use block::{Block, COLUMN_STEP, Piece, TOKEN_STEP};
pub(crate) use dot::{AHEAD, Stream, TILES};
pub(crate) use few::Few;
pub(crate) use isa::Quad;
pub(crate) use spin::Spun;
pub(crate) use sweep::{SWEEP_ROWS, SWEEP_TURNS, Sweep, Turn};
pub(crate) use zeros::{FewColumns, Line, OUTPUTS, SomeColumns, SomeRows};

use crate::Simd;

/// See [`Integer::sweep`].
pub(crate) type SweepFn = fn(job: &Sweep<'_>, turn: &mut dyn FnMut(Turn<'_>));

/// Declares the functions once: the table [`Integer`] of pointers to them, and for each instruction set a module in which
/// they are compiled, with everything they call, for that set.
macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $body:path: ($($arg:ident: $ty:ty),*);)*) => {
        /// The integer functions, compiled for one instruction set.
        #[derive(Clone, Copy)]
        pub(crate) struct Integer {
            $($(#[$doc])* pub(crate) $name: fn($($ty),*),)*
            /// Products of many rows whose sums stay in registers for all columns, where there are registers for them.
            pub(crate) sweep: Option<SweepFn>,
        }

        impl Integer {
            /// Those of an instruction set; `None` where this processor lacks it.
            pub(crate) fn new(simd: Simd) -> Option<Self> {
                if !simd.is_available() {
                    return None;
                }
                Some(match simd {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: the features are available, checked above.
                    Simd::Avx2 => Self { $($name: |$($arg),*| unsafe { avx2::$name($($arg),*) },)* sweep: None },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Simd::AvxVnni => Self { $($name: |$($arg),*| unsafe { avx_vnni::$name($($arg),*) },)* sweep: None },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Simd::Avx512Vnni => Self { $($name: |$($arg),*| unsafe { avx512_vnni::$name($($arg),*) },)* sweep: None },
                    #[cfg(target_arch = "x86_64")]
                    Simd::Amx => Self {
                        few: |job, out| match job.n_tokens < amx::LEAST {
                            // SAFETY: as above: who has AMX has these too.
                            true => unsafe { avx512_vnni::few(job, out) },
                            // SAFETY: as above.
                            false => unsafe { amx::few(job, out) },
                        },
                        // SAFETY: as above.
                        sweep: Some(|job, turn| unsafe { amx::sweep(job, turn) }),
                        // SAFETY: as above.
                        spin: |n, out| unsafe { amx::spin(n, out) },
                        ..Self::new(Simd::Avx512Vnni)?
                    },
                    #[cfg(target_arch = "aarch64")]
                    // SAFETY: as above.
                    Simd::Neon => Self { $($name: |$($arg),*| unsafe { neon::$name($($arg),*) },)* sweep: None },
                    #[cfg(target_arch = "aarch64")]
                    // SAFETY: as above.
                    Simd::NeonDotprod => Self { $($name: |$($arg),*| unsafe { neon_dotprod::$name($($arg),*) },)* sweep: None },
                    #[cfg(target_arch = "aarch64")]
                    Simd::NeonI8mm => Self {
                        // SAFETY: as above.
                        few: |job, out| unsafe { i8mm::few(job, out) },
                        // SAFETY: as above.
                        unpack: |groups, quads| unsafe { i8mm::unpack(groups, quads) },
                        // SAFETY: as above.
                        multiply: |block| unsafe { i8mm::multiply(block) },
                        // SAFETY: as above.
                        spin: |n, out| unsafe { i8mm::spin(n, out) },
                        ..Self::new(Simd::NeonDotprod)?
                    },
                    _ => Self { $($name: |$($arg),*| $body(isa::Portable, $($arg),*),)* sweep: None },
                })
            }
        }

        functions!(@compiled "x86_64", avx2, "avx2", isa::x86::Avx2, $($name = $body: ($($arg: $ty),*))*);
        functions!(@compiled "x86_64", avx_vnni, "avx2,avxvnni", isa::x86::AvxVnni, $($name = $body: ($($arg: $ty),*))*);
        functions!(@compiled "x86_64", avx512_vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
            isa::x86::Avx512Vnni, $($name = $body: ($($arg: $ty),*))*);
        functions!(@compiled "aarch64", neon, "neon", isa::arm::Neon, $($name = $body: ($($arg: $ty),*))*);
        functions!(@compiled "aarch64", neon_dotprod, "neon,dotprod", isa::arm::NeonDotprod,
            $($name = $body: ($($arg: $ty),*))*);
    };
    (@compiled $arch:literal, $set:ident, $features:literal, $proof:ty,
        $($name:ident = $body:path: ($($arg:ident: $ty:ty),*))*
    ) => {
        #[cfg(target_arch = $arch)]
        mod $set {
            use super::*;
            $(#[target_feature(enable = $features)]
            pub(super) fn $name($($arg: $ty),*) {
                // SAFETY: this function is compiled for these features.
                $body(unsafe { <$proof>::new() }, $($arg),*)
            })*
        }
    };
}

functions! {
    /// `out[i][r] = sum over k of codes[i][r][k] * x[k]` for the 16 rows r of each tile.
    dot = dot::dot: (stream: &Stream<'_>, out: &mut [[i32; 16]; TILES]);
    /// `out[i n + t][r] = sum over k of codes[i][r][k] * x[t][k]` for the 16 rows r of each tile and n rows of activations.
    few = few::few: (job: &Few<'_>, out: &mut [[i32; 16]]);
    /// `out[i] = sum over k of codes[r][k] * x[k]` for some rows, r the i-th of them.
    some_rows = zeros::some_rows: (job: &SomeRows<'_>, out: &mut [i32]);
    /// `sums[o] += sum over some columns j of codes[o][j] * x[j]`.
    some_columns = zeros::some_columns: (job: &SomeColumns<'_>, sums: &mut [[i32; 16]]);
    /// `sums[t][o] += sum over some columns j of codes[o][j] * x[t][j]`.
    few_columns = zeros::few_columns: (job: &FewColumns<'_>, sums: &mut [[i32; 16]]);
    /// Unpacks groups into four quads each, or what `multiply` takes as such; zeros for quads left over.
    unpack = block::unpack: (groups: &[Group], quads: &mut [Quad]);
    /// `sums[i][t] += codes[i] x[t]`, or `=` at the first columns.
    multiply = block::multiply: (block: &mut Block<'_>);
    /// Multiplies for nothing, `n` times so much.
    spin = spin::spin: (n: usize, out: &mut Spun);
}

#[cfg(test)]
mod tests {
    use bitnet_layout::random::Random;
    use bitnet_layout::{reference, row_tiles, words};

    use super::*;

    /// Every path on [`TILES`] tiles of `t` (16 tiles, k) and a row `x`, against the reference.
    fn check(k: usize, t: &[i8], x: &[i8]) {
        let n = 16 * TILES;
        let shape = words::Shape::new(n, k).unwrap();
        let mut packed = vec![0; shape.words()];
        words::pack_row(t, &mut packed);
        let mut tiles = vec![vec![[0; 16]; k / 16]; TILES];
        for (i, tile) in tiles.iter_mut().enumerate() {
            row_tiles::fill(&packed, k / 16, i, tile);
        }
        let mut expected = vec![0; n];
        reference::linear(shape, &packed, x, &mut expected);
        let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
        for simd in Simd::available() {
            let mut out = [[i32::MIN; 16]; TILES];
            let tiles = std::array::from_fn(|i| &tiles[i][..]);
            let stream = Stream {
                tiles,
                next: tiles,
                x: x.as_chunks().0,
            };
            (Integer::new(simd).unwrap().dot)(&stream, &mut out);
            let found: Vec<i32> = out.as_flattened().iter().map(|codes| codes - sum).collect();
            assert_eq!(found, expected, "{simd}, k = {k}");
        }
    }

    #[test]
    fn every_path_equals_the_reference() {
        let mut random = Random::new(1);
        // Every k around where a run of 16-bit sums ends and where reading ahead leaves a tile, then those of real models.
        for k in (16..=1200).step_by(16).chain([2560, 6912]) {
            let t: Vec<i8> = (0..16 * TILES * k)
                .map(|_| (random.word() % 3) as i8 - 1)
                .collect();
            let x: Vec<i8> = (0..k).map(|_| random.word() as i8).collect();
            check(k, &t, &x);
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        for k in [16, 256, 6912, 16384] {
            for t in [-1, 0, 1] {
                for x in [-128, -127, 127] {
                    check(k, &vec![t; 16 * TILES * k], &vec![x; k]);
                }
            }
        }
    }

    #[test]
    fn rows_are_independent() {
        let k = 64;
        for row in 0..16 * TILES {
            let mut t = vec![0; 16 * TILES * k];
            t[row * k..][..k].fill(1);
            let x: Vec<i8> = (0..k as i8).collect();
            check(k, &t, &x);
        }
    }
}
