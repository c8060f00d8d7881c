//! The first step of a forward pass: rows of the embedding.

use crate::{Global, Launch};

/// Threads of a block.
const THREADS: u32 = 256;

macro_rules! embed {
    ($($(#[$meta:meta])* $name:ident, $Params:ident, $words:literal, $decode:path;)*) => {$(
        kernel! {
            $(#[$meta])*
            ///
            /// - Shapes: `tokens` (batch); `table` (vocab, d) as named, two 16-bit elements or one f32 a word; `x` (batch, d).
            /// - Launch: [`Self::launch`]; a thread owns two elements.
            /// - Bound: latency; a row is read once. Nothing of the next kernel starts before this one's wait is over, so kernels
            ///   further down may read what steps before this one wrote without waiting for it.
            ///
            /// # Safety
            /// Lengths as above; `d` even; every token below the vocabulary; `table` and `x` 8-byte aligned.
            $name, block = [THREADS, 1, 1], body = device::$name;
            pub struct $Params {
                /// Token ids.
                pub tokens: Global<u32>,
                /// The embedding.
                pub table: Global<u32>,
                /// Output.
                pub x: Global<f32>,
                /// Tokens.
                pub batch: u32,
                /// Width of a row.
                pub d: u32,
            }
        }

        impl $Params {
            /// The launch for these parameters.
            #[must_use]
            pub const fn launch(&self) -> Launch {
                Launch {
                    grid: [(self.d / 2).div_ceil(THREADS), self.batch, 1],
                    block: [THREADS, 1, 1],
                    shared_bytes: 0,
                }
            }
        }
    )*

    #[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
    mod device {
        use super::{THREADS, pair_bf16, pair_f16, pair_f32};
        use crate::intrinsics::*;

        $(
            #[inline(always)]
            pub(super) unsafe fn $name(p: super::$Params) {
                let (pair, row) = (block_idx_x() * THREADS + thread_idx_x(), block_idx_y() as usize);
                // Another kernel may have sampled the token.
                grid_dependency_wait();
                grid_dependency_launch();
                if pair < p.d / 2 {
                    // SAFETY: the row is below the batch, the pair inside the row.
                    unsafe {
                        let token = p.tokens.load_l2(row)[0] as usize;
                        let at = token * (p.d / 2) as usize + pair as usize;
                        let values = $decode(p.table.offset(at * $words));
                        p.x.store_x2(row * p.d as usize + 2 * pair as usize, values);
                    }
                }
            }
        )*
    }
    };
}

embed! {
    /// `x[b] = table[tokens[b]]` from bfloat16.
    embed_bf16, EmbedBf16, 1, pair_bf16;
    /// `x[b] = table[tokens[b]]` from IEEE half precision.
    embed_f16, EmbedF16, 1, pair_f16;
    /// `x[b] = table[tokens[b]]` from f32.
    embed_f32, EmbedF32, 2, pair_f32;
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
use decode::{pair_bf16, pair_f16, pair_f32};

/// Two elements at an address, as f32.
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod decode {
    use crate::Global;
    use crate::intrinsics::*;

    /// # Safety
    /// The word is readable.
    #[inline(always)]
    pub(super) unsafe fn pair_bf16(word: Global<u32>) -> [f32; 2] {
        // SAFETY: the caller's promise.
        bf16x2_to_f32(unsafe { word.load_constant(0)[0] })
    }

    /// # Safety
    /// The word is readable.
    #[inline(always)]
    pub(super) unsafe fn pair_f16(word: Global<u32>) -> [f32; 2] {
        // SAFETY: the caller's promise.
        let pair = unsafe { word.load_constant(0)[0] };
        [f16_to_f32(pair & 0xffff), f16_to_f32(pair >> 16)]
    }

    /// # Safety
    /// Both words are readable, the first on a multiple of 8 bytes.
    #[inline(always)]
    pub(super) unsafe fn pair_f32(word: Global<u32>) -> [f32; 2] {
        // SAFETY: the caller's promise.
        unsafe { word.load_stream_x2(0) }.map(f32::from_bits)
    }

    /// The value of the half-precision `bits`; exact, subnormals included.
    #[inline(always)]
    fn f16_to_f32(bits: u32) -> f32 {
        // 2^112 takes the exponent's bias from 15 to 127; the product is exact for normal and subnormal numbers alike.
        const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
        let magnitude = (bits & 0x7fff) << 13;
        let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
        let special = magnitude | 0x7f80_0000;
        let value = if bits & 0x7c00 == 0x7c00 { special } else { finite };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }
}
