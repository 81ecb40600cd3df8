//! Reference cases: small models of every type with weights that follow from their names, and what Hugging Face's
//! libraries answered.
//!
//! Each case is written as an ordinary model directory and loaded by the ordinary loader; what is compared is what a
//! family says of itself. A case that cannot be run is unsupported, with the loader's own reason, and never passed.

pub mod case;
pub mod compare;

use std::collections::BTreeMap;
use std::path::Path;

use accel_backends::files::LocalFiles;
use accel_backends::tensor::Engine;
use accel_backends::weights;
use accel_models::cache::Row;
use accel_models::family::decoder::Decoder;
use accel_models::rules::Loader;
use accel_models::{ModelError, arch};
use anyhow::{Context, Result, bail};
use serde::Serialize;

use case::{Case, Stored};
use compare::Comparison;

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

/// Runs a case, and writes the answers to `<write>/<case>/out.safetensors` if asked to, under the names of its outputs.
///
/// # Errors
///
/// When the case cannot be read or the answers cannot be written; what is wrong with the answers is in the report.
pub fn run(case: &Case, write: Option<&Path>) -> Result<Report> {
    let (verdict, worst) = match answers(case) {
        Ok(answers) => {
            if let Some(directory) = write.map(|directory| directory.join(&case.name)) {
                std::fs::create_dir_all(&directory)?;
                safetensors::serialize_to_file(
                    answers.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())),
                    None,
                    &directory.join("out.safetensors"),
                )?;
            }
            let Comparison { worst, faults } = Comparison::of(case, &answers)?;
            (if faults.is_empty() { Verdict::Pass } else { Verdict::Fail(faults.join("; ")) }, worst)
        }
        Err(error) if matches!(error.downcast_ref(), Some(ModelError::Unsupported { .. })) => {
            (Verdict::Unsupported(error.to_string()), 0.0)
        }
        Err(error) => (Verdict::Fail(format!("{error:#}")), 0.0),
    };
    Ok(Report { case: case.name.clone(), model_type: case.model_type.clone(), verdict, worst })
}

/// Everything that the model answers, by the names of the case.
fn answers(case: &Case) -> Result<BTreeMap<String, Stored>> {
    refuse("the library", (case.library != "transformers").then_some(&case.library), "transformers")?;
    refuse("the entry", case.entry.as_ref(), "a forward call")?;
    let directory = tempfile::tempdir()?;
    case.write_model(directory.path())?;
    let files = LocalFiles::open(directory.path())?;
    let index = weights::index(&files)?;
    let model = arch::describe(&files, &index)?;
    let inputs = case.inputs.iter().map(|input| &input.name);
    refuse(
        "the input",
        inputs.chain(case.scalar_inputs.keys()).find(|name| !INPUTS.contains(&name.as_str())),
        &INPUTS.join(", "),
    )?;

    let engine = Engine::cpu(1)?;
    let decoder =
        Decoder::load(&Loader { files: &files, index: &index, rules: model.rules, engine: &engine }, model.spec)?;
    let batch = Batch::of(case)?;
    let mut state = decoder.state();
    for (slot, absent) in batch.absent.iter().enumerate() {
        state.hide(slot, absent.clone());
    }
    let mut answers = BTreeMap::new();
    for output in decoder.outputs(&engine, &batch.ids, &batch.rows, &mut state)? {
        let dims = output.tensor.dims();
        // Tokens lie flat.
        let lead = if dims[0] == batch.ids.len() { vec![batch.rows.len(), batch.rows[0].len] } else { vec![dims[0]] };
        let dims = [&lead, &dims[1..]].concat();
        answers.insert(output.name.to_owned(), Stored::floats(&dims, &output.tensor.to_vec()?));
    }
    if let Some(generated) = &case.generate {
        generate(&decoder, &engine, batch, generated.max_new_tokens, &mut answers)?;
    }
    Ok(answers)
}

const INPUTS: [&str; 2] = ["input_ids", "attention_mask"];

fn refuse(what: &str, found: Option<&String>, supported: &str) -> Result<(), ModelError> {
    let unsupported = |found: &String| ModelError::Unsupported {
        what: what.to_owned(),
        found: found.clone(),
        supported: supported.to_owned(),
    };
    found.map_or(Ok(()), |found| Err(unsupported(found)))
}

/// Sequences of one length, one after the other.
struct Batch {
    ids: Vec<u32>,
    rows: Vec<Row>,
    absent: Vec<Vec<bool>>,
}

impl Batch {
    fn of(case: &Case) -> Result<Self> {
        let ids = case.stored("in.input_ids")?;
        let &[rows, length] = ids.dims() else { bail!("input_ids: expected [batch, tokens], found {:?}", ids.dims()) };
        let mask = case.inputs.iter().any(|input| input.name == "attention_mask");
        let mask = if mask { case.stored("in.attention_mask")?.to_integers()? } else { vec![1; rows * length] };
        Ok(Self {
            ids: ids.to_integers()?.into_iter().map(u32::try_from).collect::<Result<_, _>>()?,
            rows: (0..rows).map(|slot| Row { len: length, past: 0, slot, horizon: length }).collect(),
            absent: mask.chunks_exact(length).map(|row| row.iter().map(|&seen| seen == 0).collect()).collect(),
        })
    }
}

/// Generates greedily, token by token, every position of the prompt seen: `gen.sequences` and `gen.logits`.
fn generate(
    decoder: &Decoder,
    engine: &Engine,
    batch: Batch,
    tokens: usize,
    answers: &mut BTreeMap<String, Stored>,
) -> Result<()> {
    let Batch { mut ids, mut rows, .. } = batch;
    let (vocabulary, mut state) = (decoder.vocabulary(), decoder.state());
    let prompts = ids.chunks_exact(rows[0].len);
    let mut sequences: Vec<Vec<i64>> = prompts.map(|ids| ids.iter().map(|&id| id.into()).collect()).collect();
    let mut logits = vec![Vec::new(); rows.len()];
    for _ in 0..tokens {
        let wanted: Vec<usize> = (1..=rows.len()).map(|row| row * rows[0].len - 1).collect();
        let after = decoder.forward(engine, &ids, &rows, &wanted, &mut state)?.context("no logits")?.to_vec()?;
        ids.clear();
        for (row, after) in after.chunks_exact(vocabulary).enumerate() {
            // The first of equals, as the reference has it.
            let best = |best: usize, place: usize| if after[place] > after[best] { place } else { best };
            let id = (0..vocabulary).fold(0, best);
            ids.push(u32::try_from(id)?);
            sequences[row].push(i64::try_from(id)?);
            logits[row].extend_from_slice(after);
        }
        rows.iter_mut().for_each(|row| *row = Row { past: row.past + row.len, len: 1, ..*row });
    }
    let dims = [sequences.len(), sequences[0].len()];
    answers.insert("gen.sequences".into(), Stored::integers(&dims, &sequences.concat()));
    answers.insert("gen.logits".into(), Stored::floats(&[dims[0], tokens, vocabulary], &logits.concat()));
    Ok(())
}
