//! What models write, against what `transformers.pipeline` wrote, each with a small model.

use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::asking::{Said, ask, case, expect_all, expect_refusal};
use accel_conformance::task::Question;
use accel_pipelines::{LoadOptions, Pipeline};
use accel_protocol::{ErrorCode, FinishReason, Generation, Input, JobError, Task};
use anyhow::{Result, bail, ensure};

fn writes_as_the_pipeline(name: &str) -> Result<()> {
    let ended = expect_all(name)?.iter().any(|said| said.reason == FinishReason::EndOfText);
    ensure!(ended, "{name}: no answer ended by itself");
    Ok(())
}

#[test]
fn texts_and_conversations_go_on() -> Result<()> {
    writes_as_the_pipeline("text-generation")?;
    writes_as_the_pipeline("text-generation-experts")?;
    writes_as_the_pipeline("text-generation-prefix")
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
    let case = case("translation")?;
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
        let question = Question { generation: generation.clone(), ..Question::of(Input::Text(text.to_owned())) };
        Ok(ask(&mut *pipeline, task, &question, &[]))
    };
    let (plain, translation) = (Generation::default(), Task::Translation);
    expect_refusal(ask("", "tea", Task::FillMask, &plain)?, ErrorCode::Unsupported, "not fill-mask")?;
    expect_refusal(ask("", &"tea ".repeat(50), translation, &plain)?, ErrorCode::ContextLength, "40")?;
    let draws = r#""do_sample": true, "#;
    expect_refusal(ask(draws, "tea", translation, &plain)?, ErrorCode::Unsupported, "do_sample")?;
    // Who asks for draws gets them, and the same ones each time.
    let warm = Generation { temperature: 1.5, seed: 3, ..Generation::default() };
    let said = ask(draws, "tea", translation, &warm)?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let again = ask("", "tea", translation, &warm)?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(said == again && !said.tokens.is_empty(), "{said:?} and {again:?}");
    let other = ask("", "tea", translation, &Generation { seed: 4, ..warm })?;
    ensure!(other.map_err(|error| anyhow::anyhow!("{error:?}"))?.tokens != said.tokens);
    Ok(())
}
