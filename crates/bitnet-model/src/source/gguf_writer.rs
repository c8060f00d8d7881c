//! The beginning of a GGUF file, version 3: keys, values and the list of tensors.

use super::dtype::GgufType;

/// Where tensors may begin: the default of the format.
pub(super) const ALIGN: usize = 32;

/// A file up to its tensors, as it grows.
#[derive(Default)]
pub(super) struct Header {
    n_values: u64,
    values: Vec<u8>,
    n_tensors: u64,
    tensors: Vec<u8>,
    /// Where the next tensor begins, from the first on.
    offset: u64,
}

impl Header {
    /// A string.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        string(&mut self.values, value.as_bytes());
    }

    /// A whole number.
    pub(super) fn count(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.values.extend(value.to_le_bytes());
    }

    /// A number.
    pub(super) fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.values.extend(value.to_le_bytes());
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.values.push(value.into());
    }

    /// Strings.
    pub(super) fn texts<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        self.array(key, 8, values.len());
        for value in values {
            string(&mut self.values, value.as_bytes());
        }
    }

    /// Numbers.
    pub(super) fn floats(&mut self, key: &str, values: &[f32]) {
        self.array(key, 6, values.len());
        self.values
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// Whole numbers.
    pub(super) fn integers(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        self.values
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// A tensor of `bytes` bytes behind those before it; `shape` has rows first.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize], kind: GgufType, bytes: u64) {
        self.n_tensors += 1;
        string(&mut self.tensors, name.as_bytes());
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        for &dim in shape.iter().rev() {
            self.tensors.extend((dim as u64).to_le_bytes());
        }
        self.tensors.extend(kind.0.to_le_bytes());
        self.tensors.extend(self.offset.to_le_bytes());
        self.offset += bytes.next_multiple_of(ALIGN as u64);
    }

    /// The bytes before the first tensor.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend(self.n_values.to_le_bytes());
        bytes.extend(&self.values);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.n_values += 1;
        string(&mut self.values, key.as_bytes());
        self.values.extend(kind.to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.values.extend(kind.to_le_bytes());
        self.values.extend((len as u64).to_le_bytes());
    }
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}
