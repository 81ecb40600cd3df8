//! Linear layers.

use crate::cpu::{Cpu, Product};

use super::{Engine, Op, Tensor, TensorError, Weight, apply, apply_one, shape};

/// A linear layer: a weight `[n, k]` and perhaps a bias `[n]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[n, k]`
    pub weight: std::sync::Arc<Weight>,
    /// `[n]`
    pub bias: Option<Vec<f32>>,
}

impl Tensor {
    /// `x * weight^T + bias`: `[tokens, k]` to `[tokens, n]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn linear(&self, engine: &Engine, layer: &Linear) -> Result<Self, TensorError> {
        apply_one(engine, &Op::Linear { layers: &[layer] }, &[self])
    }

    /// Several layers of one input in one go, in their order.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn linears<const N: usize>(&self, engine: &Engine, layers: [&Linear; N]) -> Result<[Self; N], TensorError> {
        let outs = apply(engine, &Op::Linear { layers: &layers }, &[self])?;
        outs.try_into().map_err(|outs: Vec<Self>| shape("linear", format!("{N} results"), &[outs.len()]))
    }
}

pub(super) fn linear(cpu: &Cpu, x: &Tensor, layers: &[&Linear]) -> Result<Vec<Tensor>, TensorError> {
    let (tokens, k) = x.matrix("linear")?;
    if tokens == 0 {
        return Err(shape("linear", "at least one token", x.dims()));
    }
    let mut outs = Vec::with_capacity(layers.len());
    for layer in layers {
        let n = layer.weight.rows();
        if layer.weight.columns() != k {
            return Err(shape("linear", format!("[tokens, {}]", layer.weight.columns()), x.dims()));
        }
        if layer.bias.as_ref().is_some_and(|bias| bias.len() != n) {
            return Err(shape("linear", format!("a bias of {n}"), &[layer.bias.as_ref().map_or(0, Vec::len)]));
        }
        outs.push(vec![0.0; tokens * n]);
    }
    x.read(|x| {
        let mut products: Vec<Product<'_>> = layers
            .iter()
            .zip(&mut outs)
            .map(|(layer, out)| Product { weight: &layer.weight, bias: layer.bias.as_deref(), out })
            .collect();
        cpu.linear(x, tokens, &mut products);
    })?;
    layers.iter().zip(outs).map(|(layer, out)| Tensor::new(out, &[tokens, layer.weight.rows()])).collect()
}
