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
