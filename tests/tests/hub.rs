//! Models from the Hugging Face hub: from a hub on loopback into the store, by a person's commands and by Ollama's clients.

#[path = "hub/older.rs"]
mod older;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use accel_node::api::Ready;
use accel_node::process::{NodeProcess, Settings};
use accel_tests::cluster::{Cluster, eventually, import, installed, model_file};
use accel_tests::command::{CommandLine, Ran, ran};
use accel_tests::hub::{COMMIT, Hub, Mishap, Repository, TOKEN};
use accel_tests::namespace::{Own, command, is_inside};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const CAPITAL: &str = "What is the capital of France?";
const PARIS: &str = "The capital of France is Paris.";
const SMALL: &str = "people/SmolLM2-GGUF";
const EMBEDDER: &str = "people/all-MiniLM-L6-v2";

/// A repository of GGUF files: the real one, one that is split, and one with eyes.
fn ggufs(cluster: &Cluster) -> Result<Repository> {
    let stub = stub(cluster)?;
    let files = [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", model_file()?),
        ("SmolLM2-135M-Instruct.IQ2_XXS.gguf", stub.clone()),
        ("Q8_0/SmolLM2-135M-Instruct-Q8_0-00001-of-00002.gguf", stub.clone()),
        ("Q8_0/SmolLM2-135M-Instruct-Q8_0-00002-of-00002.gguf", stub.clone()),
        ("mmproj-model-f16.gguf", stub.clone()),
        ("README.md", stub),
    ];
    Ok(Repository { files: named(files), ..Repository::default() })
}

fn named<const N: usize>(files: [(&str, PathBuf); N]) -> std::collections::BTreeMap<String, PathBuf> {
    files.into_iter().map(|(name, path)| (name.to_owned(), path)).collect()
}

/// A file that nobody should ask for.
fn stub(cluster: &Cluster) -> Result<PathBuf> {
    let path = cluster.path("stub");
    std::fs::write(&path, "nobody needs this")?;
    Ok(path)
}

/// A repository as Sentence Transformers have them, with the same weights in other formats.
fn embedder(cluster: &Cluster) -> Result<Repository> {
    let directory = installed("ACCEL_TEST_EMBEDDER")?;
    let mut files = std::collections::BTreeMap::new();
    for name in EMBEDDER_FILES {
        files.insert(name.to_owned(), directory.join(name));
    }
    for name in ["pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "README.md", ".gitattributes", "train.json"] {
        files.insert(name.to_owned(), stub(cluster)?);
    }
    Ok(Repository { files, ..Repository::default() })
}

const EMBEDDER_FILES: [&str; 9] = [
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// A command of a person whose environment names the hub.
fn at_hub(commands: &CommandLine, hub: &Hub, token: Option<&str>, arguments: &[&str]) -> Command {
    let mut command = commands.command(arguments);
    for variable in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME"] {
        command.env_remove(variable);
    }
    command.env("HF_ENDPOINT", hub.endpoint());
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    command
}

async fn pull(commands: &CommandLine, hub: &Hub, token: Option<&str>, model: &str) -> Result<Ran> {
    ran(at_hub(commands, hub, token, &["pull", model, "--json"]).spawn()?).await
}

fn is_empty(directory: &Path) -> Result<bool> {
    Ok(std::fs::read_dir(directory)?.next().is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quantised_model_of_the_hub_is_pulled_once_and_answers() -> Result<()> {
    let cluster = Cluster::new()?;
    let hub = Hub::start([(SMALL, ggufs(&cluster)?)]).await?;
    let node = cluster.start("node", true, &[]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let bytes = std::fs::metadata(model_file()?)?.len();
    let model = format!("hf://{SMALL}:q4_1");

    // The connection breaks twice; what has come is not sent again.
    const CUT: u64 = 40 << 20;
    hub.befall(Mishap::Cut(CUT));
    let pulled = pull(&commands, &hub, None, &model).await?;
    pulled.data()?;
    let pulled = pulled.json()?;
    let name = format!("{SMALL}:Q4_1");
    assert_eq!((&pulled["name"], &pulled["commit"]), (&json!(name), &json!(COMMIT)));
    assert_eq!((&pulled["bytes"], &pulled["downloaded_bytes"]), (&json!(bytes), &json!(bytes)));
    let asked = hub.asked();
    let offsets: Vec<u64> = asked.iter().map(|(_, offset)| *offset).collect();
    ensure!(asked.iter().all(|(name, _)| name.ends_with("Q4_1.gguf")) && offsets.len() == 2, "{asked:?}");
    ensure!(offsets[0] == 0 && (CUT - (1 << 20)..=CUT).contains(&offsets[1]), "{offsets:?}");
    assert_eq!(hub.served_bytes(), CUT + bytes - offsets[1]);
    ensure!(is_empty(&node.data_dir().join("downloads"))?, "the download has not gone");

    // The same bytes have the same CID, however they came.
    assert_eq!(pulled["cid"], import(&node, model_file()?).await?.to_string().as_str());
    for called in [name.as_str(), model.as_str(), &format!("hf.co/{SMALL}:Q4_1")] {
        assert_eq!(commands.run(&["run", called, CAPITAL]).await?.data()?, format!("{PARIS}\n"), "{called}");
    }

    let again = pull(&commands, &hub, None, &model).await?;
    again.data()?;
    let again = again.json()?;
    assert_eq!((&again["cid"], &again["downloaded_bytes"]), (&pulled["cid"], &json!(0)));
    assert_eq!((hub.served_bytes(), hub.asked()), (0, Vec::new()));

    // Once it is removed it has to come again.
    commands.run(&["rm", &name]).await?.data()?;
    let fresh = pull(&commands, &hub, None, &model).await?;
    fresh.data()?;
    assert_eq!(fresh.json()?["downloaded_bytes"], json!(bytes));
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_interrupted_goes_on_where_it_was() -> Result<()> {
    let cluster = Cluster::new()?;
    let hub = Hub::start([(SMALL, ggufs(&cluster)?)]).await?;
    let node = cluster.start("node", false, &[]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let bytes = std::fs::metadata(model_file()?)?.len();
    let model = format!("hf://{SMALL}:Q4_1");

    const HELD: u64 = 30 << 20;
    hub.befall(Mishap::Hold(HELD));
    let child = at_hub(&commands, &hub, None, &["pull", &model]).spawn()?;
    let partial = node.data_dir().join(format!(
        "downloads/{}--{COMMIT}--Q4_1/SmolLM2-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf.partial",
        SMALL.replace('/', "--")
    ));
    eventually("most of it has come", async || {
        Ok(std::fs::metadata(&partial).is_ok_and(|metadata| metadata.len() > HELD - (2 << 20)))
    })
    .await?;
    // The same model is not pulled twice at once.
    let second = pull(&commands, &hub, None, &model).await?;
    ensure!(second.code == Some(2) && second.stdout.contains("is being pulled already"), "{second:?}");
    let process = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    rustix::process::kill_process(process.context("the command has ended")?, rustix::process::Signal::INT)?;
    let ended = ran(child).await?;
    ensure!(ended.code == Some(130) && ended.stderr == "error: interrupted\n", "{ended:?}");
    hub.asked();

    // The daemon notices that nobody listens, and so does one that is killed and comes again.
    node.kill().await?;
    let node = cluster.start("node", false, &[]).await?;
    let pulled = pull(&commands, &hub, None, &model).await?;
    pulled.data()?;
    let asked = hub.asked();
    ensure!(asked.len() == 1 && (HELD - (2 << 20)..=HELD).contains(&asked[0].1), "{asked:?}");
    assert_eq!(pulled.json()?["downloaded_bytes"], json!(bytes - asked[0].1));

    // What is interrupted and not wanted any more is freed with the rest.
    commands.run(&["rm", &format!("{SMALL}:Q4_1")]).await?.data()?;
    let mut child = at_hub(&commands, &hub, None, &["pull", &model]);
    hub.befall(Mishap::Hold(HELD));
    let child = child.spawn()?;
    eventually("some of it has come", async || Ok(partial.exists())).await?;
    drop(child);
    eventually("the download has stopped and is freed", async || {
        let freed = commands.run(&["gc", "--json"]).await?.json()?;
        Ok(freed["bytes"].as_u64().is_some() && is_empty(&node.data_dir().join("downloads"))?)
    })
    .await?;
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_repository_only_what_a_model_needs_is_pulled() -> Result<()> {
    let cluster = Cluster::new()?;
    let gated = Repository { gated: true, ..embedder(&cluster)? };
    let hub = Hub::start([(EMBEDDER, gated)]).await?;
    let node = cluster.start("node", true, &[]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let model = format!("hf://{EMBEDDER}@refs/pr/1");
    let pulled = pull(&commands, &hub, Some(TOKEN), &model).await?;
    pulled.data()?;
    assert_eq!(pulled.json()?["name"], json!(format!("{EMBEDDER}/refs/pr/1")));
    let mut asked: Vec<String> = hub.asked().into_iter().map(|(name, _)| name).collect();
    asked.sort();
    assert_eq!(asked, EMBEDDER_FILES);
    // The weights came from another host, which has no business with the token.
    assert_eq!(hub.leaked(), 0);

    same_as_reference(&commands, &format!("{EMBEDDER}/refs/pr/1")).await?;

    // A second name is only a name.
    let again = pull(&commands, &hub, Some(TOKEN), &format!("hf://{EMBEDDER}@{COMMIT}")).await?;
    again.data()?;
    assert_eq!((hub.asked(), hub.served_bytes() > 0), (Vec::new(), true));
    node.stop().await?;
    Ok(())
}

/// Weights of one tensor.
fn weights(cluster: &Cluster, number: f32) -> Result<PathBuf> {
    let header = json!({ "w": { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] } }).to_string();
    let path = cluster.path(&format!("{number}.safetensors"));
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &number.to_le_bytes()];
    std::fs::write(&path, bytes.concat())?;
    Ok(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_shards_are_pulled_as_their_lists_say() -> Result<()> {
    let cluster = Cluster::new()?;
    let list = |name: &str, value: Value| -> Result<PathBuf> {
        let path = cluster.path(name);
        std::fs::write(&path, value.to_string())?;
        Ok(path)
    };
    let parts = json!({
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"], "safety_checker": [null, null], "requires_safety_checker": false,
    });
    let shards = json!({ "weight_map": {
        "a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model-00002-of-00002.safetensors",
    } });
    let (stub, small) = (stub(&cluster)?, list("config.json", json!({}))?);
    let needed = [
        ("model_index.json", list("model_index.json", parts)?),
        ("scheduler/scheduler_config.json", small.clone()),
        ("text_encoder/config.json", small.clone()),
        ("text_encoder/model.safetensors", weights(&cluster, 1.0)?),
        ("tokenizer/merges.txt", stub.clone()),
        ("tokenizer/vocab.json", small.clone()),
        ("unet/config.json", small.clone()),
        ("unet/diffusion_pytorch_model-00001-of-00002.safetensors", weights(&cluster, 2.0)?),
        ("unet/diffusion_pytorch_model-00002-of-00002.safetensors", weights(&cluster, 3.0)?),
        ("unet/diffusion_pytorch_model.safetensors.index.json", list("index.json", shards)?),
    ];
    let mut expected: Vec<&str> = needed.iter().map(|(name, _)| *name).collect();
    expected.sort();
    let others = [
        "safety_checker/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "v1-5-pruned.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    let mut files = named(needed.clone());
    files.extend(others.map(|name| (name.to_owned(), stub.clone())));
    let hub = Hub::start([("people/painter", Repository { files, ..Repository::default() })]).await?;
    let node = cluster.start("node", false, &[]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    pull(&commands, &hub, None, "hf://people/painter").await?.data()?;
    let mut asked: Vec<String> = hub.asked().into_iter().map(|(name, _)| name).collect();
    asked.sort();
    assert_eq!(asked, expected);
    let shown = commands.run(&["show", "people/painter", "--json"]).await?.json()?;
    let files = shown["files"].as_array().context("no files")?;
    let files: Vec<&str> = files.iter().filter_map(|file| file["name"].as_str()).collect();
    assert_eq!(files, expected);
    node.stop().await?;
    Ok(())
}

/// The embedder's answer is the one that transformers gave.
async fn same_as_reference(commands: &CommandLine, model: &str) -> Result<()> {
    let reference: Value = serde_json::from_str(include_str!("../data/all-minilm-l6-v2.embeddings.json"))?;
    let row = &reference["rows"][0];
    let text = row["text"].as_str().context("no text")?;
    let answer = commands.run(&["run", model, text, "--task", "embedding", "--json"]).await?;
    answer.data()?;
    let (expected, found) = (floats(&row["vector"]), floats(&answer.json()?));
    ensure!(expected.len() == 384 && found.len() == expected.len(), "{} numbers: {answer:?}", found.len());
    let distance = expected.iter().zip(&found).map(|(expected, found)| (expected - found).abs()).fold(0.0, f64::max);
    ensure!(distance < 1e-5, "{distance} from the reference");
    Ok(())
}

/// The longest list of numbers in a value.
fn floats(value: &Value) -> Vec<f64> {
    let within = |values: &mut dyn Iterator<Item = &Value>| values.map(floats).max_by_key(Vec::len).unwrap_or_default();
    match value {
        Value::Array(values) if values.iter().any(Value::is_number) => {
            values.iter().filter_map(Value::as_f64).collect()
        }
        Value::Array(values) => within(&mut values.iter()),
        Value::Object(fields) => within(&mut fields.values()),
        _ => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pulled_says_what_to_do() -> Result<()> {
    let cluster = Cluster::new()?;
    let gated = Repository { gated: true, ..embedder(&cluster)? };
    let private = Repository { private: true, ..embedder(&cluster)? };
    let bare = Repository { files: named([("model.onnx", stub(&cluster)?)]), ..Repository::default() };
    let broken = stub(&cluster)?;
    let lost = cluster.path("index.json");
    std::fs::write(&lost, json!({ "weight_map": { "a": "model-00001-of-00002.safetensors" } }).to_string())?;
    let broken = named([("model.safetensors.index.json", lost), ("config.json", broken)]);
    let broken = Repository { files: broken, ..Repository::default() };
    let repositories = [
        (SMALL, ggufs(&cluster)?),
        ("people/gated", gated),
        ("people/private", private),
        ("people/bare", bare),
        ("people/broken", broken),
    ];
    let hub = Hub::start(repositories).await?;
    let quota = vec!["--quota-bytes".to_owned(), "1000000".to_owned()];
    let settings = cluster.settings("node", false, &[]);
    let node = NodeProcess::start(&Settings { arguments: quota, ..settings }).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let token = Some(TOKEN);
    let quantised = |quant: &str| format!("hf://{SMALL}{quant}");
    let cases = [
        ("hf://nobody".to_owned(), None, 2, "hf://org/name"),
        ("hf://../../etc".to_owned(), None, 2, "hf://org/name"),
        ("hf://people/nothing".to_owned(), None, 3, "set HF_TOKEN where it is private"),
        ("hf://people/nothing".to_owned(), token, 3, "check the name"),
        ("hf://people/private".to_owned(), None, 3, "set HF_TOKEN where it is private"),
        ("hf://people/private".to_owned(), Some("hf_wrong"), 2, "token from HF_TOKEN"),
        ("hf://people/gated".to_owned(), None, 2, "ask for access at"),
        ("hf://people/gated@v9".to_owned(), token, 3, "no revision \"v9\""),
        ("hf://people/bare".to_owned(), None, 1, "no weights that can be loaded"),
        ("hf://people/broken".to_owned(), None, 1, "model-00001-of-00002.safetensors, which is not there"),
        (quantised(":Q5_K_M"), None, 3, "has no Q5_K_M; it has IQ2_XXS, Q4_1, Q8_0"),
        (quantised(":q8_0"), None, 1, "split over 2 files"),
        (quantised(""), None, 2, "it has IQ2_XXS, Q4_1, Q8_0"),
        (quantised(":Q4_1"), None, 6, "raise the quota"),
    ];
    for (model, token, code, words) in &cases {
        let failed = pull(&commands, &hub, *token, model).await?;
        ensure!(failed.code == Some(*code), "{model}: {failed:?}");
        let message = failed.json()?["error"]["message"].as_str().unwrap_or_default().to_owned();
        ensure!(message.contains(words), "{model}: {message}");
        ensure!(!message.contains("hf_wrong"), "{model}: the token is shown: {message}");
    }
    // The hub has gone.
    let endpoint = hub.endpoint();
    drop(hub);
    let mut gone = commands.command(&["pull", "hf://people/gated", "--json"]);
    let failed = ran(gone.env("HF_ENDPOINT", &endpoint).spawn()?).await?;
    ensure!(failed.code == Some(4) && failed.stdout.contains("cannot be reached"), "{failed:?}");
    let failed = ran(commands.command(&["pull", "hf://a/b"]).env("HF_ENDPOINT", "nowhere").spawn()?).await?;
    ensure!(failed.code == Some(2) && failed.stderr.contains("HF_ENDPOINT"), "{failed:?}");
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_too_small_is_named_before_the_download() -> Result<()> {
    if !is_inside("a_disk_that_is_too_small_is_named_before_the_download", Own::Mounts)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let small = cluster.directory("small")?;
    command("mount", &["-t", "tmpfs", "-o", "size=16m", "none", small.to_str().context("no text")?])?;
    let hub = Hub::start([(SMALL, ggufs(&cluster)?)]).await?;
    let node = cluster.start("small", false, &[]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());
    let failed = pull(&commands, &hub, None, &format!("hf://{SMALL}:Q4_1")).await?;
    ensure!(failed.code == Some(6) && failed.stdout.contains("the disk is full"), "{failed:?}");
    assert_eq!(hub.served_bytes(), 0);
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_ollama_pull_from_the_hub() -> Result<()> {
    let cluster = Cluster::new()?;
    let hub = Hub::start([(SMALL, ggufs(&cluster)?)]).await?;
    let commands = CommandLine::new(&cluster, &cluster.directory("node")?);
    let arguments = ["daemon", "--attached", "--json", "--api", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"];
    let mut daemon = at_hub(&commands, &hub, None, &[&arguments[..], &["--mdns", "false"]].concat());
    let mut daemon = daemon.stdin(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(daemon.stdout.take().context("no standard output")?).lines();
    let ready: Ready = serde_json::from_str(&lines.next_line().await?.context("the node did not start")?)?;
    let (http, api) = (accel_node::tls::loopback(), format!("http://{}/api", ready.api));
    let name = format!("hf.co/{SMALL}:Q4_1");

    let told = http.post(format!("{api}/pull")).json(&json!({ "model": name })).send().await?.text().await?;
    let told: Vec<Value> = told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(told.len() > 2 && told.last() == Some(&json!({ "status": "success" })), "{told:?}");
    let bytes = std::fs::metadata(model_file()?)?.len();
    ensure!(told.iter().any(|line| line["total"] == json!(bytes)), "{told:?}");
    let body = json!({
        "model": name, "stream": false, "options": { "temperature": 0 },
        "messages": [{ "role": "user", "content": CAPITAL }],
    });
    let answer: Value = http.post(format!("{api}/chat")).json(&body).send().await?.json().await?;
    assert_eq!(answer["message"]["content"], PARIS, "{answer}");
    let body = json!({ "model": format!("hf.co/{SMALL}:Q5_0"), "stream": false });
    let refused = http.post(format!("{api}/pull")).json(&body).send().await?;
    ensure!(refused.status() == 404, "{refused:?}");
    let refused: Value = refused.json().await?;
    ensure!(refused["error"].as_str().is_some_and(|words| words.contains("it has IQ2_XXS, Q4_1, Q8_0")), "{refused}");
    drop(daemon.stdin.take());
    ensure!(daemon.wait().await?.success(), "the node did not stop in order");
    Ok(())
}
