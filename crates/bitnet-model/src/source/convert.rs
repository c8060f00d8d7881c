//! Writes a checkpoint as one file of canonical words, beside everything else that a model folder needs.
//!
//! The output is a folder like those of the Hub: config.json with the original keys, tokenizer files as they were, and one
//! valid safetensors file. In it a projection is `<name>.weight`, U32 (n, k / 16) in the layout of
//! [`bitnet_layout::words`], and `<name>.weight_scale`, F32 (1), with `w = t * weight_scale`; every other tensor is as it was
//! in the source. `quantization_config` names the format and its version:
//!
//! ```json
//! {"quant_method": "bitnet-words", "format_version": 1, "activations": "int8"}
//! ```
//!
//! (`activations` is `none` for models whose linear layers take float inputs; `use_rms_norm` and `rms_norm_eps` are kept.)
//! `__metadata__` holds `format`, `format_version`, and for each tensor `xxh3.<tensor>`, the 64-bit XXH3 of its bytes in
//! hexadecimal. Loading a model checks those of all projections and norms, which it reads whole; the embedding and the
//! head, which back ends read in pieces of their own choice, are checked by [`crate::verify`].

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::Xxh3;

use super::checkpoint::Checkpoint;
use super::dense::{DenseTensor, check_finite};
use super::dtype::Dtype as Stored;
use super::files::Files;
use super::pooling::Pooling;
use super::projection::Projection;
use super::roles::{Linear, Names, Role};
use super::safetensors::checksum_key;
use super::staging::{Staging, is_vacant};
use super::storage::{WORDS_METHOD, WORDS_VERSION};
use super::tensors::{Tensor, checksum_text};
use crate::{ActQuant, Dense, DenseDtype, Error, Result, WeightSource};

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// What a folder holds beside configuration and weights; copied as it is.
const COPIED: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
];

/// What to do where the output folder holds something already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Keep,
    /// Replace the files of a model; others are left alone.
    Replace,
}

/// How far a conversion has come.
#[derive(Clone, Copy, Debug)]
pub struct ConvertProgress<'a> {
    /// The tensor that is being written.
    pub tensor: &'a str,
    /// Bytes of source tensors that are done.
    pub done_bytes: u64,
    /// Bytes of all source tensors that are needed.
    pub total_bytes: u64,
}

/// What a conversion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Size of the weights file written.
    pub written_bytes: u64,
}

/// Writes `source` to the folder `out` and calls `progress` as it goes on, which may break off.
///
/// Tensors pass one at a time. The files appear under their names when all are complete and on the disk; after a failure,
/// or when it was broken off, nothing of them is left. Of several that write into one folder at once one goes on, and the
/// others fail.
///
/// ```
/// use std::ops::ControlFlow;
/// use bitnet_model::{Checkpoint, Existing, convert, verify};
///
/// # let folder = "../bitnet-cli/demo-model";
/// # let out = std::env::temp_dir().join(format!("bitnet-doc-{}", std::process::id()));
/// let source = Checkpoint::open(folder)?;
/// let converted = convert(&source, &out, Existing::Keep, |_| ControlFlow::Continue(()))?;
/// assert!(converted.written_bytes > 0);
/// // Each tensor of the result has a checksum.
/// let verification = verify(&Checkpoint::open(&out)?, |_, _| ())?;
/// assert_eq!(verification.checksums, verification.tensors);
/// # std::fs::remove_dir_all(&out).unwrap();
/// # Ok::<(), bitnet_model::Error>(())
/// ```
///
/// # Errors
/// When `out` is the source's folder, is not a folder or (with [`Existing::Keep`]) is not empty; when a tensor of the source
/// is damaged; when a file cannot be read or written; [`Error::Cancelled`] when `progress` broke off.
pub fn convert(
    source: &Checkpoint,
    out: &Path,
    existing: Existing,
    mut progress: impl FnMut(ConvertProgress<'_>) -> ControlFlow<()>,
) -> Result<Converted> {
    check_output(source.files(), out)?;
    let parts = parts(source)?;
    let mut staging = Staging::begin(out)?;
    // Asked while no other run can write to the folder.
    if existing == Existing::Keep && !is_vacant(out)? {
        return Err(Error::Occupied {
            path: out.to_owned(),
            message: "is not empty; name a new folder, or let the model in it be replaced".to_owned(),
        });
    }
    let file = staging.create(WEIGHTS)?;
    let written_bytes = Writer::new(file, &parts)
        .and_then(|mut writer| {
            let total_bytes = parts.iter().map(Part::source_bytes).sum();
            let mut done_bytes = 0;
            for part in &parts {
                let mut add = |bytes| -> Result<()> {
                    done_bytes += bytes;
                    let flow = progress(ConvertProgress {
                        tensor: part.tensor().name(),
                        done_bytes,
                        total_bytes,
                    });
                    if flow.is_break() {
                        Err(Error::Cancelled)
                    } else {
                        Ok(())
                    }
                };
                add(0)?;
                writer.part(part, &mut add)?;
            }
            writer.finish()
        })
        .map_err(|error| error.at(&out.join(WEIGHTS)))?;
    let mut obsolete = vec![CONFIG, "model.safetensors.index.json"];
    for name in COPIED {
        match source.files().read(name)? {
            Some(content) => staging.write(name, &content)?,
            None => obsolete.push(name),
        }
    }
    // Last, so that a folder is never taken for a model before all of it is there.
    staging.write(CONFIG, config_json(source)?.as_bytes())?;
    staging.commit(&obsolete)?;
    Ok(Converted {
        source_bytes: parts.iter().map(Part::source_bytes).sum(),
        written_bytes,
    })
}

fn check_output(source: &Files, out: &Path) -> Result<()> {
    let Ok(attributes) = std::fs::metadata(out) else {
        return Ok(());
    };
    let refuse = |message: &str| Err(Error::Request(format!("{}: {message}", out.display())));
    if !attributes.is_dir() {
        return refuse("is a file; name a folder to write the model to");
    }
    let canonical = |path: &Path| std::fs::canonicalize(path).map_err(|source| Error::io(path, source));
    if let Files::Folder(source) = source
        && canonical(source)? == canonical(out)?
    {
        return refuse("is the folder to convert; name another one to write to");
    }
    Ok(())
}

/// config.json of the output: the source's, with our own quantization_config.
fn config_json(source: &Checkpoint) -> Result<String> {
    let mut config = source.json().clone();
    let mut quantization = Map::new();
    for key in ["use_rms_norm", "rms_norm_eps"] {
        if let Some(value) = config
            .get("quantization_config")
            .and_then(|original| original.get(key))
        {
            quantization.insert(key.into(), value.clone());
        }
    }
    quantization.insert("quant_method".into(), WORDS_METHOD.into());
    quantization.insert("format_version".into(), WORDS_VERSION.into());
    let activations = match source.config().act_quant {
        ActQuant::Int8 => "int8",
        ActQuant::None => "none",
    };
    quantization.insert("activations".into(), activations.into());
    config.insert("quantization_config".into(), quantization.into());
    // The bits of its master weights would be read as a sign that these are some.
    for key in ["weight_bits", "input_bits"] {
        config.remove(key);
    }
    if !source.config().has_head
        && let Some(pooling) = Pooling::from_files(source.files())?
    {
        config.insert("pooling".into(), pooling.to_string().into());
    }
    Ok(format!("{:#}\n", Value::Object(config)))
}

/// One tensor of the source, and what it becomes.
struct Part<'a> {
    /// Its name in the output; a scale's is made of it.
    name: String,
    content: Content<'a>,
}

enum Content<'a> {
    /// Floats, which stay as they are.
    Dense(Tensor<'a>),
    /// A table in a quantized type, which becomes f32.
    Table(Tensor<'a>, DenseTensor<'a>),
    /// Words and a scale.
    Ternary(Projection<'a>),
}

/// Everything of a model, in the order in which a back end reads it.
fn parts(source: &Checkpoint) -> Result<Vec<Part<'_>>> {
    let names = Names::Hf(source.hf_names());
    let config = source.config();
    let dense = |role: Role| {
        let tensor = source.tensor(role)?;
        Ok::<_, Error>(Part {
            name: names.of(role),
            content: Content::Dense(tensor),
        })
    };
    let table = |role: Role| {
        let tensor = source.tensor(role)?;
        let content = match tensor.dtype() {
            Stored::Float(_) => Content::Dense(tensor),
            _ => Content::Table(tensor, source.table(role)?),
        };
        let name = names.of(role);
        Ok::<_, Error>(Part { name, content })
    };
    let ternary = |role: Role, projection| Part {
        name: names.of(role),
        content: Content::Ternary(projection),
    };
    let mut parts = vec![table(Role::Embedding)?];
    for layer in 0..config.n_layers {
        for (role, _) in source.layer_norms(layer) {
            parts.push(dense(role)?);
        }
        for linear in Linear::ALL {
            if config.linear_norm_eps.is_some() {
                parts.push(dense(Role::InputNorm(layer, linear))?);
            }
            parts.push(ternary(
                Role::Weight(layer, linear),
                source.projection(layer, linear)?,
            ));
        }
    }
    parts.push(dense(Role::FinalNorm)?);
    if let Some(projection) = source.head_projection()? {
        if config.linear_norm_eps.is_some() {
            parts.push(dense(Role::HeadNorm)?);
        }
        parts.push(ternary(Role::Head, projection));
    } else if source.tables().contains(&Role::Head) {
        parts.push(table(Role::Head)?);
    }
    Ok(parts)
}

impl<'a> Part<'a> {
    fn tensor(&self) -> Tensor<'a> {
        match &self.content {
            Content::Dense(tensor) | Content::Table(tensor, _) => *tensor,
            Content::Ternary(projection) => projection.weight(),
        }
    }

    fn source_bytes(&self) -> u64 {
        self.tensor().n_bytes() as u64
    }
}

/// The type of floats in the output.
fn written_as(dtype: DenseDtype) -> Dtype {
    match dtype {
        DenseDtype::Bf16 => Dtype::BF16,
        DenseDtype::F16 => Dtype::F16,
        DenseDtype::F32 => Dtype::F32,
    }
}

/// A tensor of the output.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    hash: Xxh3,
}

/// Why writing stopped: the source's fault, or the output's, whose name the writer does not know.
enum Failure {
    Source(Error),
    Output(std::io::Error),
}

impl Failure {
    fn at(self, path: &Path) -> Error {
        match self {
            Self::Source(error) => error,
            Self::Output(error) => Error::io(path, error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Source(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

/// Writes a safetensors file front to back. The header comes first with empty checksums, and once more at the end with the
/// real ones, which take as many bytes.
struct Writer {
    file: File,
    entries: Vec<Entry>,
    /// Entries whose bytes are written.
    written: usize,
    buffer: Vec<u8>,
}

impl Writer {
    fn new(file: File, parts: &[Part<'_>]) -> Result<Self, Failure> {
        let mut entries = Vec::new();
        let mut add = |name: String, dtype, shape: &[usize], bytes| {
            entries.push(Entry {
                name,
                dtype,
                shape: shape.into(),
                bytes,
                hash: Xxh3::new(),
            });
        };
        for part in parts {
            let name = part.name.clone();
            match &part.content {
                Content::Dense(tensor) => {
                    add(
                        name,
                        written_as(tensor.float_dtype()?),
                        tensor.shape(),
                        tensor.n_bytes(),
                    );
                }
                Content::Table(_, table) => {
                    let (rows, cols) = table.shape();
                    let bytes = rows * cols * table.dtype().size();
                    add(name, written_as(table.dtype()), &[rows, cols], bytes);
                }
                Content::Ternary(projection) => {
                    let shape = projection.shape();
                    add(
                        name.clone(),
                        Dtype::U32,
                        &[shape.n(), shape.words_per_row()],
                        shape.words() * 4,
                    );
                    add(format!("{name}_scale"), Dtype::F32, &[1], 4);
                }
            }
        }
        let mut writer = Self {
            file,
            entries,
            written: 0,
            buffer: Vec::new(),
        };
        writer.file.write_all(&writer.header())?;
        Ok(writer)
    }

    /// Writes a tensor, and calls `add` with the bytes of the source that are done.
    fn part(&mut self, part: &Part<'_>, add: &mut dyn FnMut(u64) -> Result<()>) -> Result<(), Failure> {
        match &part.content {
            Content::Dense(tensor) => self.dense(tensor, add),
            Content::Table(tensor, table) => {
                let (rows, cols) = table.shape();
                let row_bytes = cols * table.dtype().size();
                let at_once = ((1 << 20) / row_bytes).max(1);
                let mut bytes = Vec::new();
                let mut done = 0;
                for first in (0..rows).step_by(at_once) {
                    let n = at_once.min(rows - first);
                    bytes.resize(n * row_bytes, 0);
                    table.read_rows(first, &mut bytes)?;
                    self.append(&bytes)?;
                    let reached = tensor.n_bytes() as u64 * (first + n) as u64 / rows as u64;
                    add(reached - done)?;
                    done = reached;
                }
                self.written += 1;
                Ok(())
            }
            Content::Ternary(projection) => {
                let mut words = vec![0; projection.shape().words()];
                let scale = projection.read(&mut words)?;
                let mut buffer = std::mem::take(&mut self.buffer);
                for block in words.chunks(1 << 18) {
                    buffer.clear();
                    buffer.extend(block.iter().flat_map(|word| word.to_le_bytes()));
                    self.append(&buffer)?;
                }
                self.buffer = buffer;
                self.written += 1;
                self.append(&scale.to_le_bytes())?;
                self.written += 1;
                add(part.source_bytes())?;
                Ok(())
            }
        }
    }

    fn dense(&mut self, tensor: &Tensor<'_>, add: &mut dyn FnMut(u64) -> Result<()>) -> Result<(), Failure> {
        let dtype = tensor.float_dtype()?;
        let mut done = 0;
        tensor.read_all(|bytes| {
            check_finite(tensor, dtype, done, bytes)?;
            done += bytes.len();
            self.append(bytes).map_err(Failure::Output)?;
            add(bytes.len() as u64)?;
            Ok::<(), Failure>(())
        })?;
        self.written += 1;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.entries[self.written].hash.update(bytes);
        self.file.write_all(bytes)
    }

    /// Writes the checksums and waits for the disk; returns the size of the file.
    fn finish(mut self) -> Result<u64, Failure> {
        assert_eq!(self.written, self.entries.len());
        let size = self.file.stream_position()?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.header())?;
        self.file.sync_all()?;
        Ok(size)
    }

    /// The file up to the first tensor. Its length does not depend on the checksums.
    fn header(&self) -> Vec<u8> {
        let mut metadata = Map::new();
        metadata.insert("format".into(), WORDS_METHOD.into());
        metadata.insert("format_version".into(), WORDS_VERSION.to_string().into());
        let mut header = Map::new();
        let mut start = 0;
        for entry in &self.entries {
            metadata.insert(checksum_key(&entry.name), checksum_text(&entry.hash).into());
            let end = start + entry.bytes;
            let description =
                json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]});
            header.insert(entry.name.clone(), description);
            start = end;
        }
        header.insert("__metadata__".into(), metadata.into());
        let mut text = Value::Object(header).to_string();
        // Tensors begin at a multiple of their elements' size: all have a multiple of 4 bytes.
        text.extend(std::iter::repeat_n(
            ' ',
            text.len().next_multiple_of(8) - text.len(),
        ));
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }
}
