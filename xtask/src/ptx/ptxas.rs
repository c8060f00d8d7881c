//! NVIDIA's assembler, where there is one: proves that a module assembles, and reports what each kernel uses.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How to get it.
pub(crate) const INSTALL: &str = "    python3 -m pip download --no-deps -d target/nvcc nvidia-cuda-nvcc
    unzip -q target/nvcc/nvidia_cuda_nvcc-*.whl -d target/nvcc
    chmod +x target/nvcc/nvidia/cu*/bin/ptxas";

/// What a kernel, or a function that it calls, uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Name in the PTX.
    pub(crate) name: String,
    /// Registers of a thread.
    pub(crate) registers: u32,
    /// Static shared memory of a block, in bytes.
    pub(crate) shared_bytes: u32,
    /// Local memory of a thread, in bytes.
    pub(crate) stack_bytes: u32,
    /// Bytes spilled to local memory, stores and loads together.
    pub(crate) spill_bytes: u32,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<28} {:>4} registers {:>6} B shared {:>4} B local {:>4} B spilled",
            self.name, self.registers, self.shared_bytes, self.stack_bytes, self.spill_bytes
        )
    }
}

/// `ptxas`: the one named, on PATH, in the wheel unpacked under `target/`, or a CUDA toolkit's.
pub(crate) fn find(root: &Path, named: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(path) = named {
        version(path)?;
        return Ok(Some(path.to_owned()));
    }
    let mut candidates = vec![PathBuf::from("ptxas")];
    if let Ok(wheels) = std::fs::read_dir(root.join("target/nvcc/nvidia")) {
        candidates.extend(wheels.flatten().map(|wheel| wheel.path().join("bin/ptxas")));
    }
    candidates.push(PathBuf::from("/usr/local/cuda/bin/ptxas"));
    Ok(candidates.into_iter().find(|path| version(path).is_ok()))
}

fn version(ptxas: &Path) -> Result<String> {
    let output = Command::new(ptxas).arg("--version").output();
    let output = output.with_context(|| format!("cannot run {} (is its run bit set?)", ptxas.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Assembles `module` for `sm` ("sm_90") and returns what each kernel uses.
pub(crate) fn assemble(ptxas: &Path, module: &Path, sm: &str) -> Result<Vec<Usage>> {
    let output = Command::new(ptxas)
        .args(["-v", "-arch", sm, "-o", "/dev/null"])
        .arg(module)
        .output()
        .with_context(|| format!("cannot run {}", ptxas.display()))?;
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("ptxas refuses {} for {sm}:\n{text}", module.display());
    }
    Ok(parse(&text))
}

fn parse(report: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = Vec::new();
    let mut current = Usage::default();
    for line in report.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            current = Usage {
                name: name.trim().to_owned(),
                ..Usage::default()
            };
        } else if line.contains("bytes stack frame") {
            current.stack_bytes = number_before(line, " bytes stack frame");
            current.spill_bytes =
                number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            usages.push(current.clone());
        } else if line.contains("Used ") {
            // Only entries have this line; functions they call count towards their registers.
            if let Some(last) = usages.last_mut() {
                last.registers = number_before(line, " registers");
                last.shared_bytes = number_before(line, " bytes smem");
            }
        }
    }
    usages
}

/// The number right before `unit` in `line`; 0 when there is none.
fn number_before(line: &str, unit: &str) -> u32 {
    let Some((before, _)) = line.split_once(unit) else {
        return 0;
    };
    let digits = before
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read() {
        let report = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 16 bytes cumulative stack size
";
        let usages = parse(report);
        assert_eq!(
            usages,
            [
                Usage {
                    name: "a".into(),
                    registers: 38,
                    shared_bytes: 1024,
                    stack_bytes: 0,
                    spill_bytes: 0
                },
                Usage {
                    name: "b".into(),
                    registers: 255,
                    shared_bytes: 0,
                    stack_bytes: 16,
                    spill_bytes: 12
                },
            ]
        );
    }
}
