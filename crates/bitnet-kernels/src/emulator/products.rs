//! What one step of the tensor cores adds to a sum: the products of 32 bytes of a row of A and as many of a column of B,
//! whatever these bytes are made of.

/// 256 bits of a row or a column, of which an instruction takes as many at a time.
pub(crate) type Line = [u8; 32];

/// `sum + a b` of signed bytes.
pub(crate) fn signed_bytes(sum: i32, a: &Line, b: &Line) -> i32 {
    let products = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| i32::from(a as i8) * i32::from(b as i8));
    sum + products.sum::<i32>()
}

/// `sum + a b` of bytes without a sign in A and signed ones in B.
pub(crate) fn unsigned_and_signed_bytes(sum: i32, a: &Line, b: &Line) -> i32 {
    let products = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b as i8));
    sum + products.sum::<i32>()
}

/// `sum` and how many ones a row and a column have in common.
pub(crate) fn common_ones(sum: i32, a: &Line, b: &Line) -> i32 {
    let common = a.iter().zip(b).map(|(a, b)| (a & b).count_ones());
    sum + common.sum::<u32>() as i32
}

/// `sum + a b` of 16 bfloat16. The sum of an instruction is one, whatever the order of its products: tensor cores cut off what is
/// below 25 bits of the largest; this rounds.
pub(crate) fn bf16(sum: f32, a: &Line, b: &Line) -> f32 {
    let numbers = |bytes: &Line| -> [f64; 16] {
        core::array::from_fn(|i| {
            f32::from_bits(u32::from_le_bytes([0, 0, bytes[2 * i], bytes[2 * i + 1]])).into()
        })
    };
    let products = numbers(a).into_iter().zip(numbers(b));
    products.fold(f64::from(sum), |sum, (a, b)| sum + a * b) as f32
}
