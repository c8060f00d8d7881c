//! The container of GGUF files, versions 2 and 3: metadata and the list of tensors, in one file or in split ones.
//!
//! Knows nothing of models. Counts and lengths are compared with the size of the file before anything is allocated for them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::super::dtype::{Dtype, GgufType};
use super::super::pieces::Pieces;
use super::super::tensors::{Info, TensorFiles};
use super::metadata::{Array, Metadata, Value};
use crate::{Error, Result};

/// What every GGUF file begins with.
const MAGIC: [u8; 4] = *b"GGUF";
/// What places of tensors are multiples of, where a file does not say it.
const ALIGN: u64 = 32;
/// Longest string and longest array: the limit of llama.cpp.
const MAX_LENGTH: u64 = 1 << 30;
/// Longest name of a tensor, in bytes.
const MAX_NAME: usize = 63;
/// Bytes of a file that are read at a time.
const BUFFER: usize = 1 << 16;

/// Whether the file at `path` begins as a GGUF file does.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    // Opening a pipe would wait for its other end.
    path.is_file()
        && Pieces::open(path).is_ok_and(|pieces| pieces.read_exact_at(&mut magic, 0).is_ok())
        && magic == MAGIC
}

/// Opens a GGUF file, and those that a split model's first file goes with. Tensors have their rows first.
pub(super) fn open(path: &Path) -> Result<(Metadata, TensorFiles)> {
    let mut tensors = TensorFiles::default();
    let (metadata, align) = add(&mut tensors, path, None)?;
    let count = metadata.count("split.count")?.unwrap_or(1);
    if count > 1 {
        let part = metadata.count("split.no")?.unwrap_or(0);
        let siblings = siblings(path, part, count)?;
        for (no, sibling) in siblings.iter().enumerate().skip(1) {
            let (of_part, _) = add(&mut tensors, sibling, Some(align))?;
            let found = (of_part.count("split.no")?, of_part.count("split.count")?);
            if found != (Some(no), Some(count)) {
                return Err(Error::invalid(
                    sibling,
                    format!(
                        "says that it is part {:?} of {:?}; expected part {no} (the first is 0) of {count}: the files do not belong \
                         together",
                        found.0, found.1
                    ),
                ));
            }
        }
        let expected = metadata.count("split.tensors.count")?;
        if expected.is_some_and(|expected| expected != tensors.len()) {
            return Err(Error::invalid(
                path,
                format!(
                    "and its {} further parts hold {} tensors; split.tensors.count says {}",
                    count - 1,
                    tensors.len(),
                    expected.unwrap_or_default()
                ),
            ));
        }
    }
    Ok((metadata, tensors))
}

/// The names of all parts of a split model, of which `path` must be the first.
fn siblings(path: &Path, part: usize, count: usize) -> Result<Vec<PathBuf>> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let stem = name
        .strip_suffix(&format!("-{:05}-of-{count:05}.gguf", part + 1))
        .filter(|_| count < 100_000);
    let Some(stem) = stem else {
        return Err(Error::invalid(
            path,
            format!(
                "is part {} of {count} of a split model; the parts must keep their names, which end in -{:05}-of-{count:05}.gguf",
                part + 1,
                part + 1
            ),
        ));
    };
    let name = |no: usize| path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", no + 1));
    if part != 0 {
        return Err(Error::invalid(
            path,
            format!(
                "is part {} of {count} of a split model; name the first, {}",
                part + 1,
                name(0).display()
            ),
        ));
    }
    Ok((0..count).map(name).collect())
}

/// Adds the tensors of one file to `tensors`; returns its metadata, and what its tensors' places are multiples of. `first` is that
/// of the first part of a split model, which alone may say it.
fn add(tensors: &mut TensorFiles, path: &Path, first: Option<u64>) -> Result<(Metadata, u64)> {
    let pieces = Pieces::open(path)?;
    let mut reader = Reader::new(path, &pieces)?;
    let (n_tensors, n_kv) = reader.start()?;
    let metadata = reader.metadata(n_kv)?;
    if first.is_none()
        && let (Some(part), Some(count @ 2..)) = (metadata.count("split.no")?, metadata.count("split.count")?)
    {
        siblings(path, part, count)?;
    }
    let described = reader.tensors(n_tensors)?;
    let align = match (metadata.alignment()?, first) {
        (Some(align), _) => align,
        (None, Some(first)) if first > ALIGN && !is_packed(&described, reader.at, reader.size) => first,
        (None, _) => ALIGN,
    };
    let data_start = reader.at.next_multiple_of(align);
    let checked = check(path, described, data_start, align, reader.size)?;
    let file = tensors.add_file(path.into(), pieces);
    for (name, shape, dtype, start, bytes) in checked {
        let info = Info {
            file,
            dtype,
            shape,
            start,
            bytes,
            checksum: None,
        };
        tensors.add(name, info)?;
    }
    Ok((metadata, align))
}

/// Whether the tensors follow each other, and the last one ends where the file does, with places that are multiples of the default.
fn is_packed(described: &[Described], header_end: u64, size: u64) -> bool {
    let mut places: Vec<(u64, u64)> = Vec::new();
    for tensor in described {
        let rows = tensor.dims[1..].iter().product();
        let Ok(Some(bytes)) = tensor.kind.bytes(rows, tensor.dims[0]) else {
            return true;
        };
        places.push((tensor.offset, bytes));
    }
    places.sort_unstable();
    let start = header_end.next_multiple_of(ALIGN);
    let nexts = places[1.min(places.len())..].iter().map(|place| place.0);
    let nexts = nexts.chain([size.saturating_sub(start)]);
    places.iter().zip(nexts).all(|(&(offset, bytes), next)| {
        let left = offset.checked_add(bytes).and_then(|end| next.checked_sub(end));
        left.is_some_and(|left| left < ALIGN)
    })
}

/// A tensor as the file describes it; `dims` has columns first.
struct Described {
    name: String,
    dims: Vec<u64>,
    kind: GgufType,
    offset: u64,
}

type Checked = (String, Vec<usize>, Dtype, u64, usize);

/// Checks where the tensors are against each other and against the size of the file.
fn check(
    path: &Path,
    mut described: Vec<Described>,
    data_start: u64,
    align: u64,
    size: u64,
) -> Result<Vec<Checked>> {
    described.sort_by_key(|tensor| tensor.offset);
    let mut checked = Vec::with_capacity(described.len());
    for (i, tensor) in described.iter().enumerate() {
        let Described {
            name,
            dims,
            kind,
            offset,
        } = tensor;
        let what = |message: String| Error::invalid(path, format!("tensor `{name}` {message}"));
        let cols = dims[0];
        let rows: u64 = dims[1..].iter().product();
        let start = data_start
            .checked_add(*offset)
            .filter(|start| offset.is_multiple_of(align) && *start <= size)
            .ok_or_else(|| {
                what(format!(
                    "begins at byte {offset}, which is not in the file; it is damaged or cut off"
                ))
            })?;
        // Where the next one begins; the last may lack its padding.
        let (room, last) = match described.get(i + 1) {
            Some(next) => (next.offset - offset, false),
            None => (size - start, true),
        };
        let bytes = match kind.bytes(rows, cols) {
            Ok(Some(bytes)) => bytes,
            // What a type of unknown size has; whoever uses it will refuse the type.
            Ok(None) => room,
            Err(multiple) => {
                return Err(what(format!(
                    "of type {kind} has {cols} columns and {rows} rows; expected a multiple of {multiple} values"
                )));
            }
        };
        if bytes > room {
            let legacy = *kind == GgufType::Q2_0
                && cols.is_multiple_of(128)
                && (rows * (cols / 128) * 34).next_multiple_of(align) == room.next_multiple_of(align);
            return Err(if legacy {
                Error::unsupported(
                    path,
                    format!(
                        "tensor `{name}` is of the Q2_0 that PrismML's programs wrote before llama.cpp had that type (groups of 128 \
                         values, not 64); download a current file of the model"
                    ),
                )
            } else if last {
                what(format!(
                    "of type {kind} and shape {:?} takes {bytes} bytes, and the file ends after {room}: it is cut off; download it again",
                    shape(dims)
                ))
            } else {
                what(format!(
                    "of type {kind} and shape {:?} takes {bytes} bytes, and the next one begins after {room}; the file is damaged, or \
                     another program means another type by that number",
                    shape(dims)
                ))
            });
        }
        // These sizes tell layouts apart that share a number.
        if !last && matches!(*kind, GgufType::I2_S | GgufType::Q2_0) && room - bytes >= align {
            return Err(what(format!(
                "of type {kind} and shape {:?} takes {bytes} bytes, and has {room}; another program means another type by that number",
                shape(dims)
            )));
        }
        let bytes = usize::try_from(bytes)
            .map_err(|_| what(format!("takes {bytes} bytes, more than this machine can address")))?;
        checked.push((name.clone(), shape(dims), (*kind).into(), start, bytes));
    }
    Ok(checked)
}

/// Rows first. The dimensions were checked to fit.
fn shape(dims: &[u64]) -> Vec<usize> {
    dims.iter().rev().map(|&dim| dim as usize).collect()
}

/// Reads a file front to back.
struct Reader<'a> {
    path: &'a Path,
    pieces: &'a Pieces,
    size: u64,
    /// Bytes that have been taken.
    at: u64,
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    buffer_start: u64,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, pieces: &'a Pieces) -> Result<Self> {
        Ok(Self {
            path,
            pieces,
            size: pieces.size().map_err(|source| Error::io(path, source))?,
            at: 0,
            buffer: Vec::new(),
            buffer_start: 0,
        })
    }

    fn invalid(&self, message: impl Into<String>) -> Error {
        Error::invalid(self.path, message)
    }

    /// Magic, version and counts: (tensors, keys).
    fn start(&mut self) -> Result<(u64, u64)> {
        if self.size < 24 || self.take::<4>()? != MAGIC {
            return Err(self.invalid("is not a GGUF file"));
        }
        match self.u32()? {
            2 | 3 => {}
            1 => {
                return Err(Error::unsupported(
                    self.path,
                    "version 1 of GGUF, of 2023; convert the original model again",
                ));
            }
            version if version & 0xffff == 0 => {
                return Err(Error::unsupported(
                    self.path,
                    "big-endian GGUF; convert it with gguf_convert_endian.py of the Python package gguf",
                ));
            }
            version => {
                return Err(Error::unsupported(
                    self.path,
                    format!("version {version} of GGUF; this program reads 2 and 3"),
                ));
            }
        }
        let (n_tensors, n_kv) = (self.u64()?, self.u64()?);
        let rest = self.size - self.at;
        // Sizes of the smallest tensor description (a name of one byte, one dimension) and of the smallest key.
        if n_tensors.saturating_mul(8 + 1 + 4 + 8 + 4 + 8) > rest || n_kv.saturating_mul(8 + 1 + 4 + 1) > rest
        {
            return Err(self.invalid(format!(
                "claims {n_tensors} tensors and {n_kv} keys in {rest} bytes; it is damaged or cut off"
            )));
        }
        Ok((n_tensors, n_kv))
    }

    fn metadata(&mut self, n_kv: u64) -> Result<Metadata> {
        let mut values = BTreeMap::new();
        for _ in 0..n_kv {
            let key = self.name("a key")?;
            let kind = self.u32()?;
            let value = self.value(kind, &key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(self.invalid(format!("has the key `{key}` twice")));
            }
        }
        Ok(Metadata::new(self.path.into(), values))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.take::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.take()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.take()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.take()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.take()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.take()?).into()),
            7 => match self.take::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(self.invalid(format!("key `{key}`: {other} is neither true nor false")));
                }
            },
            8 => Value::Text(self.bytes(key)?),
            9 => Value::Array(self.array(key)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.take()?)),
            12 => Value::Float(f64::from_le_bytes(self.take()?)),
            other => return Err(self.invalid(format!("key `{key}` has a value of unknown type {other}"))),
        })
    }

    fn array(&mut self, key: &str) -> Result<Array> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.invalid(format!("key `{key}` is an array of arrays, which is not allowed"))),
            other => return Err(self.invalid(format!("key `{key}` is an array of unknown type {other}"))),
        };
        if count > MAX_LENGTH || count * size > self.size - self.at {
            return Err(self.invalid(format!(
                "key `{key}` claims {count} values in {} bytes; the file is damaged or cut off",
                self.size - self.at
            )));
        }
        Ok(if kind == 8 {
            let strings: Result<_> = (0..count).map(|_| self.bytes(key)).collect();
            Array::Texts(strings?)
        } else {
            let mut bytes = vec![0; (count * size) as usize];
            self.fill(&mut bytes)?;
            Array::Numbers { kind, bytes }
        })
    }

    fn tensors(&mut self, n_tensors: u64) -> Result<Vec<Described>> {
        let mut names = HashSet::new();
        (0..n_tensors)
            .map(|_| {
                let name = self.name("the name of a tensor")?;
                if name.len() > MAX_NAME {
                    return Err(self.invalid(format!(
                        "has a tensor with a name of {} bytes; at most {MAX_NAME} are allowed",
                        name.len()
                    )));
                }
                if !names.insert(name.clone()) {
                    return Err(self.invalid(format!("has tensor `{name}` twice")));
                }
                let n_dims = self.u32()?;
                if !(1..=4).contains(&n_dims) {
                    return Err(self.invalid(format!(
                        "tensor `{name}` has {n_dims} dimensions; expected 1 to 4"
                    )));
                }
                let dims = (0..n_dims).map(|_| self.u64()).collect::<Result<Vec<_>>>()?;
                let values = dims.iter().try_fold(1u64, |all, &dim| all.checked_mul(dim));
                if dims.contains(&0) || values.is_none_or(|values| values > i64::MAX as u64) {
                    return Err(self.invalid(format!(
                        "tensor `{name}` has dimensions {dims:?}, which no tensor can have"
                    )));
                }
                Ok(Described {
                    name,
                    dims,
                    kind: GgufType(self.u32()?),
                    offset: self.u64()?,
                })
            })
            .collect()
    }

    /// A string that must be text and not empty.
    fn name(&mut self, what: &str) -> Result<String> {
        let bytes = self.bytes(what)?;
        match String::from_utf8(bytes) {
            Ok(name) if !name.is_empty() => Ok(name),
            _ => Err(self.invalid(format!("{what} is empty or no UTF-8; the file is damaged"))),
        }
    }

    fn bytes(&mut self, what: &str) -> Result<Vec<u8>> {
        let length = self.u64()?;
        if length > MAX_LENGTH || length > self.size - self.at {
            return Err(self.invalid(format!(
                "{what} claims a string of {length} bytes where {} are left; the file is damaged or cut off",
                self.size - self.at
            )));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        if out.len() as u64 > self.size - self.at {
            return Err(
                self.invalid("ends before its list of tensors does; it is cut off, download it again")
            );
        }
        let io = |source| Error::io(self.path, source);
        if out.len() > BUFFER {
            self.pieces.read_exact_at(out, self.at).map_err(io)?;
        } else {
            let buffered = self.buffer_start..self.buffer_start + self.buffer.len() as u64;
            if self.at < buffered.start || self.at + out.len() as u64 > buffered.end {
                self.buffer.resize(BUFFER.min((self.size - self.at) as usize), 0);
                self.pieces.read_exact_at(&mut self.buffer, self.at).map_err(io)?;
                self.buffer_start = self.at;
            }
            let from = (self.at - self.buffer_start) as usize;
            out.copy_from_slice(&self.buffer[from..from + out.len()]);
        }
        self.at += out.len() as u64;
        Ok(())
    }
}
