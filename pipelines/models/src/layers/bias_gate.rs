//! Gates that each token's own state opens for what distance adds (WavLM, <https://arxiv.org/abs/2110.13900>).

use accel_backends::tensor::{Linear, Tensor, TensorError};

use crate::ModelError;
use crate::cache::Row;
use crate::rules::Loader;

/// The gates of an attention with their weights.
#[derive(Debug)]
pub struct BiasGate {
    name: String,
    heads: usize,
    head: usize,
    layer: Linear,
    constant: Tensor,
}

/// Elements of two gates, each the sum of half of them.
const PARTS: usize = 8;

impl BiasGate {
    /// Reads the parts `gate` and `gate_constant` of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, heads: usize, head: usize) -> Result<Self, ModelError> {
        let layer = loader.linear(&format!("{name}.gate"), PARTS, head, true)?;
        let constant = loader.tensor(&format!("{name}.gate_constant"), &[1, heads, 1, 1])?;
        let constant = constant.to_vec().and_then(|values| Tensor::new(loader.engine, values, &[heads]));
        let constant = constant.map_err(ModelError::at(loader.name(name)))?;
        Ok(Self { name: loader.name(name), heads, head, layer, constant })
    }

    /// What distance adds to the scores of each row, `[heads, len, past + len]`, by as much as its tokens let through.
    /// x: `[tokens, heads * head]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn gated(&self, x: &Tensor, bias: &[Tensor], rows: &[Row]) -> Result<Vec<Tensor>, ModelError> {
        let run = || -> Result<Vec<Tensor>, TensorError> {
            let tokens = x.dim(0)?;
            let parts = x.reshape(&[tokens, self.heads, self.head])?.linear(&self.layer)?;
            let gates = parts.reshape(&[tokens, self.heads, 2, PARTS / 2])?.sum(&[-1])?.sigmoid()?;
            let gate = |place: usize| gates.at(2, place)?.squeeze(-1);
            let open = gate(0)?.mul(&gate(1)?.mul(&self.constant)?.shift(-1.0)?)?.shift(2.0)?.transpose(0, 1)?;
            let mut first = 0;
            let mut all = Vec::with_capacity(bias.len());
            for (row, bias) in rows.iter().zip(bias) {
                all.push(open.narrow(1, first, row.len)?.unsqueeze(2)?.mul(bias)?);
                first += row.len;
            }
            Ok(all)
        };
        run().map_err(ModelError::at(&self.name))
    }
}
