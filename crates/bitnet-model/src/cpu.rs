//! The CPU back end: a model's weights in the hands of [`bitnet_cpu`], which knows no model.

mod linear;
mod scratch;

mod head;
#[cfg(test)]
mod tests;

use bitnet_cpu::{
    Angles, Ask, Best, Cpu, DenseMatrix, Heads, KvCache, KvRows, KvShape, KvType, Norm, Numa, Places,
    Queries, Simd, Write, ZeroCounts,
};

use crate::memory::{KvDemand, KvMemory, available, head_of, weight_bytes, zeros_bytes};
use crate::{
    Backend, Batch, CertifiedHead, Config, Error, LayerWeights, LmHead, Result, SkipZeros, Spec, Tap, Verbs,
    Want, WeightSource, transformer,
};
use head::{Head, dense};
use linear::{Input, Linear, Skip};
use scratch::Scratch;

/// Positions of a page.
const PAGE: usize = 64;

/// How a model is run on the CPU.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Threads, of which no more run than there are cores; `None`: as many as the system lets this process use.
    pub threads: Option<usize>,
    /// Instruction set; `None`: the best this processor has.
    pub simd: Option<Simd>,
    /// Where threads run and weights lie on a machine with several memory nodes.
    pub numa: Numa,
    /// Most positions of a sequence.
    pub context: usize,
    /// Most sequences of a step.
    pub n_seqs: usize,
    /// Tokens one step can take.
    pub max_batch: usize,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Memory for keys and values.
    pub kv_memory: KvMemory,
    /// Positions of a page of keys and values: a power of two, at least 16.
    pub page: usize,
    /// How the output head is kept.
    pub lm_head: LmHead,
    /// Whether what squared ReLU makes zero is left out.
    pub skip_zeros: SkipZeros,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            threads: None,
            simd: None,
            numa: Numa::default(),
            context: 4096,
            n_seqs: 1,
            max_batch: 512,
            kv_type: KvType::default(),
            kv_memory: KvMemory::default(),
            page: PAGE,
            lm_head: LmHead::default(),
            skip_zeros: SkipZeros::default(),
        }
    }
}

/// A model on the CPU. Its results depend on the request alone: not on the instruction set, the number of threads, the
/// rest of the batch, or how a prompt was cut.
pub struct CpuBackend {
    cpu: Cpu,
    spec: Spec,
    embedding: DenseMatrix,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Head,
    kv: KvCache,
    scratch: Scratch,
    /// Where the tokens of the batch are.
    places: Places,
    /// The layer whose verb ran last.
    layer: usize,
}

struct Layer {
    attn_norm: Vec<f32>,
    qkv: Linear,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    attn_sub_norm: Option<Vec<f32>>,
    o: Linear,
    ffn_norm: Vec<f32>,
    gate_up: Linear,
    ffn_sub_norm: Option<Vec<f32>>,
    down: Linear,
}

impl CpuBackend {
    /// Loads a model and allocates everything that running it needs.
    ///
    /// # Errors
    /// When the source fails, a tensor does not have the shape that the config says, the instruction set is not there, or
    /// memory cannot be had.
    pub fn new(source: &dyn WeightSource, options: CpuOptions) -> Result<Self> {
        let config = source.config().clone();
        config.check()?;
        for (value, name) in [
            (options.context, "context"),
            (options.n_seqs, "number of sequences"),
            (options.max_batch, "batch size"),
            (options.page, "number of positions of a page"),
        ] {
            if value == 0 {
                return Err(Error::Request(format!("the {name} must be at least 1, not 0")));
            }
        }
        let cpu = Cpu::on(options.simd, options.threads, options.numa)?;
        let stay = cpu.stay();
        let mut shape = KvShape {
            n_layers: config.n_layers,
            n_pages: 1,
            page: options.page,
            n_kv_heads: config.n_kv_heads,
            n_heads: config.n_heads,
            head_dim: config.head_dim,
            context: options.context,
        };
        let demand = KvDemand {
            context: options.context,
            n_seqs: options.n_seqs,
            page: options.page,
            page_bytes: shape.page_bytes(options.kv_type),
        };
        let free = available();
        let lm_head = head_of(&config, options.lm_head, free);
        let free = free.map(|free| free.saturating_sub(weight_bytes(&config, lm_head)));
        let zeros_bytes = zeros_bytes(&config, options.skip_zeros, free);
        let free = free.map(|free| free.saturating_sub(zeros_bytes));
        shape.n_pages = options.kv_memory.n_pages(demand, free)?;
        let kv = KvCache::new(&cpu, options.kv_type, shape)?;
        let scratch = Scratch::new(&config, &cpu, options.max_batch)?;
        let expected = (config.vocab, config.d_model);
        let embedding = dense(&cpu, &*source.embedding()?, "the embedding", expected)?;
        let layers: Vec<_> = (0..config.n_layers)
            .map(|index| Layer::new(&cpu, &config, index, source.layer(index)?, zeros_bytes > 0))
            .collect::<Result<_>>()?;
        let final_norm = source.final_norm()?;
        check_len("the final norm", final_norm.len(), config.d_model)?;
        let head = Head::new(&cpu, &config, source, &embedding, lm_head, options.max_batch)?;
        let threads = cpu.n_threads();
        let plural = if threads == 1 { "" } else { "s" };
        let nodes = match cpu.n_nodes() {
            1 => String::new(),
            n => format!(" on {n} memory nodes"),
        };
        let layer_bytes: u64 = layers.iter().map(Layer::bytes).sum();
        let weight_bytes = embedding.bytes() + layer_bytes + head.bytes();
        let spec = Spec {
            name: format!("cpu ({}, {threads} thread{plural}{nodes})", cpu.simd()),
            page: shape.page,
            n_pages: shape.n_pages,
            max_seqs: options.n_seqs,
            context: options.context,
            max_batch: options.max_batch,
            kv_type: options.kv_type,
            head_bytes: head.step_bytes(&embedding),
            memory_bytes: weight_bytes + kv.bytes() + scratch.bytes(),
            weight_bytes,
            kv_bytes: kv.bytes(),
            config,
        };
        drop(stay);
        Ok(Self {
            cpu,
            spec,
            embedding,
            layers,
            final_norm,
            head,
            kv,
            scratch,
            places: Places::default(),
            layer: 0,
        })
    }

    fn start_layer(&mut self, layer: usize) -> Result<()> {
        if layer >= self.layers.len() {
            return Err(Error::Request(format!("layer {layer} of {}", self.layers.len())));
        }
        self.layer = layer;
        Ok(())
    }
}

impl Backend for CpuBackend {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn step(&mut self, batch: &Batch, want: Want<'_>) -> Result<&[f32]> {
        self.spec.check(batch, want)?;
        let _stay = self.cpu.stay();
        transformer(self, batch, want)
    }

    fn verbs(&mut self) -> Option<&mut dyn Verbs> {
        Some(self)
    }

    fn zeros(&self) -> ZeroCounts {
        self.scratch.activations.zeros()
    }

    fn certified(&mut self) -> Option<&mut dyn CertifiedHead> {
        matches!(self.head, Head::Certified { .. }).then_some(self)
    }
}

impl CertifiedHead for CpuBackend {
    fn best(&mut self, hidden: &[f32], asks: &[Ask<'_>]) -> Result<Vec<Best>> {
        let _stay = self.cpu.stay();
        self.head.best(&self.cpu, &self.embedding, hidden, asks)
    }
}

impl Verbs for CpuBackend {
    fn n_layers(&self) -> usize {
        self.layers.len()
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.spec.check(batch, Want::Nothing)?;
        for copy in batch.copies() {
            self.kv.copy_page(copy.from, copy.to);
        }
        self.places.clear();
        (0..batch.n_tables()).for_each(|table| self.places.add_table(batch.table(table)));
        for (token, &table) in batch.tokens().iter().zip(batch.rows()) {
            self.places.add(table as usize, token.pos as usize);
        }
        let batch = batch.tokens();
        let s = &mut self.scratch;
        let residual = &mut s.residual[..batch.len() * self.spec.config.d_model];
        let id = |token: usize| batch[token].id as usize;
        self.cpu.gather(&self.embedding, &id, residual);
        let n_angles = batch.len() * s.frequencies.len();
        let (cos, sin) = (&mut s.cos[..n_angles], &mut s.sin[..n_angles]);
        let position = |token: usize| batch[token].pos as usize;
        self.cpu.angles(&position, &s.frequencies, cos, sin);
        Ok(())
    }

    fn qkv(&mut self, layer: usize) -> Result<()> {
        self.start_layer(layer)?;
        let (c, s, n_tokens) = (&self.spec.config, &mut self.scratch, self.places.len());
        let Layer {
            attn_norm,
            qkv,
            q_norm,
            k_norm,
            ..
        } = &self.layers[layer];
        let input = Input {
            x: &s.residual[..n_tokens * c.d_model],
            norm: Some(attn_norm),
        };
        let rows = &mut s.qkv[..n_tokens * qkv.n];
        qkv.apply(&self.cpu, c, &mut s.activations, input, rows, Write::Replace);
        // Queries and keys stand side by side, so one call rotates both.
        let heads = Heads {
            stride: qkv.n,
            first: 0,
            count: c.n_heads + c.n_kv_heads,
            dim: c.head_dim,
        };
        for (norm, first, count) in [(q_norm, 0, c.n_heads), (k_norm, c.n_heads, c.n_kv_heads)] {
            if let Some(weight) = norm {
                let eps = c.rms_eps;
                let first = heads.first + first * c.head_dim;
                self.cpu.norm_heads(
                    rows,
                    Heads {
                        first,
                        count,
                        ..heads
                    },
                    Norm { weight, eps },
                );
            }
        }
        let n_angles = n_tokens * s.frequencies.len();
        let angles = Angles {
            cos: &s.cos[..n_angles],
            sin: &s.sin[..n_angles],
        };
        self.cpu.rotate(rows, heads, angles);
        let rows = KvRows {
            data: rows,
            stride: qkv.n,
            keys: c.d_q(),
            values: c.d_q() + c.d_kv(),
            places: &self.places,
        };
        self.cpu.store(&mut self.kv, layer, rows);
        Ok(())
    }

    fn attention(&mut self, layer: usize) -> Result<()> {
        self.start_layer(layer)?;
        let (c, s, n_tokens) = (&self.spec.config, &mut self.scratch, self.places.len());
        let queries = Queries {
            q: &s.qkv,
            stride: self.layers[layer].qkv.n,
            places: &self.places,
            out: &mut s.attention[..n_tokens * c.d_q()],
        };
        self.cpu.attention(&mut self.kv, layer, queries);
        Ok(())
    }

    fn out_proj(&mut self, layer: usize) -> Result<()> {
        self.start_layer(layer)?;
        let (c, s, n_tokens) = (&self.spec.config, &mut self.scratch, self.places.len());
        let Layer { attn_sub_norm, o, .. } = &self.layers[layer];
        let input = Input {
            x: &s.attention[..n_tokens * c.d_q()],
            norm: attn_sub_norm.as_deref(),
        };
        let residual = &mut s.residual[..n_tokens * c.d_model];
        o.apply(&self.cpu, c, &mut s.activations, input, residual, Write::Add);
        Ok(())
    }

    fn up_gate(&mut self, layer: usize) -> Result<()> {
        self.start_layer(layer)?;
        let (c, s, n_tokens) = (&self.spec.config, &mut self.scratch, self.places.len());
        let Layer {
            ffn_norm, gate_up, ..
        } = &self.layers[layer];
        let input = Input {
            x: &s.residual[..n_tokens * c.d_model],
            norm: Some(ffn_norm),
        };
        // Empty where no projection has a norm of its own.
        let rows = &mut s.gate_up[..if gate_up.is_split() {
            n_tokens * gate_up.n
        } else {
            0
        }];
        let gated = &mut s.gated[..n_tokens * c.d_ffn];
        gate_up.apply_gated(&self.cpu, c, &mut s.activations, input, rows, gated);
        Ok(())
    }

    fn down(&mut self, layer: usize) -> Result<()> {
        self.start_layer(layer)?;
        let (c, s, n_tokens) = (&self.spec.config, &mut self.scratch, self.places.len());
        let Layer {
            ffn_sub_norm, down, ..
        } = &self.layers[layer];
        let input = Input {
            x: &s.gated[..n_tokens * c.d_ffn],
            norm: ffn_sub_norm.as_deref(),
        };
        let residual = &mut s.residual[..n_tokens * c.d_model];
        down.apply(&self.cpu, c, &mut s.activations, input, residual, Write::Add);
        Ok(())
    }

    fn head(&mut self, want: Want<'_>) -> Result<&[f32]> {
        let (c, s, n_tokens) = (&self.spec.config, &mut self.scratch, self.places.len());
        let rows = want.rows();
        if rows.len() > n_tokens || rows.iter().any(|&row| row >= n_tokens) {
            return Err(Error::Request(format!(
                "results of rows {rows:?} of a batch of {n_tokens} tokens"
            )));
        }
        let last = &mut s.last[..rows.len() * c.d_model];
        for (&row, last) in rows.iter().zip(last.chunks_exact_mut(c.d_model)) {
            last.copy_from_slice(&s.residual[row * c.d_model..][..c.d_model]);
        }
        let norm = Norm {
            weight: &self.final_norm,
            eps: c.rms_eps,
        };
        self.cpu.rms_norm(last, norm);
        if let Want::Nothing | Want::Hidden(_) = want {
            return Ok(last);
        }
        if !c.has_head {
            return Err(Error::Request(
                "this is an embedding model, which writes no text; use `bitnet embed`".into(),
            ));
        }
        let len = rows.len() * c.vocab;
        if s.logits.len() < len {
            s.logits.resize(len, 0.0);
        }
        let logits = &mut s.logits[..len];
        self.head
            .apply(&self.cpu, c, &mut s.activations, &self.embedding, last, logits)?;
        Ok(logits)
    }

    fn read(&mut self, tap: Tap) -> Result<Option<Vec<f32>>> {
        let (c, s, n_tokens) = (&self.spec.config, &self.scratch, self.places.len());
        let cached = || (0..n_tokens).map(|token| self.kv.load(self.layer, &self.places, token));
        Ok(Some(match tap {
            Tap::Residual => s.residual[..n_tokens * c.d_model].to_vec(),
            Tap::Query => {
                let rows = s.qkv.chunks_exact(c.d_q() + 2 * c.d_kv()).take(n_tokens);
                rows.flat_map(|row| &row[..c.d_q()]).copied().collect()
            }
            Tap::Key => cached().flat_map(|(keys, _)| keys).collect(),
            Tap::Value => cached().flat_map(|(_, values)| values).collect(),
            Tap::Attention => s.attention[..n_tokens * c.d_q()].to_vec(),
            Tap::Gated => s.gated[..n_tokens * c.d_ffn].to_vec(),
        }))
    }
}

impl Layer {
    fn new(cpu: &Cpu, c: &Config, index: usize, w: LayerWeights, skip_zeros: bool) -> Result<Self> {
        let name = |part: &str| format!("{part} of layer {index}");
        check_len(&name("attn_norm"), w.attn_norm.len(), c.d_model)?;
        check_len(&name("ffn_norm"), w.ffn_norm.len(), c.d_model)?;
        for (norm, part, k) in [
            (&w.attn_sub_norm, "attn_sub_norm", c.d_q()),
            (&w.ffn_sub_norm, "ffn_sub_norm", c.d_ffn),
            (&w.q_norm, "q_norm", c.head_dim),
            (&w.k_norm, "k_norm", c.head_dim),
        ] {
            if let Some(norm) = norm {
                check_len(&name(part), norm.len(), k)?;
            }
        }
        let linear = |part: &str, tensor, n, k, skip| Linear::new(cpu, c, &name(part), tensor, (n, k), skip);
        let (gated, input) = match skip_zeros {
            true => (Skip::Gated, Skip::Input),
            false => (Skip::Nothing, Skip::Nothing),
        };
        let mut layer = Self {
            qkv: linear("q, k, v", w.qkv, c.d_q() + 2 * c.d_kv(), c.d_model, Skip::Nothing)?,
            o: linear("o", w.o, c.d_model, c.d_q(), Skip::Nothing)?,
            gate_up: linear("gate, up", w.gate_up, 2 * c.d_ffn, c.d_model, gated)?,
            down: linear("down", w.down, c.d_model, c.d_ffn, input)?,
            attn_norm: w.attn_norm,
            q_norm: w.q_norm,
            k_norm: w.k_norm,
            attn_sub_norm: w.attn_sub_norm,
            ffn_norm: w.ffn_norm,
            ffn_sub_norm: w.ffn_sub_norm,
        };
        for linear in [&mut layer.qkv, &mut layer.o, &mut layer.down] {
            linear.place(cpu, false)?;
        }
        layer.gate_up.place(cpu, true)?;
        Ok(layer)
    }

    fn bytes(&self) -> u64 {
        let linears = [&self.qkv, &self.o, &self.gate_up, &self.down];
        linears.into_iter().map(Linear::bytes).sum()
    }
}

fn check_len(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::Request(format!(
            "{what}: found {found}, expected {expected}"
        )))
    }
}

impl From<bitnet_cpu::Error> for Error {
    fn from(error: bitnet_cpu::Error) -> Self {
        match error {
            bitnet_cpu::Error::Memory { what, bytes } => Self::OutOfMemory {
                what: what.to_owned(),
                needed: u64::try_from(bytes)
                    .ok()
                    .filter(|_| bytes < usize::MAX)
                    .unwrap_or(u64::MAX),
                available: available().unwrap_or(0),
            },
            bitnet_cpu::Error::Simd { .. } | bitnet_cpu::Error::Numa { .. } => Self::NoDevice(error.into()),
            error => Self::DeviceFailed(error.into()),
        }
    }
}
