//! Rows of the ternary tensor types of GGUF files: bytes to canonical words, and the scales that stand among them.
//!
//! A ternary matrix has one scale. These types repeat it for each row or block; [`Scales`] finds out whether they agree. Blocks of
//! zeros do not count: they carry the scale 0, and some types then hold other codes.

use std::collections::BTreeSet;

use bitnet_layout::gguf;

use super::dtype::GgufType;

/// The word of sixteen zeros.
const ZEROS: u32 = 0x5555_5555;

/// Different scales that are remembered: enough to say that there are many.
const MAX_SCALES: usize = 1000;

/// A type whose rows are decoded alone, or in fours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowType {
    /// Rows that are stored together.
    pub(super) rows: usize,
    /// Bytes in front of them: scales of the rows.
    head: usize,
    /// Values and bytes of a block of each row.
    block: usize,
    block_bytes: usize,
    kind: GgufType,
}

impl RowType {
    /// The layout of a type, if it is one of these.
    pub(super) fn of(kind: GgufType) -> Option<Self> {
        let (rows, head, block, block_bytes) = match kind {
            GgufType::TQ1_0 => (1, 0, 256, 54),
            GgufType::TQ2_0 => (1, 0, 256, 66),
            GgufType::Q2_0 => (1, 0, 64, 18),
            GgufType::IQ1_BN => (1, 2, 64, gguf::IQ1_BN_BYTES),
            GgufType::IQ2_BN => (1, 4, 64, gguf::IQ2_BN_BYTES),
            GgufType::IQ2_BN_R4 => (4, 16, 64, gguf::IQ2_BN_R4_BYTES),
            _ => return None,
        };
        Some(Self {
            rows,
            head,
            block,
            block_bytes,
            kind,
        })
    }

    /// Bytes of the rows that are stored together, each of `cols` values.
    pub(super) fn bytes(self, cols: usize) -> usize {
        self.head + cols / self.block * self.block_bytes
    }

    /// Decodes rows that are stored together into `words`, and notes their scales.
    ///
    /// # Errors
    /// With a scale that cannot be one.
    pub(super) fn decode(self, bytes: &[u8], words: &mut [u32], scales: &mut Scales) -> Result<(), f32> {
        let (head, blocks) = bytes.split_at(self.head);
        let per_row = words.len() / self.rows;
        match self.kind {
            GgufType::IQ2_BN_R4 => {
                for (i, bytes) in blocks.as_chunks().0.iter().enumerate() {
                    for (row, block) in gguf::iq2_bn_r4(bytes).into_iter().enumerate() {
                        words[row * per_row + 4 * i..][..4].copy_from_slice(&block);
                    }
                }
                for (&scale, words) in head.as_chunks().0.iter().zip(words.chunks_exact_mut(per_row)) {
                    scales.note(f32::from_le_bytes(scale), words)?;
                }
            }
            GgufType::IQ2_BN => {
                let (out, _) = words.as_chunks_mut();
                for (out, bytes) in out.iter_mut().zip(blocks.as_chunks().0) {
                    *out = gguf::iq2_bn(bytes);
                }
                scales.note(f32::from_le_bytes(first(head)), words)?;
            }
            GgufType::IQ1_BN => {
                let (out, _) = words.as_chunks_mut();
                for (out, bytes) in out.iter_mut().zip(blocks.as_chunks().0) {
                    *out = gguf::iq1_bn(bytes);
                }
                scales.note(half(head), words)?;
            }
            GgufType::Q2_0 => {
                for (words, block) in words.as_chunks_mut().0.iter_mut().zip(blocks.as_chunks::<18>().0) {
                    let (scale, codes) = block.split_at(2);
                    *words = gguf::q2_0(&first(codes));
                    scales.note(half(scale), words)?;
                }
            }
            GgufType::TQ2_0 => {
                for (words, block) in words.as_chunks_mut().0.iter_mut().zip(blocks.as_chunks::<66>().0) {
                    let (codes, scale) = block.split_at(gguf::TQ2_0_BYTES);
                    *words = gguf::tq2_0(&first(codes));
                    scales.note(half(scale), words)?;
                }
            }
            _ => {
                for (words, block) in words.as_chunks_mut().0.iter_mut().zip(blocks.as_chunks::<54>().0) {
                    let (codes, scale) = block.split_at(gguf::TQ1_0_BYTES);
                    *words = gguf::tq1_0(&first(codes));
                    scales.note(half(scale), words)?;
                }
            }
        }
        Ok(())
    }
}

/// The first `N` bytes of as many or more.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("blocks have the bytes of their type")
}

fn half(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes(first(bytes)).to_f32()
}

/// The scales of blocks that hold something else than zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Scales {
    /// Their bits: the scales are positive, so these are in their order.
    bits: BTreeSet<u32>,
    last: Option<u32>,
}

impl Scales {
    /// Notes the scale of a block, and makes the block zeros where the scale says so.
    fn note(&mut self, scale: f32, words: &mut [u32]) -> Result<(), f32> {
        if scale == 0.0 {
            words.fill(ZEROS);
            return Ok(());
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(scale);
        }
        if self.last != Some(scale.to_bits()) && words.iter().any(|&word| word != ZEROS) {
            self.last = Some(scale.to_bits());
            if self.bits.len() < MAX_SCALES {
                self.bits.insert(scale.to_bits());
            }
        }
        Ok(())
    }

    /// Adds those of other blocks.
    pub(super) fn merge(&mut self, other: Self) {
        self.bits.extend(other.bits);
    }

    /// The one scale of a matrix, 1 where all is zero; or how many there are.
    pub(super) fn one(&self) -> Result<f32, usize> {
        match self.bits.len() {
            0 => Ok(1.0),
            1 => Ok(f32::from_bits(*self.bits.first().unwrap_or(&0))),
            n => Err(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_of_zero_means_zeros_whatever_the_codes_say() {
        let kind = RowType::of(GgufType::IQ2_BN).unwrap();
        let (mut words, mut scales) = ([0; 4], Scales::default());
        let mut bytes = [0xaa; 20];
        bytes[..4].fill(0);
        kind.decode(&bytes, &mut words, &mut scales).unwrap();
        assert_eq!((words, scales.one()), ([ZEROS; 4], Ok(1.0)));
        bytes[..4].copy_from_slice(&2f32.to_le_bytes());
        kind.decode(&bytes, &mut words, &mut scales).unwrap();
        assert_eq!((words, scales.one()), ([0xaaaa_aaaa; 4], Ok(2.0)));
        // Zeros with another scale change nothing, other values do.
        bytes = [0x55; 20];
        bytes[..4].copy_from_slice(&3f32.to_le_bytes());
        kind.decode(&bytes, &mut words, &mut scales).unwrap();
        assert_eq!(scales.one(), Ok(2.0));
        bytes[9] = 0x56;
        kind.decode(&bytes, &mut words, &mut scales).unwrap();
        assert_eq!(scales.one(), Err(2));
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            bytes[..4].copy_from_slice(&bad.to_le_bytes());
            let refused = kind.decode(&bytes, &mut words, &mut scales).unwrap_err();
            assert_eq!(refused.to_bits(), bad.to_bits());
        }
    }
}
