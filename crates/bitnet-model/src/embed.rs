//! Texts as vectors: what embedding models compute.

use crate::error::{Error, Result};
use crate::session::Session;
use crate::source::Pooling;
use crate::transformer::{Backend, Want};

/// The vector of a text whose tokens are `ids`, (d_model), of length 1: the hidden states after the final norm, pooled, divided by
/// their length in double precision.
///
/// # Errors
/// When there are no ids, they do not fit the context or are no tokens of the model, the back end fails, or the vector is zero.
pub fn embed(backend: &mut dyn Backend, ids: &[u32], pooling: Pooling) -> Result<Vec<f32>> {
    if ids.is_empty() {
        return Err(Error::Request("a text without tokens has no embedding".into()));
    }
    let (d_model, at_once) = (backend.spec().config.d_model, backend.spec().max_batch);
    let mut session = Session::new(backend);
    let mut pooled = vec![0.0f64; d_model];
    let n_chunks = ids.len().div_ceil(at_once);
    for (chunk, ids) in ids.chunks(at_once).enumerate() {
        let rows: Vec<usize> = match pooling {
            Pooling::Mean => (0..ids.len()).collect(),
            Pooling::First if chunk == 0 => vec![0],
            Pooling::Last if chunk + 1 == n_chunks => vec![ids.len() - 1],
            _ => Vec::new(),
        };
        let hidden = session.step(&[(0, ids)], Want::Hidden(&rows))?;
        for row in hidden.chunks_exact(d_model) {
            for (sum, &x) in pooled.iter_mut().zip(row) {
                *sum += f64::from(x);
            }
        }
    }
    // The number of vectors that were added makes no difference to the direction.
    let length = pooled.iter().map(|x| x * x).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(Error::Damaged(format!(
            "the vector of the text has length {length}; the weights are damaged"
        )));
    }
    Ok(pooled.into_iter().map(|x| (x / length) as f32).collect())
}
