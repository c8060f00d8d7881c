//! The tensors of a model: named, typed, still in their files, read piecewise. Which kind of file they are in shows only in
//! their types and in who made the list ([`super::safetensors`], [`super::gguf`]).
//!
//! Knows nothing of models. Nothing is allocated for a size that a file merely claims.

use std::collections::BTreeMap;
use std::path::PathBuf;

use xxhash_rust::xxh3::Xxh3;

use super::dtype::Dtype;
use super::pieces::Pieces;
use crate::{DenseDtype, Error, Result};

/// Bytes that [`Tensor::read_all`] reads at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Every tensor of a model.
#[derive(Debug, Default)]
pub(crate) struct TensorFiles {
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Info>,
}

#[derive(Debug)]
struct TensorFile {
    path: PathBuf,
    pieces: Pieces,
}

/// A tensor as a file describes it. Whoever makes one has checked that the file holds `bytes` bytes from `start` on.
#[derive(Debug)]
pub(super) struct Info {
    /// Index of its file, see [`TensorFiles::add_file`].
    pub(super) file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Where its bytes begin in the file.
    pub(super) start: u64,
    pub(super) bytes: usize,
    /// What the file says its checksum is.
    pub(super) checksum: Option<String>,
}

/// One tensor, still in its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    name: &'a str,
    info: &'a Info,
    file: &'a TensorFile,
}

impl TensorFiles {
    /// Adds a file, and returns its index for [`Info::file`].
    pub(super) fn add_file(&mut self, path: PathBuf, pieces: Pieces) -> usize {
        self.files.push(TensorFile { path, pieces });
        self.files.len() - 1
    }

    /// Adds a tensor of a file that was added.
    pub(super) fn add(&mut self, name: String, info: Info) -> Result<()> {
        if let Some(first) = self.tensors.get(&name) {
            return Err(Error::invalid(
                &self.files[info.file].path,
                format!(
                    "holds tensor `{name}` again, already in {}",
                    self.files[first.file].path.display()
                ),
            ));
        }
        self.tensors.insert(name, info);
        Ok(())
    }

    /// The tensor of that name, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, info) = self.tensors.get_key_value(name)?;
        Some(self.tensor(name, info))
    }

    /// The tensor of that name.
    pub(crate) fn get(&self, name: &str) -> Result<Tensor<'_>> {
        self.find(name).ok_or_else(|| {
            let message = format!("tensor `{name}` is missing, which the model's configuration calls for");
            let file = self
                .files
                .first()
                .map_or_else(PathBuf::new, |file| file.path.clone());
            Error::invalid(file, message)
        })
    }

    /// Every tensor, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|(name, info)| self.tensor(name, info))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The file that holds the tensor `name`.
    pub(super) fn file_of(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).map(|info| info.file)
    }

    fn tensor<'a>(&'a self, name: &'a str, info: &'a Info) -> Tensor<'a> {
        Tensor {
            name,
            info,
            file: &self.files[info.file],
        }
    }
}

impl<'a> Tensor<'a> {
    /// Its name.
    pub(crate) fn name(&self) -> &'a str {
        self.name
    }

    /// Its type.
    pub(crate) fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// Its shape: rows first, also where the file has it the other way round.
    pub(crate) fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    /// Its size in its file.
    pub(crate) fn n_bytes(&self) -> usize {
        self.info.bytes
    }

    /// Reads its bytes from `offset` on until `out` is full.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        assert!(
            out.len() <= self.n_bytes().saturating_sub(offset),
            "a read past the end of {}",
            self.name
        );
        let read = self
            .file
            .pieces
            .read_exact_at(out, self.info.start + offset as u64);
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
        let expected = self.info.checksum.as_ref();
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
        self.info.checksum.is_some()
    }

    /// Checks its shape.
    pub(crate) fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape() == shape {
            return Ok(());
        }
        Err(self.invalid(format!(
            "has shape {:?}, and the model's configuration calls for {shape:?}; the files do not belong together",
            self.shape()
        )))
    }

    /// Its element type, which must be a float.
    pub(crate) fn float_dtype(&self) -> Result<DenseDtype> {
        match self.dtype() {
            Dtype::Float(dtype) => Ok(dtype),
            other => Err(self.invalid(format!("has type {other}; expected BF16, F16 or F32"))),
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

    /// Reads the one float of a scale.
    pub(crate) fn read_scalar(&self) -> Result<f32> {
        let dtype = self.float_dtype()?;
        if !matches!(self.shape(), [] | [1]) {
            return Err(self.invalid(format!("has shape {:?}; expected one value", self.shape())));
        }
        let mut value = [0.0];
        self.read_all(|bytes| {
            dtype.to_f32(bytes, &mut value);
            Ok::<_, Error>(())
        })?;
        Ok(value[0])
    }

    /// An [`Error::Invalid`] about it.
    pub(crate) fn invalid(&self, message: impl std::fmt::Display) -> Error {
        Error::invalid(&self.file.path, format!("tensor `{}` {message}", self.name))
    }

    /// An [`Error::Unsupported`] about it.
    pub(crate) fn unsupported(&self, message: impl std::fmt::Display) -> Error {
        Error::unsupported(&self.file.path, format!("tensor `{}` {message}", self.name))
    }

    /// An [`Error::NotTernary`] about it.
    pub(crate) fn not_ternary(&self, message: impl std::fmt::Display) -> Error {
        Error::NotTernary {
            path: self.file.path.clone(),
            message: format!("tensor `{}` {message}", self.name),
        }
    }
}

/// A checksum as a file holds it: XXH3 of 64 bits over the tensor's bytes, 16 hexadecimal digits.
pub(crate) fn checksum_text(hash: &Xxh3) -> String {
    format!("{:016x}", hash.digest())
}
