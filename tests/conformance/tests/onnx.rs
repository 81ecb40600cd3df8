//! What graphs become in ONNX: valid by ONNX's own checker, and the same numbers from ONNX Runtime.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails should say where")]

// The same runs that the reference interpreter is tried with.
#[path = "../../../backends/tests/graph/cases.rs"]
mod cases;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use accel_backends::files::LocalFiles;
use accel_backends::graph::interpret::{Array, Numbers};
use accel_backends::graph::onnx::{External, native};
use accel_backends::graph::{Graph, Recorder};
use accel_backends::tensor::{Engine, Kind, Linear, Tensor, Weight};
use accel_backends::weights;
use accel_conformance::runtime::Runtime;
use anyhow::{Context, Result};
use cases::{Case, differences, noise};
use safetensors::tensor::TensorView;

/// Largest error of a float, in parts of the numbers around it.
const BOUND: f32 = 1e-5;

/// One for the process: ONNX Runtime allows no more.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let library =
        std::env::var_os("ACCEL_TEST_ORT").expect("ACCEL_TEST_ORT must name libonnxruntime.so; tests/run sets it");
    Runtime::load(Path::new(&library)).unwrap()
});

/// ONNX's checker, with its inference of shapes.
fn check(models: &[PathBuf]) {
    let python =
        std::env::var_os("ACCEL_TEST_PYTHON").expect("ACCEL_TEST_PYTHON must name a Python; tests/run sets it");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/check_onnx.py");
    let output = Command::new(python).arg(script).args(models).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A case in primitives, and with what ONNX has itself.
fn exported(engine: &Engine, case: &Case) -> Result<[Graph; 2]> {
    let graph = case.graph(engine)?;
    Ok([graph.lower(engine, |_| false)?, graph.lower(engine, native)?])
}

fn faults(engine: &Engine, case: &Case) -> Result<Vec<String>> {
    let expected = case.eager(engine)?;
    let mut faults = Vec::new();
    for (graph, kind) in exported(engine, case)?.iter().zip(["primitives", "native"]) {
        let found = RUNTIME.run(graph, &case.inputs()).context(kind)?;
        faults.extend(differences(&found, &expected, BOUND).into_iter().map(|fault| format!("{kind}: {fault}")));
    }
    Ok(faults)
}

#[test]
fn onnx_runtime_answers_what_eager_runs_give() {
    let engine = Engine::cpu(1).unwrap();
    let faults = cases::all().into_iter().filter_map(|case| match faults(&engine, &case) {
        Ok(faults) if faults.is_empty() => None,
        Ok(faults) => Some(format!("{}: {}", case.name, faults.join("; "))),
        Err(error) => Some(format!("{}: {error:#}", case.name)),
    });
    let faults: Vec<_> = faults.collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn exported_models_are_valid() {
    let engine = Engine::cpu(1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut models = Vec::new();
    for case in cases::all() {
        for (kind, graph) in exported(&engine, &case).unwrap().iter().enumerate() {
            let path = directory.path().join(format!("{}.{kind}.onnx", case.name.replace(['/', ' '], "_")));
            std::fs::write(&path, graph.to_onnx(|_| None).unwrap()).unwrap();
            models.push(path);
        }
    }
    check(&models);
}

#[test]
fn weights_stay_in_the_file_that_they_lie_in() {
    let engine = Engine::cpu(1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = "model.safetensors";
    let bytes = |seed, count| noise(seed, count).iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (weight, bias) = (bytes(1, 96), bytes(2, 12));
    let views = [("weight", vec![12, 8], &weight), ("bias", vec![12], &bias)]
        .map(|(name, dims, bytes)| (name, TensorView::new(safetensors::Dtype::F32, dims, bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &directory.path().join(file)).unwrap();

    let files = LocalFiles::open(directory.path()).unwrap();
    let index = weights::index(&files).unwrap();
    let load = |name: &str| {
        let info = index.get(name).unwrap();
        let weight = Weight::new(name, info.dtype, &info.dims, weights::read_tensor(&files, info).unwrap()).unwrap();
        (Tensor::stored(&engine, Arc::new(weight)), info)
    };
    let stored = ["weight", "bias"].map(load);
    let layer = Linear { weight: stored[0].0.clone(), bias: Some(stored[1].0.clone()) };
    let recorder = Recorder::new();
    let x = recorder.input(&engine, "x", Kind::Float, &[3, 8]);
    let graph = recorder.finish(&[("y".into(), x.linear(&layer).unwrap())]).unwrap();
    let external = |tensor: &Tensor| {
        let same = |(stored, _): &&(Tensor, _)| Arc::ptr_eq(stored.as_stored().unwrap(), tensor.as_stored().unwrap());
        let info = stored.iter().find(same)?.1;
        Some(External { file: info.file.clone(), offset: info.offset, bytes: info.bytes })
    };
    let model = directory.path().join("model.onnx");
    std::fs::write(&model, graph.to_onnx(external).unwrap()).unwrap();
    check(std::slice::from_ref(&model));

    let values = noise(3, 24);
    let input = Tensor::new(&engine, values.clone(), &[3, 8]).unwrap();
    let array = |values| Array { dims: vec![3, 8], numbers: Numbers::Float(values) };
    let found = RUNTIME.run_file(&model, &HashMap::from([("x".into(), array(values))])).unwrap();
    let expected = HashMap::from([("y".into(), Array::of(&input.linear(&layer).unwrap()).unwrap())]);
    let faults = differences(&found, &expected, BOUND);
    assert!(faults.is_empty(), "{faults:?}");
}
