//! The grids of a decoded token's linear layers: how many rows of tiles a block takes, which changes speed and no bit.
//!
//! Kernels of a step overlap: what a block of one layer leaves of a multiprocessor is where the next layer's blocks wait with
//! their weights. So the four grids depend on each other, on the attention between them and on the GPU, and are found by
//! measuring whole steps: `bitnet bench grids` prints the table that [`Engine::default_grids`] is made from.

use super::batch::Attention;
use super::weights::Form;
use super::{Engine, PAGE_POSITIONS};
use bitnet_kernels::decode_linear::{DecodeGatedT8K2, Epilogue};
use bitnet_layout::mma_tile;

/// Rows of tiles of a block, layer by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grids {
    /// Of the projections to queries, keys and values.
    pub qkv: u32,
    /// Of the projection back to the residual stream.
    pub out_proj: u32,
    /// Of gate and up.
    pub up_gate: u32,
    /// Of the projection down.
    pub down: u32,
}

const fn grids([qkv, out_proj, up_gate, down]: [u32; 4]) -> Grids {
    Grids {
        qkv,
        out_proj,
        up_gate,
        down,
    }
}

/// Of capability 9.0, for contexts of up to so many steps of 64 keys: measured on an H100 from 64, 192, 448 (and 480), 1,000 and 2,048
/// tokens on.
const BY_STEPS: [(usize, Grids); 5] = [
    (2, grids([6, 4, 12, 4])),
    (4, grids([6, 5, 12, 4])),
    (16, grids([5, 3, 10, 3])),
    (32, grids([5, 5, 11, 4])),
    (usize::MAX, grids([5, 3, 10, 4])),
];

/// Rows of tiles of gate and up for each multiprocessor, from which on the table above holds: a narrower model would leave most of
/// them idle.
const WIDE: usize = 6;

impl Engine {
    /// The layers in the order of [`Grids`]: what becomes of their products, and their columns.
    fn layers_of_grids(&self) -> [(Epilogue, usize); 4] {
        let d = &self.model.dims;
        [
            (Epilogue::Store, d.d_model),
            (Epilogue::Add, d.d_q()),
            (Epilogue::Gated, d.d_model),
            (Epilogue::Add, d.d_ffn),
        ]
    }

    /// Rows of tiles that this GPU has kernels for, layer by layer, that of every GPU first.
    fn choices(&self) -> [Vec<u32>; 4] {
        let is_free = Form::of(&self.model) == Form::Tiles
            && self.gpu().multiplies_bits()
            && self.gpu().has::<DecodeGatedT8K2>();
        let most = if is_free { usize::MAX } else { 1 };
        self.layers_of_grids()
            .map(|(epilogue, k)| epilogue.tile_rows(k).take(most).collect())
    }

    /// Every combination of grids that this GPU has kernels for; that of every GPU is the first.
    #[must_use]
    pub fn possible_grids(&self) -> Vec<Grids> {
        let [qkv, out_proj, up_gate, down] = self.choices();
        let mut all = Vec::new();
        for &qkv in &qkv {
            for &out_proj in &out_proj {
                for &up_gate in &up_gate {
                    for &down in &down {
                        all.push(Grids {
                            qkv,
                            out_proj,
                            up_gate,
                            down,
                        });
                    }
                }
            }
        }
        all
    }

    /// The grids of steps whose sequences have up to `positions` positions.
    #[must_use]
    pub fn default_grids(&self, positions: usize) -> Grids {
        self.grids_of(positions.div_ceil(PAGE_POSITIONS))
    }

    /// The grids of steps with room for `steps` steps of 64 keys.
    fn grids_of(&self, steps: usize) -> Grids {
        let gate_up_rows = mma_tile::tiles_n(2 * self.model.dims.d_ffn);
        let is_wide = gate_up_rows >= WIDE * self.gpu().properties().n_sms as usize;
        let wanted = BY_STEPS
            .iter()
            .find(|(most, _)| steps <= *most)
            .filter(|_| is_wide)
            .map(|(_, grids)| grids);
        let [qkv, out_proj, up_gate, down] = self.choices();
        let of = |built: &[u32], wanted: Option<u32>| {
            wanted
                .filter(|wanted| built.contains(wanted))
                .or(built.first().copied())
                .unwrap_or_default()
        };
        Grids {
            qkv: of(&qkv, wanted.map(|grids| grids.qkv)),
            out_proj: of(&out_proj, wanted.map(|grids| grids.out_proj)),
            up_gate: of(&up_gate, wanted.map(|grids| grids.up_gate)),
            down: of(&down, wanted.map(|grids| grids.down)),
        }
    }

    /// The grids of the step that is prepared.
    pub(super) fn grids(&self) -> Grids {
        self.forced.unwrap_or_else(|| {
            self.grids_of(match self.attention {
                Attention::Decode { steps } => steps,
                // A prompt of a single token.
                Attention::Prefill { .. } => 1,
            })
        })
    }
}
