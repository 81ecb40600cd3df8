//! Fused operations, as methods.

use std::sync::Arc;

use super::op::{Attention, Convolution, Experts, NormKind, Op};
use super::{
    Activation, AttentionShape, KeysValues, QueryRow, RopeStyle, Tensor, TensorError, Value, Weight, apply, apply_one,
    eager, shape,
};

type Result<T> = std::result::Result<T, TensorError>;

/// A linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[n, k]`
    pub weight: Tensor,
    /// `[n]`
    pub bias: Option<Tensor>,
}

/// Cosines and sines of the turns of some tokens: `[tokens, rotated / 2]` each.
#[derive(Clone, Debug)]
pub struct Angles {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Tensor {
    /// `x weight^T + bias`: `[.., k]` to `[.., n]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn linear(&self, layer: &Linear) -> Result<Self> {
        let [out] = self.linears([layer])?;
        Ok(out)
    }

    /// Several layers of one input in one go, in their order.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn linears<const N: usize>(&self, layers: [&Linear; N]) -> Result<[Self; N]> {
        let mut args = vec![self];
        for layer in layers {
            args.push(&layer.weight);
            args.extend(&layer.bias);
        }
        let biases = layers.iter().map(|layer| layer.bias.is_some()).collect();
        let outs = apply(Op::Linear { biases }, &args)?;
        outs.try_into().map_err(|outs: Vec<Self>| shape("linear", format!("{N} results"), &[outs.len()]))
    }

    /// Rows of this table: `[columns]` for each of `ids`, which are whole.
    ///
    /// # Errors
    ///
    /// When an id is outside the table.
    pub fn embedding(&self, ids: &Self) -> Result<Self> {
        self.gather(0, ids)
    }

    /// Divided by the root of the mean square of the last dimension, then times `weight`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn rms_norm(&self, weight: Option<&Self>, eps: f32) -> Result<Self> {
        self.norm(NormKind::RootMeanSquare, weight, None, eps)
    }

    /// The last dimension to mean 0 and variance 1, then times `weight` and plus `bias`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn layer_norm(&self, weight: Option<&Self>, bias: Option<&Self>, eps: f32) -> Result<Self> {
        self.norm(NormKind::Layer, weight, bias, eps)
    }

    /// A norm of the last dimension.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn norm(&self, kind: NormKind, weight: Option<&Self>, bias: Option<&Self>, eps: f32) -> Result<Self> {
        let op = Op::Norm { kind, eps, weight: weight.is_some(), bias: bias.is_some() };
        apply_one(op, &[Some(self), weight, bias].into_iter().flatten().collect::<Vec<_>>())
    }

    /// Each group of channels to mean 0 and variance 1, then times `weight` and plus `bias`. x: `[batch, channels, ..]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn group_norm(&self, groups: usize, affine: Option<(&Self, &Self)>, eps: f32) -> Result<Self> {
        let op = Op::GroupNorm { groups, eps, affine: affine.is_some() };
        match affine {
            Some((weight, bias)) => apply_one(op, &[self, weight, bias]),
            None => apply_one(op, &[self]),
        }
    }

    /// Through an activation.
    ///
    /// # Errors
    ///
    /// When candle fails.
    pub fn activate(&self, activation: Activation) -> Result<Self> {
        if activation == Activation::Identity { Ok(self.clone()) } else { apply_one(Op::Activate(activation), &[self]) }
    }

    /// `activation(self) * up`.
    ///
    /// # Errors
    ///
    /// When the shapes differ.
    pub fn gated(&self, activation: Activation, up: &Self) -> Result<Self> {
        apply_one(Op::Gated(activation), &[self, up])
    }

    /// The same with a limit: `activation(min(self, limit)) * (min(max(up, -limit), limit) + 1)` (`GptOssExperts`), and
    /// without one [`Self::gated`].
    ///
    /// # Errors
    ///
    /// When the shapes differ.
    pub fn gated_within(&self, limit: Option<f32>, activation: Activation, up: &Self) -> Result<Self> {
        match limit {
            None => self.gated(activation, up),
            Some(limit) => self.min(&self.like(limit)?)?.gated(activation, &up.clamp(-limit, limit)?.shift(1.0)?),
        }
    }

    /// To a sum of 1 along a dimension.
    ///
    /// # Errors
    ///
    /// When there is no such dimension.
    pub fn softmax(&self, axis: isize) -> Result<Self> {
        let axis = self.axis("softmax", axis)?;
        apply_one(Op::Softmax { axis }, &[self])
    }

    /// Turns the heads of `[tokens, heads * head]` by their angles.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn rope(&self, angles: &Angles, head: usize, style: RopeStyle) -> Result<Self> {
        apply_one(Op::Rope { head, style }, &[self, &angles.cos, &angles.sin])
    }

    /// Attends with `self` as queries; shapes stand at [`Attention`].
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn attention(&self, attention: Attention, to: &AttentionInputs<'_>) -> Result<Self> {
        let mut args = vec![self, to.keys, to.values, to.query_positions, to.key_positions];
        args.extend(to.sinks);
        args.extend(to.bias);
        let attention = Attention { sinks: to.sinks.is_some(), bias: !to.bias.is_empty(), ..attention };
        apply_one(Op::Attention(attention), &args)
    }

    /// Attends causally, with `self` as queries, to keys and values that are kept in pages:
    /// `[queries, heads * head]` to `[queries, heads * value_head]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit, a sequence does not hold the positions of its queries, or the tensor is recorded.
    pub fn attention_paged(
        &self,
        shape: &AttentionShape,
        queries: &[QueryRow],
        sequences: &[KeysValues<'_>],
        sinks: Option<&Self>,
    ) -> Result<Self> {
        eager::attention_paged(self, shape, queries, sequences, sinks)
    }

    /// A convolution: `[batch, channels, space..]` to `[batch, outputs, space..]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn convolution(&self, conv: &Convolution, layer: &Linear) -> Result<Self> {
        let conv = Convolution { bias: layer.bias.is_some(), ..conv.clone() };
        apply_one(
            Op::Convolution(conv),
            &[Some(self), Some(&layer.weight), layer.bias.as_ref()].into_iter().flatten().collect::<Vec<_>>(),
        )
    }

    /// A transposed convolution: `[batch, channels, space..]` to `[batch, outputs, space..]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn convolution_transposed(&self, conv: &Convolution, layer: &Linear) -> Result<Self> {
        let conv = Convolution { bias: layer.bias.is_some(), ..conv.clone() };
        apply_one(
            Op::ConvolutionTransposed(conv),
            &[Some(self), Some(&layer.weight), layer.bias.as_ref()].into_iter().flatten().collect::<Vec<_>>(),
        )
    }

    /// Through some experts each: `[tokens, hidden]`, at places `[tokens, chosen]`, to `[tokens, chosen, hidden]`.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn experts(&self, experts: Experts, places: &Self, weights: &[Tensor]) -> Result<Self> {
        apply_one(Op::Experts(experts), &[self, places].into_iter().chain(weights).collect::<Vec<_>>())
    }

    /// The weight that this tensor is, as it is stored.
    pub fn as_stored(&self) -> Option<&Arc<Weight>> {
        match self.value() {
            Value::Stored(weight) => Some(weight),
            _ => None,
        }
    }
}

/// What queries attend to.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// `[keys, kv_heads * head]`
    pub keys: &'a Tensor,
    /// `[keys, kv_heads * value_head]`
    pub values: &'a Tensor,
    /// Whole `[queries]`
    pub query_positions: &'a Tensor,
    /// Whole `[keys]`; below zero where absent.
    pub key_positions: &'a Tensor,
    /// `[heads]`
    pub sinks: Option<&'a Tensor>,
    /// Of each sequence `[heads or 1, queries, keys]`, or none.
    pub bias: &'a [Tensor],
}
