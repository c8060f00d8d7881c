//! `build-ptx`: compiles the kernels with rustc's own NVPTX back end and stores the text beside the code that embeds it.

mod module;
mod ptxas;
mod sources;
pub(crate) mod toolchain;

use anyhow::{Context, Result, bail};
use bitnet_kernels::KernelInfo;
use module::Header;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use toolchain::Toolchain;

/// Compile the GPU kernels to PTX and store it under crates/bitnet-cuda/ptx
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when the stored PTX is not what the sources compile to
    #[arg(long)]
    check: bool,
    /// Compiler to use; it needs its library source (rust-src)
    #[arg(long, value_name = "PATH")]
    rustc: Option<PathBuf>,
    /// NVIDIA's assembler, to check the result with
    #[arg(long, value_name = "PATH")]
    ptxas: Option<PathBuf>,
}

/// An architecture, for which the kernels are compiled at once.
struct Target {
    /// Lowest GPU they run on, the names of their files, and a `cfg` of their sources.
    sm: &'static str,
    /// The number in `sm`.
    sm_number: u32,
    /// Whether no other GPU runs them: of the kernels these are those that need that.
    is_exact: bool,
    /// The modules that they are stored in.
    modules: &'static [Module],
    /// PTX version to write, as a target feature. The lowest that has every instruction the kernels use, since it decides
    /// which drivers can load them.
    ptx: &'static str,
    /// Later GPUs on which the driver compiles them too: `--check` assembles them for those.
    later: &'static [&'static str],
}

/// How a module's file name begins, and its kernels for every architecture.
type Module = (&'static str, &'static [KernelInfo]);

const MODEL: Module = ("", bitnet_kernels::MODEL);
const BENCH: Module = ("bench_", bitnet_kernels::BENCH);

const TARGETS: [Target; 3] = [
    Target {
        sm: "sm_80",
        sm_number: 80,
        is_exact: false,
        modules: &[MODEL, BENCH],
        ptx: "+ptx78",
        later: &["sm_86", "sm_89"],
    },
    Target {
        sm: "sm_90",
        sm_number: 90,
        is_exact: false,
        modules: &[MODEL, BENCH],
        ptx: "+ptx81",
        later: &["sm_100", "sm_120"],
    },
    Target {
        sm: "sm_90a",
        sm_number: 90,
        is_exact: true,
        modules: &[MODEL],
        ptx: "+ptx81",
        later: &[],
    },
];

impl Target {
    /// Compiler flags, for the kernels and for `core` alike.
    fn flags(&self) -> Vec<String> {
        vec![
            format!("-Ctarget-cpu={}", self.sm),
            format!("-Ctarget-feature={}", self.ptx),
            format!("--cfg=sm_{}", self.sm_number),
            format!("--cfg={}", self.sm),
            // It copies calls, barriers among them, into divergent branches, where they deadlock (rust-lang/rust#137086).
            "-Zmir-enable-passes=-JumpThreading".to_owned(),
            // Arrays live in registers only when every loop over them is unrolled; the default gives up at some lengths.
            "-Cllvm-args=-unroll-threshold=8000".to_owned(),
            // Line numbers in panic messages would make every comment change the output.
            "-Zlocation-detail=none".to_owned(),
            // The assembly is the product; there is nothing to link.
            "-Clinker=true".to_owned(),
        ]
    }

    /// The files of its modules.
    fn stored(&self) -> Vec<PathBuf> {
        let folder = crate::workspace_root().join("crates/bitnet-cuda/ptx");
        let path = |&(prefix, _): &Module| folder.join(format!("{prefix}{}.ptx", self.sm));
        self.modules.iter().map(path).collect()
    }

    /// The kernels of its modules.
    fn kernels(&self) -> Vec<Vec<KernelInfo>> {
        let is_own = |kernel: &&KernelInfo| match kernel.is_exact {
            true => self.is_exact && kernel.min_sm == self.sm_number,
            false => !self.is_exact && kernel.min_sm <= self.sm_number,
        };
        let own = |(_, kernels): &Module| kernels.iter().filter(is_own).copied().collect();
        self.modules.iter().map(own).collect()
    }

    fn source_hash(&self) -> Result<String> {
        sources::hash(
            &crate::workspace_root(),
            &format!("{:?} {PROFILE:?}", self.flags()),
        )
    }
}

/// Everything in one codegen unit, without line tables.
const PROFILE: [&str; 7] = [
    "profile.release.opt-level=3",
    "profile.release.lto=\"fat\"",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    "profile.release.debug=0",
    "profile.release.debug-assertions=false",
    "profile.release.overflow-checks=false",
];

/// Builds, checks and stores (or compares) every module.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = crate::workspace_root();
    let stored_compiler = TARGETS
        .iter()
        .flat_map(Target::stored)
        .find_map(|path| Some(read_stored(&path).ok()?.0.compiler));
    if args.check {
        TARGETS.iter().try_for_each(require_current_source)?;
    }
    let toolchain = toolchain::find(args.rustc.as_deref(), stored_compiler.as_deref())?;
    println!("compiler: {} ({})", toolchain.version, toolchain.rustc.display());
    let ptxas = ptxas::find(&root, args.ptxas.as_deref())?;
    if ptxas.is_none() {
        println!(
            "not checked with ptxas, which is not installed; this installs it:\n{}",
            ptxas::INSTALL
        );
    }
    let mut local_memory = Vec::new();
    for target in &TARGETS {
        let header = Header {
            source: target.source_hash()?,
            compiler: toolchain.version.clone(),
        };
        let bodies = module::finish(&compile(&toolchain, target)?, &target.kernels())?;
        for (body, path) in bodies.iter().zip(target.stored()) {
            let text = header.text() + body;
            let built = root.join("target/ptx").join(path.file_name().unwrap_or_default());
            fs::write(&built, &text).with_context(|| format!("cannot write {}", built.display()))?;
            if let Some(ptxas) = &ptxas {
                local_memory.extend(assemble(ptxas, &built, target, args.check)?);
            }
            if args.check {
                compare(&path, &text)?;
            } else {
                fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
                println!("wrote {}", path.display());
            }
        }
    }
    if !local_memory.is_empty() {
        bail!(
            "these use local memory or spill registers: {}",
            local_memory.join(", ")
        );
    }
    Ok(())
}

/// Assembles `module`, for later GPUs too where it is `checked`, and prints what its kernels use; gives those that use local memory.
fn assemble(ptxas: &Path, module: &Path, target: &Target, checked: bool) -> Result<Vec<String>> {
    println!("{}:", module.display());
    let usages = ptxas::assemble(ptxas, module, target.sm)?;
    usages.iter().for_each(|usage| println!("  {usage}"));
    for &later in target.later.iter().filter(|_| checked) {
        ptxas::assemble(ptxas, module, later)?;
        println!("assembles for {later} too");
    }
    let spilling = usages
        .into_iter()
        .filter(|usage| usage.stack_bytes + usage.spill_bytes > 0);
    Ok(spilling
        .map(|usage| format!("{} ({})", usage.name, target.sm))
        .collect())
}

/// The compiler's PTX for `target`.
fn compile(toolchain: &Toolchain, target: &Target) -> Result<String> {
    // A folder of its own for each, or `core` would be compiled again every time the flags change.
    let folder = crate::workspace_root().join("target/ptx").join(target.sm);
    let assembly = folder.join("nvptx64-nvidia-cuda/release/deps");
    for stale in assembly_files(&assembly) {
        fs::remove_file(stale)?;
    }
    let status = Command::new(&toolchain.cargo)
        .current_dir(crate::workspace_root())
        .args([
            "rustc",
            "--quiet",
            "--package",
            "bitnet-kernels",
            "--lib",
            "--release",
            "--crate-type",
            "cdylib",
        ])
        .args(["--target", "nvptx64-nvidia-cuda", "-Zbuild-std=core"])
        .args(PROFILE.iter().flat_map(|setting| ["--config", setting]))
        .args(["--", "--emit=asm"])
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &folder)
        .env("CARGO_ENCODED_RUSTFLAGS", target.flags().join("\u{1f}"))
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .with_context(|| format!("cannot run {}", toolchain.cargo.display()))?;
    if !status.success() {
        bail!("the kernels do not compile for {}", target.sm);
    }
    match assembly_files(&assembly).as_slice() {
        [file] => Ok(fs::read_to_string(file)?),
        files => bail!(
            "expected one .s file in {}, found {}",
            assembly.display(),
            files.len()
        ),
    }
}

fn assembly_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == "s"))
        .collect()
}

fn read_stored(path: &Path) -> Result<(Header, String)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let header =
        Header::parse(&text).with_context(|| format!("{} is not a stored module", path.display()))?;
    Ok((header, text))
}

/// Fails when a stored module was built from other sources or flags.
fn require_current_source(target: &Target) -> Result<()> {
    let current = target.source_hash()?;
    for path in target.stored() {
        let (header, _) = read_stored(&path)?;
        if header.source != current {
            bail!(
                "{} is stale: built from source {}, now {current}; run `cargo xtask build-ptx`",
                path.display(),
                header.source
            );
        }
    }
    Ok(())
}

/// Fails when the module stored at `path` is not `built`. Another compiler makes another text, so then only the hash counts.
fn compare(path: &Path, built: &str) -> Result<()> {
    let (header, stored) = read_stored(path)?;
    let compiler = Header::parse(built)?.compiler;
    if header.compiler != compiler {
        println!(
            "{}: built by {}, this is {compiler}: sources compared, text not",
            path.display(),
            header.compiler
        );
        return Ok(());
    }
    if let Some((n, (old, new))) = stored
        .lines()
        .zip(built.lines())
        .enumerate()
        .find(|(_, (old, new))| old != new)
    {
        bail!(
            "{} is not what the sources compile to; run `cargo xtask build-ptx`. First difference, line {}:\n\
             stored: {old}\nbuilt:  {new}",
            path.display(),
            n + 1
        );
    }
    if stored.len() != built.len() {
        bail!(
            "{} has a different length than what the sources compile to",
            path.display()
        );
    }
    println!("{}: current", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_is_current() {
        for target in &TARGETS {
            require_current_source(target).unwrap();
        }
    }
}
