//! What a node is told: read once, checked once, then passed by value.
//!
//! Flags win over `ACCEL_*` variables, those over the file, and the file over the defaults. Flags and variables are
//! read by the programs in `bin/`; here they arrive as [`Overrides`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use etcetera::{AppStrategy, AppStrategyArgs};
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is out of its range.
    #[error("{key}: expected {expected}, found {found}")]
    Value {
        /// The key.
        key: &'static str,
        /// What would do.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A key is too easy to guess, or no text that can be sent.
    #[error(
        "{}: expected one line of {KEY_BYTES} to 512 letters, digits and signs; make one with: openssl rand -hex 32",
        path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// There is no home directory to keep data in.
    #[error("no home directory was found; give --data-dir")]
    NoHome,
}

/// Bytes of a key at least.
const KEY_BYTES: usize = 16;

/// A node's configuration, as `node.toml` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where identity, blocks and state are kept; the platform's data directory when empty.
    pub data_dir: PathBuf,
    /// The peer-to-peer side.
    pub swarm: SwarmConfig,
    /// The block store.
    pub store: StoreConfig,
    /// Jobs that this node runs.
    pub jobs: JobsConfig,
    /// The interface of programs.
    pub api: ApiConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// The peer-to-peer side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwarmConfig {
    /// Addresses to listen on.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which others reach this node, where it cannot tell itself.
    pub external: Vec<Multiaddr>,
    /// Peers to join by, each with its `/p2p/` id.
    pub bootstrap: Vec<Multiaddr>,
    /// Find peers on the local network.
    pub mdns: bool,
    /// Pass connections on between peers that cannot reach each other; small ones only, and no models.
    pub relay: bool,
    /// Connections held at most.
    pub connections: u32,
    /// Connections held at most with one peer.
    pub connections_per_peer: u32,
}

/// The block store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Bytes of blocks kept at most.
    pub quota_bytes: u64,
    /// Blocks asked for at once while fetching.
    pub fetch_window: usize,
    /// Seconds without a block after which a fetch gives up.
    pub fetch_stall_seconds: u64,
    /// Trustless gateways that may be asked by HTTP for blocks that peers do not send, like <https://trustless-gateway.link>.
    /// They learn which models this node looks for.
    pub gateways: Vec<String>,
}

/// Jobs that this node runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobsConfig {
    /// Run models on this node, for itself and for its peers.
    pub serve: bool,
    /// Jobs worked on at once.
    pub running: usize,
    /// Jobs that wait at most.
    pub queued: usize,
    /// Compute threads; 0 takes one for each processor.
    pub threads: usize,
    /// Memory for the weights of all models in bytes; each model gives its jobs what its own weights leave of that. 0 takes
    /// three quarters of what the machine has.
    pub memory_bytes: u64,
    /// The longest context that a job may use, where the model allows more; 0 sets no bound.
    pub context_tokens: usize,
    /// Seconds that a model stays in memory without a job; 0 keeps it until another needs the room.
    pub keep_alive_seconds: u64,
    /// Seconds that running jobs get to finish when the node stops, before they are handed over.
    pub stop_grace_seconds: u64,
    /// Seconds without progress after which a job is taken from a peer, if another can run it.
    pub stuck_seconds: u64,
}

/// The interface of programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// The address. One that is not on loopback needs a key.
    pub listen: SocketAddr,
    /// A file with the key that programs have to give; none is asked for when empty.
    pub key_file: PathBuf,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Lines of text or of JSON.
    pub format: LogFormat,
    /// Which events, in `tracing`'s filter syntax.
    pub filter: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::new(),
            swarm: SwarmConfig::default(),
            store: StoreConfig::default(),
            jobs: JobsConfig::default(),
            api: ApiConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for SwarmConfig {
    fn default() -> Self {
        let address = |text: &str| text.parse().expect("a literal multiaddress parses");
        Self {
            listen: vec![address("/ip4/0.0.0.0/tcp/4601"), address("/ip4/0.0.0.0/udp/4601/quic-v1")],
            external: Vec::new(),
            bootstrap: Vec::new(),
            mdns: true,
            relay: true,
            connections: 256,
            connections_per_peer: 4,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { quota_bytes: 100_000_000_000, fetch_window: 24, fetch_stall_seconds: 30, gateways: Vec::new() }
    }
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self {
            serve: true,
            running: 4,
            queued: 32,
            threads: 0,
            memory_bytes: 0,
            context_tokens: 0,
            keep_alive_seconds: 1800,
            stop_grace_seconds: 20,
            stuck_seconds: 120,
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 4600)), key_file: PathBuf::new() }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "warn,accel_node=info,connexa=off,rust_ipfs::p2p::addressbook=off".to_owned(),
        }
    }
}

/// Flags and environment variables that stand above the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Overrides {
    /// Configuration file [default: node.toml in the platform's configuration directory, if it is there]
    #[arg(long, env = "ACCEL_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Directory for identity, blocks and state [default: the platform's data directory]
    #[arg(long, env = "ACCEL_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on for peers; may be given several times
    #[arg(long, env = "ACCEL_LISTEN", value_name = "MULTIADDR", value_delimiter = ',', global = true)]
    pub listen: Vec<Multiaddr>,
    /// Peer to join by, with its /p2p/ id; may be given several times
    #[arg(long, env = "ACCEL_BOOTSTRAP", value_name = "MULTIADDR", value_delimiter = ',', global = true)]
    pub bootstrap: Vec<Multiaddr>,
    /// Find peers on the local network
    #[arg(long, env = "ACCEL_MDNS", value_name = "BOOL", global = true)]
    pub mdns: Option<bool>,
    /// Run models on this node
    #[arg(long, env = "ACCEL_SERVE", value_name = "BOOL", global = true)]
    pub serve: Option<bool>,
    /// Compute threads
    #[arg(long, env = "ACCEL_THREADS", value_name = "N", global = true)]
    pub threads: Option<usize>,
    /// Bytes of blocks kept at most
    #[arg(long, env = "ACCEL_QUOTA_BYTES", value_name = "BYTES", global = true)]
    pub quota_bytes: Option<u64>,
    /// Address of the interface of programs; one that is not on loopback needs a key
    #[arg(long, env = "ACCEL_API", value_name = "IP:PORT", global = true)]
    pub api: Option<SocketAddr>,
    /// File with the key that programs have to give
    #[arg(long, env = "ACCEL_API_KEY_FILE", value_name = "FILE", global = true)]
    pub api_key_file: Option<PathBuf>,
    /// Log lines as text or JSON
    #[arg(long, env = "ACCEL_LOG_FORMAT", value_name = "FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
    /// Log filter, for example `info` or `accel_node=debug`
    #[arg(long, env = "ACCEL_LOG", value_name = "FILTER", global = true)]
    pub log: Option<String>,
}

impl Config {
    /// The configuration that file and overrides give together.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, or a value is out of its range.
    pub fn load(overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut config = match &overrides.config {
            Some(path) => Self::read(path)?,
            None => match default_file().filter(|path| path.exists()) {
                Some(path) => Self::read(&path)?,
                None => Self::default(),
            },
        };
        config.apply(overrides);
        if config.data_dir.as_os_str().is_empty() {
            config.data_dir = directories()?.data_dir();
        }
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    fn apply(&mut self, overrides: &Overrides) {
        fn set<T: Clone>(value: &mut T, over: &Option<T>) {
            if let Some(over) = over {
                value.clone_from(over);
            }
        }
        set(&mut self.data_dir, &overrides.data_dir);
        set(&mut self.swarm.mdns, &overrides.mdns);
        set(&mut self.jobs.serve, &overrides.serve);
        set(&mut self.jobs.threads, &overrides.threads);
        set(&mut self.store.quota_bytes, &overrides.quota_bytes);
        set(&mut self.api.listen, &overrides.api);
        set(&mut self.api.key_file, &overrides.api_key_file);
        set(&mut self.log.format, &overrides.log_format);
        set(&mut self.log.filter, &overrides.log);
        if !overrides.listen.is_empty() {
            self.swarm.listen.clone_from(&overrides.listen);
        }
        if !overrides.bootstrap.is_empty() {
            self.swarm.bootstrap.clone_from(&overrides.bootstrap);
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, expected, found: String| Err(ConfigError::Value { key, expected, found });
        if !self.api.listen.ip().is_loopback() && self.api.key_file.as_os_str().is_empty() {
            let expected = "an address on loopback, or a key in the file that api.key_file names";
            return wrong("api.listen", expected, self.api.listen.to_string());
        }
        if !(1..=256).contains(&self.jobs.running) {
            return wrong("jobs.running", "1 to 256", self.jobs.running.to_string());
        }
        if self.jobs.queued > 4096 {
            return wrong("jobs.queued", "at most 4096", self.jobs.queued.to_string());
        }
        if !(1..=64).contains(&self.store.fetch_window) {
            return wrong("store.fetch_window", "1 to 64", self.store.fetch_window.to_string());
        }
        for gateway in &self.store.gateways {
            let parsed = reqwest::Url::parse(gateway);
            let usable = |url: &reqwest::Url| {
                matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none()
            };
            if !parsed.as_ref().is_ok_and(usable) {
                return wrong("store.gateways", "addresses that begin with https:// or http://", gateway.clone());
            }
        }
        if self.swarm.connections == 0 || self.swarm.connections_per_peer == 0 {
            return wrong("swarm.connections", "at least 1", "0".to_owned());
        }
        for address in &self.swarm.bootstrap {
            if !address.iter().any(|part| matches!(part, libp2p::multiaddr::Protocol::P2p(_))) {
                return wrong("swarm.bootstrap", "addresses that end in /p2p/PEER_ID", address.to_string());
            }
        }
        Ok(())
    }
}

impl ApiConfig {
    /// The key that programs have to give, where one is asked for. It is read here and kept nowhere else, so that no
    /// configuration that is shown has it.
    ///
    /// # Errors
    /// When the file cannot be read, or holds nothing that can be a key.
    pub fn key(&self) -> Result<Option<String>, ConfigError> {
        if self.key_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let path = self.key_file.clone();
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let key = text.trim();
        if !(KEY_BYTES..=512).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ConfigError::Key { path });
        }
        Ok(Some(key.to_owned()))
    }
}

fn directories() -> Result<impl AppStrategy, ConfigError> {
    etcetera::choose_app_strategy(AppStrategyArgs {
        top_level_domain: "org".to_owned(),
        author: "accel".to_owned(),
        app_name: "accel".to_owned(),
    })
    .map_err(|_| ConfigError::NoHome)
}

fn default_file() -> Option<PathBuf> {
    directories().ok().map(|directories| directories.config_dir().join("node.toml"))
}

/// The directory for what can be made again, such as downloads.
///
/// # Errors
/// When there is no home directory.
pub fn cache_dir() -> Result<PathBuf, ConfigError> {
    Ok(directories()?.cache_dir())
}
