//! What fused operations are made of: written with the interface of tensors, so that it serves graphs and, where there
//! is no kernel, computing too.

use super::op::{Attention, Convolution, Experts, NormKind, Op};
use super::{Activation, RopeStyle, Tensor, TensorError, recurrence, shape};

type Result<T> = std::result::Result<T, TensorError>;

/// Carries out a fused operation by primitives. The arguments have the shapes that [`Op::infer`] wants.
///
/// # Errors
///
/// When candle fails, or the operation is a primitive.
pub(crate) fn lower(op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let one = match op {
        Op::Linear { biases } => return linear(biases, args),
        Op::Norm { kind, eps, weight, bias } => norm(*kind, *eps, *weight, *bias, args)?,
        Op::GroupNorm { groups, eps, affine } => group_norm(*groups, *eps, *affine, args)?,
        Op::Activate(activation) => activate(*activation, args[0])?,
        Op::Gated(activation) => args[0].activate(*activation)?.mul(args[1])?,
        Op::Softmax { axis } => softmax(args[0], *axis)?,
        Op::Rope { head, style } => rope(*head, *style, args)?,
        Op::Attention(attention) => self::attention(attention, args)?,
        Op::Convolution(conv) => convolution(conv, args)?,
        Op::ConvolutionTransposed(conv) => convolution_transposed(conv, args)?,
        Op::Experts(experts) => self::experts(*experts, args)?,
        Op::CausalConvolution { .. } => return recurrence::lower_causal_convolution(args),
        Op::Scan(scan) => return recurrence::lower_scan(*scan, args),
        Op::Wkv => return recurrence::lower_wkv(args),
        _ => {
            return Err(TensorError::Shape {
                operation: "lower",
                expected: "a fused operation".into(),
                found: op.name().into(),
            });
        }
    };
    Ok(vec![one])
}

fn linear(biases: &[bool], args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let (mut x, vector) = (args[0].clone(), args[0].dims().len() == 1);
    if vector {
        // A product is of matrices.
        x = x.unsqueeze(0)?;
    }
    let mut rest = args[1..].iter();
    let mut outs = Vec::with_capacity(biases.len());
    for bias in biases {
        let weight = rest.next().ok_or_else(|| shape("linear", "a weight", &[]))?;
        let out = x.matmul(&weight.transpose(0, 1)?)?;
        let out = if vector { out.squeeze(0)? } else { out };
        outs.push(match if *bias { rest.next() } else { None } {
            Some(bias) => out.add(bias)?,
            None => out,
        });
    }
    Ok(outs)
}

fn norm(kind: NormKind, eps: f32, weight: bool, bias: bool, args: &[&Tensor]) -> Result<Tensor> {
    let x = args[0];
    let mut out = match kind {
        NormKind::RootMeanSquare => x.div(&x.square()?.mean(&[-1])?.shift(eps)?.sqrt()?)?,
        NormKind::Layer => standardised(x, &[-1], eps)?,
    };
    if weight {
        out = out.mul(args[1])?;
    }
    if bias { out.add(args[1 + usize::from(weight)]) } else { Ok(out) }
}

fn standardised(x: &Tensor, axes: &[isize], eps: f32) -> Result<Tensor> {
    let centred = x.sub(&x.mean(axes)?)?;
    let variance = centred.square()?.mean(axes)?;
    centred.div(&variance.shift(eps)?.sqrt()?)
}

fn group_norm(groups: usize, eps: f32, affine: bool, args: &[&Tensor]) -> Result<Tensor> {
    let x = args[0];
    let (batch, channels) = (x.dims()[0], x.dims()[1]);
    let rest = x.count() / batch.max(1) / groups;
    let out = standardised(&x.reshape(&[batch, groups, rest])?, &[-1], eps)?.reshape(x.dims())?;
    if !affine {
        return Ok(out);
    }
    let mut dims = vec![1; x.dims().len()];
    dims[1] = channels;
    out.mul(&args[1].reshape(&dims)?)?.add(&args[2].reshape(&dims)?)
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::Silu => x.mul(&x.sigmoid()?),
        Activation::Gelu => x.scale(0.5)?.mul(&x.scale(std::f32::consts::FRAC_1_SQRT_2)?.erf()?.shift(1.0)?),
        Activation::GeluClipped => activate(Activation::Gelu, x)?.min(&x.like(10.0)?),
        Activation::GeluTanh => {
            let cube = x.square()?.mul(x)?;
            let inner = x.add(&cube.scale(0.044_715)?)?.scale(SQRT_2_OVER_PI)?;
            x.scale(0.5)?.mul(&inner.tanh()?.shift(1.0)?)
        }
        Activation::GeluQuick => x.mul(&x.scale(1.702)?.sigmoid()?),
        Activation::Relu => x.max(&x.like(0.0)?),
        Activation::Relu2 => x.max(&x.like(0.0)?)?.square(),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => x.sigmoid(),
        Activation::HardSigmoid => x.affine(1.0 / 6.0, 0.5)?.clamp(0.0, 1.0),
        Activation::HardSwish => x.mul(&x.affine(1.0 / 6.0, 0.5)?.clamp(0.0, 1.0)?),
        Activation::Laplace => {
            let apart =
                x.shift(-std::f32::consts::FRAC_1_SQRT_2)?.scale(std::f32::consts::FRAC_1_SQRT_2 / 0.282_095)?;
            apart.erf()?.affine(0.5, 0.5)
        }
        Activation::Softplus => softplus(x),
        Activation::Mish => x.mul(&softplus(x)?.tanh()?),
        Activation::Elu => {
            let zero = x.like(0.0)?;
            let below = x.min(&zero)?.exp()?.shift(-1.0)?;
            zero.less(x)?.select(x, &below)
        }
        Activation::LeakyRelu { hundredths } => x.max(&x.scale(f32::from(hundredths) / 100.0)?),
    }
}

/// `log(1 + e^x)`, in a form that neither overflows nor loses what is small beside 1.
fn softplus(x: &Tensor) -> Result<Tensor> {
    // With `y = 1 + e` as it was rounded, `e log(y) / (y - 1)` is `log(1 + e)` (W. Kahan).
    let e = x.abs()?.neg()?.exp()?;
    let y = e.shift(1.0)?;
    let one = y.like(1.0)?;
    let rest = y.sub(&one)?.max(&y.like(f32::MIN_POSITIVE)?)?;
    let small = y.equal(&one)?.select(&e, &e.mul(&y.log()?)?.div(&rest)?)?;
    small.add(&x.max(&x.like(0.0)?)?)
}

fn softmax(x: &Tensor, axis: usize) -> Result<Tensor> {
    let axis = axis as isize;
    let raised = x.sub(&x.largest(&[axis])?)?.exp()?;
    raised.div(&raised.sum(&[axis])?)
}

fn rope(head: usize, style: RopeStyle, args: &[&Tensor]) -> Result<Tensor> {
    let &[x, cos, sin] = args else { return Err(shape("rope", "three tensors", &[args.len()])) };
    let [tokens, width] = x.sizes()?;
    let half = cos.dims()[1];
    let heads = x.reshape(&[tokens, width / head, head])?;
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let turned = heads.narrow(2, 0, 2 * half)?;
    let [a, b] = match style {
        RopeStyle::Halves => turned.chunks(2)?,
        RopeStyle::Pairs => [turned.every(2, 0, 2)?, turned.every(2, 1, 2)?],
    };
    let first = a.mul(&cos)?.sub(&b.mul(&sin)?)?;
    let second = b.mul(&cos)?.add(&a.mul(&sin)?)?;
    let turned = match style {
        RopeStyle::Halves => Tensor::concat(&[first, second], 2)?,
        RopeStyle::Pairs => Tensor::stack(&[first, second], 3)?.reshape(&[tokens, width / head, 2 * half])?,
    };
    let rest = heads.narrow(2, 2 * half, head - 2 * half)?;
    let whole = if head > 2 * half { Tensor::concat(&[turned, rest], 2)? } else { turned };
    whole.reshape(&[tokens, width])
}

fn attention(attention: &Attention, args: &[&Tensor]) -> Result<Tensor> {
    let &[q, k, v, q_positions, k_positions, ref rest @ ..] = args else {
        return Err(shape("attention", "five tensors", &[args.len()]));
    };
    let (sinks, biases) = if attention.sinks { (Some(rest[0]), &rest[1..]) } else { (None, rest) };
    let (mut outs, mut query, mut key) = (Vec::new(), 0, 0);
    for (number, segment) in attention.segments.iter().enumerate() {
        let parts = Parts {
            q: q.narrow(0, query, segment.queries)?,
            k: k.narrow(0, key, segment.keys)?,
            v: v.narrow(0, key, segment.keys)?,
            q_positions: q_positions.narrow(0, query, segment.queries)?,
            k_positions: k_positions.narrow(0, key, segment.keys)?,
        };
        outs.push(parts.attend(attention, sinks, biases.get(number).copied())?);
        query += segment.queries;
        key += segment.keys;
    }
    Tensor::concat(&outs, 0)
}

/// One sequence's part of an attention.
struct Parts {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
}

impl Parts {
    fn attend(&self, attention: &Attention, sinks: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
        let shape = &attention.shape;
        let (queries, keys) = (self.q.dims()[0], self.k.dims()[0]);
        let group = shape.heads / shape.kv_heads;
        if keys == 0 {
            return Tensor::new(
                self.q.engine(),
                vec![0.0; queries * shape.heads * shape.value_head],
                &[queries, shape.heads * shape.value_head],
            );
        }
        // [kv_heads, group * queries, ..]: the heads of a group share their keys.
        let q = self.q.reshape(&[queries, shape.kv_heads, group, shape.head])?.permute(&[1, 2, 0, 3])?;
        let q = q.reshape(&[shape.kv_heads, group * queries, shape.head])?;
        let k = self.k.reshape(&[keys, shape.kv_heads, shape.head])?.permute(&[1, 2, 0])?;
        let v = self.v.reshape(&[keys, shape.kv_heads, shape.value_head])?.permute(&[1, 0, 2])?;
        let mut scores = q.matmul(&k)?.scale(shape.scale)?.reshape(&[shape.heads, queries, keys])?;
        if let Some(cap) = shape.softcap {
            scores = scores.scale(1.0 / cap)?.tanh()?.scale(cap)?;
        }
        if let Some(bias) = bias {
            scores = scores.add(bias)?;
        }
        let seen = self.seen(attention)?;
        let hidden = scores.like(-1e30)?;
        let scores = seen.select(&scores, &hidden)?;
        let mut largest = scores.largest(&[-1])?;
        let sinks = sinks.map(|sinks| sinks.reshape(&[shape.heads, 1, 1])).transpose()?;
        if let Some(sinks) = &sinks {
            largest = largest.max(sinks)?;
        }
        // Where nothing is seen, all weights are equal, as in the library.
        let weights = scores.sub(&largest)?.exp()?;
        let mut total = weights.sum(&[-1])?;
        if let Some(sinks) = &sinks {
            total = total.add(&sinks.sub(&largest)?.exp()?)?;
        }
        let out = weights.div(&total)?.reshape(&[shape.kv_heads, group * queries, keys])?.matmul(&v)?;
        let out = out.reshape(&[shape.heads, queries, shape.value_head])?.permute(&[1, 0, 2])?;
        out.reshape(&[queries, shape.heads * shape.value_head])
    }

    /// Whole `[queries, keys]`: which query sees which key.
    fn seen(&self, attention: &Attention) -> Result<Tensor> {
        let (q, k) = (self.q_positions.unsqueeze(1)?, self.k_positions.unsqueeze(0)?);
        let zero = k.like(0.0)?;
        let mut seen = zero.less_equal(&k)?.broadcast(&[q.dims()[0], k.dims()[1]])?;
        if attention.causal {
            seen = seen.mul(&k.less_equal(&q)?)?;
        }
        if let Some(window) = attention.shape.window {
            let reach = k.like(window as f32)?;
            seen = seen.mul(&q.sub(&k)?.less(&reach)?)?.mul(&k.sub(&q)?.less(&reach)?)?;
        }
        Ok(seen)
    }
}

/// As a sum over the taps of the kernel: each is a product of one slice of the padded input with one of the weight.
fn convolution(conv: &Convolution, args: &[&Tensor]) -> Result<Tensor> {
    let (mut x, weight) = (args[0].clone(), args[1]);
    let space = conv.stride.len();
    let out = Op::Convolution(conv.clone()).infer(args)?;
    let out = &out[0].1;
    for axis in 0..space {
        let (before, after) = conv.padding[axis];
        x = x.pad(axis as isize + 2, before, after, 0.0)?;
    }
    let (batch, channels, outputs) = (x.dims()[0], x.dims()[1], weight.dims()[0]);
    let (inputs, groups) = (channels / conv.groups, conv.groups);
    let places: usize = out[2..].iter().product();
    let taps = &weight.dims()[2..];
    let weight = weight.reshape(&[groups, outputs / groups, inputs, taps.iter().product()])?;
    let mut sum: Option<Tensor> = None;
    for (number, tap) in every_tap(taps).into_iter().enumerate() {
        let mut slice = x.clone();
        for axis in 0..space {
            let start = tap[axis] * conv.dilation[axis];
            let reach = (out[axis + 2] - 1) * conv.stride[axis] + 1;
            slice = slice.narrow(axis as isize + 2, start, reach)?.every(axis as isize + 2, 0, conv.stride[axis])?;
        }
        let slice = slice.reshape(&[batch, groups, inputs, places])?;
        let product = weight.at(3, number)?.matmul(&slice)?;
        sum = Some(match sum {
            Some(sum) => sum.add(&product)?,
            None => product,
        });
    }
    let sum = sum.ok_or_else(|| shape("convolution", "a kernel with taps", taps))?.reshape(out)?;
    with_bias(sum, args.get(2).copied())
}

/// Each tap spreads the input over the output, between strides of zeros.
fn convolution_transposed(conv: &Convolution, args: &[&Tensor]) -> Result<Tensor> {
    let (x, weight) = (args[0], args[1]);
    let space = conv.stride.len();
    let (batch, channels, groups) = (x.dims()[0], x.dims()[1], conv.groups);
    let (outputs, taps) = (weight.dims()[1] * groups, &weight.dims()[2..]);
    let size = &x.dims()[2..];
    let weight = weight.reshape(&[groups, channels / groups, outputs / groups, taps.iter().product()])?;
    let flat = x.reshape(&[batch, groups, channels / groups, size.iter().product()])?;
    let mut sum: Option<Tensor> = None;
    for (number, tap) in every_tap(taps).into_iter().enumerate() {
        let product = weight.at(3, number)?.transpose(1, 2)?.matmul(&flat)?;
        let mut spread = product.reshape(&[&[batch, outputs], size].concat())?;
        for axis in 0..space {
            spread = spread_out(&spread, axis + 2, conv.stride[axis])?;
            let before = tap[axis] * conv.dilation[axis];
            let after = (taps[axis] - 1 - tap[axis]) * conv.dilation[axis];
            spread = spread.pad(axis as isize + 2, before, after, 0.0)?;
        }
        sum = Some(match sum {
            Some(sum) => sum.add(&spread)?,
            None => spread,
        });
    }
    let mut sum = sum.ok_or_else(|| shape("convolution_transposed", "a kernel with taps", taps))?;
    for (axis, (before, after)) in conv.padding.iter().enumerate() {
        let length = sum.dims()[axis + 2] - before - after;
        sum = sum.narrow(axis as isize + 2, *before, length)?;
    }
    with_bias(sum, args.get(2).copied())
}

/// `stride - 1` zeros between the places of a dimension.
fn spread_out(x: &Tensor, axis: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let length = x.dims()[axis];
    let wide = x.unsqueeze(axis as isize + 1)?.pad(axis as isize + 1, 0, stride - 1, 0.0)?;
    wide.flatten(axis as isize, axis as isize + 1)?.narrow(axis as isize, 0, (length - 1) * stride + 1)
}

fn with_bias(x: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let Some(bias) = bias else { return Ok(x) };
    let mut dims = vec![1; x.dims().len()];
    dims[1] = bias.count();
    x.add(&bias.reshape(&dims)?)
}

/// All places in a kernel of that shape, the last dimension fastest.
fn every_tap(taps: &[usize]) -> Vec<Vec<usize>> {
    taps.iter().fold(vec![Vec::new()], |all, &length| {
        all.iter().flat_map(|tap| (0..length).map(move |place| [tap.as_slice(), &[place]].concat())).collect()
    })
}

/// Every expert for every token, then those that were chosen.
fn experts(experts: Experts, args: &[&Tensor]) -> Result<Tensor> {
    let (x, places, weights) = (args[0], args[1], &args[2..]);
    let mut all = Vec::with_capacity(experts.count);
    for weights in weights.chunks_exact(experts.tensors()) {
        all.push(super::eager::expert(experts, x, weights)?);
    }
    let all = Tensor::stack(&all, 1)?;
    let [tokens, chosen] = places.sizes()?;
    let hidden = x.dims()[1];
    all.take_along(1, &places.unsqueeze(2)?.broadcast(&[tokens, chosen, hidden])?)
}
