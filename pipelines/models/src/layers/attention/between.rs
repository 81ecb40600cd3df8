//! Attention whose queries, keys and values are made of different things, image by image.

use accel_backends::tensor::{Attention as Op, AttentionInputs, Segment, Tensor, TensorError};

use super::Attention;
use crate::ModelError;

impl Attention {
    /// Queries attend to all keys of their image that are not absent. queries: `[batch, n, hidden]`; keys and values:
    /// `[batch, m, ..]`; absent: of each image which keys no query sees, or nothing. To `[batch, n, hidden]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn between(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        absent: &[Vec<bool>],
    ) -> Result<Tensor, ModelError> {
        let run = || -> Result<Tensor, TensorError> {
            let ([batch, n, _], m) = (queries.sizes()?, keys.dim(1)?);
            let flat = |x: &Tensor| x.reshape(&[x.dim(0)? * x.dim(1)?, x.dim(2)?]);
            let (q, k, v) =
                (flat(queries)?.linear(&self.q)?, flat(keys)?.linear(&self.k)?, flat(values)?.linear(&self.v)?);
            let hidden = |image: usize, key: usize| absent.get(image).and_then(|of| of.get(key)) == Some(&true);
            let places = (0..batch).flat_map(|image| (0..m).map(move |key| (image, key)));
            let k_positions = places.map(|(image, key)| if hidden(image, key) { -1 } else { key as i64 }).collect();
            let q_positions = (0..batch).flat_map(|_| 0..n as i64).collect();
            let attended = q.attention(
                Op {
                    shape: self.core.shape,
                    causal: false,
                    segments: vec![Segment { queries: n, keys: m }; batch],
                    sinks: false,
                    bias: false,
                },
                &AttentionInputs {
                    keys: &k,
                    values: &v,
                    query_positions: &Tensor::whole(q.engine(), q_positions, &[batch * n])?,
                    key_positions: &Tensor::whole(q.engine(), k_positions, &[batch * m])?,
                    sinks: None,
                    bias: &[],
                },
            )?;
            let out = attended.linear(&self.out)?;
            let width = out.dim(1)?;
            out.reshape(&[batch, n, width])
        };
        run().map_err(ModelError::at(&self.core.name))
    }
}
