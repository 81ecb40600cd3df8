//! Exported graphs, run by ONNX Runtime: an implementation of the operators that is not ours.
//!
//! Its library is that of the Python package that `tests/run` installs, loaded while the program runs. It computes on
//! the processor with one thread and rewrites nothing, so that what is compared is what was exported. A process has one
//! of these at most, which is ONNX Runtime's own rule.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;

use accel_backends::graph::Graph;
use accel_backends::graph::interpret::{Array, Numbers};
use anyhow::{Context, Result, anyhow, bail};
use ort::environment::Environment;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorElementType};

/// ONNX Runtime, loaded.
pub struct Runtime {
    environment: Environment,
}

impl Runtime {
    /// Loads `libonnxruntime.so`.
    ///
    /// # Errors
    /// When it is not there, is too old, or this process has one already.
    pub fn load(library: &Path) -> Result<Self> {
        let builder = ort::init_from(library).with_context(|| format!("load {}", library.display()))?;
        let environment = builder.with_name("accel-tests").with_telemetry(false).build()?;
        Ok(Self { environment })
    }

    /// Answers of a graph of primitives and of what ONNX has itself.
    ///
    /// # Errors
    /// When it cannot be exported, is refused, or fails.
    pub fn run(&self, graph: &Graph, inputs: &HashMap<String, Array>) -> Result<HashMap<String, Array>> {
        let model = graph.to_onnx(|_| None)?;
        answers(&mut self.builder()?.commit_from_memory(&model)?, inputs)
    }

    /// Answers of a model in a file, beside the files that it refers to.
    ///
    /// # Errors
    /// When it is refused or fails.
    pub fn run_file(&self, model: &Path, inputs: &HashMap<String, Array>) -> Result<HashMap<String, Array>> {
        let session = self.builder()?.commit_from_file(model);
        answers(&mut session.with_context(|| format!("open {}", model.display()))?, inputs)
    }

    fn builder(&self) -> Result<SessionBuilder> {
        // What a failed setting gives back with its error cannot leave the thread, as an error of ours must.
        let failed = |error: ort::Error<SessionBuilder>| anyhow!("{error}");
        let builder = Session::builder(&self.environment)?;
        let builder = builder.with_optimization_level(GraphOptimizationLevel::Disable).map_err(failed)?;
        builder.with_intra_threads(1).map_err(failed)?.with_inter_threads(1).map_err(failed)
    }
}

fn answers(session: &mut Session, inputs: &HashMap<String, Array>) -> Result<HashMap<String, Array>> {
    let inputs = inputs.iter().map(|(name, array)| Ok((name.as_str(), given(array)?))).collect::<Result<Vec<_>>>()?;
    let outputs = session.run(inputs)?;
    outputs.iter().map(|(name, value)| Ok((name.to_owned(), found(name, &value)?))).collect()
}

fn given(array: &Array) -> Result<SessionInputValue<'static>> {
    let dims = array.dims.clone();
    Ok(match &array.numbers {
        Numbers::Float(values) => Tensor::from_array((dims, values.clone()))?.into(),
        Numbers::Whole(values) => Tensor::from_array((dims, values.clone()))?.into(),
    })
}

fn found(name: &str, value: &DynValue) -> Result<Array> {
    fn read<T: PrimitiveTensorElementType + Copy + Debug>(value: &DynValue) -> Result<(Vec<usize>, Vec<T>)> {
        let (shape, values) = value.try_extract_tensor::<T>()?;
        let dims = shape.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>()?;
        Ok((dims, values.to_vec()))
    }
    match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => {
            let (dims, values) = read(value)?;
            Ok(Array { dims, numbers: Numbers::Float(values) })
        }
        Some(TensorElementType::Int64) => {
            let (dims, values) = read(value)?;
            Ok(Array { dims, numbers: Numbers::Whole(values) })
        }
        other => bail!("{name}: expected a tensor of f32 or i64, found {other:?}"),
    }
}
