//! Products of codes and 8-bit activations, in the registers of each instruction set.

mod portable;

#[cfg(target_arch = "aarch64")]
pub(super) mod arm;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

pub(super) use portable::Portable;

/// Codes of four columns of the 16 rows of a tile: a byte each, the first column lowest.
pub(crate) type Quad = [u32; 16];

/// Proof that an instruction set may be used here, and its products of four columns of the 16 rows of a tile. They are
/// exact, so all implementations give the same bits.
pub(super) trait Isa: Copy {
    /// A group or a quad.
    type Words: Copy;
    /// Four activations, ready to be multiplied with every row.
    type Four: Copy;
    /// Sums by row.
    type Sums: Copy;
    /// Additions that [`Isa::Sums`] hold, each of four products of at most `2 * 128`.
    const RUN: usize;
    /// Rows of activations, and tiles, whose sums the registers hold beside the operands.
    const BLOCK: (usize, usize);
    /// Sums that the registers hold beside the operands.
    const HELD: usize = Self::BLOCK.0 * Self::BLOCK.1;

    /// Words from memory.
    fn load(self, words: &[u32; 16]) -> Self::Words;
    /// Words to memory.
    fn store(self, words: Self::Words, to: &mut Quad);
    /// The first plane of a group: a quad.
    fn plane(self, group: Self::Words) -> Self::Words;
    /// A group whose first plane is the next of `group`.
    fn next(self, group: Self::Words) -> Self::Words;
    /// Activations from memory.
    fn four(self, x: [i8; 4]) -> Self::Four;
    /// No products.
    fn zero(self) -> Self::Sums;
    /// `sums[r] + quad[r] . x`.
    fn add(self, sums: Self::Sums, quad: Self::Words, x: Self::Four) -> Self::Sums;
    /// `sums[r] + quad[r] . x[r]`: four activations of its own for each of 16 lanes.
    fn add_lanes(self, sums: Self::Sums, quad: Self::Words, x: Self::Words) -> Self::Sums;
    /// Turns bytes of four lines into quads: lane l of the v-th has byte `16 (l / 4) + 4 v + l % 4` of each line.
    fn interleave(self, lines: [Self::Words; 4]) -> [Self::Words; 4];
    /// Adds the sums to `to`.
    fn flush(self, sums: Self::Sums, to: &mut [i32; 16]);

    /// Asks for the cache line at `line`, where the instruction set can.
    #[inline(always)]
    fn prefetch(self, line: *const Quad) {
        let _ = line;
    }

    /// The same for a second-level cache, which has more such requests on their way at a time.
    #[inline(always)]
    fn prefetch_far(self, line: *const Quad) {
        let _ = line;
    }
}

/// Four activations as one lane value.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lane(x: [i8; 4]) -> i32 {
    i32::from_ne_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8])
}
