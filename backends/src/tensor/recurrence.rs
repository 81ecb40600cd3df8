//! Recurrences, as methods, as kernels and as primitives: what goes through the tokens of one sequence in their order.

use super::op::{Op, Scan};
use super::{Engine, Linear, Tensor, TensorError, apply, shape};

type Result<T> = std::result::Result<T, TensorError>;

/// What a scan takes beside `x`; shapes stand at [`Scan`].
#[derive(Clone, Copy, Debug)]
pub struct ScanInputs<'a> {
    /// `[tokens, heads]`
    pub step: &'a Tensor,
    /// `[heads, places or 1]`
    pub rate: &'a Tensor,
    /// `[tokens, groups * places]`
    pub input: &'a Tensor,
    /// `[tokens, groups * places]`
    pub output: &'a Tensor,
    /// `[heads]`
    pub skip: &'a Tensor,
}

impl Tensor {
    /// A convolution of each channel by itself, in which a token sees those before it; `tail` is what the tokens before
    /// the first were. x: `[tokens, channels]`; tail: `[taps - 1, channels]`; weight: `[taps, channels]`; bias:
    /// `[channels]`. The results: `[tokens, channels]`, and the tail of the next tokens.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn causal_convolution(&self, tail: &Self, layer: &Linear) -> Result<(Self, Self)> {
        let mut args = vec![self, tail, &layer.weight];
        args.extend(&layer.bias);
        two(apply(Op::CausalConvolution { bias: layer.bias.is_some() }, &args)?)
    }

    /// Goes through a state space: `[tokens, heads * head]` to the same shape, and the state after the last token.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn scan(&self, scan: Scan, inputs: &ScanInputs<'_>, state: &Self) -> Result<(Self, Self)> {
        let ScanInputs { step, rate, input, output, skip } = *inputs;
        two(apply(Op::Scan(scan), &[self, step, rate, input, output, skip, state])?)
    }

    /// Means of values, weighed by `e^key` (`self`) and by how long ago they were: each step back adds `decay`, which is
    /// below 0, to the exponent, and the token's own value has `first` added instead
    /// (<https://arxiv.org/abs/2305.13048>). key, value: `[tokens, width]`; decay, first: `[width]`; state: `[3,
    /// width]`, the sums of weighed values and of weights, and the exponent that both are to be raised by. The results:
    /// `[tokens, width]`, and the state after the last token.
    ///
    /// # Errors
    ///
    /// When the shapes do not fit.
    pub fn wkv(&self, value: &Self, decay: &Self, first: &Self, state: &Self) -> Result<(Self, Self)> {
        two(apply(Op::Wkv, &[self, value, decay, first, state])?)
    }
}

fn two(outs: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
    let [out, carried] =
        <[Tensor; 2]>::try_from(outs).map_err(|outs| shape("recurrence", "two results", &[outs.len()]))?;
    Ok((out, carried))
}

/// A recurrence by its kernel.
pub(super) fn eager(engine: &Engine, op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let values = args.iter().map(|arg| arg.to_vec()).collect::<Result<Vec<_>>>()?;
    let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    let carried_at = if matches!(op, Op::CausalConvolution { .. }) { 1 } else { args.len() - 1 };
    let (mut out, mut carried) = (vec![0.0; args[0].count()], values[carried_at].to_vec());
    let kernels = engine.kernels();
    match (op, &values[..]) {
        (Op::CausalConvolution { .. }, &[x, _, weight, ref bias @ ..]) => {
            kernels.causal_convolution(x, weight, bias.first().copied(), &mut carried, &mut out);
        }
        (Op::Scan(scan), &[x, step, rate, input, output, skip, _]) => {
            let sizes = scan.sizes(args).ok_or_else(|| shape("scan", "shapes that fit", args[0].dims()))?;
            let parts = crate::cpu::ScanParts { x, step, rate, input, output, skip };
            kernels.scan(*scan, sizes, &parts, &mut carried, &mut out);
        }
        (Op::Wkv, &[key, value, decay, first, _]) => {
            kernels.wkv([key, value], [decay, first], &mut carried, &mut out);
        }
        _ => return Err(shape("recurrence", "one of them", &[args.len()])),
    }
    Ok(vec![Tensor::new(engine, out, args[0].dims())?, Tensor::new(engine, carried, args[carried_at].dims())?])
}

/// A sum over the taps, each a slice of the tail and the tokens after it.
pub(super) fn lower_causal_convolution(args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let &[x, tail, weight, ref bias @ ..] = args else { return Err(shape("causal_convolution", "three tensors", &[])) };
    let (tokens, taps) = (x.dims()[0], weight.dims()[0]);
    let all = Tensor::concat(&[tail.clone(), x.clone()], 0)?;
    let mut sum = all.narrow(0, 0, tokens)?.mul(&weight.narrow(0, 0, 1)?)?;
    for tap in 1..taps {
        sum = sum.add(&all.narrow(0, tap, tokens)?.mul(&weight.narrow(0, tap, 1)?)?)?;
    }
    if let [bias] = bias {
        sum = sum.add(bias)?;
    }
    Ok(vec![sum, all.narrow(0, tokens, taps - 1)?])
}

/// Token by token; what does not depend on the state is worked out for all tokens at once.
pub(super) fn lower_scan(scan: Scan, args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let sizes = scan.sizes(args).ok_or_else(|| shape("scan", "shapes that fit", &[]))?;
    let &[x, step, rate, input, output, skip, state] = args else { return Err(shape("scan", "seven tensors", &[])) };
    let ((heads, places), tokens, head) = (sizes, x.dims()[0], scan.head);
    // [tokens, heads, 1, places]: the heads of a group share theirs.
    let shared = |of_group: &Tensor| {
        let each = heads / scan.groups;
        let apart = of_group.reshape(&[tokens, scan.groups, 1, 1, places])?;
        apart.broadcast(&[tokens, scan.groups, each, 1, places])?.reshape(&[tokens, heads, 1, places])
    };
    let steps = step.reshape(&[tokens, heads, 1, 1])?;
    let xs = x.reshape(&[tokens, heads, head, 1])?;
    let keep = steps.mul(&rate.unsqueeze(1)?)?.exp()?;
    let added = steps.mul(&xs)?.mul(&shared(input)?)?;
    let mut now = state.reshape(&[heads, head, places])?;
    let mut states = Vec::with_capacity(tokens);
    for token in 0..tokens {
        now = keep.at(0, token)?.mul(&now)?.add(&added.at(0, token)?)?;
        states.push(now.clone());
    }
    let sums = Tensor::stack(&states, 0)?.mul(&shared(output)?)?.sum(&[-1])?;
    let out = sums.add(&xs.mul(&skip.reshape(&[heads, 1, 1])?)?)?;
    Ok(vec![out.reshape(x.dims())?, now.reshape(state.dims())?])
}

/// Token by token.
pub(super) fn lower_wkv(args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let &[key, value, decay, first, state] = args else { return Err(shape("wkv", "five tensors", &[])) };
    let [mut values, mut weights, mut power] = state.chunks::<3>(0)?;
    let mut outs = Vec::with_capacity(key.dims()[0]);
    for token in 0..key.dims()[0] {
        let (key, value) = (key.narrow(0, token, 1)?, value.narrow(0, token, 1)?);
        let (sum, weight, _) = joined(&values, &weights, &power, &key.add(first)?, &value)?;
        outs.push(sum.div(&weight)?);
        (values, weights, power) = joined(&values, &weights, &power.add(decay)?, &key, &value)?;
    }
    Ok(vec![Tensor::concat(&outs, 0)?, Tensor::concat(&[values, weights, power], 0)?])
}

/// Sums whose exponent is `power` and one value whose exponent is `key`, with the larger exponent for both.
fn joined(
    values: &Tensor,
    weights: &Tensor,
    power: &Tensor,
    key: &Tensor,
    value: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let largest = power.max(key)?;
    let (before, now) = (power.sub(&largest)?.exp()?, key.sub(&largest)?.exp()?);
    let values = before.mul(values)?.add(&now.mul(value)?)?;
    Ok((values, before.mul(weights)?.add(&now)?, largest))
}
