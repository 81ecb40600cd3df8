//! What texts are painted as, against what Diffusers' pipelines painted, each with small parts.

use std::path::Path;
use std::sync::Arc;

use accel_backends::files::LocalFiles;
use accel_conformance::asking::{Said, answer, case, expect_refusal, job, load, unbounded};
use accel_conformance::task::{Question, TaskCase, compare};
use accel_pipelines::{LoadOptions, StepPlan};
use accel_protocol::{ErrorCode, Input, JobError, JobEvent, JobId, JobSpec, Painting, Task, TaskOptions};
use anyhow::{Context, Result, bail, ensure};

fn paints_as_the_pipeline(name: &str) -> Result<usize> {
    let (case, mut pipeline) = load(name, &unbounded())?;
    let mut held_back = 0;
    for question in &case.questions {
        let about = || format!("{name}: {} {:?}", question.written, question.options.painting);
        let found = answer(&mut *pipeline, &job(case.task, question));
        if question.expected.is_empty() {
            let Err(error) = found else { bail!("{}: expected a refusal, found a picture", about()) };
            ensure!(error.message.contains("the model's safety checker holds it back"), "{error:?}");
            held_back += 1;
            continue;
        }
        let Said { results, events, .. } = found.map_err(anyhow::Error::new).with_context(about)?;
        compare(&results, &question.expected).with_context(about)?;
        ensure!(matches!(events.first(), Some(JobEvent::Started { .. })), "{events:?}");
        for (at, event) in events.iter().skip(1).enumerate() {
            let JobEvent::Working { done, total } = event else { bail!("{event:?}") };
            ensure!(*done as usize == at + 1 && *total as usize == events.len() - 1, "{events:?}");
        }
    }
    Ok(held_back)
}

#[test]
fn texts_are_painted_as_stable_diffusion_1_paints_them() -> Result<()> {
    ensure!(paints_as_the_pipeline("text-to-image")? == 0);
    Ok(())
}

#[test]
fn texts_are_painted_as_stable_diffusion_2_paints_them() -> Result<()> {
    ensure!(paints_as_the_pipeline("text-to-image-velocity")? == 0);
    Ok(())
}

#[test]
fn pictures_that_a_safety_checker_holds_back_are_not_given() -> Result<()> {
    ensure!(paints_as_the_pipeline("text-to-image-checked")? == 2);
    Ok(())
}

#[test]
fn texts_are_painted_as_flux_paints_them() -> Result<()> {
    ensure!(paints_as_the_pipeline("text-to-image-flux")? == 0);
    ensure!(paints_as_the_pipeline("text-to-image-flux-fixed")? == 0);
    Ok(())
}

/// What a model cannot be told is refused, and not passed over.
#[test]
fn options_that_flux_does_not_take_are_refused() -> Result<()> {
    let refused = |name: &str, painting: Painting, words: &str| -> Result<()> {
        let (case, mut pipeline) = load(name, &unbounded())?;
        let question = case.questions.first().context("no question")?;
        let options = TaskOptions { painting, ..TaskOptions::default() };
        let Err(error) = pipeline.admit(&JobSpec { options, ..job(case.task, question) }) else {
            bail!("{words}: taken")
        };
        ensure!(error.code == ErrorCode::InvalidRequest && error.message.contains(words), "{error:?}");
        Ok(())
    };
    let (flux, plain) = ("text-to-image-flux", Painting::default);
    refused(flux, Painting { negative: Some("cats".into()), ..plain() }, "paints without it")?;
    refused(flux, Painting { width: Some(24), ..plain() }, "the width: expected a multiple of 16 pixels, found 24")?;
    refused(flux, Painting { steps: Some(1001), ..plain() }, "the steps: expected 1 to 1000")?;
    refused("text-to-image-flux-fixed", Painting { guidance: Some(2.0), ..plain() }, "made for one")
}

fn question(case: &TaskCase) -> Result<&Question> {
    case.questions.get(1).context("no question")
}

/// What cannot be painted is refused in words, and the next job is done as ever.
#[test]
fn wrong_questions_are_refused() -> Result<()> {
    let (case, mut pipeline) = load("text-to-image", &unbounded())?;
    let right = job(case.task, question(&case)?);
    let mut refused = |spec: JobSpec, code, words: &str| expect_refusal(answer(&mut *pipeline, &spec), code, words);
    let text = |text: &str| JobSpec { input: Input::Text(text.to_owned()), ..right.clone() };
    let painting =
        |painting: Painting| JobSpec { options: TaskOptions { painting, ..TaskOptions::default() }, ..right.clone() };
    let (invalid, plain) = (ErrorCode::InvalidRequest, Painting::default);
    refused(
        JobSpec { task: Task::ImageClassification, ..right.clone() },
        ErrorCode::Unsupported,
        "text-to-image, not",
    )?;
    refused(JobSpec { input: Input::Texts(vec!["a".into()]), ..right.clone() }, invalid, "expected one text")?;
    refused(text(&"river ".repeat(40)), ErrorCode::ContextLength, "but the model's context has 20")?;
    let negative = Some("river ".repeat(40));
    refused(painting(Painting { negative, ..plain() }), ErrorCode::ContextLength, "42 tokens")?;
    let negative = Some("cats".to_owned());
    refused(painting(Painting { negative, guidance: Some(1.0), ..plain() }), invalid, "the guidance: expected over 1")?;
    refused(painting(Painting { width: Some(20), ..plain() }), invalid, "the width: expected a multiple of 8")?;
    refused(painting(Painting { height: Some(4), ..plain() }), invalid, "the height: expected a multiple of 8")?;
    refused(painting(Painting { height: Some(0), ..plain() }), invalid, "the height")?;
    refused(painting(Painting { steps: Some(0), ..plain() }), invalid, "the steps: expected 1 to 1000")?;
    refused(painting(Painting { steps: Some(1001), ..plain() }), invalid, "found 1001")?;
    compare(&answer(&mut *pipeline, &right)?.results, &question(&case)?.expected)
}

/// Jobs are painted side by side, each as if alone, and one that is left takes nothing of the others.
#[test]
fn jobs_are_painted_side_by_side_and_left_at_any_step() -> Result<()> {
    let (case, mut pipeline) = load("text-to-image", &unbounded())?;
    let questions = &case.questions[1..];
    let id = |at: usize| JobId([at as u8; 16]);
    for (at, question) in questions.iter().enumerate() {
        pipeline.admit(&JobSpec { id: id(at), ..job(case.task, question) })?;
    }
    let twice = pipeline.admit(&JobSpec { id: id(0), ..job(case.task, &questions[0]) });
    ensure!(twice.is_err_and(|error| error.message.contains("here already")));
    let plan = StepPlan { work: (0..questions.len()).map(|at| (id(at), 1)).collect() };
    let mut done = 0;
    for step in 0..16 {
        if step == 3 {
            pipeline.evict(id(1));
        }
        let mut last = Vec::new();
        pipeline.step(&plan, &mut |id, event| last.push((id, event)));
        for (of, event) in last {
            ensure!(step < 3 || of != id(1), "{event:?}");
            match event {
                JobEvent::Done { results, .. } => {
                    compare(&results, &questions[usize::from(of.0[0])].expected)?;
                    done += 1;
                }
                JobEvent::Failed { error } => bail!("{error:?}"),
                _ => {}
            }
        }
    }
    ensure!(done == questions.len() - 1, "{done} done");
    Ok(())
}

/// What a picture takes beside the weights is counted before it is begun.
#[test]
fn pictures_that_memory_does_not_hold_are_refused() -> Result<()> {
    let (case, pipeline) = load("text-to-image", &unbounded())?;
    let weights = pipeline.memory_bytes();
    let options = |memory_bytes| LoadOptions { memory_bytes: Some(memory_bytes), ..unbounded() };
    let Err(error) = load("text-to-image", &options(weights - 1)) else { bail!("the weights were taken") };
    ensure!(format!("{error:#}").contains("are allowed here"), "{error:#}");
    let (_, mut pipeline) = load("text-to-image", &options(weights + (1 << 20)))?;
    let right = job(case.task, question(&case)?);
    let painting = Painting { width: Some(4104), ..Painting::default() };
    let larger = JobSpec { options: TaskOptions { painting, ..TaskOptions::default() }, ..right.clone() };
    let Err(error) = pipeline.admit(&larger) else { bail!("it was taken") };
    ensure!(error.message.contains("a side of the picture: expected at most 4096 pixels, found 4104"), "{error:?}");
    let painting = Painting { width: Some(4096), height: Some(4096), ..Painting::default() };
    let large = JobSpec { options: TaskOptions { painting, ..TaskOptions::default() }, ..right.clone() };
    let Err(JobError { code, message }) = pipeline.admit(&large) else { bail!("it was taken") };
    let words = message.contains("a picture of 4096 x 4096 pixels takes up to") && message.contains("are left");
    ensure!(code == ErrorCode::OutOfResources && words, "{message}");
    compare(&answer(&mut *pipeline, &right)?.results, &question(&case)?.expected)
}

/// A picture that no event holds is refused, with its size.
#[test]
fn pictures_that_are_too_long_as_files_are_refused() -> Result<()> {
    let (case, mut pipeline) = load("text-to-image-flux", &unbounded())?;
    let painting = Painting { width: Some(640), height: Some(640), steps: Some(1), ..Painting::default() };
    let options = TaskOptions { painting, ..TaskOptions::default() };
    let Err(error) = answer(&mut *pipeline, &JobSpec { options, ..job(case.task, question(&case)?) }) else {
        bail!("a picture was given")
    };
    ensure!(error.code == ErrorCode::InvalidRequest && error.message.contains("the picture as PNG"), "{error:?}");
    Ok(())
}

/// Loads the case after its files were changed; answers the words of the refusal.
fn refusal(name: &str, change: impl FnOnce(&Path) -> Result<()>) -> Result<String> {
    let case = case(name)?;
    let directory = tempfile::tempdir()?;
    case.write_model(directory.path())?;
    change(directory.path())?;
    match accel_pipelines::load(Arc::new(LocalFiles::open(directory.path())?), &unbounded()) {
        Ok(_) => bail!("{name} was loaded"),
        Err(error) => Ok(error.to_string()),
    }
}

/// Every part that is missing, damaged or not known is named with its place.
#[test]
fn parts_that_are_wrong_are_named() -> Result<()> {
    fn replaced(file: &str, from: &str, to: &str) -> impl FnOnce(&Path) -> Result<()> {
        move |directory: &Path| {
            let path = directory.join(file);
            let text = std::fs::read_to_string(&path)?;
            ensure!(text.contains(from), "{file} has no {from}");
            Ok(std::fs::write(path, text.replacen(from, to, 1))?)
        }
    }
    fn removed(file: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |directory: &Path| Ok(std::fs::remove_file(directory.join(file))?)
    }
    let named = |found: String, words: &str| {
        ensure!(found.contains(words), "expected {words:?}, found {found:?}");
        Ok(())
    };
    let plain = "text-to-image";
    let index = "model_index.json";
    named(refusal(plain, replaced(index, "StableDiffusionPipeline", "KandinskyPipeline"))?, "KandinskyPipeline")?;
    named(
        refusal(plain, replaced(index, "\"unet\"", "\"net\""))?,
        "model_index.json: unet: expected a library and a class",
    )?;
    named(
        refusal(plain, replaced(index, "AutoencoderKL", "VQModel"))?,
        "the class of vae \"VQModel\" is not supported",
    )?;
    named(refusal(plain, replaced(index, "{", "["))?, "model_index.json: expected a JSON object")?;
    named(refusal(plain, replaced("unet/config.json", "\"in_channels\": 4", "\"in_channels\": 5"))?, "unet/")?;
    named(
        refusal(plain, replaced("vae/config.json", "\"scaling_factor\": 0.18215", "\"scaling_factor\": 0"))?,
        "vae/config.json: scaling_factor",
    )?;
    named(
        refusal(plain, replaced("scheduler/scheduler_config.json", "PNDM", "UniPC"))?,
        "scheduler/scheduler_config.json: _class_name \"UniPCScheduler\"",
    )?;
    named(refusal(plain, removed("scheduler/scheduler_config.json"))?, "scheduler/scheduler_config.json")?;
    named(refusal(plain, removed("vae/diffusion_pytorch_model.safetensors"))?, "vae/no weights")?;
    named(refusal(plain, removed("unet/config.json"))?, "unet/the model has no config.json")?;
    named(refusal(plain, removed("tokenizer/merges.txt"))?, "tokenizer/merges.txt: expected the file")?;
    named(
        refusal(plain, replaced("tokenizer/vocab.json", "\"<|endoftext|>\"", "\"end\""))?,
        "tokenizer/vocab.json: expected the token",
    )?;
    named(
        refusal(
            plain,
            replaced("tokenizer/tokenizer_config.json", "\"model_max_length\": 20", "\"model_max_length\": 21"),
        )?,
        "model_max_length: expected at most 20, found 21",
    )?;
    let (some, none) = ("\"block_out_channels\": [", "\"block_out_channels\": [], \"others\": [");
    named(refusal(plain, replaced("unet/config.json", some, none))?, "unet/config.json: block_out_channels")?;
    named(refusal(plain, replaced("vae/config.json", some, none))?, "vae/config.json: block_out_channels")?;
    let flux = "text-to-image-flux";
    let scheduler = "scheduler/scheduler_config.json";
    named(refusal(flux, replaced(scheduler, "FlowMatchEuler", "FlowMatchHeun"))?, "FlowMatchHeunDiscreteScheduler")?;
    named(refusal(flux, replaced(scheduler, "\"invert_sigmas\": false", "\"invert_sigmas\": true"))?, "invert_sigmas")?;
    named(
        refusal(flux, removed("tokenizer_2/tokenizer.json"))?,
        "expected the file, or tokenizer.json, found neither",
    )?;
    named(refusal(flux, removed("text_encoder_2/model.safetensors"))?, "text_encoder_2/no weights")?;
    named(
        refusal(flux, replaced("transformer/config.json", "\"in_channels\": 16", "\"in_channels\": 32"))?,
        "transformer/",
    )?;
    let checked = "text-to-image-checked";
    named(refusal(checked, removed("feature_extractor/preprocessor_config.json"))?, "feature_extractor/")?;
    named(refusal(checked, removed("safety_checker/model.safetensors"))?, "safety_checker/no weights")?;
    named(
        refusal(checked, replaced(index, "\"feature_extractor\"", "\"extractor\""))?,
        "model_index.json: feature_extractor",
    )?;
    Ok(())
}

/// A safety checker that could hold nothing back is refused before anything is painted.
#[test]
fn a_safety_checker_of_no_numbers_is_refused() -> Result<()> {
    let found = refusal("text-to-image-checked", |directory| {
        let path = directory.join("safety_checker/model.safetensors");
        let mut bytes = std::fs::read(&path)?;
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into()?) as usize;
        bytes[header..].fill(0xff);
        Ok(std::fs::write(path, bytes)?)
    })?;
    ensure!(found.contains("safety_checker/special_care_embeds: expected numbers"), "{found}");
    Ok(())
}

/// Weights that are no numbers end a job with words, and no picture.
#[test]
fn pictures_of_what_is_no_number_are_refused() -> Result<()> {
    let case = TaskCase::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tasks/text-to-image"))?;
    for (file, words) in [
        ("unet/diffusion_pytorch_model.safetensors", "the picture after step 1: expected numbers"),
        ("text_encoder/model.safetensors", "the picture after step 1: expected numbers"),
        ("vae/diffusion_pytorch_model.safetensors", "the decoded picture: expected numbers"),
    ] {
        let directory = tempfile::tempdir()?;
        case.write_model(directory.path())?;
        let path = directory.path().join(file);
        let mut bytes = std::fs::read(&path)?;
        // All weights become NaN; the header stays.
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into()?) as usize;
        bytes[header..].fill(0xff);
        std::fs::write(&path, bytes)?;
        let mut pipeline = accel_pipelines::load(Arc::new(LocalFiles::open(directory.path())?), &unbounded())?;
        let Err(error) = answer(&mut *pipeline, &job(case.task, question(&case)?)) else { bail!("{file}: a picture") };
        ensure!(error.code == ErrorCode::ModelInvalid && error.message.contains(words), "{file}: {error:?}");
    }
    Ok(())
}
