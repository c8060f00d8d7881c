//! The PTX modules, as `cargo xtask build-ptx` stored them, and the choice between them.

use bitnet_kernels::KernelInfo;
use cuda_driver::CudaVersion;

/// The kernels compiled for one architecture and everything after it: those that models run, and with the feature `bench`
/// the others in a module of their own.
#[derive(Clone, Copy, Debug)]
pub struct PtxModule {
    /// Compute capability it needs, as in `sm_90`: 10 * major + minor.
    pub sm: u32,
    /// The text.
    pub text: &'static str,
    /// The kernels that GPUs of exactly this capability have besides, a module of its own.
    exact_text: Option<&'static str>,
    #[cfg(feature = "bench")]
    bench_text: &'static str,
}

/// A module to load, and the kernels that it has.
pub(crate) type Part = (&'static str, Vec<&'static KernelInfo>);

/// Every module, newest architecture first.
pub const MODULES: [PtxModule; 2] = [
    PtxModule {
        sm: 90,
        text: include_str!("../ptx/sm_90.ptx"),
        exact_text: Some(include_str!("../ptx/sm_90a.ptx")),
        #[cfg(feature = "bench")]
        bench_text: include_str!("../ptx/bench_sm_90.ptx"),
    },
    PtxModule {
        sm: 80,
        text: include_str!("../ptx/sm_80.ptx"),
        exact_text: None,
        #[cfg(feature = "bench")]
        bench_text: include_str!("../ptx/bench_sm_80.ptx"),
    },
];

/// The best module for a GPU of this compute capability; `None` below 8.0.
#[must_use]
pub fn choose(compute_capability: (u32, u32)) -> Option<&'static PtxModule> {
    let sm = 10 * compute_capability.0 + compute_capability.1;
    MODULES.iter().find(|module| module.sm <= sm)
}

impl PtxModule {
    /// What every GPU loads.
    pub(crate) fn model(&self) -> Part {
        (self.text, self.own(bitnet_kernels::MODEL))
    }

    /// What GPUs of exactly this capability load too.
    pub(crate) fn exact(&self) -> Option<Part> {
        let kernels = bitnet_kernels::MODEL.iter();
        let own = kernels.filter(|kernel| kernel.is_exact && kernel.min_sm == self.sm);
        Some((self.exact_text?, own.collect()))
    }

    /// What measurements load too.
    #[cfg(feature = "bench")]
    pub(crate) fn bench(&self) -> Part {
        (self.bench_text, self.own(bitnet_kernels::BENCH))
    }

    /// Those of the kernels that this architecture has, and later ones.
    fn own(&self, kernels: &'static [KernelInfo]) -> Vec<&'static KernelInfo> {
        let is_own = |kernel: &&KernelInfo| !kernel.is_exact && kernel.min_sm <= self.sm;
        kernels.iter().filter(is_own).collect()
    }

    /// The CUDA version whose drivers can load it, from its `.version` line. `None` for a text without one.
    #[must_use]
    pub fn needs(&self) -> Option<CudaVersion> {
        let version = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix(".version "))?;
        let (major, minor) = version.trim().split_once('.')?;
        CudaVersion::for_ptx(major.parse().ok()?, minor.parse().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes of the parameters of the entry `name`; `None` where the module has no such entry.
    fn entry_params(ptx: &str, name: &str) -> Option<Vec<usize>> {
        let head = format!(".visible .entry {name}(");
        let list = &ptx[ptx.find(&head)? + head.len()..];
        let list = &list[..list.find("\n)").or_else(|| list.find(')'))?];
        list.lines()
            .filter(|line| line.contains(".param"))
            .map(|line| {
                // `.param .u64 .ptr .align 1 name`: the type is the second word and ends in its bits.
                let bits = line
                    .split_whitespace()
                    .nth(1)?
                    .trim_start_matches(|c: char| !c.is_ascii_digit());
                Some(bits.parse::<usize>().ok()? / 8)
            })
            .collect()
    }

    /// Every module, with its architecture and the kernels that must be in it.
    fn parts() -> impl Iterator<Item = (String, Part)> {
        MODULES.iter().flat_map(|module| {
            let sm = format!("sm_{}", module.sm);
            let exact = module.exact().map(|part| (format!("{sm}a"), part));
            [(sm.clone(), module.model()), (sm, module.bench())]
                .into_iter()
                .chain(exact)
        })
    }

    #[test]
    fn entries_take_what_the_host_passes() {
        for (sm, (text, own)) in parts() {
            for kernel in bitnet_kernels::MODEL.iter().chain(bitnet_kernels::BENCH) {
                let is_own = own.iter().any(|own| own.name == kernel.name);
                assert_eq!(
                    entry_params(text, kernel.name),
                    is_own.then(|| kernel.param_sizes.to_vec()),
                    "{} in {sm}",
                    kernel.name
                );
            }
            assert!(text.contains(&format!(".target {sm}\n")));
        }
    }

    #[test]
    fn models_load_nothing_that_only_measurements_need() {
        for module in &MODULES {
            for kernel in bitnet_kernels::BENCH {
                assert_eq!(entry_params(module.text, kernel.name), None, "{}", kernel.name);
            }
        }
    }

    /// The instructions of the entry `name`.
    fn entry_body<'a>(ptx: &'a str, name: &str) -> Option<&'a str> {
        let start = ptx.find(&format!(".visible .entry {name}("))?;
        let entry = &ptx[start..];
        Some(&entry[..entry.find("\n}")?])
    }

    #[test]
    fn a_barrier_between_two_branches_stays_one() {
        for module in &MODULES {
            let body =
                entry_body(module.bench_text, "probe_divergence").expect("a probe for every architecture");
            // Two would mean that the compiler put a copy on either side, and lanes of one warp would wait at both.
            assert_eq!(body.matches("bar.sync").count(), 1, "sm_{}", module.sm);
        }
    }

    #[test]
    fn kernels_cannot_panic() {
        for (sm, (text, kernels)) in parts() {
            for kernel in kernels {
                let Some(body) = entry_body(text, kernel.name) else {
                    continue;
                };
                for forbidden in ["call.uni", "trap;"] {
                    assert!(!body.contains(forbidden), "{} in {sm}: {forbidden}", kernel.name);
                }
            }
        }
    }

    #[test]
    fn the_newest_module_that_fits_is_chosen() {
        let sm = |capability| choose(capability).map(|module| module.sm);
        assert_eq!(sm((7, 5)), None);
        assert_eq!(sm((8, 0)), Some(80));
        assert_eq!(sm((8, 9)), Some(80));
        assert_eq!(sm((9, 0)), Some(90));
        assert_eq!(sm((12, 0)), Some(90));
    }

    #[test]
    fn modules_say_which_driver_they_need() {
        for module in &MODULES {
            assert!(
                module.needs().is_some_and(|cuda| cuda >= cuda_driver::MIN_CUDA),
                "sm_{}",
                module.sm
            );
            let version = |text: &'static str| text.lines().find(|line| line.starts_with(".version "));
            assert_eq!(version(module.bench_text), version(module.text));
            assert!(
                module
                    .exact_text
                    .is_none_or(|text| version(text) == version(module.text))
            );
        }
    }
}
