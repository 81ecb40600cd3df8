//! Nodes on machines of their own: on one network, and behind routers that let nothing in.

use std::time::Instant;

use accel_node::process::{NodeProcess, Settings};
use accel_tests::cluster::{Cluster, eventually, model_file};
use accel_tests::command::CommandLine;
use accel_tests::machine::{Machine, switch};
use accel_tests::namespace::{Own, is_inside};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const CAPITAL: &str = "What is the capital of France?";
const PARIS: &str = "The capital of France is Paris.";

/// A node on a machine, and commands that are given there.
struct Node {
    process: NodeProcess,
    commands: CommandLine,
}

impl Node {
    async fn start(cluster: &Cluster, machine: &Machine, settings: Settings) -> Result<Self> {
        let settings = Settings { program: machine.program().clone(), ..settings };
        let commands = CommandLine::on(machine, cluster, &settings.data_dir);
        Ok(Self { process: NodeProcess::start(&settings).await?, commands })
    }

    async fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.commands.run(&[arguments, &["--json"]].concat()).await?.json()
    }

    /// What it says of a peer; nothing where it does not know of it.
    async fn view(&self, peer: &str) -> Result<Value> {
        let peers = self.json(&["peers"]).await?;
        let found = peers.as_array().context("no list")?.iter().find(|view| view["peer"] == peer);
        Ok(found.cloned().unwrap_or_default())
    }
}

fn listening(settings: Settings, address: &str) -> Settings {
    let arguments = ["--listen", address].map(str::to_owned).to_vec();
    Settings { arguments, ..settings }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_on_one_network_find_each_other() -> Result<()> {
    if !is_inside("two_machines_on_one_network_find_each_other", Own::Network)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    switch("lan")?;
    let mut nodes = Vec::new();
    for (name, address) in [("one", "192.168.7.1/24"), ("two", "192.168.7.2/24")] {
        let machine = Machine::new(&cluster, name)?;
        machine.plug("lan", address)?;
        machine.route(address.trim_end_matches("/24"))?;
        let settings = Settings { mdns: true, ..cluster.settings(name, false, &[]) };
        let settings = listening(settings, "/ip4/0.0.0.0/tcp/4601,/ip4/0.0.0.0/udp/4601/quic-v1");
        nodes.push((Node::start(&cluster, &machine, settings).await?, machine));
    }
    let begun = Instant::now();
    for (one, other) in [(0, 1), (1, 0)] {
        eventually("two machines find each other", async || {
            let view = nodes[one].0.view(nodes[other].0.process.peer()).await?;
            Ok(view["connected"] == true && !view["advert"].is_null())
        })
        .await?;
    }
    println!("found each other within {:.1} s of the second node's start", begun.elapsed().as_secs_f64());
    for (node, _machine) in nodes {
        node.process.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_behind_routers_reach_each_other_by_a_third() -> Result<()> {
    if !is_inside("two_nodes_behind_routers_reach_each_other_by_a_third", Own::Network)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    // Addresses that count as public: nodes ask only those whether they can be reached.
    switch("wan")?;
    let public = Machine::new(&cluster, "public")?;
    public.plug("wan", "5.5.5.1/24")?;
    let relay = listening(cluster.settings("relay", false, &[]), "/ip4/5.5.5.1/tcp/4601");
    let relay = Node::start(&cluster, &public, relay).await?;
    let mut homes = Vec::new();
    for (number, name, serve) in [(1, "worker", true), (2, "asker", false)] {
        let (router, home) =
            (Machine::new(&cluster, &format!("r{number}"))?, Machine::new(&cluster, &format!("h{number}"))?);
        switch(&format!("lan{number}"))?;
        router.plug("wan", &format!("5.5.5.{}/24", 10 + number))?;
        router.plug(&format!("lan{number}"), &format!("10.0.{number}.1/24"))?;
        router.hide("wan")?;
        home.plug(&format!("lan{number}"), &format!("10.0.{number}.2/24"))?;
        home.route(&format!("10.0.{number}.1"))?;
        let settings = cluster.settings(name, serve, &[&relay.process]);
        let settings = listening(settings, &format!("/ip4/10.0.{number}.2/tcp/4601"));
        homes.push((Node::start(&cluster, &home, settings).await?, home, router));
    }
    let [(worker, ..), (asker, ..)] = &homes[..] else { unreachable!() };
    for node in [worker, asker] {
        eventually("a node behind a router has a relay", async || {
            Ok(node.json(&["id"]).await?["reachability"] == "relayed")
        })
        .await?;
    }
    eventually("the relay can be reached", async || Ok(relay.json(&["id"]).await?["reachability"] == "public")).await?;

    // A job, its events and its answer are small.
    let path = model_file()?.display().to_string();
    let model = worker.commands.run(&["add", &path]).await?.data()?.trim().to_owned();
    let peer = worker.process.peer();
    eventually("the worker tells where it is reached", async || {
        let addresses = asker.view(peer).await?["advert"]["addresses"].to_string();
        Ok(addresses.contains("p2p-circuit"))
    })
    .await?;
    let answer = asker.json(&["run", &model, CAPITAL, "--max-tokens", "16"]).await?;
    assert_eq!(answer["text"], PARIS, "{answer}");
    assert_eq!(answer["answered_by"], peer, "{answer}");
    let view = asker.view(peer).await?;
    ensure!(view["connected"] == true && view["relayed"] == true, "{view}");
    let shown = asker.commands.run(&["peers"]).await?;
    ensure!(shown.data()?.contains("by a relay"), "{shown:?}");

    // A model is not: it does not come this way.
    let refused = asker.commands.run(&["pull", &model]).await?;
    ensure!(refused.code == Some(3) && refused.stdout.is_empty(), "{refused:?}");
    for (node, _home, _router) in homes {
        node.process.stop().await?;
    }
    relay.process.stop().await?;
    Ok(())
}
