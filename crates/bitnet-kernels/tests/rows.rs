//! Norms and scales of rows, in the emulator.

mod common;

use bitnet_kernels::rows::{NormRows, ScaleRows};
use common::{Random, same_for_all_seeds};

/// Rows of which groups are normed: whole ones, and heads in the middle of a row, in place.
#[test]
fn groups_of_rows_are_normed() {
    for (rows, groups, width, first, stride) in [(3, 1, 400, 0, 400), (2, 3, 100, 8, 332), (1, 2, 6, 0, 12)] {
        let mut random = Random::new(width as u64);
        let x: Vec<f32> = (0..rows * stride).map(|_| random.float()).collect();
        let norm: Vec<f32> = (0..width).map(|_| random.float() + 1.5).collect();
        let eps = 1e-3;
        for in_place in [true, false] {
            let found = same_for_all_seeds("norm", |emulator| {
                let from = emulator.buffer(&x);
                let to = if in_place { from } else { emulator.buffer(&x) };
                let params = NormRows {
                    x: from.offset(first),
                    norm: emulator.constant(&norm),
                    y: to.offset(first),
                    rows: rows as u32,
                    groups: groups as u32,
                    width: width as u32,
                    x_stride: stride as u32,
                    y_stride: stride as u32,
                    eps,
                };
                emulator.launch(&params.launch(), &params)?;
                emulator.read(to)
            });
            for (i, (&found, &before)) in found.iter().zip(&x).enumerate() {
                let (row, at) = (i / stride, i % stride);
                let Some(at) = at.checked_sub(first).filter(|at| *at < groups * width) else {
                    assert_eq!(found, before);
                    continue;
                };
                let group = &x[row * stride + first + at / width * width..][..width];
                let squares: f64 = group.iter().map(|&x| f64::from(x).powi(2)).sum();
                let rms = (squares / width as f64 + f64::from(eps)).sqrt();
                let expected = f64::from(before) / rms * f64::from(norm[at % width]);
                assert!((f64::from(found) - expected).abs() <= 1e-6 * expected.abs());
            }
        }
    }
}

#[test]
fn columns_take_their_place_and_scale() {
    let (rows, width, stride) = (3, 300, 301);
    let mut random = Random::new(1);
    let x: Vec<f32> = (0..rows * width).map(|_| random.float()).collect();
    let found = same_for_all_seeds("scale", |emulator| {
        let to = emulator.buffer(&vec![7.0; rows * stride]);
        let params = ScaleRows {
            x: emulator.constant(&x),
            y: to.offset(1),
            rows: rows as u32,
            width: width as u32,
            x_stride: width as u32,
            y_stride: stride as u32,
            scale: 0.75,
        };
        emulator.launch(&params.launch(), &params)?;
        emulator.read(to)
    });
    for (row, x) in found.chunks_exact(stride).zip(x.chunks_exact(width)) {
        assert_eq!(row[0], 7.0);
        assert!(row[1..].iter().zip(x).all(|(y, x)| *y == 0.75 * x));
    }
}
