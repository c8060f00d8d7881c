//! A hash of what the PTX is compiled from, so that a test without the compiler notices a stale file.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The device code.
const KERNELS: &str = "crates/bitnet-kernels/src";

/// What it shares with the host. Only the files that it names count.
const LAYOUT: &str = "crates/bitnet-layout/src";

/// Files and folders of the device code's crate that only the host compiles.
const HOST_ONLY: [&str; 2] = ["emulator", "tests"];

/// Hash of the device sources under `root` and of `build`, the text of everything else that decides the output.
///
/// Comments, the tests at the end of a file, and what rustfmt decides do not count: they cannot change the PTX.
pub(crate) fn hash(root: &Path, build: &str) -> Result<String> {
    let mut included = read(&root.join(KERNELS))?;
    let mut layout = read(&root.join(LAYOUT))?;
    // The files that a file names are included in turn, until none names another.
    let mut from = 0;
    while from < included.len() {
        let next = included.len();
        let (named, rest): (Vec<_>, Vec<_>) = layout
            .into_iter()
            .partition(|file| included[from..].iter().any(|by| by.names(&file.module)));
        included.extend(named);
        layout = rest;
        from = next;
    }
    included.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hash = Fnv::new();
    for file in &included {
        let relative = file.path.strip_prefix(root).unwrap_or(&file.path);
        hash.write(relative.to_string_lossy().replace('\\', "/").as_bytes());
        hash.write(b"\0");
        code_lines(&file.text).for_each(|line| hash.write(&without_layout(line)));
    }
    hash.write(build.as_bytes());
    Ok(format!("{:016x}", hash.0))
}

struct Source {
    path: PathBuf,
    /// The file's name without `.rs`.
    module: String,
    text: String,
}

impl Source {
    /// Whether the word `module` is anywhere in the code.
    fn names(&self, module: &str) -> bool {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        code_lines(&self.text).any(|line| line.split(|c| !word(c)).any(|found| found == module))
    }
}

/// The Rust files under `folder` that are compiled for the device.
fn read(folder: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let module = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if HOST_ONLY.contains(&module.as_str()) {
            continue;
        }
        if path.is_dir() {
            sources.extend(read(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            sources.push(Source { path, module, text });
        }
    }
    Ok(sources)
}

/// The lines that the compiler sees, without indentation; ends at a `#[cfg(test)]` in the first column, since tests
/// stand at the end of a file.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
}

/// The line without what rustfmt moves: spaces and trailing commas.
fn without_layout(line: &str) -> Vec<u8> {
    line.bytes()
        .filter(|byte| !matches!(byte, b' ' | b'\t' | b','))
        .collect()
}

/// 64-bit FNV-1a.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_counts() {
        let code = "//! Doc.\n\nfn f() {\n    // why\n    g()\n}\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(code_lines(code).collect::<Vec<_>>(), ["fn f() {", "g()", "}"]);
        assert_eq!(without_layout("f(a, b,)"), without_layout("f(a,b)"));
    }

    #[test]
    fn names_are_whole_words_of_code() {
        let text = "// act\nuse bitnet_layout::{mma_tile, words};\n".to_owned();
        let source = Source {
            path: "kernel.rs".into(),
            module: "kernel".into(),
            text,
        };
        assert!(source.names("mma_tile") && source.names("words"));
        assert!(!source.names("act") && !source.names("tile"));
    }

    #[test]
    fn sources_and_flags_both_count() {
        let root = crate::workspace_root();
        let hash = |build| hash(&root, build).unwrap();
        assert_eq!(hash("a"), hash("a"));
        assert_ne!(hash("a"), hash("b"));
    }
}
