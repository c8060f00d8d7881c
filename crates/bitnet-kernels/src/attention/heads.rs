//! Which heads there are kernels for, and how kernels are declared by them.

use crate::cache::KvType;

/// Heads that kernels of attention are built for: how their keys and values are kept, and the width they are padded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Heads {
    Bf16x32,
    Bf16x64,
    Bf16x128,
    Bf16x256,
    Int8x32,
    Int8x64,
    Int8x128,
}

impl Heads {
    /// Heads of a [`padded_head_dim`](crate::cache::padded_head_dim); none of 256 dimensions in 8 bits, nor of another width.
    #[must_use]
    pub const fn new(padded: u32, kv_type: KvType) -> Option<Self> {
        match (kv_type, padded) {
            (KvType::Bf16, 32) => Some(Self::Bf16x32),
            (KvType::Bf16, 64) => Some(Self::Bf16x64),
            (KvType::Bf16, 128) => Some(Self::Bf16x128),
            (KvType::Bf16, 256) => Some(Self::Bf16x256),
            (KvType::Int8, 32) => Some(Self::Int8x32),
            (KvType::Int8, 64) => Some(Self::Int8x64),
            (KvType::Int8, 128) => Some(Self::Int8x128),
            _ => None,
        }
    }

    /// Dimensions of a head in the cache.
    #[must_use]
    pub const fn padded(self) -> u32 {
        match self {
            Self::Bf16x32 | Self::Int8x32 => 32,
            Self::Bf16x64 | Self::Int8x64 => 64,
            Self::Bf16x128 | Self::Int8x128 => 128,
            Self::Bf16x256 => 256,
        }
    }

    /// How keys and values are kept.
    #[must_use]
    pub const fn kv_type(self) -> KvType {
        match self {
            Self::Bf16x32 | Self::Bf16x64 | Self::Bf16x128 | Self::Bf16x256 => KvType::Bf16,
            Self::Int8x32 | Self::Int8x64 | Self::Int8x128 => KvType::Int8,
        }
    }
}

/// Declares a [`family!`] of kernels by the heads they are built for: each, or where it says so some.
macro_rules! heads_family {
    (
        $(#[$meta:meta])*
        pub struct $Params:ident $fields:tt
        some: $($kernels:tt)*
    ) => {
        heads_family! { @ some $(#[$meta])* pub struct $Params $fields $($kernels)* }
    };
    (
        $(#[$meta:meta])*
        pub struct $Params:ident $fields:tt
        $([$($kernels:tt)*] $($rest:tt)*)?
    ) => {
        heads_family! { @ each $(#[$meta])* pub struct $Params $fields $([$($kernels)*] $($rest)*)? }
    };
    (
        @ $which:ident
        $(#[$meta:meta])*
        pub struct $Params:ident $fields:tt
        $( [$($options:tt)*] $($name:ident, $Kernel:ident, $heads:ident;)+ )+
    ) => {
        family! {
            $(#[$meta])*
            pub struct $Params $fields
            $which Heads;
            $(
                [$($options)*]
                $(
                    $name, $Kernel, concat!("[`Heads::", stringify!($heads), "`]"),
                    [{ Heads::$heads.padded() as usize / 32 }, { matches!(Heads::$heads.kv_type(), $crate::cache::KvType::Int8) }],
                    [Heads::$heads];
                )+
            )+
        }
    };
}
pub(super) use heads_family;
