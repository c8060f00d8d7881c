//! Writes a checkpoint as a GGUF file that other programs read.
//!
//! BitNet models become I2_S of the architecture `bitnet-b1.58`, which bitnet.cpp and ik_llama.cpp read, Llama models with ternary
//! projections TQ2_0, which llama.cpp and what is built on it read; each can be had as the other. Codes are the same; the scale is
//! the same f32 in I2_S, and rounded to f16 in the others. Tables become F16 where every value survives.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use bitnet_layout::gguf as layout;
use bitnet_layout::words::{pack_row, unpack_row};

use super::checkpoint::Checkpoint;
use super::convert::{ConvertProgress, Converted, Existing};
use super::dtype::GgufType;
use super::gguf_vocabulary;
use super::gguf_writer::{ALIGN, Header};
use super::pooling::Pooling;
use super::projection::Projection;
use super::roles::{Linear, Names, Role};
use super::staging::StagedFile;
use crate::{ActQuant, Activation, Dense, DenseDtype, Error, Result, WeightSource};

/// The word of sixteen zeros.
const ZEROS: u32 = 0x5555_5555;

/// A type of ternary tensors in GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgufTernary {
    /// 2 bits a weight and one f32 scale a matrix: bitnet.cpp and ik_llama.cpp.
    I2S,
    /// 2.06 bits a weight, an f16 scale for every 256: llama.cpp.
    Tq2_0,
    /// 1.69 bits a weight, an f16 scale for every 256: llama.cpp.
    Tq1_0,
}

impl GgufTernary {
    fn kind(self) -> GgufType {
        match self {
            Self::I2S => GgufType::I2_S,
            Self::Tq2_0 => GgufType::TQ2_0,
            Self::Tq1_0 => GgufType::TQ1_0,
        }
    }

    /// `general.file_type` of files whose projections have it.
    fn file_type(self) -> u32 {
        match self {
            Self::I2S => 40,
            Self::Tq2_0 => 37,
            Self::Tq1_0 => 36,
        }
    }
}

/// Writes `source` to the file `out` with ternary tensors of type `kind` (`None`: I2_S for BitNet models and embeddings, TQ2_0 for
/// Llama models), and calls `progress` as it goes on, which may break off. The file appears when it is complete. With the result
/// come sentences for people about what other programs will make of it.
///
/// # Errors
/// When a format cannot hold the model, `out` is there already (with [`Existing::Keep`]), a tensor of the source is damaged, or a
/// file cannot be read or written; [`Error::Cancelled`] when `progress` broke off.
pub fn convert_to_gguf(
    source: &Checkpoint,
    out: &Path,
    kind: Option<GgufTernary>,
    existing: Existing,
    mut progress: impl FnMut(ConvertProgress<'_>) -> ControlFlow<()>,
) -> Result<(Converted, Vec<String>)> {
    if existing == Existing::Keep && out.symlink_metadata().is_ok() {
        return Err(Error::Occupied {
            path: out.to_owned(),
            message: "is there already; name a new file, or let it be replaced".to_owned(),
        });
    }
    let plan = Plan::new(source, kind)?;
    let mut notes = plan.notes();
    let mut header = Header::default();
    plan.describe(&mut header)?;
    notes.extend(gguf_vocabulary::write(source, &mut header)?);
    let tensors = plan.tensors()?;
    for tensor in &tensors {
        header.tensor(&tensor.name, &tensor.shape(), tensor.kind(), tensor.bytes());
    }
    let total_bytes = tensors.iter().map(Tensor::source_bytes).sum();
    let io = |source| Error::io(out, source);
    let mut staged = StagedFile::begin(out)?;
    let beginning = header.bytes();
    staged.file().write_all(&beginning).map_err(io)?;
    let (mut done_bytes, mut written_bytes) = (0, beginning.len() as u64);
    for tensor in &tensors {
        let flow = progress(ConvertProgress {
            tensor: &tensor.name,
            done_bytes,
            total_bytes,
        });
        if flow.is_break() {
            return Err(Error::Cancelled);
        }
        let mut output = Output {
            file: staged.file(),
            path: out,
            written: 0,
        };
        tensor.write(&mut output)?;
        assert_eq!(output.written, tensor.bytes(), "the size that the header says");
        let padding = tensor.bytes().next_multiple_of(ALIGN as u64) - tensor.bytes();
        output.append(&[0; ALIGN][..padding as usize])?;
        written_bytes += output.written;
        done_bytes += tensor.source_bytes();
    }
    staged.commit()?;
    let converted = Converted {
        source_bytes: total_bytes,
        written_bytes,
    };
    Ok((converted, notes))
}

/// What is written of a model, and how.
struct Plan<'a> {
    source: &'a Checkpoint,
    architecture: &'static str,
    ternary: GgufTernary,
}

impl<'a> Plan<'a> {
    fn new(source: &'a Checkpoint, ternary: Option<GgufTernary>) -> Result<Self> {
        let config = source.config();
        let refuse = |what: &str| Err(Error::unsupported(source.files().root(), what));
        let model_type = source.json().get("model_type").and_then(|name| name.as_str());
        let default = match model_type {
            Some("llama") if !config.sub_norms => GgufTernary::Tq2_0,
            _ => GgufTernary::I2S,
        };
        let ternary = ternary.unwrap_or(default);
        let architecture = match (model_type, config.sub_norms, ternary) {
            (Some("qwen3"), _, _) => "qwen3",
            (_, true, GgufTernary::I2S) => "bitnet-b1.58",
            (_, true, _) => "bitnet",
            (_, false, _) => "llama",
        };
        if config.ternary_head {
            return refuse("GGUF has no place for a ternary output head with its norm");
        }
        if config.linear_norm_eps.is_some() && architecture != "qwen3" {
            return refuse("GGUF has no place for the norm before every projection (use_rms_norm)");
        }
        if config.linear_norm_eps.is_some_and(|eps| eps != config.rms_eps) {
            return refuse("GGUF has one norm epsilon for a model, and this one has two");
        }
        let expected = if architecture == "llama" || architecture == "qwen3" {
            Activation::Silu
        } else {
            config.activation
        };
        if config.activation != expected {
            return refuse("the architecture `llama` of GGUF has SiLU alone");
        }
        for linear in Linear::ALL {
            let (n, k) = linear.shape(config);
            let legal = match ternary {
                GgufTernary::I2S => (n * k).is_multiple_of(128),
                _ => k.is_multiple_of(256),
            };
            if !legal {
                return refuse(&match ternary {
                    GgufTernary::I2S => format!(
                        "I2_S holds multiples of 128 weights, and a matrix of this model has {n} x {k}"
                    ),
                    _ => format!(
                        "TQ2_0 and TQ1_0 hold rows of multiples of 256 weights, and a matrix of this model has rows of {k}; take i2_s"
                    ),
                });
            }
        }
        Ok(Self {
            source,
            architecture,
            ternary,
        })
    }

    /// What other programs will make of the file.
    fn notes(&self) -> Vec<String> {
        let config = self.source.config();
        let mut notes = Vec::new();
        if config.activation == Activation::Relu2 {
            notes.push(
                "bitnet.cpp and llama.cpp compute SiLU where this model has a squared ReLU: their text will be worse than this \
                 program's"
                    .into(),
            );
        }
        if config.act_quant == ActQuant::None {
            notes.push(
                "GGUF cannot say that inputs of linear layers are not quantized; read it with float activations".into(),
            );
        }
        notes
    }

    /// Writes the keys of the architecture.
    fn describe(&self, header: &mut Header) -> Result<()> {
        let config = self.source.config();
        let small = |what: &str, value: usize| {
            u32::try_from(value)
                .map_err(|_| Error::unsupported(self.source.files().root(), format!("{what} is {value}")))
        };
        header.text("general.architecture", self.architecture);
        let root = self.source.files().root();
        let name = root.file_stem().and_then(|name| name.to_str()).unwrap_or("model");
        header.text("general.name", name);
        header.count("general.file_type", self.ternary.file_type());
        header.count("general.quantization_version", 2);
        for (key, value) in [
            ("vocab_size", config.vocab),
            ("context_length", config.max_context),
            ("embedding_length", config.d_model),
            ("block_count", config.n_layers),
            ("feed_forward_length", config.d_ffn),
            ("rope.dimension_count", config.head_dim),
            ("attention.head_count", config.n_heads),
            ("attention.head_count_kv", config.n_kv_heads),
            ("attention.key_length", config.head_dim),
            ("attention.value_length", config.head_dim),
        ] {
            header.count(&format!("{}.{key}", self.architecture), small(key, value)?);
        }
        let key = |name: &str| format!("{}.{name}", self.architecture);
        header.float(&key("attention.layer_norm_rms_epsilon"), config.rms_eps);
        header.float(&key("rope.freq_base"), config.rope_theta);
        if config.sub_norms {
            let name = match config.activation {
                Activation::Relu2 => "relu2",
                Activation::Silu => "silu",
            };
            header.text(&key("hidden_activation"), name);
        }
        if !config.has_head {
            let pooling = match Pooling::from_files(self.source.files())? {
                None => 0,
                Some(Pooling::Mean) => 1,
                Some(Pooling::First) => 2,
                Some(Pooling::Last) => 3,
            };
            header.count(&key("pooling_type"), pooling);
        }
        Ok(())
    }

    /// Every tensor of the file, in the order of a step.
    fn tensors(&self) -> Result<Vec<Tensor<'a>>> {
        let (source, config) = (self.source, self.source.config());
        let name = |role| Names::Gguf.of(role);
        let norm = |role: Role, len: usize| {
            Ok::<_, Error>(Tensor {
                name: name(role),
                content: Content::Norm(source.tensor(role)?.read_floats(len)?),
            })
        };
        let table = |role: Role| {
            let table = source.table(role)?;
            let dtype = table_dtype(&table)?;
            Ok::<_, Error>(Tensor {
                name: name(role),
                content: Content::Table(Box::new(table), dtype, source.tensor(role)?.n_bytes() as u64),
            })
        };
        let mut tensors = vec![table(Role::Embedding)?];
        for layer in 0..config.n_layers {
            for (role, len) in source.layer_norms(layer) {
                tensors.push(norm(role, len)?);
            }
            for linear in Linear::ALL {
                let projection = source.projection(layer, linear)?;
                if config.linear_norm_eps.is_some() {
                    tensors.push(norm(Role::InputNorm(layer, linear), projection.cols())?);
                }
                let paired = self.architecture == "llama" && matches!(linear, Linear::Q | Linear::K);
                tensors.push(Tensor {
                    name: name(Role::Weight(layer, linear)),
                    content: Content::Ternary {
                        projection,
                        kind: self.ternary,
                        paired: paired.then_some(config.head_dim),
                    },
                });
            }
        }
        tensors.push(norm(Role::FinalNorm, config.d_model)?);
        if source.tables().contains(&Role::Head) {
            tensors.push(table(Role::Head)?);
        }
        Ok(tensors)
    }
}

/// A tensor of the file.
struct Tensor<'a> {
    name: String,
    content: Content<'a>,
}

enum Content<'a> {
    Norm(Vec<f32>),
    /// With the type that it is written in, and its bytes in the source.
    Table(Box<dyn Dense + 'a>, DenseDtype, u64),
    Ternary {
        projection: Projection<'a>,
        kind: GgufTernary,
        /// Rows of a head, where those that are rotated together shall stand together.
        paired: Option<usize>,
    },
}

impl Tensor<'_> {
    fn shape(&self) -> Vec<usize> {
        match &self.content {
            Content::Norm(floats) => vec![floats.len()],
            Content::Table(table, ..) => vec![table.shape().0, table.shape().1],
            Content::Ternary { projection, .. } => vec![projection.shape().n(), projection.cols()],
        }
    }

    fn kind(&self) -> GgufType {
        match &self.content {
            Content::Norm(_) | Content::Table(_, DenseDtype::F32, _) => GgufType(0),
            Content::Table(_, DenseDtype::F16, _) => GgufType(1),
            Content::Table(_, DenseDtype::Bf16, _) => GgufType(30),
            Content::Ternary { kind, .. } => kind.kind(),
        }
    }

    fn bytes(&self) -> u64 {
        let shape = self.shape();
        let (cols, rows) = (
            shape[shape.len() - 1] as u64,
            shape[..shape.len() - 1].iter().product::<usize>() as u64,
        );
        match self.kind().bytes(rows, cols) {
            Ok(Some(bytes)) => bytes,
            _ => unreachable!("the plan takes only types that hold the shape"),
        }
    }

    fn source_bytes(&self) -> u64 {
        match &self.content {
            Content::Norm(floats) => 4 * floats.len() as u64,
            Content::Table(_, _, bytes) => *bytes,
            Content::Ternary { projection, .. } => projection.weight().n_bytes() as u64,
        }
    }

    fn write(&self, out: &mut Output<'_>) -> Result<()> {
        match &self.content {
            Content::Norm(floats) => {
                let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
                out.append(&bytes)
            }
            Content::Table(table, dtype, _) => each_rows(table.as_ref(), |floats| {
                let mut bytes = Vec::with_capacity(floats.len() * dtype.size());
                for &x in floats {
                    match dtype {
                        DenseDtype::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
                        DenseDtype::Bf16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
                        DenseDtype::F32 => bytes.extend(x.to_le_bytes()),
                    }
                }
                out.append(&bytes)
            }),
            Content::Ternary {
                projection,
                kind,
                paired,
            } => {
                let mut words = vec![0; projection.shape().words()];
                let scale = projection.read(&mut words)?;
                if let Some(head) = paired {
                    pair(*head, projection.shape().words_per_row(), &mut words);
                }
                match kind {
                    GgufTernary::I2S => i2s(projection, words, scale, out),
                    _ => blocks(*kind, projection, &words, scale, out),
                }
            }
        }
    }
}

/// Puts the rows of each head that are rotated together beside each other.
fn pair(head: usize, per_row: usize, words: &mut [u32]) {
    let mut halves = Vec::new();
    for words in words.chunks_exact_mut(head * per_row) {
        halves.clear();
        halves.extend_from_slice(words);
        for (row, words) in words.chunks_exact_mut(per_row).enumerate() {
            let (i, half) = (row / 2, row % 2);
            words.copy_from_slice(&halves[(half * head / 2 + i) * per_row..][..per_row]);
        }
    }
}

fn i2s(projection: &Projection<'_>, words: Vec<u32>, scale: f32, out: &mut Output<'_>) -> Result<()> {
    let (shape, cols) = (projection.shape(), projection.cols());
    let words = if shape.k() == cols {
        words
    } else {
        // One long row, without what fills each row up to whole words.
        let mut codes = Vec::with_capacity(shape.n() * cols);
        let mut row = vec![0; shape.k()];
        for words in words.chunks_exact(shape.words_per_row()) {
            unpack_row(words, &mut row);
            codes.extend_from_slice(&row[..cols]);
        }
        let mut long = vec![0; codes.len() / 16];
        pack_row(&codes, &mut long);
        long
    };
    for words in words.chunks(1 << 15) {
        let blocks = words.as_chunks().0.iter().flat_map(layout::pack_i2s);
        out.append(&blocks.collect::<Vec<u8>>())?;
    }
    let mut end = [0; 32];
    end[..4].copy_from_slice(&scale.to_le_bytes());
    out.append(&end)
}

fn blocks(
    kind: GgufTernary,
    projection: &Projection<'_>,
    words: &[u32],
    scale: f32,
    out: &mut Output<'_>,
) -> Result<()> {
    let rounded = half::f16::from_f32(scale);
    let least = half::f16::MIN_POSITIVE.to_f32();
    if words.iter().any(|&word| word != ZEROS) && (!rounded.is_finite() || scale < least) {
        return Err(projection.weight().unsupported(format!(
            "has the scale {scale}, which the f16 of TQ2_0 and TQ1_0 cannot hold; take i2_s"
        )));
    }
    for words in words.chunks(1 << 14) {
        let mut bytes = Vec::new();
        for block in words.as_chunks::<16>().0 {
            match kind {
                GgufTernary::Tq1_0 => bytes.extend(layout::pack_tq1_0(block)),
                _ => bytes.extend(layout::pack_tq2_0(block)),
            }
            let scale = match block.iter().all(|&word| word == ZEROS) {
                true => half::f16::ZERO,
                false => rounded,
            };
            bytes.extend(scale.to_le_bytes());
        }
        out.append(&bytes)?;
    }
    Ok(())
}

/// The smallest type that keeps a table: F16 where every value survives but for the rounding of the tiniest, else its own.
fn table_dtype(table: &dyn Dense) -> Result<DenseDtype> {
    let mut survives = true;
    if table.dtype() != DenseDtype::F16 {
        each_rows(table, |floats| {
            survives = survives
                && floats.iter().all(|&x| {
                    let back = half::f16::from_f32(x).to_f32();
                    back == x || (back - x).abs() < 6e-8
                });
            Ok(())
        })?;
    }
    Ok(if survives { DenseDtype::F16 } else { table.dtype() })
}

/// Hands out all values of a table, some rows at a time.
fn each_rows(table: &dyn Dense, mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let (rows, cols) = table.shape();
    let row_bytes = cols * table.dtype().size();
    let at_once = ((1 << 20) / row_bytes).max(1);
    let (mut bytes, mut floats) = (Vec::new(), Vec::new());
    for first in (0..rows).step_by(at_once) {
        let n = at_once.min(rows - first);
        bytes.resize(n * row_bytes, 0);
        floats.resize(n * cols, 0.0);
        table.read_rows(first, &mut bytes)?;
        table.dtype().to_f32(&bytes, &mut floats);
        take(&floats)?;
    }
    Ok(())
}

/// Where a tensor goes.
struct Output<'a> {
    file: &'a mut File,
    path: &'a Path,
    written: u64,
}

impl Output<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|source| Error::io(self.path, source))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}
