//! The operations, as data: what each is, and what shape its results have.

mod recurrence;

use super::{Activation, AttentionShape, Kind, RopeStyle, Tensor, TensorError};
pub use recurrence::Scan;

/// An operation with everything about it that is no tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    // Primitives.
    /// One tensor, element by element.
    Unary(Unary),
    /// Two tensors, element by element, each stretched along dimensions of 1.
    Binary(Binary),
    /// The same; 1 where it holds, and 0.
    Compare(Compare),
    /// `[condition, a, b]`: `a` where the condition is not 0, else `b`.
    Select,
    /// `x * factor + offset`.
    Affine {
        /// The factor.
        factor: f32,
        /// The offset.
        offset: f32,
    },
    /// To another kind of elements; floats are cut towards zero.
    Cast(Kind),
    /// `[.., m, k] [.., k, n]` to `[.., m, n]`; leading dimensions stretch.
    MatMul,
    /// The same elements in another shape.
    Reshape(Vec<usize>),
    /// Dimensions in another order.
    Permute(Vec<usize>),
    /// Stretched to a shape.
    Broadcast(Vec<usize>),
    /// Every `step`-th of some places along a dimension.
    Slice {
        /// The dimension.
        axis: usize,
        /// The first place.
        start: usize,
        /// How many places.
        length: usize,
        /// From one to the next.
        step: usize,
    },
    /// One after the other along a dimension.
    Concat {
        /// The dimension.
        axis: usize,
    },
    /// A value before and after along a dimension.
    Pad {
        /// The dimension.
        axis: usize,
        /// How many before.
        before: usize,
        /// How many after.
        after: usize,
        /// The value.
        value: f32,
    },
    /// `[x, places]`: the dimension is replaced by those of `places`, each the slice at that place.
    Gather {
        /// The dimension.
        axis: usize,
    },
    /// `[x, places]` of equal shapes but for the dimension: of each line along it the elements at its own places.
    TakeAlong {
        /// The dimension.
        axis: usize,
    },
    /// Along dimensions, which become 1.
    Reduce {
        /// What is made of them.
        reduce: Reduce,
        /// The dimensions.
        axes: Vec<usize>,
    },
    /// Sums of all places up to each, along a dimension.
    CumulativeSum {
        /// The dimension.
        axis: usize,
    },
    /// The largest along the last dimension, falling, the first of equals first: values and places.
    TopK(usize),

    // Fused.
    /// `[x, (weight [n, k], bias [n]?)..]`: several layers of one input, each `x weight^T + bias`.
    Linear {
        /// Of each layer, whether it has a bias.
        biases: Vec<bool>,
    },
    /// `[x, weight?, bias?]` over the last dimension.
    Norm {
        /// What is normalised.
        kind: NormKind,
        /// Added to the mean square or variance.
        eps: f32,
        /// Whether there is a weight.
        weight: bool,
        /// Whether there is a bias.
        bias: bool,
    },
    /// `[x, weight?, bias?]` over the channels of each group and all that follows. x: `[batch, channels, ..]`.
    GroupNorm {
        /// How many groups.
        groups: usize,
        /// Added to the variance.
        eps: f32,
        /// Whether there is a weight and a bias.
        affine: bool,
    },
    /// Element by element.
    Activate(Activation),
    /// `[gate, up]`: `activation(gate) * up`.
    Gated(Activation),
    /// Along a dimension, to a sum of 1.
    Softmax {
        /// The dimension.
        axis: usize,
    },
    /// `[x, cos, sin]`. x: `[tokens, heads * head]`; cos, sin: `[tokens, rotated / 2]`.
    Rope {
        /// Elements of a head.
        head: usize,
        /// Which elements turn together.
        style: RopeStyle,
    },
    /// `[q, k, v, q_positions, k_positions, sinks?, bias..]`, see [`Attention`].
    Attention(Attention),
    /// `[x, weight, bias?]`. x: `[batch, channels, space..]`; weight: `[outputs, channels / groups, space..]`.
    Convolution(Convolution),
    /// `[x, weight, bias?]`; weight: `[channels, outputs / groups, space..]`.
    ConvolutionTransposed(Convolution),
    /// `[x, places, weights..]`: of each token the results of some experts, unweighted. See [`Experts`].
    Experts(Experts),
    /// `[x, tail, weight, bias?]`, see [`Tensor::causal_convolution`].
    CausalConvolution {
        /// Whether there is a bias.
        bias: bool,
    },
    /// `[x, step, rate, input, output, skip, state]`, see [`Scan`].
    Scan(Scan),
    /// `[key, value, decay, first, state]`, see [`Tensor::wkv`].
    Wkv,
}

/// Element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the functions")]
pub enum Unary {
    Neg,
    Abs,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Sin,
    Cos,
    Tanh,
    Erf,
    Sigmoid,
    Floor,
    Ceil,
    Round,
    Sign,
}

/// Two element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the functions")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Max,
    Min,
}

/// Two element by element, to 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Equal.
    Equal,
    /// The first is less.
    Less,
    /// The first is less or equal.
    LessEqual,
}

/// What is made of several elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the functions")]
pub enum Reduce {
    Sum,
    Mean,
    Max,
    Min,
}

/// What a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// The root of the mean square.
    RootMeanSquare,
    /// The standard deviation, after the mean is taken off.
    Layer,
}

/// Attention of some sequences, whose queries and keys lie one after the other.
///
/// q: `[queries, heads * head]`; k: `[keys, kv_heads * head]`; v: `[keys, kv_heads * value_head]`; positions: whole
/// `[queries]` and `[keys]`. A key of a position below zero is absent. sinks: `[heads]`. bias, of each sequence:
/// `[heads or 1, queries, keys]`, added to the scores. The result: `[queries, heads * value_head]`. A query that sees no
/// key gives zeros.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Sizes.
    pub shape: AttentionShape,
    /// Whether a query sees no later position.
    pub causal: bool,
    /// The sequences.
    pub segments: Vec<Segment>,
    /// Whether each head has a sink: a key without value.
    pub sinks: bool,
    /// Whether each sequence has a bias.
    pub bias: bool,
}

/// The part of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its queries.
    pub queries: usize,
    /// Its keys.
    pub keys: usize,
}

/// A convolution over one to three dimensions of space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// From one place to the next, in each dimension.
    pub stride: Vec<usize>,
    /// Zeros before and after, in each dimension.
    pub padding: Vec<(usize, usize)>,
    /// From one tap of the kernel to the next, in each dimension.
    pub dilation: Vec<usize>,
    /// Channels are split into so many groups, each with its own outputs.
    pub groups: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Convolution {
    /// A plain one, over so many dimensions.
    pub fn new(dimensions: usize) -> Self {
        Self {
            stride: vec![1; dimensions],
            padding: vec![(0, 0); dimensions],
            dilation: vec![1; dimensions],
            groups: 1,
            bias: false,
        }
    }

    /// The same with one stride in all dimensions.
    #[must_use]
    pub fn stride(mut self, stride: usize) -> Self {
        self.stride.fill(stride);
        self
    }

    /// The same with so many zeros on all sides.
    #[must_use]
    pub fn padding(mut self, padding: usize) -> Self {
        self.padding.fill((padding, padding));
        self
    }

    /// The same with one dilation in all dimensions.
    #[must_use]
    pub fn dilation(mut self, dilation: usize) -> Self {
        self.dilation.fill(dilation);
        self
    }

    /// The same in groups.
    #[must_use]
    pub fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }
}

/// Feed-forward parts, of which each token goes through some.
///
/// x: `[tokens, hidden]`; places: whole `[tokens, chosen]`; the result: `[tokens, chosen, hidden]`. Of each expert there
/// is `gate` (where gated), `up` and `down`, each a weight with perhaps a bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// What the gate, or the first layer where there is none, goes through.
    pub activation: Activation,
    /// Whether there is a gate.
    pub gated: bool,
    /// Whether layers have biases.
    pub bias: bool,
    /// What bounds gate and up where there is a gate, see [`Tensor::gated_within`](super::Tensor::gated_within).
    pub limit: Option<f32>,
}

impl Experts {
    /// Tensors of one expert.
    pub fn tensors(&self) -> usize {
        (2 + usize::from(self.gated)) * (1 + usize::from(self.bias))
    }
}

/// Kind and shape of a result.
pub type Signature = (Kind, Vec<usize>);

impl Op {
    /// Its name, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unary(_) => "unary",
            Self::Binary(_) => "binary",
            Self::Compare(_) => "compare",
            Self::Select => "select",
            Self::Affine { .. } => "affine",
            Self::Cast(_) => "cast",
            Self::MatMul => "matmul",
            Self::Reshape(_) => "reshape",
            Self::Permute(_) => "permute",
            Self::Broadcast(_) => "broadcast",
            Self::Slice { .. } => "slice",
            Self::Concat { .. } => "concat",
            Self::Pad { .. } => "pad",
            Self::Gather { .. } => "gather",
            Self::TakeAlong { .. } => "take_along",
            Self::Reduce { .. } => "reduce",
            Self::CumulativeSum { .. } => "cumulative_sum",
            Self::TopK(_) => "top_k",
            Self::Linear { .. } => "linear",
            Self::Norm { .. } => "norm",
            Self::GroupNorm { .. } => "group_norm",
            Self::Activate(_) => "activate",
            Self::Gated(_) => "gated",
            Self::Softmax { .. } => "softmax",
            Self::Rope { .. } => "rope",
            Self::Attention(_) => "attention",
            Self::Convolution(_) => "convolution",
            Self::ConvolutionTransposed(_) => "convolution_transposed",
            Self::Experts(_) => "experts",
            Self::CausalConvolution { .. } => "causal_convolution",
            Self::Scan(_) => "scan",
            Self::Wkv => "wkv",
        }
    }

    /// Whether it is made of others.
    pub fn is_fused(&self) -> bool {
        matches!(
            self,
            Self::Linear { .. }
                | Self::Norm { .. }
                | Self::GroupNorm { .. }
                | Self::Activate(_)
                | Self::Gated(_)
                | Self::Softmax { .. }
                | Self::Rope { .. }
                | Self::Attention(_)
                | Self::Convolution(_)
                | Self::ConvolutionTransposed(_)
                | Self::Experts(_)
                | Self::CausalConvolution { .. }
                | Self::Scan(_)
                | Self::Wkv
        )
    }

    /// What its results are, where its arguments fit.
    ///
    /// # Errors
    ///
    /// When they do not.
    pub fn infer(&self, args: &[&Tensor]) -> Result<Vec<Signature>, TensorError> {
        let name = self.name();
        let wrong = |expected: String| {
            let found: Vec<_> = args.iter().map(|arg| format!("{:?}", arg.dims())).collect();
            TensorError::Shape { operation: name, expected, found: found.join(" ") }
        };
        let (expected, fits) = self.arity(args.len());
        if !fits {
            return Err(wrong(format!("{expected} tensors")));
        }
        let x = args[0];
        let (kind, dims) = (x.kind(), x.dims());
        let within = |axis: usize| if axis < dims.len() { Ok(()) } else { Err(wrong(format!("a dimension {axis}"))) };
        let one = |kind, dims: Vec<usize>| Ok(vec![(kind, dims)]);
        match self {
            Self::Unary(_) | Self::Activate(_) if kind == Kind::Whole => Err(wrong("floats".into())),
            Self::Unary(_) | Self::Affine { .. } | Self::Activate(_) => one(kind, dims.to_vec()),
            Self::Cast(to) => one(*to, dims.to_vec()),
            Self::Binary(_) | Self::Compare(_) => {
                if kind != args[1].kind() {
                    return Err(wrong("two tensors of one kind".into()));
                }
                let found = stretch(dims, args[1].dims()).ok_or_else(|| wrong("shapes that stretch".into()))?;
                one(if matches!(self, Self::Compare(_)) { Kind::Whole } else { kind }, found)
            }
            Self::Select => {
                let fits = kind == Kind::Whole && args[1].kind() == args[2].kind();
                let found = stretch(dims, args[1].dims()).and_then(|dims| stretch(&dims, args[2].dims()));
                let found = found.filter(|_| fits).ok_or_else(|| wrong("a whole condition and two tensors".into()))?;
                one(args[1].kind(), found)
            }
            Self::MatMul => {
                let both = (dims, args[1].dims());
                let ([lead @ .., m, k], [other @ .., k2, n]) = both else {
                    return Err(wrong("two matrices".into()));
                };
                let lead = stretch(lead, other).filter(|_| k == k2);
                let mut found = lead.ok_or_else(|| wrong("matrices that fit".into()))?;
                found.extend([*m, *n]);
                one(kind, found)
            }
            Self::Reshape(to) => {
                if to.iter().product::<usize>() != x.count() {
                    return Err(wrong(format!("the elements of {to:?}")));
                }
                one(kind, to.clone())
            }
            Self::Permute(order) => {
                let mut seen: Vec<usize> = order.clone();
                seen.sort_unstable();
                if !seen.iter().copied().eq(0..dims.len()) {
                    return Err(wrong(format!("the dimensions {order:?}")));
                }
                one(kind, order.iter().map(|&axis| dims[axis]).collect())
            }
            Self::Broadcast(to) => {
                if stretch(dims, to).as_ref() != Some(to) {
                    return Err(wrong(format!("what stretches to {to:?}")));
                }
                one(kind, to.clone())
            }
            Self::Slice { axis, start, length, step } => {
                within(*axis)?;
                let end = if *length == 0 { *start } else { start + (length - 1) * step + 1 };
                if end > dims[*axis] || *step == 0 {
                    return Err(wrong(format!("{length} places from {start} by {step} in dimension {axis}")));
                }
                one(kind, replaced(dims, *axis, *length))
            }
            Self::Concat { axis } => {
                within(*axis)?;
                let alike = |arg: &&Tensor| {
                    arg.kind() == kind
                        && arg.dims().len() == dims.len()
                        && replaced(arg.dims(), *axis, 0) == replaced(dims, *axis, 0)
                };
                if !args.iter().all(alike) {
                    return Err(wrong(format!("shapes that differ in dimension {axis} only")));
                }
                one(kind, replaced(dims, *axis, args.iter().map(|arg| arg.dims()[*axis]).sum()))
            }
            Self::Pad { axis, before, after, .. } => {
                within(*axis)?;
                one(kind, replaced(dims, *axis, before + dims[*axis] + after))
            }
            Self::Gather { axis } => {
                within(*axis)?;
                if args[1].kind() != Kind::Whole {
                    return Err(wrong("whole places".into()));
                }
                one(kind, [&dims[..*axis], args[1].dims(), &dims[axis + 1..]].concat())
            }
            Self::TakeAlong { axis } => {
                within(*axis)?;
                let places = args[1].dims();
                let fits = places.len() == dims.len() && replaced(places, *axis, 0) == replaced(dims, *axis, 0);
                if !fits || args[1].kind() != Kind::Whole {
                    return Err(wrong(format!("whole places that differ in dimension {axis} only")));
                }
                one(kind, places.to_vec())
            }
            Self::Reduce { axes, .. } => {
                axes.iter().try_for_each(|&axis| within(axis))?;
                one(kind, axes.iter().fold(dims.to_vec(), |dims, &axis| replaced(&dims, axis, 1)))
            }
            Self::CumulativeSum { axis } | Self::Softmax { axis } => {
                within(*axis)?;
                one(kind, dims.to_vec())
            }
            Self::TopK(count) => {
                let last = dims.len().checked_sub(1).filter(|&last| dims[last] >= *count);
                let last = last.ok_or_else(|| wrong(format!("at least {count} in the last dimension")))?;
                let found = replaced(dims, last, *count);
                Ok(vec![(kind, found.clone()), (Kind::Whole, found)])
            }
            Self::Linear { biases } => {
                let mut rest = args[1..].iter();
                let mut outs = Vec::with_capacity(biases.len());
                let k = dims.last().copied().unwrap_or(0);
                for bias in biases {
                    let weight = rest.next().map_or(&[][..], |weight| weight.dims());
                    let n = match weight {
                        [n, inputs] if *inputs == k && x.count() > 0 => *n,
                        _ => return Err(wrong("[.., k] and weights of [n, k]".into())),
                    };
                    if *bias && rest.next().map(|bias| bias.dims()) != Some(&[n]) {
                        return Err(wrong(format!("a bias of [{n}]")));
                    }
                    outs.push((Kind::Float, replaced(dims, dims.len() - 1, n)));
                }
                Ok(outs)
            }
            Self::Norm { .. } => {
                let last = &dims[dims.len().saturating_sub(1)..];
                if last.is_empty() || last[0] == 0 || args[1..].iter().any(|arg| arg.dims() != last) {
                    return Err(wrong("weights as long as the last dimension".into()));
                }
                one(kind, dims.to_vec())
            }
            Self::GroupNorm { groups, .. } => {
                let channels = dims.get(1).copied().unwrap_or(0);
                let fits = *groups > 0 && channels > 0 && channels.is_multiple_of(*groups);
                if !fits || args[1..].iter().any(|arg| arg.dims() != [channels]) {
                    return Err(wrong(format!("[batch, channels, ..] in {groups} groups, and weights of [channels]")));
                }
                one(kind, dims.to_vec())
            }
            Self::Gated(_) => {
                if dims != args[1].dims() {
                    return Err(wrong("two equal shapes".into()));
                }
                one(kind, dims.to_vec())
            }
            Self::Rope { head, .. } => {
                let angles = args[1].dims();
                let fits = match (dims, angles) {
                    (&[tokens, width], &[rows, half]) => {
                        *head > 0 && tokens == rows && width.is_multiple_of(*head) && 2 * half <= *head && half > 0
                    }
                    _ => false,
                };
                if !fits || angles != args[2].dims() {
                    return Err(wrong(format!(
                        "[tokens, heads * {head}] and angles of [tokens, at most {}]",
                        head / 2
                    )));
                }
                one(kind, dims.to_vec())
            }
            Self::Attention(attention) => attention.infer(args).ok_or_else(|| {
                let needed = "queries, keys, values and positions that fit";
                wrong(format!("{needed} {:?} and {:?}", attention.shape, attention.segments))
            }),
            Self::Convolution(conv) => {
                let found = conv.sizes(dims, args[1].dims(), args.get(2).map(|bias| bias.dims()));
                one(kind, found.ok_or_else(|| wrong(format!("shapes that fit {conv:?}")))?)
            }
            Self::ConvolutionTransposed(conv) => {
                let found = conv.transposed_sizes(dims, args[1].dims(), args.get(2).map(|bias| bias.dims()));
                one(kind, found.ok_or_else(|| wrong(format!("shapes that fit {conv:?}")))?)
            }
            Self::Experts(experts) => match (dims, args[1].dims(), args[1].kind()) {
                (&[tokens, hidden], &[rows, chosen], Kind::Whole) if tokens == rows && experts.count > 0 => {
                    one(kind, vec![tokens, chosen, hidden])
                }
                _ => Err(wrong("[tokens, hidden] and whole places of [tokens, chosen]".into())),
            },
            Self::CausalConvolution { .. } | Self::Scan(_) | Self::Wkv => recurrence::infer(self, args).map_err(wrong),
        }
    }

    /// How many arguments it takes, and whether `found` is that.
    fn arity(&self, found: usize) -> (usize, bool) {
        let expected = match self {
            Self::Unary(_)
            | Self::Affine { .. }
            | Self::Cast(_)
            | Self::Reshape(_)
            | Self::Permute(_)
            | Self::Broadcast(_)
            | Self::Slice { .. }
            | Self::Pad { .. }
            | Self::Reduce { .. }
            | Self::CumulativeSum { .. }
            | Self::TopK(_)
            | Self::Activate(_)
            | Self::Softmax { .. } => 1,
            Self::Binary(_)
            | Self::Compare(_)
            | Self::MatMul
            | Self::Gather { .. }
            | Self::TakeAlong { .. }
            | Self::Gated(_) => 2,
            Self::Select | Self::Rope { .. } => 3,
            Self::Concat { .. } => return (1, found > 0),
            Self::Linear { biases } => 1 + biases.iter().map(|&bias| 1 + usize::from(bias)).sum::<usize>(),
            Self::Norm { weight, bias, .. } => 1 + usize::from(*weight) + usize::from(*bias),
            Self::GroupNorm { affine, .. } => 1 + 2 * usize::from(*affine),
            Self::Attention(attention) => {
                5 + usize::from(attention.sinks) + if attention.bias { attention.segments.len() } else { 0 }
            }
            Self::Convolution(conv) | Self::ConvolutionTransposed(conv) => 2 + usize::from(conv.bias),
            Self::Experts(experts) => 2 + experts.count * experts.tensors(),
            Self::CausalConvolution { bias } => 3 + usize::from(*bias),
            Self::Scan(_) => 7,
            Self::Wkv => 5,
        };
        (expected, expected == found)
    }
}

impl Attention {
    fn infer(&self, args: &[&Tensor]) -> Option<Vec<Signature>> {
        let AttentionShape { heads, kv_heads, head, value_head, .. } = self.shape;
        let queries: usize = self.segments.iter().map(|segment| segment.queries).sum();
        let keys: usize = self.segments.iter().map(|segment| segment.keys).sum();
        let expected = [
            (Kind::Float, vec![queries, heads * head]),
            (Kind::Float, vec![keys, kv_heads * head]),
            (Kind::Float, vec![keys, kv_heads * value_head]),
            (Kind::Whole, vec![queries]),
            (Kind::Whole, vec![keys]),
        ];
        let mut fits = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        fits &= expected.iter().zip(args).all(|((kind, dims), arg)| arg.kind() == *kind && arg.dims() == dims);
        let rest = &args[5..];
        let biases = if self.sinks {
            fits &= rest[0].dims() == [heads];
            &rest[1..]
        } else {
            rest
        };
        for (bias, segment) in biases.iter().zip(&self.segments) {
            fits &= matches!(*bias.dims(), [of, queries, keys]
                if (of == heads || of == 1) && queries == segment.queries && keys == segment.keys);
        }
        fits.then(|| vec![(Kind::Float, vec![queries, heads * value_head])])
    }
}

impl Convolution {
    fn sizes(&self, x: &[usize], weight: &[usize], bias: Option<&[usize]>) -> Option<Vec<usize>> {
        let ([batch, channels, space @ ..], [outputs, inputs, taps @ ..]) = (x, weight) else { return None };
        let groups = self.groups;
        let fits = groups > 0 && inputs * groups == *channels && outputs.is_multiple_of(groups);
        let ranks = [space.len(), taps.len(), self.padding.len(), self.dilation.len()];
        if !fits || ranks != [self.stride.len(); 4] || bias.is_some_and(|bias| bias != [*outputs]) {
            return None;
        }
        let mut found = vec![*batch, *outputs];
        for (axis, (&size, &taps)) in space.iter().zip(taps).enumerate() {
            let reach = self.dilation[axis] * taps.checked_sub(1)? + 1;
            let room = (self.padding[axis].0 + size + self.padding[axis].1).checked_sub(reach)?;
            found.push(room.checked_div(self.stride[axis])? + 1);
        }
        Some(found)
    }

    fn transposed_sizes(&self, x: &[usize], weight: &[usize], bias: Option<&[usize]>) -> Option<Vec<usize>> {
        let ([batch, channels, space @ ..], [inputs, outputs, taps @ ..]) = (x, weight) else { return None };
        let outputs = outputs * self.groups;
        let fits = self.groups > 0 && inputs == channels && channels.is_multiple_of(self.groups);
        let ranks = [space.len(), taps.len(), self.padding.len(), self.dilation.len()];
        if !fits || ranks != [self.stride.len(); 4] || bias.is_some_and(|bias| bias != [outputs]) {
            return None;
        }
        let mut found = vec![*batch, outputs];
        for (axis, (&size, &taps)) in space.iter().zip(taps).enumerate() {
            let whole = size.checked_sub(1)? * self.stride[axis] + self.dilation[axis] * taps.checked_sub(1)? + 1;
            found.push(whole.checked_sub(self.padding[axis].0 + self.padding[axis].1)?);
        }
        Some(found)
    }
}

/// The shape that two shapes stretch to, dimensions of 1 and missing ones to those of the other.
pub(crate) fn stretch(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims[axis]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (a, b) if a == b => Some(a),
            (1, other) | (other, 1) => Some(other),
            _ => None,
        })
        .collect()
}

fn replaced(dims: &[usize], axis: usize, length: usize) -> Vec<usize> {
    let mut dims = dims.to_vec();
    dims[axis] = length;
    dims
}
