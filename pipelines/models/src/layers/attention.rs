//! Causal attention with grouped queries (<https://arxiv.org/abs/2305.13245>; `LlamaAttention`).

use accel_backends::tensor::{Angles, AttentionShape, Engine, Linear, QueryRow, RopeStyle, Tensor};

use crate::ModelError;
use crate::cache::{LayerState, Row};
use crate::rules::Loader;
use crate::spec::AttentionSpec;

/// Attention with its weights.
#[derive(Debug)]
pub struct Attention {
    name: String,
    shape: AttentionShape,
    rope: usize,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

/// What one pass tells its attentions.
#[derive(Debug)]
pub struct Pass<'a> {
    /// The rows, one after the other.
    pub rows: &'a [Row],
    /// The query of each token.
    pub queries: &'a [QueryRow],
    /// Which positions of each row's sequence no token sees.
    pub absent: &'a [Vec<bool>],
    /// The angles of each token, for each way of turning.
    pub angles: &'a [(Angles, RopeStyle)],
}

impl Attention {
    /// Reads the attention of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &AttentionSpec, hidden: usize) -> Result<Self, ModelError> {
        let (wide, narrow) = (spec.heads * spec.head, spec.kv_heads * spec.head);
        let shape = AttentionShape {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head: spec.head,
            scale: 1.0 / (spec.head as f32).sqrt(),
            window: spec.window,
        };
        Ok(Self {
            name: name.to_owned(),
            shape,
            rope: spec.rope,
            q: loader.linear(&format!("{name}.q"), wide, hidden, spec.qkv_bias)?,
            k: loader.linear(&format!("{name}.k"), narrow, hidden, spec.qkv_bias)?,
            v: loader.linear(&format!("{name}.v"), narrow, hidden, spec.qkv_bias)?,
            out: loader.linear(&format!("{name}.out"), hidden, wide, spec.out_bias)?,
        })
    }

    /// x: `[tokens, hidden]` to the same shape; keys and values go into the state.
    ///
    /// # Errors
    ///
    /// When the shape or the state does not fit.
    pub fn forward(
        &self,
        engine: &Engine,
        x: &Tensor,
        pass: &Pass<'_>,
        state: &mut LayerState,
    ) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.name);
        let [q, k, v] = x.linears(engine, [&self.q, &self.k, &self.v]).map_err(at())?;
        let (angles, style) = &pass.angles[self.rope];
        let q = q.rope(engine, angles, self.shape.head, *style).map_err(at())?;
        let k = k.rope(engine, angles, self.shape.head, *style).map_err(at())?;
        state.keep(pass.rows, &k, &v)?;
        let attended =
            q.attention(engine, &self.shape, pass.queries, &state.kept(pass.rows, pass.absent)).map_err(at())?;
        attended.linear(engine, &self.out).map_err(at())
    }
}
