//! SparseMixer, as models use it once they are trained: experts are chosen one after the other, and each is weighed among
//! those whose scores are near its own (<https://arxiv.org/abs/2409.12136>; `sparsemixer` in
//! `transformers/models/phimoe/modeling_phimoe.py`).

use accel_backends::tensor::{Tensor, TensorError};

/// Weights and whole places, `[tokens, chosen]` each. scores: `[tokens, experts]`.
pub fn sparse_mixer(scores: &Tensor, chosen: usize, jitter: f32) -> Result<(Tensor, Tensor), TensorError> {
    let experts = scores.dim(1)?;
    let numbers = Tensor::whole(scores.engine(), (0..experts as i64).collect(), &[1, experts])?;
    let out = scores.like(f32::MIN)?;
    let mut left = scores.clone();
    let (mut weights, mut places) = (Vec::with_capacity(chosen), Vec::with_capacity(chosen));
    for _ in 0..chosen {
        let (best, place) = left.top_k(1)?;
        // Distances are parts of the larger of the two scores, be the other one chosen already.
        let reach = scores.abs()?.max(&best)?.scale(2.0 * jitter)?;
        let near = best.sub(scores)?.less_equal(&reach)?;
        weights.push(near.select(&left, &out)?.softmax(-1)?.take_along(-1, &place)?);
        left = place.equal(&numbers)?.select(&out, &left)?;
        places.push(place);
    }
    Ok((Tensor::concat(&weights, 1)?, Tensor::concat(&places, 1)?))
}
