//! Causal attention of grouped query heads over the bfloat16 cache of [`crate::rope`]: the same bits for a token whether it
//! was decoded or part of a prompt, whatever stands beside it in the batch and however the prompt was cut.
//!
//! All kernels work in steps of [`PAGE`](crate::cache::PAGE) keys at absolute positions, and do this for a row
//! (a token's query head; `q` carries the factor `log2(e) / sqrt(head_dim)`, see [`crate::rope::q_scale`]) and a step:
//!
//! - `s = q k` on the tensor cores, in the order of `math::score`; `m = max s`, over the keys up to the row's position;
//! - `p = 2^(s - m)` rounded to bfloat16; `l = p 1` and `o = p v` on the tensor cores, in the order of `math::values`.
//!
//! Then the steps are folded from the first to the last, see `math::Fold`: `M' = max(M, m)`,
//! `O = O 2^(M - M') + o 2^(m - M')`, `L` likewise; the output is `O / L`. A row of a tensor core's tile does not depend on
//! the other rows, so a row's place in a tile is free. So are two orders, and they are chosen so that fragments are what
//! 16-byte loads bring:
//!
//! - dimensions: lane `t` of a quad holds dimensions `32 i + 8 t ..` (8 of them) for the products 2 i and 2 i + 1;
//! - keys: column `2 t + e` of the score tile j is key `32 (j / 4) + 8 t + 2 (j % 4) + e` of the step, so that the score
//!   tiles 2 s and 2 s + 1 of a lane are its A fragment of the product s of the values, whose B fragment is keys
//!   `32 (s / 2) + 8 t + 4 (s % 2) ..` (4 of them).

/// Declares a struct of parameters, and for every padded width of a head a kernel with these parameters, which converts from
/// the struct and back: `[what kernel! takes of arch] name, Params, chunks of 32 dimensions, width; ..`. The module has their `threads(width)`, `launch(width, &struct)` and
/// `device::run::<chunks>`.
macro_rules! kernels_by_width {
    (
        $(#[$meta:meta])*
        pub struct $Common:ident $fields:tt
        $arch:tt
        $($name:ident, $Params:ident, $chunks:literal, $width:literal;)*
    ) => {
        kernels_by_width! { @common ($(#[$meta])*) $Common $fields }
        $( kernels_by_width! { @kernel $arch $Common, $name, $Params, $chunks, $width, $fields } )*
    };
    (@common ($(#[$meta:meta])*) $Common:ident { $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $Common { $( $(#[$field_meta])* pub $field: $type, )* }
    };
    (
        @kernel [$($arch:tt)*] $Common:ident, $name:ident, $Params:ident, $chunks:literal, $width:literal,
        { $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )* }
    ) => {
        kernel! {
            #[doc = concat!("[`", stringify!($Common), "`] for heads padded to ", stringify!($width), " dimensions.")]
            ///
            /// # Safety
            #[doc = concat!("As [`", stringify!($Common), "`] says.")]
            $name, block = [threads($width), 1, 1], min_blocks = 1, $($arch)* body = device::run::<$chunks>;
            pub struct $Params { $( $(#[$field_meta])* pub $field: $type, )* }
        }

        impl From<$Common> for $Params {
            #[inline(always)]
            fn from($Common { $($field),* }: $Common) -> Self {
                Self { $($field),* }
            }
        }

        impl From<$Params> for $Common {
            #[inline(always)]
            fn from($Params { $($field),* }: $Params) -> Self {
                Self { $($field),* }
            }
        }

        impl $Params {
            /// The launch for these parameters.
            #[must_use]
            pub fn launch(&self) -> $crate::Launch {
                launch($width, &(*self).into())
            }
        }
    };
}

mod cluster;
mod combine;
mod decode;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod math;
mod prefill;

pub use cluster::*;
pub use combine::AttentionCombine;
pub use decode::*;
pub use prefill::*;
