//! Layers of one decoded token or a few: which kernel a GPU and a matrix take.

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::stream::{Dependent, Stream};
use bitnet_kernels::decode_linear::{DecodeAddT2K4X2, DecodeLinear, Epilogue, Operands};

/// Whether the layers of `cols` tokens, more than one, have a kernel on this GPU, for matrices of `k` columns.
pub(crate) fn takes_few(gpu: &Gpu, epilogue: Epilogue, k: usize, cols: usize) -> bool {
    gpu.multiplies_bits() && gpu.has::<DecodeAddT2K4X2>() && epilogue.key_of_few(k, cols).is_some()
}

/// Launches the kernel for `layer`, of one token in blocks of `tile_rows` rows of tiles where such a kernel is built, of more as
/// [`takes_few`] says.
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
    let (k, cols) = (layer.k as usize, layer.cols as usize);
    let few = (cols > 1).then(|| epilogue.key_of_few(k, cols)).flatten();
    let key = few.unwrap_or_else(|| epilogue.key(operands, k, tile_rows));
    // SAFETY: the caller's promise.
    let run = unsafe { Dependent::on(stream) };
    let launched = layer.with_kernel(key, run);
    launched
        .filter(|_| cols == 1 || few.is_some())
        .unwrap_or_else(|| {
            Err(Error::Request(format!(
                "no kernel is built for a layer of {key:?}"
            )))
        })
}
