//! The text of a PTX module: what is added to the compiler's output, and the header it is stored with.

use anyhow::{Context, Result, bail};
use bitnet_kernels::KernelInfo;
use std::fmt::Write;

/// First lines of a stored module: where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Hash of the sources and the build flags.
    pub(crate) source: String,
    /// What `rustc --version` says of the compiler.
    pub(crate) compiler: String,
}

const TITLE: &str = "// Generated from crates/bitnet-kernels by `cargo xtask build-ptx`; do not edit.";
const SOURCE: &str = "// source: ";
const COMPILER: &str = "// compiler: ";

impl Header {
    /// The header as text.
    pub(crate) fn text(&self) -> String {
        format!("{TITLE}\n{SOURCE}{}\n{COMPILER}{}\n", self.source, self.compiler)
    }

    /// The header of a stored module.
    pub(crate) fn parse(ptx: &str) -> Result<Self> {
        let field = |mark: &str| {
            let line = ptx.lines().take(8).find_map(|line| line.strip_prefix(mark));
            line.map(str::to_owned)
                .with_context(|| format!("its header has no line `{mark}...`"))
        };
        Ok(Self {
            source: field(SOURCE)?,
            compiler: field(COMPILER)?,
        })
    }
}

/// The compiler's output made ready to store: no header of its own, launch bounds on every entry, and names that do not
/// depend on where the compiler found its files.
///
/// Every kernel of `kernels` must be an entry of `ptx` and the other way round.
pub(crate) fn finish(ptx: &str, kernels: &[KernelInfo]) -> Result<String> {
    let body = &ptx[ptx
        .find(".version")
        .context("the compiler's output has no `.version`")?..];
    let body = with_launch_bounds(body, kernels)?;
    Ok(with_stable_names(&body))
}

/// Inserts `.maxntid` and `.minnctapersm`, which rustc has no attribute for, after each entry's parameter list
/// (PTX ISA, "Performance-Tuning Directives").
fn with_launch_bounds(ptx: &str, kernels: &[KernelInfo]) -> Result<String> {
    const ENTRY: &str = ".visible .entry ";
    let mut out = String::with_capacity(ptx.len() + 64 * kernels.len());
    let mut missing: Vec<&str> = kernels.iter().map(|kernel| kernel.name).collect();
    let mut rest = ptx;
    while let Some(at) = rest.find(ENTRY) {
        let name_at = at + ENTRY.len();
        let name_end = name_at
            + rest[name_at..]
                .find('(')
                .context("an entry without a parameter list")?;
        let name = &rest[name_at..name_end];
        let end = name_end + rest[name_end..].find("\n{").context("an entry without a body")?;
        let Some(kernel) = kernels.iter().find(|kernel| kernel.name == name) else {
            bail!("the PTX has a kernel `{name}` that bitnet_kernels::ALL does not list");
        };
        missing.retain(|listed| *listed != name);
        out.push_str(&rest[..end]);
        let [x, y, z] = kernel.block;
        write!(out, "\n.maxntid {x}, {y}, {z}")?;
        if kernel.min_blocks > 0 {
            write!(out, "\n.minnctapersm {}", kernel.min_blocks)?;
        }
        rest = &rest[end..];
    }
    if !missing.is_empty() {
        bail!(
            "bitnet_kernels::ALL lists kernels that the PTX lacks: {}",
            missing.join(", ")
        );
    }
    out.push_str(rest);
    Ok(out)
}

/// Replaces the hash in each mangled name (`17h`, 16 digits, `E`), which changes with the path of the workspace, by the
/// number of its first appearance.
fn with_stable_names(ptx: &str) -> String {
    const MARK: &str = "17h";
    const DIGITS: usize = 16;
    let mut seen: Vec<&str> = Vec::new();
    let mut out = String::with_capacity(ptx.len());
    let mut rest = ptx;
    while let Some(at) = rest.find(MARK) {
        let start = at + MARK.len();
        let hash = rest.get(start..start + DIGITS).filter(|hash| {
            hash.bytes().all(|b| b.is_ascii_hexdigit()) && rest[start + DIGITS..].starts_with('E')
        });
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if let Some(hash) = hash {
            let number = seen.iter().position(|known| *known == hash).unwrap_or_else(|| {
                seen.push(hash);
                seen.len() - 1
            });
            write!(out, "{number:016x}").expect("writing to a string");
            rest = &rest[DIGITS..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "// LLVM\n.version 7.8\n.target sm_80\n.visible .entry f(\n\t.param .u32 f_param_0\n)\n{\n\tret;\n}\n\
        call _ZN1a1b17h0123456789abcdefE, _ZN1a1c17hffffffffffffffffE, _ZN1a1b17h0123456789abcdefE, 17h;\n";

    fn kernel(name: &'static str, min_blocks: u32) -> KernelInfo {
        KernelInfo {
            name,
            block: [128, 2, 1],
            min_blocks,
            min_sm: 80,
            param_sizes: &[4],
        }
    }

    #[test]
    fn launch_bounds_follow_the_parameters() {
        let ptx = finish(PTX, &[kernel("f", 3)]).unwrap();
        assert!(
            ptx.contains("f_param_0\n)\n.maxntid 128, 2, 1\n.minnctapersm 3\n{\n"),
            "{ptx}"
        );
        assert!(!finish(PTX, &[kernel("f", 0)]).unwrap().contains("minnctapersm"));
    }

    #[test]
    fn the_kernel_list_and_the_entries_must_agree() {
        let error = |kernels: &[KernelInfo]| finish(PTX, kernels).unwrap_err().to_string();
        assert!(error(&[]).contains("kernel `f`"));
        assert!(error(&[kernel("f", 0), kernel("g", 0)]).ends_with("lacks: g"));
    }

    #[test]
    fn hashes_in_names_become_numbers() {
        let ptx = finish(PTX, &[kernel("f", 0)]).unwrap();
        let line = ptx.lines().last().unwrap();
        assert_eq!(
            line,
            "call _ZN1a1b17h0000000000000000E, _ZN1a1c17h0000000000000001E, _ZN1a1b17h0000000000000000E, 17h;"
        );
    }

    #[test]
    fn the_header_survives_storing() {
        let header = Header {
            source: "0123456789abcdef".into(),
            compiler: "rustc 1.96.0".into(),
        };
        let stored = header.text() + &finish(PTX, &[kernel("f", 0)]).unwrap();
        assert_eq!(Header::parse(&stored).unwrap(), header);
        assert!(Header::parse(PTX).is_err());
    }
}
