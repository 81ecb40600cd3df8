//! Attention of everything to everything, for sequences of one length each: images, clips of audio, series.

use accel_backends::tensor::{Attention, AttentionInputs, AttentionShape, Segment, Tensor, TensorError};

/// Heads without anything else: scores scaled by the root of a head's elements.
pub fn plain_heads(heads: usize, head: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads: heads,
        head,
        value_head: head,
        scale: 1.0 / (head as f32).sqrt(),
        softcap: None,
        window: None,
    }
}

/// Queries `[batch, queries, heads * head]` attend to keys and values `[batch, keys, kv_heads * head]`, but for those of each
/// sequence that are absent; `absent` is empty where none is.
///
/// # Errors
///
/// When the shapes do not fit.
pub fn attend(
    shape: &AttentionShape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    absent: &[Vec<bool>],
) -> Result<Tensor, TensorError> {
    let [batch, queries, width] = q.sizes()?;
    let keys = k.dim(1)?;
    let hidden = |row: usize, key: usize| absent.get(row).and_then(|row| row.get(key)).is_some_and(|&absent| absent);
    let positions = (0..batch).flat_map(|row| (0..keys).map(move |key| (row, key)));
    let key_positions = positions.map(|(row, key)| if hidden(row, key) { -1 } else { key as i64 }).collect();
    let query_positions = (0..batch).flat_map(|_| 0..queries as i64).collect();
    let attention = Attention {
        shape: *shape,
        causal: false,
        segments: vec![Segment { queries, keys }; batch],
        sinks: false,
        bias: false,
    };
    let out = q.reshape(&[batch * queries, width])?.attention(
        attention,
        &AttentionInputs {
            keys: &k.flatten(0, 1)?,
            values: &v.flatten(0, 1)?,
            query_positions: &Tensor::whole(q.engine(), query_positions, &[batch * queries])?,
            key_positions: &Tensor::whole(q.engine(), key_positions, &[batch * keys])?,
            sinks: None,
            bias: &[],
        },
    )?;
    out.reshape(&[batch, queries, shape.heads * shape.value_head])
}
