//! Each operation as operators of <https://onnx.ai/onnx/operators/>.

use super::OnnxError;
use super::model::{Model, element_type, whole};
use super::proto::{BOOL, INT64};
use crate::tensor::op::{Binary, Compare, Convolution, Op, Reduce, Signature, Unary};
use crate::tensor::{Activation, Kind};

type Result<T> = std::result::Result<T, OnnxError>;

/// A step whose values have names.
pub(super) struct Call<'a> {
    pub op: &'a Op,
    pub args: Vec<(&'a str, &'a Signature)>,
    pub outs: Vec<(&'a str, &'a Signature)>,
}

impl<'a> Call<'a> {
    fn name(&self, place: usize) -> &'a str {
        self.args[place].0
    }

    fn kind(&self, place: usize) -> Kind {
        self.args[place].1.0
    }

    fn dims(&self, place: usize) -> &'a [usize] {
        &self.args[place].1.1
    }

    fn out(&self) -> &'a str {
        self.outs[0].0
    }

    fn names(&self) -> Vec<&'a str> {
        self.args.iter().map(|(name, _)| *name).collect()
    }

    /// Refuses whole numbers, for which the operation means nothing.
    fn floats(&self) -> Result<()> {
        let float = |(_, (kind, _)): &(&str, &Signature)| *kind == Kind::Float;
        if self.args.iter().all(float) { Ok(()) } else { Err(OnnxError::Whole(self.op.name())) }
    }
}

/// Adds a step to a model.
pub(super) fn write(model: &mut Model, call: &Call<'_>) -> Result<()> {
    let (x, out) = (call.name(0), call.out());
    match call.op {
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Affine { .. }
        | Op::Cast(_)
        | Op::Activate(_) => return elementwise(model, call),
        Op::Permute(order) if order.iter().copied().eq(0..order.len()) => {
            model.node("Identity", &[x], &[out]);
        }
        Op::Permute(order) => {
            model.node("Transpose", &[x], &[out]).ints("perm", whole(order));
        }
        Op::Reshape(dims) => reshape(model, x, dims, out)?,
        Op::Broadcast(dims) => {
            let dims = model.sizes(dims)?;
            model.node("Expand", &[x, &dims], &[out]);
        }
        Op::Slice { axis, start, length, step } => {
            let end = if *length == 0 { *start } else { start + (length - 1) * step + 1 };
            let [start, end] = [model.sizes(&[*start])?, model.sizes(&[end])?];
            let [axis, step] = [model.sizes(&[*axis])?, model.sizes(&[*step])?];
            model.node("Slice", &[x, &start, &end, &axis, &step], &[out]);
        }
        Op::Concat { axis } => {
            model.node("Concat", &call.names(), &[out]).int("axis", *axis as i64);
        }
        Op::Pad { axis, before, after, value } => {
            let rank = call.dims(0).len();
            let mut sides = vec![0; 2 * rank];
            (sides[*axis], sides[rank + axis]) = (*before, *after);
            let sides = model.sizes(&sides)?;
            let value = scalar(model, call.kind(0), *value)?;
            model.node("Pad", &[x, &sides, &value], &[out]);
        }
        Op::Gather { axis } => {
            model.node("Gather", &call.names(), &[out]).int("axis", *axis as i64);
        }
        Op::TakeAlong { axis } => {
            model.node("GatherElements", &call.names(), &[out]).int("axis", *axis as i64);
        }
        Op::MatMul => {
            call.floats()?;
            model.node("MatMul", &call.names(), &[out]);
        }
        Op::Reduce { reduce, axes } => self::reduce(model, call, *reduce, axes)?,
        Op::CumulativeSum { axis } => {
            let axis = model.wholes(&[], &[*axis as i64])?;
            model.node("CumSum", &[x, &axis], &[out]);
        }
        Op::TopK(count) => {
            let count = model.sizes(&[*count])?;
            model.node("TopK", &[x, &count], &[out, call.outs[1].0]).int("axis", -1).int("largest", 1).int("sorted", 1);
        }
        Op::Linear { biases } => linear(model, call, biases)?,
        Op::Norm { eps, weight, .. } if super::native(call.op) => layer_norm(model, call, *eps, *weight)?,
        Op::Softmax { axis } => {
            model.node("Softmax", &[x], &[out]).int("axis", *axis as i64);
        }
        Op::Convolution(conv) if super::native(call.op) => convolution(model, call, "Conv", conv),
        Op::ConvolutionTransposed(conv) if super::native(call.op) => convolution(model, call, "ConvTranspose", conv),
        Op::Norm { .. }
        | Op::GroupNorm { .. }
        | Op::Gated(_)
        | Op::Rope { .. }
        | Op::Attention(_)
        | Op::Convolution(_)
        | Op::ConvolutionTransposed(_)
        | Op::Experts(_)
        | Op::CausalConvolution { .. }
        | Op::Scan(_)
        | Op::Wkv => return Err(OnnxError::Fused(call.op.name())),
    }
    Ok(())
}

/// A step that does the same to each element.
fn elementwise(model: &mut Model, call: &Call<'_>) -> Result<()> {
    let (x, out) = (call.name(0), call.out());
    match call.op {
        Op::Unary(unary) => {
            call.floats()?;
            model.node(self::unary(*unary), &[x], &[out]);
        }
        Op::Binary(binary) => {
            if *binary == Binary::Pow {
                call.floats()?;
            }
            model.node(self::binary(*binary), &call.names(), &[out]);
        }
        Op::Compare(compare) => {
            let op_type = match compare {
                Compare::Equal => "Equal",
                Compare::Less => "Less",
                Compare::LessEqual => "LessOrEqual",
            };
            let truth = model.fresh();
            model.node(op_type, &call.names(), &[&truth]);
            model.node("Cast", &[&truth], &[out]).int("to", INT64.into());
        }
        Op::Select => {
            let truth = model.fresh();
            model.node("Cast", &[x], &[&truth]).int("to", BOOL.into());
            model.node("Where", &[&truth, call.name(1), call.name(2)], &[out]);
        }
        Op::Affine { factor, offset } => affine(model, call, *factor, *offset)?,
        Op::Cast(kind) => {
            model.node("Cast", &[x], &[out]).int("to", element_type(*kind).into());
        }
        Op::Activate(activation) => {
            call.floats()?;
            activate(model, call, *activation)?;
        }
        _ => return Err(OnnxError::Fused(call.op.name())),
    }
    Ok(())
}

/// One number of a kind.
fn scalar(model: &mut Model, kind: Kind, value: f32) -> Result<String> {
    match kind {
        Kind::Float => model.floats(&[], &[value]),
        Kind::Whole => model.wholes(&[], &[value as i64]),
    }
}

fn unary(unary: Unary) -> &'static str {
    match unary {
        Unary::Neg => "Neg",
        Unary::Abs => "Abs",
        Unary::Exp => "Exp",
        Unary::Log => "Log",
        Unary::Sqrt => "Sqrt",
        Unary::Reciprocal => "Reciprocal",
        Unary::Sin => "Sin",
        Unary::Cos => "Cos",
        Unary::Tanh => "Tanh",
        Unary::Erf => "Erf",
        Unary::Sigmoid => "Sigmoid",
        Unary::Floor => "Floor",
        Unary::Ceil => "Ceil",
        Unary::Round => "Round",
        Unary::Sign => "Sign",
    }
}

fn binary(binary: Binary) -> &'static str {
    match binary {
        Binary::Add => "Add",
        Binary::Sub => "Sub",
        Binary::Mul => "Mul",
        Binary::Div => "Div",
        Binary::Pow => "Pow",
        Binary::Max => "Max",
        Binary::Min => "Min",
    }
}

fn affine(model: &mut Model, call: &Call<'_>, factor: f32, offset: f32) -> Result<()> {
    let (kind, out) = (call.kind(0), call.out());
    if kind == Kind::Whole && (factor.fract() != 0.0 || offset.fract() != 0.0) {
        return Err(OnnxError::Fraction { factor, offset });
    }
    let factor_name = scalar(model, kind, factor)?;
    if offset == 0.0 {
        model.node("Mul", &[call.name(0), &factor_name], &[out]);
        return Ok(());
    }
    let offset_name = scalar(model, kind, offset)?;
    if factor == 1.0 {
        model.node("Add", &[call.name(0), &offset_name], &[out]);
        return Ok(());
    }
    let product = model.fresh();
    model.node("Mul", &[call.name(0), &factor_name], &[&product]);
    model.node("Add", &[&product, &offset_name], &[out]);
    Ok(())
}

fn activate(model: &mut Model, call: &Call<'_>, activation: Activation) -> Result<()> {
    let (x, out) = (call.name(0), call.out());
    match activation {
        Activation::Identity => model.node("Identity", &[x], &[out]),
        Activation::Gelu => model.node("Gelu", &[x], &[out]).string("approximate", "none"),
        Activation::GeluTanh => model.node("Gelu", &[x], &[out]).string("approximate", "tanh"),
        Activation::Relu => model.node("Relu", &[x], &[out]),
        Activation::Relu6 => {
            let [low, high] = [model.floats(&[], &[0.0])?, model.floats(&[], &[6.0])?];
            model.node("Clip", &[x, &low, &high], &[out])
        }
        Activation::Tanh => model.node("Tanh", &[x], &[out]),
        Activation::Sigmoid => model.node("Sigmoid", &[x], &[out]),
        Activation::HardSigmoid => model.node("HardSigmoid", &[x], &[out]).float("alpha", 1.0 / 6.0).float("beta", 0.5),
        Activation::HardSwish => model.node("HardSwish", &[x], &[out]),
        Activation::Softplus => model.node("Softplus", &[x], &[out]),
        Activation::Elu => model.node("Elu", &[x], &[out]).float("alpha", 1.0),
        Activation::LeakyRelu { hundredths } => {
            model.node("LeakyRelu", &[x], &[out]).float("alpha", f32::from(hundredths) / 100.0)
        }
        Activation::Silu
        | Activation::GeluClipped
        | Activation::GeluQuick
        | Activation::Laplace
        | Activation::Relu2
        | Activation::Mish => {
            return Err(OnnxError::Fused(call.op.name()));
        }
    };
    Ok(())
}

fn reshape(model: &mut Model, from: &str, dims: &[usize], to: &str) -> Result<()> {
    let dims = model.sizes(dims)?;
    // Otherwise a size of 0 would mean the size that was there.
    model.node("Reshape", &[from, &dims], &[to]).int("allowzero", 1);
    Ok(())
}

fn reduce(model: &mut Model, call: &Call<'_>, reduce: Reduce, axes: &[usize]) -> Result<()> {
    let op_type = match reduce {
        Reduce::Sum => "ReduceSum",
        Reduce::Mean => "ReduceMean",
        Reduce::Max => "ReduceMax",
        Reduce::Min => "ReduceMin",
    };
    if reduce == Reduce::Mean {
        call.floats()?;
    }
    let axes = model.sizes(axes)?;
    let node = model.node(op_type, &[call.name(0), &axes], &[call.out()]);
    // No dimensions are none, and not all.
    node.int("keepdims", 1).int("noop_with_empty_axes", 1);
    Ok(())
}

/// `Gemm` takes the weight as it is stored; a `MatMul` would need it turned, and readers would keep both.
fn linear(model: &mut Model, call: &Call<'_>, biases: &[bool]) -> Result<()> {
    call.floats()?;
    let dims = call.dims(0);
    let (flat, columns) = (dims.len() == 2, dims[dims.len() - 1]);
    let x = if flat {
        call.name(0).to_owned()
    } else {
        let matrix = model.fresh();
        reshape(model, call.name(0), &[dims[..dims.len() - 1].iter().product(), columns], &matrix)?;
        matrix
    };
    let mut place = 1;
    for (&bias, (out, (_, out_dims))) in biases.iter().zip(&call.outs) {
        let mut inputs = vec![x.as_str(), call.name(place)];
        if bias {
            inputs.push(call.name(place + 1));
        }
        place += inputs.len() - 1;
        let product = if flat { (*out).to_owned() } else { model.fresh() };
        model.node("Gemm", &inputs, &[&product]).int("transB", 1);
        if !flat {
            reshape(model, &product, out_dims, out)?;
        }
    }
    Ok(())
}

fn layer_norm(model: &mut Model, call: &Call<'_>, eps: f32, weight: bool) -> Result<()> {
    call.floats()?;
    let mut inputs: Vec<String> = call.names().into_iter().map(str::to_owned).collect();
    if !weight {
        // ONNX has no norm without a weight.
        let width = call.dims(0)[call.dims(0).len() - 1];
        inputs.insert(1, model.floats(&[width], &vec![1.0; width])?);
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    model.node("LayerNormalization", &inputs, &[call.out()]).int("axis", -1).float("epsilon", eps);
    Ok(())
}

fn convolution(model: &mut Model, call: &Call<'_>, op_type: &str, conv: &Convolution) {
    let taps = whole(&call.dims(1)[2..]);
    let (before, after): (Vec<i64>, Vec<i64>) =
        conv.padding.iter().map(|&(before, after)| (before as i64, after as i64)).unzip();
    model
        .node(op_type, &call.names(), &[call.out()])
        .ints("kernel_shape", taps)
        .ints("strides", whole(&conv.stride))
        .ints("pads", [before, after].concat())
        .ints("dilations", whole(&conv.dilation))
        .int("group", conv.groups as i64);
}
