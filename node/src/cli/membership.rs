//! Private swarms: made, joined and left in the data directory. A daemon that runs on it is told, and goes along.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::{Multiaddr, PeerId};
use serde::Serialize;

use super::CliError;
use super::interrupts::Interrupts;
use super::output::Output;
use super::swarm::in_words;
use crate::api::{Api, ApiError, NodeView};
use crate::config::{Config, Overrides};
use crate::data_dir;
use crate::identity;
use crate::membership::{self, CHARACTERS, Invite, MemberAddress, Membership, MembershipError, SwarmName};
use crate::peers::unix_ms;

/// An invite is good for this long unless said otherwise.
const EXPIRES: &str = "7d";
const MOST_DAYS: u64 = 3650;
/// How long a daemon that starts or stops may hold the lock without answering.
const LOCKED: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Subcommand)]
pub(super) enum SwarmCommand {
    /// Make a private swarm, go into it, and print an invite for the next machine
    Create {
        /// What to call it
        name: SwarmName,
        #[command(flatten)]
        invite: InviteArgs,
    },
    /// Print an invite; whoever has it can join, so keep it to yourselves
    Invite(InviteArgs),
    /// Go into the private swarm of an invite, now and at every later start
    Join {
        /// The invite; @FILE reads it from a file, - from standard input
        #[arg(env = "ACCEL_JOIN", hide_env_values = true)]
        token: Token,
    },
    /// Leave the private swarm
    Leave,
    /// Give the swarm another key and print an invite: every other member has to leave and join again by it
    RotateKey(InviteArgs),
    /// Show the swarm, how many members are connected, and what carries it
    Show,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct InviteArgs {
    /// How long one can join by the invite, as in 90min, 12h or 7d; whoever joins checks it
    #[arg(long, value_name = "TIME", default_value = EXPIRES, value_parser = parse_time)]
    expires: Duration,
    /// An address at which others reach this node, where it cannot tell itself; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    address: Vec<Multiaddr>,
}

/// An invite as it was typed, or where to read it from. It is read only when it is needed, and shows itself to nobody.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl FromStr for Token {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl Token {
    /// The invite that was given.
    pub(super) fn read(&self) -> Result<Invite, CliError> {
        let mut word = String::new();
        // One more than it may have, so that one which is too long is known as such; a line may end behind it.
        let most = CHARACTERS as u64 + 3;
        let (path, read) = match self.0.strip_prefix('@') {
            Some(path) => {
                let file = std::fs::File::open(path);
                (path, file.and_then(|file| file.take(most).read_to_string(&mut word)))
            }
            None if self.0 == "-" => ("standard input", std::io::stdin().lock().take(most).read_to_string(&mut word)),
            None => return Ok(Invite::from_word(&self.0).map_err(MembershipError::from)?),
        };
        read.map_err(|source| CliError::File { path: path.into(), source })?;
        Ok(Invite::from_word(&word).map_err(MembershipError::from)?)
    }
}

/// A swarm and an invite to it.
#[derive(Serialize)]
struct Invited {
    swarm: String,
    token: String,
    expires_unix: u64,
    /// Whether a daemon runs, and is in the swarm.
    daemon: bool,
}

/// What became of joining.
#[derive(Serialize)]
struct Joined {
    swarm: String,
    daemon: bool,
    /// The first member that was reached; none without a daemon, which alone asks.
    reached: Option<String>,
    /// Why the others were not.
    unreached: Vec<String>,
}

#[derive(Serialize)]
struct Left {
    swarm: String,
    daemon: bool,
}

/// The swarm as `show` shows it.
#[derive(Serialize)]
struct Shown {
    swarm: Option<String>,
    transport: &'static str,
    daemon: bool,
    /// Members of the private swarm, or peers of the public one, that are connected; none when no daemon runs.
    connected: Option<usize>,
}

pub(super) async fn run(
    command: SwarmCommand,
    overrides: &Overrides,
    interrupts: &mut Interrupts,
    output: &Output,
) -> Result<(), CliError> {
    let config = Config::load(overrides)?;
    let data_dir = &config.data_dir;
    let work = async {
        match command {
            SwarmCommand::Create { name, invite } => {
                check_addresses(&config, &invite.address).await?;
                let created = membership::create(data_dir, name)?;
                let node = reload(running(data_dir).await?).await?;
                print_invite(&config, &created, &invite, node.as_ref(), output)
            }
            SwarmCommand::Invite(invite) => {
                let current = Membership::load(data_dir)?.ok_or(MembershipError::InNone)?;
                let node = match running(data_dir).await? {
                    Some(api) => Some(api.node().await?),
                    None => None,
                };
                print_invite(&config, &current, &invite, node.as_ref(), output)
            }
            SwarmCommand::Join { token } => join(data_dir, &token.read()?, output).await,
            SwarmCommand::Leave => {
                let left = membership::leave(data_dir)?;
                let daemon = reload(running(data_dir).await?).await?.is_some();
                let left = Left { swarm: left.name.to_string(), daemon };
                output.value(&left, |left| format!("left the private swarm {}", left.swarm))
            }
            SwarmCommand::RotateKey(invite) => {
                check_addresses(&config, &invite.address).await?;
                let rotated = membership::rotate_key(data_dir)?;
                let node = reload(running(data_dir).await?).await?;
                print_invite(&config, &rotated, &invite, node.as_ref(), output)?;
                output.note("every other member has to leave and to join again by this invite");
                Ok(())
            }
            SwarmCommand::Show => show(data_dir, output).await,
        }
    };
    interrupts.unless(work).await
}

async fn join(data_dir: &Path, invite: &Invite, output: &Output) -> Result<(), CliError> {
    let joined = membership::join(data_dir, invite, unix_ms() / 1000)?;
    let running = running(data_dir).await?;
    let node = reload(running.clone()).await?;
    let (mut reached, mut unreached) = (None, Vec::new());
    if let (Some(api), Some(node)) = (&running, &node) {
        let others = joined.bootstrap.iter().filter(|member| member.peer.to_string() != node.peer);
        let mut dials: FuturesUnordered<_> =
            others.map(|member| async move { api.connect(&member.to_string()).await }).collect();
        while let Some(dialled) = dials.next().await {
            match dialled {
                Ok(peer) => {
                    reached = Some(peer);
                    break;
                }
                Err(error) => {
                    // A peer has several addresses, and often the same is to be said of each.
                    let reason = error.to_string();
                    if !unreached.contains(&reason) {
                        unreached.push(reason);
                    }
                }
            }
        }
    }
    let joined = Joined { swarm: joined.name.to_string(), daemon: node.is_some(), reached, unreached };
    output.value(&joined, |joined| {
        let mut text = format!("joined the private swarm {}", joined.swarm);
        match &joined.reached {
            Some(peer) => text.push_str(&format!("; connected to {peer}")),
            None if !joined.daemon => text.push_str("; the node will be in it when it starts"),
            None => text.push_str("; no member is reached yet, which is tried again:"),
        }
        if joined.reached.is_none() {
            joined.unreached.iter().for_each(|reason| text.push_str(&format!("\n  {reason}")));
        }
        text
    })
}

async fn show(data_dir: &Path, output: &Output) -> Result<(), CliError> {
    let shown = match running(data_dir).await? {
        Some(api) => {
            let connected = api.peers().await?.iter().filter(|peer| peer.connected).count();
            Shown { connected: Some(connected), ..shown(api.node().await?.swarm, true) }
        }
        None => shown(Membership::load(data_dir)?.map(|current| current.name.to_string()), false),
    };
    output.value(&shown, |shown| {
        let swarm = in_words(shown.swarm.as_deref());
        let who = if shown.swarm.is_some() { "members" } else { "peers  " };
        let connected = shown.connected.map_or("no daemon runs".to_owned(), |count| format!("{count} connected"));
        format!("swarm    {swarm}\n{who}  {connected}")
    })
}

fn shown(swarm: Option<String>, daemon: bool) -> Shown {
    let transport = if swarm.is_some() { "private" } else { "public" };
    Shown { swarm, transport, daemon, connected: None }
}

fn print_invite(
    config: &Config,
    membership: &Membership,
    args: &InviteArgs,
    node: Option<&NodeView>,
    output: &Output,
) -> Result<(), CliError> {
    let own = own_addresses(config, &args.address, node)?;
    let expires_unix = (unix_ms() / 1000).saturating_add(args.expires.as_secs());
    let invite = membership.invite(own, expires_unix)?;
    let token = invite.to_word().map_err(MembershipError::from)?;
    let invited = Invited { swarm: invite.name.to_string(), token, expires_unix, daemon: node.is_some() };
    output.value(&invited, |invited| invited.token.clone())
}

/// Whether anybody could be reached by an invite: better said before something is changed.
async fn check_addresses(config: &Config, given: &[Multiaddr]) -> Result<(), CliError> {
    // A daemon that runs listens, and takes other ports perhaps when it starts again.
    if running(&config.data_dir).await?.is_none() {
        own_addresses(config, given, None)?;
    }
    Ok(())
}

/// Where others reach this node: where its owner says, and where it listens, or will.
fn own_addresses(
    config: &Config,
    given: &[Multiaddr],
    node: Option<&NodeView>,
) -> Result<Vec<MemberAddress>, CliError> {
    let peer = match node {
        Some(node) => node.peer.parse().map_err(|_| ApiError::Answer(format!("{:?} is no peer id", node.peer)))?,
        None => own_id(config)?,
    };
    let parse = |address: &Multiaddr| MemberAddress::parse(address, Some(peer));
    let given =
        given.iter().map(|address| parse(address).map_err(|error| CliError::Usage(format!("--address {error}"))));
    let mut own = given.collect::<Result<Vec<_>, _>>()?;
    // What of the others is no address of TCP is no mistake.
    own.extend(config.swarm.external.iter().filter_map(|address| parse(address).ok()));
    match node {
        Some(node) => {
            let listening = node.addresses.iter().filter_map(|address| address.parse().ok());
            own.extend(listening.filter_map(|address| parse(&address).ok()));
        }
        None => {
            let failed = |error: std::io::Error| CliError::Failed {
                doing: "list the addresses of this machine".to_owned(),
                message: error.to_string(),
            };
            let interfaces = if_addrs::get_if_addrs().map_err(failed)?;
            let ips: Vec<_> = interfaces.iter().map(if_addrs::Interface::ip).collect();
            own.extend(membership::listening(peer, &config.swarm.listen, &ips));
        }
    }
    if own.is_empty() {
        return Err(MembershipError::NoAddress.into());
    }
    Ok(own)
}

fn own_id(config: &Config) -> Result<PeerId, CliError> {
    // Made where it is missing, with the directory.
    data_dir::open_lock(&config.data_dir, "lock")?;
    let keypair = identity::load_or_create(&config.data_dir.join("identity.key"))?;
    Ok(keypair.public().to_peer_id())
}

/// The daemon that runs on the data directory. One that starts or stops is waited for. Whoever changes something asks
/// afterwards: a daemon that starts later reads what was changed.
async fn running(data_dir: &Path) -> Result<Option<Api>, CliError> {
    if !data_dir.exists() {
        return Ok(None);
    }
    let begun = Instant::now();
    loop {
        match Api::of(data_dir).await {
            Ok(api) => return Ok(Some(api)),
            Err(ApiError::NoDaemon { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let (path, lock) = data_dir::open_lock(data_dir, "lock")?;
        match lock.try_lock() {
            Ok(()) => return Ok(None),
            Err(std::fs::TryLockError::WouldBlock) if begun.elapsed() < LOCKED => tokio::time::sleep(LOOK_AGAIN).await,
            Err(std::fs::TryLockError::WouldBlock) => {
                let message = "it neither answers nor stops".to_owned();
                return Err(CliError::Failed { doing: format!("ask the daemon on {}", data_dir.display()), message });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(data_dir::at(&path)(source).into()),
        }
    }
}

/// Has the daemon, if one runs, go into the swarm that the data directory names.
async fn reload(running: Option<Api>) -> Result<Option<NodeView>, CliError> {
    match running {
        Some(api) => Ok(Some(api.reload().await?)),
        None => Ok(None),
    }
}

/// A length of time: a number and its unit.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a time such as 90min, 12h or 7d, of {MOST_DAYS}d at most");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| (1..=MOST_DAYS * 86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}
