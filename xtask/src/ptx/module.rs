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

/// What the compiler writes before a symbol that others may see; its name follows.
const SYMBOL: &str = "\t// .globl\t";

/// The compiler's output made ready to store, a text for each list of kernels: no header of its own, launch bounds on every entry, no
/// indentation, and names that do not depend on where the compiler found its files.
///
/// Every kernel of `modules` must be an entry of `ptx` and the other way round. Entries must stand alone: what the compiler put
/// between them would be missing in one of the modules.
pub(crate) fn finish(ptx: &str, modules: &[Vec<KernelInfo>]) -> Result<Vec<String>> {
    let body = &ptx[ptx
        .find(".version")
        .context("the compiler's output has no `.version`")?..];
    let body = with_stable_names(&without_asm_marks(body));
    let mut symbols = body.split(SYMBOL);
    let head = symbols.next().unwrap_or_default();
    let mut texts = vec![head.to_owned(); modules.len()];
    let mut missing: Vec<&str> = modules.iter().flatten().map(|kernel| kernel.name).collect();
    for symbol in symbols {
        let name = symbol.split_whitespace().next().unwrap_or_default();
        let found = modules
            .iter()
            .zip(&mut texts)
            .find_map(|(kernels, text)| Some((kernels.iter().find(|kernel| kernel.name == name)?, text)));
        let Some((kernel, text)) = found else {
            bail!("the PTX has a kernel `{name}` that bitnet_kernels lists in no module");
        };
        missing.retain(|listed| *listed != name);
        text.push_str(SYMBOL);
        text.push_str(&with_launch_bounds(symbol, kernel)?);
    }
    if !missing.is_empty() {
        bail!(
            "bitnet_kernels lists kernels that the PTX lacks: {}",
            missing.join(", ")
        );
    }
    Ok(texts.iter().map(|text| without_indentation(text)).collect())
}

/// The text without what the compiler indents lines and operands by, a twentieth of it.
fn without_indentation(ptx: &str) -> String {
    ptx.split_inclusive('\n')
        .map(|line| line.trim_start_matches('\t').replace(" \t", " "))
        .collect()
}

/// The text without the comments that the compiler puts around each piece of inline assembly, a twelfth of it, and without those that
/// stand in such a piece for registers that it only keeps in their place.
fn without_asm_marks(ptx: &str) -> String {
    let is_mark = |line: &str| {
        let line = line.trim();
        matches!(line, "// begin inline asm" | "// end inline asm") || line.starts_with("// %")
    };
    ptx.split_inclusive('\n').filter(|line| !is_mark(line)).collect()
}

/// Inserts `.maxntid` and `.minnctapersm`, which rustc has no attribute for, after the parameter list of an entry
/// (PTX ISA, "Performance-Tuning Directives").
fn with_launch_bounds(entry: &str, kernel: &KernelInfo) -> Result<String> {
    let [x, y, z] = kernel.block;
    let name = kernel.name;
    let start = entry
        .find(&format!(".visible .entry {name}("))
        .with_context(|| format!("`{name}` is no entry"))?;
    let body = start + entry[start..].find("\n{").context("an entry without a body")?;
    let end = entry.find("\n}\n").context("an entry without an end")? + 3;
    if let Some(line) = entry[end..].lines().find(|line| !line.trim().is_empty()) {
        bail!("behind `{name}` stands what belongs to no kernel: {line}");
    }
    let mut out = format!("{}\n.maxntid {x}, {y}, {z}", &entry[..body]);
    if kernel.min_blocks > 0 {
        write!(out, "\n.minnctapersm {}", kernel.min_blocks)?;
    }
    out.push_str(&entry[body..]);
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

    const PTX: &str = "// LLVM\n.version 7.8\n.target sm_80\n\t// .globl\tf\n.visible .entry f(\n\t.param .u32 f_param_0\n)\n{\n\
        \t_ZN1a1b17h0123456789abcdefE, _ZN1a1c17hffffffffffffffffE, _ZN1a1b17h0123456789abcdefE, 17h;\n}\n\
        \t// .globl\tg\n.visible .entry g(\n\t.param .u64 g_param_0\n)\n{\n\tret;\n\n}\n";

    fn kernel(name: &'static str, min_blocks: u32) -> KernelInfo {
        KernelInfo {
            name,
            block: [128, 2, 1],
            min_blocks,
            min_sm: 80,
            is_exact: false,
            param_sizes: &[4],
        }
    }

    fn both() -> [Vec<KernelInfo>; 2] {
        [vec![kernel("f", 3)], vec![kernel("g", 0)]]
    }

    fn finished() -> [String; 2] {
        finish(PTX, &both()).unwrap().try_into().unwrap()
    }

    #[test]
    fn launch_bounds_follow_the_parameters() {
        let [f, g] = finished();
        assert!(
            f.contains("f_param_0\n)\n.maxntid 128, 2, 1\n.minnctapersm 3\n{\n"),
            "{f}"
        );
        assert!(g.contains("g_param_0\n)\n.maxntid 128, 2, 1\n{\n"), "{g}");
    }

    #[test]
    fn each_module_has_the_head_and_its_own_kernels() {
        let [f, g] = finished();
        for text in [&f, &g] {
            assert!(
                text.starts_with(".version 7.8\n.target sm_80\n// .globl"),
                "{text}"
            );
        }
        assert!(f.contains(".entry f(") && !f.contains(".entry g("));
        assert!(g.contains(".entry g(") && !g.contains(".entry f("));
    }

    #[test]
    fn the_kernel_lists_and_the_entries_must_agree() {
        let error = |ptx: &str, kernels: [Vec<KernelInfo>; 2]| finish(ptx, &kernels).unwrap_err().to_string();
        let [f, g] = both();
        assert!(error(PTX, [f.clone(), vec![]]).contains("kernel `g`"));
        let more = [f.clone(), [g.clone(), vec![kernel("h", 0)]].concat()];
        assert!(error(PTX, more).ends_with("lacks: h"));
        // What only one of the modules would have.
        let shared = PTX.replacen("}\n", "}\n.global .u32 table;\n", 1);
        assert!(error(&shared, [f, g]).contains("behind `f`"));
    }

    #[test]
    fn comments_of_inline_assembly_are_left_out() {
        let marked = PTX.replacen(
            "{\n\t",
            "{\n\t// begin inline asm\n\t// %r1 %r2\n\t// end inline asm\n\t",
            1,
        );
        assert_ne!(marked, PTX);
        assert_eq!(finish(&marked, &both()).unwrap(), finished());
    }

    #[test]
    fn hashes_in_names_become_numbers() {
        let [f, _] = finished();
        assert!(f.contains(
            "\n_ZN1a1b17h0000000000000000E, _ZN1a1c17h0000000000000001E, _ZN1a1b17h0000000000000000E, 17h;"
        ));
    }

    #[test]
    fn the_header_survives_storing() {
        let header = Header {
            source: "0123456789abcdef".into(),
            compiler: "rustc 1.96.0".into(),
        };
        let [f, _] = finished();
        let stored = header.text() + &f;
        assert_eq!(Header::parse(&stored).unwrap(), header);
        assert!(Header::parse(PTX).is_err());
    }
}
