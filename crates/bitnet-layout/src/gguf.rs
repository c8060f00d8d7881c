//! The ternary tensor types of GGUF files, block by block, to canonical words and (where this project writes them) back.
//!
//! Only codes are here; the scales that stand beside them in a file are the reader's. Every type keeps the codes `t + 1`, in
//! one of two ways: two bits each, in *planes* (the bits of one shift, of consecutive bytes, are consecutive columns), or in
//! base 3, five to a byte, where a byte is `ceil(v * 256 / 243)` and multiplying it by 3 moves the next digit past 256.
//!
//! | type | codes | bytes | order |
//! |---|---|---|---|
//! | I2_S | 128 | 32 | code `32 g + p` at bits `6 - 2 g` of byte `p` |
//! | I2_S as written on ARM | 64 | 16 | code `16 g + p` at bits `6 - 2 g` of byte `p` |
//! | I2_S in fours of rows | 4 rows | k | row `r` at bits `6 - 2 (r % 4)`: [`crate::hf::unpack_row`], upside down |
//! | TQ2_0 | 256 | 64 | code `128 j + 32 n + m` at bits `2 n` of byte `32 j + m` |
//! | TQ1_0 | 256 | 52 | bytes 0..32, 32..48, 48..52 hold planes of 32, 16 and 4 codes, most significant digit first |
//! | IQ2_BN | 64 | 16 | code `16 n + j` at bits `2 n` of byte `j` |
//! | IQ2_BN_R4 | 4 rows of 64 | 64 | byte `16 l + 4 r + i` holds columns `16 l + i`, `+ 4`, `+ 8`, `+ 12` of row `r` |
//! | IQ1_BN | 64 | 13 | byte `3 a + b` holds codes `16 a + 5 b ..`, least significant digit first; byte 12 codes 15, 31, 47, 63 |
//! | Q2_0 | 64 | 16 | code `j` at bits `2 (j % 4)` of byte `j / 4` |
//!
//! Sources: `ggml-quants.c` of llama.cpp (TQ1_0, TQ2_0, Q2_0), `iqk_quantize.cpp` of ik_llama.cpp (the BN types), and the
//! converters of bitnet.cpp (I2_S). Code 3 can stand in a damaged file and comes out as 3.

use crate::words::{CODES_PER_WORD, add_plane, from_plane, shift, unpack_word};

/// Bytes of [`i2s`]: 128 codes.
pub const I2S_BYTES: usize = 32;
/// Bytes of [`i2s_arm`]: 64 codes.
pub const I2S_ARM_BYTES: usize = 16;
/// Bytes of the codes of a block of [`tq2_0`]: 256 codes.
pub const TQ2_0_BYTES: usize = 64;
/// Bytes of the codes of a block of [`tq1_0`]: 256 codes.
pub const TQ1_0_BYTES: usize = 52;
/// Bytes of a block of [`iq2_bn`]: 64 codes.
pub const IQ2_BN_BYTES: usize = 16;
/// Bytes of a block of [`iq2_bn_r4`]: 64 codes of each of four rows.
pub const IQ2_BN_R4_BYTES: usize = 64;
/// Bytes of a block of [`iq1_bn`]: 64 codes.
pub const IQ1_BN_BYTES: usize = 13;
/// Bytes of the codes of a block of [`q2_0`]: 64 codes.
pub const Q2_0_BYTES: usize = 16;

/// 128 consecutive codes of I2_S.
#[inline]
#[must_use]
pub fn i2s(bytes: &[u8; I2S_BYTES]) -> [u32; 8] {
    let halves = bytes.as_chunks::<CODES_PER_WORD>().0;
    core::array::from_fn(|w| from_plane(&halves[w % 2], 6 - 2 * (w / 2) as u32))
}

/// The inverse of [`i2s`].
#[must_use]
pub fn pack_i2s(words: &[u32; 8]) -> [u8; I2S_BYTES] {
    let mut bytes = [0; I2S_BYTES];
    let halves = bytes.as_chunks_mut::<CODES_PER_WORD>().0;
    for (w, &word) in words.iter().enumerate() {
        add_plane(word, &mut halves[w % 2], 6 - 2 * (w / 2) as u32);
    }
    bytes
}

/// 64 consecutive codes of I2_S as some ARM programs write it.
#[inline]
#[must_use]
pub fn i2s_arm(bytes: &[u8; I2S_ARM_BYTES]) -> [u32; 4] {
    core::array::from_fn(|w| from_plane(bytes, 6 - 2 * w as u32))
}

/// A row of I2_S in fours of rows, out of the bytes of its four; `row` is its number among them.
///
/// # Panics
/// When `row > 3`, or `packed` has not 16 bytes for every word.
pub fn i2s_four_rows(packed: &[u8], row: usize, words: &mut [u32]) {
    assert!(row < 4, "row {row} of four");
    crate::hf::unpack_row(packed, 3 - row, words);
}

/// A block of TQ2_0.
#[inline]
#[must_use]
pub fn tq2_0(bytes: &[u8; TQ2_0_BYTES]) -> [u32; 16] {
    let quarters = bytes.as_chunks::<CODES_PER_WORD>().0;
    core::array::from_fn(|w| from_plane(&quarters[2 * (w / 8) + w % 2], 2 * (w % 8 / 2) as u32))
}

/// The inverse of [`tq2_0`].
#[must_use]
pub fn pack_tq2_0(words: &[u32; 16]) -> [u8; TQ2_0_BYTES] {
    let mut bytes = [0; TQ2_0_BYTES];
    let quarters = bytes.as_chunks_mut::<CODES_PER_WORD>().0;
    for (w, &word) in words.iter().enumerate() {
        add_plane(word, &mut quarters[2 * (w / 8) + w % 2], 2 * (w % 8 / 2) as u32);
    }
    bytes
}

/// A block of TQ1_0.
#[must_use]
pub fn tq1_0(bytes: &[u8; TQ1_0_BYTES]) -> [u32; 16] {
    let mut words = [0; 16];
    for (at, &byte) in bytes.iter().enumerate() {
        let place = Tq1Byte::new(at);
        let mut rest = byte;
        for digit in 0..place.digits {
            set(
                &mut words,
                place.first + digit * place.stride,
                next_digit(&mut rest),
            );
        }
    }
    words
}

/// The inverse of [`tq1_0`], for valid words.
#[must_use]
pub fn pack_tq1_0(words: &[u32; 16]) -> [u8; TQ1_0_BYTES] {
    core::array::from_fn(|at| {
        let place = Tq1Byte::new(at);
        // Digits that a byte lacks at its end are zeros.
        let value = (0..5).fold(0, |value, digit| {
            let code = if digit < place.digits {
                get(words, place.first + digit * place.stride)
            } else {
                0
            };
            3 * value + code
        });
        (value * 256).div_ceil(243) as u8
    })
}

/// Which codes a byte of TQ1_0 holds.
struct Tq1Byte {
    first: usize,
    stride: usize,
    digits: usize,
}

impl Tq1Byte {
    const fn new(at: usize) -> Self {
        let (first, stride, digits) = match at {
            0..32 => (at, 32, 5),
            32..48 => (160 + at - 32, 16, 5),
            _ => (240 + at - 48, 4, 4),
        };
        Self {
            first,
            stride,
            digits,
        }
    }
}

/// A block of IQ2_BN.
#[inline]
#[must_use]
pub fn iq2_bn(bytes: &[u8; IQ2_BN_BYTES]) -> [u32; 4] {
    core::array::from_fn(|w| from_plane(bytes, 2 * w as u32))
}

/// The same 64 columns of four rows of IQ2_BN_R4, by row. Its bytes are canonical words in another order.
#[inline]
#[must_use]
pub fn iq2_bn_r4(bytes: &[u8; IQ2_BN_R4_BYTES]) -> [[u32; 4]; 4] {
    let words = bytes.as_chunks::<4>().0;
    core::array::from_fn(|row| core::array::from_fn(|w| u32::from_le_bytes(words[4 * w + row])))
}

/// A block of IQ1_BN.
#[must_use]
pub fn iq1_bn(bytes: &[u8; IQ1_BN_BYTES]) -> [u32; 4] {
    let mut words = [0; 4];
    let (&extra, fives) = (&bytes[12], &bytes[..12]);
    for (at, &byte) in fives.iter().enumerate() {
        let mut rest = byte;
        for code in (0..5).rev() {
            set(
                &mut words,
                16 * (at / 3) + 5 * (at % 3) + code,
                next_digit(&mut rest),
            );
        }
    }
    let mut rest = extra;
    next_digit(&mut rest); // The most significant of its five digits is not used.
    for word in (0..4).rev() {
        set(&mut words, 16 * word + 15, next_digit(&mut rest));
    }
    words
}

/// A block of Q2_0.
#[inline]
#[must_use]
pub fn q2_0(bytes: &[u8; Q2_0_BYTES]) -> [u32; 4] {
    let fours = bytes.as_chunks::<4>().0;
    core::array::from_fn(|w| transpose(u32::from_le_bytes(fours[w])))
}

/// Moves code `4 a + b` (bits `8 a + 2 b`) to where code `4 b + a` was: consecutive codes to a word, or back.
const fn transpose(word: u32) -> u32 {
    // Two by two quarters first, then single codes inside each.
    let swapped = (word ^ (word >> 12)) & 0x0000_f0f0;
    let word = word ^ swapped ^ (swapped << 12);
    let swapped = (word ^ (word >> 6)) & 0x00cc_00cc;
    word ^ swapped ^ (swapped << 6)
}

/// Takes the most significant digit of base 3 off a byte that holds five.
fn next_digit(byte: &mut u8) -> u32 {
    let three = u32::from(*byte) * 3;
    *byte = three as u8;
    three >> 8
}

/// Sets code `index`, which is still 0.
fn set(words: &mut [u32], index: usize, code: u32) {
    words[index / CODES_PER_WORD] |= code << shift(index % CODES_PER_WORD);
}

fn get(words: &[u32], index: usize) -> u32 {
    (unpack_word(words[index / CODES_PER_WORD])[index % CODES_PER_WORD] + 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::words::{pack_row, unpack_row};
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    /// Ternary values of a linear congruential generator, for which the public quantizers' bytes are known.
    fn values<const N: usize>() -> [i8; N] {
        let mut x = 1u32;
        core::array::from_fn(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((x >> 16) % 3) as i8 - 1
        })
    }

    fn words<const W: usize>() -> [u32; W] {
        let mut words = [0; W];
        let values = values::<256>();
        pack_row(&values[..16 * W], &mut words);
        words
    }

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        core::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..][..2], 16).unwrap())
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What bitnet.cpp's converter, llama.cpp's and ik_llama.cpp's quantizers make of the same values.
    #[test]
    fn public_vectors() {
        let packed = "52896a4a1925a22129400594902905a86690a58515650a219104462125884542";
        assert_eq!(i2s(&bytes(packed)), words());
        assert_eq!(hex(&pack_i2s(&words())), packed);
        let packed = hex(&pack_tq2_0(&words()));
        assert!(
            packed.starts_with("8562a9a164588a48") && packed.ends_with("5946"),
            "{packed}"
        );
        let packed = hex(&pack_tq1_0(&words()));
        assert!(
            packed.starts_with("7bc2a86f3547ec3f") && packed.ends_with("503230d72a7f"),
            "{packed}"
        );
        assert_eq!(iq2_bn(&bytes("954aa90950a422a06801049292280426")), words());
        assert_eq!(iq1_bn(&bytes("2e5c1a543a906a55466e321a19")), words());
    }

    #[test]
    fn unpacking_undoes_packing() {
        let mut random = Random::new(5);
        for _ in 0..200 {
            let words: [u32; 16] = core::array::from_fn(|_| random.ternary_word());
            let (eight, _) = words.as_chunks::<8>();
            assert_eq!(i2s(&pack_i2s(&eight[0])), eight[0]);
            assert_eq!(tq2_0(&pack_tq2_0(&words)), words);
            assert_eq!(tq1_0(&pack_tq1_0(&words)), words);
        }
    }

    /// The table above, one code at a time.
    #[test]
    fn two_bits_stand_where_the_table_says() {
        let mut random = Random::new(6);
        let bytes: [u8; 64] = core::array::from_fn(|_| random.word() as u8);
        let code = |byte: usize, at: usize| (bytes[byte] >> at) & 3;
        let check = |words: &[u32], place: &dyn Fn(usize) -> (usize, usize)| {
            let mut codes: Vec<i8> = std::vec![0; 16 * words.len()];
            unpack_row(words, &mut codes);
            for (index, &t) in codes.iter().enumerate() {
                let (byte, at) = place(index);
                assert_eq!((t + 1) as u8, code(byte, at), "code {index}");
            }
        };
        let first = |n: usize| &bytes[..n];
        check(&i2s(first(32).try_into().unwrap()), &|i| {
            (i % 32, 6 - 2 * (i / 32))
        });
        check(&i2s_arm(first(16).try_into().unwrap()), &|i| {
            (i % 16, 6 - 2 * (i / 16))
        });
        check(&tq2_0(&bytes), &|i| (32 * (i / 128) + i % 32, 2 * (i % 128 / 32)));
        check(&iq2_bn(first(16).try_into().unwrap()), &|i| {
            (i % 16, 2 * (i / 16))
        });
        check(&q2_0(first(16).try_into().unwrap()), &|i| (i / 4, 2 * (i % 4)));
        for (row, words) in iq2_bn_r4(&bytes).iter().enumerate() {
            check(words, &|i| (16 * (i / 16) + 4 * row + i % 4, 2 * (i % 16 / 4)));
            let mut four = [0; 4];
            i2s_four_rows(&bytes, row, &mut four);
            check(&four, &|i| (i, 6 - 2 * row));
        }
    }

    #[test]
    fn any_byte_has_digits() {
        for byte in 0..=255 {
            for word in tq1_0(&[byte; 52]).into_iter().chain(iq1_bn(&[byte; 13])) {
                assert!(crate::words::is_valid(word), "byte {byte}");
            }
        }
    }
}
