//! Memory nodes: which processors are near which memory, and threads that stay near theirs.
//!
//! A machine with several sockets has a node for each, and a core reads its own node's memory about twice as fast as another's. Threads have
//! shares of every matrix that follow each other ([`crate::pool`]), so a node's threads have one part of it, which then lies in its memory.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::{Error, Result};

/// Where threads run, and weights lie, on a machine with several memory nodes (sockets, mostly).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numa {
    /// Threads run where the system puts them, and weights lie where it put whoever read them.
    #[default]
    System,
    /// Threads are spread over all nodes by their processors, and each node has in its memory what its threads read.
    Distribute,
    /// Threads run on the node that the calling thread is on, and no others; weights that this thread reads lie there.
    Isolate,
}

/// The processors of a memory node that this thread may run on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    processors: Vec<usize>,
}

/// Threads on memory nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    /// By node, its threads, which follow each other.
    threads: Vec<Range<usize>>,
    n_threads: usize,
}

/// How many memory nodes this thread may run on; 1 where the system does not tell.
pub(crate) fn count() -> usize {
    system::nodes().map_or(1, |nodes| nodes.len())
}

impl Numa {
    /// The processors that threads have with this choice: by node, and none for [`Numa::System`].
    fn nodes(self) -> Result<Vec<Node>> {
        let nodes = || system::nodes().map_err(|source| Error::Numa { source });
        Ok(match self {
            Self::System => Vec::new(),
            Self::Distribute => nodes()?,
            Self::Isolate => {
                let here = system::processor().map_err(|source| Error::Numa { source })?;
                let mut nodes = nodes()?;
                let is_here = |node: &Node| node.processors.contains(&here);
                let first = nodes.iter().position(is_here).unwrap_or(0);
                nodes.drain(first..=first).collect()
            }
        })
    }
}

impl Nodes {
    /// At most `threads(processors)` threads on the nodes of a choice, which are told how many processors these have; none for
    /// [`Numa::System`].
    ///
    /// # Errors
    /// When the system does not tell which processors there are.
    pub(crate) fn new(numa: Numa, threads: impl FnOnce(usize) -> usize) -> Result<Option<Self>> {
        let nodes = numa.nodes()?;
        let n_processors = nodes.iter().map(|node| node.processors.len()).sum();
        Ok((n_processors > 0).then(|| Self::share_out(nodes, threads(n_processors))))
    }

    /// Gives each node threads by its processors.
    fn share_out(nodes: Vec<Node>, n_threads: usize) -> Self {
        let n_processors: usize = nodes.iter().map(|node| node.processors.len()).sum();
        let mut below = 0;
        let mut threads = Vec::new();
        for node in &nodes {
            // Those whose part of the processors begins in this node.
            let first = |processor: usize| (processor * n_threads).div_ceil(n_processors);
            let end = below + node.processors.len();
            threads.push(first(below)..first(end));
            below = end;
        }
        Self {
            nodes,
            threads,
            n_threads,
        }
    }

    /// Two nodes that both are where this thread may run, for tests on machines with one.
    #[cfg(test)]
    pub(crate) fn halves(n_threads: usize) -> Self {
        let processors: Vec<usize> = system::nodes().map_or_else(
            |_| vec![0, 1],
            |nodes| nodes.into_iter().flat_map(|node| node.processors).collect(),
        );
        let node = Node { processors };
        Self::share_out(vec![node.clone(), node], n_threads)
    }

    /// Nodes that have threads.
    pub(crate) fn count(&self) -> usize {
        self.threads.iter().filter(|threads| !threads.is_empty()).count()
    }

    /// All threads.
    pub(crate) fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Keeps the calling thread, as this one of those that share loops, on its node until the result is dropped. A system that refuses costs
    /// speed alone.
    pub(crate) fn stay(&self, thread: usize) -> Stay {
        let node = self.threads.iter().position(|threads| threads.contains(&thread));
        let before = node.and_then(|node| system::move_to(&self.nodes[node].processors).ok());
        Stay {
            before,
            thread: PhantomData,
        }
    }

    /// Calls `fill(part)` for each part on the node beside it: for one node one after the other in a thread of its own, the nodes' at one time.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn each<T: Send>(&self, parts: Vec<(usize, T)>, fill: impl Fn(T) + Sync) -> Result<()> {
        let n_nodes = self.nodes.len();
        let mut of_node: Vec<Vec<T>> = std::iter::repeat_with(Vec::new).take(n_nodes).collect();
        for (node, part) in parts {
            of_node[node].push(part);
        }
        let fill = &fill;
        std::thread::scope(|scope| {
            for (index, parts) in of_node.into_iter().enumerate() {
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || {
                    let _stay = self.stay(self.threads[index].start);
                    parts.into_iter().for_each(fill);
                });
                thread.map_err(|source| Error::Thread {
                    index,
                    n_threads: n_nodes,
                    source,
                })?;
            }
            Ok(())
        })
    }

    /// Of `len` elements in `n_parts` equal runs that threads share alike: each node and what is its own, in order.
    pub(crate) fn shares(&self, len: usize, n_parts: usize) -> Vec<(usize, Range<usize>)> {
        let runs = (0..n_parts).map(|part| len * part / n_parts..len * (part + 1) / n_parts);
        let shares = runs.flat_map(|run| {
            self.threads.iter().enumerate().map(move |(node, threads)| {
                let at = |thread: usize| run.start + run.len() * thread / self.n_threads;
                (node, at(threads.start)..at(threads.end))
            })
        });
        shares.filter(|(_, share)| !share.is_empty()).collect()
    }
}

/// A thread's stay on a node, which it does not hand to another.
#[must_use]
pub(crate) struct Stay {
    /// Where the thread ran before, if it was moved.
    before: Option<system::Set>,
    thread: PhantomData<*const ()>,
}

impl fmt::Debug for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stay")
            .field("is_moved", &self.before.is_some())
            .finish()
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            system::move_back(before);
        }
    }
}

/// What Linux writes a set of processors as: `0-3,8`.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux is asked"))]
fn parse(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let [first, last] = [first, last].map(str::parse::<usize>);
        all.extend(first.ok()?..=last.ok()?);
    }
    Some(all)
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;
    use std::path::Path;

    use super::{Node, parse};
    use crate::cores::affinity;

    /// Processors, as the system takes them.
    pub(super) type Set = libc::cpu_set_t;

    /// The nodes with processors that this thread may run on; one where the system has no nodes.
    pub(super) fn nodes() -> io::Result<Vec<Node>> {
        let set = affinity()?;
        // SAFETY: the number is below that of the bits of a set.
        let is_allowed = |&processor: &usize| unsafe { libc::CPU_ISSET(processor, &set) };
        let all = 0..8 * size_of::<Set>();
        let nodes = read(Path::new("/sys/devices/system/node")).unwrap_or_default();
        let nodes = nodes.into_iter().map(|processors| {
            let processors = processors.into_iter().filter(|processor| all.contains(processor));
            processors.filter(is_allowed).collect()
        });
        let nodes = nodes.filter(|processors: &Vec<usize>| !processors.is_empty());
        let mut nodes: Vec<Node> = nodes.map(|processors| Node { processors }).collect();
        if nodes.is_empty() {
            let processors = all.clone().filter(is_allowed).collect();
            nodes.push(Node { processors });
        }
        Ok(nodes)
    }

    /// By node, its processors, as the system's files list them.
    fn read(folder: &Path) -> Option<Vec<Vec<usize>>> {
        let online = std::fs::read_to_string(folder.join("online")).ok()?;
        let nodes = parse(&online)?.into_iter().map(|node| {
            let list = std::fs::read_to_string(folder.join(format!("node{node}/cpulist"))).ok()?;
            parse(&list)
        });
        nodes.collect()
    }

    /// The processor that this thread is on.
    pub(super) fn processor() -> io::Result<usize> {
        // SAFETY: the call takes nothing.
        let processor = unsafe { libc::sched_getcpu() };
        usize::try_from(processor).map_err(|_| io::Error::last_os_error())
    }

    fn set(set: &Set) -> io::Result<()> {
        // SAFETY: the call reads the set that is lent to it.
        match unsafe { libc::sched_setaffinity(0, size_of_val(set), set) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Lets the calling thread run on these processors alone; returns where it might before.
    pub(super) fn move_to(processors: &[usize]) -> io::Result<Set> {
        let before = affinity()?;
        // SAFETY: a set of processors is bits, of which all may be zero.
        let mut now: Set = unsafe { std::mem::zeroed() };
        for &processor in processors {
            // SAFETY: `nodes` gives numbers below that of the bits of a set.
            unsafe { libc::CPU_SET(processor, &mut now) };
        }
        set(&now)?;
        Ok(before)
    }

    /// Lets the calling thread run where it might before.
    pub(super) fn move_back(before: &Set) {
        // It was allowed a moment ago; where it no longer is, the system has moved the thread itself.
        let _ = set(before);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn nodes_are_what_files_say() {
            let folder = std::env::temp_dir().join(format!("bitnet-nodes-{}", std::process::id()));
            for (node, list) in [(0, "0-2,8\n"), (2, "\n"), (3, "4\n")] {
                std::fs::create_dir_all(folder.join(format!("node{node}"))).unwrap();
                std::fs::write(folder.join(format!("node{node}/cpulist")), list).unwrap();
            }
            assert_eq!(read(&folder), None, "without a list of nodes");
            std::fs::write(folder.join("online"), "0,2-3\n").unwrap();
            assert_eq!(read(&folder), Some(vec![vec![0, 1, 2, 8], vec![], vec![4]]));
            std::fs::write(folder.join("online"), "0-3\n").unwrap();
            assert_eq!(read(&folder), None, "a node without a list");
            std::fs::remove_dir_all(&folder).unwrap();
        }

        #[test]
        fn a_thread_goes_and_comes_back() {
            std::thread::spawn(|| {
                let nodes = nodes().unwrap();
                let all: usize = nodes.iter().map(|node| node.processors.len()).sum();
                let count = || nodes_now().len();
                fn nodes_now() -> Vec<usize> {
                    super::nodes()
                        .unwrap()
                        .into_iter()
                        .flat_map(|node| node.processors)
                        .collect()
                }
                assert_eq!(count(), all);
                let one = nodes[0].processors[0];
                let before = move_to(&[one]).unwrap();
                assert_eq!((nodes_now(), processor().unwrap()), (vec![one], one));
                move_back(&before);
                assert_eq!(count(), all);
                assert!(move_to(&[]).is_err(), "no processor at all");
            })
            .join()
            .unwrap();
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    use super::Node;

    /// There are none.
    pub(super) type Set = std::convert::Infallible;

    pub(super) fn nodes() -> io::Result<Vec<Node>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn processor() -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn move_to(_: &[usize]) -> io::Result<Set> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn move_back(_: &Set) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(processors: &[usize], n_threads: usize) -> Nodes {
        let nodes = processors.iter().map(|&n| Node {
            processors: (0..n).collect(),
        });
        Nodes::share_out(nodes.collect(), n_threads)
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(parse("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse("\n"), Some(vec![]));
        assert_eq!(parse("5"), Some(vec![5]));
        for list in ["x", "1-", "-1", "1,,2-y"] {
            assert_eq!(parse(list), None, "{list}");
        }
    }

    #[test]
    fn nodes_have_threads_by_their_processors() {
        assert_eq!(nodes(&[4, 4], 8).threads, [0..4, 4..8]);
        assert_eq!(nodes(&[4, 4], 3).threads, [0..2, 2..3]);
        assert_eq!(nodes(&[6, 2], 4).threads, [0..3, 3..4]);
        assert_eq!(nodes(&[4, 4, 4], 2).threads, [0..1, 1..2, 2..2]);
        assert_eq!((nodes(&[4, 4, 4], 2).count(), nodes(&[7], 3).count()), (2, 1));
    }

    #[test]
    fn shares_cover_everything_once_and_follow_the_threads() {
        for (processors, n_threads) in [(&[4, 4][..], 8), (&[6, 2], 5), (&[1, 2, 3], 4), (&[3], 2)] {
            let nodes = nodes(processors, n_threads);
            for (len, n_parts) in [(0, 1), (1, 2), (1000, 1), (1001, 2)] {
                let shares = nodes.shares(len, n_parts);
                let all: Vec<usize> = shares.iter().flat_map(|(_, share)| share.clone()).collect();
                assert_eq!(
                    all,
                    (0..len).collect::<Vec<_>>(),
                    "{processors:?} {n_threads} {len}"
                );
            }
        }
        let halves = [(0, 0..30), (1, 30..50), (0, 50..80), (1, 80..100)];
        assert_eq!(nodes(&[6, 4], 10).shares(100, 2), halves);
    }

    #[test]
    fn every_part_is_filled_once() {
        let nodes = nodes(&[1, 1], 2);
        let mut data = [0; 10];
        let mut rest = &mut data[..];
        let mut parts = Vec::new();
        for (node, share) in nodes.shares(10, 2) {
            let (part, after) = rest.split_at_mut(share.len());
            parts.push((node, part));
            rest = after;
        }
        nodes
            .each(parts, |part: &mut [i32]| part.iter_mut().for_each(|x| *x += 1))
            .unwrap();
        assert_eq!(data, [1; 10]);
    }
}
