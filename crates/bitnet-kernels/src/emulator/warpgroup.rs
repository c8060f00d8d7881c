//! The products of a warpgroup, and the proxy in which they read shared memory.

use super::fault::FaultKind;
use super::lane::{checked, collective, place};
use super::state::{State, with};
use core::panic::Location;
use std::format;

pub(crate) fn async_proxy_fence() {
    with(State::async_proxy_fence);
}

/// Adds what a lane has of `A B`, A (64, 128) and B (128, 128) of signed bytes. `a[s]` has the lane's words of columns `32 s ..`; piece
/// `p` of B's column c is the 16 bytes at `b + at(c, p)`.
#[track_caller]
pub(crate) fn mma(
    name: &'static str,
    acc: &mut [i32; 64],
    a: [[u32; 4]; 4],
    b: u32,
    at: fn(u32, u32) -> u32,
) {
    let caller = Location::caller();
    checked(caller, |_| match b.is_multiple_of(1024) {
        true => Ok(()),
        false => Err((FaultKind::Misaligned, format!("{name} of shared byte {b}"))),
    });
    let (group, quad) = (place().thread[0] % 32 / 4, place().thread[0] % 4);
    let rows = rows_of_quad(name, a);
    for j in 0..32 {
        let col = j / 2 * 8 + 2 * quad + j % 2;
        let column: [i8; 128] = checked(caller, |state| {
            let mut column = [0; 128];
            for (piece, bytes) in column.chunks_exact_mut(16).enumerate() {
                let address = b + at(col, piece as u32);
                // The groups of a warp read the same columns: each checks its part of them.
                let start = match j % 8 == group {
                    true => state.async_proxy_read(address, 16)?,
                    false => address as usize,
                };
                let source = &state.block().shared.bytes[start..start + 16];
                bytes
                    .iter_mut()
                    .zip(source)
                    .for_each(|(to, &from)| *to = from as i8);
            }
            Ok(column)
        });
        for (half, row) in rows.iter().enumerate() {
            let products = row
                .iter()
                .zip(&column)
                .map(|(&a, &b)| i32::from(a) * i32::from(b));
            acc[(j / 2 * 4) as usize + 2 * half + (j % 2) as usize] += products.sum::<i32>();
        }
    }
}

/// The lane's two rows of A, of whose words each lane of its quad has a quarter.
#[track_caller]
fn rows_of_quad(name: &'static str, a: [[u32; 4]; 4]) -> [[i8; 128]; 2] {
    let mut rows = [[0; 128]; 2];
    for (step, a) in a.into_iter().enumerate() {
        let data = [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0];
        for quad in 0..4 {
            let of_quad = |data: &[[u32; 10]; 32]| {
                core::array::from_fn(|lane| core::array::from_fn(|i| data[lane / 4 * 4 + quad][i]))
            };
            let words = collective(name, u32::MAX, data, of_quad);
            for (i, word) in words.into_iter().enumerate() {
                let at = 32 * step + 16 * (i / 2) + 4 * quad;
                rows[i % 2][at..at + 4].copy_from_slice(&word.to_le_bytes().map(|byte| byte as i8));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    // The macro makes public structs; these have nobody to be public to.
    #![allow(unreachable_pub)]

    use super::super::{Emulator, Fault};
    use super::FaultKind;
    use crate::intrinsics::*;
    use crate::{Global, Launch};
    use std::vec::Vec;

    kernel! {
        /// `y = A x` of a warpgroup; `x` (128 columns, 128) i8, `y` (128 columns, 64), A what [`a_word`] says.
        product, block = [128, 1, 1], body = run;
        pub struct Product {
            /// B, four bytes a word.
            pub x: Global<u32>,
            /// Products.
            pub y: Global<i32>,
            /// Which bug to plant, 0 for none.
            pub bug: u32,
        }
    }

    /// The bytes of A in row `row`, columns `4 word ..`.
    fn a_word(row: u32, word: u32) -> u32 {
        (row * 32 + word).wrapping_mul(0x9e37_79b9) ^ row
    }

    unsafe fn run(p: Product) {
        let (lane, place) = (thread_idx_x(), if p.bug == 3 { 512 } else { 1024 });
        let row = lane / 32 * 16 + lane % 32 / 4;
        let b = Shared::<u32>::at(place);
        let a = [0, 1, 2, 3]
            .map(|step| [0, 1, 2, 3].map(|i| a_word(row + i % 2 * 8, 8 * step + i / 2 * 4 + lane % 4)));
        let mut acc = [1; 64];
        // SAFETY: the emulator checks what this kernel breaks on purpose.
        unsafe {
            for piece in 0..8 {
                let to = Shared::at(place + swizzled_128(lane, piece));
                async_copy_16::<u32>(to, p.x.offset((lane * 32 + piece * 4) as usize));
            }
            async_copy_commit();
            async_copy_wait::<0>();
            if p.bug != 1 {
                async_proxy_fence();
            }
            if p.bug != 2 {
                sync_threads();
            }
            warpgroup_mma_m64n128k128_s8(&mut acc, a, b);
            for (i, sum) in acc.into_iter().enumerate() {
                let col = i as u32 / 4 * 8 + lane % 4 * 2 + i as u32 % 2;
                p.y.store((col * 64 + row + i as u32 % 4 / 2 * 8) as usize, sum);
            }
        }
    }

    fn launch(seed: u64, bug: u32) -> Result<(Vec<u32>, Vec<i32>), Fault> {
        let x: Vec<u32> = (0..128 * 32)
            .map(|i: u32| i.wrapping_mul(0x85eb_ca6b) ^ 7)
            .collect();
        let mut emulator = Emulator::new(seed);
        let y = emulator.uninit(128 * 64);
        let product = Product {
            x: emulator.constant(&x),
            y,
            bug,
        };
        let launch = Launch {
            grid: [1, 1, 1],
            block: [128, 1, 1],
            shared_bytes: 1024 + 128 * 128,
        };
        emulator.launch(&launch, &product)?;
        Ok((x, emulator.read(y)?))
    }

    #[test]
    fn a_warpgroup_multiplies_exactly() {
        let (x, y) = launch(0, 0).unwrap();
        let bytes = |word: u32| word.to_le_bytes().map(|byte| i32::from(byte as i8));
        for (col, (x, y)) in x.chunks_exact(32).zip(y.chunks_exact(64)).enumerate() {
            for (row, &y) in y.iter().enumerate() {
                let words = x.iter().enumerate();
                let products = words.flat_map(|(i, &x)| {
                    let a = bytes(a_word(row as u32, i as u32));
                    (0..4).map(move |j| a[j] * bytes(x)[j])
                });
                assert_eq!(y, 1 + products.sum::<i32>(), "row {row}, column {col}");
            }
        }
    }

    #[test]
    fn what_no_fence_and_no_barrier_orders_is_found() {
        for seed in 0..4 {
            let kind = |bug| launch(seed, bug).unwrap_err().kind;
            assert_eq!(kind(1), FaultKind::Race);
            let found = kind(2);
            assert!(
                matches!(
                    found,
                    FaultKind::Race | FaultKind::Unwritten | FaultKind::InFlight
                ),
                "{found:?}"
            );
            assert_eq!(kind(3), FaultKind::Misaligned);
        }
    }
}
