//! Feed-forward parts (<https://arxiv.org/abs/2002.05202>).

use accel_backends::tensor::{Linear, Tensor};

use crate::ModelError;
use crate::rules::Loader;
use crate::spec::{Activation, MlpSpec};

/// A feed-forward part with its weights.
#[derive(Debug)]
pub struct Mlp {
    name: String,
    activation: Activation,
    limit: Option<f32>,
    gate: Option<Linear>,
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
        let at = |part: &str| format!("{name}.{part}");
        let (inner, bias) = (spec.inner, spec.bias);
        let (gate, up) = if spec.gated && spec.joined {
            let part = |first: usize| loader.rows(&at("gate_up"), [2 * inner, hidden], first..first + inner, bias);
            (Some(part(0)?), part(inner)?)
        } else {
            let gate = spec.gated.then(|| loader.linear(&at("gate"), inner, hidden, bias)).transpose()?;
            (gate, loader.linear(&at("up"), inner, hidden, bias)?)
        };
        let down = loader.linear(&at("down"), hidden, inner, bias)?;
        Ok(Self { name: loader.name(name), activation: spec.activation, limit: spec.limit, gate, up, down })
    }

    /// x: `[.., hidden]` to the same shape.
    ///
    /// # Errors
    ///
    /// When the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let run = || match &self.gate {
            Some(gate) => {
                let [gate, up] = x.linears([gate, &self.up])?;
                gate.gated_within(self.limit, self.activation, &up)?.linear(&self.down)
            }
            None => x.linear(&self.up)?.activate(self.activation)?.linear(&self.down),
        };
        run().map_err(ModelError::at(&self.name))
    }

    /// Its tensors, as [`Tensor::experts`] wants those of one expert.
    pub fn tensors(&self) -> Vec<Tensor> {
        let layers = self.gate.iter().chain([&self.up, &self.down]);
        layers.flat_map(|layer| [Some(layer.weight.clone()), layer.bias.clone()]).flatten().collect()
    }
}
