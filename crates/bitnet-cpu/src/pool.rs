//! Threads that run one loop at a time: chunks are claimed one by one, idle threads spin briefly and then sleep.
//!
//! Each thread has a share of consecutive chunks and takes them in order, so that it streams through memory without a
//! jump (a third more bandwidth than when threads took turns); when its own are gone it takes from the others'.
//!
//! A loop ends when every chunk is done, not when every thread has come: a worker that the system runs late, or not at
//! all, costs nothing, so two threads on a busy machine are no slower than one. Only a chunk that was begun is waited for.
//!
//! Many threads would spend their time handing cache lines to each other, so a thread waits for work at its own ticket, which
//! nobody else writes until it has work, and reports chunks a share at a time.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::nodes::{Nodes, Stay};
use crate::{Error, Result};

/// How long an idle thread polls before it sleeps: longer than the serial work between two loops of a step, shorter
/// than anyone would notice in a process list.
const SPIN: Duration = Duration::from_micros(50);

/// Low bits of the ticket that count the chunks left; the rest number the loops, and never wrap.
const LEFT_BITS: u32 = 16;

/// Chunks that a ticket can count.
const MAX_CHUNKS: usize = (1 << LEFT_BITS) - 1;

/// The loop whose number says that the pool ends.
const END: u64 = u64::MAX >> LEFT_BITS;

/// The threads of a [`crate::Cpu`].
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Where the threads stay.
    nodes: Option<Arc<Nodes>>,
    /// Held while a loop runs: the shared state describes one loop.
    turn: Mutex<()>,
}

struct Shared {
    /// For each thread's share of the chunks: loop number and, below it, chunks not yet claimed. Claiming takes one off
    /// by compare-exchange, which fails when the loop number has changed: a claim that succeeds proves that its loop is
    /// still running. A new loop number in its own ticket is what a thread waits for.
    tickets: Vec<Apart<AtomicU64>>,
    /// The running loop; valid for whoever holds a claim on it.
    job: Apart<AtomicPtr<Job<'static>>>,
    /// Chunks not yet finished, or finished and not yet reported.
    pending: Apart<AtomicUsize>,
    /// Threads asleep, or about to be: they count themselves before they look at their tickets for the last time.
    sleepers: Apart<AtomicUsize>,
    owner_sleeps: AtomicBool,
    lock: Mutex<()>,
    work: Condvar,
    done: Condvar,
}

/// In cache lines of its own, two of them because processors fetch them in pairs: whoever writes it disturbs nobody who reads
/// something else.
#[repr(align(128))]
struct Apart<T>(T);

struct Job<'a> {
    n_chunks: usize,
    body: &'a (dyn Fn(usize, usize) + Sync),
    /// What the first chunk that panicked did so with. The loop's own, so that no other caller can be given it.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Pool {
    /// A pool of `n_threads` threads, the caller of [`Pool::run`] among them.
    pub(crate) fn new(n_threads: usize) -> Result<Self> {
        Self::start(n_threads, None)
    }

    /// A pool of threads that stay on nodes, but for the caller of [`Pool::run`].
    pub(crate) fn on(nodes: Nodes) -> Result<Self> {
        Self::start(nodes.n_threads(), Some(Arc::new(nodes)))
    }

    fn start(n_threads: usize, nodes: Option<Arc<Nodes>>) -> Result<Self> {
        let shared = Arc::new(Shared {
            tickets: (0..n_threads.max(1)).map(|_| Apart(AtomicU64::new(0))).collect(),
            job: Apart(AtomicPtr::new(std::ptr::null_mut())),
            pending: Apart(AtomicUsize::new(0)),
            sleepers: Apart(AtomicUsize::new(0)),
            owner_sleeps: AtomicBool::new(false),
            lock: Mutex::new(()),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(n_threads.saturating_sub(1)),
            nodes,
            turn: Mutex::new(()),
        };
        for index in 1..n_threads {
            let (shared, nodes) = (Arc::clone(&pool.shared), pool.nodes.clone());
            let worker = std::thread::Builder::new()
                .name(format!("bitnet-{index}"))
                .spawn(move || {
                    let _stay = nodes.as_ref().map(|nodes| nodes.stay(index));
                    shared.work(index);
                });
            pool.workers.push(worker.map_err(|source| Error::Thread {
                index,
                n_threads,
                source,
            })?);
        }
        Ok(pool)
    }

    /// Threads that run chunks.
    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Where the threads stay, if anywhere.
    pub(crate) fn nodes(&self) -> Option<&Nodes> {
        self.nodes.as_deref()
    }

    /// Keeps the caller, the first of the threads, on its node.
    pub(crate) fn stay(&self) -> Option<Stay> {
        self.nodes.as_ref().map(|nodes| nodes.stay(0))
    }

    /// Calls `body(chunk, thread)` once for every chunk below `n_chunks`, on any thread in any order, and returns when
    /// all calls have. Two calls at one time have different `thread`s, below [`Pool::n_threads`], those of other callers'
    /// loops among them: loops of one pool run one after the other. A chunk must not begin another loop of its pool.
    ///
    /// # Panics
    /// As the first of this loop's calls that panicked did, after all others have returned.
    pub(crate) fn run(&self, n_chunks: usize, body: &(dyn Fn(usize, usize) + Sync)) {
        if n_chunks > MAX_CHUNKS {
            let per_claim = n_chunks.div_ceil(MAX_CHUNKS);
            return self.run(n_chunks.div_ceil(per_claim), &|claim, thread| {
                let first = claim * per_claim;
                (first..n_chunks.min(first + per_claim)).for_each(|chunk| body(chunk, thread));
            });
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.workers.is_empty() || n_chunks < 2 {
            (0..n_chunks).for_each(|chunk| body(chunk, 0));
            return;
        }
        let shared = &*self.shared;
        let job = Job {
            n_chunks,
            body,
            panic: Mutex::new(None),
        };
        // The lifetime ends here, at the end of this function: it waits until no claim is left.
        let pointer = (&raw const job).cast_mut().cast();
        shared.job.0.store(pointer, Ordering::Relaxed);
        shared.pending.0.store(n_chunks, Ordering::Relaxed);
        let epoch = shared.epoch(0) + 1;
        shared.start(epoch, n_chunks);
        shared.run_chunks(epoch, 0);
        shared.wait_until_done();
        drop(turn);
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.start(END, 0);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of chunks, so there is nothing to learn from joining it.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chunks of a thread's share of `n_chunks`.
    fn share(&self, share: usize, n_chunks: usize) -> Range<usize> {
        let n = self.tickets.len();
        n_chunks * share / n..n_chunks * (share + 1) / n
    }

    /// The number of the last loop that was started, as a thread's ticket tells it. Acquire: what its job is was stored before.
    fn epoch(&self, thread: usize) -> u64 {
        self.tickets[thread].0.load(Ordering::Acquire) >> LEFT_BITS
    }

    /// Gives each thread its share of the chunks of loop `epoch`, and wakes those that sleep. A thread may begin while others'
    /// tickets still are of the loop before, and then finds nothing to take from them.
    fn start(&self, epoch: u64, n_chunks: usize) {
        for (share, ticket) in self.tickets.iter().enumerate().rev() {
            let left = self.share(share, n_chunks).len() as u64;
            // Release, so that the stores need not wait for each other: each fetches a line that another thread has.
            ticket.0.store(epoch << LEFT_BITS | left, Ordering::Release);
        }
        // A worker counts itself in `sleepers` and then looks at its ticket again, with such a fence between: one of the two
        // sees the other.
        fence(Ordering::SeqCst);
        if self.sleepers.0.load(Ordering::Relaxed) > 0 {
            let _guard = self.lock();
            self.work.notify_all();
        }
    }

    /// A worker's life.
    fn work(&self, thread: usize) {
        let mut epoch = 0;
        loop {
            self.wait_for_work(epoch, thread);
            epoch = self.epoch(thread);
            if epoch == END {
                return;
            }
            self.run_chunks(epoch, thread);
        }
    }

    /// Claims and runs chunks of loop `epoch`, the thread's own first, until none is left or the loop is over.
    fn run_chunks(&self, epoch: u64, thread: usize) {
        for i in 0..self.tickets.len() {
            let n_done = self.run_share(epoch, thread, (thread + i) % self.tickets.len());
            // SeqCst against `owner_sleeps`, which the owner sets before its last look; Release publishes what the chunks wrote.
            if n_done > 0
                && self.pending.0.fetch_sub(n_done, Ordering::SeqCst) == n_done
                && self.owner_sleeps.load(Ordering::SeqCst)
            {
                let _guard = self.lock();
                self.done.notify_one();
            }
        }
    }

    /// Claims and runs chunks of a share, and returns how many: they are still to be taken off `pending`.
    fn run_share(&self, epoch: u64, thread: usize, share: usize) -> usize {
        let tickets = &self.tickets[share].0;
        let mut ticket = tickets.load(Ordering::Acquire);
        let mut n_done = 0;
        loop {
            let left = (ticket & MAX_CHUNKS as u64) as usize;
            if ticket >> LEFT_BITS != epoch || left == 0 {
                return n_done;
            }
            // Read between two sights of the same loop number, so it is that loop's job.
            let job = self.job.0.load(Ordering::Relaxed);
            let claim =
                tickets.compare_exchange_weak(ticket, ticket - 1, Ordering::AcqRel, Ordering::Acquire);
            if let Err(found) = claim {
                ticket = found;
                continue;
            }
            // SAFETY: the claim succeeded, so `pending` is at least 1 and the owner waits inside `run`, where the job
            // lives, until `run_chunks` takes this chunk off `pending`.
            let job = unsafe { &*job };
            let chunk = self.share(share, job.n_chunks).end - left;
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.body)(chunk, thread))) {
                let mut first = job.panic.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(panic);
            }
            n_done += 1;
            ticket = tickets.load(Ordering::Acquire);
        }
    }

    /// Waits until the thread's ticket is of a loop other than `epoch`.
    fn wait_for_work(&self, epoch: u64, thread: usize) {
        let ready = || self.epoch(thread) != epoch;
        if !spin_until(ready) {
            let mut guard = self.lock();
            self.sleepers.0.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            while !ready() {
                guard = self.work.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits until every chunk has finished.
    fn wait_until_done(&self) {
        let ready = || self.pending.0.load(Ordering::SeqCst) == 0;
        if !spin_until(ready) {
            let mut guard = self.lock();
            // A swap, which on x86 is what a store of this ordering is too: in QEMU's AArch64 (7.2) a load may pass such a store.
            self.owner_sleeps.swap(true, Ordering::SeqCst);
            while !ready() {
                guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.owner_sleeps.store(false, Ordering::SeqCst);
        }
    }
}

/// Polls `ready` for at most [`SPIN`].
fn spin_until(ready: impl Fn() -> bool) -> bool {
    if ready() {
        return true;
    }
    let start = Instant::now();
    while start.elapsed() < SPIN {
        for _ in 0..16 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    false
}

/// A mutable slice that the chunks of a loop share, each taking parts of it that no other chunk takes.
pub(crate) struct Shards<'a, T> {
    data: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: a shared `Shards` only gives out disjoint `&mut [T]` (the contract of `get`), which may be sent when T may.
unsafe impl<T: Send> Sync for Shards<'_, T> {}

impl<'a, T> Shards<'a, T> {
    /// Takes the slice for as long as the loop lasts.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            data: slice.as_mut_ptr(),
            len: slice.len(),
            slice: std::marker::PhantomData,
        }
    }

    /// Elements of the slice.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Asks for the cache line of an element, to be written, where the processor can be asked.
    pub(crate) fn ask(&self, i: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch changes nothing that the program sees and does not fault, whatever the address. Processors that cannot ask
        // for lines to be written do nothing.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) self.data.wrapping_add(i),
                options(nostack, readonly, preserves_flags));
        }
        let _ = i;
    }

    /// The part from `first` of `len` elements.
    ///
    /// # Safety
    /// - No two calls whose results live at the same time may overlap.
    ///
    /// # Panics
    /// When the part is not inside the slice.
    #[allow(clippy::mut_from_ref, reason = "disjoint by the contract above")]
    pub(crate) unsafe fn get(&self, first: usize, len: usize) -> &mut [T] {
        let inside = first.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} elements from {first} of {}", self.len);
        // SAFETY: inside the slice that `new` took, asserted above; disjoint by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(first), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once() {
        for n_threads in [1, 2, 5] {
            let pool = Pool::new(n_threads).unwrap();
            for n_chunks in (0..40).chain([MAX_CHUNKS, MAX_CHUNKS + 1, 3 * MAX_CHUNKS]) {
                let counts: Vec<AtomicUsize> = (0..n_chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_chunks, &|chunk, thread| {
                    assert!(thread < n_threads);
                    counts[chunk].fetch_add(1, Ordering::Relaxed);
                });
                let wrong = counts.iter().position(|count| count.load(Ordering::Relaxed) != 1);
                assert_eq!(wrong, None, "{n_threads} threads, {n_chunks} chunks");
            }
        }
    }

    #[test]
    fn loops_run_after_the_threads_have_slept() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        for _ in 0..20 {
            std::thread::sleep(4 * SPIN);
            pool.run(8, &|chunk, _| {
                std::thread::sleep(SPIN / 4 * (chunk % 3) as u32 * 4);
                sum.fetch_add(chunk, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 20 * 28);
    }

    #[test]
    fn a_panic_in_a_chunk_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2).unwrap();
        let run = || pool.run(16, &|chunk, _| assert_ne!(chunk, 11, "on purpose"));
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains("on purpose"), "{message}");
        let count = AtomicUsize::new(0);
        pool.run(16, &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 16);
    }

    #[test]
    fn a_panic_reaches_the_caller_whose_chunk_it_was() {
        let pool = Pool::new(2).unwrap();
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let pool = &pool;
                scope.spawn(move || {
                    let panics = caller == 0;
                    for _ in 0..500 {
                        // Without the message that a panic prints.
                        let body = |chunk, _| {
                            if panics && chunk == 1 {
                                resume_unwind(Box::new(()));
                            }
                        };
                        let run = catch_unwind(AssertUnwindSafe(|| pool.run(3, &body)));
                        assert_eq!(run.is_err(), panics, "caller {caller}");
                    }
                });
            }
        });
    }

    #[test]
    fn no_two_callers_are_the_same_thread_at_one_time() {
        for n_threads in [1, 3] {
            let pool = Pool::new(n_threads).unwrap();
            let busy: Vec<AtomicBool> = (0..n_threads).map(|_| AtomicBool::new(false)).collect();
            std::thread::scope(|scope| {
                for n_chunks in [1, 1, 5] {
                    let (pool, busy) = (&pool, &busy);
                    scope.spawn(move || {
                        for _ in 0..20 {
                            pool.run(n_chunks, &|_, thread| {
                                assert!(!busy[thread].swap(true, Ordering::Relaxed));
                                std::thread::sleep(SPIN);
                                busy[thread].store(false, Ordering::Relaxed);
                            });
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(7, &|_, _| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 4 * 200 * 7);
    }
}
