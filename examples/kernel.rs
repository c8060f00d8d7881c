//! Launches one GPU kernel and checks what it computes: in the emulator, which runs the same source lane by lane on any
//! machine, and on a GPU where there is one. `cargo run --example kernel`.
//!
//! The kernel is `ref_gemv`, y = W x for ternary W in the layout of the reference project's benchmark.

use anyhow::ensure;
use bitnet_kernels::bench::ref_gemv::RefGemv;
use bitnet_kernels::emulator::Emulator;
use bitnet_layout::random::Random;
use bitnet_layout::reference;
use bitnet_layout::reference_tile::ReferenceTile;

/// Rows of W.
const N: usize = 64;
/// Columns of W.
const K: usize = 96;

fn main() -> anyhow::Result<()> {
    let tile = ReferenceTile::new(N, K)?;
    let mut random = Random::new(1);
    let words: Vec<u32> = (0..tile.shape().words()).map(|_| random.ternary_word()).collect();
    let mut tiles = vec![0; words.len()];
    tile.pack(&words, &mut tiles);
    // Small enough for every sum to be a bfloat16, so that the comparison is of bits.
    let x: Vec<i8> = (0..K).map(|_| (random.word() % 5) as i8 - 2).collect();
    let (quads, _) = x.as_chunks::<4>();
    let packed: Vec<u32> = quads
        .iter()
        .map(|quad| u32::from_le_bytes(quad.map(i8::cast_unsigned)))
        .collect();

    let mut sums = vec![0; N];
    reference::linear(tile.shape(), &words, &x, &mut sums);
    let expected: Vec<u16> = sums
        .iter()
        .map(|&sum| ((sum as f32).to_bits() >> 16) as u16)
        .collect();

    // The seed decides which lane runs when; a race, or a read of memory that nobody wrote, is an error.
    let mut emulator = Emulator::new(1);
    let params = RefGemv {
        w: emulator.constant(&tiles),
        x: emulator.constant(&packed),
        s: emulator.constant(&[1.0]),
        y: emulator.uninit(N),
        n: N as u32,
        k: K as u32,
        row_b: N as u32,
        row_c: N as u32,
        scale_a: 1.0,
        scale_b: 1.0,
        scale_c: 1.0,
    };
    emulator.launch(&RefGemv::launch(N), &params)?;
    ensure!(
        emulator.read(params.y)? == expected,
        "the emulator's result is wrong"
    );
    println!("emulator: {N} x {K}, every sum as expected");
    on_gpu(&tiles, &packed, &expected)
}

#[cfg(feature = "cuda")]
fn on_gpu(tiles: &[u32], packed: &[u32], expected: &[u16]) -> anyhow::Result<()> {
    use bitnet_cuda::{Gpu, Reporting};

    let gpu = match Gpu::with_bench(0, Reporting::EachLaunch) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("no GPU: {error}");
            return Ok(());
        }
    };
    let stream = gpu.stream()?;
    let w = stream.upload_new("the weights", tiles)?;
    let x = stream.upload_new("the activations", packed)?;
    let s = stream.upload_new("the scale", &[1.0_f32])?;
    let y = gpu.alloc::<u16>("the result", N)?;
    let params = RefGemv {
        w: w.global(),
        x: x.global(),
        s: s.global(),
        y: y.global(),
        n: N as u32,
        k: K as u32,
        row_b: N as u32,
        row_c: N as u32,
        scale_a: 1.0,
        scale_b: 1.0,
        scale_c: 1.0,
    };
    // SAFETY: the buffers have the lengths that the kernel's documentation asks for, and live until the download is done.
    unsafe { stream.launch(&params, RefGemv::launch(N))? };
    ensure!(stream.download_all(&y)? == expected, "the GPU's result is wrong");
    println!("{}: {N} x {K}, every sum as expected", gpu.properties().name);
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &[u32], _: &[u32], _: &[u16]) -> anyhow::Result<()> {
    println!("no GPU: built without the feature `cuda`");
    Ok(())
}
