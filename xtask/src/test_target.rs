//! Builds the program for other systems than this one and runs tests in what stands in for them: AArch64 Linux in
//! qemu, Windows in wine. macOS is checked as far as a compiler without Apple's SDK can.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::ptx::toolchain;
use crate::{cargo, workspace_root};

/// Build and test the program for another system: in qemu, in wine, or as far as its types go.
///
/// Builds the standard library for that target, so it needs a compiler with rust-src, like build-ptx.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For which system
    system: System,
}

/// A system that the program is built for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum System {
    /// aarch64-unknown-linux-gnu in qemu-user: every NEON path, and the program
    Aarch64,
    /// x86_64-pc-windows-gnu in wine: the program
    Windows,
    /// aarch64-apple-darwin; nothing is linked or run
    Darwin,
}

/// Nothing is optimized that need not be: compiling is most of the work here. Nor does anything assert what it asserts on this system too.
/// That holds for the standard library, which is built along: in an emulator its checks would take longer than the rest.
const LEAN: [&str; 4] = [
    "profile.dev.opt-level = 0",
    "profile.dev.package.bitnet-kernels.opt-level = 0",
    "profile.dev.debug-assertions = false",
    "profile.dev.overflow-checks = false",
];

impl System {
    fn target(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
            Self::Windows => "x86_64-pc-windows-gnu",
            Self::Darwin => "aarch64-apple-darwin",
        }
    }

    /// What is run: on AArch64 every code path of the processor and what the program computes with them, on Windows the program as its
    /// users run it.
    fn tests(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Aarch64 => &[
                &["--package", "bitnet-cpu", "--lib"],
                &[
                    "--package",
                    "bitnet-cli",
                    // The server has no code of its own for a processor.
                    "--no-default-features",
                    "--features",
                    "cuda",
                    "--test",
                    "processor",
                    "--test",
                    "doctor",
                    // A process of one thread starts programs safely: forks of several may hang in QEMU's locks.
                    "--",
                    "--test-threads",
                    "1",
                ],
            ],
            Self::Windows => &[&WINDOWS_TESTS],
            Self::Darwin => &[],
        }
    }

    /// Settings besides [`LEAN`]: loops over weights are what an emulator takes long for, and paths that no other system has are watched.
    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Aarch64 => &[
                "profile.dev.package.bitnet-files.opt-level = 1",
                "profile.dev.package.bitnet-layout.opt-level = 1",
                "profile.dev.package.bitnet-model.opt-level = 1",
                "profile.dev.package.bitnet-cpu.debug-assertions = true",
                "profile.dev.package.bitnet-cpu.overflow-checks = true",
            ],
            Self::Windows | Self::Darwin => &[],
        }
    }

    /// Programs besides the compiler, with an argument that makes each do nothing, and Debian's packages of them.
    fn tools(self) -> (&'static [[&'static str; 2]], &'static str) {
        match self {
            Self::Aarch64 => (
                &[
                    ["aarch64-linux-gnu-gcc", "--version"],
                    ["qemu-aarch64", "--version"],
                ],
                "gcc-aarch64-linux-gnu qemu-user",
            ),
            Self::Windows => (
                &[["x86_64-w64-mingw32-gcc", "--version"], [WINE, "--version"]],
                "gcc-mingw-w64-x86-64-win32 wine64",
            ),
            Self::Darwin => (&[], ""),
        }
    }
}

/// Among them the reference models, and the demo model on every path of the processor. The others are about Unix.
#[rustfmt::skip]
const WINDOWS_TESTS: [&str; 16] = [
    "--package", "bitnet-cli", "--test", "cli", "--test", "doctor", "--test", "no_model", "--test", "settings", "--test", "demo", "--test",
    "convert", "--test", "processor",
];

/// Seconds for a file of tests, which takes up to five minutes on two busy cores. One that hangs in an emulator, or because of it, fails and
/// is named.
const LIMIT_OF_TESTS: u32 = 900;

/// Seconds for a program that such tests run, which takes up to two minutes there and has to be ended before they are.
const LIMIT_OF_A_PROGRAM: u32 = 300;

/// What runs `runner` and ends it after so many seconds, in this process group.
fn limited(seconds: u32, runner: &str) -> String {
    format!("timeout --foreground --verbose --kill-after=10 {seconds} {runner}")
}

/// Without the script around it, which asks for a 32-bit wine on stderr.
const WINE: &str = "/usr/lib/wine/wine64";

pub(crate) fn run(args: &Args) -> Result<()> {
    let (tools, packages) = args.system.tools();
    for [tool, argument] in tools {
        let found = Command::new(tool).arg(argument).output();
        let output = found
            .with_context(|| format!("{tool} cannot be run; install it: sudo apt-get install {packages}"))?;
        ensure!(
            output.status.success(),
            "{tool} {argument} failed: {}",
            output.status
        );
    }
    let toolchain = toolchain::find(None, None)?;
    // Another compiler's output must not replace the workspace's own.
    let folder = workspace_root().join("target/cross");
    let cross = |verb: &str, what: &[&str]| -> Result<()> {
        let mut command = Command::new(cargo());
        command
            .current_dir(workspace_root())
            .args([verb, "-Zbuild-std", "--target", args.system.target()])
            .args(
                LEAN.iter()
                    .chain(args.system.settings())
                    .flat_map(|setting| ["--config", setting]),
            )
            .args(what)
            .env("RUSTC", &toolchain.rustc)
            // A stable compiler refuses -Z without it.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", &folder);
        match args.system {
            System::Aarch64 => aarch64(&mut command),
            System::Windows => windows(&mut command, &folder),
            System::Darwin => darwin(&mut command),
        }
        let status = command.status().context("cargo cannot be run")?;
        ensure!(status.success(), "cargo {verb} {} failed", what.join(" "));
        Ok(())
    };
    match args.system {
        System::Darwin => cross("check", &["--package", "bitnet-cli", "--no-default-features"])?,
        System::Aarch64 => {}
        System::Windows => stand_in(&folder)?,
    }
    args.system
        .tests()
        .iter()
        .try_for_each(|what| cross("test", what))
}

fn aarch64(command: &mut Command) {
    // "max" has dot products and 8-bit matrix products, so all paths are tested.
    let emulator = "qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu";
    command
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
            "aarch64-linux-gnu-gcc",
        )
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            limited(LIMIT_OF_TESTS, emulator),
        )
        // GLib's allocator, QEMU's up to version 7, keeps its locks over a fork; malloc does not
        // (https://gitlab.com/qemu-project/qemu/-/issues/285).
        .env("G_SLICE", "always-malloc")
        // qemu-user passes on to the kernel what a program starts.
        .env("TEST_RUNNER", limited(LIMIT_OF_A_PROGRAM, emulator));
}

fn windows(command: &mut Command, folder: &Path) {
    command
        .env(
            "CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER",
            limited(LIMIT_OF_TESTS, WINE),
        )
        .env("WINEPREFIX", folder.join("wine"))
        // What wine itself has to say, and the installers that it offers a new user.
        .env("WINEDEBUG", "-all")
        .env("WINEDLLOVERRIDES", "mscoree,mshtml,winemenubuilder.exe=")
        .env("WINEPATH", folder.join("stand-in"));
}

/// Builds the library that Windows has and wine 8 lacks.
fn stand_in(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder.join("stand-in"))?;
    let status = Command::new("x86_64-w64-mingw32-gcc")
        .args(["-shared", "-O2", "-Wall", "-Werror", "-o"])
        .arg(folder.join("stand-in/bcryptprimitives.dll"))
        .arg(workspace_root().join("tools/wine/bcryptprimitives.c"))
        .arg("-ladvapi32")
        .status()?;
    ensure!(
        status.success(),
        "the stand-in for bcryptprimitives.dll was not built"
    );
    Ok(())
}

fn darwin(command: &mut Command) {
    // The C code of dependencies needs Apple's headers. It has no part in what is checked.
    command
        .env("CC_aarch64_apple_darwin", "true")
        .env("AR_aarch64_apple_darwin", "true")
        .env("SDKROOT", "/");
}
