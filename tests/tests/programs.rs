//! What other programs get from a node: the clients of OpenAI and Ollama as they are, and curl, against a swarm of two, of
//! which the one that is asked has neither the model nor runs any.

use std::process::Stdio;
use std::time::Duration;

use accel_node::process::{NodeProcess, Settings};
use accel_protocol::JobState;
use accel_tests::cluster::{Cluster, eventually, import, installed, model_file};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const PARIS: &str = "The capital of France is Paris.";
const NAME: &str = "smollm2:135m";
const KEY: &str = "sk-of-the-tests-0123456789";
/// A client that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node that programs ask, and the one that has the model and works.
struct Swarm {
    cluster: Cluster,
    front: NodeProcess,
    worker: NodeProcess,
}

impl Swarm {
    /// `arguments` are those of the node that is asked.
    async fn start(arguments: impl Fn(&Cluster) -> Result<Vec<String>>) -> Result<Self> {
        let cluster = Cluster::new()?;
        let worker = cluster.start("worker", true, &[]).await?;
        let model = import(&worker, model_file()?).await?;
        let settings = cluster.settings("front", false, &[&worker]);
        let front = NodeProcess::start(&Settings { arguments: arguments(&cluster)?, ..settings }).await?;
        front.api().set_name(&NAME.parse()?, &model).await?;
        eventually("the worker is known", async || {
            let peers = front.api().peers().await?;
            Ok(peers.iter().any(|peer| peer.advert.as_ref().is_some_and(|advert| !advert.models.is_empty())))
        })
        .await?;
        Ok(Self { cluster, front, worker })
    }

    fn address(&self) -> Result<String> {
        let access: Value = serde_json::from_slice(&std::fs::read(self.cluster.path("front/api.json"))?)?;
        Ok(access["address"].as_str().context("no address")?.to_owned())
    }

    async fn stop(self) -> Result<()> {
        self.front.stop().await?;
        self.worker.stop().await?;
        Ok(())
    }
}

/// What a client prints that is given an address, a key and a model's name.
async fn client(program: Command, swarm: &Swarm, key: &str) -> Result<Value> {
    let mut program = program;
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = program.spawn().context("run the client")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(&serde_json::to_vec(&(swarm.address()?, key, NAME))?).await?;
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.context("a client hangs")??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn script(name: &str) -> String {
    format!("{}/scripts/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn python(name: &str) -> Result<Command> {
    let mut command = Command::new(installed("ACCEL_TEST_PYTHON")?);
    command.arg(script(name));
    Ok(command)
}

/// The node that is asked needs a key of programs.
fn with_key(cluster: &Cluster) -> Result<Vec<String>> {
    let path = cluster.path("key");
    std::fs::write(&path, format!("{KEY}\n"))?;
    Ok(vec!["--api-key-file".to_owned(), path.display().to_string()])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_openai_for_python_is_served_by_the_swarm() -> Result<()> {
    let swarm = Swarm::start(with_key).await?;
    let found = client(python("openai_client.py")?, &swarm, KEY).await?;
    ensure!(found["models"].as_array().is_some_and(|models| models.contains(&json!(NAME))), "{found}");
    assert_eq!(found["model"], NAME);
    assert_eq!((&found["whole"], &found["streamed"]), (&json!(PARIS), &json!(PARIS)));
    assert_eq!((&found["finish"], &found["cut"]), (&json!("stop"), &json!("length")));
    let usage = &found["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap_or_default();
    ensure!(count("prompt_tokens") > 5 && count("completion_tokens") > 5, "{usage}");
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    assert_eq!(found["stream_usage"], *usage);
    assert_eq!((&found["usage_before"], &found["usage_unasked"]), (&json!([]), &json!([])));
    ensure!(found["pieces"].as_u64() > Some(6), "the answer came as {} pieces", found["pieces"]);
    assert_eq!(found["fingerprint"], accel_pipelines::arithmetic().0.as_str());
    // Without a temperature the likeliest is taken.
    assert_eq!(found["tokens"], json!(["The", " capital", " of", " France"]));
    assert_eq!(found["tokens"], found["likeliest"]);
    let logprobs: Vec<f64> = serde_json::from_value(found["logprobs"].clone())?;
    ensure!(logprobs.iter().all(|logprob| (-5.0..=0.0).contains(logprob)), "{logprobs:?}");
    let seeded: Vec<Vec<String>> = serde_json::from_value(found["seeded"].clone())?;
    ensure!(seeded[0] == seeded[1] && seeded[0][0] != seeded[0][1], "{seeded:?}");
    assert_eq!(found["stopped"], json!(["The capital of France is", "stop"]));
    let completions: Vec<String> = serde_json::from_value(found["completions"].clone())?;
    ensure!(completions[0].starts_with("The capital of France is") && completions[0].len() > 24, "{completions:?}");
    ensure!(completions[1].starts_with("One, two, three,"), "{completions:?}");
    assert_eq!(completions[1], format!("One, two, three,{}", found["completion_stream"].as_str().unwrap_or_default()));
    let logprobs = &found["completion_logprobs"];
    ensure!(logprobs["tokens"].as_array().is_some_and(|tokens| tokens.len() == 3), "{logprobs}");
    ensure!(logprobs["top_logprobs"][0].as_object().is_some_and(|top| top.len() == 2), "{logprobs}");
    let refused = &found["refused"];
    let begins = |of: &str, kind: &str, status: u16, code: &str, param: Value| {
        let expected = [json!(kind), json!(status), json!(code), param];
        ensure!(refused[of].as_array().is_some_and(|told| told.starts_with(&expected)), "{of}: {}", refused[of]);
        Ok(())
    };
    begins("model", "NotFoundError", 404, "model_not_found", json!("model"))?;
    begins("tools", "BadRequestError", 400, "invalid_request", json!("tools"))?;
    begins("penalty", "BadRequestError", 400, "invalid_request", json!("frequency_penalty"))?;
    begins("temperature", "BadRequestError", 400, "invalid_request", Value::Null)?;
    begins("n", "BadRequestError", 400, "invalid_request", json!("n"))?;
    begins("role", "BadRequestError", 400, "invalid_request", json!("messages[0]"))?;
    begins("empty", "BadRequestError", 400, "invalid_request", Value::Null)?;
    assert_eq!(found["wrong_key"], json!(["AuthenticationError", 401]));
    swarm.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_openai_for_node_is_served_by_the_swarm() -> Result<()> {
    let swarm = Swarm::start(with_key).await?;
    let npm = installed("ACCEL_TEST_NPM")?;
    let script = std::fs::read_to_string(script("openai_client.mjs"))?;
    let mut node = Command::new(installed("ACCEL_TEST_NODE")?);
    // A module finds packages beside itself only, and one without a file beside its working directory.
    node.args(["--input-type=module", "--eval", &script]).current_dir(npm);
    let found = client(node, &swarm, KEY).await?;
    ensure!(found["models"].as_array().is_some_and(|models| models.contains(&json!(NAME))), "{found}");
    assert_eq!((&found["whole"], &found["streamed"]), (&json!(PARIS), &json!(PARIS)));
    assert_eq!(found["usage"], found["stream_usage"]);
    assert_eq!(found["refused"], json!(["NotFoundError", 404, "model_not_found"]));
    // The answer that was not read to its end was cancelled, here and at the worker.
    eventually("the abandoned job has ended", async || {
        let (here, there) = (swarm.front.api().jobs().await?, swarm.worker.api().jobs().await?);
        let cancelled = |job: &accel_protocol::JobStatus| job.state == JobState::Cancelled;
        Ok(here.iter().any(cancelled) && there.iter().any(cancelled))
    })
    .await?;
    swarm.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_ollama_is_served_by_the_swarm() -> Result<()> {
    let swarm = Swarm::start(|_| Ok(Vec::new())).await?;
    let found = client(python("ollama_client.py")?, &swarm, "").await?;
    let pull = found["pull"].as_array().context("no steps")?;
    ensure!(pull.first() == Some(&json!("pulling manifest")) && pull.last() == Some(&json!("success")), "{pull:?}");
    ensure!(found["tags"].as_array().is_some_and(|tags| tags.contains(&json!(NAME))), "{found}");
    assert_eq!(found["show"], json!(["gguf", "134.5M", ["completion"]]));
    for way in ["chat", "streamed", "generate", "generate_streamed"] {
        assert_eq!(found[way], PARIS, "{way}");
    }
    ensure!(found["raw"].as_str().is_some_and(|text| !text.is_empty()), "{found}");
    assert_eq!(found["done"], json!([false, true]));
    ensure!(found["counts"][0].as_u64() > Some(5) && found["counts"][2] == "stop", "{found}");
    ensure!(found["counts"][3] == true, "{found}");
    assert_eq!(found["refused"]["model"][0], 404);
    assert_eq!((&found["refused"]["format"][0], &found["refused"]["option"][0]), (&json!(400), &json!(400)));
    swarm.stop().await
}

/// Runs curl on a path of the node that is asked: the status, then what it said.
async fn curl(swarm: &Swarm, arguments: &[&str], path: &str) -> Result<(u16, String)> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}"]).args(arguments);
    command.arg(format!("http://{}{path}", swarm.address()?));
    let output = command.output().await.context("curl is missing: install it")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout)?;
    let (text, status) = said.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, text.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_served_on_loopback_without_a_key_and_pages_of_other_sites_are_not() -> Result<()> {
    let swarm = Swarm::start(|_| Ok(Vec::new())).await?;
    let json = "content-type: application/json";
    let chat = json!({
        "model": NAME, "messages": [{ "role": "user", "content": "What is the capital of France?" }],
        "temperature": 0, "stream": true,
    });
    let (status, text) = curl(&swarm, &["-N", "-H", json, "-d", &chat.to_string()], "/v1/chat/completions").await?;
    assert_eq!(status, 200, "{text}");
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let said = events[..events.len() - 1].iter().map(|event| Ok(serde_json::from_str(event)?));
    let said: Vec<Value> = said.collect::<Result<_>>()?;
    let pieces = said.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), PARIS);

    // Any task: this one is answered whole.
    let job = json!({ "model": NAME, "input": { "text": "One, two, three," }, "generation": { "max_tokens": 3 } });
    let (status, text) = curl(&swarm, &["-H", json, "-d", &job.to_string()], "/v1/jobs").await?;
    let done: Value = serde_json::from_str(&text)?;
    ensure!(status == 200 && done["status"] == "done" && done["usage"]["completion_tokens"] == 3, "{text}");
    let mut later = job.clone();
    later["background"] = true.into();
    let (status, text) = curl(&swarm, &["-H", json, "-d", &later.to_string()], "/v1/jobs").await?;
    let queued: Value = serde_json::from_str(&text)?;
    ensure!(status == 202, "{text}");
    let path = format!("/v1/jobs/{}", queued["id"].as_str().context("no id")?);
    let (status, text) = curl(&swarm, &["-N"], &format!("{path}/events")).await?;
    ensure!(status == 200 && text.contains("data: [DONE]") && text.contains("\"done\""), "{text}");
    let (_, text) = curl(&swarm, &[], &path).await?;
    ensure!(serde_json::from_str::<Value>(&text)?["status"] == "done", "{text}");

    for path in ["/health", "/ready", "/v1/models", "/api/tags", "/api/version", "/metrics"] {
        let (status, text) = curl(&swarm, &[], path).await?;
        ensure!(status == 200 && !text.is_empty(), "{path}: {status} {text}");
        // A page that the person has open, and a name that such a page gave to this machine.
        let open = matches!(path, "/health" | "/ready");
        for header in ["origin: https://example.org", "host: example.org"] {
            let (status, text) = curl(&swarm, &["-H", header], path).await?;
            ensure!(if open { status == 200 } else { status == 403 }, "{path}, {header}: {status} {text}");
        }
        let (status, _) = curl(&swarm, &["-H", "origin: http://localhost:3000"], path).await?;
        assert_eq!(status, 200, "{path}");
    }
    let (_, metrics) = curl(&swarm, &[], "/metrics").await?;
    for line in [
        "accel_request_success_total{origin=\"local\",finished_reason=\"stop\"} 1",
        "accel_request_success_total{origin=\"local\",finished_reason=\"length\"} 2",
        "accel_e2e_request_latency_seconds_count 3",
        "accel_time_to_first_token_seconds_count 3",
        "accel_num_requests_running 0",
        "accel_peers_connected 1",
        "accel_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
    ] {
        ensure!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    ensure!(metrics.ends_with("# EOF\n"), "{metrics}");
    documented(&metrics)?;
    ensure!(!metrics.contains(swarm.worker.peer()), "a metric names a peer");

    for (path, body, status) in [
        ("/v1/chat/completions", "{", 400),
        ("/v1/chat/completions", "{}", 400),
        ("/v1/nothing", "{}", 404),
        ("/api/nothing", "{}", 404),
        ("/api/chat", "{}", 400),
    ] {
        let (found, text) = curl(&swarm, &["-H", json, "-d", body], path).await?;
        let told: Value = serde_json::from_str(&text)?;
        ensure!(found == status && !told["error"].is_null(), "{path} {body}: {found} {text}");
    }
    swarm.stop().await
}

/// That the documentation has every measurement.
fn documented(metrics: &str) -> Result<()> {
    let mut page =
        "# Metrics\n\n`/metrics` answers in OpenMetrics' text, which Prometheus reads. What vLLM measures too has its \
        name, with `accel_` in front. No label names a peer, a model or a person.\n\n| name | kind | what |\n\
        | --- | --- | --- |\n"
            .to_owned();
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').context("no help")?;
        let kind = metrics.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let kind = kind.with_context(|| format!("{name} has no type"))?;
        let series = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        page.push_str(&format!("| `{series}` | {kind} | {} |\n", help.trim_end_matches('.')));
    }
    let path = format!("{}/../docs/metrics.md", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("ACCEL_UPDATE").is_some() {
        std::fs::write(&path, &page)?;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(written == page, "docs/metrics.md is not up to date: ACCEL_UPDATE=1 tests/run -E 'binary(programs)'");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_and_fifty_six_answers_stream_at_once() -> Result<()> {
    let swarm = Swarm::start(|_| Ok(Vec::new())).await?;
    let (http, address) = (accel_node::tls::loopback(), swarm.address()?);
    let ask = |number: usize| {
        let body = json!({
            "model": NAME, "prompt": format!("{number}, {}, ", number + 1), "max_tokens": 4, "temperature": 0,
            "stream": true, "stream_options": { "include_usage": true },
        });
        let request = http.post(format!("http://{address}/v1/completions")).json(&body).send();
        async move {
            let response = request.await?.error_for_status()?;
            let text = response.text().await?;
            ensure!(text.trim_end().ends_with("data: [DONE]"), "answer {number}: {text}");
            ensure!(text.contains("\"completion_tokens\":4"), "answer {number}: {text}");
            Ok(())
        }
    };
    let answers: Vec<Result<()>> = futures::stream::iter((0..256).map(ask)).buffer_unordered(256).collect().await;
    let failed: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    ensure!(failed.is_empty(), "{} of 256 failed, such as {:?}", failed.len(), failed.first());
    swarm.stop().await
}
