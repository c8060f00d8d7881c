//! Seeded numbers for tests and benchmarks: the same everywhere, and nothing for secrets.

/// xorshift64* (Vigna 2016).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 32 bits.
    pub const fn word(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// A number of [-1, 1), each of 2^24 as likely.
    pub const fn unit(&mut self) -> f32 {
        (self.word() >> 8) as f32 / 8_388_608.0 - 1.0
    }

    /// A canonical word of 16 valid codes: -1 and +1 each with probability 5/16, 0 with 6/16.
    pub const fn ternary_word(&mut self) -> u32 {
        // A code 3 is drawn again, and if it is 3 again it becomes 1, which is zero.
        const ZEROS: u32 = 0x5555_5555;
        let word = replace_threes(self.word(), self.word());
        replace_threes(word, ZEROS)
    }
}

/// `word`, with the codes of `other` where its own are 3.
const fn replace_threes(word: u32, other: u32) -> u32 {
    let threes = (word & (word >> 1) & 0x5555_5555) * 3;
    word & !threes | other & threes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{is_valid, unpack_word};

    #[test]
    fn words_are_valid_and_have_the_stated_shares() {
        let mut counts = [0_u32; 3];
        let mut random = Random::new(1);
        for _ in 0..10_000 {
            let word = random.ternary_word();
            assert!(is_valid(word));
            unpack_word(word)
                .iter()
                .for_each(|&t| counts[(t + 1) as usize] += 1);
        }
        for (count, sixteenths) in counts.iter().zip([5.0, 6.0, 5.0]) {
            assert!(
                (f64::from(*count) / 10_000.0 - sixteenths).abs() < 0.15,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn seeds_differ() {
        let first = |seed| Random::new(seed).word();
        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
        assert_ne!(first(0), 0);
    }
}
