//! A node takes what no peer sends from the gateways that its configuration names, and from no others.

use accel_node::process::{NodeProcess, Settings};
use accel_protocol::{Generation, ModelRef};
use accel_tests::cluster::{Cluster, events, import, model_file, question, text};
use accel_tests::gateway::{Gateway, Mood};
use anyhow::{Context, Result, ensure};

/// A model that a node had, which has gone, and a gateway to its blocks.
async fn published(cluster: &Cluster, mood: Mood) -> Result<(ModelRef, Gateway)> {
    let publisher = cluster.start("publisher", false, &[]).await?;
    let model = import(&publisher, model_file()?).await?;
    publisher.stop().await?;
    Ok((model, Gateway::start(&cluster.path("publisher"), mood).await?))
}

async fn reader(cluster: &Cluster, gateways: &[String]) -> Result<NodeProcess> {
    let file = cluster.path("reader.toml");
    std::fs::write(&file, format!("[store]\nfetch_stall_seconds = 4\ngateways = {gateways:?}\n"))?;
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    Ok(NodeProcess::start(&Settings { arguments, ..cluster.settings("reader", true, &[]) }).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_only_a_gateway_has_is_fetched_and_answers() -> Result<()> {
    let cluster = Cluster::new()?;
    let (model, gateway) = published(&cluster, Mood::Good).await?;
    let node = reader(&cluster, &[gateway.url()]).await?;
    let pulled = node.api().pull(&model, |_| {}).await?;
    assert_eq!(pulled.peers, [(Some(gateway.url()), pulled.fetched_bytes)]);
    let mut asked = gateway.asked();
    let times = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), times, "blocks were asked for twice");
    let answer = events(node.api(), &question(&model, "What is the capital of France?", Generation::default())).await?;
    assert_eq!(text(&answer), "The capital of France is Paris.");
    Ok(node.stop().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_has_no_time_is_asked_again_later() -> Result<()> {
    let cluster = Cluster::new()?;
    let (model, gateway) = published(&cluster, Mood::Busy(5)).await?;
    let node = reader(&cluster, &[gateway.url()]).await?;
    let pulled = node.api().pull(&model, |_| {}).await?;
    assert_eq!(pulled.peers, [(Some(gateway.url()), pulled.fetched_bytes)]);
    Ok(node.stop().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_of_a_gateway_while_peers_send() -> Result<()> {
    let cluster = Cluster::new()?;
    let (model, gateway) = published(&cluster, Mood::Good).await?;
    let publisher = cluster.start("publisher", false, &[]).await?;
    let node = reader(&cluster, &[gateway.url()]).await?;
    node.api().connect(publisher.addresses().first().context("it listens nowhere")?).await?;
    let pulled = node.api().pull(&model, |_| {}).await?;
    assert_eq!(pulled.peers, [(Some(publisher.peer().to_string()), pulled.fetched_bytes)]);
    assert_eq!(gateway.asked(), Vec::<String>::new());
    publisher.stop().await?;
    Ok(node.stop().await?)
}

/// What a pull from a gateway in this mood is refused with.
async fn refused(mood: Mood) -> Result<String> {
    let cluster = Cluster::new()?;
    let (model, gateway) = published(&cluster, mood).await?;
    let node = reader(&cluster, &[gateway.url()]).await?;
    let refused = node.api().pull(&model, |_| {}).await.err().context("it was fetched")?.to_string();
    ensure!(refused.contains(&gateway.url()), "{refused}");
    ensure!(node.api().node().await?.used_bytes == 0, "blocks of it were kept");
    node.stop().await?;
    Ok(refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_forges_blocks_is_left_alone() -> Result<()> {
    let refused = refused(Mood::Forging).await?;
    ensure!(refused.contains("other bytes than the CID"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_sends_without_end_fills_nothing() -> Result<()> {
    let refused = refused(Mood::Endless).await?;
    ensure!(refused.contains("other bytes than the CID"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_not_named_is_asked_nothing() -> Result<()> {
    let cluster = Cluster::new()?;
    let (model, gateway) = published(&cluster, Mood::Good).await?;
    let node = reader(&cluster, &[]).await?;
    let refused = node.api().pull(&model, |_| {}).await.err().context("it was fetched")?.to_string();
    ensure!(refused.contains("asked: nobody"), "{refused}");
    assert_eq!(gateway.asked(), Vec::<String>::new());
    Ok(node.stop().await?)
}
