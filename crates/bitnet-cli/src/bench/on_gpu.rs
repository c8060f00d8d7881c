//! What the benchmarks of a decode step on a GPU have in common: their flags, and a model with a text of some length in each sequence.

use std::path::PathBuf;

use bitnet_model::{
    Backend, Checkpoint, CudaBackend, CudaOptions, KvMemory, KvType, LmHead, Session, Want, WeightForm,
};

use super::report::Format;
use crate::args::{LM_HEADS, ModelArgs, one_of};

/// Positions past a text that a measurement goes through, and some.
pub(super) const ROOM: usize = 64;

/// The flags of both.
#[derive(Debug, clap::Args)]
pub(super) struct GpuArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// GPU, as the driver counts
    #[arg(long, value_name = "N", default_value = "0")]
    pub(super) gpu: u32,
    /// Output head, as in bench model: stored, certified, int8, or auto (certified where that pays)
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = one_of(&LM_HEADS))]
    lm_head: LmHead,
    /// What to print
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    pub(super) output: Format,
    /// Also write the results to this file, in the format of its ending (.md, .json or .csv); can be repeated
    #[arg(long, value_name = "FILE")]
    pub(super) save: Vec<PathBuf>,
}

impl GpuArgs {
    /// Opens the model.
    pub(super) fn open(&self) -> anyhow::Result<Checkpoint> {
        self.model.introduce();
        let files = self.model.files()?;
        crate::model::require(&files)?;
        Ok(Checkpoint::open(&files)?)
    }

    /// Loads it, with room for a sequence of each of these numbers of tokens and for what is measured behind them.
    pub(super) fn load(&self, checkpoint: &Checkpoint, depths: &[usize]) -> anyhow::Result<CudaBackend> {
        let deepest = depths.iter().copied().max().unwrap_or(0);
        let options = CudaOptions {
            device: self.gpu,
            context: deepest.saturating_add(ROOM),
            n_seqs: depths.len(),
            kv_type: KvType::Bf16,
            kv_memory: KvMemory::Auto,
            max_batch: 512.max(depths.len().saturating_mul(ROOM)),
            lm_head: self.lm_head,
            weights: WeightForm::Ternary,
            sync: false,
        };
        Ok(CudaBackend::new(checkpoint, options)?)
    }
}

/// Computes a text of each of these numbers of tokens, one to a sequence.
pub(super) fn fill<'b>(backend: &'b mut CudaBackend, depths: &[usize]) -> anyhow::Result<Session<'b>> {
    let vocab = backend.spec().config.vocab;
    let mut session = Session::new(backend);
    for (seq, &depth) in depths.iter().enumerate() {
        let ids: Vec<u32> = (0..depth).map(|i| (i * 7919 % vocab) as u32).collect();
        for part in ids.chunks(session.spec().max_batch) {
            session.step(&[(seq, part)], Want::Nothing)?;
        }
    }
    Ok(session)
}
