//! A model for tests.

use bitnet_layout::words;

use crate::{Config, Dense, DenseDtype, Dims, LayerWeights, Result, Segment, TernaryTensor, WeightSource};

/// A model of random weights, made as it is read.
pub(super) struct Random {
    pub(super) config: Config,
    pub(super) dtype: DenseDtype,
}

pub(super) struct RandomDense<'a>(pub(super) &'a Random, pub(super) u64);

pub(super) fn config() -> Config {
    let dims = Dims {
        d_model: 64,
        d_ffn: 112,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        vocab: 50,
    };
    let mut config = Config::new(dims).unwrap();
    (config.max_context, config.rope_theta) = (64, 10_000.0);
    config
}

pub(super) fn model(change: impl FnOnce(&mut Config)) -> Random {
    let mut config = config();
    change(&mut config);
    Random {
        config,
        dtype: DenseDtype::Bf16,
    }
}

pub(super) fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut random = bitnet_layout::random::Random::new(seed);
    std::iter::repeat_with(move || random.word().into())
}

pub(super) fn floats(seed: u64, len: usize, center: f32) -> Vec<f32> {
    let float = |x: u64| center + (x % 256) as f32 / 128.0 - 1.0;
    numbers(seed).take(len).map(float).collect()
}

impl Random {
    fn tensor(&self, seed: u64, k: usize, rows: &[usize]) -> TernaryTensor {
        let n: usize = rows.iter().sum();
        let t: Vec<i8> = numbers(seed).take(n * k).map(|x| (x % 3) as i8 - 1).collect();
        let padded = k.next_multiple_of(16);
        let mut packed = vec![0; n * padded / 16];
        for (row, words) in t.chunks_exact(k).zip(packed.chunks_exact_mut(padded / 16)) {
            let mut row = row.to_vec();
            row.resize(padded, 0);
            words::pack_row(&row, words);
        }
        let norms = self.config.linear_norm_eps.is_some();
        let segment = |(i, &rows): (usize, &usize)| Segment {
            rows,
            scale: 0.5 + i as f32,
            input_norm: norms.then(|| floats(seed + 7 + i as u64, k, 1.5)),
        };
        let segments = rows.iter().enumerate().map(segment).collect();
        TernaryTensor {
            n,
            k: padded,
            words: packed,
            segments,
        }
    }
}

impl WeightSource for Random {
    fn config(&self) -> &Config {
        &self.config
    }

    fn embedding(&self) -> Result<Box<dyn Dense + '_>> {
        Ok(Box::new(RandomDense(self, 1)))
    }

    fn layer(&self, index: usize) -> Result<LayerWeights> {
        let (c, seed) = (&self.config, 100 * index as u64);
        let sub_norm = |seed, k| c.sub_norms.then(|| floats(seed, k, 1.5));
        Ok(LayerWeights {
            attn_norm: floats(seed + 2, c.d_model, 1.5),
            qkv: self.tensor(seed + 10, c.d_model, &[c.d_q(), c.d_kv(), c.d_kv()]),
            q_norm: c.qk_norms.then(|| floats(seed + 6, c.head_dim, 1.5)),
            k_norm: c.qk_norms.then(|| floats(seed + 7, c.head_dim, 1.5)),
            attn_sub_norm: sub_norm(seed + 3, c.d_q()),
            o: self.tensor(seed + 20, c.d_q(), &[c.d_model]),
            ffn_norm: floats(seed + 4, c.d_model, 1.5),
            gate_up: self.tensor(seed + 30, c.d_model, &[c.d_ffn, c.d_ffn]),
            ffn_sub_norm: sub_norm(seed + 5, c.d_ffn),
            down: self.tensor(seed + 40, c.d_ffn, &[c.d_model]),
        })
    }

    fn final_norm(&self) -> Result<Vec<f32>> {
        Ok(floats(6, self.config.d_model, 1.5))
    }

    fn head(&self) -> Result<Option<Box<dyn Dense + '_>>> {
        Ok(if self.config.tied_head || self.config.ternary_head {
            None
        } else {
            Some(Box::new(RandomDense(self, 7)))
        })
    }

    fn ternary_head(&self) -> Result<Option<TernaryTensor>> {
        let c = &self.config;
        Ok(c.ternary_head.then(|| self.tensor(50, c.d_model, &[c.vocab])))
    }
}

impl RandomDense<'_> {
    pub(super) fn row(&self, row: usize) -> Vec<f32> {
        floats(self.1 * 1000 + row as u64, self.0.config.d_model, 0.0)
    }
}

impl Dense for RandomDense<'_> {
    fn dtype(&self) -> DenseDtype {
        self.0.dtype
    }

    fn shape(&self) -> (usize, usize) {
        (self.0.config.vocab, self.0.config.d_model)
    }

    fn read_rows(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let row_bytes = self.0.config.d_model * self.0.dtype.size();
        for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            let bytes = self.row(first + i).into_iter().flat_map(|x| match self.0.dtype {
                DenseDtype::Bf16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
                DenseDtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
                DenseDtype::F32 => x.to_le_bytes().to_vec(),
            });
            out.copy_from_slice(&bytes.collect::<Vec<_>>());
        }
        Ok(())
    }
}
