//! The gated feed-forward part (<https://arxiv.org/abs/2002.05202>; `LlamaMLP`).

use accel_backends::tensor::{Engine, Linear, Tensor};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::{Activation, MlpSpec};

/// A gated feed-forward part with its weights.
#[derive(Debug)]
pub struct Mlp {
    name: String,
    activation: Activation,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    /// Reads the part of that name.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, name: &str, spec: &MlpSpec, hidden: usize) -> Result<Self, ModelError> {
        Ok(Self {
            name: name.to_owned(),
            activation: spec.activation,
            gate: loader.linear(&format!("{name}.gate"), spec.inner, hidden, spec.bias)?,
            up: loader.linear(&format!("{name}.up"), spec.inner, hidden, spec.bias)?,
            down: loader.linear(&format!("{name}.down"), hidden, spec.inner, spec.bias)?,
        })
    }

    /// x: `[tokens, hidden]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, engine: &Engine, x: &Tensor) -> Result<Tensor, ModelError> {
        let run = || {
            let [gate, up] = x.linears(engine, [&self.gate, &self.up])?;
            gate.gated(engine, self.activation, &up)?.linear(engine, &self.down)
        };
        run().map_err(ModelError::at(&self.name))
    }
}
