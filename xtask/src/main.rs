//! Tasks of this workspace: `cargo xtask <task>`.

#[cfg(test)]
mod file_order;
mod fixtures;
mod gpu_check;
mod ptx;
mod test_target;

use clap::Parser;
use std::path::{Path, PathBuf};

/// Tasks of this workspace.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

/// One file a task: its `Args`, and `run`.
#[derive(Debug, clap::Subcommand)]
enum Task {
    BuildPtx(ptx::Args),
    Fixtures(fixtures::Args),
    GpuCheck(gpu_check::Args),
    TestTarget(test_target::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::BuildPtx(args) => ptx::run(&args),
        Task::Fixtures(args) => fixtures::run(&args),
        Task::GpuCheck(args) => gpu_check::run(&args),
        Task::TestTarget(args) => test_target::run(&args),
    }
}

/// The folder of the workspace.
fn workspace_root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// The cargo that runs this program.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
