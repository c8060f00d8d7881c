//! What the kernel tests share: random numbers, and running one kernel under several seeds.

use bitnet_kernels::emulator::{Emulator, Fault};

/// Random test data.
pub(crate) struct Random(bitnet_layout::random::Random);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(bitnet_layout::random::Random::new(seed))
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.0.word()
    }

    /// -1, 0 or 1.
    #[allow(dead_code)]
    pub(crate) fn ternary(&mut self) -> i8 {
        (self.word() % 3) as i8 - 1
    }

    /// Between -1 and 1, with a few much larger ones, as activations are.
    #[allow(dead_code)]
    pub(crate) fn float(&mut self) -> f32 {
        let x = self.word() as i32 as f32 / i32::MAX as f32;
        if self.word().is_multiple_of(64) {
            x * 20.0
        } else {
            x
        }
    }
}

/// Runs `run` under several seeds; all must give the same bits, which are returned.
#[allow(dead_code)]
pub(crate) fn same_for_all_seeds<T: PartialEq + std::fmt::Debug>(
    what: &str,
    run: impl Fn(&mut Emulator) -> Result<T, Fault>,
) -> T {
    let result =
        |seed| run(&mut Emulator::new(seed)).unwrap_or_else(|fault| panic!("{what}, seed {seed}: {fault}"));
    let first = result(0);
    for seed in 1..4 {
        assert!(
            result(seed) == first,
            "{what}: seed {seed} gives other bits than seed 0"
        );
    }
    first
}
