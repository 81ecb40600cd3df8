//! Recurrences: right against their definition, the same bits on every engine and however a sequence is cut, and the same
//! when brought down to primitives.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;

use accel_backends::graph::Recorder;
use accel_backends::graph::interpret::{Array, Numbers};
use accel_backends::tensor::{Engine, Kind, Linear, Scan, ScanInputs, Tensor};

/// Numbers from -1 to 1 that look random and are always the same.
fn noise(seed: u64, length: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

const TOKENS: usize = 9;

/// What a recurrence makes of what goes along the tokens, of what does not, and of what is carried.
type Run = fn(&[Tensor], &[Tensor], &Tensor) -> (Tensor, Tensor);

/// One recurrence: what goes along the tokens, what does not, and what is carried at first.
struct Case {
    tokens: Vec<Array>,
    fixed: Vec<Array>,
    first: Array,
    run: Run,
}

fn array(seed: u64, dims: &[usize], change: impl Fn(f32) -> f32) -> Array {
    let values = noise(seed, dims.iter().product()).into_iter().map(change).collect();
    Array { dims: dims.to_vec(), numbers: Numbers::Float(values) }
}

fn floats(array: &Array) -> &[f32] {
    let Numbers::Float(values) = &array.numbers else { panic!("floats") };
    values
}

fn tensor(engine: &Engine, array: &Array) -> Tensor {
    Tensor::new(engine, floats(array).to_vec(), &array.dims).unwrap()
}

fn convolution(channels: usize, taps: usize) -> Case {
    Case {
        tokens: vec![array(1, &[TOKENS, channels], |x| x)],
        fixed: vec![array(2, &[taps, channels], |x| x), array(3, &[channels], |x| x)],
        first: array(4, &[taps - 1, channels], |x| x),
        run: |tokens, fixed, tail| {
            let layer = Linear { weight: fixed[0].clone(), bias: Some(fixed[1].clone()) };
            tokens[0].causal_convolution(tail, &layer).unwrap()
        },
    }
}

/// Six heads in two groups with one rate each, or six channels with a rate to each place.
fn scan(head: usize, places: usize) -> Case {
    let (groups, rates) = if head == 1 { (1, places) } else { (2, 1) };
    Case {
        tokens: vec![
            array(1, &[TOKENS, 6 * head], |x| x),
            array(2, &[TOKENS, 6], |x| x.abs() * 3.0),
            array(3, &[TOKENS, groups * places], |x| x),
            array(4, &[TOKENS, groups * places], |x| x),
        ],
        fixed: vec![array(5, &[6, rates], |x| -2.0 * x.abs()), array(6, &[6], |x| x)],
        first: array(7, &[6 * head, places], |x| x),
        run: |tokens, fixed, state| {
            let [x, step, input, output] = tokens else { panic!("four") };
            let inputs = ScanInputs { step, rate: &fixed[0], input, output, skip: &fixed[1] };
            let head = x.dims()[1] / 6;
            x.scan(Scan { head, groups: if head == 1 { 1 } else { 2 } }, &inputs, state).unwrap()
        },
    }
}

fn wkv(width: usize) -> Case {
    let nothing = [vec![0.0; 2 * width], vec![-1e38; width]].concat();
    Case {
        tokens: vec![array(1, &[TOKENS, width], |x| 40.0 * x), array(2, &[TOKENS, width], |x| x)],
        fixed: vec![array(3, &[width], |x| -3.0 * x.abs()), array(4, &[width], |x| x)],
        first: Array { dims: vec![3, width], numbers: Numbers::Float(nothing) },
        run: |tokens, fixed, state| tokens[0].wkv(&tokens[1], &fixed[0], &fixed[1], state).unwrap(),
    }
}

fn cases() -> [Case; 8] {
    [convolution(5, 4), convolution(16, 2), convolution(3, 1), scan(1, 5), scan(1, 16), scan(3, 8), scan(2, 9), wkv(11)]
}

impl Case {
    /// Results and what is carried at last, read in pieces of these lengths.
    fn run(&self, engine: &Engine, pieces: &[usize]) -> [Vec<f32>; 2] {
        let tokens: Vec<_> = self.tokens.iter().map(|array| tensor(engine, array)).collect();
        let fixed: Vec<_> = self.fixed.iter().map(|array| tensor(engine, array)).collect();
        let (mut carried, mut from, mut all) = (tensor(engine, &self.first), 0, Vec::new());
        for &piece in pieces {
            let part: Vec<_> = tokens.iter().map(|all| all.narrow(0, from, piece).unwrap()).collect();
            let (out, next) = (self.run)(&part, &fixed, &carried);
            all.extend(out.to_vec().unwrap());
            (carried, from) = (next, from + piece);
        }
        [all, carried.to_vec().unwrap()]
    }

    /// The same, recorded, brought down to primitives, and interpreted.
    fn interpreted(&self, engine: &Engine) -> [Vec<f32>; 2] {
        let (recorder, mut given) = (Recorder::new(), HashMap::new());
        let mut input = |array: &Array| {
            let name = given.len().to_string();
            let tensor = recorder.input(engine, &name, Kind::Float, &array.dims);
            given.insert(name, array.clone());
            tensor
        };
        let tokens: Vec<_> = self.tokens.iter().map(&mut input).collect();
        let fixed: Vec<_> = self.fixed.iter().map(&mut input).collect();
        let (out, carried) = (self.run)(&tokens, &fixed, &input(&self.first));
        let graph = recorder.finish(&[("out".into(), out), ("carried".into(), carried)]).unwrap();
        let answers = graph.lower(engine, |_| false).unwrap().interpret(&given).unwrap();
        ["out", "carried"].map(|name| floats(&answers[name]).to_vec())
    }
}

#[test]
fn engines_and_pieces_give_the_same_bits() {
    let engines =
        [Engine::cpu(1).unwrap(), Engine::cpu(3).unwrap(), Engine::portable(1).unwrap(), Engine::portable(2).unwrap()];
    for case in cases() {
        let bits = |[out, carried]: [Vec<f32>; 2]| out.into_iter().chain(carried).map(f32::to_bits).collect::<Vec<_>>();
        let whole = bits(case.run(&engines[0], &[TOKENS]));
        for engine in &engines {
            for pieces in [&[TOKENS][..], &[1; TOKENS], &[4, 1, 4]] {
                assert_eq!(bits(case.run(engine, pieces)), whole);
            }
        }
    }
}

#[test]
fn kernels_answer_as_primitives_do() {
    let engine = Engine::cpu(1).unwrap();
    for case in cases() {
        let (kernel, primitives) = (case.run(&engine, &[TOKENS]), case.interpreted(&engine));
        for (got, want) in kernel.iter().flatten().zip(primitives.iter().flatten()) {
            assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} {want}");
        }
    }
}

/// One channel with one place, whose numbers can be worked out by hand.
#[test]
fn a_scan_is_what_it_says() {
    let engine = Engine::cpu(1).unwrap();
    let of = |values: &[f32], dims: &[usize]| Tensor::new(&engine, values.to_vec(), dims).unwrap();
    let half = -std::f32::consts::LN_2;
    let inputs = ScanInputs {
        step: &of(&[1.0, 2.0], &[2, 1]),
        rate: &of(&[half], &[1, 1]),
        input: &of(&[3.0, 1.0], &[2, 1]),
        output: &of(&[1.0, 10.0], &[2, 1]),
        skip: &of(&[100.0], &[1]),
    };
    let (out, state) =
        of(&[1.0, 5.0], &[2, 1]).scan(Scan { head: 1, groups: 1 }, &inputs, &of(&[8.0], &[1, 1])).unwrap();
    // 8 / 2 + 1 * 1 * 3 = 7, and 7 / 4 + 2 * 5 * 1 = 11.75.
    let near = |got: Vec<f32>, want: &[f32]| got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-3);
    assert!(near(out.to_vec().unwrap(), &[107.0, 617.5]) && near(state.to_vec().unwrap(), &[11.75]));
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let engine = Engine::cpu(1).unwrap();
    let of = |dims: &[usize]| Tensor::new(&engine, vec![0.0; dims.iter().product()], dims).unwrap();
    let layer = Linear { weight: of(&[4, 6]), bias: None };
    assert!(of(&[2, 6]).causal_convolution(&of(&[2, 6]), &layer).is_err());
    assert!(of(&[2, 5]).causal_convolution(&of(&[3, 5]), &layer).is_err());
    assert!(of(&[2, 6]).wkv(&of(&[2, 6]), &of(&[6]), &of(&[5]), &of(&[3, 6])).is_err());
    let (step, rate, shared, skip) = (of(&[2, 3]), of(&[3, 1]), of(&[2, 8]), of(&[3]));
    let inputs = ScanInputs { step: &step, rate: &rate, input: &shared, output: &shared, skip: &skip };
    // Three heads are no two groups.
    assert!(of(&[2, 6]).scan(Scan { head: 2, groups: 2 }, &inputs, &of(&[6, 4])).is_err());
    assert!(of(&[2, 6]).scan(Scan { head: 0, groups: 1 }, &inputs, &of(&[6, 8])).is_err());
    assert!(of(&[2, 6]).scan(Scan { head: 2, groups: 1 }, &inputs, &of(&[6, 8])).is_ok());
}
