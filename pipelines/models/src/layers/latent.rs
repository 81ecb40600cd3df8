//! Latent attention: queries, and keys with values, each from a narrow state; one turned key for all heads
//! (<https://arxiv.org/abs/2405.04434>).

use accel_backends::tensor::{AttentionShape, Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::LayerState;
use crate::layers::attention::{Core, Pass};
use crate::layers::norm::Norm;
use crate::rules::Loader;
use crate::spec::{LatentSpec, NormSpec};

/// Latent attention with its weights.
#[derive(Debug)]
pub struct Latent {
    core: Core,
    spec: LatentSpec,
    queries: Queries,
    kv_narrow: Linear,
    kv_norm: Norm,
    kv_wide: Linear,
    out: Linear,
}

#[derive(Debug)]
enum Queries {
    Direct(Linear),
    Narrow { narrow: Linear, norm: Norm, wide: Linear },
}

impl Latent {
    /// Reads the attention of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &LatentSpec, hidden: usize) -> Result<Self, ModelError> {
        let at = |part: &str| format!("{name}.{part}");
        let head = spec.plain + spec.turned;
        let wide = spec.heads * head;
        let norm = NormSpec::rms(spec.norm_eps);
        let queries = match spec.query_rank {
            None => Queries::Direct(loader.linear(&at("q"), wide, hidden, false)?),
            Some(rank) => Queries::Narrow {
                narrow: loader.linear(&at("q_narrow"), rank, hidden, spec.bias)?,
                norm: Norm::load(loader, &at("q_norm"), &norm, rank)?,
                wide: loader.linear(&at("q_wide"), wide, rank, false)?,
            },
        };
        let shape = AttentionShape {
            scale: spec.scale,
            value_head: spec.value_head,
            ..AttentionShape::plain(spec.heads, head)
        };
        Ok(Self {
            core: Core { name: loader.name(name), shape, sinks: None },
            queries,
            kv_narrow: loader.linear(&at("kv_narrow"), spec.kv_rank + spec.turned, hidden, spec.bias)?,
            kv_norm: Norm::load(loader, &at("kv_norm"), &norm, spec.kv_rank)?,
            kv_wide: loader.linear(&at("kv_wide"), spec.heads * (spec.plain + spec.value_head), spec.kv_rank, false)?,
            out: loader.linear(&at("out"), hidden, spec.heads * spec.value_head, spec.bias)?,
            spec: spec.clone(),
        })
    }

    /// x: `[tokens, hidden]` to the same shape; keys and values go into the state.
    ///
    /// # Errors
    ///
    /// When the shape or the state does not fit.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>, state: Option<&mut LayerState>) -> Result<Tensor, ModelError> {
        let at = || ModelError::at(&self.core.name);
        let q = match &self.queries {
            Queries::Direct(layer) => x.linear(layer).map_err(at())?,
            Queries::Narrow { narrow, norm, wide } => {
                norm.forward(&x.linear(narrow).map_err(at())?)?.linear(wide).map_err(at())?
            }
        };
        let spec = &self.spec;
        let narrow = x.linear(&self.kv_narrow).and_then(|x| x.split(1, &[spec.kv_rank, spec.turned])).map_err(at())?;
        let wide = self.kv_norm.forward(&narrow[0])?.linear(&self.kv_wide).map_err(at())?;
        let [q, k, v] = self.heads(&q, &narrow[1], &wide, pass).map_err(at())?;
        self.core.forward(&q, k, v, pass, pass.bias, state)?.linear(&self.out).map_err(at())
    }

    /// Queries, keys and values of all heads, the turned parts last in each.
    fn heads(&self, q: &Tensor, turned: &Tensor, wide: &Tensor, pass: &Pass<'_>) -> Result<[Tensor; 3], TensorError> {
        let spec = &self.spec;
        let (tokens, heads) = (q.dims()[0], spec.heads);
        let (angles, style) = &pass.angles[spec.rope];
        let q = q.reshape(&[tokens, heads, spec.plain + spec.turned])?.split(2, &[spec.plain, spec.turned])?;
        let q_turned = q[1].reshape(&[tokens, heads * spec.turned])?.rope(angles, spec.turned, *style)?;
        let k_turned = turned.rope(angles, spec.turned, *style)?.unsqueeze(1)?;
        let kv = wide.reshape(&[tokens, heads, spec.plain + spec.value_head])?;
        let kv = kv.split(2, &[spec.plain, spec.value_head])?;
        let turned = [tokens, heads, spec.turned];
        let joined = |plain: &Tensor, turned: Tensor| Tensor::concat(&[plain.clone(), turned], 2)?.flatten(1, 2);
        Ok([
            joined(&q[0], q_turned.reshape(&turned)?)?,
            joined(&kv[0], k_turned.broadcast(&turned)?)?,
            kv[1].flatten(1, 2)?,
        ])
    }
}
