//! Nodes on machines of their own: on one network, and behind routers that let nothing in.

use std::process::Stdio;
use std::time::{Duration, Instant};

use accel_node::process::{NodeProcess, Settings};
use accel_tests::cluster::{Cluster, eventually, model_file};
use accel_tests::command::CommandLine;
use accel_tests::machine::{Machine, Ports, switch};
use accel_tests::namespace::{Own, is_inside};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

const CAPITAL: &str = "What is the capital of France?";
/// A command that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(60);
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
    eprintln!("found each other within {:.1} s of the second node's start", begun.elapsed().as_secs_f64());
    for (node, _machine) in nodes {
        node.process.stop().await?;
    }
    Ok(())
}

/// A page of the documentation.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/join.md");
/// What its commands print.
const TRANSCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/join.txt");

/// The commands of a page, each with the machine that it is for.
fn commands_of(page: &str) -> Vec<(&str, &str)> {
    let (mut commands, mut machine) = (Vec::new(), None);
    for line in page.lines() {
        match (machine, line.strip_prefix("```")) {
            (None, Some(fence)) => machine = fence.strip_prefix("sh ").or(Some("")),
            (Some(_), Some(_)) => machine = None,
            (Some(name), None) if !name.is_empty() => commands.push((name, line)),
            _ => {}
        }
    }
    commands
}

/// What is another on each machine and at each time, as one reads it.
fn without_ids(text: &str) -> String {
    let words = text.split_inclusive(char::is_whitespace).map(|word| {
        let plain = word.trim_end();
        let mut short = plain.to_owned();
        if plain.starts_with("12D3Koo") {
            // As wide as it was, so that tables stay tables.
            short = format!("{:<width$}", "12D3KooW…", width = plain.len());
        }
        if let Some(at) = short.find("/p2p/12D3Koo") {
            short.truncate(at + 12);
            short.push('…');
        }
        short + &word[plain.len()..]
    });
    words.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_documentation_sets_up_a_private_swarm() -> Result<()> {
    if !is_inside("a_reader_of_the_documentation_sets_up_a_private_swarm", Own::Network)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    switch("lan")?;
    let mut people = Vec::new();
    for (name, address) in [("first", "192.168.7.1/24"), ("second", "192.168.7.2/24")] {
        let machine = Machine::new(&cluster, name)?;
        machine.plug("lan", address)?;
        machine.route(address.trim_end_matches("/24"))?;
        people.push(Person { machine, home: cluster.directory(name)?, nodes: Vec::new() });
    }
    std::os::unix::fs::symlink(model_file()?, cluster.path("first/model.gguf"))?;
    let page = std::fs::read_to_string(PAGE)?;
    let commands = commands_of(&page);
    ensure!((4..=10).contains(&commands.len()), "{commands:?}");
    let mut transcript = String::new();
    for (on, line) in &commands {
        let person = people.iter_mut().find(|person| person.home.ends_with(on)).context("no such machine")?;
        let said = person.types(line).await.with_context(|| format!("{on}$ {line}"))?;
        transcript.push_str(&format!("{on}$ {line}\n{}", without_ids(&said)));
        // What one is given the other has: by mail, by a stick, by hand.
        for file in ["invite", "cid"] {
            let (from, to) = (cluster.path(&format!("first/{file}")), cluster.path(&format!("second/{file}")));
            if from.exists() {
                std::fs::copy(from, to)?;
            }
        }
    }
    ensure!(transcript.contains("lab, private") && transcript.contains("1 connected"), "{transcript}");
    ensure!(transcript.trim_end().ends_with(PARIS), "{transcript}");
    for person in people {
        person.leaves().await?;
    }
    if std::env::var_os("ACCEL_UPDATE").is_some() {
        std::fs::write(TRANSCRIPT, &transcript)?;
    }
    let written = std::fs::read_to_string(TRANSCRIPT).unwrap_or_default();
    let typed = |text: &str| text.lines().filter(|line| line.contains("$ ")).map(str::to_owned).collect::<Vec<_>>();
    let update = "ACCEL_UPDATE=1 tests/run -E 'binary(networks)'";
    ensure!(typed(&written) == typed(&transcript), "docs/join.txt has other commands than docs/join.md: {update}");
    Ok(())
}

/// Somebody at a machine of their own.
struct Person {
    machine: Machine,
    home: std::path::PathBuf,
    /// What runs on behind.
    nodes: Vec<tokio::process::Child>,
}

impl Person {
    fn command(&self, line: &str) -> Result<tokio::process::Command> {
        let mut command = self.machine.shell(line, &self.home)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(command)
    }

    /// What a line prints. One that ends in `&` runs on.
    async fn types(&mut self, line: &str) -> Result<String> {
        let Some(line) = line.strip_suffix(" &") else { return self.asks(line).await };
        let mut node = self.command(&format!("exec {line}"))?.stderr(Stdio::null()).spawn()?;
        // It prints where it listens once it is ready.
        let mut said = BufReader::new(node.stdout.take().context("no output")?).lines();
        let first = said.next_line().await?.context("it ended")?;
        self.nodes.push(node);
        // People take longer to type the next line than a node to join.
        if line.contains("--join") {
            let joined = async || Ok(self.asks("accel-cli peers --json").await?.contains("\"advert\":{"));
            eventually("the node has joined", joined).await?;
        }
        Ok(format!("{first}\n"))
    }

    async fn asks(&self, line: &str) -> Result<String> {
        let mut command = self.command(line)?;
        let ran = tokio::time::timeout(PATIENCE, command.output()).await.context("it hangs")??;
        ensure!(ran.status.success(), "{ran:?}");
        Ok(String::from_utf8(ran.stdout)?)
    }

    async fn leaves(self) -> Result<()> {
        for mut node in self.nodes {
            let process = node.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
            rustix::process::kill_process(process.context("it has ended")?, rustix::process::Signal::TERM)?;
            node.wait().await?;
        }
        Ok(())
    }
}

/// A node behind a router, on its machine.
struct Home {
    node: Node,
    _machine: Machine,
    _router: Machine,
}

/// A machine that everybody reaches. Its address counts as public: nodes ask only such whether they can be reached.
fn public(cluster: &Cluster) -> Result<Machine> {
    switch("wan")?;
    let public = Machine::new(cluster, "public")?;
    public.plug("wan", "5.5.5.1/24")?;
    Ok(public)
}

/// A node behind a router of its own, which joins by another.
async fn home(cluster: &Cluster, (number, name): (u8, &str), ports: Ports, join: &Node) -> Result<Home> {
    let (router, machine) =
        (Machine::new(cluster, &format!("r{number}"))?, Machine::new(cluster, &format!("h{number}"))?);
    switch(&format!("lan{number}"))?;
    router.plug("wan", &format!("5.5.5.{}/24", 10 + number))?;
    router.plug(&format!("lan{number}"), &format!("10.0.{number}.1/24"))?;
    router.hide("wan", ports)?;
    machine.plug(&format!("lan{number}"), &format!("10.0.{number}.2/24"))?;
    machine.route(&format!("10.0.{number}.1"))?;
    let settings = cluster.settings(name, name == "worker", &[&join.process]);
    let settings = listening(settings, &format!("/ip4/10.0.{number}.2/tcp/4601"));
    Ok(Home { node: Node::start(cluster, &machine, settings).await?, _machine: machine, _router: router })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_behind_routers_reach_each_other_by_a_third() -> Result<()> {
    if !is_inside("two_nodes_behind_routers_reach_each_other_by_a_third", Own::Network)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let public = public(&cluster)?;
    let relay = listening(cluster.settings("relay", false, &[]), "/ip4/5.5.5.1/tcp/4601");
    let relay = Node::start(&cluster, &public, relay).await?;
    let worker_home = home(&cluster, (1, "worker"), Ports::Random, &relay).await?;
    let asker_home = home(&cluster, (2, "asker"), Ports::Random, &relay).await?;
    let (worker, asker) = (&worker_home.node, &asker_home.node);
    for node in [worker, asker] {
        eventually("a node behind a router has a relay", async || {
            Ok(node.json(&["id"]).await?["reachability"] == "relayed")
        })
        .await?;
    }
    eventually("the relay can be reached", async || Ok(relay.json(&["id"]).await?["reachability"] == "public")).await?;

    let found = worker.commands.run(&["doctor"]).await?;
    ensure!(found.stdout.contains("by a relay: it is behind NAT"), "{found:?}");

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
    ensure!(refused.code == Some(3) && refused.stderr.contains("by a relay only"), "{refused:?}");
    let here = asker.json(&["id"]).await?["used_bytes"].as_u64().context("no number")?;
    ensure!(here < 1 << 20, "{here} bytes of blocks came by a relay");
    for home in [worker_home, asker_home] {
        home.node.process.stop().await?;
    }
    relay.process.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_behind_routers_that_keep_ports_open_a_way_to_each_other() -> Result<()> {
    if !is_inside("two_nodes_behind_routers_that_keep_ports_open_a_way_to_each_other", Own::Network)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let public = public(&cluster)?;
    let relay = listening(cluster.settings("relay", false, &[]), "/ip4/5.5.5.1/tcp/4601");
    let relay = Node::start(&cluster, &public, relay).await?;
    let worker_home = home(&cluster, (1, "worker"), Ports::Kept, &relay).await?;
    let asker_home = home(&cluster, (2, "asker"), Ports::Kept, &relay).await?;
    let (worker, asker) = (&worker_home.node, &asker_home.node);
    let peer = worker.process.peer();
    let path = model_file()?.display().to_string();
    let model = worker.commands.run(&["add", &path]).await?.data()?.trim().to_owned();
    eventually("the worker tells where it is reached, and what it has", async || {
        let advert = asker.view(peer).await?["advert"].to_string();
        Ok(advert.contains("p2p-circuit") && advert.contains(&model))
    })
    .await?;
    let pulled = asker.commands.run(&["pull", &model, "--json"]).await?;
    ensure!(pulled.code == Some(0), "{pulled:?}");
    assert_eq!(pulled.json()?["peers"][0][0], peer);
    assert_eq!(asker.view(peer).await?["relayed"], false);
    for home in [worker_home, asker_home] {
        home.node.process.stop().await?;
    }
    relay.process.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nobody_reaches_is_told_so_by_doctor() -> Result<()> {
    if !is_inside("a_node_that_nobody_reaches_is_told_so_by_doctor", Own::Network)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let public = public(&cluster)?;
    // It tells others whether they can be reached, and passes nothing on.
    let config = cluster.path("public.toml");
    std::fs::write(&config, "[swarm]\nrelay = false\n")?;
    let mut settings = listening(cluster.settings("public", false, &[]), "/ip4/5.5.5.1/tcp/4601");
    settings.arguments.extend(["--config".to_owned(), config.display().to_string()]);
    let third = Node::start(&cluster, &public, settings).await?;
    let home = home(&cluster, (1, "alone"), Ports::Random, &third).await?;
    eventually("the node knows that it cannot be reached", async || {
        Ok(home.node.json(&["id"]).await?["reachability"] == "private")
    })
    .await?;
    let found = home.node.commands.run(&["doctor"]).await?;
    let line = found.stdout.lines().find(|line| line.starts_with("reachable")).context("nothing about it")?;
    ensure!(
        found.code == Some(1) && line.contains("PROBLEM") && found.stdout.contains("forward the port"),
        "{found:?}"
    );
    home.node.process.stop().await?;
    third.process.stop().await?;
    Ok(())
}
