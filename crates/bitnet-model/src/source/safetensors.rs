//! The tensors of a folder: found in one safetensors file or in shards, checked against the files' sizes, read piecewise.
//!
//! Knows nothing of models. Only headers are held in memory, and nothing is allocated for a size that a file merely claims.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

use super::files::Pieces;
use super::storage::WORDS_METHOD;
use crate::{DenseDtype, Error, Files, Result};

/// A folder with one of these holds a model of one file, or of several.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What the safetensors format allows a header to be, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes that [`Tensor::read_all`] reads at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Every tensor of a folder.
#[derive(Debug)]
pub(crate) struct TensorFiles {
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

#[derive(Debug)]
struct TensorFile {
    path: PathBuf,
    pieces: Pieces,
    /// Where the tensors' bytes begin.
    data_start: u64,
    metadata: HashMap<String, String>,
}

/// One tensor, still in its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    name: &'a str,
    info: &'a TensorInfo,
    file: &'a TensorFile,
}

impl TensorFiles {
    /// Opens the safetensors files among `files` and checks their headers.
    pub(crate) fn open(files: &Files) -> Result<Self> {
        let mut all = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        if files.has(SINGLE) {
            all.add(files, SINGLE)?;
        } else if let Some(index) = files.read(INDEX)? {
            let path = files.path(INDEX);
            for (shard, tensors) in shards(&index, &path)? {
                all.add(files, &shard)?;
                let file = all.files.len() - 1;
                if let Some(missing) = tensors
                    .iter()
                    .find(|&name| all.tensors.get(name).is_none_or(|(held_by, _)| *held_by != file))
                {
                    return Err(Error::invalid(
                        path,
                        format!(
                            "places tensor `{missing}` in {shard}, which does not hold it; download both again"
                        ),
                    ));
                }
            }
        } else {
            return Err(no_weights(files));
        }
        Ok(all)
    }

    fn add(&mut self, files: &Files, name: &str) -> Result<()> {
        let (opened, header) = TensorFile::open(files, name)?;
        for name in header.offset_keys() {
            let info = header
                .info(&name)
                .expect("the key comes from this header")
                .clone();
            if let Some((first, _)) = self.tensors.get(&name) {
                return Err(Error::invalid(
                    opened.path,
                    format!(
                        "holds tensor `{name}` again, already in {}",
                        self.files[*first].path.display()
                    ),
                ));
            }
            self.tensors.insert(name, (self.files.len(), info));
        }
        self.files.push(opened);
        Ok(())
    }

    /// The tensor of that name, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, (file, info)) = self.tensors.get_key_value(name)?;
        Some(Tensor {
            name,
            info,
            file: &self.files[*file],
        })
    }

    /// The tensor of that name.
    pub(crate) fn get(&self, name: &str) -> Result<Tensor<'_>> {
        self.find(name).ok_or_else(|| {
            Error::invalid(
                &self.files[0].path,
                format!("tensor `{name}` is missing, which config.json calls for"),
            )
        })
    }

    /// Every tensor, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|(name, (file, info))| Tensor {
            name,
            info,
            file: &self.files[*file],
        })
    }
}

impl TensorFile {
    fn open(files: &Files, name: &str) -> Result<(Self, Metadata)> {
        let path = files.path(name);
        let io = |source| Error::io(&path, source);
        let invalid = |message: String| Error::invalid(&path, message);
        let pieces = files.open(name)?;
        let size = pieces.size().map_err(io)?;
        if size < 8 {
            return Err(invalid(format!(
                "is {size} bytes long, which is too short for a safetensors file; download it again"
            )));
        }
        let mut length = [0; 8];
        pieces.read_exact_at(&mut length, 0).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > size - 8 {
            return Err(invalid(format!(
                "claims a header of {length} bytes in a file of {size}: it is truncated, or not a safetensors file; download it \
                 again"
            )));
        }
        let mut header = vec![0; length as usize];
        pieces.read_exact_at(&mut header, 8).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| {
            invalid(format!(
                "the safetensors header is broken: {error}; download the file again"
            ))
        })?;
        let (data_start, data) = (8 + length, header.data_len() as u64);
        if data != size - data_start {
            return Err(invalid(format!(
                "holds {} bytes of tensors where its header describes {data}: it is truncated or damaged; download it again",
                size - data_start
            )));
        }
        let metadata = header.metadata().clone().unwrap_or_default();
        check_checksum_keys(&header, &metadata).map_err(invalid)?;
        let opened = Self {
            path,
            pieces,
            data_start,
            metadata,
        };
        Ok((opened, header))
    }
}

impl<'a> Tensor<'a> {
    /// Its name.
    pub(crate) fn name(&self) -> &'a str {
        self.name
    }

    /// Its element type.
    pub(crate) fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// Its shape.
    pub(crate) fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    /// Its size.
    pub(crate) fn n_bytes(&self) -> usize {
        self.info.data_offsets.1 - self.info.data_offsets.0
    }

    /// Reads its bytes from `offset` on until `out` is full.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        assert!(
            out.len() <= self.n_bytes().saturating_sub(offset),
            "a read past the end of {}",
            self.name
        );
        let start = self.file.data_start + (self.info.data_offsets.0 + offset) as u64;
        let read = self.file.pieces.read_exact_at(out, start);
        read.map_err(|source| Error::io(&self.file.path, source))
    }

    /// Hands out all of its bytes in order, in blocks of `BLOCK_BYTES` and a last one, and then compares them with the
    /// checksum where the file has one.
    pub(crate) fn read_all<E: From<Error>>(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut block = vec![0; self.n_bytes().min(BLOCK_BYTES)];
        let mut hash = Xxh3::new();
        let expected = self.file.metadata.get(&checksum_key(self.name));
        for offset in (0..self.n_bytes()).step_by(BLOCK_BYTES) {
            let block = &mut block[..(self.n_bytes() - offset).min(BLOCK_BYTES)];
            self.read(offset, block)?;
            if expected.is_some() {
                hash.update(block);
            }
            take(block)?;
        }
        match expected {
            Some(expected) if *expected != checksum_text(&hash) => Err(E::from(self.invalid(format!(
                "does not match its checksum: {} found, {expected} recorded; the file is damaged, convert or copy it again",
                checksum_text(&hash)
            )))),
            _ => Ok(()),
        }
    }

    /// Whether both have the same type, shape and bytes.
    pub(crate) fn is_same(&self, other: &Self) -> Result<bool> {
        if self.dtype() != other.dtype() || self.shape() != other.shape() {
            return Ok(false);
        }
        let mut blocks = [
            vec![0; self.n_bytes().min(BLOCK_BYTES)],
            vec![0; self.n_bytes().min(BLOCK_BYTES)],
        ];
        for offset in (0..self.n_bytes()).step_by(BLOCK_BYTES) {
            let len = (self.n_bytes() - offset).min(BLOCK_BYTES);
            let [own, others] = blocks.each_mut().map(|block| &mut block[..len]);
            self.read(offset, own)?;
            other.read(offset, others)?;
            if own != others {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether its file has a checksum of it.
    pub(crate) fn has_checksum(&self) -> bool {
        self.file.metadata.contains_key(&checksum_key(self.name))
    }

    /// Checks its shape.
    pub(crate) fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape() == shape {
            return Ok(());
        }
        Err(self.invalid(format!(
            "has shape {:?}, and config.json calls for {shape:?}; the files do not belong together",
            self.shape()
        )))
    }

    /// Its element type, which must be a float.
    pub(crate) fn float_dtype(&self) -> Result<DenseDtype> {
        match self.dtype() {
            Dtype::BF16 => Ok(DenseDtype::Bf16),
            Dtype::F16 => Ok(DenseDtype::F16),
            Dtype::F32 => Ok(DenseDtype::F32),
            other => Err(self.invalid(format!("has type {other:?}; expected BF16, F16 or F32"))),
        }
    }

    /// Reads a vector of `len` finite floats.
    pub(crate) fn read_floats(&self, len: usize) -> Result<Vec<f32>> {
        let dtype = self.float_dtype()?;
        self.expect_shape(&[len])?;
        let mut floats = vec![0.0; len];
        let mut rest = &mut floats[..];
        self.read_all(|bytes| {
            let (converted, later) = std::mem::take(&mut rest).split_at_mut(bytes.len() / dtype.size());
            dtype.to_f32(bytes, converted);
            rest = later;
            Ok::<_, Error>(())
        })?;
        match floats.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(self.invalid(format!("holds {} at index {at}", floats[at]))),
            None => Ok(floats),
        }
    }

    /// An [`Error::Invalid`] about it.
    pub(crate) fn invalid(&self, message: impl std::fmt::Display) -> Error {
        Error::invalid(&self.file.path, format!("tensor `{}` {message}", self.name))
    }

    /// An [`Error::Unsupported`] about it.
    pub(crate) fn unsupported(&self, message: impl std::fmt::Display) -> Error {
        Error::unsupported(&self.file.path, format!("tensor `{}` {message}", self.name))
    }
}

/// Key of a tensor's checksum in `__metadata__`.
pub(crate) fn checksum_key(tensor: &str) -> String {
    format!("xxh3.{tensor}")
}

/// A file has a checksum of each of its tensors, or none at all: a key that fits no tensor, or a tensor that no key fits, would turn
/// a check off.
fn check_checksum_keys(header: &Metadata, metadata: &HashMap<String, String>) -> Result<(), String> {
    let damaged = |what: String| format!("{what}; the header is damaged, convert or copy the file again");
    let prefix = checksum_key("");
    let ours = metadata
        .get("format")
        .is_some_and(|format| format == WORDS_METHOD);
    let mut any = ours;
    for key in metadata.keys().filter_map(|key| key.strip_prefix(&prefix)) {
        any = true;
        if header.info(key).is_none() {
            return Err(damaged(format!(
                "has a checksum of tensor `{key}`, which it does not hold"
            )));
        }
    }
    let names = header.offset_keys();
    match names
        .iter()
        .find(|name| any && !metadata.contains_key(&checksum_key(name)))
    {
        Some(name) => Err(damaged(format!("has no checksum of tensor `{name}`"))),
        None => Ok(()),
    }
}

/// A checksum as `__metadata__` holds it: XXH3 of 64 bits over the tensor's bytes, 16 hexadecimal digits.
pub(crate) fn checksum_text(hash: &Xxh3) -> String {
    format!("{:016x}", hash.digest())
}

/// The shards that an index names, each with its tensors; `path` is what messages call the index.
fn shards(index: &[u8], path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let invalid = |message: String| Error::invalid(path, message);
    let value: Value =
        serde_json::from_slice(index).map_err(|error| invalid(format!("is not valid JSON: {error}")))?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| invalid("has no `weight_map` object from tensor names to files".into()))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard
            .as_str()
            .ok_or_else(|| invalid(format!("weight_map[`{tensor}`] is {shard}; expected a file name")))?;
        let plain = !shard.is_empty()
            && Path::new(shard)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
        if !plain {
            return Err(invalid(format!(
                "weight_map[`{tensor}`] is `{shard}`, which is not a file inside the folder"
            )));
        }
        shards.entry(shard.into()).or_default().push(tensor.clone());
    }
    if shards.is_empty() {
        return Err(invalid("names no tensors".into()));
    }
    Ok(shards)
}

/// Says what a folder without safetensors holds instead.
fn no_weights(files: &Files) -> Error {
    let names = std::fs::read_dir(files.root())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    let names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    let with = |suffix: &str| names.iter().find(|name| name.ends_with(suffix));
    let found = if let Some(name) = with(".gguf") {
        format!("; {name} is GGUF, which is not read: download the safetensors files of the same model")
    } else if let Some(name) = with(".bin").or_else(|| with(".pt")).or_else(|| with(".pth")) {
        format!("; {name} is a PyTorch file, which is not read: download or save the model as safetensors")
    } else {
        String::new()
    };
    Error::invalid(files.root(), format!("holds neither {SINGLE} nor {INDEX}{found}"))
}
