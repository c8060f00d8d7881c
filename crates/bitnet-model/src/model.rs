//! A model ready to generate: weights on a device, tokenizer, chat template and the model's own settings.

use std::fmt;
use std::str::FromStr;

use crate::schedule::{ScheduleOptions, Scheduler};
use crate::{
    Backend, ChatTemplate, Checkpoint, Config, CpuBackend, CpuOptions, Error, Files, GenerateOptions,
    GenerationConfig, Generator, KvMemory, KvType, LmHead, Numa, OpenOptions, Pooling, Result, Simd,
    SkipZeros, Tokenizer, Watched, WeightForm, WeightSource, embed,
};

/// Tokens of context where neither the caller nor a smaller limit of the model says otherwise.
const DEFAULT_CONTEXT: usize = 4096;

/// Where a model runs. The list is closed, so that whoever maps it to something else hears of a new device.
///
/// ```
/// use bitnet_model::Device;
///
/// assert_eq!("cuda:1".parse::<Device>()?, Device::Cuda(1));
/// assert_eq!(Device::default(), Device::Auto);
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU, where this build and this machine have a usable one, or else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The CUDA GPU of this index.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = Error;

    /// Reads `auto`, `cpu`, `cuda` (the first GPU) or `cuda:N`.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| {
                    Error::Request(format!(
                        "{name:?} is not a device; expected auto, cpu, cuda or cuda:N"
                    ))
                }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// How to load a model. There may be more of it in a later version: `..LoadOptions::default()`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: Device,
    /// Threads of the processor to use, of which no more run than it has cores; `None` is all of its cores.
    pub threads: Option<usize>,
    /// Instruction set to use; `None` is the best this processor has. The results are the same.
    pub simd: Option<Simd>,
    /// Where threads of the processor run, and weights lie, on a machine with several memory nodes. The results are the same.
    pub numa: Numa,
    /// Tokens a sequence can hold; `None` is what the model was trained for, but at most 4096, and 0 is all of that.
    pub context: Option<usize>,
    /// Sequences that can be computed side by side.
    pub n_seqs: usize,
    /// Most tokens of one step; prompts are cut into batches of this size, which changes nothing but speed and memory.
    pub max_batch: usize,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Memory for keys and values of all sequences.
    pub kv_memory: KvMemory,
    /// How the output head is kept.
    pub lm_head: LmHead,
    /// Whether what squared ReLU makes zero is left out, on a processor.
    pub skip_zeros: SkipZeros,
    /// How the weights of linear layers are kept.
    pub weights: WeightForm,
    /// What the model's files leave open.
    pub source: OpenOptions,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            threads: None,
            simd: None,
            numa: Numa::System,
            context: None,
            n_seqs: 1,
            max_batch: 512,
            kv_type: KvType::Bf16,
            kv_memory: KvMemory::Auto,
            lm_head: LmHead::Auto,
            skip_zeros: SkipZeros::Auto,
            weights: WeightForm::Ternary,
            source: OpenOptions::default(),
        }
    }
}

impl LoadOptions {
    /// The device that it will be: for [`Device::Auto`] the first GPU, where there is one that does what they ask, else the processor.
    #[must_use]
    pub fn chosen_device(&self) -> Device {
        match self.device {
            Device::Auto if self.kv_type != KvType::F32 && has_gpu() => Device::Cuda(0),
            Device::Auto => Device::Cpu,
            device => device,
        }
    }
}

impl From<Device> for LoadOptions {
    fn from(device: Device) -> Self {
        Self {
            device,
            ..Self::default()
        }
    }
}

/// A loaded model.
///
/// ```
/// use std::ops::ControlFlow;
/// use bitnet_model::{Device, LoadOptions, Message, Model, Prompt};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let options = LoadOptions { context: Some(512), ..LoadOptions::from(Device::Cpu) };
/// let mut model = Model::load(folder, options)?;
/// println!("{} layers on {}", model.config().n_layers, model.backend().spec().name);
/// let options = model.generate_options();
/// let question = [Message::user("Spell \"garden\" backwards.")];
/// let answer = model.generator().generate(Prompt::Chat(&question), &options, |event| {
///     print!("{}", event.text());
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(answer.text, "nedrag");
/// println!("\n{:.1} tokens/s", answer.timings.decode_rate());
/// # Ok::<(), bitnet_model::Error>(())
/// ```
pub struct Model {
    files: Files,
    backend: Box<dyn Backend>,
    tokenizer: Option<Tokenizer>,
    chat: Option<ChatTemplate>,
    generation: GenerationConfig,
    notes: Vec<String>,
    pooling: Option<Pooling>,
}

impl Model {
    /// Loads the model in `folder`, a path or [`Files`]: a Hugging Face checkpoint as downloaded, what [`crate::convert`] wrote,
    /// or a GGUF file.
    ///
    /// # Errors
    /// When a file is missing, damaged or of an unsupported kind, or the device cannot hold the model.
    pub fn load(folder: impl Into<Files>, options: impl Into<LoadOptions>) -> Result<Self> {
        Self::load_watched(folder, options, &mut |_, _| ())
    }

    /// As [`Model::load`], and calls `report` with the bytes that have been read and those that there are.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn load_watched(
        folder: impl Into<Files>,
        options: impl Into<LoadOptions>,
        report: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let (files, options) = (folder.into(), options.into());
        // The small files first: what is wrong with them shows before gigabytes are read.
        let checkpoint = Checkpoint::open_with(&files, options.source)?;
        // Opened once: what stands for the tokenizer's files is made of the same metadata.
        let files = checkpoint.files().clone();
        let config = checkpoint.config();
        let tokenizer = if files.has("tokenizer.json") {
            Some(Tokenizer::from_folder(&files, config.bos, &config.eos)?)
        } else {
            None
        };
        let chat = match &tokenizer {
            // Text and token ids need no template: what is wrong with one is said when it is used.
            Some(tokenizer) => ChatTemplate::from_folder(&files, tokenizer)
                .unwrap_or_else(|error| Some(ChatTemplate::broken(error))),
            None => None,
        };
        let generation = GenerationConfig::from_files(&files)?;
        let pooling = match config.has_head {
            true => None,
            false => Pooling::from_files(&files)?,
        };
        Ok(Self {
            files,
            backend: open_backend(&Watched::new(&checkpoint, report), options)?,
            tokenizer,
            chat,
            generation,
            notes: checkpoint.notes().to_vec(),
            pooling,
        })
    }

    /// What it came from.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What was decided that its files do not say; see [`Checkpoint::notes`].
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.backend.spec().config
    }

    /// What runs it.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// What runs it, for those who drive its steps themselves.
    pub fn backend_mut(&mut self) -> &mut dyn Backend {
        self.backend.as_mut()
    }

    /// Its tokenizer, where the folder has one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Its chat template, where there is one; [`ChatTemplate::check`] tells whether it can be used.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// Replaces its chat template.
    pub fn set_chat_template(&mut self, template: ChatTemplate) {
        self.chat = Some(template);
    }

    /// The model's own settings, from generation_config.json, for [`Generator::generate`].
    #[must_use]
    pub fn generate_options(&self) -> GenerateOptions {
        GenerateOptions {
            sampling: self.generation.sampling.clone(),
            stop: self.generation.stop_strings.clone(),
            max_tokens: self.generation.max_new_tokens,
            ..GenerateOptions::default()
        }
    }

    /// How its files say that vectors of tokens become one; `None` where they do not, and for models that write text.
    #[must_use]
    pub fn pooling(&self) -> Option<Pooling> {
        self.pooling
    }

    /// The vector of a text, (d_model), of length 1; see [`embed`]. The text gets the tokens that the model's tokenizer puts around
    /// one. `pooling` is for models whose files do not say it, and outranks those that do.
    ///
    /// # Errors
    /// When there is no tokenizer, nobody says how to pool, or as for [`embed`].
    pub fn embed(&mut self, text: &str, pooling: Option<Pooling>) -> Result<Vec<f32>> {
        let pooling = pooling.or(self.pooling).ok_or_else(|| {
            Error::Request(format!(
                "{}: no file says how the vectors of a text's tokens become one; choose mean, first or last",
                self.files
            ))
        })?;
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| {
            Error::Request(format!(
                "{}: there is no tokenizer, which a text needs",
                self.files
            ))
        })?;
        let ids = tokenizer.encode(text)?;
        embed(self.backend.as_mut(), &ids, pooling)
    }

    /// Generates text; one generator serves all the turns of a conversation.
    pub fn generator(&mut self) -> Generator<'_> {
        Generator::new(self.backend.as_mut(), self.tokenizer.as_ref(), self.chat.as_ref())
    }

    /// Shares it among many requests.
    #[must_use]
    pub fn into_scheduler(self, options: ScheduleOptions) -> Scheduler<'static> {
        Scheduler::new(self.backend, self.tokenizer.as_ref(), options)
    }

    /// As [`Model::into_scheduler`], with the chat template for those who make prompts.
    #[must_use]
    pub fn into_parts(self, options: ScheduleOptions) -> (Scheduler<'static>, Option<ChatTemplate>) {
        let scheduler = Scheduler::new(self.backend, self.tokenizer.as_ref(), options);
        (scheduler, self.chat)
    }
}

/// Puts the weights of `source` on a device.
///
/// ```
/// use bitnet_model::{Checkpoint, Device, Session, Want, open_backend};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let checkpoint = Checkpoint::open(folder)?;
/// let mut backend = open_backend(&checkpoint, Device::Cpu)?;
/// // Three tokens of a prompt; the logits of the last one.
/// let mut session = Session::new(backend.as_mut());
/// let logits = session.step(&[(0, &[752, 54, 71])], Want::Logits(&[2]))?;
/// assert_eq!(logits.len(), 768);
/// # Ok::<(), bitnet_model::Error>(())
/// ```
///
/// # Errors
/// When this build does not know the device, or the device cannot hold the model.
pub fn open_backend(source: &dyn WeightSource, options: impl Into<LoadOptions>) -> Result<Box<dyn Backend>> {
    let options = options.into();
    let trained = source.config().max_context;
    let context = match options.context {
        None => trained.min(DEFAULT_CONTEXT),
        Some(0) => trained,
        Some(context) => context,
    };
    match options.chosen_device() {
        Device::Auto | Device::Cpu if options.weights == WeightForm::Bf16 => Err(Error::Request(
            "bf16 weights need a GPU, and the processor was chosen".to_owned(),
        )),
        Device::Auto | Device::Cpu => {
            let options = CpuOptions {
                threads: options.threads,
                simd: options.simd,
                numa: options.numa,
                context,
                n_seqs: options.n_seqs,
                max_batch: options.max_batch.min(context),
                kv_type: options.kv_type,
                kv_memory: options.kv_memory,
                lm_head: options.lm_head,
                skip_zeros: options.skip_zeros,
                ..CpuOptions::default()
            };
            Ok(Box::new(CpuBackend::new(source, options)?))
        }
        Device::Cuda(index) => open_cuda(source, &options, context, index),
    }
}

#[cfg(feature = "cuda")]
fn has_gpu() -> bool {
    crate::cuda_probe(0).is_ok()
}

#[cfg(not(feature = "cuda"))]
fn has_gpu() -> bool {
    false
}

#[cfg(feature = "cuda")]
fn open_cuda(
    source: &dyn WeightSource,
    options: &LoadOptions,
    context: usize,
    index: usize,
) -> Result<Box<dyn Backend>> {
    let options = crate::CudaOptions {
        device: u32::try_from(index)
            .map_err(|_| Error::Request(format!("cuda:{index}: there is no such GPU")))?,
        context,
        n_seqs: options.n_seqs,
        kv_type: options.kv_type,
        kv_memory: options.kv_memory,
        max_batch: options.max_batch.min(context),
        lm_head: options.lm_head,
        weights: options.weights,
        sync: false,
    };
    Ok(Box::new(crate::CudaBackend::new(source, options)?))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: &dyn WeightSource, _: &LoadOptions, _: usize, index: usize) -> Result<Box<dyn Backend>> {
    Err(Error::Device(format!(
        "cuda:{index}: this program was built without the feature `cuda`; use the device cpu"
    )))
}
