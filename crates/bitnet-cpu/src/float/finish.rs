//! What becomes of integer sums: scales, residual sums, gates.

use bitnet_layout::Activation;

use super::exp::exp;
use super::isa::Isa;

/// What happens to the old values of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// They are replaced.
    Replace,
    /// The result is added to them.
    Add,
}

/// What becomes of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// They are the output.
    Write(Write),
    /// The first half of the rows of a matrix gates the second.
    Gate(Activation),
}

/// Sums of products of codes with rows of activations, one tile after the other.
#[derive(Clone, Copy)]
pub(crate) struct Sums<'a> {
    /// By tile, `stride` apart, then row of activations.
    pub(crate) sums: &'a [[i32; 16]],
    /// From the sums of a tile to those of the next.
    pub(crate) stride: usize,
    /// By row of activations, its sum: what the codes, which are ternary values plus 1, add too much.
    pub(crate) sum: &'a [i32],
    /// By row of activations, what a unit is worth.
    pub(crate) inverse: &'a [f32],
    /// By tile, what a unit of each row of weights is worth.
    pub(crate) scales: &'a [[f32; 16]],
    /// By tile after these, the same for the rows that they gate, if they do.
    pub(crate) gated: &'a [[f32; 16]],
    /// What becomes of the products.
    pub(crate) finish: Finish,
}

/// Rows of activations between those that are finished and those whose sums and outputs are asked for meanwhile: they lie in
/// lines far from each other, which no processor foresees.
const AHEAD: usize = 4;

/// `y[t][16 i + r] = (sums[i * stride + t][r] - sum[t]) * (scales[i][r] * inverse[t])`, replaced, added or gated, as long as
/// `y[t]` is.
#[inline(always)]
pub(super) fn finish<I: Isa>(isa: I, job: &Sums<'_>, y: &mut [&mut [f32]]) {
    for t in 0..y.len() {
        if let Some(next) = y.get(t + AHEAD) {
            for line in next.chunks(16) {
                isa.prefetch(&line[0], 0);
            }
        }
        let y = &mut *y[t];
        let (sum, inverse) = (job.sum[t], isa.splat(job.inverse[t]));
        for (i, (scales, y)) in job.scales.iter().zip(y.chunks_mut(16)).enumerate() {
            let sums = &job.sums[i * job.stride + t];
            isa.prefetch(sums, AHEAD * size_of_val(sums));
            let sums = isa.load_i32(sums, sum);
            let mut values = isa.mul(sums, isa.mul(isa.load(scales), inverse));
            if let Finish::Gate(gate) = job.finish {
                let sums = &job.sums[(job.scales.len() + i) * job.stride + t];
                isa.prefetch(sums, AHEAD * size_of_val(sums));
                let sums = isa.load_i32(sums, sum);
                let ups = isa.mul(sums, isa.mul(isa.load(&job.gated[i]), inverse));
                values = gated(isa, gate, values, ups);
            }
            let add = job.finish == Finish::Write(Write::Add);
            if let Some(y) = y.as_mut_array::<16>() {
                isa.store(if add { isa.add(isa.load(y), values) } else { values }, y);
            } else {
                // The last tile of a matrix can be shorter.
                let mut lanes = [0.0; 16];
                isa.store(values, &mut lanes);
                for (y, value) in y.iter_mut().zip(lanes) {
                    *y = if add { *y + value } else { value };
                }
            }
        }
    }
}

#[inline(always)]
fn gated<I: Isa>(isa: I, gate: Activation, gates: I::Lanes, ups: I::Lanes) -> I::Lanes {
    match gate {
        Activation::Relu2 => {
            let gates = isa.relu(gates);
            // A zero is positive, whatever it gates: those are not always multiplied.
            isa.add(isa.mul(isa.mul(gates, gates), ups), isa.splat(0.0))
        }
        Activation::Silu => {
            let mut lanes = [0.0; 16];
            isa.store(gates, &mut lanes);
            for lane in &mut lanes {
                *lane /= 1.0 + exp(-*lane);
            }
            isa.mul(isa.load(&lanes), ups)
        }
    }
}

/// `y = gate(gates) * ups`.
#[inline(always)]
pub(super) fn gate<I: Isa>(isa: I, kind: Activation, gates: &[f32], ups: &[f32], y: &mut [f32]) {
    for ((y, gates), ups) in y.chunks_mut(16).zip(gates.chunks(16)).zip(ups.chunks(16)) {
        let (mut g, mut u) = ([0.0; 16], [0.0; 16]);
        g[..gates.len()].copy_from_slice(gates);
        u[..ups.len()].copy_from_slice(ups);
        let values = gated(isa, kind, isa.load(&g), isa.load(&u));
        isa.store(values, &mut g);
        y.copy_from_slice(&g[..y.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::Portable;
    use super::*;

    #[test]
    fn gates() {
        let mut y = [0.0; 3];
        gate(
            Portable,
            Activation::Relu2,
            &[-2.0, 3.0, 0.5],
            &[1.0, 2.0, -4.0],
            &mut y,
        );
        assert_eq!(y, [0.0, 18.0, -1.0]);
        gate(
            Portable,
            Activation::Silu,
            &[0.0, 1.0, -200.0],
            &[5.0, 2.0, 1.0],
            &mut y,
        );
        assert_eq!((y[0], y[2]), (0.0, 0.0));
        assert!((y[1] - 1.462_117_2).abs() < 1e-6);
        let mut y = [0.0; 17];
        for kind in [Activation::Relu2, Activation::Silu] {
            gate(Portable, kind, &[f32::NAN; 17], &[1.0; 17], &mut y);
            assert!(y.iter().all(|y| y.is_nan()), "a bad number is not hidden");
        }
    }
}
