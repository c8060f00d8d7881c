//! A row of activations times tiles as they lie in memory: decoding, at the speed at which weights are read.

use bitnet_layout::row_tiles::Group;

use super::isa::Isa;

/// Tiles that are read side by side: one stream for each thread does not keep all of the memory busy.
pub(crate) const TILES: usize = 4;

/// Bytes that a stream of weights is asked for ahead of its use: the processor's own prefetchers stop at pages of 4 KiB.
pub(crate) const AHEAD: usize = 2048;

/// Tiles of one length, and the row to multiply them with.
#[derive(Clone, Copy)]
pub(crate) struct Stream<'a> {
    /// The tiles.
    pub(crate) tiles: [&'a [Group]; TILES],
    /// Those that come next, whose beginnings are asked for; any where there are none.
    pub(crate) next: [&'a [Group]; TILES],
    /// Words of activations, as many as a tile has groups.
    pub(crate) x: &'a [[i8; 16]],
}

/// `out[i][r] = sum over k of codes[i][r][k] * x[k]` for the 16 rows r of each tile.
///
/// # Panics
/// When the tiles, or the activations, are not of one length.
#[inline(always)]
pub(super) fn dot<I: Isa>(isa: I, stream: &Stream<'_>, out: &mut [[i32; 16]; TILES]) {
    let Stream { tiles, next, x } = *stream;
    *out = [[0; 16]; TILES];
    // What is asked for ahead lies in these tiles, and near their end in the next.
    let here = x.len().saturating_sub(AHEAD / size_of::<Group>());
    let (mut begins, mut ends, mut later) = ([&[][..]; TILES], [&[][..]; TILES], [&[][..]; TILES]);
    for i in 0..TILES {
        assert_eq!(tiles[i].len(), x.len(), "groups of a tile");
        (begins[i], ends[i]) = tiles[i].split_at(here);
        later[i] = &tiles[i][x.len() - here..];
    }
    let (x_begin, x_end) = x.split_at(here);
    add_groups(isa, begins, x_begin, later, out);
    add_groups(isa, ends, x_end, next, out);
}

/// Adds the products of some groups of each tile; the groups that come later begin at `later`.
#[inline(always)]
fn add_groups<I: Isa>(
    isa: I,
    tiles: [&[Group]; TILES],
    x: &[[i8; 16]],
    later: [&[Group]; TILES],
    out: &mut [[i32; 16]; TILES],
) {
    let run = I::RUN / 4;
    let mut first = 0;
    while first < x.len() {
        let x = &x[first..];
        let x = &x[..x.len().min(run)];
        let mut groups = [&[][..]; TILES];
        for (groups, tile) in groups.iter_mut().zip(tiles) {
            *groups = &tile[first..][..x.len()];
        }
        let mut sums = [isa.zero(); TILES];
        for (c, x) in x.iter().enumerate() {
            let x = x.as_chunks::<4>().0;
            for i in 0..TILES {
                isa.prefetch(later[i].as_ptr().wrapping_add(first + c));
                let mut words = isa.load(&groups[i][c]);
                for &x in x {
                    sums[i] = isa.add(sums[i], isa.plane(words), isa.four(x));
                    words = isa.next(words);
                }
            }
        }
        for (sums, out) in sums.into_iter().zip(&mut *out) {
            isa.flush(sums, out);
        }
        first += x.len();
    }
}
