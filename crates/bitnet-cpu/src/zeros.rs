//! The zeros of squared ReLU, left out exactly. Where a gate is not positive its output is zero whatever it gates, so that row need
//! not be multiplied; where an activation is zero, the column of weights that it meets need not be read. Rows for one token at a time,
//! columns for a few, where none of them needs most: they lie one by one in memory, beside the tiles that other products read.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bitnet_layout::Activation;
use bitnet_layout::row_tiles::{Group, ROWS};
use bitnet_layout::words::{self, CODES_PER_WORD};

use crate::activations::{self, Activations, Precision};
use crate::cpu::{Cpu, claim_bytes};
use crate::error::check_size;
use crate::float::{Finish, Sums, Write};
use crate::integer::{
    COLUMN_STEP, FewColumns, Line, OUTPUTS, SomeColumns, SomeRows, Stream, TILES, TOKEN_STEP,
};
use crate::matmul::{Output, Target};
use crate::matrix::TernaryMatrix;
use crate::memory::{Buffer, Pages};
use crate::nodes::Nodes;
use crate::pool::Shards;
use crate::{Error, Result, Simd};

/// Codes of a line.
const CODES: usize = 16 * size_of::<Line>() / 4;

/// Most columns whose activations a thread looks through at a time.
const SPAN: usize = 512;

/// Most rows of activations that leave columns out together: what none of them needs becomes little with more.
const MOST_TOKENS: usize = 8;

/// Rows that are asked for before the first is multiplied, where nothing else is to be done until they come.
const ROWS_AHEAD: usize = 16;

/// Products in a row that are made with all rows after one for which too many were needed; after each further such one about twice as many.
const REST: u32 = 31;

/// Most of them: where leaving rows out never pays, what trials cost must not be seen, and where it begins to, an answer has more tokens.
const MOST_REST: u32 = 255;

/// Tiles that are gated, between their gates and what these gate.
struct Unit {
    unit: usize,
    /// Of the gates, then of what they gate; those of rows that are left out are zero.
    sums: [[i32; ROWS]; 2 * TILES],
    /// Rows whose gate is positive.
    rows: [u32; TILES * ROWS],
    n_rows: usize,
}

/// Rows of a ternary matrix, one after the other.
#[derive(Debug)]
pub struct TernaryRows {
    n: usize,
    k: usize,
    /// Lines of a row.
    width: usize,
    lines: Buffer<Line>,
    /// Products that are to be made with all rows, because the last that was not needed too many.
    rest: AtomicU32,
    /// How many they were the last time, unless leaving out rows has paid since.
    last_rest: AtomicU32,
}

impl TernaryRows {
    /// Takes `n` rows of `k` columns in the canonical layout of [`bitnet_layout::words`].
    ///
    /// # Errors
    /// When the sizes do not fit each other, or memory cannot be had.
    pub fn new(n: usize, k: usize, words: &[u32]) -> Result<Self> {
        let (per_row, width) = check(n, k, words)?;
        let mut lines = lines(n, width)?;
        if per_row > 0 {
            for (row, lines) in words.chunks_exact(per_row).zip(lines.chunks_exact_mut(width)) {
                lines.as_flattened_mut()[..per_row].copy_from_slice(row);
            }
        }
        Ok(Self {
            n,
            k,
            width,
            lines,
            rest: AtomicU32::new(0),
            last_rest: AtomicU32::new(0),
        })
    }

    /// Moves the rows to the nodes of the threads that share them.
    pub(crate) fn spread(&mut self, nodes: &Nodes) -> Result<()> {
        self.lines.spread("rows of a weight matrix", nodes, 1)
    }

    /// What `n` rows of `k` columns take.
    #[must_use]
    pub fn bytes_of(n: usize, k: usize) -> u64 {
        (n * k.div_ceil(CODES) * size_of::<Line>()) as u64
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lines.bytes()
    }
}

/// Columns of a ternary matrix, one after the other.
#[derive(Debug)]
pub struct TernaryColumns {
    n: usize,
    k: usize,
    /// Lines of a column.
    width: usize,
    /// As [`SomeColumns::lines`].
    lines: Buffer<Line>,
}

impl TernaryColumns {
    /// Most rows of activations that they are multiplied with.
    pub const MOST_TOKENS: usize = MOST_TOKENS;

    /// Takes `n` rows of `k` columns in the canonical layout of [`bitnet_layout::words`].
    ///
    /// # Errors
    /// When the sizes do not fit each other, or memory cannot be had.
    pub fn new(cpu: &Cpu, n: usize, k: usize, words: &[u32]) -> Result<Self> {
        let (per_row, _) = check(n, k, words)?;
        let width = n.div_ceil(OUTPUTS);
        let mut lines = lines(k, width)?;
        // The columns of a word, one word of every row.
        let shared = Shards::new(&mut lines);
        cpu.pool.run(per_row, &|c, _| {
            // SAFETY: each word of a row has columns of its own.
            let columns = unsafe { shared.get(c * CODES_PER_WORD * width, CODES_PER_WORD * width) };
            let word = |row: usize| if row < n { words[row * per_row + c] } else { 0 };
            for (b, v, l) in (0..width).flat_map(|b| (0..64).map(move |i| (b, i / 16, i % 16))) {
                let planes: [u32; 4] = std::array::from_fn(|p| word(OUTPUTS * b + 64 * v + 16 * p + l));
                let at = 16 * (l / 4) + 4 * v + l % 4;
                for four in 0..4 {
                    let codes = |p: usize| (planes[p] >> (2 * four)) & 0x0303_0303;
                    let bytes = codes(0) | codes(1) << 2 | codes(2) << 4 | codes(3) << 6;
                    for (e, byte) in bytes.to_le_bytes().into_iter().enumerate() {
                        columns[(4 * four + e) * width + b][at / 4] |= u32::from(byte) << (8 * (at % 4));
                    }
                }
            }
        });
        Ok(Self { n, k, width, lines })
    }

    /// What `n` rows of `k` columns take.
    #[must_use]
    pub fn bytes_of(n: usize, k: usize) -> u64 {
        (k * n.div_ceil(OUTPUTS) * size_of::<Line>()) as u64
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lines.bytes()
    }
}

/// Words and lines of a row.
fn check(n: usize, k: usize, words: &[u32]) -> Result<(usize, usize)> {
    check_size("columns past a multiple of 16", k % CODES_PER_WORD, 0)?;
    let shape = words::Shape::new(n.max(1), k.max(CODES_PER_WORD));
    let (what, bytes) = ("a weight matrix", usize::MAX);
    shape.map_err(|_| Error::Memory { what, bytes })?;
    check_size("words of a weight matrix", words.len(), n * (k / CODES_PER_WORD))?;
    Ok((k / CODES_PER_WORD, k.div_ceil(CODES)))
}

fn lines(n: usize, width: usize) -> Result<Buffer<Line>> {
    let (what, bytes) = ("a weight matrix", usize::MAX);
    let len = n.checked_mul(width).ok_or(Error::Memory { what, bytes })?;
    Buffer::zeroed(what, len, Pages::Huge)
}

impl Cpu {
    /// Of a hundred rows, how many are needed at most where leaving out the others pays: a row alone is read at half the bandwidth of
    /// streams, and multiplied with one instruction more where vectors are short.
    fn most_rows(&self) -> u64 {
        match self.simd() {
            Simd::Amx | Simd::Avx512Vnni => 33,
            _ => 20,
        }
    }

    /// The same of columns, for some rows of activations. Columns are put together before they are multiplied, which short vectors do
    /// slowly, and each thread has sums of all outputs, which come together at the end: sixteen of them lose whatever they leave out.
    fn most_columns(&self, n_tokens: usize) -> usize {
        let most: usize = match self.simd() {
            Simd::Amx | Simd::Avx512Vnni if n_tokens == 1 => 36,
            Simd::Amx | Simd::Avx512Vnni => 28,
            _ => 24,
        };
        most.saturating_sub(2 * self.n_threads())
    }

    /// As [`Cpu::matmul_gated`] with squared ReLU, for one row of activations of 8 bits; `up` has the second half of the rows of
    /// `w`, and only those are multiplied whose gate is positive, unless most gates have been lately.
    ///
    /// # Panics
    /// As [`Cpu::matmul_gated`]; when there is not one row of activations of 8 bits, or `up` is not of that shape.
    pub fn matmul_gated_some(
        &self,
        w: &TernaryMatrix,
        up: &TernaryRows,
        a: &mut Activations,
        out: &mut [f32],
    ) {
        let rest = up.rest.load(Ordering::Relaxed);
        if rest > 0 {
            up.rest.store(rest - 1, Ordering::Relaxed);
            self.matmul_gated(w, a, Activation::Relu2, out);
            a.zeros.counts.rows += up.n as u64;
            a.zeros.counts.of_rows += up.n as u64;
            return;
        }
        let before = a.zeros.counts.rows;
        self.some_rows(w, up, a, out);
        let needed = a.zeros.counts.rows - before;
        let mut rest = 0;
        if 100 * needed > self.most_rows() * up.n as u64 {
            rest = (2 * up.last_rest.load(Ordering::Relaxed) + 1).clamp(REST, MOST_REST);
        }
        up.rest.store(rest, Ordering::Relaxed);
        up.last_rest.store(rest, Ordering::Relaxed);
    }

    /// The same, whatever is less work.
    fn some_rows(&self, w: &TernaryMatrix, up: &TernaryRows, a: &mut Activations, out: &mut [f32]) {
        let n = w.n() / 2;
        assert!(w.n() == 2 * n && n.is_multiple_of(ROWS), "{} rows", w.n());
        assert!(
            (up.n, up.k) == (n, w.k()) && a.k == w.k(),
            "rows and columns that are gated"
        );
        assert!(a.n_tokens == 1 && a.precision == Precision::Int8);
        assert_eq!(out.len(), n, "size of the output");
        let x = &a.q[..activations::steps(a.k)].as_flattened()[..a.k];
        a.zeros.spread(x, up.width);
        let (x, lines) = (x.as_chunks().0, &a.zeros.x[..]);
        let n_tiles = n / ROWS;
        let n_units = n_tiles.div_ceil(TILES);
        let unit_bytes = TILES * ROWS * w.k() / 4;
        let units_at_once = (claim_bytes(n_units * unit_bytes, self.n_threads()) / unit_bytes).max(1);
        let tiles = |unit: usize| -> [&[Group]; TILES] {
            let first = unit.min(n_units - 1) * TILES;
            std::array::from_fn(|i| w.tile((first + i).min(n_tiles - 1)).0)
        };
        // No sum of products is larger, not even of codes.
        let most = (2 * 128 * a.k) as f32 * a.inverse[0];
        let n_rows = AtomicU64::new(0);
        let out = Shards::new(out);
        let job = |unit: usize| {
            let columns = unit * TILES..n_tiles.min((unit + 1) * TILES);
            let job = Sums {
                sums: &[],
                stride: 1,
                sum: &a.sum,
                inverse: &a.inverse,
                scales: &w.scales()[columns.clone()],
                gated: &w.scales()[n_tiles..][columns.clone()],
                finish: Finish::Gate(Activation::Relu2),
            };
            (columns, job)
        };
        let gates = |unit: usize| {
            let (columns, job) = job(unit);
            let mut found = Unit {
                unit,
                sums: [[0; ROWS]; 2 * TILES],
                rows: [0; TILES * ROWS],
                n_rows: 0,
            };
            let mut sums = [[0; ROWS]; TILES];
            let (tiles, next) = (tiles(unit), tiles(unit + 1));
            (self.integer.dot)(&Stream { tiles, next, x }, &mut sums);
            let mut gates = [0.0; TILES * ROWS];
            let gates = &mut gates[..columns.len() * ROWS];
            let finish = Finish::Write(Write::Replace);
            (self.float.finish)(
                &Sums {
                    sums: &sums,
                    finish,
                    ..job
                },
                &mut [&mut *gates],
            );
            found.sums[..columns.len()].copy_from_slice(&sums[..columns.len()]);
            // Zero times what is not finite would not be zero.
            let scales = job.gated.as_flattened();
            let is_safe = scales.iter().all(|scale| (scale * most).is_finite());
            for (row, gate) in (columns.start * ROWS..).zip(gates.iter()) {
                found.rows[found.n_rows] = row as u32;
                // A gate that is no number counts too.
                let is_needed = !is_safe || !matches!(gate.partial_cmp(&0.0), Some(c) if c.is_le());
                found.n_rows += usize::from(is_needed);
            }
            found
        };
        let multiply = |rows: &[u32], later: &[u32], products: &mut [i32]| {
            let job = SomeRows {
                lines: &up.lines,
                rows,
                later,
                x: lines,
            };
            (self.integer.some_rows)(&job, products);
        };
        let ups = |unit: &mut Unit, later: &[u32]| {
            let (columns, job) = job(unit.unit);
            let (rows, mut products) = (&unit.rows[..unit.n_rows], [0; TILES * ROWS]);
            multiply(rows, later, &mut products[..rows.len()]);
            let sums = unit.sums[columns.len()..].as_flattened_mut();
            for (&row, product) in rows.iter().zip(products) {
                sums[row as usize - columns.start * ROWS] = product;
            }
            // SAFETY: each tile is in one chunk.
            let out = unsafe { out.get(columns.start * ROWS, columns.len() * ROWS) };
            let sums = &unit.sums;
            (self.float.finish)(&Sums { sums, ..job }, &mut [out]);
        };
        self.pool.run(n_units.div_ceil(units_at_once), &|chunk, _| {
            let units = chunk * units_at_once..n_units.min((chunk + 1) * units_at_once);
            let mut before = gates(units.start);
            let mut n_of_chunk = before.n_rows as u64;
            // Rows are multiplied after the gates of the next unit, and come from memory meanwhile; where there is none, after some others.
            let (mut ask, mut later) = (before.n_rows, 0..0);
            if units.len() == 1 {
                ask = ask.min(ROWS_AHEAD);
                later = ask..before.n_rows;
            }
            multiply(&[], &before.rows[..ask], &mut []);
            for unit in units.skip(1) {
                let now = gates(unit);
                n_of_chunk += now.n_rows as u64;
                ups(&mut before, &now.rows[..now.n_rows]);
                before = now;
            }
            let rows = before.rows;
            ups(&mut before, &rows[later]);
            n_rows.fetch_add(n_of_chunk, Ordering::Relaxed);
        });
        a.zeros.counts.rows += n_rows.into_inner();
        a.zeros.counts.of_rows += n as u64;
    }

    /// As [`Cpu::matmul`], for 1 to [`TernaryColumns::MOST_TOKENS`] rows of activations of 8 bits: `columns` has those of `w`, and
    /// those that meet nothing but zeros are not read, where leaving them out is less work.
    ///
    /// # Panics
    /// As [`Cpu::matmul`]; when there are more rows of activations, they are not of 8 bits, or `columns` is not of the shape of `w`.
    pub fn matmul_some(
        &self,
        w: &TernaryMatrix,
        columns: &TernaryColumns,
        a: &mut Activations,
        output: Output<'_>,
    ) {
        assert!((1..=MOST_TOKENS).contains(&a.n_tokens) && a.precision == Precision::Int8);
        let most = self.most_columns(a.n_tokens);
        if most == 0 || 100 * a.n_nonzero() > most * a.k {
            self.matmul(w, a, output);
            a.zeros.counts.columns += a.k as u64;
            a.zeros.counts.of_columns += a.k as u64;
        } else {
            self.some_columns(w, columns, a, output);
        }
    }

    /// The same, whatever is less work.
    fn some_columns(
        &self,
        w: &TernaryMatrix,
        columns: &TernaryColumns,
        a: &mut Activations,
        output: Output<'_>,
    ) {
        assert!(
            (columns.n, columns.k) == (w.n(), w.k()) && a.k == w.k(),
            "shape of the columns"
        );
        let n_tokens = a.n_tokens;
        let rows_end = n_tokens * output.stride;
        assert!(rows_end <= output.data.len(), "rows of the output");
        let target = Target::new(w.n(), output);
        let n_threads = self.n_threads();
        let per_row = columns.width * OUTPUTS / ROWS;
        let per_thread = n_tokens * per_row;
        let room = &mut a.zeros;
        if room.is_dirty {
            room.sums.clear();
        }
        if room.sums.len() < n_threads * per_thread {
            room.sums.resize(n_threads * per_thread, [0; ROWS]);
        }
        room.is_dirty = true;
        let q = &a.q[..];
        let span = a.k.div_ceil(4 * n_threads).clamp(COLUMN_STEP, SPAN);
        let span = span.next_multiple_of(COLUMN_STEP);
        let n_columns = AtomicU64::new(0);
        let sums = Shards::new(&mut room.sums);
        self.pool.run(a.k.div_ceil(span), &|chunk, thread| {
            let steps = chunk * span / COLUMN_STEP..activations::steps(a.k.min((chunk + 1) * span));
            let (mut ids, mut values, mut n) = ([0_u32; SPAN + 4], [[0_i8; SPAN + 4]; MOST_TOKENS], 0);
            for step in steps.clone() {
                let rows = match n_tokens {
                    1 => &q[step..][..1],
                    _ => &q[step * TOKEN_STEP..][..n_tokens],
                };
                for (i, any) in (0..).zip(activations::any(rows)) {
                    ids[n] = (step * COLUMN_STEP) as u32 + i;
                    for (values, row) in values.iter_mut().zip(rows) {
                        values[n] = row[i as usize];
                    }
                    n += usize::from(any != 0);
                }
            }
            n_columns.fetch_add(n as u64, Ordering::Relaxed);
            // Up to a whole number of fours, zeros times some column.
            ids[n..n + 4].fill((steps.start * COLUMN_STEP) as u32);
            values.iter_mut().for_each(|values| values[n..n + 4].fill(0));
            let n = n.next_multiple_of(4);
            let quads = ids[..n].as_chunks().0;
            let x = values.each_ref().map(|values| values[..n].as_chunks().0);
            let (lines, width) = (&columns.lines[..], columns.width);
            // SAFETY: `thread` differs between calls that run at one time.
            let sums = unsafe { sums.get(thread * per_thread, per_thread) };
            if n_tokens == 1 {
                let x = x[0];
                (self.integer.some_columns)(
                    &SomeColumns {
                        lines,
                        width,
                        quads,
                        x,
                    },
                    sums,
                );
            } else {
                let x = &x[..n_tokens];
                (self.integer.few_columns)(
                    &FewColumns {
                        lines,
                        width,
                        quads,
                        x,
                    },
                    sums,
                );
            }
        });
        let n_tiles = w.n().div_ceil(ROWS);
        let at_once = n_tiles.div_ceil(n_threads).max(TILES);
        self.pool.run(n_tiles.div_ceil(at_once), &|chunk, _| {
            let tiles = chunk * at_once..n_tiles.min((chunk + 1) * at_once);
            let mut all = [[0; ROWS]; TILES * MOST_TOKENS];
            for first in tiles.clone().step_by(TILES) {
                let part = first..tiles.end.min(first + TILES);
                all.fill([0; ROWS]);
                for (thread, token) in (0..n_threads).flat_map(|i| (0..n_tokens).map(move |t| (i, t))) {
                    let at = thread * per_thread + token * per_row + part.start;
                    // SAFETY: each tile is in one chunk.
                    let sums = unsafe { sums.get(at, part.len()) };
                    let all = all[token..].iter_mut().step_by(n_tokens);
                    for (all, sums) in all.zip(sums) {
                        all.iter_mut().zip(&*sums).for_each(|(all, sum)| *all += sum);
                        *sums = [0; ROWS];
                    }
                }
                let job = Sums {
                    sums: &all,
                    stride: n_tokens,
                    sum: &a.sum,
                    inverse: &a.inverse,
                    scales: &w.scales()[part.clone()],
                    gated: &[],
                    finish: target.finish,
                };
                let mut rows: [&mut [f32]; MOST_TOKENS] = Default::default();
                for (token, row) in rows[..n_tokens].iter_mut().enumerate() {
                    // SAFETY: as above, and each token is in one step of this loop.
                    *row = unsafe { target.get(part.start, part.len(), token) };
                }
                (self.float.finish)(&job, &mut rows[..n_tokens]);
            }
        });
        let room = &mut a.zeros;
        room.is_dirty = false;
        room.counts.columns += n_columns.into_inner();
        room.counts.of_columns += a.k as u64;
    }
}
