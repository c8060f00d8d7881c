//! The host side of the intrinsics: what a running lane calls.

pub(crate) use super::access::{Access, Order, bytes};
use super::fault::FaultKind;
use super::memory::{Refusal, Use};
use super::products::Line;
use super::state::{Place, State, Status, with};
use super::wait::Next;
use crate::raw::Raw;
use core::panic::Location;
use std::format;

/// Back to the scheduler, until it picks this lane again.
fn suspend() {
    let yielder = with(|state| state.lane().yielder);
    // SAFETY: the scheduler runs this lane, inside the coroutine whose live yielder its closure stored at its start.
    unsafe { (*yielder).suspend(()) }
}

/// Stops here for good: the scheduler ends the launch when it sees the fault.
fn stop() -> ! {
    loop {
        suspend();
    }
}

/// Runs `f`; a refusal becomes a fault of this lane.
pub(super) fn checked<R>(
    caller: &'static Location<'static>,
    f: impl FnOnce(&mut State) -> Result<R, Refusal>,
) -> R {
    let result = with(|state| f(state).map_err(|(kind, detail)| state.fail(kind, Some(caller), detail)));
    match result {
        Ok(value) => value,
        Err(()) => stop(),
    }
}

/// As [`checked`], for calls that may have to wait.
fn meet(
    caller: &'static Location<'static>,
    name: &'static str,
    f: impl FnOnce(&mut State) -> Result<Next, Refusal>,
) -> Next {
    let next = checked(caller, f);
    if next == Next::Wait {
        with(|state| {
            let lane = state.lane();
            lane.status = Status::Waiting(name);
            lane.location = Some(caller);
        });
        suspend();
    }
    next
}

pub(crate) fn place() -> Place {
    with(|state| state.lane().place)
}

#[track_caller]
pub(crate) fn barrier(id: u32, count: Option<u32>, waits: bool) {
    let caller = Location::caller();
    meet(caller, "a barrier", |state| {
        state.barrier(id, count, waits, caller)
    });
}

#[track_caller]
pub(super) fn collective(
    name: &'static str,
    mask: u32,
    data: [u32; 10],
    resolve: impl FnOnce(&[[u32; 10]; 32]) -> [[u32; 4]; 32],
) -> [u32; 4] {
    meet(Location::caller(), name, |state| {
        state.warp(name, mask, data, resolve)
    });
    with(|state| state.lane().result)
}

#[track_caller]
pub(crate) fn sync_warp(mask: u32) {
    meet(Location::caller(), "sync_warp", |state| {
        let next = state.warp("sync_warp", mask, [0; 10], |_| [[0; 4]; 32])?;
        if next == Next::Go {
            state.order_warp(mask);
        }
        Ok(next)
    });
}

#[track_caller]
pub(crate) fn shuffle(name: &'static str, mask: u32, word: u32, source: impl FnOnce(u32) -> u32) -> u32 {
    let lane = with(|state| state.current.1 as u32 % 32);
    let source = Some(source(lane)).filter(|&s| s < 32).unwrap_or(lane);
    if mask >> source & 1 == 0 {
        checked(Location::caller(), |_| -> Result<(), _> {
            let detail = format!("{name} reads lane {source}, which mask {mask:#010x} leaves out");
            Err((FaultKind::Misuse, detail))
        });
    }
    let data = [word, source, 0, 0, 0, 0, 0, 0, 0, 0];
    let pick = |data: &[[u32; 10]; 32]| core::array::from_fn(|i| [data[data[i][1] as usize][0], 0, 0, 0]);
    collective(name, mask, data, pick)[0]
}

#[track_caller]
pub(crate) fn reduce(
    name: &'static str,
    mask: u32,
    word: u32,
    fold: fn(Option<u32>, u32, u32) -> u32,
) -> u32 {
    let data = [word, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let resolve = |data: &[[u32; 10]; 32]| {
        let members = (0..32).filter(|i| mask >> i & 1 == 1);
        let total = members.fold(None, |total, i| Some(fold(total, i, data[i as usize][0])));
        [[total.unwrap_or(0), 0, 0, 0]; 32]
    };
    collective(name, mask, data, resolve)[0]
}

/// `C + A B`, of which a row of A and a column of B are one [`Line`]; `multiply` adds their products.
#[track_caller]
pub(crate) fn mma<T: Raw>(
    name: &'static str,
    a: [u32; 4],
    b: [u32; 2],
    c: [T; 4],
    multiply: fn(T, &Line, &Line) -> T,
) -> [T; 4] {
    let (to_word, from_word) = (|x: T| x.to_raw() as u32, |word: u32| T::from_raw(word.into()));
    let w = c.map(to_word);
    let data = [a[0], a[1], a[2], a[3], b[0], b[1], w[0], w[1], w[2], w[3]];
    let resolve = |data: &[[u32; 10]; 32]| {
        // Whose quads have words of the line, and in which registers its two halves are, as the module `intrinsics::mma` describes
        // the fragments.
        let line = |group: usize, halves: [usize; 2]| -> Line {
            let mut line = [0; 32];
            for (i, word) in line.as_chunks_mut().0.iter_mut().enumerate() {
                *word = data[group * 4 + i % 4][halves[i / 4]].to_le_bytes();
            }
            line
        };
        let rows: [Line; 16] = core::array::from_fn(|row| line(row % 8, [row / 8, row / 8 + 2]));
        let columns: [Line; 8] = core::array::from_fn(|column| line(column, [4, 5]));
        core::array::from_fn(|lane| {
            core::array::from_fn(|i| {
                let (row, column) = (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2);
                let c = from_word(data[lane][6 + i]);
                to_word(multiply(c, &rows[row], &columns[column]))
            })
        })
    };
    collective(name, u32::MAX, data, resolve).map(from_word)
}

#[track_caller]
pub(crate) fn load_matrix(row: u32) -> [u32; 4] {
    let words: [u32; 4] = load_shared_words(row);
    let data = [words[0], words[1], words[2], words[3], 0, 0, 0, 0, 0, 0];
    let resolve = |data: &[[u32; 10]; 32]| {
        core::array::from_fn(|lane| core::array::from_fn(|matrix| data[8 * matrix + lane / 4][lane % 4]))
    };
    collective("load_matrix_x4", u32::MAX, data, resolve)
}

#[track_caller]
fn load_bytes<const N: usize>(address: u64, len: usize, access: Access) -> [u8; N] {
    let caller = Location::caller();
    checked(caller, |state| {
        let (id, offset) = state.global_access(address, len, Use::Read, access, caller)?;
        let mut out = [0; N];
        out[..len].copy_from_slice(&state.memory.buffers[id].space.bytes[offset..offset + len]);
        Ok(out)
    })
}

#[track_caller]
pub(crate) fn load(address: u64, len: usize, access: Access) -> u64 {
    u64::from_le_bytes(load_bytes(address, len, access))
}

#[track_caller]
pub(crate) fn load_words<const N: usize>(address: u64, access: Access) -> [u32; N] {
    words(load_bytes(address, 4 * N, access))
}

#[track_caller]
pub(crate) fn store(address: u64, bytes: &[u8], access: Access) {
    let caller = Location::caller();
    checked(caller, |state| {
        let (id, offset) = state.global_access(address, bytes.len(), Use::Write, access, caller)?;
        state.memory.buffers[id].space.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    });
}

/// Checks that a hint names memory that exists.
#[track_caller]
pub(crate) fn check_readable(address: u64, len: usize) {
    checked(Location::caller(), |state| {
        state.memory.find(address, len).map(|_| ())
    });
}

#[track_caller]
fn load_shared_bytes<const N: usize>(address: u32, len: usize) -> [u8; N] {
    checked(Location::caller(), |state| {
        let start = state.shared_access(address, len, Use::Read)?;
        let mut out = [0; N];
        out[..len].copy_from_slice(&state.block().shared.bytes[start..start + len]);
        Ok(out)
    })
}

#[track_caller]
pub(crate) fn load_shared(address: u32, len: usize) -> u64 {
    u64::from_le_bytes(load_shared_bytes(address, len))
}

#[track_caller]
pub(crate) fn load_shared_words<const N: usize>(address: u32) -> [u32; N] {
    words(load_shared_bytes(address, 4 * N))
}

#[track_caller]
pub(crate) fn store_shared(address: u32, bytes: &[u8]) {
    checked(Location::caller(), |state| {
        let start = state.shared_access(address, bytes.len(), Use::Write)?;
        state.block().shared.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    });
}

/// An addition that others may make to the same word at the same time.
#[track_caller]
pub(crate) fn add_shared(address: u32, by: u32) {
    checked(Location::caller(), |state| {
        let shared = &state.block().shared;
        let (start, end) = (address as usize, address as usize + 4);
        if end <= shared.bytes.len()
            && let Some(byte) = shared.first_unwritten(start, 4)
        {
            let detail = format!("shared memory: updates byte {byte}, which nobody wrote");
            return Err((FaultKind::Unwritten, detail));
        }
        state.shared_access(address, 4, Use::AtomicWrite)?;
        let bytes = &mut state.block().shared.bytes[start..end];
        let sum = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).wrapping_add(by);
        bytes.copy_from_slice(&sum.to_le_bytes());
        Ok(())
    });
}

#[track_caller]
pub(crate) fn atomic_load(address: u64, len: usize, order: Order) -> u64 {
    let caller = Location::caller();
    // Others run first: a lane that spins here must not keep them from what it waits for.
    with(|state| {
        let lane = state.lane();
        lane.status = Status::Polling;
        lane.location = Some(caller);
    });
    suspend();
    checked(caller, |state| {
        state.atomic(address, len, order, Use::AtomicRead, caller, |value| value)
    })
}

#[track_caller]
pub(crate) fn atomic_store(address: u64, len: usize, order: Order, value: u64) {
    let caller = Location::caller();
    checked(caller, |state| {
        state.atomic(address, len, order, Use::AtomicWrite, caller, |_| value)
    });
}

#[track_caller]
pub(crate) fn atomic_update(address: u64, len: usize, order: Order, update: impl FnOnce(u64) -> u64) -> u64 {
    let caller = Location::caller();
    checked(caller, |state| {
        let (id, offset) = state.memory.find(address, len)?;
        if let Some(byte) = state.memory.buffers[id].space.first_unwritten(offset, len) {
            let detail = format!("buffer {id}: updates byte {byte}, which nobody wrote");
            return Err((FaultKind::Unwritten, detail));
        }
        state.atomic(address, len, order, Use::AtomicWrite, caller, update)
    })
}

pub(crate) fn fence() {
    with(State::fence);
}

#[track_caller]
pub(crate) fn grid_dependency_wait() {
    let caller = Location::caller();
    checked(caller, |state| match state.lane().early.take() {
        None => Ok(()),
        Some((what, line)) => {
            let detail = format!("{what} at {line}, before this wait");
            Err((FaultKind::Dependency, detail))
        }
    });
}

#[track_caller]
pub(crate) fn async_copy(destination: u32, source: u64, bytes: u32) {
    let caller = Location::caller();
    checked(caller, |state| {
        let copy = state.start_copy(destination, source, bytes, Use::Write, caller)?;
        state.lane().open_copies.push(copy);
        Ok(())
    });
}

pub(crate) fn async_copy_commit() {
    with(|state| {
        let lane = state.lane();
        let group = core::mem::take(&mut lane.open_copies);
        lane.copies.push_back(group);
    });
}

#[track_caller]
pub(crate) fn async_copy_wait(pending: usize) {
    checked(Location::caller(), |state| {
        while state.lane().copies.len() > pending {
            for copy in state.lane().copies.pop_front().unwrap_or_default() {
                state.finish_copy(copy)?;
                // Others may read from now on, once a barrier orders them after this wait: not after the start.
                state.shared_access(copy.destination, copy.bytes as usize, Use::Write)?;
            }
        }
        Ok(())
    });
}

#[track_caller]
pub(crate) fn mbarrier_init(address: u32, arrivals: u32) {
    checked(Location::caller(), |state| state.mbarrier_init(address, arrivals));
}

#[track_caller]
pub(crate) fn mbarrier_arrive(address: u32, bytes: u32) {
    checked(Location::caller(), |state| state.mbarrier_arrive(address, bytes));
}

#[track_caller]
pub(crate) fn mbarrier_wait(address: u32, parity: u32) {
    let caller = Location::caller();
    while meet(caller, "Mbarrier::wait", |state| {
        state.mbarrier_wait(address, parity)
    }) == Next::Wait
    {}
}

#[track_caller]
pub(crate) fn bulk_copy(destination: u32, source: u64, bytes: u32, barrier: u32) {
    let caller = Location::caller();
    checked(caller, |state| {
        state.bulk_copy(destination, source, bytes, barrier, caller)
    });
}

pub(crate) fn mbarrier_fence_init() {
    with(State::mbarrier_fence_init);
}

#[track_caller]
pub(crate) fn cluster_arrive() {
    checked(Location::caller(), State::cluster_arrive);
}

#[track_caller]
pub(crate) fn cluster_wait() {
    let caller = Location::caller();
    while meet(caller, "cluster_wait", State::cluster_wait) == Next::Wait {}
}

#[track_caller]
pub(crate) fn store_async(destination: u32, words: [u32; 2], rank: u32, barrier: u32) {
    checked(Location::caller(), |state| {
        state.store_async(destination, words, rank, barrier)
    });
}

fn words<const N: usize>(bytes: [u8; 16]) -> [u32; N] {
    core::array::from_fn(|i| u32::from_le_bytes(core::array::from_fn(|j| bytes[4 * i + j])))
}
