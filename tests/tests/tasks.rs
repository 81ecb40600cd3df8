//! Tasks as jobs of a swarm: a node that has the model asks one that fetches it, and says what one process says.

use std::path::Path;
use std::process::Stdio;

use accel_conformance::task::{Question, TaskCase, compare};
use accel_node::process::NodeProcess;
use accel_protocol::{Aggregation, Input, ModelRef, Task, TaskResult};
use accel_tests::cluster::{Cluster, import, installed};
use accel_tests::command::CommandLine;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A swarm of two, of which the first has a model of that name and runs no jobs.
async fn swarm(cluster: &Cluster, name: &str) -> Result<(TaskCase, ModelRef, NodeProcess, NodeProcess)> {
    let case = TaskCase::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks").join(name))?;
    let directory = cluster.directory(&format!("{name}-model"))?;
    case.write_model(&directory)?;
    let client = cluster.start(&format!("{name}-client"), false, &[]).await?;
    let model = import(&client, directory).await?;
    let worker = cluster.start(&format!("{name}-worker"), true, &[&client]).await?;
    Ok((case, model, client, worker))
}

/// How a person asks the question. Numbers are in a file of the cluster's.
fn arguments(question: &Question, task: Task, cluster: &Cluster) -> Result<Vec<String>> {
    let mut files = question.files.iter().map(|path| path.to_str().map(str::to_owned).context("a path in UTF-8"));
    let mut arguments = match &question.input {
        Input::Text(text) if task == Task::TextGeneration => vec![text.clone(), "--raw".into()],
        Input::Text(text) => vec![text.clone()],
        Input::Chat(messages) => vec![messages.last().context("nothing is said")?.content.clone()],
        Input::Pair(first, second) => vec![first.clone(), "--context".into(), second.clone()],
        Input::File(_) => vec![files.next().context("no file")??],
        Input::Pictures(_, messages) => {
            let mut arguments = vec![messages.last().context("nothing is said")?.content.clone()];
            for file in files {
                arguments.extend(["--image".into(), file?]);
            }
            arguments
        }
        Input::Series(times) => {
            let line = |values: &Vec<f32>| values.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
            let path = cluster.path("series.csv");
            std::fs::write(&path, times.iter().map(line).collect::<Vec<_>>().join("\n"))?;
            vec![path.to_str().context("a path in UTF-8")?.to_owned()]
        }
        other => bail!("no way to ask {other:?}"),
    };
    arguments.extend(["--task".into(), task.name().to_owned()]);
    if let Some(threshold) = question.options.threshold {
        arguments.extend(["--threshold".into(), threshold.to_string()]);
    }
    if let Some(language) = &question.options.language {
        arguments.extend(["--language".into(), language.clone()]);
    }
    let painting = &question.options.painting;
    let numbers = [("--steps", painting.steps), ("--width", painting.width), ("--height", painting.height)];
    for (name, number) in numbers {
        arguments.extend(number.into_iter().flat_map(|number| [name.to_owned(), number.to_string()]));
    }
    if let Some(guidance) = painting.guidance {
        arguments.extend(["--guidance".into(), guidance.to_string()]);
    }
    if let Some(negative) = &painting.negative {
        arguments.extend(["--negative".into(), negative.clone()]);
    }
    if question.generation.seed > 0 {
        arguments.extend(["--seed".into(), question.generation.seed.to_string()]);
    }
    if let Some(count) = question.options.top_k {
        arguments.extend(["--top-k".into(), count.to_string()]);
    }
    if question.text.is_some() {
        let (most, penalty) = (question.generation.max_tokens, question.generation.repetition_penalty);
        arguments.extend(["--max-tokens".into(), most.to_string()]);
        // It is about draws, and there are none.
        arguments.extend(["--top-k".into(), "5".into()]);
        arguments.extend(["--repetition-penalty".into(), penalty.to_string()]);
    }
    if question.options.aggregation != Aggregation::None {
        let name = format!("{:?}", question.options.aggregation).to_lowercase();
        arguments.extend(["--aggregation".into(), name]);
    }
    Ok(arguments)
}

const READ: [&str; 10] = [
    "embedding",
    "feature-extraction",
    "fill-mask",
    "question-answering",
    "question-answering-bart",
    "text-classification",
    "text-classification-bart",
    "text-classification-decoder",
    "token-classification",
    "image-classification",
];
const WRITTEN: [&str; 7] = [
    "summarization",
    "summarization-bart",
    "text-generation",
    "text-generation-experts",
    "text-generation-prefix",
    "translation",
    "translation-greedy",
];
const SEEN_AND_HEARD: [&str; 10] = [
    "image-text-to-text",
    "image-text-to-text-grid",
    "image-to-text",
    "image-to-text-within",
    "mask-generation",
    "object-detection",
    "object-detection-points",
    "speech-ctc",
    "speech-whisper",
    "speech-whisper-english",
];
const MADE: [&str; 11] = [
    "text-to-image",
    "text-to-image-checked",
    "text-to-image-flux",
    "text-to-image-flux-fixed",
    "text-to-image-velocity",
    "time-series",
    "time-series-counts",
    "time-series-mixer",
    "time-series-mixer-counts",
    "time-series-mixer-normal",
    "time-series-student",
];

#[test]
fn no_case_of_a_task_is_left_out() -> Result<()> {
    let mut named = [&READ[..], &WRITTEN, &SEEN_AND_HEARD, &MADE].concat();
    named.sort_unstable();
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks"))?;
    let mut kept = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    kept.sort_unstable();
    ensure!(kept == named, "{kept:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_read_through_two_processes_as_in_one() -> Result<()> {
    through_two_processes(&READ).await
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_written_through_two_processes_as_in_one() -> Result<()> {
    through_two_processes(&WRITTEN).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_and_sounds_are_read_through_two_processes_as_in_one() -> Result<()> {
    through_two_processes(&SEEN_AND_HEARD).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_and_series_are_made_through_two_processes_as_in_one() -> Result<()> {
    through_two_processes(&MADE).await
}

/// Every question that a command can ask, of every one of these cases.
async fn through_two_processes(names: &[&str]) -> Result<()> {
    let cluster = Cluster::new()?;
    for name in names {
        let (case, model, client, worker) = swarm(&cluster, name).await?;
        let command = CommandLine::new(&cluster, &cluster.path(&format!("{name}-client")));
        let single = |question: &&Question| match &question.input {
            Input::Texts(_) => false,
            // What was said before has no place in a command.
            Input::Chat(messages) | Input::Pictures(_, messages) => messages.len() == 1,
            _ => true,
        };
        // Where all questions have several texts, the first of them is asked alone.
        let first = case.questions.first().context("no question")?;
        let alone = match &first.input {
            Input::Texts(texts) => Question {
                input: Input::Text(texts[0].clone()),
                expected: first.expected[..1].to_vec(),
                ..first.clone()
            },
            _ => first.clone(),
        };
        for question in case.questions.iter().filter(single).chain([&alone]) {
            let model = model.to_string();
            let asked = arguments(question, case.task, &cluster)?;
            let all: Vec<&str> =
                ["--json", "run", &model].into_iter().chain(asked.iter().map(String::as_str)).collect();
            let ran = command.run(&all).await?;
            if question.text.is_none() && question.expected.is_empty() {
                ensure!(ran.code != Some(0), "{name}: {asked:?}: {ran:?}");
                ensure!(format!("{ran:?}").contains("safety checker"), "{name}: {asked:?}: {ran:?}");
                continue;
            }
            let answer = ran.json()?;
            if let Some(text) = &question.text {
                ensure!(answer["text"] == *text, "{asked:?}: expected {text:?}, found {answer}");
            } else {
                let results: Vec<TaskResult> =
                    serde_json::from_value(answer["results"].clone()).with_context(|| format!("{asked:?}: {ran:?}"))?;
                compare(&results, &question.expected).with_context(|| format!("{name}: {asked:?}"))?;
            }
            ensure!(answer["answered_by"] == worker.peer(), "{answer}");
        }
        // What people see of it.
        let model = model.to_string();
        let shown = case.questions.iter().find(|question| single(question) && !question.expected.is_empty());
        let asked = arguments(shown.unwrap_or(&alone), case.task, &cluster)?;
        let all: Vec<&str> = ["run", &model].into_iter().chain(asked.iter().map(String::as_str)).collect();
        let seen = command.run(&all).await?;
        ensure!(seen.data()?.lines().count() >= 1, "{seen:?}");
        worker.stop().await?;
        client.stop().await?;
    }
    Ok(())
}

/// OpenAI's own client, of which only address and key were changed.
const CLIENT: &str = "
import json, sys
from openai import OpenAI
address, key, model, texts = json.load(sys.stdin)
client = OpenAI(base_url=f'http://{address}/v1', api_key=key)
asked = {'texts': texts, 'text': texts[0]}
found = {name: client.embeddings.create(model=model, input=value) for name, value in asked.items()}
floats = client.embeddings.create(model=model, input=texts, encoding_format='float')
assert [one.embedding for one in floats.data] == [one.embedding for one in found['texts'].data]
try:
    client.embeddings.create(model=model, input=texts, dimensions=7)
    refused = None
except Exception as error:
    refused = [error.status_code, error.body['message']]
answers = {name: [one.embedding for one in answer.data] for name, answer in found.items()}
json.dump([answers, found['texts'].usage.prompt_tokens, refused], sys.stdout)
";

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_openai_gets_embeddings() -> Result<()> {
    let cluster = Cluster::new()?;
    let (case, model, client, worker) = swarm(&cluster, "embedding").await?;
    let access: Value = serde_json::from_slice(&std::fs::read(cluster.path("embedding-client/api.json"))?)?;
    let texts = case.questions.iter().filter_map(|question| match &question.input {
        Input::Text(text) => Some(text.as_str()),
        _ => None,
    });
    let texts: Vec<&str> = texts.collect();
    let given = serde_json::to_vec(&(&access["address"], &access["token"], &model, &texts))?;
    let mut child = tokio::process::Command::new(installed("ACCEL_TEST_PYTHON")?)
        .args(["-c", CLIENT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, &given).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (answers, tokens, refused): (Value, u32, Option<(u16, String)>) = serde_json::from_slice(&output.stdout)?;
    ensure!(tokens > 0);
    ensure!(refused.is_some_and(|(status, words)| status == 400 && words.contains("vectors of 32")));
    let expected: Vec<TaskResult> = case.questions.iter().flat_map(|question| question.expected.clone()).collect();
    let vectors: Vec<Vec<f32>> = serde_json::from_value(answers["texts"].clone())?;
    let result = |values: Vec<f32>| TaskResult::Features { shape: vec![values.len() as u32], values };
    compare(&vectors.into_iter().map(result).collect::<Vec<_>>(), &expected)?;
    let vectors: Vec<Vec<f32>> = serde_json::from_value(answers["text"].clone())?;
    compare(&vectors.into_iter().map(result).collect::<Vec<_>>(), &expected[..1])?;
    worker.stop().await?;
    client.stop().await?;
    Ok(())
}
