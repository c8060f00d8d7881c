//! How much memory the keys and values of a model get, counted before any is taken: the system promises memory that it
//! does not have, and ends programs that use it.

use bitnet_cpu::{ScreenMatrix, TernaryColumns, TernaryRows};
use bitnet_layout::Activation;
use bitnet_layout::words::CODES_PER_WORD;

use crate::config::{ActQuant, Config};
use crate::error::{Error, Result};
use crate::weights::{LmHead, SkipZeros};

/// Memory for keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvMemory {
    /// What the context and the number of sequences need, but at most 90 % of what the device has free.
    #[default]
    Auto,
    /// At most this many bytes.
    Bytes(u64),
    /// As much as this many positions need.
    Tokens(usize),
}

/// What the pages are for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvDemand {
    /// Most positions of a sequence.
    pub(crate) context: usize,
    /// Sequences side by side.
    pub(crate) n_seqs: usize,
    /// Positions of a page.
    pub(crate) page: usize,
    /// Bytes of a page of all layers.
    pub(crate) page_bytes: u64,
}

impl KvMemory {
    /// How many pages there are, where the device has `free` bytes; `None` is a device that does not tell.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when that is less than a sequence of the whole context needs, or than was asked for.
    pub(crate) fn n_pages(self, demand: KvDemand, free: Option<u64>) -> Result<usize> {
        let KvDemand {
            context,
            n_seqs,
            page,
            page_bytes,
        } = demand;
        let least = context.div_ceil(page);
        let (free, page_bytes) = (free.unwrap_or(u64::MAX), page_bytes.max(1));
        let pages = |bytes: u64| usize::try_from(bytes / page_bytes).unwrap_or(usize::MAX);
        let (n_pages, most) = match self {
            Self::Auto => {
                let most = pages(free / 10 * 9);
                (least.saturating_mul(n_seqs).min(most), most)
            }
            Self::Bytes(bytes) => (pages(bytes), pages(free)),
            Self::Tokens(tokens) => (tokens.div_ceil(page), pages(free)),
        };
        let needed = n_pages.max(least);
        if needed > n_pages || n_pages > most {
            let bytes = |n_pages: usize| (n_pages as u64).saturating_mul(page_bytes);
            return Err(Error::OutOfMemory {
                what: format!(
                    "keys and values of {} tokens, of which {} fit",
                    needed.saturating_mul(page).max(context),
                    most.min(n_pages).saturating_mul(page)
                ),
                needed: bytes(needed),
                available: bytes(most.min(n_pages)),
            });
        }
        // Tables name pages by 32 bits.
        Ok(n_pages.min(u32::MAX as usize))
    }
}

/// About what the weights take in memory.
pub(crate) fn weight_bytes(c: &Config, head: LmHead) -> u64 {
    let linear = c.n_layers * (c.d_model * (2 * c.d_q() + 2 * c.d_kv()) + 3 * c.d_model * c.d_ffn);
    let table = c.vocab * c.d_model;
    let copies = match (head, c.tied_head) {
        (LmHead::Auto | LmHead::Stored | LmHead::Certified, true) => 2,
        (LmHead::Auto | LmHead::Stored | LmHead::Certified, false) => 4,
        // The embedding stays as it is.
        (LmHead::Int8, _) => 3,
    };
    let beside = match head {
        LmHead::Certified => ScreenMatrix::bytes_of(c.vocab, c.d_model),
        _ => 0,
    };
    (linear / 4 + copies * table) as u64 + beside
}

/// Less than this stays in caches, where reading a part of it is no faster than reading all.
const CACHED: usize = 64 << 20;

/// The head of [`LmHead::Auto`], where the device has `free` bytes before the weights are there.
pub(crate) fn head_of(c: &Config, asked: LmHead, free: Option<u64>) -> LmHead {
    if asked != LmHead::Auto {
        return asked;
    }
    let is_large = 2 * c.vocab * c.d_model >= CACHED && c.d_model <= ScreenMatrix::MAX_COLUMNS;
    let is_dense = c.has_head && !c.ternary_head;
    let copy = ScreenMatrix::bytes_of(c.vocab, c.d_model);
    let has_room = free.is_none_or(|free| copy <= free.saturating_sub(weight_bytes(c, LmHead::Stored)) / 4);
    if is_large && is_dense && has_room {
        LmHead::Certified
    } else {
        LmHead::Stored
    }
}

/// What the copies take with which zeros are left out, and 0 where they are not: where that is not asked for, the model has no such
/// zeros, or [`SkipZeros::Auto`] finds that it would not pay with `free` bytes left beside the weights.
pub(crate) fn zeros_bytes(c: &Config, asked: SkipZeros, free: Option<u64>) -> u64 {
    let k = |k: usize| k.next_multiple_of(CODES_PER_WORD);
    let layer =
        TernaryRows::bytes_of(c.d_ffn, k(c.d_model)) + TernaryColumns::bytes_of(c.d_model, k(c.d_ffn));
    let bytes = c.n_layers as u64 * layer;
    // A model without a head decodes nothing.
    let has_zeros = c.has_head && c.activation == Activation::Relu2 && c.act_quant == ActQuant::Int8;
    let pays = bytes >= CACHED as u64 && free.is_none_or(|free| bytes <= free / 4);
    match asked {
        SkipZeros::On if has_zeros => bytes,
        SkipZeros::Auto if has_zeros && pays => bytes,
        _ => 0,
    }
}

/// Bytes of memory that this process can still have: the least of what the machine has free and what limits of the
/// process or its container leave. `None` where the system does not tell.
pub(crate) fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let field = |text: &str, name: &str, unit: u64| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * unit)
    };
    let machine = field(&read("/proc/meminfo")?, "MemAvailable:", 1024)?;
    // `ulimit -v`, and what of it is taken.
    let address_space = read("/proc/self/limits")
        .and_then(|limits| field(&limits, "Max address space", 1))
        .zip(read("/proc/self/status").and_then(|status| field(&status, "VmSize:", 1024)))
        .map(|(limit, taken)| limit.saturating_sub(taken));
    // Pages of files can be given up at any time.
    let container = read("/sys/fs/cgroup/memory.max")
        .and_then(|limit| limit.trim().parse::<u64>().ok())
        .zip(read("/sys/fs/cgroup/memory.current").and_then(|taken| taken.trim().parse::<u64>().ok()))
        .map(|(limit, taken)| {
            let files = read("/sys/fs/cgroup/memory.stat").and_then(|stat| field(&stat, "file ", 1));
            limit.saturating_sub(taken.saturating_sub(files.unwrap_or(0)))
        });
    [Some(machine), address_space, container]
        .into_iter()
        .flatten()
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_layout::Dims;

    const DEMAND: KvDemand = KvDemand {
        context: 100,
        n_seqs: 3,
        page: 16,
        page_bytes: 1000,
    };

    #[test]
    fn the_default_is_what_is_needed_up_to_most_of_what_is_free() {
        let auto = |free| KvMemory::Auto.n_pages(DEMAND, free);
        assert_eq!(auto(None).unwrap(), 21);
        assert_eq!(auto(Some(30_000)).unwrap(), 21);
        assert_eq!(auto(Some(20_000)).unwrap(), 18);
        assert_eq!(auto(Some(8_000)).unwrap(), 7);
        let error = auto(Some(7_000)).unwrap_err();
        assert!(
            matches!(
                error,
                Error::OutOfMemory {
                    needed: 7000,
                    available: 6000,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_head_is_certified_where_it_is_large_and_has_room() {
        let mut config = Config::new(Dims {
            d_model: 2560,
            d_ffn: 6912,
            n_layers: 30,
            n_heads: 20,
            n_kv_heads: 5,
            head_dim: 128,
            vocab: 128_256,
        })
        .unwrap();
        let head = |config: &Config, free| head_of(config, LmHead::Auto, free);
        assert_eq!(head(&config, None), LmHead::Certified);
        let weights = weight_bytes(&config, LmHead::Stored);
        assert_eq!(head(&config, Some(weights + (1 << 30))), LmHead::Stored);
        assert_eq!(head(&config, Some(weights + (2 << 30))), LmHead::Certified);
        assert_eq!(head_of(&config, LmHead::Certified, Some(0)), LmHead::Certified);
        config.vocab = 1000;
        assert_eq!(head(&config, None), LmHead::Stored);
    }

    #[test]
    fn this_machine_tells_what_is_free() {
        if cfg!(target_os = "linux") {
            assert!(available().unwrap() > 1 << 20);
        }
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        let ask = |memory: KvMemory| memory.n_pages(DEMAND, Some(10_000));
        assert_eq!(ask(KvMemory::Bytes(8_999)).unwrap(), 8);
        assert_eq!(ask(KvMemory::Tokens(113)).unwrap(), 8);
        for (memory, needed, available) in [
            // Less than a sequence can need.
            (KvMemory::Bytes(6_999), 7_000, 6_000),
            (KvMemory::Tokens(96), 7_000, 6_000),
            // More than there is.
            (KvMemory::Bytes(11_000), 11_000, 10_000),
            (KvMemory::Tokens(161), 11_000, 10_000),
        ] {
            let error = ask(memory).unwrap_err();
            let Error::OutOfMemory {
                needed: n,
                available: a,
                ..
            } = error
            else {
                panic!("{error}")
            };
            assert_eq!((n, a), (needed, available), "{memory:?}");
        }
        let huge = KvDemand {
            context: usize::MAX,
            ..DEMAND
        };
        assert!(matches!(
            KvMemory::Auto.n_pages(huge, Some(1)),
            Err(Error::OutOfMemory { .. })
        ));
    }
}
