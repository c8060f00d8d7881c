//! The products of a warpgroup, and the proxy in which they read shared memory.

use super::fault::FaultKind;
use super::lane::{checked, collective, place};
use super::products::Line;
use super::state::{State, with};
use core::panic::Location;
use std::format;
use std::vec::Vec;

pub(crate) fn async_proxy_fence() {
    with(State::async_proxy_fence);
}

/// A product of a warpgroup, of 64 bytes along k: what a lane gave.
#[derive(Debug)]
pub struct Product {
    name: &'static str,
    columns: u32,
    a: Operand,
    b: u32,
    /// Where piece (0..8) of a column of B, or of a row of a shared A, stands.
    at: fn(u32, u32) -> u32,
}

/// Where the rows of A are.
#[derive(Clone, Copy, Debug)]
enum Operand {
    /// In registers: a lane's fragments.
    Registers([[u32; 4]; 2]),
    /// In shared memory.
    Shared(u32),
}

impl Product {
    /// The product of 64 bytes along k that starts now: B must be there, and stay until [`Product::add`].
    #[track_caller]
    pub(crate) fn start(
        name: &'static str,
        columns: u32,
        a: [[u32; 4]; 2],
        b: u32,
        at: fn(u32, u32) -> u32,
    ) -> Vec<Self> {
        std::vec![Self::check(name, columns, Operand::Registers(a), b, at)]
    }

    /// The products of 128 bytes along k that start now: as [`Product::start`], with A as B.
    #[track_caller]
    pub(crate) fn of_shared(
        name: &'static str,
        columns: u32,
        a: u32,
        b: u32,
        at: fn(u32, u32) -> u32,
    ) -> Vec<Self> {
        let half = |bytes| Self::check(name, columns, Operand::Shared(a + bytes), b + bytes, at);
        std::vec![half(0), half(64)]
    }

    #[track_caller]
    fn check(name: &'static str, columns: u32, a: Operand, b: u32, at: fn(u32, u32) -> u32) -> Self {
        let caller = Location::caller();
        let product = Self {
            name,
            columns,
            a,
            b,
            at,
        };
        for col in 0..columns / 8 {
            product.line(caller, b, 8 * col + place().thread[0] % 32 / 4);
        }
        product.rows(caller);
        product
    }

    /// The bytes of a column of B, or a row of a shared A, of which each group of a warp checks its part.
    fn line(&self, caller: &'static Location<'static>, from: u32, line: u32) -> [u8; 64] {
        let (base, first, group) = (from & !1023, from % 1024 / 16, place().thread[0] % 32 / 4);
        checked(caller, |state| {
            if !matches!(from % 1024, 0 | 64) {
                let detail = format!("{} of shared byte {from}", self.name);
                return Err((FaultKind::Misaligned, detail));
            }
            let mut bytes = [0; 64];
            for (piece, bytes) in bytes.chunks_exact_mut(16).enumerate() {
                let address = base + (self.at)(line, first + piece as u32);
                let start = match line % 8 == group {
                    true => state.async_proxy_read(address, 16)?,
                    false => address as usize,
                };
                bytes.copy_from_slice(&state.block().shared.bytes[start..start + 16]);
            }
            Ok(bytes)
        })
    }

    /// Adds what the lane has of `A B`; `multiply` adds the products of a row and a column.
    #[track_caller]
    pub(crate) fn add<T: Copy>(&self, sums: &mut [T], multiply: fn(T, &Line, &Line) -> T) {
        let caller = Location::caller();
        let quad = place().thread[0] % 4;
        let rows = self.rows(caller);
        for j in 0..self.columns / 4 {
            // The groups of a warp read the same columns: each checks those of its own number.
            let column = self.line(caller, self.b, j / 2 * 8 + 2 * quad + j % 2);
            for (half, row) in rows.iter().enumerate() {
                let sum = &mut sums[(j / 2 * 4) as usize + 2 * half + (j % 2) as usize];
                let steps = row.as_chunks().0.iter().zip(column.as_chunks().0);
                *sum = steps.fold(*sum, |sum, (row, column)| multiply(sum, row, column));
            }
        }
    }

    /// The lane's two rows of A: of their words in registers each lane of its quad has a quarter.
    #[track_caller]
    fn rows(&self, caller: &'static Location<'static>) -> [[u8; 64]; 2] {
        let fragments = match self.a {
            Operand::Registers(fragments) => fragments,
            Operand::Shared(from) => {
                let lane = place().thread[0] % 128;
                let row = lane / 32 * 16 + lane % 32 / 4;
                return [self.line(caller, from, row), self.line(caller, from, row + 8)];
            }
        };
        let mut rows = [[0; 64]; 2];
        for (step, a) in fragments.into_iter().enumerate() {
            let data = [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0];
            for quad in 0..4 {
                let of_quad = |data: &[[u32; 10]; 32]| {
                    core::array::from_fn(|lane| core::array::from_fn(|i| data[lane / 4 * 4 + quad][i]))
                };
                let words = collective(self.name, u32::MAX, data, of_quad);
                for (i, word) in words.into_iter().enumerate() {
                    let at = 32 * step + 16 * (i / 2) + 4 * quad;
                    rows[i % 2][at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        rows
    }
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
            acc = acc.plus([a[0], a[1]], b).plus([a[2], a[3]], b.offset(16)).wait();
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
