//! Private swarms: one invite is all that another machine needs, and nobody gets in without one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use accel_node::membership::Invite;
use accel_node::process::{NodeProcess, Settings};
use accel_tests::cluster::{Cluster, eventually, import, model_file};
use accel_tests::command::{CommandLine, Ran};
use accel_tests::namespace::{Own, command, is_inside};
use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStderr;

const NOBODY_HAS: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
const CAPITAL: &str = "What is the capital of France?";
const PARIS: &str = "The capital of France is Paris.";
/// The machine's address in the networks of these tests.
const HERE: &str = "10.1.2.3";
/// A dial that meets no understanding ends after 10 s, and then it is found out why.
const BOUND: Duration = Duration::from_secs(25);

/// A network with one machine on it, which has an address beside those of loopback.
fn network() -> Result<()> {
    command("ip", &["link", "set", "lo", "up", "multicast", "on"])?;
    command("ip", &["address", "add", &format!("{HERE}/24"), "dev", "lo"])?;
    command("ip", &["route", "add", "224.0.0.0/4", "dev", "lo"])
}

/// A node that listens on all addresses of the machine, by QUIC too where it may.
async fn start(cluster: &Cluster, name: &str, arguments: &[&str]) -> Result<NodeProcess> {
    Ok(NodeProcess::start(&settings(cluster, name, arguments)).await?)
}

/// The same, and it looks for others on the local network.
async fn start_looking(cluster: &Cluster, name: &str, arguments: &[&str]) -> Result<NodeProcess> {
    Ok(NodeProcess::start(&Settings { mdns: true, ..settings(cluster, name, arguments) }).await?)
}

fn settings(cluster: &Cluster, name: &str, arguments: &[&str]) -> Settings {
    let listen = ["--listen", "/ip4/0.0.0.0/tcp/0,/ip4/0.0.0.0/udp/0/quic-v1"];
    let arguments = listen.iter().chain(arguments).map(|argument| (*argument).to_owned()).collect();
    Settings { arguments, ..cluster.settings(name, false, &[]) }
}

/// Makes a private swarm on a running node, and gives the invite.
async fn create(commands: &CommandLine, name: &str) -> Result<String> {
    let token = commands.run(&["swarm", "create", name]).await?.data()?.to_owned();
    ensure!(token.lines().count() == 1 && token.starts_with("accel1"), "{token}");
    Ok(token.trim().to_owned())
}

/// Waits until two nodes are connected and know what the other can do.
async fn acquainted(one: &NodeProcess, other: &NodeProcess) -> Result<()> {
    for (node, peer) in [(one, other.peer()), (other, one.peer())] {
        eventually("two members know each other", async || {
            let peers = node.api().peers().await?;
            Ok(peers.iter().any(|view| view.peer == peer && view.connected && view.advert.is_some()))
        })
        .await?;
    }
    Ok(())
}

async fn is_alone(node: &NodeProcess) -> Result<bool> {
    Ok(node.api().peers().await?.iter().all(|view| !view.connected))
}

/// The UDP sockets of this network, as the kernel lists them.
fn udp_sockets() -> Result<Vec<String>> {
    let mut sockets = Vec::new();
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = std::fs::read_to_string(table).with_context(|| table.to_owned())?;
        sockets.extend(text.lines().skip(1).map(str::to_owned));
    }
    Ok(sockets)
}

/// Whether a log says this, sooner or later.
async fn says(mut log: Lines<BufReader<ChildStderr>>, words: &str) -> Result<bool> {
    while let Some(line) = log.next_line().await? {
        if line.contains(words) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refused(ran: &Ran, code: i32, words: &[&str]) -> Result<()> {
    ensure!(ran.code == Some(code) && ran.stdout.is_empty(), "{ran:?}");
    for word in words {
        ensure!(ran.stderr.contains(word), "{word}: {ran:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_invite_is_all_that_another_machine_needs() -> Result<()> {
    if !is_inside("one_invite_is_all_that_another_machine_needs", Own::Network)? {
        return Ok(());
    }
    network()?;
    let cluster = Cluster::new()?;
    let first = start(&cluster, "first", &[]).await?;
    ensure!(!udp_sockets()?.is_empty(), "a node of the public swarm does not listen by QUIC");
    let on_first = CommandLine::new(&cluster, first.data_dir());

    // The daemon goes along, and a program that uses it goes on using it.
    let token = create(&on_first, "lab").await?;
    let node = first.api().node().await?;
    ensure!(node.swarm.as_deref() == Some("lab") && node.starts == 2 && node.peer == first.peer(), "{node:?}");
    ensure!(node.addresses.iter().all(|address| address.contains("/tcp/")), "{node:?}");
    let invite = Invite::from_word(&token)?;
    let told: Vec<String> = invite.bootstrap.iter().map(ToString::to_string).collect();
    ensure!(told.len() == 1 && told[0].contains(HERE) && told[0].ends_with(first.peer()), "{told:?}");

    let second = start(&cluster, "second", &["--join", &token]).await?;
    acquainted(&first, &second).await?;
    let udp = udp_sockets()?;
    ensure!(udp.is_empty(), "a private swarm has UDP sockets:\n{}", udp.join("\n"));

    let note: PathBuf = cluster.path("note.txt");
    std::fs::write(&note, "for members")?;
    let cid = import(&first, note).await?.to_string();
    let on_second = CommandLine::new(&cluster, second.data_dir());
    on_second.run(&["pull", &cid]).await?.data()?;

    // What people and programs are told, and that the key is no part of it.
    let shown = on_second.run(&["swarm", "show"]).await?;
    ensure!(shown.data()?.contains("lab, private") && shown.stdout.contains("1 connected"), "{shown:?}");
    let key = bs58::encode(invite.key.0).into_string();
    for arguments in [&["swarm", "show"][..], &["id"], &["peers"]] {
        for arguments in [arguments.to_vec(), [arguments, &["--json"]].concat()] {
            let ran = on_second.run(&arguments).await?;
            let data = ran.data()?;
            ensure!(!data.contains(&key) && !data.contains("accel1"), "{arguments:?}: {data}");
        }
    }
    let id = on_second.run(&["id", "--json"]).await?.json()?;
    ensure!(id["swarm"] == "lab", "{id}");
    let shown = on_second.run(&["swarm", "show", "--json"]).await?.json()?;
    ensure!(shown["transport"] == "private" && shown["connected"] == 1 && shown["daemon"] == true, "{shown}");

    // It is a member from now on, without being told again; and it may come with the invite every time.
    second.stop().await?;
    let second = start(&cluster, "second", &[]).await?;
    acquainted(&first, &second).await?;
    second.stop().await?;
    let second = start(&cluster, "second", &["--join", &token]).await?;
    acquainted(&first, &second).await?;

    // A third is asked in by the second, whose invite names the first too.
    let token = on_second.run(&["swarm", "invite", "--expires", "1h"]).await?.data()?.to_owned();
    let invite = Invite::from_word(&token)?;
    ensure!(invite.bootstrap.iter().any(|member| member.peer.to_string() == first.peer()), "{invite:?}");
    let third = start(&cluster, "third", &[]).await?;
    let on_third = CommandLine::new(&cluster, third.data_dir());
    let joined = on_third.run_with_input(&["swarm", "join", "-"], &token).await?;
    ensure!(joined.data()?.contains("joined the private swarm lab; connected to 12D3"), "{joined:?}");
    acquainted(&third, &first).await?;
    acquainted(&third, &second).await?;
    for node in [third, second, first] {
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_key_and_is_told_what_is_missing() -> Result<()> {
    if !is_inside("nobody_gets_in_without_the_key_and_is_told_what_is_missing", Own::Network)? {
        return Ok(());
    }
    network()?;
    let cluster = Cluster::new()?;
    let (member, other, public) = (
        start(&cluster, "member", &[]).await?,
        start(&cluster, "other", &[]).await?,
        start(&cluster, "public", &[]).await?,
    );
    let [on_member, on_other, on_public] =
        [&member, &other, &public].map(|node| CommandLine::new(&cluster, node.data_dir()));
    create(&on_member, "lab").await?;
    create(&on_other, "office").await?;
    let address =
        |node: accel_node::api::NodeView| node.addresses.into_iter().find(|address| address.contains("/tcp/"));
    let private = address(member.api().node().await?).context("no address")?;
    let open = address(public.api().node().await?).context("no address")?;

    // Who is to join by a member and cannot reads the same in its log.
    let outsider = CommandLine::new(&cluster, &cluster.path("outsider"));
    let join =
        ["daemon", "--listen", "/ip4/127.0.0.1/tcp/0", "--mdns", "false", "--serve", "false", "--api", "127.0.0.1:0"];
    let mut outsider = outsider.command(&[&join[..], &["--bootstrap", &private]].concat()).spawn()?;
    let log = BufReader::new(outsider.stderr.take().context("no log")?).lines();

    let begun = Instant::now();
    let dials = [
        (&on_public, &private, ["private swarm", "this node is in none", "swarm join TOKEN"]),
        (&on_other, &private, ["private swarm", "another key", "office"]),
        (&on_other, &open, ["probably not in a private swarm", "office", "only members"]),
    ];
    let tried = dials.iter().map(|(commands, address, words)| async move {
        refused(&commands.run(&["connect", address]).await?, 4, words)
    });
    futures::future::try_join_all(tried).await?;
    // Nobody listens there: that has nothing to do with keys.
    let nobody = format!("/ip4/{HERE}/tcp/9/p2p/{}", public.peer());
    let refused_there = on_other.run(&["connect", &nobody]).await?;
    refused(&refused_there, 4, &["cannot be reached"])?;
    ensure!(!refused_there.stderr.contains("probably"), "{refused_there:?}");
    ensure!(
        tokio::time::timeout(BOUND, says(log, "it is probably in a private swarm")).await??,
        "the log says nothing of it"
    );
    ensure!(begun.elapsed() < BOUND, "it took {:?}", begun.elapsed());

    // A direct job fails in the same words.
    let nobody = CommandLine::new(&cluster, &cluster.path("untouched"));
    let direct = nobody.run(&["run", "--peer", &private, NOBODY_HAS, CAPITAL]).await?;
    refused(&direct, 4, &["private swarm", "this node is in none"])?;
    for node in [&member, &other, &public] {
        ensure!(is_alone(node).await?, "somebody got in");
    }
    for node in [member, other, public] {
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_find_each_other_on_a_local_network_and_strangers_stay_out() -> Result<()> {
    if !is_inside("members_find_each_other_on_a_local_network_and_strangers_stay_out", Own::Network)? {
        return Ok(());
    }
    network()?;
    let cluster = Cluster::new()?;
    let first = start_looking(&cluster, "first", &[]).await?;
    let token = create(&CommandLine::new(&cluster, first.data_dir()), "lab").await?;
    // Whom the invite names is not there any more.
    let mut invite = Invite::from_word(&token)?;
    invite.bootstrap.iter_mut().for_each(|member| member.address.set_port(9));
    let stranger = start_looking(&cluster, "stranger", &[]).await?;
    let second = start_looking(&cluster, "second", &["--join", &invite.to_word()?]).await?;
    acquainted(&first, &second).await?;
    ensure!(is_alone(&stranger).await?, "a stranger got in");
    for node in [second, stranger, first] {
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_goes_along_when_the_swarm_is_left_or_gets_another_key() -> Result<()> {
    let cluster = Cluster::new()?;
    let first = cluster.start("first", false, &[]).await?;
    let second = cluster.start("second", false, &[]).await?;
    let (on_first, on_second) =
        (CommandLine::new(&cluster, first.data_dir()), CommandLine::new(&cluster, second.data_dir()));
    let old = create(&on_first, "lab").await?;
    on_second.run(&["swarm", "join", &old]).await?.data()?;
    acquainted(&first, &second).await?;

    let new = on_first.run(&["swarm", "rotate-key"]).await?.data()?.trim().to_owned();
    ensure!(new != old && Invite::from_word(&new)?.key != Invite::from_word(&old)?.key);
    eventually("who has the old key is out", async || Ok(is_alone(&first).await? && is_alone(&second).await?)).await?;
    let stale = on_second.run(&["swarm", "join", &new]).await?;
    refused(&stale, 2, &["private swarm lab by another key", "accel-cli swarm leave first"])?;
    let left = on_second.run(&["swarm", "leave"]).await?;
    assert_eq!(left.data()?, "left the private swarm lab\n");
    ensure!(second.api().node().await?.swarm.is_none());

    // By the old invite it goes into a swarm where nobody is any more, and hears why.
    let joined = on_second.run(&["swarm", "join", &old, "--json"]).await?.json()?;
    ensure!(joined["daemon"] == true && joined["reached"].is_null(), "{joined}");
    // The first listens elsewhere since it was started again, where that has been left to the system.
    ensure!(joined["unreached"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{joined}");
    on_second.run(&["swarm", "leave"]).await?.data()?;
    let joined = on_second.run(&["swarm", "join", &new, "--json"]).await?.json()?;
    assert_eq!(joined["reached"], first.peer());
    acquainted(&first, &second).await?;

    // Out of every private swarm, both are in the public one again, by QUIC too.
    on_first.run(&["swarm", "leave", "--json"]).await?.data()?;
    let node = first.api().node().await?;
    ensure!(node.swarm.is_none() && node.addresses.iter().any(|address| address.contains("/quic-v1")), "{node:?}");
    refused(&on_first.run(&["swarm", "leave"]).await?, 2, &["in no private swarm"])?;
    refused(&on_first.run(&["swarm", "invite"]).await?, 2, &["in no private swarm"])?;
    second.stop().await?;
    first.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_job_goes_into_a_private_swarm_by_invite() -> Result<()> {
    let cluster = Cluster::new()?;
    let worker = cluster.start("worker", true, &[]).await?;
    let commands = CommandLine::new(&cluster, worker.data_dir());
    let model = import(&worker, model_file()?).await?.to_string();
    // With the model in memory: whoever worked with it lets go of the blocks when the swarm is changed.
    assert_eq!(commands.run(&["run", &model, CAPITAL]).await?.data()?, format!("{PARIS}\n"));
    let token = create(&commands, "lab").await?;
    let address = worker.api().node().await?.addresses.into_iter().next().context("no address")?;

    let nobody = CommandLine::new(&cluster, &cluster.path("untouched"));
    let answered = nobody.run(&["run", "--peer", &address, "--invite", &token, &model, CAPITAL]).await?;
    assert_eq!(answered.data()?, format!("{PARIS}\n"));
    let file = cluster.path("token");
    std::fs::write(&file, format!("{token}\n"))?;
    let from_file = format!("@{}", file.display());
    let answered = nobody.run(&["run", "--peer", &address, "--invite", &from_file, &model, CAPITAL]).await?;
    assert_eq!(answered.data()?, format!("{PARIS}\n"));
    ensure!(!cluster.path("untouched").exists(), "a direct run has made a data directory");
    refused(&nobody.run(&["run", "--invite", &token, &model, CAPITAL]).await?, 2, &["--peer"])?;
    worker.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_only_the_data_directory_changes() -> Result<()> {
    if !is_inside("without_a_daemon_only_the_data_directory_changes", Own::Network)? {
        return Ok(());
    }
    network()?;
    let cluster = Cluster::new()?;
    let (first, second) = (cluster.path("first"), cluster.path("second"));
    let (on_first, on_second) = (CommandLine::new(&cluster, &first), CommandLine::new(&cluster, &second));

    // Whoever would take any port cannot say which, and makes no swarm that nobody could join.
    let any = on_first.run(&["swarm", "create", "lab", "--listen", "/ip4/0.0.0.0/tcp/0"]).await?;
    refused(&any, 2, &["no address", "--address"])?;
    refused(&on_first.run(&["swarm", "create", "a lab"]).await?, 2, &["name of a swarm"])?;
    let token = create(&on_first, "lab").await?;
    let bootstrap = Invite::from_word(&token)?.bootstrap;
    assert_eq!(bootstrap.iter().map(|member| member.address.to_string()).collect::<Vec<_>>(), [format!("{HERE}:4601")]);
    let given = on_first.run(&["swarm", "invite", "--address", "/ip4/192.0.2.7/tcp/9"]).await?;
    let bootstrap = Invite::from_word(given.data()?)?.bootstrap;
    assert_eq!(bootstrap.first().context("nobody")?.address.to_string(), "192.0.2.7:9");
    refused(
        &on_first.run(&["swarm", "invite", "--address", "/ip4/192.0.2.7/udp/9/quic-v1"]).await?,
        2,
        &["--address"],
    )?;
    refused(&on_first.run(&["swarm", "invite", "--expires", "soon"]).await?, 2, &["--expires", "7d"])?;
    refused(&on_first.run(&["swarm", "create", "two"]).await?, 2, &["lab", "swarm leave first"])?;

    let joined = on_second.run(&["swarm", "join", &token]).await?;
    ensure!(joined.data()?.contains("when it starts"), "{joined:?}");
    on_second.run(&["swarm", "join", &token]).await?.data()?;
    let shown = on_second.run(&["swarm", "show"]).await?;
    ensure!(shown.data()?.contains("lab, private") && shown.stdout.contains("no daemon runs"), "{shown:?}");
    let left = on_second.run(&["swarm", "leave", "--json"]).await?.json()?;
    ensure!(left["swarm"] == "lab" && left["daemon"] == false, "{left}");

    // A token by the environment does not stand in the list of processes.
    let mut command = on_second.command(&["swarm", "join"]);
    let joined = accel_tests::command::ran(command.env("ACCEL_JOIN", &token).spawn()?).await?;
    joined.data()?;
    on_second.run(&["swarm", "leave"]).await?.data()?;

    let cut = &token[..token.len() - 2];
    let mistyped = on_second.run(&["swarm", "join", cut]).await?;
    refused(&mistyped, 2, &["mistyped"])?;
    ensure!(!mistyped.stderr.contains(cut), "the token is in the error");
    refused(&on_second.run(&["swarm", "join", "@missing"]).await?, 3, &["missing"])?;
    let invite = Invite { expires_unix: 1, ..Invite::from_word(&token)? };
    refused(&on_second.run(&["swarm", "join", &invite.to_word()?]).await?, 2, &["expired", " d ", "ago"])?;
    let started = on_second.run(&["daemon", "--join", &invite.to_word()?]).await?;
    refused(&started, 2, &["expired"])?;
    ensure!(!second.join("swarm.json").exists() && !first.join("ipfs").exists() && !second.join("ipfs").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_a_command_brought_up_stays_in_its_swarm_and_the_next_one_goes_along() -> Result<()> {
    let cluster = Cluster::new()?;
    let data_dir = cluster.path("node");
    let commands = CommandLine::new(&cluster, &data_dir);
    let waiting = ["pull", NOBODY_HAS, "--listen", "/ip4/127.0.0.1/tcp/0", "--mdns", "false", "--serve", "false"];
    let mut waiting = commands.command(&waiting).spawn()?;
    let access = data_dir.join("api.json");
    eventually("the command has brought up a daemon", async || Ok(access.exists())).await?;
    refused(&commands.run(&["swarm", "create", "lab"]).await?, 4, &["the change is kept", "a command has brought up"])?;
    let shown = commands.run(&["swarm", "show", "--json"]).await?.json()?;
    ensure!(shown["transport"] == "public" && shown["daemon"] == true, "{shown}");
    waiting.kill().await?;
    let shown = commands.run(&["swarm", "show", "--json"]).await?.json()?;
    ensure!(shown["swarm"] == "lab" && shown["daemon"] == false, "{shown}");
    Ok(())
}
