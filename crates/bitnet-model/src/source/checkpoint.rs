//! A folder with a model in it, opened: everything is checked against config.json at once, and read when it is asked for.
//!
//! Folders are what the Hugging Face Hub serves (every form of BitNet b1.58 that is kept in safetensors) and what
//! [`crate::convert`] writes. Which form a folder has is decided in `storage.rs`, how a matrix is read in `projection.rs`;
//! this file knows the names of the tensors.

use bitnet_layout::words::Shape;

use super::hf_config::{self, HfConfig};
use super::projection::Projection;
use super::safetensors::{Tensor, TensorFiles};
use crate::{
    Config, Dense, DenseDtype, Error, Files, LayerWeights, Result, Segment, TernaryTensor, WeightSource,
};

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";
const ATTN_NORM: &str = "input_layernorm.weight";
const FFN_NORM: &str = "post_attention_layernorm.weight";

/// An opened checkpoint folder.
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
    tensors: TensorFiles,
}

/// The seven linear layers of a transformer layer.
pub(crate) const PROJECTIONS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl Checkpoint {
    /// Opens a folder with config.json and model.safetensors, or model.safetensors.index.json and its shards.
    ///
    /// Reads the configuration and the headers, and checks that every tensor is there with the type and shape that the
    /// configuration calls for, and that there is none which this engine would ignore. An output head that stands beside the
    /// embedding although config.json ties the two is compared with it.
    ///
    /// # Errors
    /// When a file is missing, damaged or inconsistent with the others ([`Error::Io`], [`Error::Invalid`]), or the model is
    /// of a kind that is not implemented ([`Error::Unsupported`]).
    pub fn open(files: impl Into<Files>) -> Result<Self> {
        let files = files.into();
        if let Files::Folder(dir) = &files {
            let attributes = std::fs::metadata(dir).map_err(|source| Error::io(dir, source))?;
            if !attributes.is_dir() {
                return Err(Error::invalid(
                    dir,
                    "is a file; name the folder that holds config.json and model.safetensors",
                ));
            }
        }
        let mut hf = hf_config::read(&files)?;
        let tensors = TensorFiles::open(&files)?;
        if hf.config.tied_head
            && let (Some(embedding), Some(head)) = (tensors.find(EMBEDDING), tensors.find(HEAD))
        {
            // A head that differs from the embedding is what was trained, whatever config.json says; transformers and vLLM do not
            // tie them then either.
            hf.config.tied_head = embedding.is_same(&head)?;
        }
        let checkpoint = Self { files, hf, tensors };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What config.json calls the model: `BitNetForCausalLM`, `LlamaForCausalLM`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.hf.architecture
    }

    /// The configuration as it stands in config.json, and how it is understood.
    pub(crate) fn hf(&self) -> &HfConfig {
        &self.hf
    }

    /// The tensors of the folder.
    pub(crate) fn tensors(&self) -> &TensorFiles {
        &self.tensors
    }

    /// The linear layers of layer `layer`, in the order of [`PROJECTIONS`].
    pub(crate) fn projection(&self, layer: usize, which: &str) -> Result<Projection<'_>> {
        let name = format!("model.layers.{layer}.{which}");
        let config = &self.hf.config;
        let (n, k) = match which {
            "self_attn.q_proj" => (config.d_q(), config.d_model),
            "self_attn.k_proj" | "self_attn.v_proj" => (config.d_kv(), config.d_model),
            "self_attn.o_proj" => (config.d_model, config.d_q()),
            "mlp.gate_proj" | "mlp.up_proj" => (config.d_ffn, config.d_model),
            _ => (config.d_model, config.d_ffn),
        };
        let shape = Shape::new(n, k)
            .map_err(|error| Error::invalid(self.files.root(), format!("{name}: {error}")))?;
        Projection::find(&self.tensors, self.hf.storage, &name, shape)
    }

    /// Names and lengths of the norms of a layer, except those of single projections.
    pub(crate) fn layer_norms(&self, layer: usize) -> Vec<(String, usize)> {
        let config = &self.hf.config;
        let mut norms = vec![(ATTN_NORM, config.d_model), (FFN_NORM, config.d_model)];
        if let Some([attn, ffn]) = self.hf.sub_norms {
            norms.extend([(attn, config.d_q()), (ffn, config.d_ffn)]);
        }
        let full = |(name, len): (&str, usize)| (format!("model.layers.{layer}.{name}"), len);
        norms.into_iter().map(full).collect()
    }

    /// The dense tensors outside the layers: embedding, final norm, and the head where it is not the embedding.
    pub(crate) fn outer_tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let config = &self.hf.config;
        let table = vec![config.vocab, config.d_model];
        let mut tensors = vec![(EMBEDDING, table.clone()), (FINAL_NORM, vec![config.d_model])];
        if !config.tied_head {
            tensors.push((HEAD, table));
        }
        tensors
    }

    /// Checks every tensor against the configuration.
    fn check(&self) -> Result<()> {
        let mut used = std::collections::HashSet::new();
        for (name, shape) in self.outer_tensors() {
            let tensor = self.tensors.get(name)?;
            tensor.float_dtype()?;
            tensor.expect_shape(&shape)?;
            used.insert(tensor.name());
        }
        for layer in 0..self.hf.config.n_layers {
            for which in PROJECTIONS {
                let projection = self.projection(layer, which)?;
                used.insert(projection.weight().name());
                used.extend(projection.scale_tensor()?.map(|scale| scale.name()));
                if self.hf.config.linear_norm_eps.is_some() {
                    used.insert(
                        self.norm_tensor(&linear_norm(layer, which), projection.shape().k())?
                            .name(),
                    );
                }
            }
            for (name, len) in self.layer_norms(layer) {
                used.insert(self.norm_tensor(&name, len)?.name());
            }
        }
        let harmless =
            |name: &str| name.ends_with("rotary_emb.inv_freq") || (self.hf.config.tied_head && name == HEAD);
        match self
            .tensors
            .iter()
            .find(|tensor| !used.contains(tensor.name()) && !harmless(tensor.name()))
        {
            None => Ok(()),
            Some(unknown) => Err(unknown.unsupported(format!(
                "is not part of a {} as config.json describes it; ignoring it would change the numbers",
                self.hf.architecture
            ))),
        }
    }

    fn norm_tensor(&self, name: &str, len: usize) -> Result<Tensor<'_>> {
        let tensor = self.tensors.get(name)?;
        tensor.float_dtype()?;
        tensor.expect_shape(&[len])?;
        Ok(tensor)
    }

    fn dense(&self, name: &str) -> Result<Box<dyn Dense + '_>> {
        let tensor = self.tensors.get(name)?;
        Ok(Box::new(DenseTensor {
            tensor,
            dtype: tensor.float_dtype()?,
            shape: (self.hf.config.vocab, self.hf.config.d_model),
        }))
    }

    /// Reads projections that share their input into one matrix.
    fn stack(&self, layer: usize, which: &[&str]) -> Result<TernaryTensor> {
        let mut stack = TernaryTensor {
            n: 0,
            k: 0,
            words: Vec::new(),
            segments: Vec::new(),
        };
        for which in which {
            let projection = self.projection(layer, which)?;
            let shape = projection.shape();
            let filled = stack.words.len();
            stack.words.resize(filled + shape.words(), 0);
            let scale = projection.read(&mut stack.words[filled..])?;
            let input_norm = match self.hf.config.linear_norm_eps {
                Some(_) => Some(
                    self.tensors
                        .get(&linear_norm(layer, which))?
                        .read_floats(shape.k())?,
                ),
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

/// Name of the norm of the input of one projection.
pub(crate) fn linear_norm(layer: usize, which: &str) -> String {
    format!("model.layers.{layer}.{which}.rms_norm.weight")
}

impl WeightSource for Checkpoint {
    fn config(&self) -> &Config {
        &self.hf.config
    }

    fn embedding(&self) -> Result<Box<dyn Dense + '_>> {
        self.dense(EMBEDDING)
    }

    fn layer(&self, index: usize) -> Result<LayerWeights> {
        let n_layers = self.hf.config.n_layers;
        if index >= n_layers {
            return Err(Error::Request(format!("layer {index} of a model of {n_layers}")));
        }
        let norms = self.layer_norms(index);
        let norm = |at: usize| {
            let (name, len) = &norms[at];
            self.tensors.get(name)?.read_floats(*len)
        };
        let sub_norm = |at| self.hf.sub_norms.map(|_| norm(at)).transpose();
        let [q, k, v, o, gate, up, down] = PROJECTIONS;
        Ok(LayerWeights {
            attn_norm: norm(0)?,
            qkv: self.stack(index, &[q, k, v])?,
            attn_sub_norm: sub_norm(2)?,
            o: self.stack(index, &[o])?,
            ffn_norm: norm(1)?,
            gate_up: self.stack(index, &[gate, up])?,
            ffn_sub_norm: sub_norm(3)?,
            down: self.stack(index, &[down])?,
        })
    }

    fn final_norm(&self) -> Result<Vec<f32>> {
        self.tensors.get(FINAL_NORM)?.read_floats(self.hf.config.d_model)
    }

    fn head(&self) -> Result<Option<Box<dyn Dense + '_>>> {
        match self.hf.config.tied_head {
            true => Ok(None),
            false => self.dense(HEAD).map(Some),
        }
    }
}

/// A table of a checkpoint, in its file.
struct DenseTensor<'a> {
    tensor: Tensor<'a>,
    dtype: DenseDtype,
    shape: (usize, usize),
}

impl Dense for DenseTensor<'_> {
    fn dtype(&self) -> DenseDtype {
        self.dtype
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let (rows, cols) = self.shape;
        let row_bytes = cols * self.dtype.size();
        let wanted = out.len() / row_bytes;
        if !out.len().is_multiple_of(row_bytes) || first > rows || wanted > rows - first {
            return Err(Error::Request(format!(
                "{} bytes from row {first} of tensor `{}`, which has {rows} rows of {row_bytes} bytes",
                out.len(),
                self.tensor.name()
            )));
        }
        self.tensor.read(first * row_bytes, out)?;
        check_finite(&self.tensor, self.dtype, first * row_bytes, out)
    }
}

/// Refuses NaN and infinity among the bytes of a dense tensor from `offset` on.
pub(crate) fn check_finite(
    tensor: &Tensor<'_>,
    dtype: DenseDtype,
    offset: usize,
    bytes: &[u8],
) -> Result<()> {
    let Some(at) = first_not_finite(dtype, bytes) else {
        return Ok(());
    };
    let (index, cols) = (
        offset / dtype.size() + at,
        tensor.shape().last().copied().unwrap_or(1),
    );
    Err(tensor.invalid(format!(
        "holds NaN or infinity at row {}, column {}; the file is damaged",
        index / cols,
        index % cols
    )))
}

/// Index of the first element that is NaN or infinite: its exponent bits are all ones.
fn first_not_finite(dtype: DenseDtype, bytes: &[u8]) -> Option<usize> {
    fn find<const N: usize>(bytes: &[u8], exponent: u32, value: impl Fn([u8; N]) -> u32) -> Option<usize> {
        let all_ones = |&bytes: &[u8; N]| value(bytes) & exponent == exponent;
        let elements = bytes.as_chunks().0;
        // Whole blocks first: a loop without an early exit becomes SIMD, and damage is rare.
        let block = elements
            .chunks(4096)
            .position(|block| block.iter().fold(false, |any, e| any | all_ones(e)))?;
        elements[block * 4096..]
            .iter()
            .position(all_ones)
            .map(|at| block * 4096 + at)
    }
    match dtype {
        DenseDtype::Bf16 => find(bytes, 0x7f80, |bytes| u16::from_le_bytes(bytes).into()),
        DenseDtype::F16 => find(bytes, 0x7c00, |bytes| u16::from_le_bytes(bytes).into()),
        DenseDtype::F32 => find(bytes, 0x7f80_0000, u32::from_le_bytes),
    }
}
