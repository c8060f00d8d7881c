//! Ternary projections: norm, quantize, multiply.

use bitnet_cpu::{Activations, Cpu, Norm, Output, TernaryColumns, TernaryMatrix, TernaryRows, Write};

use super::check_len;
use crate::{Config, Error, Result, TernaryTensor};

/// Projections of one input: one matrix, or one for each projection where each norms that input in its own way.
pub(super) struct Linear {
    pub(super) n: usize,
    /// Inputs; those of the matrices are filled up to whole words.
    k: usize,
    parts: Vec<Part>,
    /// What one token, or a few, need to leave zeros out.
    zeros: Zeros,
}

/// Copies of a matrix in which a part can be read alone.
enum Zeros {
    None,
    /// Of the rows that are gated.
    Rows(TernaryRows),
    Columns(TernaryColumns),
}

/// Which zeros a layer can leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    Nothing,
    /// Of what its second half of rows is multiplied with.
    Gated,
    /// Of its input.
    Input,
}

pub(super) struct Part {
    first_row: usize,
    matrix: TernaryMatrix,
    input_norm: Option<Vec<f32>>,
}

/// The rows a linear layer is applied to, and the norm before it.
pub(super) struct Input<'a> {
    pub(super) x: &'a [f32],
    pub(super) norm: Option<&'a [f32]>,
}

impl Linear {
    pub(super) fn new(
        cpu: &Cpu,
        c: &Config,
        name: &str,
        w: TernaryTensor,
        (n, k): (usize, usize),
        skip: Skip,
    ) -> Result<Self> {
        check_len(&format!("rows of {name}"), w.n, n)?;
        check_len(&format!("columns of {name}"), w.k, k.next_multiple_of(16))?;
        let per_row = w.k / 16;
        let build = |rows: usize, words: &[u32], segments: &[(usize, f32)]| {
            TernaryMatrix::new(rows, w.k, words, segments)
                .map_err(|error| Error::Device(format!("{name}: {error}")))
        };
        let is_whole = w.segments.iter().all(|segment| segment.input_norm.is_none());
        let device = |error| Error::Device(format!("{name}: {error}"));
        let zeros = match skip {
            Skip::Gated if is_whole && (n / 2).is_multiple_of(16) => {
                let words = &w.words[n / 2 * per_row..];
                Zeros::Rows(TernaryRows::new(n / 2, w.k, words).map_err(device)?)
            }
            Skip::Input if is_whole => {
                Zeros::Columns(TernaryColumns::new(cpu, n, w.k, &w.words).map_err(device)?)
            }
            _ => Zeros::None,
        };
        let mut parts = Vec::new();
        if is_whole {
            let segments: Vec<_> = w.segments.iter().map(|s| (s.rows, s.scale)).collect();
            parts.push(Part {
                first_row: 0,
                matrix: build(n, &w.words, &segments)?,
                input_norm: None,
            });
        } else {
            if c.linear_norm_eps.is_none() {
                return Err(Error::Request(format!(
                    "{name} has a norm of its own, and the config no epsilon for it"
                )));
            }
            let mut first_row = 0;
            for segment in w.segments {
                let end = first_row + segment.rows;
                let words = w.words.get(first_row * per_row..end * per_row).ok_or_else(|| {
                    Error::Request(format!("rows {first_row}..{end} of {name}, which has {n}"))
                })?;
                if let Some(norm) = &segment.input_norm {
                    check_len(&format!("an input norm of {name}"), norm.len(), k)?;
                }
                parts.push(Part {
                    first_row,
                    matrix: build(segment.rows, words, &[(segment.rows, segment.scale)])?,
                    input_norm: segment.input_norm,
                });
                first_row = end;
            }
            check_len(&format!("rows of the projections of {name}"), first_row, n)?;
        }
        Ok(Self { n, k, parts, zeros })
    }

    /// Moves the weights near the threads that read them; `is_gated` for [`Linear::apply_gated`].
    pub(super) fn place(&mut self, cpu: &Cpu, is_gated: bool) -> Result<()> {
        let is_gated = is_gated && !self.is_split();
        for part in &mut self.parts {
            cpu.place(&mut part.matrix, is_gated)?;
        }
        if let Zeros::Rows(rows) = &mut self.zeros {
            cpu.place_rows(rows)?;
        }
        Ok(())
    }

    /// Size in memory.
    pub(super) fn bytes(&self) -> u64 {
        let zeros = match &self.zeros {
            Zeros::None => 0,
            Zeros::Rows(rows) => rows.bytes(),
            Zeros::Columns(columns) => columns.bytes(),
        };
        zeros + self.parts.iter().map(|part| part.matrix.bytes()).sum::<u64>()
    }

    /// Norms, quantizes and multiplies the rows of `input` into `rows`, (tokens, n).
    pub(super) fn apply(
        &self,
        cpu: &Cpu,
        c: &Config,
        activations: &mut Activations,
        input: Input<'_>,
        rows: &mut [f32],
        write: Write,
    ) {
        for part in &self.parts {
            part.prepare(cpu, c, self.k, activations, &input);
            let output = Output {
                data: &mut *rows,
                stride: self.n,
                first: part.first_row,
                write,
            };
            match &self.zeros {
                Zeros::Columns(columns) if input.x.len() <= TernaryColumns::MOST_TOKENS * self.k => {
                    cpu.matmul_some(&part.matrix, columns, activations, output);
                }
                _ => cpu.matmul(&part.matrix, activations, output),
            }
        }
    }

    /// Norms, quantizes and multiplies the rows of `input`, and gates the second half of the products with the first:
    /// (tokens, n / 2). `rows`, (tokens, n), is for layers that [`Linear::is_split`].
    pub(super) fn apply_gated(
        &self,
        cpu: &Cpu,
        c: &Config,
        activations: &mut Activations,
        input: Input<'_>,
        rows: &mut [f32],
        gated: &mut [f32],
    ) {
        let gate = c.activation;
        if let [part] = &self.parts[..]
            && !self.is_split()
        {
            part.prepare(cpu, c, self.k, activations, &input);
            match &self.zeros {
                Zeros::Rows(up) if input.x.len() == self.k => {
                    cpu.matmul_gated_some(&part.matrix, up, activations, gated);
                }
                _ => cpu.matmul_gated(&part.matrix, activations, gate, gated),
            }
        } else {
            self.apply(cpu, c, activations, input, rows, Write::Replace);
            cpu.gate(gate, rows, self.n / 2, gated);
        }
    }

    /// Whether [`Linear::apply_gated`] needs `rows`: where projections have each a norm of their own, or a tile of 16 rows would
    /// hold gates and what they gate.
    pub(super) fn is_split(&self) -> bool {
        self.parts.len() > 1 || !(self.n / 2).is_multiple_of(16)
    }
}

impl Part {
    /// Norms and quantizes the rows of `input`: the norm of the block, then the projection's own.
    fn prepare(&self, cpu: &Cpu, c: &Config, k: usize, activations: &mut Activations, input: &Input<'_>) {
        let block = input.norm.map(|weight| Norm {
            weight,
            eps: c.rms_eps,
        });
        let own = self.input_norm.as_deref().zip(c.linear_norm_eps);
        let own = own.map(|(weight, eps)| Norm { weight, eps });
        let norms = match (block, own) {
            (Some(block), Some(own)) => &[block, own][..],
            (Some(norm), None) | (None, Some(norm)) => &[norm],
            (None, None) => &[],
        };
        cpu.prepare(input.x, k, norms, activations);
    }
}
