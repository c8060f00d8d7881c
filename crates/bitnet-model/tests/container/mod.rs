//! GGUF files taken apart, changed and put together again.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::Path;

/// A key with the bytes of its value, type number first.
pub(crate) type Pair = (String, Vec<u8>);

#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// A file in parts; tensors are laid out again when it is written.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) pairs: Vec<Pair>,
    pub(crate) tensors: Vec<Tensor>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> String {
        let n = self.u64();
        String::from_utf8(self.take(n as usize).to_vec()).unwrap()
    }

    fn skip(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            8 => drop(self.string()),
            9 => {
                let (kind, n) = (self.u32(), self.u64());
                (0..n).for_each(|_| self.skip(kind));
            }
            _ => drop(self.take(8)),
        }
    }
}

impl Gguf {
    /// Reads a file of one part with the default alignment.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut reader = Reader(&bytes);
        assert_eq!(reader.take(4), b"GGUF");
        let version = reader.u32();
        let (n_tensors, n_pairs) = (reader.u64(), reader.u64());
        let pairs = (0..n_pairs)
            .map(|_| {
                let key = reader.string();
                let before = reader.0;
                let kind = reader.u32();
                reader.skip(kind);
                (key, before[..before.len() - reader.0.len()].to_vec())
            })
            .collect();
        let infos: Vec<_> = (0..n_tensors)
            .map(|_| {
                let name = reader.string();
                let n_dims = reader.u32();
                let dims = (0..n_dims).map(|_| reader.u64()).collect();
                (name, dims, reader.u32(), reader.u64() as usize)
            })
            .collect();
        let start = (bytes.len() - reader.0.len()).next_multiple_of(32);
        let tensors = infos
            .iter()
            .map(|(name, dims, kind, offset): &(String, Vec<u64>, u32, usize)| {
                let next = infos.iter().map(|info| info.3).filter(|next| next > offset).min();
                let end = next.map_or(bytes.len(), |next| start + next);
                Tensor {
                    name: name.clone(),
                    dims: dims.clone(),
                    kind: *kind,
                    bytes: bytes[start + offset..end].to_vec(),
                }
            });
        Self {
            version,
            pairs,
            tensors: tensors.collect(),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            string(&mut out, key);
            out.extend(value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            string(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(32) as u64;
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    /// Sets a key to a value of a type, both as they stand in a file.
    pub(crate) fn set(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs.retain(|(known, _)| known != key);
        self.pairs
            .push((key.into(), [&kind.to_le_bytes(), value].concat()));
    }

    pub(crate) fn set_text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        string(&mut bytes, value);
        self.set(key, 8, &bytes);
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.pairs.retain(|(known, _)| known != key);
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .unwrap()
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
