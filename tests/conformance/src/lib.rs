//! Reference cases: small models of every type with weights that follow from their names, and what Hugging Face's
//! libraries answered.
//!
//! Each case is written as an ordinary model directory and loaded by the ordinary loader; what is compared is what a
//! family says of itself. A case that cannot be run is unsupported, with the loader's own reason, and never passed.

pub mod asking;
pub mod case;
pub mod command;
pub mod compare;
pub mod faults;
pub mod runtime;
pub mod task;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use accel_backends::files::LocalFiles;
use accel_backends::graph::interpret::{Array, Numbers};
use accel_backends::graph::{Graph, Recorder, onnx};
use accel_backends::tensor::Engine;
use accel_backends::weights;
use accel_models::model::{Begun, Inputs, Model};
use accel_models::rules::Loader;
use accel_models::{ModelError, arch};
use anyhow::{Context, Result};
use serde::Serialize;

use case::{Case, Generated, Stored};
use compare::Comparison;
use runtime::Runtime;

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every answer is within its bounds.
    Pass,
    /// What is wrong.
    Fail(String),
    /// Why it cannot be run.
    Unsupported(String),
    /// The answers differ from the reference where that is known to be wrong itself, and why it is.
    WrongReference(String),
}

/// A case and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The case.
    pub case: String,
    /// Its model type.
    pub model_type: String,
    /// What came of it.
    pub verdict: Verdict,
    /// The largest error in parts of its bound.
    pub worst: f64,
}

/// Runs a case.
///
/// # Errors
///
/// When the case cannot be read or the answers cannot be written; what is wrong with the answers is in the report.
pub fn run(case: &Case, runner: &Runner<'_>) -> Result<Report> {
    let (verdict, worst) = match answers(case, runner) {
        Ok(answers) => {
            if let Some(directory) = runner.write.map(|directory| directory.join(&case.name)) {
                std::fs::create_dir_all(&directory)?;
                safetensors::serialize_to_file(
                    answers.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())),
                    None,
                    &directory.join("out.safetensors"),
                )?;
            }
            let Comparison { worst, faults } = Comparison::of(case, &answers, runner.how == Use::Eager)?;
            let verdict = match (faults.is_empty(), faults::known(case)) {
                (true, _) => Verdict::Pass,
                (false, Some(fault)) if fault.covers(&faults) => Verdict::WrongReference(fault.reason.to_owned()),
                (false, _) => Verdict::Fail(faults.join("; ")),
            };
            (verdict, worst)
        }
        Err(error) if matches!(error.downcast_ref(), Some(ModelError::Unsupported { .. })) => {
            (Verdict::Unsupported(error.to_string()), 0.0)
        }
        Err(error) => (Verdict::Fail(format!("{error:#}")), 0.0),
    };
    Ok(Report { case: case.name.clone(), model_type: case.model_type.clone(), verdict, worst })
}

/// How a model's definition is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Use {
    /// Computed as it goes.
    Eager,
    /// Recorded, brought down to primitives, and interpreted.
    Interpreted,
    /// Recorded, exported, and run by ONNX Runtime, whose library the caller has loaded.
    Onnx,
}

/// How to run cases.
pub struct Runner<'a> {
    /// How definitions are used.
    pub how: Use,
    /// Where to write the answers, as `<write>/<case>/out.safetensors` under the names of their outputs.
    pub write: Option<&'a Path>,
    /// What runs exported models.
    pub runtime: Option<&'a Runtime>,
    /// Where to write exported models, as `<export>/<case>.onnx`.
    pub export: Option<&'a Path>,
}

impl<'a> Runner<'a> {
    /// Runs cases as they go, and writes nothing.
    pub fn eager() -> Self {
        Self { how: Use::Eager, write: None, runtime: None, export: None }
    }
}

/// Everything that the model answers, by the names of the case.
fn answers(case: &Case, runner: &Runner<'_>) -> Result<BTreeMap<String, Stored>> {
    let how = runner.how;
    refuse("the entry", case.entry.as_ref(), "a forward call")?;
    let directory = tempfile::tempdir()?;
    case.write_model(directory.path())?;
    let files = LocalFiles::open(directory.path())?;
    let index = weights::index(&files)?;
    let description = arch::describe(&files, &index)?;
    let engine = Engine::cpu(1)?;
    let loader = Loader::new(&files, &index, description.rules, &engine);
    let model = Model::load(&loader, description.spec)?;
    loader.finish()?;
    let mut answers = BTreeMap::new();
    for (name, array) in match how {
        Use::Eager => eager(&model, case, &engine)?,
        Use::Interpreted => interpreted(&model, case, &engine)?,
        Use::Onnx => exported(&model, case, &engine, runner)?,
    } {
        answers.insert(name, stored(&array));
    }
    if let Some(generated) = case.generate.as_ref().filter(|_| how == Use::Eager) {
        // The reference's mask is all ones.
        let wanted = |name: &str| name != "attention_mask" && generated.inputs.iter().any(|one| one == name);
        // Classes with a `generate` of their own go on to a length of their own.
        let length = case.stored("gen.sequences").ok().and_then(|sequences| sequences.dims().last().copied());
        generate(&model, &inputs(case, &engine, wanted)?, generated, length, &mut answers)?;
    }
    Ok(answers)
}

/// What a case asks, as far as `wanted`.
///
/// # Errors
///
/// When it cannot be read, or is no number and no truth.
pub fn inputs(case: &Case, engine: &Engine, wanted: impl Fn(&str) -> bool) -> Result<Inputs> {
    let mut inputs = Inputs::default();
    for input in case.inputs.iter().filter(|input| wanted(&input.name)) {
        inputs.insert(&input.name, case.input(engine, input)?);
    }
    // An argument of `None`, or a list of them, is one that is left out.
    let left_out = |value: &serde_json::Value| {
        value.is_null() || value.as_array().is_some_and(|list| list.iter().all(serde_json::Value::is_null))
    };
    for (name, value) in case.scalar_inputs.iter().filter(|(_, value)| !left_out(value)) {
        let number = value.as_f64().or_else(|| value.as_bool().map(|truth| f64::from(u8::from(truth))));
        match number {
            Some(number) => inputs.insert_number(name, number),
            None => refuse("the input", Some(&format!("{name}: {value}")), "numbers and truths")?,
        }
    }
    Ok(inputs)
}

fn eager(model: &Model, case: &Case, engine: &Engine) -> Result<Vec<(String, Array)>> {
    let outputs = model.forward(&inputs(case, engine, |_| true)?)?;
    outputs.into_iter().map(|(name, tensor)| Ok((name, Array::of(&tensor)?))).collect()
}

/// The graph of a forward call, whose inputs are all tensors of the case but masks, and the values of these inputs.
fn recorded(model: &Model, case: &Case, engine: &Engine) -> Result<(Graph, HashMap<String, Array>)> {
    let (recorder, mut given) = (Recorder::new(), HashMap::new());
    let mut asked = inputs(case, engine, |_| true)?;
    for input in case.inputs.iter().filter(|input| !input.name.contains("mask")) {
        let known = case.input(engine, input)?;
        let tensor = recorder.input(engine, &input.name, known.kind(), known.dims());
        given.insert(input.name.clone(), Array::of(&known)?);
        asked.insert_recorded(&input.name, tensor, known);
    }
    Ok((recorder.finish(&model.forward(&asked)?)?, given))
}

fn interpreted(model: &Model, case: &Case, engine: &Engine) -> Result<Vec<(String, Array)>> {
    let (graph, given) = recorded(model, case, engine)?;
    Ok(graph.lower(engine, |_| false)?.interpret(&given)?.into_iter().collect())
}

fn exported(model: &Model, case: &Case, engine: &Engine, runner: &Runner<'_>) -> Result<Vec<(String, Array)>> {
    let runtime = runner.runtime.context("no ONNX Runtime: give its library by --ort")?;
    let (graph, given) = recorded(model, case, engine)?;
    let graph = graph.lower(engine, onnx::native)?;
    if let Some(directory) = runner.export {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join(format!("{}.onnx", case.name)), graph.to_onnx(|_| None)?)?;
    }
    let mut answers = runtime.run(&graph, &given)?;
    let mut found = |name: &String| answers.remove(&onnx::output_name(&graph, name)).map(|array| (name.clone(), array));
    graph
        .outputs
        .iter()
        .map(|(name, _)| found(name))
        .collect::<Option<_>>()
        .context("an output that ONNX Runtime does not answer")
}

fn stored(array: &Array) -> Stored {
    match &array.numbers {
        Numbers::Float(values) => Stored::floats(&array.dims, values),
        Numbers::Whole(values) => Stored::integers(&array.dims, values),
    }
}

fn refuse(what: &str, found: Option<&String>, supported: &str) -> Result<(), ModelError> {
    let unsupported = |found: &String| ModelError::Unsupported {
        what: what.to_owned(),
        found: found.clone(),
        supported: supported.to_owned(),
    };
    found.map_or(Ok(()), |found| Err(unsupported(found)))
}

/// Generates greedily, token by token: `gen.sequences` and `gen.logits`.
fn generate(
    model: &Model,
    inputs: &Inputs,
    generated: &Generated,
    length: Option<usize>,
    answers: &mut BTreeMap<String, Stored>,
) -> Result<()> {
    let Begun { mut state, mut sequences, mut logits } = model.begin(inputs)?;
    let vocabulary = logits.dim(-1)?;
    let mut all = vec![Vec::new(); sequences.len()];
    let begun = sequences.first().map_or(0, Vec::len);
    let steps = length.map_or(generated.max_new_tokens, |length| length.saturating_sub(begun));
    for step in 0..steps {
        let mut chosen = Vec::with_capacity(sequences.len());
        for (row, after) in logits.to_vec()?.chunks_exact(vocabulary).enumerate() {
            // The first of equals, as the reference has it.
            let best = |best: usize, place: usize| if after[place] > after[best] { place } else { best };
            let id = i64::try_from((0..vocabulary).fold(0, best))?;
            chosen.push(id);
            sequences[row].push(id);
            all[row].extend_from_slice(after);
        }
        if step + 1 < steps {
            logits = model.next(&chosen, &mut state)?;
        }
    }
    let dims = [sequences.len(), sequences[0].len()];
    answers.insert("gen.sequences".into(), Stored::integers(&dims, &sequences.concat()));
    let dims = [dims[0], steps, vocabulary];
    answers.insert("gen.logits".into(), Stored::floats(&dims, &all.concat()));
    Ok(())
}
