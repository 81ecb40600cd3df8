//! Cases of tasks: what Hugging Face's pipelines answered with a model, in accel's words. `make_task_cases.py` makes
//! them.

use std::path::{Path, PathBuf};

use accel_protocol::{FileBytes, Generation, Input, Message, Task, TaskOptions, TaskResult};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::case::Case;

/// How far a score may be from the reference's.
const BOUND: f64 = 1e-4;

/// A model with questions.
#[derive(Debug)]
pub struct TaskCase {
    directory: PathBuf,
    /// What it is to do.
    pub task: Task,
    /// What it is asked.
    pub questions: Vec<Question>,
}

/// A question with its answer.
#[derive(Clone, Debug)]
pub struct Question {
    /// What is asked.
    pub input: Input,
    /// The same as the case has it.
    pub written: Value,
    /// The files that it is about.
    pub files: Vec<PathBuf>,
    /// How.
    pub options: TaskOptions,
    /// What the pipeline answered.
    pub expected: Vec<TaskResult>,
    /// What it wrote, where it writes.
    pub text: Option<String>,
    /// How it chose its tokens.
    pub generation: Generation,
}

impl Question {
    /// A question with no options, to which no answer is known.
    pub fn of(input: Input) -> Self {
        Self {
            input,
            written: Value::Null,
            files: Vec::new(),
            options: TaskOptions::default(),
            expected: Vec::new(),
            text: None,
            generation: Generation::default(),
        }
    }
}

#[derive(Deserialize)]
struct Written {
    task: Task,
    questions: Vec<WrittenQuestion>,
}

#[derive(Deserialize)]
struct WrittenQuestion {
    input: Value,
    options: TaskOptions,
    expected: Vec<Value>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    generation: Generation,
}

impl TaskCase {
    /// Reads a case.
    ///
    /// # Errors
    ///
    /// When a file is missing or is not in the format.
    pub fn read(directory: &Path) -> Result<Self> {
        let text = std::fs::read(directory.join("task.json")).with_context(|| directory.display().to_string())?;
        let written: Written = serde_json::from_slice(&text).with_context(|| directory.display().to_string())?;
        let question = |question: WrittenQuestion| {
            let WrittenQuestion { input: written, options, expected, text, generation } = question;
            // Files are beside the case.
            let paths = |names: &[String]| names.iter().map(|name| directory.join(name)).collect::<Vec<_>>();
            let file = |path: &PathBuf| std::fs::read(path).map(FileBytes).with_context(|| path.display().to_string());
            let (input, files) = if let Some(name) = written["file"].as_str() {
                let path = directory.join(name);
                (Input::File(file(&path)?), vec![path])
            } else if let Ok((names, messages)) = <(Vec<String>, Vec<Message>)>::deserialize(&written["pictures"]) {
                let paths = paths(&names);
                (Input::Pictures(paths.iter().map(file).collect::<Result<_>>()?, messages), paths)
            } else {
                (serde_json::from_value(written.clone())?, Vec::new())
            };
            let expected = expected.into_iter().map(|expected| match expected["picture"].as_str() {
                Some(name) => file(&directory.join(name)).map(TaskResult::Picture),
                None => Ok(serde_json::from_value(expected)?),
            });
            let expected = expected.collect::<Result<_>>()?;
            Ok(Question { input, written, files, options, expected, text, generation })
        };
        let questions = written.questions.into_iter().map(question).collect::<Result<_>>()?;
        Ok(Self { directory: directory.to_owned(), task: written.task, questions })
    }

    /// Writes the model as `save_pretrained` does.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn write_model(&self, into: &Path) -> Result<()> {
        copy(&self.directory, into)?;
        write_weights(&self.directory, into)
    }
}

/// Writes the weights of a model, or of each part of one.
fn write_weights(from: &Path, into: &Path) -> Result<()> {
    if from.join("case.json").exists() {
        return Case::read(from)?.write_model(into);
    }
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().join("case.json").exists() {
            write_weights(&entry.path(), &into.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Copies the files of a model: all but those that make it a case.
fn copy(from: &Path, into: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let target = into.join(&name);
        if path.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&path, &target)?;
        } else if !["case.json", "task.json", "io.safetensors"].iter().any(|case| name == *case) {
            std::fs::copy(&path, target)?;
        }
    }
    Ok(())
}

/// Whether results are those that were expected.
///
/// # Errors
///
/// When they are not, saying where.
pub fn compare(found: &[TaskResult], expected: &[TaskResult]) -> Result<()> {
    if let ([TaskResult::Picture(found)], [TaskResult::Picture(expected)]) = (found, expected) {
        return compare_pictures(&found.0, &expected.0);
    }
    differ(&serde_json::to_value(found)?, &serde_json::to_value(expected)?, "")
}

/// Whether pixels are those that were expected, but for rounding: by 1, and by 2 at few.
fn compare_pictures(found: &[u8], expected: &[u8]) -> Result<()> {
    let read = |file: &[u8]| image::load_from_memory(file).map(image::DynamicImage::into_rgb8);
    let (found, expected) = (read(found)?, read(expected)?);
    if found.dimensions() != expected.dimensions() {
        bail!("the picture: expected {:?}, found {:?}", expected.dimensions(), found.dimensions());
    }
    let apart: Vec<u8> = found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
    let (most, rare) = (apart.iter().copied().max().unwrap_or(0), apart.iter().filter(|apart| **apart > 1).count());
    if most > 2 || rare * 1000 > apart.len() {
        bail!("the picture: values differ by up to {most}, and {rare} of {} by over 1", apart.len());
    }
    Ok(())
}

fn differ(found: &Value, expected: &Value, place: &str) -> Result<()> {
    match (found, expected) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) if (a - b).abs() <= BOUND * b.abs().max(1.0) => Ok(()),
            _ => bail!("{place}: expected {b}, found {a}"),
        },
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().try_for_each(|(at, (a, b))| differ(a, b, &format!("{place}/{at}")))
        }
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            b.iter().try_for_each(|(key, b)| differ(a.get(key).unwrap_or(&Value::Null), b, &format!("{place}/{key}")))
        }
        (a, b) if a == b => Ok(()),
        (a, b) => bail!("{place}: expected {b}, found {a}"),
    }
}
