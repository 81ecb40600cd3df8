//! Nodes find each other, and people see what they found.

use std::time::Duration;

use accel_node::peers::PeerView;
use accel_node::process::{NodeProcess, Settings};
use accel_protocol::{Generation, JobEvent};
use accel_tests::cluster::{Cluster, events, import, model_file, question, text};
use accel_tests::command::CommandLine;
use accel_tests::namespace::{Own, command, is_inside};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;

const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until `node` sees `peer` as `expected`.
async fn until_seen(node: &NodeProcess, peer: &str, expected: impl Fn(&PeerView) -> bool) -> Result<PeerView> {
    let look = async {
        let mut again = tokio::time::interval(Duration::from_millis(20));
        loop {
            let peers = node.api().peers().await?;
            if let Some(view) = peers.into_iter().find(|view| view.peer == peer && expected(view)) {
                return Ok(view);
            }
            again.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.with_context(|| format!("{peer} is not seen as it should be"))?
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_on_a_local_network_find_each_other_by_themselves() -> Result<()> {
    if !is_inside("nodes_on_a_local_network_find_each_other_by_themselves", Own::Network)? {
        return Ok(());
    }
    // A network with one machine on it. Nodes leave loopback addresses out when they look for others, so that it has
    // another.
    command("ip", &["link", "set", "lo", "up", "multicast", "on"])?;
    command("ip", &["address", "add", "10.1.2.3/24", "dev", "lo"])?;
    command("ip", &["route", "add", "224.0.0.0/4", "dev", "lo"])?;
    let cluster = Cluster::new()?;
    let mut nodes = Vec::new();
    for (name, serve) in [("worker", true), ("client", false)] {
        let arguments = ["--listen", "/ip4/10.1.2.3/tcp/0"].map(str::to_owned).to_vec();
        let settings = Settings { arguments, mdns: true, ..cluster.settings(name, serve, &[]) };
        nodes.push(NodeProcess::start(&settings).await?);
    }
    let [worker, client] = &nodes[..] else { unreachable!() };
    for (node, other) in [(worker, client), (client, worker)] {
        until_seen(node, other.peer(), |view| view.connected && view.advert.is_some()).await?;
    }
    let model = import(worker, model_file()?).await?;
    let answer =
        events(client.api(), &question(&model, "What is the capital of France?", Generation::default())).await?;
    assert_eq!(text(&answer), "The capital of France is Paris.");
    for node in nodes {
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_see_who_is_there_what_they_have_and_how_busy_they_are() -> Result<()> {
    let cluster = Cluster::new()?;
    let worker = cluster.start("worker", true, &[]).await?;
    let model = import(&worker, model_file()?).await?;
    let client = cluster.start("client", false, &[&worker]).await?;
    let commands = CommandLine::new(&cluster, client.data_dir());

    // While a job runs, and once it has ended.
    let long = Generation { max_tokens: 4_000, ignore_eos: true, ..Generation::default() };
    let mut stream = client.api().submit(&question(&model, "Count.", long)).await?;
    let busy =
        |view: &PeerView| view.advert.as_ref().is_some_and(|advert| advert.load.running + advert.load.queued == 1);
    until_seen(&worker, client.peer(), |view| view.connected).await?;
    let loaded =
        |view: &PeerView| view.advert.as_ref().is_some_and(|advert| advert.models.iter().any(|held| held.loaded));
    let seen = until_seen(&client, worker.peer(), |view| busy(view) && loaded(view) && view.round_trip_ms.is_some());
    let seen = seen.await?;
    let advert = seen.advert.context("no advert")?;
    ensure!(advert.serves_jobs && advert.models.len() == 1 && advert.models[0].model == model, "{advert:?}");
    ensure!(advert.devices.iter().any(|device| device.proof.is_ok()), "{advert:?}");
    ensure!(advert.devices.iter().all(|device| device.proof.is_ok()), "what was not proven was advertised: {advert:?}");

    let table = commands.run(&["peers"]).await?.data()?.to_owned();
    let [head, row] = table.lines().collect::<Vec<_>>()[..] else { anyhow::bail!("expected two lines: {table}") };
    for title in ["PEER", "CONNECTED", "ROUND TRIP", "RUNS JOBS", "LOAD", "DEVICES", "MODELS"] {
        ensure!(head.contains(title), "{title}: {head}");
    }
    let (device, load) = (&advert.devices[0].name, format!("1/{}", advert.load.capacity));
    for value in [worker.peer(), " yes ", " ms ", &load, device, "GFLOP/s", &model.to_string()] {
        ensure!(row.contains(value), "{value}: {row}");
    }
    let peers = commands.run(&["peers", "--json"]).await?.json()?;
    let view = &peers[0];
    assert_eq!(view["peer"], worker.peer());
    ensure!(view["round_trip_ms"].as_f64() > Some(0.0), "{view}");
    ensure!(view["advert"]["models"][0]["loaded"] == true, "{view}");

    let jobs = client.api().jobs().await?;
    client.api().cancel(jobs.first().context("no job")?.id).await?;
    let mut last = None;
    while let Some(record) = stream.next().await {
        last = Some(record?.event);
    }
    assert_eq!(last, Some(JobEvent::Cancelled));
    until_seen(&client, worker.peer(), |view| !busy(view)).await?;

    // Each backend is there, proven by a run or with what is missing.
    let devices = commands.run(&["hardware", "--json"]).await?.json()?;
    let devices = devices.as_array().context("no list")?;
    let table = commands.run(&["hardware"]).await?.data()?.to_owned();
    for backend in ["cpu", "cuda", "rocm", "mps", "openvino", "qnn"] {
        let mut of_backend = devices.iter().filter(|device| device["backend"] == backend).peekable();
        ensure!(of_backend.peek().is_some(), "{backend} is not listed: {devices:?}");
        for device in of_backend {
            let row = table.lines().find(|line| line.starts_with(backend)).with_context(|| table.clone())?;
            match device["proof"]["Err"].as_str() {
                Some(reason) => ensure!(reason.len() > 10 && row.contains(reason), "{backend}: {row}"),
                None => {
                    ensure!(device["proof"]["Ok"]["gflops"].as_f64() > Some(0.0), "{device}");
                    ensure!(row.contains("proven, largest error"), "{backend}: {row}");
                }
            }
        }
    }
    ensure!(devices.iter().any(|device| device["backend"] == "cpu" && device["proof"]["Ok"].is_object()));
    client.stop().await?;
    worker.stop().await?;
    Ok(())
}
