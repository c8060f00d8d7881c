//! Products that leave out what is known to be zero: some rows of a matrix, or some of its columns.
#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over arrays are what becomes registers"
)]

use super::isa::Isa;

/// 256 codes: four planes of 64 bytes, as words or as bytes.
pub(crate) type Line = [u32; 16];

/// Rows that are read side by side.
const ROWS_AT_ONCE: usize = 4;

/// Fours of columns whose sums stay in registers; the next so many are asked for meanwhile.
const QUADS_AT_ONCE: usize = 6;

/// Outputs of a line of a column.
pub(crate) const OUTPUTS: usize = 256;

/// Fours of columns that are unpacked at a time for several rows of activations.
const QUADS_UNPACKED: usize = 16;

/// Some rows of a matrix, and the activations.
#[derive(Clone, Copy)]
pub(crate) struct SomeRows<'a> {
    /// All rows, in words of 16 columns, line by line.
    pub(crate) lines: &'a [Line],
    /// Numbers of the rows.
    pub(crate) rows: &'a [u32],
    /// Those of rows to be multiplied later, which are asked for.
    pub(crate) later: &'a [u32],
    /// Activations by line of a row, then plane: lane l of plane p has those of columns `16 l + 4 p ..` of the line.
    pub(crate) x: &'a [[Line; 4]],
}

/// `out[i] = sum over k of codes[rows[i]][k] * x[k]`.
///
/// # Panics
/// When there are not as many rows as results, or one is not there.
#[inline(always)]
pub(super) fn some_rows<I: Isa>(isa: I, job: &SomeRows<'_>, out: &mut [i32]) {
    assert_eq!(job.rows.len(), out.len(), "rows and results");
    let width = job.x.len();
    let line = |row: u32| job.lines.as_ptr().wrapping_add(row as usize * width);
    let mut later = job.later.chunks(ROWS_AT_ONCE);
    for (out, rows) in out.chunks_mut(ROWS_AT_ONCE).zip(job.rows.chunks(ROWS_AT_ONCE)) {
        // In the place of rows past the last stands the last.
        let (last, ask) = (rows[rows.len() - 1], later.next().unwrap_or_default());
        let (mut lines, mut next) = ([&[][..]; ROWS_AT_ONCE], [std::ptr::null::<Line>(); ROWS_AT_ONCE]);
        for r in 0..ROWS_AT_ONCE {
            let row = *rows.get(r).unwrap_or(&last);
            lines[r] = &job.lines[row as usize * width..][..width];
            next[r] = line(*ask.get(r).unwrap_or(&last));
        }
        let products = four_rows(isa, lines, next, job.x);
        out.copy_from_slice(&products[..out.len()]);
    }
    for &row in later.flatten() {
        for c in 0..width {
            isa.prefetch_far(line(row).wrapping_add(c));
        }
    }
}

#[inline(always)]
fn four_rows<I: Isa>(
    isa: I,
    rows: [&[Line]; ROWS_AT_ONCE],
    next: [*const Line; ROWS_AT_ONCE],
    x: &[[Line; 4]],
) -> [i32; ROWS_AT_ONCE] {
    let mut out = [0; ROWS_AT_ONCE];
    let run = const { I::RUN / 4 };
    let mut first = 0;
    while first < x.len() {
        let end = x.len().min(first.saturating_add(run));
        let mut sums = [isa.zero(); ROWS_AT_ONCE];
        for c in first..end {
            for r in 0..ROWS_AT_ONCE {
                isa.prefetch_far(next[r].wrapping_add(c));
                let mut words = isa.load(&rows[r][c]);
                for p in 0..4 {
                    sums[r] = isa.add_lanes(sums[r], isa.plane(words), isa.load(&x[c][p]));
                    words = isa.next(words);
                }
            }
        }
        for r in 0..ROWS_AT_ONCE {
            let mut lanes = [0; 16];
            isa.flush(sums[r], &mut lanes);
            out[r] += lanes.iter().sum::<i32>();
        }
        first = end;
    }
    out
}

/// Some columns of a matrix, four at a time, and their activations.
#[derive(Clone, Copy)]
pub(crate) struct SomeColumns<'a> {
    /// All columns, line by line of [`OUTPUTS`] outputs: the code of output o of a line is at bits `2 p` of byte
    /// `16 (l / 4) + 4 v + l % 4`, where `o = 64 v + 16 p + l`.
    pub(crate) lines: &'a [Line],
    /// Lines of a column.
    pub(crate) width: usize,
    /// Numbers of the columns.
    pub(crate) quads: &'a [[u32; 4]],
    /// What they are multiplied with.
    pub(crate) x: &'a [[i8; 4]],
}

/// `sums[o] += sum over the columns j of codes[o][j] * x[j]`, 16 outputs after 16.
///
/// # Panics
/// When there are not as many activations as columns, not as many sums as outputs, or a column is not there.
#[inline(always)]
pub(super) fn some_columns<I: Isa>(isa: I, job: &SomeColumns<'_>, sums: &mut [[i32; 16]]) {
    const { assert!(QUADS_AT_ONCE <= I::RUN) };
    assert!(
        job.x.len() == job.quads.len() && sums.len() == 16 * job.width,
        "columns and outputs"
    );
    for &column in job.quads.iter().take(QUADS_AT_ONCE).flatten() {
        for b in 0..job.width {
            isa.prefetch_far(job.lines.as_ptr().wrapping_add(column as usize * job.width + b));
        }
    }
    for (i, x) in job.x.chunks(QUADS_AT_ONCE).enumerate() {
        let (quads, next) = job.quads[QUADS_AT_ONCE * i..].split_at(x.len());
        let part = Part { quads, x, next };
        for (b, sums) in sums.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            if const { I::HELD >= 16 } {
                in_line::<I, 4>(isa, job, part, b, 0, sums);
            } else {
                for v in 0..4 {
                    let next = if v == 0 { next } else { &[] };
                    in_line::<I, 1>(isa, job, Part { next, ..part }, b, v, sums);
                }
            }
        }
    }
}

/// Columns whose sums stay in registers.
#[derive(Clone, Copy)]
struct Part<'a> {
    quads: &'a [[u32; 4]],
    x: &'a [[i8; 4]],
    /// Those that come next.
    next: &'a [[u32; 4]],
}

/// Line `b` of some columns, `V` times 64 outputs from `64 v` on, while columns that come next are asked for.
#[inline(always)]
fn in_line<I: Isa, const V: usize>(
    isa: I,
    job: &SomeColumns<'_>,
    part: Part<'_>,
    b: usize,
    v: usize,
    out: &mut [[i32; 16]; 16],
) {
    let mut sums = [[isa.zero(); 4]; V];
    for (i, (quad, &x)) in part.quads.iter().zip(part.x).enumerate() {
        let mut lines = [isa.load(&job.lines[quad[0] as usize * job.width + b]); 4];
        for j in 1..4 {
            lines[j] = isa.load(&job.lines[quad[j] as usize * job.width + b]);
        }
        if let Some(next) = part.next.get(i) {
            for &column in next {
                isa.prefetch_far(job.lines.as_ptr().wrapping_add(column as usize * job.width + b));
            }
        }
        let quads = isa.interleave(lines);
        let x = isa.four(x);
        for i in 0..V {
            let mut words = quads[v + i];
            for p in 0..4 {
                sums[i][p] = isa.add(sums[i][p], isa.plane(words), x);
                words = isa.next(words);
            }
        }
    }
    for i in 0..V {
        for p in 0..4 {
            isa.flush(sums[i][p], &mut out[4 * (v + i) + p]);
        }
    }
}

/// Some columns of a matrix, four at a time, and a few rows of activations.
#[derive(Clone, Copy)]
pub(crate) struct FewColumns<'a> {
    /// As [`SomeColumns::lines`].
    pub(crate) lines: &'a [Line],
    /// Lines of a column.
    pub(crate) width: usize,
    /// Numbers of the columns.
    pub(crate) quads: &'a [[u32; 4]],
    /// By row of activations, what they are multiplied with.
    pub(crate) x: &'a [&'a [[i8; 4]]],
}

/// `sums[t][o] += sum over the columns j of codes[o][j] * x[t][j]`, 16 outputs after 16, a row of activations after the other: columns
/// are read, and put together, once for all of them.
///
/// # Panics
/// When there are not as many activations as columns, not as many sums as outputs, or a column is not there.
#[inline(always)]
pub(super) fn few_columns<I: Isa>(isa: I, job: &FewColumns<'_>, sums: &mut [[i32; 16]]) {
    const { assert!(QUADS_UNPACKED <= I::RUN) };
    let per_row = 16 * job.width;
    assert!(
        job.x.iter().all(|x| x.len() == job.quads.len()) && sums.len() == job.x.len() * per_row,
        "columns and outputs"
    );
    let line = |column: u32, b: usize| column as usize * job.width + b;
    for &column in job.quads.iter().take(QUADS_UNPACKED).flatten() {
        for b in 0..job.width {
            isa.prefetch_far(job.lines.as_ptr().wrapping_add(line(column, b)));
        }
    }
    let mut unpacked = [[[0; 16]; QUADS_UNPACKED]; 4];
    for first in (0..job.quads.len()).step_by(QUADS_UNPACKED) {
        let (quads, next) = job.quads[first..].split_at(QUADS_UNPACKED.min(job.quads.len() - first));
        for b in 0..job.width {
            for (i, quad) in quads.iter().enumerate() {
                let mut lines = [isa.load(&job.lines[line(quad[0], b)]); 4];
                for j in 1..4 {
                    lines[j] = isa.load(&job.lines[line(quad[j], b)]);
                }
                for &column in next.get(i).into_iter().flatten() {
                    isa.prefetch_far(job.lines.as_ptr().wrapping_add(line(column, b)));
                }
                for (v, words) in isa.interleave(lines).into_iter().enumerate() {
                    isa.store(words, &mut unpacked[v][i]);
                }
            }
            for (v, unpacked) in unpacked.iter().enumerate() {
                let unpacked = &unpacked[..quads.len()];
                let at = 16 * b + 4 * v;
                let mut row = 0;
                while row < job.x.len() {
                    let (x, sums) = (&job.x[row..], &mut sums[row * per_row + at..]);
                    // As many rows as registers hold sums of four planes.
                    row += match x.len() {
                        1 => in_rows::<I, 1>(isa, unpacked, x, first, sums, per_row),
                        2 if const { I::HELD >= 8 } => {
                            in_rows::<I, 2>(isa, unpacked, x, first, sums, per_row)
                        }
                        3 if const { I::HELD >= 12 } => {
                            in_rows::<I, 3>(isa, unpacked, x, first, sums, per_row)
                        }
                        4.. if const { I::HELD >= 16 } => {
                            in_rows::<I, 4>(isa, unpacked, x, first, sums, per_row)
                        }
                        _ => in_rows::<I, 1>(isa, unpacked, x, first, sums, per_row),
                    };
                }
            }
        }
    }
}

/// Fours of columns of 64 outputs, put together, with `T` rows of activations from the `first` on, whose sums are `per_row` apart.
#[inline(always)]
fn in_rows<I: Isa, const T: usize>(
    isa: I,
    unpacked: &[[u32; 16]],
    x: &[&[[i8; 4]]],
    first: usize,
    out: &mut [[i32; 16]],
    per_row: usize,
) -> usize {
    let mut rows = [&[][..]; T];
    for t in 0..T {
        rows[t] = &x[t][first..][..unpacked.len()];
    }
    let mut sums = [[isa.zero(); 4]; T];
    for (i, words) in unpacked.iter().enumerate() {
        let mut words = isa.load(words);
        let mut four = [isa.four(rows[0][i]); T];
        for t in 1..T {
            four[t] = isa.four(rows[t][i]);
        }
        for p in 0..4 {
            let plane = isa.plane(words);
            for t in 0..T {
                sums[t][p] = isa.add(sums[t][p], plane, four[t]);
            }
            words = isa.next(words);
        }
    }
    for t in 0..T {
        for p in 0..4 {
            isa.flush(sums[t][p], &mut out[t * per_row + p]);
        }
    }
    T
}
