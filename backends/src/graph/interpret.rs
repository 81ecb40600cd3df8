//! The reference interpreter: primitives only, each as plainly as it can be written, and with nothing of the kernels.
//!
//! It is slow on purpose. A fused operation is an error: what it is made of has to be in the graph.

use std::collections::HashMap;

use super::{Graph, Step, ValueId};
use crate::tensor::op::{Binary, Compare, Op, Reduce, Unary, stretch};
use crate::tensor::{Kind, Tensor, TensorError};

/// Numbers in a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The shape, slowest dimension first.
    pub dims: Vec<usize>,
    /// The numbers.
    pub numbers: Numbers,
}

/// Numbers of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// 32-bit floats.
    Float(Vec<f32>),
    /// 64-bit whole numbers.
    Whole(Vec<i64>),
}

/// A graph cannot be interpreted.
#[derive(Debug, thiserror::Error)]
pub enum InterpretError {
    /// An operation that is no primitive.
    #[error("{0} is not a primitive: the graph was not lowered")]
    Fused(&'static str),
    /// An input that was not given.
    #[error("input {0} is missing")]
    MissingInput(String),
    /// An input of another kind or shape.
    #[error("input {name}: expected {expected:?}, found {found:?}")]
    Input {
        /// Its name.
        name: String,
        /// What the graph was recorded with.
        expected: Vec<usize>,
        /// What was given.
        found: Vec<usize>,
    },
    /// A place outside a dimension.
    #[error("{operation}: {found} is outside {length} places")]
    Place {
        /// The operation.
        operation: &'static str,
        /// What was asked for.
        found: i64,
        /// How many there are.
        length: usize,
    },
    /// Numbers of the wrong kind.
    #[error("{0}: numbers of the wrong kind")]
    Kind(&'static str),
    /// A constant cannot be read.
    #[error(transparent)]
    Constant(#[from] TensorError),
    /// A value that no step before gave.
    #[error("value {0} is used before it is there")]
    Missing(ValueId),
}

type Result<T> = std::result::Result<T, InterpretError>;

impl Array {
    /// The values of a tensor.
    ///
    /// # Errors
    ///
    /// When it is recorded.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let numbers = match tensor.kind() {
            Kind::Float => Numbers::Float(tensor.to_vec()?),
            Kind::Whole => Numbers::Whole(tensor.to_whole()?),
        };
        Ok(Self { dims: tensor.dims().to_vec(), numbers })
    }

    fn floats(&self, operation: &'static str) -> Result<&[f32]> {
        match &self.numbers {
            Numbers::Float(values) => Ok(values),
            Numbers::Whole(_) => Err(InterpretError::Kind(operation)),
        }
    }

    fn wholes(&self, operation: &'static str) -> Result<&[i64]> {
        match &self.numbers {
            Numbers::Whole(values) => Ok(values),
            Numbers::Float(_) => Err(InterpretError::Kind(operation)),
        }
    }

    fn float(dims: Vec<usize>, values: Vec<f32>) -> Self {
        Self { dims, numbers: Numbers::Float(values) }
    }

    fn whole(dims: Vec<usize>, values: Vec<i64>) -> Self {
        Self { dims, numbers: Numbers::Whole(values) }
    }

    /// An array whose element at each index is that of this one at another place, or `fill` where there is none.
    fn rearranged(&self, dims: Vec<usize>, fill: f32, from: impl Fn(&[usize]) -> Option<usize>) -> Self {
        match &self.numbers {
            Numbers::Float(values) => {
                let values = indices(&dims).map(|index| from(&index).map_or(fill, |place| values[place])).collect();
                Self::float(dims, values)
            }
            Numbers::Whole(values) => {
                let fill = fill as i64;
                let values = indices(&dims).map(|index| from(&index).map_or(fill, |place| values[place])).collect();
                Self::whole(dims, values)
            }
        }
    }
}

impl Graph {
    /// Runs a graph of primitives.
    ///
    /// # Errors
    ///
    /// When an input is missing or of another shape, or an operation is no primitive.
    pub fn interpret(&self, inputs: &HashMap<String, Array>) -> Result<HashMap<String, Array>> {
        let mut values: HashMap<ValueId, Array> = HashMap::new();
        for (name, id) in &self.inputs {
            let given = inputs.get(name).ok_or_else(|| InterpretError::MissingInput(name.clone()))?;
            let expected = &self.values[*id].1;
            if given.dims != *expected {
                let (expected, found) = (expected.clone(), given.dims.clone());
                return Err(InterpretError::Input { name: name.clone(), expected, found });
            }
            values.insert(*id, given.clone());
        }
        for (id, tensor) in &self.constants {
            values.insert(*id, Array::of(tensor)?);
        }
        for step in &self.steps {
            let outs = {
                let arg = |id: &ValueId| values.get(id).ok_or(InterpretError::Missing(*id));
                let args = step.args.iter().map(arg).collect::<Result<Vec<_>>>()?;
                evaluate(step, &args)?
            };
            values.extend(step.outs.iter().copied().zip(outs));
        }
        let answer = |(name, id): &(String, ValueId)| {
            Ok((name.clone(), values.get(id).cloned().ok_or(InterpretError::Missing(*id))?))
        };
        self.outputs.iter().map(answer).collect()
    }
}

fn evaluate(step: &Step, args: &[&Array]) -> Result<Vec<Array>> {
    let (op, name, x) = (&step.op, step.op.name(), args[0]);
    let one = match op {
        Op::Unary(unary) => {
            Array::float(x.dims.clone(), x.floats(name)?.iter().map(|&x| self::unary(*unary, x)).collect())
        }
        Op::Affine { factor, offset } => affine(*factor, *offset, x, name)?,
        Op::Cast(kind) => cast(*kind, x),
        Op::Binary(binary) => self::binary(*binary, x, args[1], name)?,
        Op::Compare(compare) => self::compare(*compare, x, args[1])?,
        Op::Select => select(args, name)?,
        Op::MatMul => matmul(x, args[1], name)?,
        Op::Reshape(dims) => Array { dims: dims.clone(), numbers: x.numbers.clone() },
        Op::Permute(order) => {
            let steps = strides(&x.dims);
            let dims = order.iter().map(|&axis| x.dims[axis]).collect();
            x.rearranged(dims, 0.0, |index| Some(index.iter().zip(order).map(|(at, &axis)| at * steps[axis]).sum()))
        }
        Op::Broadcast(dims) => stretched(x, dims),
        Op::Slice { axis, start, length, step } => {
            let steps = strides(&x.dims);
            let mut dims = x.dims.clone();
            dims[*axis] = *length;
            x.rearranged(dims, 0.0, |index| {
                let at = |(dim, at): (usize, &usize)| if dim == *axis { start + at * step } else { *at };
                Some(index.iter().enumerate().map(|(dim, place)| at((dim, place)) * steps[dim]).sum())
            })
        }
        Op::Pad { axis, before, after, value } => {
            let steps = strides(&x.dims);
            let mut dims = x.dims.clone();
            dims[*axis] += before + after;
            x.rearranged(dims, *value, |index| {
                let inside = index[*axis].checked_sub(*before).filter(|&at| at < x.dims[*axis])?;
                let at = |dim: usize| if dim == *axis { inside } else { index[dim] };
                Some((0..index.len()).map(|dim| at(dim) * steps[dim]).sum())
            })
        }
        Op::Concat { axis } => concat(args, *axis, name)?,
        Op::Gather { axis } => gather(x, args[1], *axis, name)?,
        Op::TakeAlong { axis } => {
            let (steps, length) = (strides(&x.dims), x.dims[*axis]);
            let places = args[1].wholes(name)?;
            check(places, length, name)?;
            let place_steps = strides(&args[1].dims);
            x.rearranged(args[1].dims.clone(), 0.0, |index| {
                let own = index.iter().zip(&place_steps).map(|(at, step)| at * step).sum::<usize>();
                let at = |dim: usize| if dim == *axis { places[own] as usize } else { index[dim] };
                Some((0..index.len()).map(|dim| at(dim) * steps[dim]).sum())
            })
        }
        Op::Reduce { reduce, axes } => self::reduce(*reduce, axes, x, name)?,
        Op::CumulativeSum { axis } => cumulative_sum(*axis, x, name)?,
        Op::TopK(count) => return top_k(*count, x, name),
        _ => return Err(InterpretError::Fused(name)),
    };
    Ok(vec![one])
}

fn unary(unary: Unary, x: f32) -> f32 {
    match unary {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => f64::from(x).exp() as f32,
        Unary::Log => f64::from(x).ln() as f32,
        Unary::Sqrt => x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Sin => f64::from(x).sin() as f32,
        Unary::Cos => f64::from(x).cos() as f32,
        Unary::Tanh => f64::from(x).tanh() as f32,
        Unary::Erf => libm::erf(f64::from(x)) as f32,
        Unary::Sigmoid => (1.0 / (1.0 + (-f64::from(x)).exp())) as f32,
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Sign if x == 0.0 => 0.0,
        Unary::Sign => x.signum(),
    }
}

fn affine(factor: f32, offset: f32, x: &Array, name: &'static str) -> Result<Array> {
    match &x.numbers {
        Numbers::Float(values) => {
            Ok(Array::float(x.dims.clone(), values.iter().map(|x| x * factor + offset).collect()))
        }
        // Whole numbers stay whole only by whole factors.
        Numbers::Whole(_) if factor.fract() != 0.0 || offset.fract() != 0.0 => Err(InterpretError::Kind(name)),
        Numbers::Whole(values) => {
            let of = |x: &i64| x * factor as i64 + offset as i64;
            Ok(Array::whole(x.dims.clone(), values.iter().map(of).collect()))
        }
    }
}

fn cast(kind: Kind, x: &Array) -> Array {
    let dims = x.dims.clone();
    match (&x.numbers, kind) {
        (Numbers::Float(values), Kind::Whole) => Array::whole(dims, values.iter().map(|&x| x as i64).collect()),
        (Numbers::Whole(values), Kind::Float) => Array::float(dims, values.iter().map(|&x| x as f32).collect()),
        _ => x.clone(),
    }
}

/// Both arrays stretched to their common shape.
fn together(a: &Array, b: &Array) -> (Array, Array) {
    // The graph was checked when it was recorded.
    let dims = stretch(&a.dims, &b.dims).unwrap_or_else(|| a.dims.clone());
    (stretched(a, &dims), stretched(b, &dims))
}

fn stretched(x: &Array, dims: &[usize]) -> Array {
    let steps = strides(&x.dims);
    let missing = dims.len() - x.dims.len();
    x.rearranged(dims.to_vec(), 0.0, |index| {
        let at = |(dim, &size): (usize, &usize)| if size == 1 { 0 } else { index[missing + dim] * steps[dim] };
        Some(x.dims.iter().enumerate().map(at).sum())
    })
}

fn binary(binary: Binary, a: &Array, b: &Array, name: &'static str) -> Result<Array> {
    let (a, b) = together(a, b);
    match (&a.numbers, &b.numbers) {
        (Numbers::Float(x), Numbers::Float(y)) => {
            let op = |(&x, &y): (&f32, &f32)| match binary {
                Binary::Add => x + y,
                Binary::Sub => x - y,
                Binary::Mul => x * y,
                Binary::Div => x / y,
                Binary::Pow => f64::from(x).powf(f64::from(y)) as f32,
                Binary::Max => x.max(y),
                Binary::Min => x.min(y),
            };
            Ok(Array::float(a.dims.clone(), x.iter().zip(y).map(op).collect()))
        }
        (Numbers::Whole(x), Numbers::Whole(y)) => {
            let op = |(&x, &y): (&i64, &i64)| match binary {
                Binary::Add => Ok(x + y),
                Binary::Sub => Ok(x - y),
                Binary::Mul => Ok(x * y),
                Binary::Div => x.checked_div(y).ok_or(InterpretError::Kind(name)),
                Binary::Pow => Err(InterpretError::Kind(name)),
                Binary::Max => Ok(x.max(y)),
                Binary::Min => Ok(x.min(y)),
            };
            Ok(Array::whole(a.dims.clone(), x.iter().zip(y).map(op).collect::<Result<_>>()?))
        }
        _ => Err(InterpretError::Kind(name)),
    }
}

fn compare(compare: Compare, a: &Array, b: &Array) -> Result<Array> {
    fn holds<T: PartialOrd>(compare: Compare, x: &T, y: &T) -> i64 {
        i64::from(match compare {
            Compare::Equal => x == y,
            Compare::Less => x < y,
            Compare::LessEqual => x <= y,
        })
    }
    let (a, b) = together(a, b);
    let values = match (&a.numbers, &b.numbers) {
        (Numbers::Float(x), Numbers::Float(y)) => x.iter().zip(y).map(|(x, y)| holds(compare, x, y)).collect(),
        (Numbers::Whole(x), Numbers::Whole(y)) => x.iter().zip(y).map(|(x, y)| holds(compare, x, y)).collect(),
        _ => return Err(InterpretError::Kind("compare")),
    };
    Ok(Array::whole(a.dims, values))
}

fn select(args: &[&Array], name: &'static str) -> Result<Array> {
    let (a, b) = together(args[1], args[2]);
    let (condition, a) = together(args[0], &a);
    let (_, b) = together(&condition, &b);
    let condition_values = condition.wholes(name)?;
    let choose = condition_values.iter().enumerate();
    Ok(match (&a.numbers, &b.numbers) {
        (Numbers::Float(x), Numbers::Float(y)) => {
            Array::float(a.dims.clone(), choose.map(|(at, &yes)| if yes != 0 { x[at] } else { y[at] }).collect())
        }
        (Numbers::Whole(x), Numbers::Whole(y)) => {
            Array::whole(a.dims.clone(), choose.map(|(at, &yes)| if yes != 0 { x[at] } else { y[at] }).collect())
        }
        _ => return Err(InterpretError::Kind(name)),
    })
}

fn matmul(a: &Array, b: &Array, name: &'static str) -> Result<Array> {
    let ([a_lead @ .., m, k], [b_lead @ .., _, n]) = (&a.dims[..], &b.dims[..]) else {
        return Err(InterpretError::Kind(name));
    };
    let lead = stretch(a_lead, b_lead).ok_or(InterpretError::Kind(name))?;
    let a = stretched(a, &[&lead[..], &[*m, *k]].concat());
    let b = stretched(b, &[&lead[..], &[*k, *n]].concat());
    let (x, y) = (a.floats(name)?, b.floats(name)?);
    let mut out = Vec::with_capacity(lead.iter().product::<usize>() * m * n);
    for matrix in 0..lead.iter().product() {
        let (x, y) = (&x[matrix * m * k..][..m * k], &y[matrix * k * n..][..k * n]);
        for row in 0..*m {
            for column in 0..*n {
                let products = (0..*k).map(|at| f64::from(x[row * k + at]) * f64::from(y[at * n + column]));
                out.push(products.sum::<f64>() as f32);
            }
        }
    }
    Ok(Array::float([&lead[..], &[*m, *n]].concat(), out))
}

fn concat(args: &[&Array], axis: usize, name: &'static str) -> Result<Array> {
    let mut dims = args[0].dims.clone();
    dims[axis] = args.iter().map(|arg| arg.dims[axis]).sum();
    let before: usize = dims[..axis].iter().product();
    let after: usize = dims[axis + 1..].iter().product();
    fn joined<T: Copy>(parts: &[(&[T], usize)], before: usize) -> Vec<T> {
        (0..before)
            .flat_map(|at| parts.iter().flat_map(move |(part, run)| &part[at * run..][..*run]))
            .copied()
            .collect()
    }
    let run = |arg: &Array| arg.dims[axis] * after;
    Ok(match args[0].numbers {
        Numbers::Float(_) => {
            let parts = args.iter().map(|arg| Ok((arg.floats(name)?, run(arg)))).collect::<Result<Vec<_>>>()?;
            Array::float(dims, joined(&parts, before))
        }
        Numbers::Whole(_) => {
            let parts = args.iter().map(|arg| Ok((arg.wholes(name)?, run(arg)))).collect::<Result<Vec<_>>>()?;
            Array::whole(dims, joined(&parts, before))
        }
    })
}

fn gather(x: &Array, places: &Array, axis: usize, name: &'static str) -> Result<Array> {
    let wanted = places.wholes(name)?;
    check(wanted, x.dims[axis], name)?;
    let (rank, steps, place_steps) = (places.dims.len(), strides(&x.dims), strides(&places.dims));
    let dims = [&x.dims[..axis], &places.dims[..], &x.dims[axis + 1..]].concat();
    Ok(x.rearranged(dims, 0.0, |index| {
        let own: usize = index[axis..axis + rank].iter().zip(&place_steps).map(|(at, step)| at * step).sum();
        let before: usize = index[..axis].iter().zip(&steps).map(|(at, step)| at * step).sum();
        let after: usize = index[axis + rank..].iter().zip(&steps[axis + 1..]).map(|(at, step)| at * step).sum();
        Some(before + wanted[own] as usize * steps[axis] + after)
    }))
}

fn check(places: &[i64], length: usize, operation: &'static str) -> Result<()> {
    match places.iter().find(|&&place| usize::try_from(place).map_or(true, |place| place >= length)) {
        Some(&found) => Err(InterpretError::Place { operation, found, length }),
        None => Ok(()),
    }
}

fn reduce(reduce: Reduce, axes: &[usize], x: &Array, name: &'static str) -> Result<Array> {
    let mut dims = x.dims.clone();
    axes.iter().for_each(|&axis| dims[axis] = 1);
    match &x.numbers {
        Numbers::Float(values) => {
            let sum = |line: &[f32]| line.iter().map(|&x| f64::from(x)).sum::<f64>();
            let of = |line: Vec<f32>| match reduce {
                Reduce::Sum => sum(&line) as f32,
                Reduce::Mean => (sum(&line) / line.len() as f64) as f32,
                Reduce::Max => line.into_iter().fold(f32::NEG_INFINITY, f32::max),
                Reduce::Min => line.into_iter().fold(f32::INFINITY, f32::min),
            };
            let values = lines(values, axes, &x.dims, &dims).into_iter().map(of).collect();
            Ok(Array::float(dims, values))
        }
        Numbers::Whole(values) => {
            let of = |line: Vec<i64>| match reduce {
                Reduce::Sum => Some(line.into_iter().sum()),
                Reduce::Mean => None,
                Reduce::Max => line.into_iter().max(),
                Reduce::Min => line.into_iter().min(),
            };
            let lines = lines(values, axes, &x.dims, &dims).into_iter();
            let values = lines.map(|line| of(line).ok_or(InterpretError::Kind(name))).collect::<Result<_>>()?;
            Ok(Array::whole(dims, values))
        }
    }
}

/// What comes together in each place of a shape when `axes` of `from` become 1 in it.
fn lines<T: Copy>(values: &[T], axes: &[usize], from: &[usize], to: &[usize]) -> Vec<Vec<T>> {
    let steps = strides(to);
    let mut lines = vec![Vec::new(); to.iter().product()];
    for (index, &value) in indices(from).zip(values) {
        let at = |(dim, at): (usize, &usize)| if axes.contains(&dim) { 0 } else { at * steps[dim] };
        lines[index.iter().enumerate().map(at).sum::<usize>()].push(value);
    }
    lines
}

fn cumulative_sum(axis: usize, x: &Array, name: &'static str) -> Result<Array> {
    let steps = strides(&x.dims);
    let mut floats = x.clone();
    match &mut floats.numbers {
        Numbers::Float(values) => {
            for (place, index) in indices(&x.dims).enumerate() {
                if index[axis] > 0 {
                    values[place] += values[place - steps[axis]];
                }
            }
        }
        Numbers::Whole(values) => {
            for (place, index) in indices(&x.dims).enumerate() {
                if index[axis] > 0 {
                    values[place] =
                        values[place].checked_add(values[place - steps[axis]]).ok_or(InterpretError::Kind(name))?;
                }
            }
        }
    }
    Ok(floats)
}

fn top_k(count: usize, x: &Array, name: &'static str) -> Result<Vec<Array>> {
    let length = x.dims.last().copied().unwrap_or(1).max(1);
    let (mut values, mut places) = (Vec::new(), Vec::new());
    for line in x.floats(name)?.chunks_exact(length) {
        let mut taken = vec![false; length];
        for _ in 0..count {
            let better = |best: Option<usize>, at: usize| match best {
                Some(best) if line[best] >= line[at] => Some(best),
                _ => Some(at),
            };
            let best = (0..length).filter(|&at| !taken[at]).fold(None, better).ok_or(InterpretError::Kind(name))?;
            taken[best] = true;
            values.push(line[best]);
            places.push(best as i64);
        }
    }
    let mut dims = x.dims.clone();
    if let Some(last) = dims.last_mut() {
        *last = count;
    }
    Ok(vec![Array::float(dims.clone(), values), Array::whole(dims, places)])
}

/// From one place to the next, along each dimension.
fn strides(dims: &[usize]) -> Vec<usize> {
    (0..dims.len()).map(|axis| dims[axis + 1..].iter().product()).collect()
}

/// All indices of a shape, the last dimension fastest.
fn indices(dims: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let (dims, steps) = (dims.to_vec(), strides(dims));
    let count: usize = dims.iter().product();
    (0..count).map(move |place| dims.iter().zip(&steps).map(|(size, step)| place / step % size).collect())
}
