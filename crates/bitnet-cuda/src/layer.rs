//! Layers of a decoded token: which kernel a GPU and a matrix take.

use crate::error::{Error, Result};
use crate::stream::{Dependent, Stream};
use bitnet_kernels::decode_linear::{DecodeLinear, Epilogue, Operands};

/// Launches the kernel for `layer`, in blocks of `tile_rows` rows of tiles where such a kernel is built.
///
/// # Errors
/// When the GPU cannot launch it.
///
/// # Safety
/// As for [`Dependent::on`]; buffers have the lengths that [`DecodeLinear`] asks for.
pub(crate) unsafe fn launch_layer(
    stream: &Stream,
    layer: DecodeLinear,
    epilogue: Epilogue,
    tile_rows: u32,
) -> Result<()> {
    let operands = if stream.gpu().multiplies_bits() {
        Operands::Bits
    } else {
        Operands::Bytes
    };
    let key = epilogue.key(operands, layer.k as usize, tile_rows);
    // SAFETY: the caller's promise.
    let run = unsafe { Dependent::on(stream) };
    let launched = layer.with_kernel(key, run);
    launched.unwrap_or_else(|| {
        Err(Error::Request(format!(
            "no kernel is built for a layer of {key:?}"
        )))
    })
}
