//! Slim blocks, for Hopper: warpgroups multiply 64 rows with up to 64 columns at once, with all codes of a part of k in shared memory.

use super::device::{Block, before, column, finish};
use super::hopper::{SIGNED_CODE_BITS, unpack};
use super::{BitGemm, SlimPlan};
use crate::decode_linear::device::GATED;
use crate::intrinsics::*;
use bitnet_layout::mma_tile::{self, CodeOrder};

/// Columns of a thread of which it loads before the products what it adds to.
const EARLY: usize = 4;
/// Most columns of a thread.
const MOST_EACH: usize = 8;

/// A block of `WARPGROUPS` times 64 rows by `2 SUMS` columns, which so many warpgroups multiply for each of `SPLIT` parts of k. Blocks of a
/// cluster have parts of k of the same rows; each finishes a share of the columns. A warp has asked for the weights of `AHEAD` tiles along k
/// before it uses them.
pub(super) struct Slim<const WARPGROUPS: u32, const SPLIT: u32, const SUMS: usize, const AHEAD: usize>;

impl<const WARPGROUPS: u32, const SPLIT: u32, const SUMS: usize, const AHEAD: usize> Block
    for Slim<WARPGROUPS, SPLIT, SUMS, AHEAD>
where
    [i32; SUMS]: Sums,
{
    #[inline(always)]
    unsafe fn run<const EPILOGUE: u32>(p: BitGemm) {
        let columns = 2 * SUMS as u32;
        // Pairs of rows 8 apart, which `finish` takes; columns of a thread.
        let pairs = WARPGROUPS * 32;
        let each = SUMS / 2 / SPLIT as usize;
        let (tiles_k, me, lane) = (p.k.div_ceil(128), thread_idx_x(), lane_id());
        let blocks = if EPILOGUE == GATED { 1 } else { p.slots.max(1) };
        let (rank, band) = (block_idx_x() % blocks, block_idx_x() / blocks);
        let plan = SlimPlan::new(WARPGROUPS, SPLIT, columns, tiles_k, blocks);
        let (part, within) = (warp_id() / (WARPGROUPS * 4), warp_id() % (WARPGROUPS * 4));
        let first_tile = (rank * SPLIT + part) * plan.tiles;
        let count = plan.tiles.min(tiles_k.saturating_sub(first_tile));
        // Rows past the end are copies of the last.
        let tile_row = (band * WARPGROUPS * 4 + within).min(p.n.div_ceil(16) - 1);
        let own = tile_row * tiles_k * 128 + lane * 4;
        // The block's first column, and how many columns a tile of codes has.
        let start = block_idx_y() * columns;
        let code_columns = mma_tile::padded_rows(CodeOrder::WarpgroupFew, p.cols as usize) as u32;
        let codes = |i: u32| Shared::<u32>::at(part * plan.part_bytes + i * columns * 128);
        let full = |i: u32| Mbarrier::at(plan.barriers + (part * plan.tiles + i) * 8);
        let exchange = Mbarrier::at(plan.barriers + SPLIT * plan.tiles * 8);
        let received = Shared::<i32>::at(plan.received);
        let units = Shared::<f32>::at(plan.of_columns);
        let code_sums = Shared::<i32>::at(plan.of_columns + columns * 4);
        // Blocks of the cluster take turns at finishing a column of each thread. Bytes of sums that one of the others sends for the `turns`
        // of this one.
        let (at_once, turns) = (plan.at_once, (each as u32 + blocks - 1 - rank) / blocks);
        let sent = turns * at_once * pairs * 8;
        let pair = me % pairs;
        let (row, first_col) = (pair / 8 * 16 + pair % 8, me / pairs);
        let out_row = band * WARPGROUPS * 64 + row;
        let mut acc = [0; SUMS];
        // SAFETY: every branch around a warp or block operation is uniform in each warpgroup; codes are used when their copies have
        // arrived, and sums take the place of codes that nobody uses any more; weights are asked for inside the matrix.
        unsafe {
            let weights = |i: u32| {
                let tile = (first_tile + i).min(tiles_k - 1);
                p.w.load_stream_x4((own + tile * 128) as usize)
            };
            let mut w = [[0; 4]; AHEAD];
            let mut i = 0;
            while i < AHEAD {
                w[i] = weights(i as u32);
                i += 1;
            }
            // One lane of each of a part's warps has every so many of its tiles: the addresses that barriers and copies take are those of
            // a warp, and lanes of one would begin their copies one after the other.
            let first_copy = if lane == 0 { within } else { count };
            let mut i = first_copy;
            while i < count {
                full(i).init(1);
                i += WARPGROUPS * 4;
            }
            if blocks > 1 && me == 0 {
                exchange.init(1);
            }
            if lane == 0 {
                Mbarrier::fence_init();
            }
            // Orders the initialization of the barriers before their use.
            sync_threads();
            let mut i = first_copy;
            while i < count {
                full(i).arrive_expect(columns * 128);
                i += WARPGROUPS * 4;
            }
            if blocks > 1 && me == 0 {
                exchange.arrive_expect((blocks - 1) * sent);
            }
            if blocks > 1 {
                cluster_arrive_relaxed();
            }
            let from =
                p.x.offset((((first_tile + within) * code_columns + start) * 32) as usize);
            // Behind the weights and the barriers: earlier, the kernels behind begin to ask for theirs too soon.
            grid_dependency_launch();
            grid_dependency_wait();
            let mut i = first_copy;
            while i < count {
                let from = from.offset(((i - within) * code_columns * 32) as usize);
                bulk_copy(codes(i), from, columns * 128, full(i));
                i += WARPGROUPS * 4;
            }
            // While the copies are on their way; nothing is asked for when the sums are there.
            let mut y = [[0.0; 2]; MOST_EACH];
            let mut e = 0;
            while e < each && e < EARLY {
                y[e] = before::<EPILOGUE>(&p, out_row, start + first_col + at_once * e as u32);
                e += 1;
            }
            if me < columns {
                let (unit, sum) = column(&p, (start + me).min(p.cols - 1));
                units.store(me, unit);
                code_sums.store(me, sum);
            }
            let mut first = 0;
            while first < count {
                let mut j = 0;
                while j < AHEAD {
                    let i = first + j as u32;
                    if i < count {
                        let planes = [unpack(w[j], 0), unpack(w[j], 1), unpack(w[j], 2), unpack(w[j], 3)];
                        if i + (AHEAD as u32) < count {
                            w[j] = weights(i + AHEAD as u32);
                        }
                        full(i).wait(0);
                        // The warp's products begin together.
                        sync_warp(FULL_MASK);
                        let [first, second, third, fourth] = planes;
                        let products = acc.plus([first, second], codes(i));
                        acc = products.plus([third, fourth], codes(i).offset(16)).wait();
                    }
                    j += 1;
                }
                first += AHEAD as u32;
            }
            // Orders the part's last products before the sums that take the place of their codes.
            sync_threads_named(part + 1, WARPGROUPS * 128);
            let to = Shared::<i32>::at(part * plan.part_bytes)
                .offset(2 * (lane % 4) * plan.stride + within * 16 + lane / 4);
            let mut i = 0;
            while i < SUMS {
                let (col, half) = ((i / 4 * 8 + i % 2) as u32, (i % 4 / 2) as u32);
                to.store(col * plan.stride + 8 * half, acc[i]);
                i += 1;
            }
            // Orders all sums, and what codes are worth, before their loads.
            sync_threads();
            let mut totals = [[0; 2]; MOST_EACH];
            let mut part = 0;
            while part < SPLIT {
                let from = Shared::<i32>::at(part * plan.part_bytes).offset(first_col * plan.stride + row);
                let mut e = 0;
                while e < each {
                    let from = from.offset(at_once * e as u32 * plan.stride);
                    totals[e] = [totals[e][0] + from.load(0), totals[e][1] + from.load(8)];
                    e += 1;
                }
                part += 1;
            }
            let mut e = EARLY;
            while e < each {
                y[e] = before::<EPILOGUE>(&p, out_row, start + first_col + at_once * e as u32);
                e += 1;
            }
            if blocks > 1 {
                // Where the pair's sums of a turn stand among those that another block has sent.
                let place = |slot: u32, turn: u32| {
                    received.offset((((slot * plan.turns + turn) * at_once + first_col) * pairs + pair) * 2)
                };
                // All blocks have started, and their barriers are initialized.
                cluster_wait();
                let (mut e, mut to, mut turn) = (0, 0, 0);
                while e < each {
                    if to != rank {
                        let slot = if rank < to { rank } else { rank - 1 };
                        place(slot, turn).store_async_x2(totals[e], to, exchange);
                    }
                    (to, turn) = if to + 1 < blocks {
                        (to + 1, turn)
                    } else {
                        (0, turn + 1)
                    };
                    e += 1;
                }
                exchange.wait_cluster(0);
                let mut slot = 0;
                while slot + 1 < blocks {
                    let (mut e, mut of, mut turn) = (0, 0, 0);
                    while e < each {
                        if of == rank {
                            let [upper, lower] = place(slot, turn).load_x2(0);
                            totals[e] = [totals[e][0] + upper, totals[e][1] + lower];
                        }
                        (of, turn) = if of + 1 < blocks {
                            (of + 1, turn)
                        } else {
                            (0, turn + 1)
                        };
                        e += 1;
                    }
                    slot += 1;
                }
            }
            let (mut e, mut of) = (0, 0);
            while e < each {
                if of == rank {
                    let col = first_col + at_once * e as u32;
                    let of_column = (units.load(col), code_sums.load(col));
                    let products = totals[e].map(|sum| sum >> SIGNED_CODE_BITS);
                    finish::<EPILOGUE>(&p, out_row, start + col, of_column, y[e], products);
                }
                of = if of + 1 < blocks { of + 1 } else { 0 };
                e += 1;
            }
        }
    }
}
