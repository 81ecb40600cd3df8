//! What models take of a node's memory, and when they give it back.

use std::time::Duration;

use accel_node::api::{JobBody, LoadBody};
use accel_node::process::{NodeProcess, Settings};
use accel_protocol::{ErrorCode, Generation, Input, JobEvent, ModelRef, Task, TaskResult};
use accel_tests::cluster::{Cluster, events, eventually, import, installed, model_file, question, text};
use anyhow::{Context, Result, ensure};

/// Room for either of the two models, and not for both.
const BUDGET: u64 = 150_000_000;
/// What a process may take beside: what it works with, and what the allocator keeps.
const BESIDE: u64 = 60_000_000;

async fn start(cluster: &Cluster, jobs: &str) -> Result<NodeProcess> {
    start_named(cluster, "node", jobs, &[]).await
}

async fn start_named(cluster: &Cluster, name: &str, jobs: &str, join: &[&NodeProcess]) -> Result<NodeProcess> {
    let file = cluster.path(&format!("{name}.toml"));
    std::fs::write(&file, format!("[jobs]\n{jobs}\n"))?;
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    Ok(NodeProcess::start(&Settings { arguments, ..cluster.settings(name, true, join) }).await?)
}

/// What the process has in memory.
fn resident(node: &NodeProcess) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process_id().context("it has ended")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_room_for_one_of_two_models_serves_both_in_turn() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = start(&cluster, &format!("memory_bytes = {BUDGET}")).await?;
    let writes = import(&node, model_file()?).await?;
    let embeds = import(&node, installed("ACCEL_TEST_EMBEDDER")?).await?;
    let before = resident(&node)?;
    let embed = JobBody {
        task: Task::Embedding,
        input: Input::Text("The capital of France".to_owned()),
        ..question(&embeds, "", Generation::default())
    };
    let ask = question(&writes, "What is the capital of France?", Generation::default());
    let mut vectors = Vec::new();
    for _ in 0..8 {
        assert_eq!(text(&events(node.api(), &ask).await?), "The capital of France is Paris.");
        only(&node, &writes).await?;
        match events(node.api(), &embed).await?.pop() {
            Some(JobEvent::Done { results, .. }) => vectors.push(results),
            other => anyhow::bail!("no vector: {other:?}"),
        }
        only(&node, &embeds).await?;
        let grown = resident(&node)?.saturating_sub(before);
        ensure!(grown < BUDGET + BESIDE, "the process has grown by {grown} bytes");
    }
    let is_vector = |of: &Vec<TaskResult>| matches!(of.as_slice(), [TaskResult::Features { .. }]);
    ensure!(vectors.iter().all(|one| is_vector(one) && *one == vectors[0]), "{vectors:?}");
    node.api().unload(&embeds).await?;
    ensure!(node.api().loaded().await?.is_empty());
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_free_as_soon_as_the_end_of_its_last_job_is_seen() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = start(&cluster, "").await?;
    let model = import(&node, model_file()?).await?;
    let one_token = Generation { max_tokens: 1, ..Generation::default() };
    for _ in 0..100 {
        events(node.api(), &question(&model, "Hello", one_token.clone())).await?;
        let loaded = node.api().loaded().await?;
        ensure!(loaded.iter().all(|loaded| !loaded.busy), "{loaded:?}");
    }
    node.api().unload(&model).await?;
    node.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_goes_to_a_peer_that_has_room_for_it() -> Result<()> {
    let cluster = Cluster::new()?;
    let asks = cluster.start("asks", false, &[]).await?;
    let model = import(&asks, model_file()?).await?;
    let small = "memory_bytes = 50_000_000";
    let first = start_named(&cluster, "first", small, &[&asks]).await?;
    let second = start_named(&cluster, "second", small, &[&asks]).await?;
    let large = start_named(&cluster, "large", "", &[&asks]).await?;
    let known = async || {
        let peers = asks.api().peers().await?;
        let serve = peers.iter().filter_map(|peer| peer.advert.as_ref()).filter(|advert| advert.serves_jobs);
        Ok(serve.count() == 3)
    };
    eventually("all three are known", known).await?;
    let answer = events(asks.api(), &question(&model, "What is the capital of France?", Generation::default())).await?;
    assert_eq!(text(&answer), "The capital of France is Paris.");
    for node in [&first, &second] {
        assert_eq!(node.api().node().await?.used_bytes, 0, "a node without room for it was asked to run it");
    }
    ensure!(large.api().loaded().await?.iter().any(|loaded| loaded.model == model));
    for node in [first, second, large, asks] {
        node.stop().await?;
    }
    Ok(())
}

/// That one model is in memory, and takes less than all there is.
async fn only(node: &NodeProcess, model: &ModelRef) -> Result<()> {
    let loaded = node.api().loaded().await?;
    ensure!(loaded.len() == 1 && loaded[0].model == *model && loaded[0].bytes <= BUDGET, "{loaded:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_leaves_memory_when_its_time_without_a_job_is_over() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = start(&cluster, "keep_alive_seconds = 1").await?;
    let model = import(&node, model_file()?).await?;
    let one_token = Generation { max_tokens: 1, ..Generation::default() };
    events(node.api(), &question(&model, "Hello", one_token)).await?;
    let gone = async || Ok(node.api().loaded().await?.is_empty());
    eventually("the model has left memory", gone).await?;

    // One that is to stay stays, until somebody says otherwise.
    let body = LoadBody { keep_alive_seconds: Some(0) };
    let loaded = node.api().load(&model, body, |_| {}).await?.context("it was not loaded")?;
    ensure!(loaded.stays_ms.is_none() && !loaded.busy && loaded.bytes > 80_000_000, "{loaded:?}");
    let again = node.api().load(&model, LoadBody { keep_alive_seconds: Some(3600) }, |_| {}).await?;
    let stays = again.context("it was not loaded")?.stays_ms.context("it stays for ever")?;
    ensure!((3_500_000..=3_600_000).contains(&stays), "it stays {stays} ms");

    // While a job is at work on it, nobody takes it away.
    let long = Generation { max_tokens: 2000, ignore_eos: true, ..Generation::default() };
    let mut answer = node.api().submit(&question(&model, "Count to a thousand.", long)).await?;
    let busy = async || Ok(node.api().loaded().await?.iter().any(|loaded| loaded.busy));
    eventually("a job is at work", busy).await?;
    let refused = node.api().unload(&model).await;
    let code = match refused {
        Err(accel_node::api::ApiError::Refused(error)) => Some(error.code),
        _ => None,
    };
    assert_eq!(code, Some(ErrorCode::OutOfResources));
    let first = futures::StreamExt::next(&mut answer).await.context("no event")??;
    assert_eq!(first.number, 0);
    for job in node.api().jobs().await? {
        node.api().cancel(job.id).await?;
    }
    tokio::time::timeout(Duration::from_secs(60), async {
        while node.api().unload(&model).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await?;
    ensure!(node.api().loaded().await?.is_empty());
    node.stop().await?;
    Ok(())
}
