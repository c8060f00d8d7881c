//! The CUDA back end: a model's weights in the hands of [`bitnet_cuda`], which knows no model.

mod dense;

use bitnet_cuda::engine::{
    self, Architecture, Choice, Engine, Grids, HeadKind, Inputs, Intermediate, LayerParts, Limits, MAX_BATCH,
    MAX_TOP_K, PAGE_POSITIONS, Profile, SegmentParts, Settings, TableForm, TernaryParts,
};
use bitnet_cuda::{Gpu, Reporting};
use bitnet_layout::Token;
use bitnet_layout::draw::MAX_TOKENS;

use crate::memory::{KvDemand, head_of};
use crate::sampler::MAX_SORTED;
use crate::{
    ActQuant, Backend, Batch, Decoder, Dense, Error, KvMemory, KvType, LmHead, Result, Sampler, Spec, Start,
    Tap, TernaryTensor, Verbs, Want, WeightForm, WeightSource, transformer,
};

/// The host sorts candidates where the device does, since draws from sorted ones are others.
const _: () = assert!(MAX_SORTED == MAX_TOP_K as usize);

/// How a model is run on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// The GPU, as the driver counts.
    pub device: u32,
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences of a batch; up to 256 of them are decoded side by side on the device.
    pub n_seqs: usize,
    /// How keys and values are kept: in bfloat16, or as 8-bit integers (of heads of up to 128 elements).
    pub kv_type: KvType,
    /// Memory for keys and values.
    pub kv_memory: KvMemory,
    /// Tokens one step can take.
    pub max_batch: usize,
    /// How the output head is kept.
    pub lm_head: LmHead,
    /// How the weights of linear layers are kept.
    pub weights: WeightForm,
    /// Whether to wait after every launch, so that an error names its kernel; slow.
    pub sync: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            device: 0,
            context: 4096,
            n_seqs: 1,
            kv_type: KvType::default(),
            kv_memory: KvMemory::default(),
            max_batch: 512,
            lm_head: LmHead::default(),
            weights: WeightForm::default(),
            sync: false,
        }
    }
}

/// A model on a GPU. Its results depend on the request alone: not on the rest of the batch, or how a prompt was cut.
pub struct CudaBackend {
    engine: Engine,
    spec: Spec,
    /// The norm before the output head, (d_model).
    final_norm: Vec<f32>,
    /// Results of the last step.
    results: Vec<f32>,
    /// What went wrong when a seat was freed, which cannot say so.
    failed: Option<Error>,
}

impl CudaBackend {
    /// Loads a model and allocates everything that running it needs.
    ///
    /// # Errors
    /// When there is no usable GPU, it has too little memory, its kernels do not support the model, or the source fails.
    pub fn new(source: &dyn WeightSource, options: CudaOptions) -> Result<Self> {
        let config = source.config().clone();
        config.check()?;
        let refuse = |what: &str| {
            Err(Error::Device(format!(
                "the GPU kernels do not support {what}; use the processor"
            )))
        };
        let kv_type = match options.kv_type {
            KvType::Bf16 => engine::KvType::Bf16,
            KvType::Int8 => engine::KvType::Int8,
            KvType::F32 => return refuse("keys and values in f32"),
        };
        let embedding = source.embedding()?;
        let ternary_head = source.ternary_head()?;
        let head = match &ternary_head {
            Some(_) => None,
            None => source.head()?,
        };
        let mut table = dense::form_of(embedding.as_ref())?;
        if let Some(head) = &head {
            table.terms = table.terms.max(dense::form_of(head.as_ref())?.terms);
        }
        let is_plain = table.is_plain(config.d_model);
        let reporting = if options.sync {
            Reporting::EachLaunch
        } else {
            Reporting::Late
        };
        let gpu = Gpu::new(options.device, reporting).map_err(device)?;
        let name = format!("cuda:{} ({})", options.device, gpu.properties().name);
        let (free_bytes, _) = gpu.memory().map_err(device)?;
        let asked = match (options.lm_head, options.weights) {
            // What ternary weights are compared with reads what the checkpoint has.
            (LmHead::Auto, WeightForm::Bf16) => LmHead::Stored,
            (LmHead::Auto, WeightForm::Ternary) if !(is_plain && Engine::certifies(&gpu, config.d_model)) => {
                LmHead::Stored
            }
            (asked, _) => asked,
        };
        let lm_head = head_of(&config, asked, Some(free_bytes));
        let head_kind = match (lm_head, &head) {
            _ if !config.has_head => HeadKind::None,
            // It is smaller than one of 8-bit integers.
            _ if ternary_head.is_some() => HeadKind::Ternary,
            (LmHead::Int8, _) => HeadKind::Int8,
            (_, None) => HeadKind::Embedding,
            (_, Some(_)) => HeadKind::Own,
        };
        let model = Architecture {
            dims: config.dims(),
            eps: config.rms_eps,
            weights: options.weights,
            inputs: match config.act_quant {
                ActQuant::Int8 => Inputs::Int8,
                ActQuant::None => Inputs::F32,
            },
            linear_norm_eps: config.linear_norm_eps,
            head: head_kind,
            table,
            is_certified: lm_head == LmHead::Certified
                && matches!(head_kind, HeadKind::Embedding | HeadKind::Own),
            sub_norms: config.sub_norms,
            qk_norms: config.qk_norms,
            frequencies: config.rope_frequencies(),
            activation: config.activation,
            kv_type,
        };
        // A prompt is cut into batches of this size: fewer change nothing but speed.
        let max_batch = options.max_batch.clamp(1, MAX_BATCH);
        let limits = Limits {
            context: options.context,
            n_seqs: options.n_seqs,
            max_batch,
            n_pages: 0,
        };
        let room = Engine::kv_room(&gpu, &model, limits).map_err(device)?;
        let demand = KvDemand {
            context: options.context,
            n_seqs: options.n_seqs,
            page: PAGE_POSITIONS,
            page_bytes: room.page_bytes,
        };
        let limits = Limits {
            n_pages: options.kv_memory.n_pages(demand, Some(room.free_bytes))?,
            ..limits
        };
        let mut engine = Engine::new(&gpu, model, limits).map_err(device)?;
        let rounds_embedding = head_kind == HeadKind::Int8 && head.is_none();
        upload(embedding.as_ref(), table, |start, words| {
            engine.set_embedding(start, words)?;
            if rounds_embedding {
                engine.set_head(start, words)?;
            }
            Ok(())
        })?;
        let staging = engine.staging().map_err(device)?;
        for index in 0..config.n_layers {
            let layer = source.layer(index)?;
            let segments = [&layer.qkv, &layer.o, &layer.gate_up, &layer.down].map(segments);
            let parts = LayerParts {
                attn_norm: &layer.attn_norm,
                ffn_norm: &layer.ffn_norm,
                q_norm: layer.q_norm.as_deref(),
                k_norm: layer.k_norm.as_deref(),
                attn_sub_norm: layer.attn_sub_norm.as_deref(),
                ffn_sub_norm: layer.ffn_sub_norm.as_deref(),
                qkv: parts(&layer.qkv, &segments[0]),
                o: parts(&layer.o, &segments[1]),
                gate_up: parts(&layer.gate_up, &segments[2]),
                down: parts(&layer.down, &segments[3]),
            };
            engine.set_layer(index, &parts, &staging).map_err(device)?;
        }
        let final_norm = source.final_norm()?;
        engine.set_final_norm(&final_norm).map_err(device)?;
        if let Some(head) = ternary_head {
            let segments = segments(&head);
            let parts = parts(&head, &segments);
            engine.set_ternary_head(&parts, &staging).map_err(device)?;
        }
        if let Some(head) = head {
            upload(head.as_ref(), table, |start, words| engine.set_head(start, words))?;
        }
        let spec = Spec {
            config,
            name,
            page: PAGE_POSITIONS,
            n_pages: engine.n_pages(),
            max_seqs: options.n_seqs,
            context: options.context,
            max_batch,
            kv_type: options.kv_type,
            head_bytes: engine.head_bytes(),
            memory_bytes: engine.memory_bytes(),
            weight_bytes: engine.weight_bytes(),
            kv_bytes: engine.kv_bytes(),
        };
        Ok(Self {
            engine,
            spec,
            final_norm,
            results: Vec::new(),
            failed: None,
        })
    }

    /// Measures the parts of a greedy decode step of the first token of each sequence of a batch. The batch has tokens for the
    /// positions that are measured too, so that there are pages for them; they are not computed.
    ///
    /// # Errors
    /// When the context has no room for the steps that are measured, or the device fails.
    pub fn profile(&mut self, batch: &Batch) -> Result<Profile> {
        let first = self.first_tokens(batch)?;
        self.engine.profile(&first).map_err(device)
    }

    /// Every combination of grids that the GPU has kernels for, of the linear layers of a decoded token: one where there is no
    /// choice.
    #[must_use]
    pub fn possible_grids(&self) -> Vec<Grids> {
        self.engine.possible_grids()
    }

    /// The grids that decode steps of sequences of up to `positions` positions take.
    #[must_use]
    pub fn default_grids(&self, positions: usize) -> Grids {
        self.engine.default_grids(positions)
    }

    /// Microseconds of a greedy decode step in each of some grids, the median of `samples`: of a batch as for
    /// [`CudaBackend::profile`].
    ///
    /// # Errors
    /// As for [`CudaBackend::profile`]; when there is no sample; and when the grids compute different bits.
    pub fn time_grids(&mut self, batch: &Batch, grids: &[Grids], samples: usize) -> Result<Vec<f64>> {
        let first = self.first_tokens(batch)?;
        self.engine.time_grids(&first, grids, samples).map_err(device)
    }

    /// The first token of each sequence of a batch, and the sequence's pages.
    fn first_tokens<'a>(&self, batch: &'a Batch) -> Result<Vec<(Token, &'a [u32])>> {
        self.spec.check(batch, Want::Nothing)?;
        let first_of = |row: usize| {
            let place = batch.rows().iter().position(|&other| other as usize == row)?;
            Some((batch.tokens()[place], batch.table(row)))
        };
        Ok((0..batch.n_tables()).filter_map(first_of).collect())
    }

    /// How the GPU chooses as `sampler` does; `None` where it cannot: with biases or rules, or a vocabulary that is too large.
    fn choice<'a>(&self, sampler: &Sampler, recent: &'a [u32]) -> Option<Choice<'a>> {
        let s = sampler.sampling();
        let last_n = if sampler.penalizes() {
            s.repeat_last_n.min(self.engine.max_recent())
        } else {
            0
        };
        let vocab = self.spec.config.vocab;
        let n_sorted = s.n_sorted(vocab);
        let can_choose = n_sorted.is_some() || vocab <= MAX_TOKENS as usize;
        // Keeping as many tokens as there are is keeping all.
        let top_k = n_sorted.unwrap_or(if s.top_k < vocab { s.top_k } else { 0 });
        (can_choose && !s.has_token_rules() && recent.len() <= last_n).then_some(Choice {
            settings: Settings {
                temperature: s.temperature,
                top_k: u32::try_from(top_k).ok()?,
                top_p: s.top_p,
                min_p: s.min_p,
                repeat_penalty: s.repeat_penalty,
                presence_penalty: s.presence_penalty,
                frequency_penalty: s.frequency_penalty,
                last_n: u32::try_from(last_n).ok()?,
                seed: s.seed,
            },
            recent,
            drawn: u32::try_from(sampler.draws()).ok()?,
        })
    }
}

/// Whether GPU `index` can be used: its name, or why not and what is needed.
///
/// # Errors
/// When there is no driver, no such GPU, or one of them is too old.
pub fn cuda_probe(index: u32) -> Result<String> {
    bitnet_cuda::probe(index)
        .map(|found| found.name)
        .map_err(|error| Error::NoDevice(error.into()))
}

/// An error of the GPU as this crate's.
fn device(error: bitnet_cuda::Error) -> Error {
    match error {
        bitnet_cuda::Error::OutOfMemory {
            what,
            needed_bytes,
            free_bytes,
            ..
        } => Error::OutOfMemory {
            what: format!("{what} on the GPU"),
            needed: needed_bytes,
            available: free_bytes,
        },
        bitnet_cuda::Error::Probe(error) => Error::NoDevice(error.into()),
        bitnet_cuda::Error::Request(message) => Error::Request(message),
        error @ bitnet_cuda::Error::NotFinite => Error::Damaged(error.to_string()),
        error => Error::DeviceFailed(error.into()),
    }
}

fn segments(tensor: &TernaryTensor) -> Vec<SegmentParts<'_>> {
    (tensor.segments.iter())
        .map(|segment| SegmentParts {
            rows: segment.rows,
            scale: segment.scale,
            input_norm: segment.input_norm.as_deref(),
        })
        .collect()
}

fn parts<'a>(tensor: &'a TernaryTensor, segments: &'a [SegmentParts<'a>]) -> TernaryParts<'a> {
    TernaryParts {
        n: tensor.n,
        k: tensor.k,
        words: &tensor.words,
        segments,
    }
}

/// Reads a matrix in pieces and hands them on as words of two bfloat16 values in rows of that form, with the word each begins at.
fn upload(
    dense: &dyn Dense,
    table: TableForm,
    mut to: impl FnMut(usize, &[u32]) -> bitnet_cuda::Result<()>,
) -> Result<()> {
    let cols = dense.shape().1;
    let row_words = table.stride(cols) / 2;
    let mut words = Vec::new();
    dense::pieces(dense, |first, bytes| {
        dense::to_words(dense.dtype(), bytes, cols, table, &mut words);
        to(first * row_words, &words).map_err(device)
    })
}

impl Backend for CudaBackend {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn step(&mut self, batch: &Batch, want: Want<'_>) -> Result<&[f32]> {
        self.spec.check(batch, want)?;
        transformer(self, batch, want)
    }

    fn decoder(&mut self) -> Option<&mut dyn Decoder> {
        self.spec.config.has_head.then_some(self)
    }

    fn verbs(&mut self) -> Option<&mut dyn Verbs> {
        Some(self)
    }
}

impl Verbs for CudaBackend {
    fn n_layers(&self) -> usize {
        self.spec.config.n_layers
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.spec.check(batch, Want::Nothing)?;
        let tables: Vec<&[u32]> = (0..batch.n_tables()).map(|row| batch.table(row)).collect();
        let copies: Vec<(u32, u32)> = batch.copies().iter().map(|copy| (copy.from, copy.to)).collect();
        if batch.tokens().is_empty() && copies.is_empty() {
            return Ok(());
        }
        // Copies alone where one upload would not hold them all.
        let at_once = self.spec.max_seqs;
        let (first, copies) = copies.split_at(copies.len().saturating_sub(at_once));
        for copies in first.chunks(at_once) {
            let batch = engine::Batch {
                tokens: &[],
                rows: &[],
                tables: &[],
                copies,
            };
            self.engine.begin(&batch).map_err(device)?;
        }
        let batch = engine::Batch {
            tokens: batch.tokens(),
            rows: batch.rows(),
            tables: &tables,
            copies,
        };
        self.engine.begin(&batch).map_err(device)
    }

    fn qkv(&mut self, layer: usize) -> Result<()> {
        self.engine.qkv(layer).map_err(device)
    }

    fn attention(&mut self, layer: usize) -> Result<()> {
        self.engine.attention(layer).map_err(device)
    }

    fn out_proj(&mut self, layer: usize) -> Result<()> {
        self.engine.out_proj(layer).map_err(device)
    }

    fn up_gate(&mut self, layer: usize) -> Result<()> {
        self.engine.up_gate(layer).map_err(device)
    }

    fn down(&mut self, layer: usize) -> Result<()> {
        self.engine.down(layer).map_err(device)
    }

    fn head(&mut self, want: Want<'_>) -> Result<&[f32]> {
        match want {
            Want::Nothing => self.results.clear(),
            Want::Logits(rows) => {
                self.results.resize(rows.len() * self.spec.config.vocab, 0.0);
                self.engine.logits(rows, &mut self.results).map_err(device)?;
            }
            Want::Hidden(rows) => {
                let d_model = self.spec.config.d_model;
                self.results.resize(rows.len() * d_model, 0.0);
                let each = rows.iter().zip(self.results.chunks_exact_mut(d_model));
                for (&row, x) in each {
                    self.engine.residual(row, x).map_err(device)?;
                    normalize(x, &self.final_norm, self.spec.config.rms_eps);
                }
            }
        }
        Ok(&self.results)
    }

    fn read(&mut self, tap: Tap) -> Result<Option<Vec<f32>>> {
        let what = match tap {
            Tap::Residual => Intermediate::Residual,
            Tap::Attention => Intermediate::Attention,
            Tap::Gated => Intermediate::Gated,
            // Rotated inside the attention kernels.
            Tap::Query | Tap::Key | Tap::Value => return Ok(None),
        };
        self.engine.read(what).map(Some).map_err(device)
    }
}

/// RMSNorm of a row, in place.
fn normalize(x: &mut [f32], weight: &[f32], eps: f32) {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt();
    for (x, &weight) in x.iter_mut().zip(weight) {
        *x = (f64::from(*x) * scale) as f32 * weight;
    }
}

impl Decoder for CudaBackend {
    fn seats(&self) -> usize {
        self.engine.seats()
    }

    fn lookahead(&self) -> usize {
        Engine::LOOKAHEAD
    }

    fn seat(&mut self, seat: usize, start: Start<'_>, sampler: &Sampler) -> Result<bool> {
        self.spec.check_limits(start.limits())?;
        // Penalties that count the answer alone know of no other tokens, where the others do nothing.
        let recent: Vec<u32> = match sampler.sampling().repeat_penalty == 1.0 {
            true => sampler.counted().collect(),
            false => sampler.recent().collect(),
        };
        let Some(choice) = self.choice(sampler, &recent) else {
            return Ok(false);
        };
        // The plain choice is one kernel instead of several.
        let choice = (!sampler.sampling().is_plain_greedy()).then_some(&choice);
        self.engine
            .seat(seat, start.token(), start.pages(), choice)
            .map_err(device)?;
        Ok(true)
    }

    fn pages(&mut self, seat: usize, pages: &[u32]) -> Result<()> {
        self.engine.pages(seat, pages).map_err(device)
    }

    fn leave(&mut self, seat: usize) {
        if let Err(error) = self.engine.leave(seat) {
            self.failed = Some(device(error));
        }
    }

    fn ahead(&mut self, steps: usize) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.engine.ahead(steps).map_err(device)
    }

    fn next(&mut self, out: &mut Vec<(usize, Result<u32>)>) -> Result<()> {
        let mut tokens = Vec::with_capacity(self.engine.seats());
        self.engine.next(&mut tokens).map_err(device)?;
        out.extend(
            tokens
                .into_iter()
                .map(|(seat, token)| (seat, token.map_err(device))),
        );
        Ok(())
    }
}
