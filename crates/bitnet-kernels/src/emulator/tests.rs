//! Each kind of bug, planted and caught; and the same code without the bug, which must pass.

// The macro makes public structs; these have nobody to be public to.
#![allow(unreachable_pub)]

use super::{Emulator, Fault, FaultKind};
use crate::intrinsics::*;
use crate::{Global, Kernel, Launch};
use std::vec::Vec;

/// Declares kernels of 64 lanes over buffers `x`, `y` (64 words each), `flags` (4 words) and a choice.
macro_rules! planted {
    ($($name:ident, $Params:ident, |$p:ident| $body:block)*) => {$(
        kernel! {
            /// See the body.
            $name, block = [64, 1, 1], body = $name::run;
            pub struct $Params {
                /// Input.
                pub x: Global<u32>,
                /// Output.
                pub y: Global<u32>,
                /// Flags.
                pub flags: Global<u32>,
                /// Which bug to plant, 0 for none.
                pub bug: u32,
            }
        }
        mod $name {
            use super::*;
            pub(super) unsafe fn run($p: $Params) {
                // SAFETY: the emulator checks what these kernels break on purpose.
                unsafe { $body }
            }
        }
    )*};
}

planted! {
    shared_memory, SharedMemory, |p| {
        let lane = thread_idx_x();
        let word = Shared::<u32>::at(0);
        let x = p.x.load(lane as usize);
        if p.bug != 1 || lane != 5 {
            word.store(lane, x);
        }
        if p.bug != 2 {
            sync_threads();
        }
        let y = match p.bug {
            3 => word.load(lane + 200),
            4 => word.cast::<u8>().offset(2 * lane).cast::<u32>().load(0),
            _ => word.load(63 - lane),
        };
        if p.bug != 5 {
            sync_threads();
        }
        word.store(lane, y + 1);
        p.y.store((64 * block_idx_x() + lane) as usize, word.load(lane));
    }
    global_memory, GlobalMemory, |p| {
        let lane = thread_idx_x() as usize;
        let block = block_idx_x() as usize;
        let x = match p.bug {
            1 => p.x.load(lane + 1),
            2 => p.x.cast::<u8>().offset(1).cast::<u32>().load(lane / 2),
            3 => p.y.load(64 * block + lane),
            4 => p.x.offset(lane.wrapping_sub(1)).load(0),
            _ => p.x.load(lane),
        };
        let own = if p.bug == 5 { lane } else { 64 * block + lane };
        p.y.store(own, x);
        match p.bug {
            6 => p.x.store(lane, 1),
            7 => p.y.store(own, p.y.load_constant(own)[0]),
            // The other warp's words, with nothing between the two stores.
            8 if lane < 32 => p.y.store(64 * block + 63 - lane, x),
            _ => {}
        }
    }
    meeting, Meeting, |p| {
        let lane = thread_idx_x();
        let x = p.x.load(lane as usize);
        let early = lane == 40;
        match p.bug {
            1 if early => return,
            2 if early => {}
            3 if lane < 16 => sync_threads(),
            _ => sync_threads(),
        }
        let y = match p.bug {
            4 if early => x,
            5 if early => warp_reduce_add(FULL_MASK, x as i32) as u32,
            6 => warp_shuffle_xor(0xffff, x, 1),
            7 => warp_shuffle_xor(if lane % 32 < 16 { 0xffff } else { 0xffff_0000 }, x, 4),
            _ => warp_shuffle_xor(FULL_MASK, x, 1),
        };
        p.y.store(lane as usize, y);
        match p.bug {
            8 => sync_threads_named(1, 96),
            9 => sync_threads_named(1, 20),
            _ if lane < 32 => sync_threads_arrive(2, 64),
            _ => sync_threads_named(2, 64),
        }
    }
    copies, Copies, |p| {
        let lane = thread_idx_x();
        let staged = Shared::<u32>::at(0);
        let full = Mbarrier::at(512);
        if lane == 0 && p.bug != 1 {
            full.init(if p.bug == 2 { 2 } else { 1 });
        }
        if p.bug != 3 {
            sync_threads();
        }
        if lane < 16 {
            async_copy_16(staged.offset(64 + 4 * lane), p.x.offset(4 * lane as usize));
            async_copy_commit();
        }
        if lane == 0 {
            full.arrive_expect(if p.bug == 4 { 512 } else { 256 });
            bulk_copy(staged, p.x, if p.bug == 5 { 250 } else { 256 }, full);
        }
        if p.bug != 6 {
            full.wait(0);
        }
        if p.bug != 7 {
            async_copy_wait::<0>();
        }
        if p.bug != 8 {
            sync_threads();
        }
        p.y.store(lane as usize, staged.load(lane) + staged.load(64 + (lane ^ 8)));
        if p.bug == 9 {
            staged.store(129, lane);
        }
    }
    hand_over, HandOver, |p| {
        // Block 0 writes, the others read, each block's lane 0 at the flag.
        let lane = thread_idx_x() as usize;
        if block_idx_x() == 0 {
            p.y.store(lane, p.x.load(lane));
            if p.bug != 1 {
                sync_threads();
            }
            if lane == 0 && p.bug != 2 {
                match p.bug {
                    3 => p.flags.store_relaxed(0, 1),
                    4 => { device_fence(); p.flags.store_relaxed(0, 1); }
                    _ => p.flags.store_release(0, 1),
                }
            }
        } else {
            if lane == 0 {
                match p.bug {
                    5 => while p.flags.load_relaxed(0) == 0 {},
                    6 => { while p.flags.load_relaxed(0) == 0 {} device_fence(); }
                    _ => while p.flags.load_acquire(0) == 0 {},
                }
            }
            if p.bug != 7 {
                sync_threads();
            }
            p.y.store(64 * block_idx_x() as usize + lane, p.y.load(lane) + 1);
        }
    }
    neighbors, Neighbors, |p| {
        // Each block of a cluster gets the words of the block before it.
        let lane = thread_idx_x();
        let (block, blocks) = (block_idx_x(), grid_dim_x());
        let received = Shared::<u32>::at(0);
        let full = Mbarrier::at(512);
        if lane == 0 {
            full.init(1);
            if p.bug != 1 {
                Mbarrier::fence_init();
            }
        }
        if p.bug != 2 || lane != 40 {
            cluster_arrive_relaxed();
        }
        if p.bug == 3 {
            cluster_arrive_relaxed();
        }
        if p.bug != 4 {
            cluster_wait();
        }
        if lane == 0 {
            full.arrive_expect(if p.bug == 5 { 320 } else { 256 });
        }
        if p.bug == 6 {
            received.store(lane, 0);
        }
        if lane.is_multiple_of(2) {
            let x = p.x.load_l2_x2(lane as usize).map(|x| x + block);
            let to = received.offset(if p.bug == 7 { lane + 1 } else { lane });
            let rank = if p.bug == 8 { block + 1 } else { (block + 1) % blocks };
            to.store_async_x2(x, rank, full);
        }
        match p.bug {
            9 => return,
            10 => {}
            _ => full.wait_cluster(0),
        }
        p.y.store((64 * block + lane) as usize, received.load(lane ^ 1));
    }
    dependent, Dependent, |p| {
        let lane = thread_idx_x() as usize;
        let early = if p.bug == 1 { p.y.load(lane) } else { p.x.load(lane) };
        if p.bug == 2 {
            p.flags.store(0, 0);
        }
        grid_dependency_wait();
        p.y.store(lane, early + p.y.load(lane));
    }
}

/// Runs one planted kernel and gives `y`.
fn run<K: Kernel + 'static>(
    make: fn(Global<u32>, Global<u32>, Global<u32>, u32) -> K,
    seed: u64,
    blocks: u32,
    bug: u32,
) -> Result<Vec<u32>, Fault> {
    let mut emulator = Emulator::new(seed);
    let data: Vec<u32> = (0..64).map(|i| i * i + 1).collect();
    let x = emulator.constant(&data);
    let y = emulator.uninit(64 * blocks as usize);
    let flags = emulator.buffer(&[0; 4]);
    let launch = Launch {
        grid: [blocks, 1, 1],
        block: [64, 1, 1],
        shared_bytes: 520,
    };
    let params = make(x, y, flags, bug);
    match K::INFO.name {
        "hand_over" => emulator.launch_cooperative(&launch, &params)?,
        "neighbors" => emulator.launch_clusters(&launch, &params, blocks)?,
        _ => emulator.launch(&launch, &params)?,
    }
    emulator.read(y)
}

/// `faults[i]` lists what bug `i + 1` may be reported as, depending on who runs first; nothing where it is no bug. Without a
/// bug all seeds must agree.
macro_rules! check {
    ($test:ident, $Params:ident, $blocks:expr, $faults:expr) => {
        #[test]
        fn $test() {
            let make = |x, y, flags, bug| $Params { x, y, flags, bug };
            let sound = run(make, 0, $blocks, 0).expect("sound");
            for seed in 0..6 {
                assert_eq!(
                    run(make, seed, $blocks, 0).expect("sound"),
                    sound,
                    "seed {seed}"
                );
                let faults: &[&[FaultKind]] = &$faults;
                for (i, expected) in faults.iter().enumerate() {
                    let bug = i as u32 + 1;
                    let found = run(make, seed, $blocks, bug);
                    let as_expected = match &found {
                        Ok(_) => expected.is_empty(),
                        Err(fault) => expected.contains(&fault.kind),
                    };
                    assert!(as_expected, "bug {bug}, seed {seed}: {found:?}");
                }
            }
        }
    };
}

use FaultKind::*;
check!(
    shared_memory_bugs,
    SharedMemory,
    2,
    [
        &[Unwritten],
        &[Race, Unwritten],
        &[OutOfBounds],
        &[Misaligned],
        &[Race]
    ]
);
// With bug 5 both blocks write the same words.
check!(
    global_memory_bugs,
    GlobalMemory,
    2,
    [
        &[OutOfBounds],
        &[Misaligned],
        &[Unwritten],
        &[OutOfBounds],
        &[Race],
        &[ReadOnly],
        &[ReadOnly],
        &[Race],
    ]
);
// Shuffles within disjoint halves are no bug: 7 is caught nowhere.
check!(
    meeting_bugs,
    Meeting,
    1,
    [
        &[Divergence],
        &[Divergence],
        &[Divergence],
        &[Divergence],
        &[Divergence],
        &[Misuse],
        &[],
        &[Divergence],
        &[Misuse],
    ]
);
check!(
    copy_bugs,
    Copies,
    1,
    [
        &[Misuse],
        &[Deadlock],
        &[Race, Misuse],
        &[Deadlock],
        &[Misaligned],
        &[InFlight],
        &[InFlight],
        &[InFlight, Race, Unwritten],
        &[Misuse],
    ]
);
// Relaxed flags are enough between fences: 4 and 6 are no bugs.
check!(
    hand_over_bugs,
    HandOver,
    3,
    [
        &[Race, Unwritten],
        &[Deadlock],
        &[Race],
        &[],
        &[Race],
        &[],
        &[Race, Unwritten]
    ]
);

check!(
    cluster_bugs,
    Neighbors,
    3,
    [
        &[Race],
        &[Misuse, Divergence],
        &[Misuse],
        &[Cluster, Race, Misuse],
        &[Deadlock],
        &[Race, InFlight],
        &[Misaligned],
        &[Cluster],
        &[Cluster],
        &[InFlight, Unwritten],
    ]
);

/// Words come from the block before.
#[test]
fn blocks_of_a_cluster_exchange_words() {
    let make = |x, y, flags, bug| Neighbors { x, y, flags, bug };
    let y = run(make, 1, 3, 0).expect("sound");
    for (i, y) in y.iter().enumerate() {
        let (block, lane) = (i as u32 / 64, (i as u32 % 64) ^ 1);
        assert_eq!(*y, lane * lane + 1 + (block + 2) % 3);
    }
}

#[test]
fn dependent_launches_wait_before_they_read() {
    for (bug, expected) in [(0, None), (1, Some(Dependency)), (2, Some(Dependency))] {
        let mut emulator = Emulator::new(1);
        let x = emulator.constant(&[3; 64]);
        let y = emulator.uninit(64);
        let flags = emulator.buffer(&[0; 4]);
        let launch = Launch {
            grid: [1, 1, 1],
            block: [64, 1, 1],
            shared_bytes: 520,
        };
        let first = SharedMemory { x, y, flags, bug: 0 };
        emulator.launch(&launch, &first).expect("sound");
        let found = emulator.launch(&launch, &Dependent { x, y, flags, bug });
        assert_eq!(
            found.as_ref().err().map(|f| f.kind),
            expected,
            "bug {bug}: {found:?}"
        );
    }
}

#[test]
fn a_fault_says_where() {
    let make = |x, y, flags, bug| SharedMemory { x, y, flags, bug };
    let text = std::format!("{}", run(make, 0, 1, 3).expect_err("planted"));
    for part in [
        "shared_memory",
        "OutOfBounds",
        "block 0, lane 63",
        "tests.rs:",
        "shared byte 1052 of 520",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}
