//! A Rust compiler that can make PTX: any that has its own library source beside it.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How to get one.
const INSTALL: &str = "    rustup toolchain install nightly --profile minimal --component rust-src
  or, on Debian:
    sudo apt-get install rustc-web rust-web-src";

/// A compiler with its library source.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) rustc: PathBuf,
    /// The cargo that drives it: its own, or the one that runs this program.
    pub(crate) cargo: PathBuf,
    /// What `rustc --version` says.
    pub(crate) version: String,
}

/// The compiler `named`, or else one installed here: the one whose version is `preferred` if there is one.
///
/// Without one the error says how to install it.
pub(crate) fn find(named: Option<&Path>, preferred: Option<&str>) -> Result<Toolchain> {
    if let Some(rustc) = named {
        return inspect(rustc);
    }
    let usable: Vec<Toolchain> = candidates()
        .iter()
        .filter_map(|rustc| inspect(rustc).ok())
        .collect();
    let same = usable
        .iter()
        .find(|toolchain| Some(toolchain.version.as_str()) == preferred);
    same.or(usable.first()).cloned().with_context(|| {
        format!("no Rust compiler with its library source (rust-src) is installed; one of these installs it:\n{INSTALL}")
    })
}

/// Compilers that may be usable, best first: rustup's nightlies, the one on PATH, the system's.
fn candidates() -> Vec<PathBuf> {
    let home = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".rustup")));
    let mut nightlies: Vec<PathBuf> = home
        .and_then(|home| std::fs::read_dir(home.join("toolchains")).ok())
        .into_iter()
        .flat_map(|folder| folder.flatten())
        .filter(|toolchain| toolchain.file_name().to_string_lossy().starts_with("nightly"))
        .map(|toolchain| toolchain.path().join("bin/rustc"))
        .collect();
    nightlies.sort();
    nightlies.extend([PathBuf::from("rustc"), PathBuf::from("/usr/bin/rustc")]);
    nightlies
}

fn inspect(rustc: &Path) -> Result<Toolchain> {
    let ask = |argument: &[&str]| -> Result<String> {
        let output = Command::new(rustc)
            .args(argument)
            .output()
            .with_context(|| format!("cannot run {}", rustc.display()))?;
        if !output.status.success() {
            bail!(
                "{} fails: {}",
                rustc.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
    let library = sysroot.join("lib/rustlib/src/rust/library/core");
    if !library.is_dir() {
        bail!(
            "{} has no library source: {} does not exist; one of these installs a compiler that has:\n{INSTALL}",
            rustc.display(),
            library.display()
        );
    }
    let own_cargo = sysroot.join("bin/cargo");
    let cargo = if own_cargo.is_file() {
        own_cargo
    } else {
        PathBuf::from(crate::cargo())
    };
    // The version alone: what follows it tells how it was packaged.
    let version = ask(&["--version"])?;
    let version = version
        .split_once(')')
        .map_or(version.clone(), |(version, _)| format!("{version})"));
    Ok(Toolchain {
        rustc: rustc.to_owned(),
        cargo,
        version,
    })
}
