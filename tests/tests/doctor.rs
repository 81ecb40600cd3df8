//! What `doctor` finds: each fault is made, and told in words with what to do about it.

use std::net::TcpListener;
use std::path::Path;

use accel_ipfs::{RelayConfig, RequestResponseConfig};
use accel_node::process::NodeProcess;
use accel_protocol::message::JOBS_PROTOCOL;
use accel_protocol::{Advert, Arithmetic, JobRequest, Load, frame};
use accel_tests::cluster::{Cluster, eventually, tcp};
use accel_tests::command::CommandLine;
use accel_tests::namespace::{Own, command, is_inside};
use anyhow::{Context, Result, ensure};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use serde_json::Value;

const SOMEBODY: &str = "12D3KooWNuwMFidzd359YP9UKsfSvvXYUr5SAm2sk2KYr3CUVnxs";
/// Free ports for what would be looked at otherwise.
const ANY_PORT: [&str; 4] = ["--api", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"];

/// What it finds, and its exit code.
async fn findings(commands: &CommandLine, arguments: &[&str]) -> Result<(Value, i32)> {
    let ran = commands.run(&[&["doctor", "--json"], arguments].concat()).await?;
    ensure!(ran.stderr.is_empty(), "{ran:?}");
    Ok((ran.json()?, ran.code.context("it was ended")?))
}

/// That something was found about a thing, in these words.
fn found(findings: &Value, about: &str, state: &str, words: &[&str]) -> Result<()> {
    let all = findings.as_array().context("no list")?;
    let said = |finding: &Value| format!("{} {}", finding["found"], finding["advice"]);
    let fits = |finding: &&Value| {
        finding["about"] == about && finding["state"] == state && words.iter().all(|word| said(finding).contains(word))
    };
    ensure!(all.iter().any(|finding| fits(&finding)), "no {state} about {about} with {words:?} in {findings:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_well_is_told_so() -> Result<()> {
    let cluster = Cluster::new()?;
    let (node, other) = (cluster.start("node", true, &[]).await?, cluster.start("other", false, &[]).await?);
    let commands = CommandLine::new(&cluster, node.data_dir());
    let join = tcp(&other)?.to_owned();
    commands.run(&["connect", &join]).await?.data()?;
    eventually("the other has told about itself", async || {
        let peers = node.api().peers().await?;
        Ok(peers.iter().any(|peer| peer.clock_ahead_ms.is_some()))
    })
    .await?;
    let (findings, code) = findings(&commands, &["--bootstrap", &join]).await?;
    assert_eq!(code, 0, "{findings:#}");
    for (about, words) in [
        ("daemon", "runs"),
        ("swarm", "public"),
        ("join", "can be reached"),
        ("peers", "1 connected"),
        ("clock", "within 0 s"),
        ("device", "CPU"),
    ] {
        found(&findings, about, "well", &[words])?;
    }
    let shown = commands.run(&["doctor"]).await?;
    ensure!(shown.data()?.contains("1 connected") && !shown.stdout.contains("PROBLEM"), "{shown:?}");
    node.stop().await?;
    other.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_are_taken_and_directories_that_cannot_be_used_are_named() -> Result<()> {
    let cluster = Cluster::new()?;
    let commands = CommandLine::new(&cluster, &cluster.path("nobody"));
    let (api, swarm) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (api, swarm) =
        (api.local_addr().map(|address| (api, address))?, swarm.local_addr().map(|address| (swarm, address))?);
    let listen = format!("/ip4/127.0.0.1/tcp/{}", swarm.1.port());
    let (findings_of, code) = findings(&commands, &["--api", &api.1.to_string(), "--listen", &listen]).await?;
    assert_eq!(code, 1);
    found(&findings_of, "port", "problem", &[&api.1.to_string(), "another program has it", "--api"])?;
    found(&findings_of, "port", "problem", &[&listen, "another program has it", "--listen"])?;
    found(&findings_of, "daemon", "note", &["none runs", "accel-node"])?;
    let shown = commands.run(&["doctor", "--api", &api.1.to_string(), "--listen", &listen]).await?;
    ensure!(shown.code == Some(1) && shown.stdout.contains("PROBLEM"), "{shown:?}");

    let elsewhere = "/ip4/203.0.113.9/tcp/4601";
    let (findings_of, code) = findings(&commands, &["--api", "127.0.0.1:0", "--listen", elsewhere]).await?;
    assert_eq!(code, 1);
    found(&findings_of, "port", "problem", &[elsewhere, "no interface has this address"])?;
    ensure!(!cluster.path("nobody").exists(), "looking has left something behind");

    // A place where no directory can be.
    std::fs::write(cluster.path("file"), "")?;
    let commands = CommandLine::new(&cluster, &cluster.path("file/below"));
    let (findings_of, code) = findings(&commands, &ANY_PORT).await?;
    assert_eq!(code, 1);
    found(&findings_of, "data directory", "problem", &["file/below", "--data-dir"])
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_cannot_be_joined_by_are_named_with_the_reason() -> Result<()> {
    let cluster = Cluster::new()?;
    let own = |name: &str| CommandLine::new(&cluster, &cluster.path(name));
    let address = "/ip4/127.0.0.1/tcp/4601";
    for name in ["lab", "home"] {
        own(name).run(&["swarm", "create", name, "--address", address]).await?;
    }
    let lab = cluster.start("lab", false, &[]).await?;
    let open = cluster.start("open", false, &[]).await?;
    let try_to_join = async |from: &str, node: &NodeProcess| {
        let join = tcp(node)?.to_owned();
        findings(&own(from), &[&ANY_PORT[..], &["--bootstrap", &join]].concat()).await
    };
    for (from, node, words) in [
        ("home", &lab, "private swarm with another key than that of home"),
        ("nobody", &lab, "probably in a private swarm, and this node is in none"),
        ("home", &open, "probably not in a private swarm, and this node is in home"),
    ] {
        let (findings_of, code) = try_to_join(from, node).await?;
        assert_eq!(code, 1);
        found(&findings_of, "join", "problem", &["does not understand this node", words])?;
    }
    let closed = format!("/ip4/127.0.0.1/tcp/9/p2p/{SOMEBODY}");
    let (findings_of, _) = findings(&own("nobody"), &[&ANY_PORT[..], &["--bootstrap", &closed]].concat()).await?;
    found(&findings_of, "join", "problem", &[&closed, "no node listens there"])?;
    lab.stop().await?;
    open.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_network_is_told_that_there_is_no_route() -> Result<()> {
    if !is_inside("a_machine_without_a_network_is_told_that_there_is_no_route", Own::Network)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let commands = CommandLine::new(&cluster, &cluster.path("nobody"));
    let far = format!("/ip4/192.0.2.7/tcp/4601/p2p/{SOMEBODY}");
    let (findings_of, code) = findings(&commands, &[&ANY_PORT[..], &["--bootstrap", &far]].concat()).await?;
    assert_eq!(code, 1);
    found(&findings_of, "network", "problem", &["no interface but loopback", "ip route"])?;
    found(&findings_of, "join", "problem", &[&far, "there is no route to it"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_that_says_nothing_is_told() -> Result<()> {
    if !is_inside("a_firewall_that_says_nothing_is_told", Own::Network)? {
        return Ok(());
    }
    command("ip", &["link", "set", "lo", "up"])?;
    let rules = "table ip filter {
        chain inside { type filter hook input priority 0; tcp dport 4601 drop; }
    }";
    command("nft", &[rules])?;
    let cluster = Cluster::new()?;
    let commands = CommandLine::new(&cluster, &cluster.path("nobody"));
    let silent = format!("/ip4/127.0.0.1/tcp/4601/p2p/{SOMEBODY}");
    let (findings_of, code) = findings(&commands, &[&ANY_PORT[..], &["--bootstrap", &silent]].concat()).await?;
    assert_eq!(code, 1);
    found(&findings_of, "join", "problem", &[&silent, "nothing comes back", "firewall"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_cannot_be_read_is_named() -> Result<()> {
    let cluster = Cluster::new()?;
    let commands = CommandLine::new(&cluster, &cluster.path("lab"));
    commands.run(&["swarm", "create", "lab", "--address", "/ip4/127.0.0.1/tcp/4601"]).await?;
    let kept: Vec<_> = std::fs::read_dir(cluster.path("lab"))?
        .map(|entry| Ok(entry?.path()))
        .filter(|path: &Result<_>| path.as_ref().is_ok_and(|path| path.extension().is_some_and(|of| of == "json")))
        .collect::<Result<_>>()?;
    ensure!(kept.len() == 1, "{kept:?}");
    std::fs::write(&kept[0], "half of it")?;
    let (findings_of, code) = findings(&commands, &ANY_PORT).await?;
    assert_eq!(code, 1);
    found(&findings_of, "swarm", "problem", &["swarm join TOKEN"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_space_is_named() -> Result<()> {
    if !is_inside("a_disk_without_space_is_named", Own::Mounts)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let small = cluster.directory("small")?;
    command("mount", &["-t", "tmpfs", "-o", "size=4m", "none", small.to_str().context("no text")?])?;
    let (findings_of, code) = findings(&CommandLine::new(&cluster, &small), &ANY_PORT).await?;
    assert_eq!(code, 1);
    found(&findings_of, "space", "problem", &["MB left", "--data-dir"])?;

    // One on which not even a file can be made, and one that is not to be written on.
    for (options, words) in [("nr_inodes=1", "free space on that disk"), ("ro", "name another by --data-dir")] {
        let place = cluster.directory(options)?;
        command("mount", &["-t", "tmpfs", "-o", options, "none", place.to_str().context("no text")?])?;
        let (findings_of, code) = findings(&CommandLine::new(&cluster, &place), &ANY_PORT).await?;
        assert_eq!(code, 1);
        found(&findings_of, "data directory", "problem", &[words])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_without_its_driver_is_told_with_what_to_install() -> Result<()> {
    if !is_inside("a_card_without_its_driver_is_told_with_what_to_install", Own::Mounts)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    // Devices as on this machine, and one of NVIDIA's beside them.
    let devices = cluster.directory("dev")?;
    command("mount", &["-t", "tmpfs", "none", devices.to_str().context("no text")?])?;
    for name in ["null", "zero", "random", "urandom"] {
        let (here, there) = (format!("/dev/{name}"), devices.join(name));
        std::fs::write(&there, "")?;
        command("mount", &["--bind", &here, there.to_str().context("no text")?])?;
    }
    std::fs::write(devices.join("nvidiactl"), "")?;
    command("mount", &["--rbind", devices.to_str().context("no text")?, "/dev"])?;
    ensure!(Path::new("/dev/nvidiactl").exists());
    let (findings_of, _) = findings(&CommandLine::new(&cluster, &cluster.path("nobody")), &ANY_PORT).await?;
    found(
        &findings_of,
        "device",
        "note",
        &["NVIDIA card", "libcuda.so.1", "install NVIDIA's driver", "computes without it"],
    )
}

/// Tells a node about itself as a peer would whose clock is ahead by this much.
async fn tell(node: &NodeProcess, ahead_ms: u64) -> Result<()> {
    let settings = accel_ipfs::Settings {
        agent: "from the future",
        repository: None,
        listen: Vec::new(),
        bootstrap: Vec::new(),
        key: None,
        relay: RelayConfig::default(),
        mdns: false,
        connections: 8,
        connections_per_peer: 4,
        requests: RequestResponseConfig::new("/stranger/1"),
        gossip_bytes: 1 << 10,
    };
    let start = accel_ipfs::start(Keypair::generate_ed25519(), settings, Box::new(|_| {}));
    let ipfs = start.await.map_err(anyhow::Error::msg)?;
    let address: Multiaddr = node.addresses().first().context("no address")?.parse()?;
    ipfs.connect(address).await?;
    let number = accel_node::peers::unix_ms() + ahead_ms;
    let advert = Advert {
        number,
        expires_unix_ms: number + 60_000,
        agent: "from the future".to_owned(),
        addresses: Vec::new(),
        serves_jobs: false,
        arithmetic: Arithmetic("none".to_owned()),
        devices: Vec::new(),
        models: Vec::new(),
        free_bytes: 0,
        load: Load::default(),
    };
    let mut stream = ipfs.open_stream(node.peer().parse()?, JOBS_PROTOCOL).await?;
    stream.write_all(&frame::encode(&JobRequest::Capabilities(Box::new(advert)))?).await?;
    stream.close().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(!answer.is_empty(), "no answer");
    ipfs.exit_daemon().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_wrong_is_told() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", false, &[]).await?;
    tell(&node, 90_000).await?;
    let (findings_of, code) = findings(&CommandLine::new(&cluster, node.data_dir()), &[]).await?;
    assert_eq!(code, 1, "{findings_of:#}");
    found(&findings_of, "clock", "problem", &["s behind that of its peers (1 asked)", "set-ntp"])?;
    node.stop().await?;
    Ok(())
}
