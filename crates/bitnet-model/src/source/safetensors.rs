//! safetensors files: one or shards, their headers checked against the files' sizes.
//!
//! Only headers are held in memory.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use safetensors::tensor::Metadata;
use serde_json::Value;

use super::files::WEIGHTS;
use super::pieces::Pieces;
use super::storage::WORDS_METHOD;
use super::tensors::{Info, TensorFiles};
use crate::{Error, Files, Result};

const SINGLE: &str = WEIGHTS[0];
const INDEX: &str = WEIGHTS[1];

/// What the safetensors format allows a header to be, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Opens the safetensors files among `files` and checks their headers.
pub(super) fn open(files: &Files) -> Result<TensorFiles> {
    let mut all = TensorFiles::default();
    if files.has(SINGLE) {
        add(&mut all, files, SINGLE)?;
    } else if let Some(index) = files.read(INDEX)? {
        let path = files.path(INDEX);
        for (shard, tensors) in shards(&index, &path)? {
            let file = add(&mut all, files, &shard)?;
            if let Some(missing) = tensors.iter().find(|&name| all.file_of(name) != Some(file)) {
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

/// Adds the tensors of the file `name`; returns its index.
fn add(all: &mut TensorFiles, files: &Files, name: &str) -> Result<usize> {
    let (pieces, data_start, header) = open_file(files, name)?;
    let checksums: HashMap<String, String> = header.metadata().clone().unwrap_or_default();
    let file = all.add_file(files.path(name), pieces);
    for name in header.offset_keys() {
        let info = header.info(&name).expect("the key comes from this header");
        let (start, end) = info.data_offsets;
        let info = Info {
            file,
            dtype: info.dtype.into(),
            shape: info.shape.clone(),
            start: data_start + start as u64,
            bytes: end - start,
            checksum: checksums.get(&checksum_key(&name)).cloned(),
        };
        all.add(name, info)?;
    }
    Ok(file)
}

/// Key of a tensor's checksum in `__metadata__`.
pub(super) fn checksum_key(tensor: &str) -> String {
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

/// A file, where its tensors begin, and its header.
fn open_file(files: &Files, name: &str) -> Result<(Pieces, u64, Metadata)> {
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
    let none = HashMap::new();
    check_checksum_keys(&header, header.metadata().as_ref().unwrap_or(&none)).map_err(invalid)?;
    Ok((pieces, data_start, header))
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
    let found = if let Some(name) = with(".bin").or_else(|| with(".pt")).or_else(|| with(".pth")) {
        format!("; {name} is a PyTorch file, which is not read: download or save the model as safetensors")
    } else {
        String::new()
    };
    Error::invalid(files.root(), format!("holds neither {SINGLE} nor {INDEX}{found}"))
}
