//! A model that comes from no file: whoever has weights can run them, and what does not fit together is an error.

use bitnet_layout::draw::uniform;
use bitnet_layout::words;
use bitnet_model::{
    Config, CpuBackend, CpuOptions, Dense, DenseDtype, Dims, LayerWeights, Result, Segment, Session,
    TernaryTensor, Want, WeightSource,
};

const DIMS: Dims = Dims {
    d_model: 64,
    d_ffn: 96,
    n_layers: 2,
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 16,
    vocab: 40,
};

struct Own(Config);

/// The embedding.
struct Table<'a>(&'a Config);

impl Dense for Table<'_> {
    fn dtype(&self) -> DenseDtype {
        DenseDtype::F32
    }
    fn shape(&self) -> (usize, usize) {
        (self.0.vocab, self.0.d_model)
    }
    fn read_rows(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let start = first * self.0.d_model;
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            *out = (uniform(1, (start + i) as u64) as f32 - 0.5).to_le_bytes();
        }
        Ok(())
    }
}

fn ternary(seed: u64, k: usize, rows: &[usize]) -> TernaryTensor {
    let n: usize = rows.iter().sum();
    let mut all = vec![0; n * k / 16];
    for (row, words) in all.chunks_exact_mut(k / 16).enumerate() {
        let t: Vec<i8> = (0..k)
            .map(|i| (uniform(seed, (row * k + i) as u64) * 3.0) as i8 - 1)
            .collect();
        words::pack_row(&t, words);
    }
    let segment = |&rows: &usize| Segment {
        rows,
        scale: 0.1,
        input_norm: None,
    };
    TernaryTensor {
        n,
        k,
        words: all,
        segments: rows.iter().map(segment).collect(),
    }
}

impl WeightSource for Own {
    fn config(&self) -> &Config {
        &self.0
    }
    fn embedding(&self) -> Result<Box<dyn Dense + '_>> {
        Ok(Box::new(Table(&self.0)))
    }
    fn layer(&self, index: usize) -> Result<LayerWeights> {
        let (c, seed) = (&self.0, 10 * index as u64);
        let ones = |k| vec![1.0; k];
        Ok(LayerWeights {
            attn_norm: ones(c.d_model),
            qkv: ternary(seed, c.d_model, &[c.d_q(), c.d_kv(), c.d_kv()]),
            q_norm: None,
            k_norm: None,
            attn_sub_norm: Some(ones(c.d_q())),
            o: ternary(seed + 1, c.d_q(), &[c.d_model]),
            ffn_norm: ones(c.d_model),
            gate_up: ternary(seed + 2, c.d_model, &[c.d_ffn, c.d_ffn]),
            ffn_sub_norm: Some(ones(c.d_ffn)),
            down: ternary(seed + 3, c.d_ffn, &[c.d_model]),
        })
    }
    fn final_norm(&self) -> Result<Vec<f32>> {
        Ok(vec![1.0; self.0.d_model])
    }
    fn head(&self) -> Result<Option<Box<dyn Dense + '_>>> {
        Ok(None)
    }
}

fn open(config: Config) -> Result<CpuBackend> {
    let options = CpuOptions {
        threads: Some(1),
        context: 64,
        ..CpuOptions::default()
    };
    CpuBackend::new(&Own(config), options)
}

#[test]
fn weights_of_ones_own_run() {
    let mut backend = open(Config::new(DIMS).unwrap()).unwrap();
    let mut session = Session::new(&mut backend);
    let logits = session.step(&[(0, &[3, 1, 4])], Want::Logits(&[0, 2])).unwrap();
    assert_eq!(logits.len(), 2 * 40);
    assert!(logits.iter().all(|x| x.is_finite()) && logits[..40] != logits[40..]);
}

#[test]
fn a_back_end_refuses_a_shape_that_was_broken() {
    type Change = fn(&mut Config);
    let changes: [(Change, &str); 9] = [
        (
            |c| c.n_kv_heads = 3,
            "n_heads is 4, which is no multiple of n_kv_heads 3",
        ),
        (|c| c.head_dim = 15, "head_dim is 15"),
        (|c| c.d_ffn = 0, "d_ffn is 0"),
        (|c| c.d_model = 66, "d_model is 66; it must be a multiple of 4"),
        (|c| c.n_heads = usize::MAX - 1, "n_heads * head_dim is"),
        (|c| c.max_context = usize::MAX, "max_context is"),
        (|c| c.vocab = usize::MAX, "vocab is"),
        (|c| c.rope_theta = f32::NAN, "rope_theta is NaN"),
        (|c| c.eos = vec![40], "bos or eos is 40"),
    ];
    for (change, expected) in changes {
        let mut config = Config::new(DIMS).unwrap();
        change(&mut config);
        let error = open(config).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = Config::new(Dims { vocab: 0, ..DIMS }).unwrap_err().to_string();
    assert!(error.contains("vocab is 0"), "{error}");
}
