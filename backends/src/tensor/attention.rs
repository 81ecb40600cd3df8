//! Attention over kept keys and values.

use crate::cpu::Cpu;

use super::{AttentionShape, Engine, KeysValues, Op, QueryRow, Tensor, TensorError, apply_one, shape};

impl Tensor {
    /// Attends with `self` as queries: `[queries, heads * head]` to the same shape. A query that sees no position at all,
    /// because those it might see are absent, gives zeros.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit, or a sequence does not hold the positions of its queries.
    pub fn attention(
        &self,
        engine: &Engine,
        shape: &AttentionShape,
        queries: &[QueryRow],
        sequences: &[KeysValues<'_>],
    ) -> Result<Self, TensorError> {
        apply_one(engine, &Op::Attention { shape, queries, sequences }, &[self])
    }
}

pub(super) fn attention(
    cpu: &Cpu,
    q: &Tensor,
    sizes: &AttentionShape,
    queries: &[QueryRow],
    sequences: &[KeysValues<'_>],
) -> Result<Tensor, TensorError> {
    let (tokens, width) = q.matrix("attention")?;
    let grouped = sizes.kv_heads > 0 && sizes.heads.is_multiple_of(sizes.kv_heads);
    if !grouped || width != sizes.heads * sizes.head || tokens != queries.len() {
        let expected = format!("[{}, {} * {}] in {} groups", queries.len(), sizes.heads, sizes.head, sizes.kv_heads);
        return Err(shape("attention", expected, q.dims()));
    }
    for query in queries {
        let needed = (query.position + 1) * sizes.kv_heads * sizes.head;
        let held = sequences.get(query.sequence).map_or(0, |kept| kept.keys.len().min(kept.values.len()));
        if held < needed {
            return Err(shape("attention", format!("{needed} kept keys and values"), &[held]));
        }
    }
    let mut out = vec![0.0; tokens * width];
    q.read(|q| cpu.attention(sizes, q, queries, sequences, &mut out))?;
    Tensor::new(out, &[tokens, width])
}
