//! What models write, against what `transformers.pipeline` wrote, each with a small model.

use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::asking;
use accel_conformance::task::{Question, TaskCase};
use accel_pipelines::{LoadOptions, Pipeline, StepPlan};
use accel_protocol::{
    ErrorCode, FinishReason, Generation, Input, JobError, JobEvent, JobId, JobSpec, ModelRef, Task, TaskOptions,
};
use anyhow::{Result, bail, ensure};

fn load(name: &str) -> Result<(TaskCase, Box<dyn Pipeline>)> {
    asking::load(name, &asking::unbounded())
}

/// What a model writes, and why the answer ends.
#[derive(Debug, PartialEq)]
struct Said {
    text: String,
    tokens: Vec<u32>,
    reason: FinishReason,
}

/// Writes with tokens that were said already.
fn write(
    pipeline: &mut dyn Pipeline,
    task: Task,
    input: &Input,
    generation: &Generation,
    prior: &[u32],
) -> Result<Said, JobError> {
    let model: Result<ModelRef, _> = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse();
    let spec = JobSpec {
        id: JobId([8; 16]),
        model: model.map_err(|error| JobError::new(ErrorCode::Internal, error))?,
        task,
        input: input.clone(),
        generation: generation.clone(),
        options: TaskOptions::default(),
        prior: prior.to_vec(),
        arithmetic: (!prior.is_empty()).then(|| pipeline.arithmetic()),
        deadline_ms: 1,
    };
    pipeline.admit(&spec)?;
    let mut said = Said { text: String::new(), tokens: Vec::new(), reason: FinishReason::Complete };
    // A search that is made again takes twice as long, and no answer here has over 256 tokens.
    for _ in 0..600 {
        let mut last = None;
        pipeline.step(&StepPlan { work: vec![(spec.id, 128)] }, &mut |_, event| match event {
            JobEvent::Token { index, id, text, .. } => {
                assert_eq!(index as usize, prior.len() + said.tokens.len(), "tokens come once and in order");
                said.tokens.push(id);
                said.text += &text;
            }
            event => last = Some(event),
        });
        match last {
            Some(JobEvent::Done { text, reason, usage, .. }) => {
                said.text += &text;
                said.reason = reason;
                let tokens = usage.completion_tokens as usize;
                assert_eq!(tokens, prior.len() + said.tokens.len(), "{usage:?}");
                return Ok(said);
            }
            Some(JobEvent::Failed { error }) => return Err(error),
            _ => {}
        }
    }
    Err(JobError::new(ErrorCode::Internal, "no end"))
}

fn writes_as_the_pipeline(name: &str) -> Result<()> {
    let (case, mut pipeline) = load(name)?;
    let mut ended = 0;
    for Question { input, written, generation, text, .. } in &case.questions {
        let said = write(&mut *pipeline, case.task, input, generation, &[])?;
        ensure!(Some(&said.text) == text.as_ref(), "{name}: {written}: expected {text:?}, found {said:?}");
        ended += usize::from(said.reason == FinishReason::EndOfText);
        // An answer goes on from wherever it was left.
        for prior in [1, said.tokens.len() / 2, said.tokens.len()] {
            let rest = write(&mut *pipeline, case.task, input, generation, &said.tokens[..prior])?;
            ensure!(rest.tokens == said.tokens[prior..], "{name}: {written}: after {prior} tokens, found {rest:?}");
            ensure!(said.text.ends_with(&rest.text) && rest.reason == said.reason, "{rest:?}");
        }
    }
    ensure!(ended > 0, "{name}: no answer ended by itself");
    Ok(())
}

#[test]
fn texts_are_summarized() -> Result<()> {
    writes_as_the_pipeline("summarization")?;
    writes_as_the_pipeline("summarization-bart")
}

#[test]
fn texts_are_translated_with_beams_and_without() -> Result<()> {
    writes_as_the_pipeline("translation")?;
    writes_as_the_pipeline("translation-greedy")
}

/// A setting that is not supported is named, and what is asked wrongly is refused in words.
#[test]
fn what_cannot_be_written_is_refused() -> Result<()> {
    let case = TaskCase::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tasks/translation"))?;
    let load = |setting: &str| -> Result<Result<Box<dyn Pipeline>, String>> {
        let directory = tempfile::tempdir()?;
        case.write_model(directory.path())?;
        let file = directory.path().join("generation_config.json");
        let text = std::fs::read_to_string(&file)?.replacen('{', &format!("{{{setting}"), 1);
        std::fs::write(&file, text)?;
        let options = LoadOptions { threads: 1, context_tokens: Some(40), memory_bytes: None };
        let pipeline = accel_pipelines::load(Arc::new(LocalFiles::open(directory.path())?), &options);
        Ok(pipeline.map_err(|error| error.to_string()))
    };
    for (setting, words) in [
        (r#""num_beam_groups": 2, "#, "the generation setting num_beam_groups \"2\" is not supported"),
        (r#""sequence_bias": [[[7], 1.5]], "#, "sequence_bias"),
        (r#""exponential_decay_length_penalty": [2, 1.1], "#, "exponential_decay_length_penalty"),
    ] {
        match load(setting)? {
            Ok(_) => bail!("{setting} was taken"),
            Err(error) => ensure!(error.contains(words), "{error}"),
        }
    }
    let ask = |setting: &str, text: &str, task, generation: &Generation| -> Result<Result<Said, JobError>> {
        let mut pipeline = load(setting)?.map_err(anyhow::Error::msg)?;
        Ok(write(&mut *pipeline, task, &Input::Text(text.to_owned()), generation, &[]))
    };
    let refused = |found: Result<Said, JobError>, code, words: &str| match found {
        Ok(said) => bail!("{said:?} was said"),
        Err(error) => {
            ensure!(error.code == code && error.message.contains(words), "{error:?}");
            Ok(())
        }
    };
    let (plain, translation) = (Generation::default(), Task::Translation);
    refused(ask("", "tea", Task::FillMask, &plain)?, ErrorCode::Unsupported, "not fill-mask")?;
    refused(ask("", &"tea ".repeat(50), translation, &plain)?, ErrorCode::ContextLength, "40")?;
    let draws = r#""do_sample": true, "#;
    refused(ask(draws, "tea", translation, &plain)?, ErrorCode::Unsupported, "do_sample")?;
    // Who asks for draws gets them, and the same ones each time.
    let warm = Generation { temperature: 1.5, seed: 3, ..Generation::default() };
    let said = ask(draws, "tea", translation, &warm)?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let again = ask("", "tea", translation, &warm)?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(said == again && !said.tokens.is_empty(), "{said:?} and {again:?}");
    let other = ask("", "tea", translation, &Generation { seed: 4, ..warm })?;
    ensure!(other.map_err(|error| anyhow::anyhow!("{error:?}"))?.tokens != said.tokens);
    Ok(())
}
