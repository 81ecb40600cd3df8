//! Carrying operations out: fused ones by the kernels of [`crate::cpu`], primitives by candle.

use candle_core::{CpuStorage, DType, Storage, Tensor as Candle};

use crate::cpu::{Arithmetic, Keys, Pairing, Product};

use super::op::{Attention, Binary, Compare, Experts, NormKind, Op, Reduce, Unary, stretch};
use super::{
    Activation, AttentionShape, Engine, KeysValues, Kind, QueryRow, RopeStyle, Tensor, TensorError, Value, Weight,
    convolution, lower, recurrence, shape,
};

type Result<T> = std::result::Result<T, TensorError>;

/// Carries an operation out; its arguments have the shapes that it wants.
pub(super) fn apply(op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let engine = args[0].engine();
    let one = match op {
        Op::Linear { biases } => return linear(engine, biases, args),
        Op::TopK(count) => return top_k(engine, args[0], *count),
        Op::Norm { kind, eps, weight, bias } => norm(engine, *kind, *eps, *weight, *bias, args)?,
        Op::Activate(activation) => match activated(engine, *activation, args[0])? {
            Some(out) => out,
            None => return lower(op, args),
        },
        Op::Gated(activation) => gated(engine, *activation, args[0], args[1])?,
        Op::Rope { head, style } => rope(engine, *head, *style, args)?,
        Op::Attention(attention) => match self::attention(engine, attention, args)? {
            Some(out) => out,
            None => return lower(op, args),
        },
        Op::Convolution(conv) => convolution::eager(engine, conv, args)?,
        Op::Experts(experts) => self::experts(engine, *experts, args)?,
        Op::CausalConvolution { .. } | Op::Scan(_) | Op::Wkv => return recurrence::eager(engine, op, args),
        Op::GroupNorm { .. } | Op::Softmax { .. } | Op::ConvolutionTransposed(_) => return lower(op, args),
        Op::Binary(binary) => match arithmetic(engine, *binary, args[0], args[1])? {
            Some(out) => out,
            None => Tensor::dense(engine, primitive(op, args)?),
        },
        Op::Gather { axis } => gather(engine, *axis, args[0], args[1])?,
        _ => Tensor::dense(engine, primitive(op, args)?),
    };
    Ok(vec![one])
}

pub(super) fn read<R>(tensor: &Candle, reader: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((begin, end))) => Ok(reader(&values[begin..end])),
        _ => Err(TensorError::Shape {
            operation: "read",
            expected: format!("{:?} on the processor", DType::F32),
            found: format!("{:?}", tensor.dtype()),
        }),
    }
}

/// The primitives, on candle.
fn primitive(op: &Op, args: &[&Tensor]) -> Result<Candle> {
    let candle = |place: usize| match args[place].value() {
        Value::Dense(tensor) => Ok(tensor.clone()),
        _ => args[place].contiguous(op.name()),
    };
    let x = candle(0)?;
    Ok(match op {
        Op::Unary(unary) => self::unary(*unary, &x)?,
        Op::Binary(binary) => self::binary(*binary, &x, &candle(1)?)?,
        Op::Compare(compare) => {
            let other = candle(1)?;
            let truth = match compare {
                Compare::Equal => x.broadcast_eq(&other)?,
                Compare::Less => x.broadcast_lt(&other)?,
                Compare::LessEqual => x.broadcast_le(&other)?,
            };
            truth.to_dtype(DType::I64)?
        }
        Op::Select => {
            let (a, b) = (candle(1)?, candle(2)?);
            let dims = x.shape().broadcast_shape_binary_op(a.shape(), "select")?;
            let dims = dims.broadcast_shape_binary_op(b.shape(), "select")?;
            let stretched = |x: &Candle| x.broadcast_as(&dims)?.contiguous();
            stretched(&x)?.ne(0_i64)?.where_cond(&stretched(&a)?, &stretched(&b)?)?
        }
        Op::Affine { factor, offset } => x.affine(f64::from(*factor), f64::from(*offset))?,
        Op::Cast(Kind::Float) => x.to_dtype(DType::F32)?,
        Op::Cast(Kind::Whole) => x.to_dtype(DType::I64)?,
        Op::MatMul => matmul(&x.contiguous()?, &candle(1)?.contiguous()?)?,
        Op::Reshape(dims) => x.reshape(dims.as_slice())?,
        Op::Permute(order) => x.permute(order.as_slice())?,
        Op::Broadcast(dims) => x.broadcast_as(dims.as_slice())?,
        Op::Slice { axis, start, length, step: 1 } => x.narrow(*axis, *start, *length)?,
        Op::Slice { axis, start, length, step } => {
            let places: Vec<i64> = (0..*length).map(|place| (start + place * step) as i64).collect();
            x.contiguous()?.index_select(&Candle::new(places, x.device())?, *axis)?
        }
        Op::Concat { axis } => {
            let all = (0..args.len()).map(candle).collect::<Result<Vec<_>>>()?;
            Candle::cat(&all, *axis)?
        }
        Op::Pad { axis, before, after, value } => {
            let part = |length: usize| {
                let mut dims = x.dims().to_vec();
                dims[*axis] = length;
                Candle::full(*value, dims, x.device())?.to_dtype(x.dtype())
            };
            Candle::cat(&[part(*before)?, x.clone(), part(*after)?], *axis)?
        }
        Op::TakeAlong { axis } => x.contiguous()?.gather(&candle(1)?.contiguous()?, *axis)?,
        Op::Reduce { reduce, axes } => self::reduce(*reduce, axes, x)?,
        Op::CumulativeSum { axis } => cumulative_sum(&x, *axis)?,
        _ => return Err(shape(op.name(), "a primitive", &[])),
    })
}

/// Candle multiplies up to two leading dimensions; of more, those that both stretch to are as one.
fn matmul(a: &Candle, b: &Candle) -> candle_core::Result<Candle> {
    let ([lead @ .., m, k], [other @ .., _, n]) = (a.dims(), b.dims()) else { return a.broadcast_matmul(b) };
    let stretched = stretch(lead, other).filter(|stretched| stretched.len() > 2);
    let Some(stretched) = stretched else { return a.broadcast_matmul(b) };
    let batch: usize = stretched.iter().product();
    let flat = |x: &Candle, rows: usize, columns: usize| {
        x.broadcast_as([&stretched[..], &[rows, columns]].concat())?.contiguous()?.reshape((batch, rows, columns))
    };
    let product = flat(a, *m, *k)?.matmul(&flat(b, *k, *n)?)?;
    product.reshape([&stretched[..], &[*m, *n]].concat())
}

fn unary(unary: Unary, x: &Candle) -> candle_core::Result<Candle> {
    match unary {
        Unary::Neg => x.neg(),
        Unary::Abs => x.abs(),
        Unary::Exp => x.exp(),
        Unary::Log => x.log(),
        Unary::Sqrt => x.sqrt(),
        Unary::Reciprocal => x.recip(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tanh => x.tanh(),
        Unary::Erf => x.erf(),
        Unary::Sigmoid => x.neg()?.exp()?.affine(1.0, 1.0)?.recip(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        // Candle rounds halves away from zero.
        Unary::Round => {
            let values = x.flatten_all()?.to_vec1::<f32>()?;
            let values: Vec<f32> = values.into_iter().map(f32::round_ties_even).collect();
            Candle::from_vec(values, x.dims(), x.device())
        }
        Unary::Sign => x.sign(),
    }
}

fn binary(binary: Binary, a: &Candle, b: &Candle) -> candle_core::Result<Candle> {
    match binary {
        Binary::Add => a.broadcast_add(b),
        Binary::Sub => a.broadcast_sub(b),
        Binary::Mul => a.broadcast_mul(b),
        Binary::Div => a.broadcast_div(b),
        Binary::Pow => a.broadcast_pow(b),
        Binary::Max => a.broadcast_maximum(b),
        Binary::Min => a.broadcast_minimum(b),
    }
}

fn reduce(reduce: Reduce, axes: &[usize], x: Candle) -> candle_core::Result<Candle> {
    let x = x.contiguous()?;
    match reduce {
        Reduce::Sum => x.sum_keepdim(axes),
        Reduce::Mean => x.mean_keepdim(axes),
        Reduce::Max => axes.iter().try_fold(x, |x, &axis| x.max_keepdim(axis)),
        Reduce::Min => axes.iter().try_fold(x, |x, &axis| x.min_keepdim(axis)),
    }
}

fn cumulative_sum(x: &Candle, axis: usize) -> candle_core::Result<Candle> {
    let mut places = Vec::with_capacity(x.dims()[axis]);
    for place in 0..x.dims()[axis] {
        let here = x.narrow(axis, place, 1)?;
        places.push(match places.last() {
            Some(before) => here.add(before)?,
            None => here,
        });
    }
    Candle::cat(&places, axis)
}

/// The indices are checked here: candle's own check depends on the kind of table.
fn gather(engine: &Engine, axis: usize, x: &Tensor, places: &Tensor) -> Result<Tensor> {
    let rows = x.dims()[axis];
    let wanted = places.to_whole()?;
    if let Some(&found) = wanted.iter().find(|&&place| usize::try_from(place).map_or(true, |place| place >= rows)) {
        return Err(TensorError::Index { operation: "gather", found, rows });
    }
    if let (Some(table), 0, [_, columns]) = (x.as_stored(), axis, x.dims()) {
        let ids: Vec<u32> = wanted.iter().map(|&place| place as u32).collect();
        let mut out = vec![0.0; ids.len() * columns];
        engine.kernels().gather(table, &ids, &mut out);
        return Tensor::new(engine, out, &[places.dims(), &[*columns]].concat());
    }
    let dims = [&x.dims()[..axis], places.dims(), &x.dims()[axis + 1..]].concat();
    let x = x.contiguous("gather")?;
    let places = Candle::from_vec(wanted, places.count(), x.device())?;
    Ok(Tensor::dense(engine, x.index_select(&places, axis)?.reshape(dims)?))
}

fn top_k(engine: &Engine, x: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    let length = x.dims()[x.dims().len() - 1];
    let (mut values, mut places) = (Vec::new(), Vec::new());
    x.read(|x| {
        for line in x.chunks_exact(length.max(1)) {
            let mut order: Vec<usize> = (0..length).collect();
            // Adding 0 makes both zeros equal, which a total order tells apart.
            let rank = |at: usize| line[at] + 0.0;
            order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(a.cmp(&b)));
            order.truncate(count);
            values.extend(order.iter().map(|&place| line[place]));
            places.extend(order.iter().map(|&place| place as i64));
        }
    })?;
    let mut dims = x.dims().to_vec();
    dims[x.dims().len() - 1] = count;
    Ok(vec![Tensor::new(engine, values, &dims)?, Tensor::whole(engine, places, &dims)?])
}

/// The weight as kernels read it; computed ones are copied.
pub(super) fn stored(tensor: &Tensor) -> Result<std::sync::Arc<Weight>> {
    match tensor.as_stored() {
        Some(weight) => Ok(weight.clone()),
        None => Ok(std::sync::Arc::new(Weight::from_floats(tensor.dims(), &tensor.to_vec()?))),
    }
}

fn linear(engine: &Engine, biases: &[bool], args: &[&Tensor]) -> Result<Vec<Tensor>> {
    let x = args[0];
    let k = x.dims()[x.dims().len() - 1];
    let tokens = x.count() / k;
    let mut rest = args[1..].iter();
    let (mut weights, mut bias_values, mut outs) = (Vec::new(), Vec::new(), Vec::new());
    for &bias in biases {
        let weight = stored(rest.next().ok_or_else(|| shape("linear", "a weight", &[]))?)?;
        outs.push(vec![0.0; tokens * weight.rows()]);
        weights.push(weight);
        bias_values.push(if bias { rest.next().map(|bias| bias.to_vec()).transpose()? } else { None });
    }
    x.read(|x| {
        let mut products: Vec<Product<'_>> = weights
            .iter()
            .zip(&bias_values)
            .zip(&mut outs)
            .map(|((weight, bias), out)| Product { weight, bias: bias.as_deref(), out })
            .collect();
        engine.kernels().linear(x, tokens, &mut products);
    })?;
    let mut dims = x.dims().to_vec();
    let last = dims.len() - 1;
    let out = |(weight, out): (&std::sync::Arc<Weight>, Vec<f32>)| {
        dims[last] = weight.rows();
        Tensor::new(engine, out, &dims)
    };
    weights.iter().zip(outs).map(out).collect()
}

fn norm(engine: &Engine, kind: NormKind, eps: f32, weight: bool, bias: bool, args: &[&Tensor]) -> Result<Tensor> {
    let x = args[0];
    let mut rest = args[1..].iter();
    let mut next = |present: bool| if present { rest.next().map(|arg| arg.to_vec()).transpose() } else { Ok(None) };
    let (weight, bias) = (next(weight)?, next(bias)?);
    let width = x.dims()[x.dims().len() - 1];
    let out = x.read(|x| {
        let mut out = vec![0.0; x.len()];
        engine.kernels().norm(kind, x, width, weight.as_deref(), bias.as_deref(), eps, &mut out);
        out
    })?;
    Tensor::new(engine, out, x.dims())
}

fn activated(engine: &Engine, activation: Activation, x: &Tensor) -> Result<Option<Tensor>> {
    let out = x.read(|x| {
        let mut out = vec![0.0; x.len()];
        engine.kernels().activate(activation, x, &mut out).then_some(out)
    })?;
    out.map(|out| Tensor::new(engine, out, x.dims())).transpose()
}

/// Two tensors of many numbers; none where candle does as well. With as many, candle takes threads of its own, one for each
/// processor, whatever the engine was given.
fn arithmetic(engine: &Engine, binary: Binary, a: &Tensor, b: &Tensor) -> Result<Option<Tensor>> {
    const MANY: usize = 64 << 10;
    let op = match binary {
        Binary::Add => Arithmetic::Add,
        Binary::Sub => Arithmetic::Sub,
        Binary::Mul => Arithmetic::Mul,
        Binary::Div => Arithmetic::Div,
        Binary::Pow | Binary::Max | Binary::Min => return Ok(None),
    };
    if a.count() < MANY || [a, b].iter().any(|tensor| tensor.kind() != Kind::Float) {
        return Ok(None);
    }
    let Some(pairing) = pairing(a.dims(), b.dims()) else { return Ok(None) };
    let out = a.read(|a| {
        b.read(|b| {
            let mut out = vec![0.0; a.len()];
            engine.kernels().arithmetic(op, pairing, a, b, &mut out);
            out
        })
    })??;
    Tensor::new(engine, out, a.dims()).map(Some)
}

/// How `b` stretches to the shape of `a`, in the ways that matter.
fn pairing(a: &[usize], b: &[usize]) -> Option<Pairing> {
    // Leading ones stretch to whatever there is.
    let of_ones = b.iter().take_while(|&&size| size == 1).count();
    let (tail, (&width, rows)) = (&b[of_ones..], a.split_last()?);
    if a == b {
        return Some(Pairing::Each);
    }
    if tail.is_empty() && b.len() <= a.len() {
        return Some(Pairing::Column(a.iter().product()));
    }
    if b.len() <= a.len() && a.ends_with(tail) {
        return Some(Pairing::Row(tail.iter().product()));
    }
    (b.len() == a.len() && b.ends_with(&[1]) && b[..rows.len()] == *rows).then_some(Pairing::Column(width))
}

fn gated(engine: &Engine, activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let out = gate.read(|gate| {
        up.read(|up| {
            let mut out = vec![0.0; up.len()];
            engine.kernels().gated(activation, gate, up, &mut out).then_some(out)
        })
    })??;
    match out {
        Some(out) => Tensor::new(engine, out, gate.dims()),
        None => gate.activate(activation)?.mul(up),
    }
}

fn rope(engine: &Engine, head: usize, style: RopeStyle, args: &[&Tensor]) -> Result<Tensor> {
    let x = args[0];
    let mut out = x.to_vec()?;
    args[1].read(|cos| args[2].read(|sin| crate::cpu::rope(&mut out, head, style, cos, sin, x.dims()[0])))??;
    Tensor::new(engine, out, x.dims())
}

/// Attention by the kernel, where keys stand in the order of their positions; none where they do not.
fn attention(engine: &Engine, attention: &Attention, args: &[&Tensor]) -> Result<Option<Tensor>> {
    let &[q, k, v, q_positions, k_positions, ref rest @ ..] = args else {
        return Err(shape("attention", "five tensors", &[args.len()]));
    };
    let (q_positions, k_positions) = (q_positions.to_whole()?, k_positions.to_whole()?);
    let mut absent: Vec<Vec<bool>> = Vec::new();
    let (mut from, mut query) = (0, 0);
    let mut queries = Vec::with_capacity(q_positions.len());
    for (sequence, segment) in attention.segments.iter().enumerate() {
        let positions = &k_positions[from..from + segment.keys];
        let in_order = positions.iter().enumerate().all(|(place, &position)| position < 0 || position == place as i64);
        let ordered_by = attention.causal || attention.shape.window.is_some();
        if ordered_by && !in_order {
            return Ok(None);
        }
        absent.push(positions.iter().map(|&position| position < 0).collect());
        for (row, &position) in q_positions[query..query + segment.queries].iter().enumerate() {
            let keys = visible(attention, position, segment.keys);
            queries.push(QueryRow { sequence, row, first: keys.0, end: keys.1 });
        }
        from += segment.keys;
        query += segment.queries;
    }
    let (sinks, biases) = if attention.sinks { (Some(rest[0].to_vec()?), &rest[1..]) } else { (None, rest) };
    let biases = biases.iter().map(|bias| bias.to_vec()).collect::<Result<Vec<_>>>()?;
    let shape = &attention.shape;
    let mut out = vec![0.0; q_positions.len() * shape.heads * shape.value_head];
    let (keys, values) = (k.to_vec()?, v.to_vec()?);
    let (key_width, value_width) = (shape.kv_heads * shape.head, shape.kv_heads * shape.value_head);
    let mut from = 0;
    let mut sequences = Vec::new();
    for (number, segment) in attention.segments.iter().enumerate() {
        let range = from..from + segment.keys;
        sequences.push(KeysValues {
            keys: Keys::Whole(&keys[range.start * key_width..range.end * key_width]),
            values: Keys::Whole(&values[range.start * value_width..range.end * value_width]),
            absent: &absent[number],
            bias: biases.get(number).map(Vec::as_slice),
            queries: segment.queries,
            length: segment.keys,
        });
        from = range.end;
    }
    q.read(|q| engine.kernels().attention(shape, q, &queries, &sequences, sinks.as_deref(), &mut out))?;
    Ok(Some(Tensor::new(engine, out, &[q_positions.len(), shape.heads * shape.value_head])?))
}

/// The first key that a query at `position` sees, and the end of those it sees, of keys whose places are positions.
fn visible(attention: &Attention, position: i64, keys: usize) -> (usize, usize) {
    let window = attention.shape.window.map(|window| i64::try_from(window).unwrap_or(i64::MAX));
    let first = window.map_or(0, |window| position.saturating_add(1).saturating_sub(window));
    let end = match (attention.causal, window) {
        (true, _) => position.saturating_add(1),
        (false, Some(window)) => position.saturating_add(window),
        (false, None) => i64::MAX,
    };
    let place = |position: i64| usize::try_from(position.max(0)).map_or(keys, |place| place.min(keys));
    (place(first), place(end))
}

pub(super) fn attention_paged(
    q: &Tensor,
    sizes: &AttentionShape,
    queries: &[QueryRow],
    sequences: &[KeysValues<'_>],
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    let [tokens, width] = q.sizes()?;
    let grouped = sizes.kv_heads > 0 && sizes.heads.is_multiple_of(sizes.kv_heads);
    if !grouped || width != sizes.heads * sizes.head || tokens != queries.len() {
        let expected = format!("[{}, {} * {}] in {} groups", queries.len(), sizes.heads, sizes.head, sizes.kv_heads);
        return Err(shape("attention", expected, q.dims()));
    }
    for query in queries {
        let kept = sequences.get(query.sequence);
        let held = kept.map_or(0, |kept| {
            let keys = kept.keys.len() / (sizes.kv_heads * sizes.head);
            keys.min(kept.values.len() / (sizes.kv_heads * sizes.value_head))
        });
        if held < query.end {
            return Err(shape("attention", format!("{} kept keys and values", query.end), &[held]));
        }
    }
    let sinks = sinks.map(Tensor::to_vec).transpose()?;
    let mut out = vec![0.0; tokens * sizes.heads * sizes.value_head];
    q.read(|values| q.engine().kernels().attention(sizes, values, queries, sequences, sinks.as_deref(), &mut out))?;
    Tensor::new(q.engine(), out, &[tokens, sizes.heads * sizes.value_head])
}

/// One expert for all of `x`.
pub(super) fn expert(experts: Experts, x: &Tensor, weights: &[&Tensor]) -> Result<Tensor> {
    let layers: Vec<super::Linear> = weights
        .chunks_exact(1 + usize::from(experts.bias))
        .map(|tensors| super::Linear { weight: tensors[0].clone(), bias: tensors.get(1).map(|&bias| bias.clone()) })
        .collect();
    match &layers[..] {
        [gate, up, down] => {
            let [gate, up] = x.linears([gate, up])?;
            gate.gated_within(experts.limit, experts.activation, &up)?.linear(down)
        }
        [up, down] => x.linear(up)?.activate(experts.activation)?.linear(down),
        _ => Err(shape("experts", "two or three layers", &[layers.len()])),
    }
}

/// Each expert works on the tokens that chose it.
fn experts(engine: &Engine, experts: Experts, args: &[&Tensor]) -> Result<Tensor> {
    let (x, places, weights) = (args[0], args[1], &args[2..]);
    let ([tokens, hidden], [_, chosen]) = (x.sizes()?, places.sizes()?);
    let mut of_expert: Vec<Vec<usize>> = vec![Vec::new(); experts.count];
    for (slot, place) in places.to_whole()?.into_iter().enumerate() {
        let expert = usize::try_from(place).ok().and_then(|place| of_expert.get_mut(place));
        expert.ok_or(TensorError::Index { operation: "experts", found: place, rows: experts.count })?.push(slot);
    }
    let mut out = vec![0.0; tokens * chosen * hidden];
    for (slots, weights) in of_expert.iter().zip(weights.chunks_exact(experts.tensors())) {
        if slots.is_empty() {
            continue;
        }
        let rows: Vec<usize> = slots.iter().map(|slot| slot / chosen).collect();
        expert(experts, &x.pick(0, &rows)?, weights)?.read(|rows| {
            for (slot, row) in slots.iter().zip(rows.chunks_exact(hidden)) {
                out[slot * hidden..][..hidden].copy_from_slice(row);
            }
        })?;
    }
    Tensor::new(engine, out, &[tokens, chosen, hidden])
}
