//! What keeps a node from its work, in words, and what to do about it.
//!
//! It looks from the outside: at the data directory, the ports, the network, the peers to join by and the devices. What
//! only a running node knows, whether others reach it and what their clocks say, it asks the daemon, if one runs.

use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use accel_backends::device::{self, Unavailable};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use serde::Serialize;
use tokio::net::TcpStream;

use super::CliError;
use super::output::{Output, bytes, table};
use super::swarm::{in_words, reach};
use crate::api::{Api, Reach};
use crate::config::{Config, Overrides};
use crate::membership::{Membership, tcp_socket};
use crate::peers::PeerView;
use crate::swarm::misfit;

/// With less, hardly a model can be imported.
const SPACE_BYTES: u64 = 1_000_000_000;
/// How long a peer to join by may take to let itself be reached.
const REACHED: Duration = Duration::from_secs(3);
/// Clocks may differ by so much: what peers tell of themselves counts for two minutes.
const SKEW_MS: u64 = 30_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It is as it should be.
    Well,
    /// It could be better, or cannot be told.
    Note,
    /// It keeps the node from its work.
    Problem,
}

/// What was found about one thing.
#[derive(Debug, Serialize)]
struct Finding {
    about: &'static str,
    state: State,
    found: String,
    /// What to do.
    advice: Option<String>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn well(&mut self, about: &'static str, found: impl Display) {
        self.0.push(Finding { about, state: State::Well, found: found.to_string(), advice: None });
    }

    fn note(&mut self, about: &'static str, found: impl Display, advice: impl Display) {
        let advice = Some(advice.to_string());
        self.0.push(Finding { about, state: State::Note, found: found.to_string(), advice });
    }

    fn problem(&mut self, about: &'static str, found: impl Display, advice: impl Display) {
        let advice = Some(advice.to_string());
        self.0.push(Finding { about, state: State::Problem, found: found.to_string(), advice });
    }
}

pub(super) async fn doctor(overrides: &Overrides, output: &Output) -> Result<(), CliError> {
    let config = Config::load(overrides)?;
    let mut findings = Findings::default();
    data_directory(&config, &mut findings);
    let daemon = Api::of(&config.data_dir).await.ok();
    match &daemon {
        Some(_) => findings.well("daemon", "runs on this data directory"),
        None => {
            findings.note("daemon", "none runs on this data directory", "start one: accel-node");
            ports(&config, &mut findings);
        }
    }
    network(&mut findings);
    let membership = swarm(&config, &mut findings);
    join(&config, membership.as_ref(), &mut findings).await;
    if let Some(api) = &daemon {
        let (node, peers) = (api.node().await?, api.peers().await?);
        match node.reachability {
            Reach::Public => findings.well("reachable", reach(Reach::Public)),
            Reach::Relayed => findings.note("reachable", reach(Reach::Relayed), FORWARD),
            Reach::Unknown => {
                findings.note("reachable", reach(Reach::Unknown), "on a local network that is as it should be")
            }
            Reach::Private => findings.problem("reachable", reach(Reach::Private), FORWARD),
        }
        company(&peers, &mut findings);
    }
    devices(&mut findings).await?;
    let problems = findings.0.iter().filter(|finding| finding.state == State::Problem).count();
    output.value(&findings.0, |findings| {
        let rows = findings.iter().map(|finding| {
            let state = match finding.state {
                State::Well => "ok",
                State::Note => "note",
                State::Problem => "PROBLEM",
            };
            let words =
                finding.advice.as_ref().map_or(finding.found.clone(), |advice| format!("{}; {advice}", finding.found));
            vec![finding.about.to_owned(), state.to_owned(), words]
        });
        table(&["ABOUT", "STATE", "WHAT"], rows)
    })?;
    if problems > 0 { Err(CliError::Told { exit_code: 1 }) } else { Ok(()) }
}

const FORWARD: &str = "models come and go by direct connections only: forward the port of swarm.listen in the router, or \
                       run a node on a machine that can be reached";

fn data_directory(config: &Config, findings: &mut Findings) {
    let directory = &config.data_dir;
    // Where it is not there yet, it would be made here; the file vanishes by itself.
    let whole = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
    let there = whole.ancestors().find(|path| path.exists()).unwrap_or(directory);
    if let Err(source) = tempfile::tempfile_in(there) {
        let advice = match source.kind() {
            ErrorKind::PermissionDenied => "give it to the user that runs the node, or name another by --data-dir",
            ErrorKind::StorageFull => "free space on that disk, or name a directory on another by --data-dir",
            _ => "name another by --data-dir",
        };
        return findings.problem("data directory", format_args!("{}: {source}", directory.display()), advice);
    }
    match rustix::fs::statvfs(there) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let found = format!("{} has {} left", directory.display(), bytes(free));
            let advice =
                "free space, remove models (accel-cli ls, rm), or name a directory on another disk by --data-dir";
            if free < SPACE_BYTES {
                findings.problem("space", found, advice);
            } else if free < config.store.quota_bytes {
                let quota = bytes(config.store.quota_bytes);
                findings.note("space", found, format_args!("that is less than store.quota_bytes allows, {quota}"));
            } else {
                findings.well("space", found);
            }
        }
        Err(error) => findings.note("space", format_args!("{}: {error}", directory.display()), "look at the disk"),
    }
}

/// Whether the ports are free that a node would take.
fn ports(config: &Config, findings: &mut Findings) {
    let mut taken = false;
    let mut check = |what: &str, flag: &str, bound: std::io::Result<()>| {
        let Err(error) = bound else { return };
        taken = true;
        let advice = match error.kind() {
            ErrorKind::AddrInUse => format!("another program has it: stop that, or choose another by {flag}"),
            ErrorKind::PermissionDenied => format!("ports below 1024 are for root: choose another by {flag}"),
            ErrorKind::AddrNotAvailable => format!("no interface has this address: choose another by {flag}"),
            _ => format!("choose another by {flag}"),
        };
        findings.problem("port", format_args!("{what} cannot be taken: {error}"), advice);
    };
    check(&config.api.listen.to_string(), "--api", TcpListener::bind(config.api.listen).map(drop));
    for address in &config.swarm.listen {
        let Some((socket, is_udp)) = socket(address) else { continue };
        let bound = if is_udp { UdpSocket::bind(socket).map(drop) } else { TcpListener::bind(socket).map(drop) };
        check(&address.to_string(), "--listen", bound);
    }
    if !taken {
        findings.well("port", "all that a node listens on are free");
    }
}

/// The socket of an address, and whether it is one of UDP.
fn socket(address: &Multiaddr) -> Option<(SocketAddr, bool)> {
    let ip = address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    })?;
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some((SocketAddr::new(ip, port), false)),
        Protocol::Udp(port) => Some((SocketAddr::new(ip, port), true)),
        _ => None,
    })
}

fn network(findings: &mut Findings) {
    let own: Vec<String> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .filter(|interface| !interface.is_loopback())
        .map(|interface| format!("{} {}", interface.name, interface.ip()))
        .collect();
    if own.is_empty() {
        let advice = "no other machine can be reached: look at cable, Wi-Fi and addresses (ip address, ip route)";
        findings.problem("network", "no interface but loopback has an address", advice);
    } else {
        findings.well("network", own.join(", "));
    }
}

fn swarm(config: &Config, findings: &mut Findings) -> Option<Membership> {
    match Membership::load(&config.data_dir) {
        Ok(membership) => {
            let name = membership.as_ref().map(|membership| membership.name.to_string());
            findings.well("swarm", in_words(name.as_deref()));
            membership
        }
        Err(error) => {
            findings.problem("swarm", error, "accel-cli swarm join TOKEN");
            None
        }
    }
}

/// Whether the peers to join by can be reached, and speak to this node.
async fn join(config: &Config, membership: Option<&Membership>, findings: &mut Findings) {
    let told = membership.into_iter().flat_map(|membership| membership.bootstrap.iter());
    let told: Vec<Multiaddr> = told.map(|address| address.to_multiaddr()).collect();
    for address in config.swarm.bootstrap.iter().chain(&told) {
        let Some(socket) = tcp_socket(address) else {
            findings.note(
                "join",
                format_args!("{address} is not tried"),
                "only addresses with an IP and a TCP port are",
            );
            continue;
        };
        let reached = match tokio::time::timeout(REACHED, TcpStream::connect(socket)).await {
            Ok(reached) => reached.map(drop),
            Err(_) => Err(ErrorKind::TimedOut.into()),
        };
        match reached {
            Ok(()) => match misfit(address, membership.map(|membership| &membership.name)).await {
                None => findings.well("join", format_args!("{address} can be reached")),
                Some(misfit) => findings.problem(
                    "join",
                    format_args!("{address} can be reached, and does not understand this node"),
                    misfit,
                ),
            },
            Err(error) => {
                let advice = match error.kind() {
                    ErrorKind::ConnectionRefused => "the machine is there, and no node listens there: is it running?",
                    ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
                        "there is no route to it from this machine: look at ip route, and at any VPN"
                    }
                    ErrorKind::TimedOut => "nothing comes back: the machine is off, or a firewall on the way drops it",
                    _ => "look at the address",
                };
                findings.problem("join", format_args!("{address} cannot be reached: {error}"), advice);
            }
        }
    }
}

/// Who is there, and whether their clocks go as this one.
fn company(peers: &[PeerView], findings: &mut Findings) {
    let connected = peers.iter().filter(|peer| peer.connected).count();
    if connected == 0 {
        let advice = "name one by --bootstrap, join a swarm by an invite, or start one on the same network";
        findings.note("peers", "none is connected", advice);
    } else {
        findings.well("peers", format_args!("{connected} connected"));
    }
    let mut ahead: Vec<i64> = peers.iter().filter_map(|peer| peer.clock_ahead_ms).collect();
    ahead.sort_unstable();
    // Where most say so, it is this clock that is wrong.
    let Some(&middle) = ahead.get(ahead.len() / 2) else { return };
    let seconds = middle.unsigned_abs() / 1000;
    if middle.unsigned_abs() > SKEW_MS {
        let which = if middle > 0 { "behind" } else { "ahead of" };
        let found = format!("this machine's clock is {seconds} s {which} that of its peers ({} asked)", ahead.len());
        findings.problem(
            "clock",
            found,
            "set it (timedatectl set-ntp true): what peers tell counts for two minutes only",
        );
    } else {
        findings.well("clock", format_args!("within {seconds} s of that of {} peers", ahead.len()));
    }
}

async fn devices(findings: &mut Findings) -> Result<(), CliError> {
    let probe = tokio::task::spawn_blocking(device::probe).await;
    let broke_off = |error: tokio::task::JoinError| CliError::Failed {
        doing: "look at the devices".to_owned(),
        message: error.to_string(),
    };
    for device in probe.map_err(broke_off)? {
        match &device.proof {
            Ok(proof) => {
                findings
                    .well("device", format_args!("{}: {}, {:.0} GFLOP/s", device.backend, device.name, proof.gflops));
            }
            // There is none, which is no fault.
            Err(Unavailable::NotFound { .. } | Unavailable::OtherSystem { .. }) => {}
            Err(reason) => {
                let advice = "the node computes without it";
                findings.note("device", format_args!("{}: {reason}", device.backend), advice);
            }
        }
    }
    Ok(())
}
