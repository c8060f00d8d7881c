//! A model's files, opened: everything is checked against the configuration at once, and read when it is asked for.
//!
//! Folders are what the Hugging Face Hub serves (every form of BitNet b1.58 that is kept in safetensors) and what
//! [`crate::convert`] writes; GGUF files are what bitnet.cpp, llama.cpp and ik_llama.cpp write. Which form the weights have is
//! decided in `storage.rs`, how a matrix is read in `projection.rs`, what tensors are called in `roles.rs`.

use serde_json::{Map, Value};

use super::dense::DenseTensor;
use super::dtype::Dtype;
use super::files::Files;
use super::hf_config::{self, HfConfig};
use super::projection::Projection;
use super::roles::{HfNames, Linear, Names, Role};
use super::safetensors;
use super::storage::{GgufForm, OpenOptions, Quantization, Storage};
use super::tensors::{Tensor, TensorFiles};
use crate::{ActQuant, Config, Dense, Error, LayerWeights, Result, Segment, TernaryTensor, WeightSource};

/// An opened checkpoint: a folder, or a GGUF file.
///
/// ```
/// use bitnet_model::{Checkpoint, WeightSource};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let checkpoint = Checkpoint::open(folder)?;
/// assert_eq!(checkpoint.architecture(), "BitNetForCausalLM");
/// assert_eq!(checkpoint.config().n_layers, 6);
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    files: Files,
    hf: HfConfig,
    /// Of a folder; a GGUF file holds its own.
    folder: TensorFiles,
    names: Names,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens a folder with config.json and model.safetensors, or model.safetensors.index.json and its shards; or a GGUF file.
    ///
    /// Reads the configuration and the headers, and checks that every tensor is there with the type and shape that the
    /// configuration calls for, and that there is none which this engine would ignore. An output head that stands beside the
    /// embedding although config.json ties the two is compared with it.
    ///
    /// # Errors
    /// When a file is missing, damaged or inconsistent with the others ([`Error::Io`], [`Error::Invalid`]), or the model is
    /// of a kind that is not implemented ([`Error::Unsupported`]).
    pub fn open(files: impl Into<Files>) -> Result<Self> {
        Self::open_with(files, OpenOptions::default())
    }

    /// As [`Checkpoint::open`], with what the files leave open.
    ///
    /// # Errors
    /// As for [`Checkpoint::open`].
    pub fn open_with(files: impl Into<Files>, options: OpenOptions) -> Result<Self> {
        let files = files.into();
        if let Files::Folder(path) = &files {
            std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
        }
        let files = files.opened()?;
        let mut checkpoint = match &files {
            Files::Gguf(file) => {
                let found = file.config()?;
                let form = GgufForm {
                    i2s: options.i2s_layout,
                    paired_heads: found.paired_heads,
                    ternarize: options.ternarize,
                };
                let eps = found.json.get("rms_norm_eps").and_then(Value::as_f64);
                let quantization = Quantization {
                    storage: Storage::Gguf(form),
                    act_quant: ActQuant::Int8,
                    linear_norm_eps: eps.filter(|_| found.linear_norms).map(|eps| eps as f32),
                };
                Self {
                    hf: hf_config::from_json(file.path(), found.json, quantization)?,
                    files,
                    folder: TensorFiles::default(),
                    names: Names::Gguf,
                    notes: found.notes,
                }
            }
            _ => {
                let mut hf = hf_config::read(&files)?;
                if options.ternarize && hf.storage == Storage::Baked {
                    hf.storage = Storage::Master;
                    hf.config.act_quant = ActQuant::Int8;
                }
                let folder = safetensors::open(&files)?;
                // A body that was saved without a head has no prefix.
                let prefix = match folder.find("embed_tokens.weight") {
                    Some(_) => "",
                    None => hf.names.prefix,
                };
                Self {
                    names: Names::Hf(HfNames { prefix, ..hf.names }),
                    hf,
                    files,
                    folder,
                    notes: Vec::new(),
                }
            }
        };
        checkpoint.hf.config.ternary_head = checkpoint.has_ternary_head();
        if checkpoint.hf.config.tied_head && !checkpoint.hf.config.ternary_head {
            let tensors = checkpoint.tensors();
            let [embedding, head] =
                [Role::Embedding, Role::Head].map(|role| tensors.find(&checkpoint.name(role)));
            if let (Some(embedding), Some(head)) = (embedding, head) {
                // A head that differs from the embedding is what was trained, whatever config.json says; transformers and vLLM do
                // not tie them then either.
                checkpoint.hf.config.tied_head = embedding.is_same(&head)?;
            }
        }
        if let Some(activations) = options.activations {
            checkpoint.hf.config.act_quant = activations;
        }
        checkpoint.note_activations(options);
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What its configuration calls the model: `BitNetForCausalLM`, `LlamaForCausalLM`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.hf.architecture
    }

    /// What was decided that the files do not say, or that differs from what they say: sentences for people.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Its configuration as config.json has it.
    pub(super) fn json(&self) -> &Map<String, Value> {
        &self.hf.json
    }

    /// How its weights are stored.
    pub(super) fn storage(&self) -> Storage {
        self.hf.storage
    }

    /// What a Hugging Face folder of it calls its tensors.
    pub(super) fn hf_names(&self) -> HfNames {
        self.hf.names
    }

    /// What its files call a tensor.
    pub(super) fn name(&self, role: Role) -> String {
        self.names.of(role)
    }

    /// Its tensors.
    pub(crate) fn tensors(&self) -> &TensorFiles {
        match &self.files {
            Files::Gguf(file) => file.tensors(),
            _ => &self.folder,
        }
    }

    /// What the names of all tensors of a layer begin with.
    pub(super) fn layer_prefix(&self, layer: usize) -> String {
        self.names.layer_prefix(layer)
    }

    /// The tensor of a role.
    pub(super) fn tensor(&self, role: Role) -> Result<Tensor<'_>> {
        self.tensors().get(&self.name(role))
    }

    /// A linear layer of layer `layer`.
    pub(super) fn projection(&self, layer: usize, linear: Linear) -> Result<Projection<'_>> {
        let config = &self.hf.config;
        Projection::find(
            self.tensors(),
            self.names,
            self.hf.storage,
            &self.name(Role::Weight(layer, linear)),
            linear.shape(config),
            matches!(linear, Linear::Q | Linear::K).then_some(config.head_dim),
        )
    }

    /// The output head, where it is ternary.
    pub(super) fn head_projection(&self) -> Result<Option<Projection<'_>>> {
        let config = &self.hf.config;
        if !config.ternary_head {
            return Ok(None);
        }
        Projection::find(
            self.tensors(),
            self.names,
            self.hf.storage,
            &self.name(Role::Head),
            (config.vocab, config.d_model),
            None,
        )
        .map(Some)
    }

    /// Whether the output head is stored as the projections are, with a norm of its own or a scale.
    fn has_ternary_head(&self) -> bool {
        let tensors = self.tensors();
        let head = self.name(Role::Head);
        let Some(weight) = tensors.find(&head).filter(|_| self.names != Names::Gguf) else {
            return false;
        };
        matches!(weight.dtype(), Dtype::U8 | Dtype::U32)
            || tensors.find(&self.names.scale(&head)).is_some()
            || (self.hf.config.linear_norm_eps.is_some()
                && tensors.find(&self.name(Role::HeadNorm)).is_some())
    }

    /// Norms of a layer with their lengths, except those of single projections.
    pub(super) fn layer_norms(&self, layer: usize) -> Vec<(Role, usize)> {
        let config = &self.hf.config;
        let mut norms = vec![
            (Role::AttnNorm(layer), config.d_model),
            (Role::FfnNorm(layer), config.d_model),
        ];
        if config.sub_norms {
            norms.extend([
                (Role::AttnSubNorm(layer), config.d_q()),
                (Role::FfnSubNorm(layer), config.d_ffn),
            ]);
        }
        if config.qk_norms {
            norms.extend([
                (Role::QNorm(layer), config.head_dim),
                (Role::KNorm(layer), config.head_dim),
            ]);
        }
        norms
    }

    /// The dense matrices: the embedding, and the head where it is one of its own.
    pub(super) fn tables(&self) -> Vec<Role> {
        let config = &self.hf.config;
        let own = config.has_head && !config.tied_head && !config.ternary_head;
        let head = own.then_some(Role::Head);
        [Role::Embedding].into_iter().chain(head).collect()
    }

    /// A dense matrix.
    pub(super) fn table(&self, role: Role) -> Result<DenseTensor<'_>> {
        let config = &self.hf.config;
        DenseTensor::new(self.tensor(role)?, (config.vocab, config.d_model))
    }

    /// Says what was chosen where models that look alike differ.
    fn note_activations(&mut self, options: OpenOptions) {
        if self.names != Names::Gguf || self.hf.json["model_type"] != "llama" {
            return;
        }
        let q = self.tensors().find(&self.name(Role::Weight(0, Linear::Q)));
        // Official BitNet files are in I2_S; the other types also hold models whose inputs stay floats.
        let certain = q.is_none_or(|q| q.dtype() == Dtype::Gguf(super::dtype::GgufType::I2_S));
        if !certain && options.activations.is_none() {
            self.notes.push(
                "inputs of linear layers are 8-bit, as a BitNet model needs; TriLM and other weight-only models need float \
                 activations"
                    .into(),
            );
        }
    }

    /// Checks every tensor against the configuration.
    fn check(&self) -> Result<()> {
        let config = &self.hf.config;
        if config.qk_norms
            && self
                .tensors()
                .find(&self.name(Role::InputNorm(0, Linear::Q)))
                .is_none()
        {
            return Err(Error::unsupported(
                self.files.root(),
                "a Qwen 3 model without norms before its projections is no BitNet model: its inputs are not quantized",
            ));
        }
        let mut used = std::collections::HashSet::new();
        for role in self.tables() {
            self.table(role)?;
            used.insert(self.name(role));
        }
        used.insert(
            self.norm_tensor(Role::FinalNorm, config.d_model)?
                .name()
                .to_owned(),
        );
        let head = self.head_projection()?;
        for projection in head.iter() {
            used.insert(projection.weight().name().to_owned());
            used.extend(projection.scale_tensor().map(|scale| scale.name().to_owned()));
            if config.linear_norm_eps.is_some() {
                used.insert(
                    self.norm_tensor(Role::HeadNorm, config.d_model)?
                        .name()
                        .to_owned(),
                );
            }
        }
        for layer in 0..config.n_layers {
            for linear in Linear::ALL {
                let projection = self.projection(layer, linear)?;
                used.insert(projection.weight().name().to_owned());
                used.extend(projection.scale_tensor().map(|scale| scale.name().to_owned()));
                if config.linear_norm_eps.is_some() {
                    let norm = self.norm_tensor(Role::InputNorm(layer, linear), projection.cols())?;
                    used.insert(norm.name().to_owned());
                }
            }
            for (role, len) in self.layer_norms(layer) {
                used.insert(self.norm_tensor(role, len)?.name().to_owned());
            }
        }
        let head = self.name(Role::Head);
        let harmless = |name: &str| {
            // Checked to change nothing when the metadata were read.
            name == "rope_freqs.weight"
                || name.ends_with("rotary_emb.inv_freq")
                || ((config.tied_head || !config.has_head) && name == head)
        };
        match self
            .tensors()
            .iter()
            .find(|tensor| !used.contains(tensor.name()) && !harmless(tensor.name()))
        {
            None => Ok(()),
            Some(unknown) => Err(unknown.unsupported(format!(
                "is not part of a {} as its configuration describes it; ignoring it would change the numbers",
                self.hf.architecture
            ))),
        }
    }

    fn norm_tensor(&self, role: Role, len: usize) -> Result<Tensor<'_>> {
        let tensor = self.tensor(role)?;
        tensor.float_dtype()?;
        tensor.expect_shape(&[len])?;
        Ok(tensor)
    }

    /// Reads projections that share their input into one matrix.
    fn stack(&self, layer: usize, which: &[Linear]) -> Result<TernaryTensor> {
        let parts: Result<Vec<_>> = which
            .iter()
            .map(|&linear| {
                let norm = Role::InputNorm(layer, linear);
                Ok((self.projection(layer, linear)?, norm))
            })
            .collect();
        self.read_stacked(&parts?)
    }

    fn read_stacked(&self, parts: &[(Projection<'_>, Role)]) -> Result<TernaryTensor> {
        let mut stack = TernaryTensor {
            n: 0,
            k: 0,
            words: Vec::with_capacity(parts.iter().map(|(part, _)| part.shape().words()).sum()),
            segments: Vec::new(),
        };
        for (projection, norm) in parts {
            let shape = projection.shape();
            let filled = stack.words.len();
            stack.words.resize(filled + shape.words(), 0);
            let scale = projection.read(&mut stack.words[filled..])?;
            let input_norm = match self.hf.config.linear_norm_eps {
                Some(_) => Some(self.tensor(*norm)?.read_floats(projection.cols())?),
                None => None,
            };
            stack.n += shape.n();
            stack.k = shape.k();
            stack.segments.push(Segment {
                rows: shape.n(),
                scale,
                input_norm,
            });
        }
        Ok(stack)
    }
}

impl WeightSource for Checkpoint {
    fn config(&self) -> &Config {
        &self.hf.config
    }

    fn embedding(&self) -> Result<Box<dyn Dense + '_>> {
        Ok(Box::new(self.table(Role::Embedding)?))
    }

    fn layer(&self, index: usize) -> Result<LayerWeights> {
        let config = &self.hf.config;
        if index >= config.n_layers {
            return Err(Error::Request(format!(
                "layer {index} of a model of {}",
                config.n_layers
            )));
        }
        let norm = |role: Role, len: usize| self.tensor(role)?.read_floats(len);
        let optional = |there: bool, role, len| there.then(|| norm(role, len)).transpose();
        Ok(LayerWeights {
            attn_norm: norm(Role::AttnNorm(index), config.d_model)?,
            qkv: self.stack(index, &[Linear::Q, Linear::K, Linear::V])?,
            q_norm: optional(config.qk_norms, Role::QNorm(index), config.head_dim)?,
            k_norm: optional(config.qk_norms, Role::KNorm(index), config.head_dim)?,
            attn_sub_norm: optional(config.sub_norms, Role::AttnSubNorm(index), config.d_q())?,
            o: self.stack(index, &[Linear::O])?,
            ffn_norm: norm(Role::FfnNorm(index), config.d_model)?,
            gate_up: self.stack(index, &[Linear::Gate, Linear::Up])?,
            ffn_sub_norm: optional(config.sub_norms, Role::FfnSubNorm(index), config.d_ffn)?,
            down: self.stack(index, &[Linear::Down])?,
        })
    }

    fn final_norm(&self) -> Result<Vec<f32>> {
        self.tensor(Role::FinalNorm)?.read_floats(self.hf.config.d_model)
    }

    fn head(&self) -> Result<Option<Box<dyn Dense + '_>>> {
        Ok(match self.tables().contains(&Role::Head) {
            false => None,
            true => Some(Box::new(self.table(Role::Head)?)),
        })
    }

    fn ternary_head(&self) -> Result<Option<TernaryTensor>> {
        match self.head_projection()? {
            None => Ok(None),
            Some(projection) => self.read_stacked(&[(projection, Role::HeadNorm)]).map(Some),
        }
    }
}
