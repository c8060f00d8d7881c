//! A hash of what the PTX is compiled from, so that a test without the compiler notices a stale file.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates whose code ends up in the PTX.
const CRATES: [&str; 2] = ["crates/bitnet-kernels", "crates/bitnet-layout"];

/// Files and folders of those crates that no kernel uses.
const HOST_ONLY: [&str; 4] = ["emulator", "tests", "reference", "hf"];

/// Hash of the device sources under `root` and of `build`, the text of everything else that decides the output.
///
/// Comments, the tests at the end of a file, and what rustfmt decides do not count: they cannot change the PTX.
pub(crate) fn hash(root: &Path, build: &str) -> Result<String> {
    let mut hash = Fnv::new();
    for name in CRATES {
        let mut files = Vec::new();
        collect(&root.join(name).join("src"), &mut files)?;
        files.sort();
        for path in files {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let relative = path.strip_prefix(root).unwrap_or(&path);
            hash.write(relative.to_string_lossy().replace('\\', "/").as_bytes());
            hash.write(b"\0");
            code_lines(&text).for_each(|line| hash.write(&without_layout(line)));
        }
    }
    hash.write(build.as_bytes());
    Ok(format!("{:016x}", hash.0))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let host_only = path
            .file_stem()
            .is_some_and(|name| HOST_ONLY.iter().any(|host| name == *host));
        if host_only {
            continue;
        } else if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
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
    fn sources_and_flags_both_count() {
        let root = crate::workspace_root();
        let hash = |build| hash(&root, build).unwrap();
        assert_eq!(hash("a"), hash("a"));
        assert_ne!(hash("a"), hash("b"));
    }
}
