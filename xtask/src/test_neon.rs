//! Tests the AArch64 code of bitnet-cpu in an emulator, from any machine.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::ptx::toolchain;
use crate::{cargo, workspace_root};

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Tools besides the compiler, and how to get them on Debian.
const TOOLS: [&str; 2] = ["aarch64-linux-gnu-gcc", "qemu-aarch64"];
const INSTALL: &str = "sudo apt-get install gcc-aarch64-linux-gnu qemu-user";

/// Run the tests of bitnet-cpu on AArch64 under qemu, every NEON path among them.
///
/// Builds the standard library for that target, so it needs a compiler with rust-src, like build-ptx.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    for tool in TOOLS {
        let found = Command::new(tool).arg("--version").output();
        let output = found.with_context(|| format!("{tool} cannot be run; install it: {INSTALL}"))?;
        ensure!(
            output.status.success(),
            "{tool} --version failed: {}",
            output.status
        );
    }
    let toolchain = toolchain::find(None, None)?;
    let status = Command::new(cargo())
        .current_dir(workspace_root())
        .args([
            "test",
            "-Zbuild-std",
            "--target",
            TARGET,
            "--package",
            "bitnet-cpu",
            "--lib",
        ])
        .env("RUSTC", &toolchain.rustc)
        // A stable compiler refuses -Z without it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", TOOLS[0])
        // "max" has the dot product extension, so both paths are tested.
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            format!("{} -cpu max -L /usr/aarch64-linux-gnu", TOOLS[1]),
        )
        // Another compiler's output must not replace the workspace's own.
        .env("CARGO_TARGET_DIR", workspace_root().join("target/neon"))
        .status()
        .context("cargo cannot be run")?;
    ensure!(status.success(), "the tests failed on {TARGET}");
    Ok(())
}
