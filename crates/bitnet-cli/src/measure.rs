//! What the commands that look at logits share: token ids, and a back end that holds them.

use bitnet_model::{Backend, Checkpoint, Config, Device, KvType, LmHead, SkipZeros, Tokenizer, WeightSource};

use crate::args::{self, DeviceArgs, ModelArgs, PromptArgs};
use crate::failure::usage;
use crate::model;

/// Which model, on which tokens.
#[derive(Debug, clap::Args)]
pub(crate) struct MeasureArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Token ids instead of a text, such as 1,2,3, taken as they are; needs no tokenizer
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file", "no_bos"])]
    prompt_ids: Option<String>,
    /// Add no beginning-of-sequence token
    #[arg(long)]
    no_bos: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Element type of the cache of keys and values: f32 to measure exactly, or bf16, what text is generated with
    /// [default: f32 on the processor, which --device auto means here; bf16 on a GPU]
    #[arg(
        long,
        visible_alias = "kv-cache-dtype",
        value_name = "TYPE",
        value_parser = args::one_of(&args::KV_TYPES),
        help_heading = "Device"
    )]
    kv_type: Option<KvType>,
}

/// A loaded model and what to compute with it.
pub(crate) struct Subject {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) ids: Vec<u32>,
    /// The model's beginning-of-sequence token.
    pub(crate) bos: Option<u32>,
}

impl MeasureArgs {
    /// Reads the tokens and loads the model; `context` says how many tokens of context that many need.
    pub(crate) fn open(&self, context: impl FnOnce(&Config, usize) -> usize) -> anyhow::Result<Subject> {
        self.model.introduce();
        let files = self.model.files()?;
        model::require(&files)?;
        let source = self.device.options(None, KvType::F32).source;
        let checkpoint = Checkpoint::open_with(&files, source)?;
        let files = checkpoint.files();
        let config = checkpoint.config();
        let tokenizer = match &self.prompt_ids {
            Some(_) if !files.has("tokenizer.json") => None,
            _ => Some(Tokenizer::from_folder(files, config.bos, &config.eos)?),
        };
        let ids = match (&self.prompt_ids, &tokenizer) {
            (None, Some(tokenizer)) => {
                let text = self
                    .prompt
                    .read("give a text with -p, -f or on stdin, or token ids with --prompt-ids")?;
                if self.no_bos {
                    tokenizer.encode_plain(&text)?
                } else {
                    tokenizer.encode_prompt(&text)?
                }
            }
            (ids, _) => args::parse_ids(ids.as_deref().unwrap_or_default()).map_err(|e| {
                usage(
                    format!("--prompt-ids: {e}"),
                    "commas or spaces separate the numbers",
                )
            })?,
        };
        anyhow::ensure!(!ids.is_empty(), "the text is empty; give at least one token");
        let context = context(config, ids.len());
        model::warn_past_training(context, config);
        let mut options = self.device.options(Some(context), KvType::F32);
        options.kv_type = match (self.kv_type, options.device) {
            (Some(kv_type), _) => kv_type,
            (None, Device::Cuda(_)) => KvType::Bf16,
            (None, _) => KvType::F32,
        };
        if options.lm_head == LmHead::Auto {
            // All logits are looked at: what finds the best ones would be made for nothing.
            options.lm_head = LmHead::Stored;
        }
        if options.skip_zeros == SkipZeros::Auto {
            // Many tokens are computed at once, and only a few leave zeros out.
            options.skip_zeros = SkipZeros::Off;
        }
        Ok(Subject {
            backend: model::open(&checkpoint, &options)?,
            ids,
            bos: tokenizer.and_then(|tokenizer| tokenizer.bos()).or(config.bos),
        })
    }
}
