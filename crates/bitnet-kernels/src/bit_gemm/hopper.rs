//! Blocks of warpgroups, for Hopper: each of them multiplies 64 rows with 128 or 160 columns at once, the weights unpacked in registers, the
//! activations in shared memory in a ring of stages.

use super::device::{Block, before, column, finish};
use super::{BitGemm, hopper_bytes, hopper_stride};
use crate::Global;
use crate::intrinsics::*;
use bitnet_layout::mma_tile::WARPGROUP_ROWS;

/// Columns of a thread whose outputs are loaded at once where the product is added to them.
const LOADED: usize = 4;

/// Tiles of a part of k whose weights a warp has asked for before it uses them.
const AHEAD: usize = 2;

/// Planes are shifted here: products are of signed bytes, which codes shifted further would not be.
pub(super) const SIGNED_CODE_BITS: u32 = 4;

/// Plane `p` of a lane's four words: an A fragment of codes 0, 1 and 2 times `2^`[`SIGNED_CODE_BITS`].
#[inline(always)]
pub(super) fn unpack(w: [u32; 4], p: u32) -> [u32; 4] {
    const MASK: u32 = 0x0303_0303 << SIGNED_CODE_BITS;
    w.map(|w| {
        let shifted = if 2 * p <= SIGNED_CODE_BITS {
            w << (SIGNED_CODE_BITS - 2 * p)
        } else {
            w >> (2 * p - SIGNED_CODE_BITS)
        };
        shifted & MASK
    })
}

/// The ring of stages: a tile's codes each, filled by one lane's bulk copies.
struct Ring<const WARPGROUPS: u32, const STAGES: u32, const SUMS: usize> {
    /// Codes of tile 0 of the block's columns.
    codes: Global<u32>,
    /// Words from one tile's codes to the next one's.
    stride: u32,
    /// Columns of the block that have codes, those that pad them included.
    columns: u32,
    tiles_k: u32,
}

impl<const WARPGROUPS: u32, const STAGES: u32, const SUMS: usize> Ring<WARPGROUPS, STAGES, SUMS> {
    const COLUMNS: u32 = 2 * SUMS as u32;
    /// Where the barriers begin.
    const BARRIERS: u32 = hopper_bytes(WARPGROUPS, STAGES, Self::COLUMNS);

    #[inline(always)]
    fn new(p: &BitGemm) -> Self {
        let (padded, first) = (
            p.cols.next_multiple_of(WARPGROUP_ROWS as u32),
            block_idx_y() * Self::COLUMNS,
        );
        Self {
            codes: p.x.offset((first * 32) as usize),
            stride: padded * 32,
            columns: (padded - first).min(Self::COLUMNS),
            tiles_k: p.k.div_ceil(128),
        }
    }

    #[inline(always)]
    fn stage(stage: u32) -> Shared<u32> {
        Shared::at(stage * Self::COLUMNS * 128)
    }

    /// Ends a phase when a stage's codes have arrived.
    #[inline(always)]
    fn full(stage: u32) -> Mbarrier {
        Mbarrier::at(Self::BARRIERS + stage * 8)
    }

    /// Ends a phase when every warp has used a stage's codes.
    #[inline(always)]
    fn free(stage: u32) -> Mbarrier {
        Mbarrier::at(Self::BARRIERS + (STAGES + stage) * 8)
    }

    /// Initializes the barriers, and the columns that have no codes, whose products nobody takes.
    ///
    /// # Safety
    /// All threads of the block call this, before a barrier.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn init(&self) {
        let me = thread_idx_x();
        // SAFETY: each thread writes its own.
        unsafe {
            if me < STAGES {
                Self::full(me).init(1);
                Self::free(me).init(WARPGROUPS * 4);
                Mbarrier::fence_init();
            }
            if self.columns < Self::COLUMNS {
                let mut i = me;
                while i < STAGES * (Self::COLUMNS - self.columns) * 8 {
                    let (stage, piece) = (i % STAGES, i / STAGES);
                    Self::stage(stage)
                        .offset(self.columns * 32 + piece * 4)
                        .store_x4(0, [0; 4]);
                    i += block_dim_x();
                }
                async_proxy_fence();
            }
        }
    }

    /// Fills a stage with the codes of `tile`, which may lie past the end.
    ///
    /// # Safety
    /// One lane calls this, when the stage is free.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn fill(&self, stage: u32, tile: u32) {
        if tile < self.tiles_k {
            let from = self.codes.offset(tile as usize * self.stride as usize);
            let bytes = self.columns * 128;
            // SAFETY: the codes of all padded columns are there; the stage's last phase has ended.
            unsafe {
                Self::full(stage).arrive_expect(bytes);
                bulk_copy(Self::stage(stage), from, bytes, Self::full(stage));
            }
        }
    }
}

/// A stage, and the parity of its phase.
#[derive(Clone, Copy)]
struct Turn<const SPLIT: u32, const STAGES: u32> {
    stage: u32,
    parity: u32,
}

impl<const SPLIT: u32, const STAGES: u32> Turn<SPLIT, STAGES> {
    /// The first one of a part of k.
    #[inline(always)]
    fn first(part: u32) -> Self {
        Self {
            stage: part,
            parity: 0,
        }
    }

    /// The part's next one.
    #[inline(always)]
    fn next(self) -> Self {
        let stage = self.stage + SPLIT;
        if stage >= STAGES {
            Self {
                stage: stage - STAGES,
                parity: self.parity ^ 1,
            }
        } else {
            Self { stage, ..self }
        }
    }
}

/// A block of `WARPGROUPS` times 64 rows by twice `SUMS` columns, which so many warpgroups multiply for each of `SPLIT` parts of k: every
/// `SPLIT`th tile is a part's. The ring has `STAGES` tiles of codes, a multiple of `SPLIT`.
///
/// A warpgroup unpacks the weights of half a tile while its tensor cores multiply the other half.
pub(super) struct Hopper<const WARPGROUPS: u32, const SPLIT: u32, const STAGES: u32, const SUMS: usize>;

impl<const WARPGROUPS: u32, const SPLIT: u32, const STAGES: u32, const SUMS: usize> Block
    for Hopper<WARPGROUPS, SPLIT, STAGES, SUMS>
where
    [i32; SUMS]: Sums,
{
    #[inline(always)]
    unsafe fn run<const EPILOGUE: u32>(p: BitGemm) {
        // A part's tiles that a warpgroup has finished when the stage of the last but so many is filled again: what others may be
        // behind.
        let slack = if SPLIT == 1 { 2 } else { 1 };
        let (tiles_k, me, columns) = (p.k.div_ceil(128), thread_idx_x(), 2 * SUMS as u32);
        let (part, within) = (warp_id() / (WARPGROUPS * 4), warp_id() % (WARPGROUPS * 4));
        let fills = me % (WARPGROUPS * 128) == 0;
        let ring = Ring::<WARPGROUPS, STAGES, SUMS>::new(&p);
        // Rows past the end are copies of the last.
        let band = (block_idx_x() * WARPGROUPS * 4 + within).min(p.n.div_ceil(16) - 1);
        let own = (band * tiles_k * 128 + lane_id() * 4) as usize;
        let behind = hopper_bytes(WARPGROUPS, STAGES, columns) + STAGES * 16;
        let units = Shared::<f32>::at(behind);
        let sums = Shared::<i32>::at(behind + columns * 4);
        let mut acc = [0; SUMS];
        // SAFETY: every branch around a warp or block operation is uniform in each warpgroup; a stage is filled when all warps that use
        // it have done so, and used when it is full; weights are asked for inside the matrix.
        unsafe {
            let weights = |tile: u32| p.w.load_constant_x4(own + tile.min(tiles_k - 1) as usize * 128);
            let mut w = [[0; 4]; AHEAD];
            let mut i = 0;
            while i < AHEAD {
                w[i] = weights(part + SPLIT * i as u32);
                i += 1;
            }
            ring.init();
            // Orders the initialization of the barriers before their use.
            sync_threads();
            grid_dependency_launch();
            grid_dependency_wait();
            if fills {
                let mut stage = part;
                while stage < STAGES {
                    ring.fill(stage, stage);
                    stage += SPLIT;
                }
            }
            if me < columns {
                let (unit, sum) = column(&p, (block_idx_y() * columns + me).min(p.cols - 1));
                units.store(me, unit);
                sums.store(me, sum);
            }
            let (mut turn, mut used) = (
                Turn::<SPLIT, STAGES>::first(part),
                Turn::<SPLIT, STAGES>::first(part),
            );
            let mut lower = [unpack(w[0], 0), unpack(w[0], 1)];
            let mut first = part;
            while first < tiles_k {
                let mut i = 0;
                while i < AHEAD {
                    let tile = first + SPLIT * i as u32;
                    if tile < tiles_k {
                        Ring::<WARPGROUPS, STAGES, SUMS>::full(turn.stage).wait(turn.parity);
                        // The warp's products begin together.
                        sync_warp(FULL_MASK);
                        let codes = Ring::<WARPGROUPS, STAGES, SUMS>::stage(turn.stage);
                        let products = acc.plus(lower, codes);
                        let upper = [unpack(w[i], 2), unpack(w[i], 3)];
                        w[i] = weights(tile + SPLIT * AHEAD as u32);
                        acc = products.wait();
                        let products = acc.plus(upper, codes.offset(16));
                        let next = w[(i + 1) % AHEAD];
                        lower = [unpack(next, 0), unpack(next, 1)];
                        if tile >= slack * SPLIT {
                            if fills {
                                Ring::<WARPGROUPS, STAGES, SUMS>::free(used.stage).wait(used.parity);
                                ring.fill(used.stage, tile + STAGES - slack * SPLIT);
                            }
                            used = used.next();
                            sync_warp(FULL_MASK);
                        }
                        acc = products.wait();
                        // Orders the reads of all lanes' products before the next fill.
                        sync_warp(FULL_MASK);
                        if lane_id() == 0 {
                            Ring::<WARPGROUPS, STAGES, SUMS>::free(turn.stage).arrive();
                        }
                        turn = turn.next();
                    }
                    i += 1;
                }
                first += SPLIT * AHEAD as u32;
            }
            // Orders the last products before the sums that take the place of their codes, and what codes are worth before its use.
            sync_threads();
            store::<EPILOGUE, WARPGROUPS, SPLIT, SUMS>(&p, &acc, [units.cast(), sums.cast()]);
        }
    }
}

/// Brings the block's sums to shared memory, in place of the codes, and writes its outputs along the rows.
///
/// `columns` has what a code of each column is worth (f32), and the sums of their codes (i32).
///
/// # Safety
/// All threads of the block call this, when nobody uses the codes any more; no other block writes these outputs.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
unsafe fn store<const EPILOGUE: u32, const WARPGROUPS: u32, const SPLIT: u32, const SUMS: usize>(
    p: &BitGemm,
    acc: &[i32; SUMS],
    columns: [Shared<u32>; 2],
) {
    let stride = hopper_stride(WARPGROUPS);
    let (group, quad) = (lane_id() / 4, lane_id() % 4);
    let (part, within) = (warp_id() / (WARPGROUPS * 4), warp_id() % (WARPGROUPS * 4));
    let sums = Shared::<u32>::at(0).offset(2 * quad * stride + within * 16 + group);
    let (units, code_sums) = (columns[0].cast::<f32>(), columns[1].cast::<i32>());
    // SAFETY: sums of different lanes of a part lie apart; rows and columns are compared with their counts.
    unsafe {
        let put = |is_first: bool| {
            let mut i = 0;
            while i < SUMS {
                let (col, half) = ((i / 4 * 8 + i % 2) as u32, (i % 4 / 2) as u32);
                let (at, sum) = (col * stride + 8 * half, acc[i] as u32);
                if is_first {
                    sums.store(at, sum);
                } else {
                    sums.add(at, sum);
                }
                i += 1;
            }
        };
        if part == 0 {
            put(true);
        }
        // Orders the sums before what others add to them, or the loads below.
        sync_threads();
        if SPLIT > 1 {
            if part > 0 {
                put(false);
            }
            // Orders the additions before the loads below.
            sync_threads();
        }
        // A lane has two rows 8 apart, as `finish` takes them: half a warp those of two tiles' upper and lower rows.
        let pair = thread_idx_x() % (WARPGROUPS * 32);
        let row = pair / 8 * 16 + pair % 8;
        let tile_row = block_idx_x() * WARPGROUPS * 64 + row;
        let first = block_idx_y() * 2 * SUMS as u32;
        let (mut col, columns_at_once) = (thread_idx_x() / (WARPGROUPS * 32), 4 * SPLIT);
        while col < 2 * SUMS as u32 {
            // Loads come before stores, which nothing passes, so that their latencies pass together.
            let mut y = [[0.0; 2]; LOADED];
            let mut i = 0;
            while i < LOADED {
                y[i] = before::<EPILOGUE>(p, tile_row, first + col + columns_at_once * i as u32);
                i += 1;
            }
            let mut i = 0;
            while i < LOADED {
                let col = col + columns_at_once * i as u32;
                let sums = Shared::<i32>::at(0).offset(col * stride + row);
                let products = [sums.load(0), sums.load(8)].map(|sum| sum >> SIGNED_CODE_BITS);
                let of_column = (units.load(col), code_sums.load(col));
                finish::<EPILOGUE>(p, tile_row, first + col, of_column, y[i], products);
                i += 1;
            }
            col += columns_at_once * LOADED as u32;
        }
    }
}
