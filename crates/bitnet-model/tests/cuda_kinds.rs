//! Models of every kind on the GPU beside the CPU: what published ones are made of beyond the 2B model's parts. Returns early, saying so,
//! where there is no GPU.
#![cfg(feature = "cuda")]

use std::ops::ControlFlow;

use bitnet_layout::draw::uniform;
use bitnet_layout::words;
use bitnet_model::{
    ActQuant, Activation, Config, CpuBackend, CpuOptions, CudaBackend, CudaOptions, Dense, DenseDtype, Dims,
    KvType, LayerWeights, LmHead, Result, Sampler, Sampling, Segment, Session, TernaryTensor, Want,
    WeightSource,
};

/// A model of random weights.
struct Random {
    config: Config,
    /// Of the embedding and of a head of its own.
    dtype: DenseDtype,
}

/// A table of random numbers.
struct Table {
    seed: u64,
    dtype: DenseDtype,
    shape: (usize, usize),
}

impl Dense for Table {
    fn dtype(&self) -> DenseDtype {
        self.dtype
    }
    fn shape(&self) -> (usize, usize) {
        self.shape
    }
    fn read_rows(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let size = self.dtype.size();
        for (i, out) in out.chunks_exact_mut(size).enumerate() {
            let value = uniform(self.seed, (first * self.shape.1 + i) as u64) as f32 - 0.5;
            match self.dtype {
                DenseDtype::Bf16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                DenseDtype::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                DenseDtype::F32 => out.copy_from_slice(&value.to_le_bytes()),
            }
        }
        Ok(())
    }
}

/// Weights of a norm.
fn norm(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| uniform(seed, i) as f32 + 0.5).collect()
}

impl Random {
    fn ternary(&self, seed: u64, k: usize, rows: &[usize]) -> TernaryTensor {
        let (n, whole): (usize, usize) = (rows.iter().sum(), k.next_multiple_of(16));
        let mut all = vec![0; n * whole / 16];
        for (row, words) in all.chunks_exact_mut(whole / 16).enumerate() {
            let mut t: Vec<i8> = (0..k)
                .map(|i| (uniform(seed, (row * k + i) as u64) * 3.0) as i8 - 1)
                .collect();
            t.resize(whole, 0);
            words::pack_row(&t, words);
        }
        let segment = |(i, &rows): (usize, &usize)| Segment {
            rows,
            scale: 0.05 + 0.013 * i as f32,
            input_norm: self
                .config
                .linear_norm_eps
                .map(|_| norm(seed + 500 + i as u64, k)),
        };
        TernaryTensor {
            n,
            k: whole,
            words: all,
            segments: rows.iter().enumerate().map(segment).collect(),
        }
    }

    fn table(&self, seed: u64) -> Table {
        Table {
            seed,
            dtype: self.dtype,
            shape: (self.config.vocab, self.config.d_model),
        }
    }
}

impl WeightSource for Random {
    fn config(&self) -> &Config {
        &self.config
    }
    fn embedding(&self) -> Result<Box<dyn Dense + '_>> {
        Ok(Box::new(self.table(1)))
    }
    fn layer(&self, index: usize) -> Result<LayerWeights> {
        let (c, seed) = (&self.config, 1000 * (index as u64 + 1));
        let norm_if = |is_there: bool, seed, n| is_there.then(|| norm(seed, n));
        Ok(LayerWeights {
            attn_norm: norm(seed + 10, c.d_model),
            qkv: self.ternary(seed, c.d_model, &[c.d_q(), c.d_kv(), c.d_kv()]),
            q_norm: norm_if(c.qk_norms, seed + 11, c.head_dim),
            k_norm: norm_if(c.qk_norms, seed + 12, c.head_dim),
            attn_sub_norm: norm_if(c.sub_norms, seed + 13, c.d_q()),
            o: self.ternary(seed + 1, c.d_q(), &[c.d_model]),
            ffn_norm: norm(seed + 14, c.d_model),
            gate_up: self.ternary(seed + 2, c.d_model, &[c.d_ffn, c.d_ffn]),
            ffn_sub_norm: norm_if(c.sub_norms, seed + 15, c.d_ffn),
            down: self.ternary(seed + 3, c.d_ffn, &[c.d_model]),
        })
    }
    fn final_norm(&self) -> Result<Vec<f32>> {
        Ok(norm(2, self.config.d_model))
    }
    fn head(&self) -> Result<Option<Box<dyn Dense + '_>>> {
        let own = self.config.has_head && !self.config.tied_head && !self.config.ternary_head;
        Ok(own.then(|| Box::new(self.table(3)) as Box<dyn Dense>))
    }
    fn ternary_head(&self) -> Result<Option<TernaryTensor>> {
        let tensor = || self.ternary(4, self.config.d_model, &[self.config.vocab]);
        Ok(self.config.ternary_head.then(tensor))
    }
}

/// As Llama is, in 8-bit activations and with tables of bfloat16, changed from there.
fn model(dims: Dims, dtype: DenseDtype, change: impl FnOnce(&mut Config)) -> Random {
    let mut config = Config::new(dims).unwrap();
    config.activation = Activation::Silu;
    config.sub_norms = false;
    change(&mut config);
    Random { config, dtype }
}

const DIMS: Dims = Dims {
    d_model: 256,
    d_ffn: 320,
    n_layers: 2,
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 64,
    vocab: 300,
};

/// Every part alone, and then together.
fn models() -> Vec<(&'static str, Random)> {
    use DenseDtype::{Bf16, F16, F32};
    let norms = |c: &mut Config| c.linear_norm_eps = Some(1e-6);
    let ragged = Dims {
        d_model: 404,
        d_ffn: 276,
        n_heads: 4,
        n_kv_heads: 4,
        head_dim: 100,
        ..DIMS
    };
    vec![
        ("a norm before every linear layer", model(DIMS, Bf16, norms)),
        (
            "a norm before every linear layer, beside those of the blocks",
            model(DIMS, Bf16, |c| {
                norms(c);
                c.sub_norms = true;
                c.activation = Activation::Relu2;
            }),
        ),
        (
            "float inputs",
            model(DIMS, Bf16, |c| c.act_quant = ActQuant::None),
        ),
        (
            "float inputs with norms of their own",
            model(DIMS, Bf16, |c| {
                norms(c);
                c.act_quant = ActQuant::None;
            }),
        ),
        ("tables of f16", model(DIMS, F16, |_| {})),
        ("tables of f32", model(DIMS, F32, |c| c.tied_head = false)),
        (
            "a ternary head",
            model(DIMS, Bf16, |c| {
                c.tied_head = false;
                c.ternary_head = true;
            }),
        ),
        (
            "a ternary head with a norm",
            model(DIMS, F16, |c| {
                norms(c);
                c.tied_head = false;
                c.ternary_head = true;
            }),
        ),
        ("norms of heads", model(DIMS, Bf16, |c| c.qk_norms = true)),
        ("ragged widths", model(ragged, Bf16, |c| c.sub_norms = true)),
        (
            "all of it",
            model(ragged, F32, |c| {
                norms(c);
                c.qk_norms = true;
                c.tied_head = false;
            }),
        ),
    ]
}

fn options(n_seqs: usize) -> CudaOptions {
    CudaOptions {
        context: 128,
        n_seqs,
        max_batch: 128,
        lm_head: LmHead::Stored,
        ..CudaOptions::default()
    }
}

fn has_gpu() -> bool {
    match bitnet_model::cuda_probe(0) {
        Ok(_) => true,
        Err(error) => {
            let is_required = std::env::var("BITNET_GPU").as_deref() == Ok("required");
            assert!(!is_required, "{error}");
            println!("not tested: {error}");
            false
        }
    }
}

fn prompt(seq: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 37 + 11 * seq + 5) % 300) as u32).collect()
}

/// Logits near the CPU's; cut and in company the same bits; decoded on the device the same tokens as through the host.
#[test]
fn every_kind_of_model_runs_as_on_the_processor() {
    if !has_gpu() {
        return;
    }
    // A checker, a hundred times slower, gets the last, which has nearly everything.
    let is_checked = std::env::var_os("BITNET_GPU_CHECKED").is_some();
    let mut models = models();
    let models = models.split_off(if is_checked { models.len() - 1 } else { 0 });
    for (name, source) in models {
        let vocab = source.config.vocab;
        let mut cpu = CpuBackend::new(
            &source,
            CpuOptions {
                context: 128,
                max_batch: 128,
                lm_head: LmHead::Stored,
                ..CpuOptions::default()
            },
        )
        .unwrap();
        let ids = prompt(0, 40);
        let rows: Vec<usize> = (0..ids.len()).collect();
        let mut session = Session::new(&mut cpu);
        let expected = session.step(&[(0, &ids)], Want::Logits(&rows)).unwrap().to_vec();

        let mut gpu = CudaBackend::new(&source, options(5)).unwrap();
        let mut session = Session::new(&mut gpu);
        let found = session.step(&[(0, &ids)], Want::Logits(&rows)).unwrap().to_vec();
        let rms = |of: &dyn Fn(f32, f32) -> f64| -> f64 {
            let sum: f64 = found.iter().zip(&expected).map(|(&a, &b)| of(a, b).powi(2)).sum();
            (sum / expected.len() as f64).sqrt()
        };
        let (noise, size) = (rms(&|a, b| f64::from(a - b)), rms(&|_, b| f64::from(b)));
        println!("{name}: logits differ by {:.2e} of their size", noise / size);
        // Keys, values and queries are bfloat16 there; a wrong norm or scale changes all of it.
        assert!(noise < 0.1 * size, "{name}: logits differ by {noise} of {size}");

        session.rewind(0, 0);
        for (first, part) in [(0, 1), (1, 2), (3, 3), (6, 34)] {
            let rows: Vec<usize> = (0..part).collect();
            let other = prompt(1, part);
            session.rewind(1, 0);
            let runs = [(0, &ids[first..first + part]), (1, &other[..])];
            let logits = session.step(&runs, Want::Logits(&rows)).unwrap();
            let expected = &found[first * vocab..][..part * vocab];
            assert!(
                logits
                    .iter()
                    .zip(expected)
                    .all(|(a, b)| a.to_bits() == b.to_bits()),
                "{name}: {part} tokens from {first} in company"
            );
        }

        let n_steps = if is_checked { 2 } else { 12 };
        let mut choices = Vec::new();
        for n_seqs in [1, 2, 5] {
            (0..n_seqs).for_each(|seq| {
                session.rewind(seq, 0);
                session.step(&[(seq, &ids)], Want::Nothing).unwrap();
            });
            let first: Vec<(usize, u32)> = (0..n_seqs).map(|seq| (seq, 7)).collect();
            let samplers = vec![Sampler::new(Sampling::greedy()).unwrap(); n_seqs];
            let mut all = vec![Vec::new(); n_seqs];
            let take = |ids: &[u32]| {
                all.iter_mut().zip(ids).for_each(|(row, &id)| row.push(id));
                ControlFlow::Continue(())
            };
            assert!(session.decode(&first, &samplers, n_steps, take).unwrap());
            choices.extend(all);
        }
        assert!(choices.iter().all(|row| *row == choices[0]), "{name}");
        session.rewind(0, ids.len());
        let mut id = 7;
        for &expected in &choices[0] {
            let logits = session.step(&[(0, &[id])], Want::Logits(&[0])).unwrap();
            let best = |best, i| if logits[i] > logits[best] { i } else { best };
            id = (1..vocab).fold(0, best) as u32;
            assert_eq!(id, expected, "{name}");
        }
    }
}

/// What has no output head gives rows after the last norm.
#[test]
fn a_model_without_a_head_gives_hidden_rows() {
    if !has_gpu() {
        return;
    }
    let source = model(DIMS, DenseDtype::F32, |c| {
        c.linear_norm_eps = Some(1e-6);
        c.qk_norms = true;
        c.has_head = false;
    });
    let mut cpu = CpuBackend::new(
        &source,
        CpuOptions {
            kv_type: KvType::Bf16,
            context: 128,
            ..CpuOptions::default()
        },
    )
    .unwrap();
    let mut gpu = CudaBackend::new(&source, options(1)).unwrap();
    let ids = prompt(0, 40);
    let want = Want::Hidden(&[0, 39]);
    let expected = Session::new(&mut cpu).step(&[(0, &ids)], want).unwrap().to_vec();
    let found = Session::new(&mut gpu).step(&[(0, &ids)], want).unwrap().to_vec();
    let squares = |of: &dyn Fn(f32, f32) -> f32| -> f32 {
        found.iter().zip(&expected).map(|(&a, &b)| of(a, b).powi(2)).sum()
    };
    let (noise, size) = (squares(&|a, b| a - b), squares(&|_, b| b));
    assert!(noise < 0.01 * size, "rows differ by {noise} of {size}");
    let error = Session::new(&mut gpu)
        .step(&[(0, &ids[..1])], Want::Logits(&[0]))
        .unwrap_err();
    assert!(error.to_string().contains("no output head"), "{error}");
}
