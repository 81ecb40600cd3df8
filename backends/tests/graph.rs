//! Graphs: what is recorded does what is carried out, in primitives alone.

#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]

#[path = "graph/cases.rs"]
mod cases;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use accel_backends::graph::interpret::{Array, InterpretError, Numbers};
use accel_backends::graph::onnx::{External, MODEL_BYTES_MAX, OnnxError, native, output_name};
use accel_backends::graph::{Graph, Recorder};
use accel_backends::tensor::{Engine, Kind, Linear, Tensor, TensorError, Weight};
use accel_backends::weights::Dtype;
use anyhow::Context;
use cases::{Case, differences};

/// Largest error of a float, in parts of the numbers around it.
const BOUND: f32 = 1e-5;

/// What is wrong with a case's graph, if anything.
fn fault(engine: &Engine, case: &Case) -> anyhow::Result<Vec<String>> {
    let expected = case.eager(engine).context("eager")?;
    let lowered = case.graph(engine).context("recording")?.lower(engine, |_| false).context("lowering")?;
    Ok(differences(&lowered.interpret(&case.inputs()).context("interpreting")?, &expected, BOUND))
}

#[test]
fn recorded_and_lowered_runs_give_what_eager_ones_give() {
    let engine = Engine::cpu(1).unwrap();
    let faults = cases::all().into_iter().filter_map(|case| match fault(&engine, &case) {
        Ok(faults) if faults.is_empty() => None,
        Ok(faults) => Some(format!("{}: {}", case.name, faults.join("; "))),
        Err(error) => Some(format!("{}: {error:#}", case.name)),
    });
    let faults: Vec<_> = faults.collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_operation_is_tried() {
    let engine = Engine::cpu(1).unwrap();
    let graphs = cases::all().into_iter().map(|case| case.graph(&engine).unwrap());
    let tried: BTreeSet<_> = graphs.flat_map(|graph| graph.steps).map(|step| step.op.name()).collect();
    let primitives = [
        "affine",
        "binary",
        "broadcast",
        "cast",
        "compare",
        "concat",
        "cumulative_sum",
        "gather",
        "matmul",
        "pad",
        "permute",
        "reduce",
        "reshape",
        "select",
        "slice",
        "take_along",
        "top_k",
        "unary",
    ];
    let fused = [
        "activate",
        "attention",
        "convolution",
        "convolution_transposed",
        "experts",
        "gated",
        "group_norm",
        "linear",
        "norm",
        "rope",
        "softmax",
    ];
    assert_eq!(tried, primitives.into_iter().chain(fused).collect());
}

/// Two layers over an input `x` of `[2, 3]` that share their weight.
fn shared(engine: &Engine) -> (Tensor, Graph) {
    let bytes = (0..9).flat_map(|value| (value as f32).to_le_bytes()).collect();
    let weight = Tensor::stored(engine, Arc::new(Weight::new("w", Dtype::F32, &[3, 3], bytes).unwrap()));
    let recorder = Recorder::new();
    let x = recorder.input(engine, "x", Kind::Float, &[2, 3]);
    let layer = Linear { weight: weight.clone(), bias: None };
    let y = x.linear(&layer).unwrap().linear(&layer).unwrap();
    (weight, recorder.finish(&[("y".into(), y)]).unwrap())
}

fn given(dims: &[usize], values: &[f32]) -> HashMap<String, Array> {
    HashMap::from([("x".into(), Array { dims: dims.to_vec(), numbers: Numbers::Float(values.to_vec()) })])
}

#[test]
fn a_weight_used_twice_is_one_constant() {
    let engine = Engine::cpu(1).unwrap();
    let (weight, graph) = shared(&engine);
    assert_eq!(graph.constants.len(), 1);
    let kept = graph.lower(&engine, native).unwrap();
    assert!(Arc::ptr_eq(kept.constants[0].1.as_stored().unwrap(), weight.as_stored().unwrap()));
}

#[test]
fn a_graph_is_interpreted_with_all_its_inputs_and_in_primitives_only() {
    let engine = Engine::cpu(1).unwrap();
    let graph = shared(&engine).1;
    let inputs = given(&[2, 3], &[1.0; 6]);
    assert!(matches!(graph.interpret(&inputs), Err(InterpretError::Fused("linear"))));
    let lowered = graph.lower(&engine, |_| false).unwrap();
    assert!(matches!(lowered.interpret(&HashMap::new()), Err(InterpretError::MissingInput(name)) if name == "x"));
    assert!(matches!(lowered.interpret(&given(&[3, 2], &[1.0; 6])), Err(InterpretError::Input { .. })));
    let out = &lowered.interpret(&inputs).unwrap()["y"];
    assert_eq!(out.numbers, Numbers::Float([[54.0, 162.0, 270.0]; 2].concat()));
}

#[test]
fn a_place_outside_a_table_is_an_error_everywhere() {
    let engine = Engine::cpu(1).unwrap();
    let table = Tensor::new(&engine, vec![0.0; 6], &[3, 2]).unwrap();
    for found in [3, -1] {
        let place = Tensor::whole(&engine, vec![found], &[1]).unwrap();
        assert!(
            matches!(table.gather(0, &place), Err(TensorError::Index { found: place, rows: 3, .. }) if place == found)
        );
        let recorder = Recorder::new();
        let x = recorder.input(&engine, "x", Kind::Whole, &[1]);
        let graph = recorder.finish(&[("y".into(), table.gather(0, &x).unwrap())]).unwrap();
        let inputs = HashMap::from([("x".into(), Array { dims: vec![1], numbers: Numbers::Whole(vec![found]) })]);
        assert!(matches!(graph.interpret(&inputs), Err(InterpretError::Place { length: 3, .. })));
    }
}

#[test]
fn a_recorded_tensor_has_no_values_and_belongs_to_its_recording() {
    let engine = Engine::cpu(1).unwrap();
    let (recorder, other) = (Recorder::new(), Recorder::new());
    let x = recorder.input(&engine, "x", Kind::Float, &[2]);
    assert!(matches!(x.to_vec(), Err(TensorError::Recorded { .. })));
    assert!(matches!(x.add(&other.input(&engine, "x", Kind::Float, &[2])), Err(TensorError::Recorded { .. })));
    assert!(matches!(other.finish(&[("y".into(), x)]), Err(TensorError::Recorded { .. })));
}

#[test]
fn what_onnx_does_not_have_is_named() {
    let engine = Engine::cpu(1).unwrap();
    let recorder = Recorder::new();
    let x = recorder.input(&engine, "x", Kind::Float, &[2, 3]);
    let graph = recorder.finish(&[("y".into(), x.rms_norm(None, 1e-5).unwrap())]).unwrap();
    assert!(matches!(graph.to_onnx(|_| None), Err(OnnxError::Fused("norm"))));
    assert!(graph.lower(&engine, native).unwrap().to_onnx(|_| None).is_ok());

    let recorder = Recorder::new();
    let x = recorder.input(&engine, "x", Kind::Whole, &[2]);
    let halves = recorder.finish(&[("y".into(), x.scale(0.5).unwrap())]).unwrap();
    assert!(matches!(halves.to_onnx(|_| None), Err(OnnxError::Fraction { factor: 0.5, .. })));
}

#[test]
fn names_of_inputs_and_outputs_differ_and_are_not_empty() {
    let engine = Engine::cpu(1).unwrap();
    let named = |names: [&str; 2]| {
        let recorder = Recorder::new();
        let x = recorder.input(&engine, names[0], Kind::Float, &[2]);
        recorder.finish(&[(names[1].into(), x.neg().unwrap())]).unwrap()
    };
    for names in [["x", ""], ["", "y"]] {
        assert!(matches!(named(names).to_onnx(|_| None), Err(OnnxError::Name(_))), "{names:?}");
    }
    let graph = named(["x", "x"]);
    assert_eq!(output_name(&graph, "x"), "out_x");
    assert_eq!(output_name(&graph, "y"), "y");
    graph.to_onnx(|_| None).expect("an output that is called as its input is");
}

#[test]
fn numbers_in_other_files_are_those_of_the_constant() {
    let engine = Engine::cpu(1).unwrap();
    let graph = shared(&engine).1.lower(&engine, native).unwrap();
    let external = |bytes| graph.to_onnx(|_| Some(External { file: "model.safetensors".into(), offset: 8, bytes }));
    assert!(matches!(external(32), Err(OnnxError::External { expected: 36, .. })));
    let (there, here) = (external(36).unwrap(), graph.to_onnx(|_| None).unwrap());
    let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let numbers: Vec<u8> = (0..9).flat_map(|value| (value as f32).to_le_bytes()).collect();
    assert!(holds(&there, b"model.safetensors") && !holds(&there, &numbers));
    assert!(!holds(&here, b"model.safetensors") && holds(&here, &numbers));
    let packed = |dtype, bytes| {
        let weight = Weight::new("w", dtype, &[1, 32], vec![0; bytes]).unwrap();
        let recorder = Recorder::new();
        let x = recorder.input(&engine, "x", Kind::Float, &[1, 32]);
        let y = x.add(&Tensor::stored(&engine, Arc::new(weight))).unwrap();
        let graph = recorder.finish(&[("y".into(), y)]).unwrap();
        graph.to_onnx(|_| Some(External { file: "model.safetensors".into(), offset: 0, bytes: 128 }))
    };
    assert!(packed(Dtype::F32, 128).is_ok());
    assert!(matches!(packed(Dtype::F16, 64), Err(OnnxError::External { found, .. }) if found == "F16"));
}

#[test]
fn a_model_over_the_bound_of_protocol_buffers_is_refused_before_it_is_made() {
    let engine = Engine::cpu(1).unwrap();
    // Stretched, not written out: the numbers are one.
    let large = Tensor::new(&engine, vec![1.0], &[1]).unwrap().broadcast(&[1 << 30]).unwrap();
    let recorder = Recorder::new();
    let x = recorder.input(&engine, "x", Kind::Float, &[1]);
    let graph = recorder.finish(&[("y".into(), x.add(&large).unwrap())]).unwrap();
    let found = graph.to_onnx(|_| None);
    assert!(matches!(found, Err(OnnxError::TooLarge(bytes)) if bytes == 4 << 30 && bytes > MODEL_BYTES_MAX));
}
