//! Dense matrices: the embedding, and the output head in the forms in which it is kept.

use bitnet_cpu::{
    Activations, Ask, Best, Cpu, DenseMatrix, Int8Input, Int8Matrix, ScreenMatrix, ScreenRoom, Write,
};

use super::linear::{Input, Linear, Skip};
use super::{LmHead, check_len};
use crate::{Config, Dense, Error, Result, WeightSource};

/// The output head.
pub(super) enum Head {
    Embedding,
    Dense(DenseMatrix),
    /// A matrix, none where it is the embedding, and what finds its best products.
    Certified {
        dense: Option<DenseMatrix>,
        copy: ScreenMatrix,
        room: Box<ScreenRoom>,
    },
    Int8(Int8Matrix, Int8Input),
    Ternary(Linear),
}

impl Head {
    /// Loads the head, or makes it of the embedding, as `lm_head` asks.
    pub(super) fn new(
        cpu: &Cpu,
        config: &Config,
        source: &dyn WeightSource,
        embedding: &DenseMatrix,
        lm_head: LmHead,
        max_batch: usize,
    ) -> Result<Self> {
        let shape = (embedding.rows(), embedding.cols());
        if let Some(head) = source.ternary_head()? {
            // It is smaller than one of 8-bit integers.
            return Linear::new(cpu, config, "the output head", head, shape, Skip::Nothing)
                .map(Self::Ternary);
        }
        let head = match source.head()? {
            Some(head) => Self::Dense(dense(cpu, &*head, "the output head", shape)?),
            None => Self::Embedding,
        };
        let int8 = |w: &DenseMatrix| -> Result<Self> {
            let input = Int8Input::new(max_batch, w.cols())?;
            Ok(Self::Int8(Int8Matrix::new(cpu, w)?, input))
        };
        match (lm_head, head) {
            (LmHead::Auto | LmHead::Stored, head) => Ok(head),
            (LmHead::Certified, head) if !config.has_head => Ok(head),
            (LmHead::Certified, head) => {
                let dense = match head {
                    Self::Dense(w) => Some(w),
                    _ => None,
                };
                let copy = ScreenMatrix::new(cpu, dense.as_ref().unwrap_or(embedding))?;
                let room = Box::default();
                Ok(Self::Certified { dense, copy, room })
            }
            (LmHead::Int8, Self::Dense(w)) => int8(&w),
            (LmHead::Int8, _) => int8(embedding),
        }
    }

    /// Size in memory, beside the embedding.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Embedding => 0,
            Self::Dense(w) => w.bytes(),
            Self::Certified { dense, copy, room } => {
                dense.as_ref().map_or(0, DenseMatrix::bytes) + copy.bytes() + room.bytes()
            }
            Self::Int8(w, input) => w.bytes() + input.bytes(),
            Self::Ternary(w) => w.bytes(),
        }
    }

    /// Bytes that a decode step reads, but for single rows.
    pub(super) fn step_bytes(&self, embedding: &DenseMatrix) -> u64 {
        match self {
            Self::Embedding => embedding.bytes(),
            Self::Dense(w) => w.bytes(),
            Self::Certified { copy, .. } => copy.bytes(),
            Self::Int8(w, _) => w.bytes(),
            Self::Ternary(w) => w.bytes(),
        }
    }

    /// Logits of the rows of `x`, (tokens, d_model).
    pub(super) fn apply(
        &mut self,
        cpu: &Cpu,
        config: &Config,
        activations: &mut Activations,
        embedding: &DenseMatrix,
        x: &[f32],
        logits: &mut [f32],
    ) -> Result<()> {
        match self {
            Self::Embedding => cpu.dense(embedding, x, logits)?,
            Self::Dense(w) => cpu.dense(w, x, logits)?,
            Self::Certified { dense, .. } => cpu.dense(dense.as_ref().unwrap_or(embedding), x, logits)?,
            Self::Int8(w, input) => cpu.dense_int8(w, x, input, logits)?,
            Self::Ternary(w) if !x.is_empty() => {
                let input = Input { x, norm: None };
                w.apply(cpu, config, activations, input, logits, Write::Replace);
            }
            Self::Ternary(_) => {}
        }
        Ok(())
    }

    /// What `asks` want of the logits of the rows of `x`, (tokens, d_model).
    pub(super) fn best(
        &mut self,
        cpu: &Cpu,
        embedding: &DenseMatrix,
        x: &[f32],
        asks: &[Ask<'_>],
    ) -> Result<Vec<Best>> {
        match self {
            Self::Certified { dense, copy, room } => {
                Ok(cpu.best(dense.as_ref().unwrap_or(embedding), copy, x, asks, room)?)
            }
            _ => Err(Error::Request(
                "the best logits of a head that is not certified".to_owned(),
            )),
        }
    }
}

/// Reads a matrix of the expected shape.
pub(super) fn dense(cpu: &Cpu, w: &dyn Dense, name: &str, expected: (usize, usize)) -> Result<DenseMatrix> {
    check_len(&format!("rows of {name}"), w.shape().0, expected.0)?;
    check_len(&format!("columns of {name}"), w.shape().1, expected.1)?;
    let mut matrix = DenseMatrix::read(w.dtype(), expected, |first, bytes| w.read_rows(first, bytes))?;
    cpu.place_dense(&mut matrix)?;
    Ok(matrix)
}
