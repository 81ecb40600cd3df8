//! Small runs of every operation, in shapes that are easy to get wrong. What computes, or is made from a graph, is
//! compared over all of them: by `graph.rs` here, and by `onnx.rs` of accel-conformance with ONNX Runtime.

mod fused;

use std::collections::HashMap;
use std::sync::Arc;

use accel_backends::graph::interpret::{Array, Numbers};
use accel_backends::graph::{Graph, Recorder};
use accel_backends::tensor::op::{Binary, Compare, Reduce, Unary};
use accel_backends::tensor::{Engine, Kind, Tensor, TensorError, Weight};
use accel_backends::weights::Dtype;

type Result<T> = std::result::Result<T, TensorError>;
type Run = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>>;

/// A run with its inputs.
pub struct Case {
    /// What it is.
    pub name: String,
    inputs: Vec<Array>,
    run: Run,
}

impl Case {
    /// The inputs by name.
    pub fn inputs(&self) -> HashMap<String, Array> {
        self.inputs.iter().enumerate().map(|(place, array)| (format!("in.{place}"), array.clone())).collect()
    }

    /// What comes out, by name, when it is carried out.
    pub fn eager(&self, engine: &Engine) -> Result<HashMap<String, Array>> {
        let inputs = self.inputs.iter().map(|array| tensor(engine, array)).collect::<Result<Vec<_>>>()?;
        let named = |(place, out): (usize, Tensor)| {
            let numbers = match out.kind() {
                Kind::Float => Numbers::Float(out.to_vec()?),
                Kind::Whole => Numbers::Whole(out.to_whole()?),
            };
            Ok((format!("out.{place}"), Array { dims: out.dims().to_vec(), numbers }))
        };
        (self.run)(&inputs)?.into_iter().enumerate().map(named).collect()
    }

    /// The same, recorded.
    pub fn graph(&self, engine: &Engine) -> Result<Graph> {
        let recorder = Recorder::new();
        let input = |(place, array): (usize, &Array)| {
            let kind = if matches!(array.numbers, Numbers::Float(_)) { Kind::Float } else { Kind::Whole };
            recorder.input(engine, &format!("in.{place}"), kind, &array.dims)
        };
        let inputs: Vec<_> = self.inputs.iter().enumerate().map(input).collect();
        let outs = (self.run)(&inputs)?.into_iter().enumerate();
        recorder.finish(&outs.map(|(place, out)| (format!("out.{place}"), out)).collect::<Vec<_>>())
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    let groups = [
        unary,
        binary,
        whole_binary,
        compare,
        select,
        affine_and_cast,
        matmul,
        shapes,
        slices,
        gathers,
        reduces,
        orders,
    ];
    groups.into_iter().flat_map(|group| group()).chain(fused::all()).collect()
}

/// Numbers between -1 and 1 that look random and are always the same.
pub fn noise(seed: u64, length: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

fn case(name: impl Into<String>, inputs: Vec<Array>, run: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Case {
    Case { name: name.into(), inputs, run: Box::new(move |inputs| Ok(vec![run(inputs)?])) }
}

fn tensor(engine: &Engine, array: &Array) -> Result<Tensor> {
    match &array.numbers {
        Numbers::Float(values) => Tensor::new(engine, values.clone(), &array.dims),
        Numbers::Whole(values) => Tensor::whole(engine, values.clone(), &array.dims),
    }
}

fn floats(dims: &[usize], values: &[f32]) -> Array {
    Array { dims: dims.to_vec(), numbers: Numbers::Float(values.to_vec()) }
}

fn wholes(dims: &[usize], values: &[i64]) -> Array {
    Array { dims: dims.to_vec(), numbers: Numbers::Whole(values.to_vec()) }
}

/// Noise in a shape, other noise for other shapes.
fn some(dims: &[usize]) -> Array {
    let seed = dims.iter().fold(7, |seed, &size| seed * 31 + size as u64);
    floats(dims, &noise(seed, dims.iter().product()))
}

/// A constant of a run: noise in a shape.
fn weight(engine: &Engine, seed: u64, dims: &[usize]) -> Result<Tensor> {
    Tensor::new(engine, noise(seed, dims.iter().product()), dims)
}

/// A constant of a run, as a file would store it.
fn stored(engine: &Engine, seed: u64, dtype: Dtype, dims: &[usize]) -> Result<Tensor> {
    let values = noise(seed, dims.iter().product());
    let bytes = match dtype {
        Dtype::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
        // A scale and 32 whole numbers.
        Dtype::Q8_0 => values
            .chunks_exact(32)
            .flat_map(|block| {
                let scale = half::f16::from_f32(1.0 / 127.0).to_le_bytes();
                scale.into_iter().chain(block.iter().map(|value| (value * 127.0) as i8 as u8))
            })
            .collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    Ok(Tensor::stored(engine, Arc::new(Weight::new("weight", dtype, dims, bytes)?)))
}

fn unary() -> Vec<Case> {
    type Method = fn(&Tensor) -> Result<Tensor>;
    let anywhere: [(Unary, Method); 12] = [
        (Unary::Neg, Tensor::neg),
        (Unary::Abs, Tensor::abs),
        (Unary::Exp, Tensor::exp),
        (Unary::Sin, Tensor::sin),
        (Unary::Cos, Tensor::cos),
        (Unary::Tanh, Tensor::tanh),
        (Unary::Erf, Tensor::erf),
        (Unary::Sigmoid, Tensor::sigmoid),
        (Unary::Floor, Tensor::floor),
        (Unary::Ceil, Tensor::ceil),
        (Unary::Round, Tensor::round),
        (Unary::Sign, Tensor::sign),
    ];
    let positive: [(Unary, Method); 3] =
        [(Unary::Log, Tensor::log), (Unary::Sqrt, Tensor::sqrt), (Unary::Reciprocal, Tensor::recip)];
    let line = [-40.0, -2.5, -1.5, -0.5, -1e-3, 0.0, 0.5, 1.5, 2.5, 3.3, 20.0];
    let above = [1e-3, 0.2, 1.0, 2.5, 1e4];
    let mut cases = Vec::new();
    for (unary, method) in anywhere {
        cases.push(case(format!("{unary:?}"), vec![floats(&[11, 1], &line)], move |x| method(&x[0])));
    }
    for (unary, method) in positive {
        cases.push(case(format!("{unary:?}"), vec![floats(&[5], &above)], move |x| method(&x[0])));
    }
    cases.push(case("Neg of one number", vec![floats(&[], &[0.75])], |x| x[0].neg()));
    cases.push(case("Exp of nothing", vec![floats(&[2, 0], &[])], |x| x[0].exp()));
    cases
}

const SHAPES: [(&[usize], &[usize]); 5] =
    [(&[2, 1, 3], &[4, 1]), (&[], &[2]), (&[1, 1], &[]), (&[0, 3], &[1, 3]), (&[5], &[3, 1, 5])];

fn binary_of(binary: Binary) -> fn(&Tensor, &Tensor) -> Result<Tensor> {
    match binary {
        Binary::Add => Tensor::add,
        Binary::Sub => Tensor::sub,
        Binary::Mul => Tensor::mul,
        Binary::Div => Tensor::div,
        Binary::Pow => Tensor::pow,
        Binary::Max => Tensor::max,
        Binary::Min => Tensor::min,
    }
}

fn binary() -> Vec<Case> {
    use Binary::{Add, Div, Max, Min, Mul, Pow, Sub};
    let mut cases = Vec::new();
    for binary in [Add, Sub, Mul, Div, Pow, Max, Min] {
        for (a, b) in SHAPES {
            let (mut a, b) = (some(a), some(b));
            if let (Pow, Numbers::Float(values)) = (binary, &mut a.numbers) {
                values.iter_mut().for_each(|value| *value = value.abs() + 0.1);
            }
            let method = binary_of(binary);
            let name = format!("{binary:?} {:?} {:?}", a.dims, b.dims);
            cases.push(case(name, vec![a, b], move |x| method(&x[0], &x[1])));
        }
    }
    cases
}

fn whole_binary() -> Vec<Case> {
    use Binary::{Add, Div, Max, Min, Mul, Sub};
    let mut cases = Vec::new();
    for binary in [Add, Sub, Mul, Div, Max, Min] {
        let method = binary_of(binary);
        let inputs = vec![wholes(&[2, 3], &[-7, 7, 0, 5, -5, 1 << 40]), wholes(&[3], &[2, -2, 3])];
        cases.push(case(format!("whole {binary:?}"), inputs, move |x| method(&x[0], &x[1])));
    }
    cases
}

fn compare() -> Vec<Case> {
    let methods = [(Compare::Equal, Tensor::equal as fn(&Tensor, &Tensor) -> Result<Tensor>)];
    let methods =
        methods.into_iter().chain([(Compare::Less, Tensor::less as _), (Compare::LessEqual, Tensor::less_equal as _)]);
    let mut cases = Vec::new();
    for (compare, method) in methods {
        let inputs = vec![floats(&[3, 1], &[0.5, -0.5, 0.0]), floats(&[2], &[0.5, 0.0])];
        cases.push(case(format!("{compare:?}"), inputs, move |x| method(&x[0], &x[1])));
        let inputs = vec![wholes(&[3, 1], &[5, -5, 0]), wholes(&[2], &[5, 0])];
        cases.push(case(format!("whole {compare:?}"), inputs, move |x| method(&x[0], &x[1])));
    }
    cases
}

fn select() -> Vec<Case> {
    vec![
        case("select", vec![wholes(&[3], &[0, 1, -2]), some(&[3]), some(&[2, 1])], |x| x[0].select(&x[1], &x[2])),
        case("select by one", vec![wholes(&[], &[0]), some(&[3]), some(&[1])], |x| x[0].select(&x[1], &x[2])),
        case("select a wide condition", vec![wholes(&[2, 2], &[0, 1, 1, 0]), some(&[]), some(&[1, 2])], |x| {
            x[0].select(&x[1], &x[2])
        }),
        case("select whole", vec![wholes(&[2], &[1, 0]), wholes(&[2], &[3, 4]), wholes(&[], &[9])], |x| {
            x[0].select(&x[1], &x[2])
        }),
    ]
}

fn affine_and_cast() -> Vec<Case> {
    let numbers = || vec![floats(&[4], &[-2.75, -0.5, 0.5, 3.99])];
    let whole = || vec![wholes(&[2, 2], &[-3, 0, 1, 7])];
    let mut cases: Vec<Case> = [(2.5, -0.25), (0.5, 0.0), (1.0, 0.5), (1.0, 0.0), (0.0, 1.0)]
        .into_iter()
        .map(|(factor, offset)| {
            case(format!("affine {factor} {offset}"), numbers(), move |x| x[0].affine(factor, offset))
        })
        .collect();
    cases.extend([
        case("whole affine", whole(), |x| x[0].affine(-3.0, 2.0)),
        case("whole shift", whole(), |x| x[0].shift(1.0)),
        case("cast to whole", numbers(), |x| x[0].to_kind(Kind::Whole)),
        case("cast to float", whole(), |x| x[0].to_kind(Kind::Float)),
        case("clamp", numbers(), |x| x[0].clamp(-1.0, 1.0)),
    ]);
    cases
}

fn matmul() -> Vec<Case> {
    let shapes: [(&[usize], &[usize]); 8] = [
        (&[2, 3], &[3, 4]),
        (&[1, 1], &[1, 1]),
        (&[2, 1, 3, 4], &[5, 4, 2]),
        (&[3, 2, 4], &[4, 2]),
        (&[2, 4], &[3, 4, 1]),
        (&[2, 0], &[0, 3]),
        (&[0, 2, 3], &[3, 2]),
        (&[1, 70], &[70, 33]),
    ];
    shapes
        .into_iter()
        .map(|(a, b)| case(format!("matmul {a:?} {b:?}"), vec![some(a), some(b)], |x| x[0].matmul(&x[1])))
        .collect()
}

fn shapes() -> Vec<Case> {
    vec![
        case("reshape", vec![some(&[2, 3, 4])], |x| x[0].reshape(&[4, 1, 6])),
        case("reshape to one number", vec![some(&[1, 1])], |x| x[0].reshape(&[])),
        case("reshape one number", vec![some(&[])], |x| x[0].reshape(&[1, 1])),
        case("reshape nothing", vec![some(&[2, 0, 3])], |x| x[0].reshape(&[0, 5])),
        case("reshape whole", vec![wholes(&[4], &[1, 2, 3, 4])], |x| x[0].reshape(&[2, 2])),
        case("permute", vec![some(&[2, 3, 4, 5])], |x| x[0].permute(&[2, 0, 3, 1])),
        case("permute one number", vec![some(&[])], |x| x[0].permute(&[])),
        case("permute nothing", vec![some(&[0, 3])], |x| x[0].permute(&[1, 0])),
        case("permute then read on", vec![some(&[2, 3])], |x| x[0].transpose(0, 1)?.reshape(&[6])),
        case("broadcast", vec![some(&[1, 3, 1])], |x| x[0].broadcast(&[2, 3, 4])),
        case("broadcast one number", vec![some(&[])], |x| x[0].broadcast(&[2, 3])),
        case("broadcast to nothing", vec![some(&[1, 2])], |x| x[0].broadcast(&[0, 2])),
        case("broadcast then read on", vec![some(&[2, 1])], |x| x[0].broadcast(&[2, 3])?.reshape(&[6])?.shift(1.0)),
        case("an input is an output", vec![some(&[2])], |x| Ok(x[0].clone())),
        case("a constant is an output", vec![some(&[2])], |x| weight(x[0].engine(), 5, &[3])),
        Case {
            name: "one value is two outputs".into(),
            inputs: vec![some(&[2])],
            run: Box::new(|x| {
                let out = x[0].exp()?;
                Ok(vec![out.clone(), out, x[0].clone(), x[0].clone()])
            }),
        },
    ]
}

fn slices() -> Vec<Case> {
    vec![
        case("narrow", vec![some(&[2, 5, 3])], |x| x[0].narrow(1, 1, 3)),
        case("narrow to nothing", vec![some(&[2, 5])], |x| x[0].narrow(1, 5, 0)),
        case("every third", vec![some(&[8, 2])], |x| x[0].every(0, 1, 3)),
        case("every second of two", vec![some(&[3, 2])], |x| x[0].every(-1, 1, 2)),
        case("every second, whole", vec![wholes(&[5], &[1, 2, 3, 4, 5])], |x| x[0].every(0, 0, 2)),
        case("at", vec![some(&[3, 2])], |x| x[0].at(0, 2)),
        case("chunks", vec![some(&[2, 6])], |x| {
            let [a, b, c] = x[0].chunks(1)?;
            a.sub(&b)?.mul(&c)
        }),
        case("concat", vec![some(&[2, 1, 3]), some(&[2, 0, 3]), some(&[2, 2, 3])], |x| Tensor::concat(x, 1)),
        case("concat whole", vec![wholes(&[2], &[1, 2]), wholes(&[1], &[9])], |x| Tensor::concat(x, 0)),
        case("stack", vec![some(&[2, 3]), floats(&[2, 3], &noise(9, 6))], |x| Tensor::stack(x, -1)),
        case("stack numbers", vec![some(&[]), some(&[])], |x| Tensor::stack(x, 0)),
        case("pad", vec![some(&[2, 3])], |x| x[0].pad(1, 2, 1, -1.5)),
        case("pad whole", vec![wholes(&[2, 1], &[4, 5])], |x| x[0].pad(0, 0, 2, -1.0)),
        case("pad nothing", vec![some(&[0, 2])], |x| x[0].pad(0, 1, 0, 0.5)),
        case("reverse", vec![some(&[2, 3])], |x| x[0].reverse(1)),
    ]
}

fn gathers() -> Vec<Case> {
    let places = || wholes(&[2, 2], &[3, 0, 1, 3]);
    let table = |dtype: Dtype| {
        case(format!("embedding {dtype}"), vec![places()], move |x| {
            stored(x[0].engine(), 3, dtype, &[5, 32])?.embedding(&x[0])
        })
    };
    vec![
        table(Dtype::F32),
        table(Dtype::F16),
        table(Dtype::BF16),
        table(Dtype::Q8_0),
        case("gather in the middle", vec![some(&[2, 4, 3]), places()], |x| x[0].gather(1, &x[1])),
        case("gather by one", vec![some(&[4, 3]), wholes(&[], &[2])], |x| x[0].gather(0, &x[1])),
        case("gather nothing", vec![some(&[4, 3]), wholes(&[0], &[])], |x| x[0].gather(0, &x[1])),
        case("gather whole", vec![wholes(&[4], &[9, 8, 7, 6]), places()], |x| x[0].gather(0, &x[1])),
        case("take along", vec![some(&[2, 4]), wholes(&[2, 3], &[3, 3, 0, 1, 2, 0])], |x| x[0].take_along(1, &x[1])),
        case("take along the first", vec![some(&[3, 2]), wholes(&[1, 2], &[2, 0])], |x| x[0].take_along(0, &x[1])),
        case("take along whole", vec![wholes(&[3], &[5, 6, 7]), wholes(&[2], &[2, 2])], |x| x[0].take_along(0, &x[1])),
    ]
}

fn reduces() -> Vec<Case> {
    type Method = fn(&Tensor, &[isize]) -> Result<Tensor>;
    let methods: [(Reduce, Method); 4] = [
        (Reduce::Sum, Tensor::sum),
        (Reduce::Mean, Tensor::mean),
        (Reduce::Max, Tensor::largest),
        (Reduce::Min, Tensor::smallest),
    ];
    let axes: [&'static [isize]; 5] = [&[-1], &[0, 2], &[1], &[0, 1, 2], &[]];
    let mut cases = Vec::new();
    for (reduce, method) in methods {
        for axes in axes {
            cases.push(case(format!("{reduce:?} {axes:?}"), vec![some(&[2, 3, 4])], move |x| method(&x[0], axes)));
        }
        if reduce != Reduce::Mean {
            let inputs = vec![wholes(&[2, 2], &[3, -4, 1 << 40, 6])];
            cases.push(case(format!("whole {reduce:?}"), inputs, move |x| method(&x[0], &[0])));
        }
    }
    cases.push(case("Sum of nothing", vec![some(&[2, 0])], |x| x[0].sum(&[1])));
    cases
}

fn orders() -> Vec<Case> {
    let top = |name: &str, input: Array, count: usize| Case {
        name: name.into(),
        inputs: vec![input],
        run: Box::new(move |x| {
            let (values, places) = x[0].top_k(count)?;
            Ok(vec![values, places])
        }),
    };
    vec![
        case("cumulative sum", vec![some(&[2, 5, 2])], |x| x[0].cumulative_sum(1)),
        case("cumulative sum of the last", vec![some(&[3, 4])], |x| x[0].cumulative_sum(-1)),
        case("whole cumulative sum", vec![wholes(&[4], &[1, -2, 3, 4])], |x| x[0].cumulative_sum(0)),
        top("top 2", some(&[2, 3, 5]), 2),
        top("top all", some(&[7]), 7),
        top("top of equals", floats(&[2, 6], &[1.0, 3.0, 3.0, 1.0, 3.0, 0.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]), 4),
        top("top of many equals", floats(&[1, 80], &[0.5; 80]), 5),
        top("top of both zeros", floats(&[3], &[-0.0, 0.0, -1.0]), 2),
        case("argmax of equals", vec![floats(&[2, 3], &[1.0, 5.0, 5.0, 2.0, 2.0, 2.0])], |x| x[0].argmax()),
    ]
}

/// Says where two results differ, floats by more than `bound` times the size of the numbers around them.
pub fn differences(found: &HashMap<String, Array>, expected: &HashMap<String, Array>, bound: f32) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, expected) in expected {
        let Some(found) = found.get(name) else {
            faults.push(format!("{name} is missing"));
            continue;
        };
        if found.dims != expected.dims {
            faults.push(format!("{name}: expected {:?}, found {:?}", expected.dims, found.dims));
            continue;
        }
        match (&found.numbers, &expected.numbers) {
            (Numbers::Float(found), Numbers::Float(expected)) => {
                let size = expected.iter().map(|value| value.abs()).sum::<f32>() / expected.len().max(1) as f32;
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= bound * (b.abs() + size) || a == b;
                if found.len() != expected.len() || !found.iter().zip(expected).all(near) {
                    faults.push(format!("{name}: expected {expected:?}, found {found:?}"));
                }
            }
            (found, expected) if found == expected => {}
            (found, expected) => faults.push(format!("{name}: expected {expected:?}, found {found:?}")),
        }
    }
    faults
}
