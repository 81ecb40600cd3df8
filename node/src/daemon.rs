//! The daemon: what starts in which order, and how it stops without losing a job.
//!
//! `accel-node`, the demo, and a command that finds no daemon all come in here.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::advert::Advertiser;
use crate::api::{ACCESS_FILE, Access, Ready};
use crate::config::{Config, ConfigError, StoreConfig};
use crate::http;
use crate::hub::Hub;
use crate::identity::{self, IdentityError};
use crate::names::{Names, NamesError};
use crate::scheduler::{Models, Scheduler};
use crate::shares::{ExpertHolder, Fetcher, StageHolder};
use crate::store::{FetchOptions, Store, StoreError, StoreOptions};
use crate::swarm::{Swarm, SwarmError};
use crate::usage::Ledger;
use crate::{hardware, records, serve, whole_file};

/// A daemon that does not start, or broke down.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The data directory cannot be used.
    #[error("data directory {}: {source}", path.display())]
    DataDir {
        /// The directory or a file in it.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another daemon runs on the same data directory.
    #[error("another daemon runs on {}; stop it, or give another --data-dir", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The loopback interface does not come up.
    #[error("cannot listen on {address}: {source}; give another address by --api")]
    Api {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The key of the interface cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What models are called cannot be read.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// The swarm does not start.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] Box<StoreError>),
    /// The devices could not be probed.
    #[error("the probe of this machine's devices broke off: {0}")]
    Probe(#[source] tokio::task::JoinError),
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    access: Access,
    access_file: PathBuf,
    swarm: Swarm,
    scheduler: Scheduler,
    /// Stops the tasks that take and answer requests.
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// Held as long as the daemon lives, so that no second one works on the same data.
    _lock: File,
}

impl Daemon {
    /// Starts everything.
    ///
    /// # Errors
    /// When any part does not start; what had started stops again.
    pub async fn start(config: &Config) -> Result<Self, DaemonError> {
        let data_dir = &config.data_dir;
        let lock = lock(data_dir)?;
        let keypair = identity::load_or_create(&data_dir.join("identity.key"))?;
        let address = config.api.listen;
        let programs = config.api.key()?;
        let names = Names::open(data_dir.join("names.json"))?;
        let listener = TcpListener::bind(address).await.map_err(|source| DaemonError::Api { address, source })?;
        let repository = data_dir.join("ipfs");
        let swarm = Swarm::start(&keypair, &config.swarm, Some(&repository)).await?;
        let quota_bytes = config.store.quota_bytes;
        let store = Store::start(swarm.ipfs().clone(), StoreOptions { repository, quota_bytes });
        let store = store.await.map_err(Box::new)?;
        let devices = if config.jobs.serve {
            tokio::task::spawn_blocking(hardware::probe).await.map_err(DaemonError::Probe)?
        } else {
            Vec::new()
        };
        let fetch = fetch_options(&config.store);
        let memory = hardware::memory_bytes(&devices);
        let fetcher = Fetcher {
            swarm: swarm.clone(),
            store: store.clone(),
            options: fetch.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        let models = Models::new(&config.jobs, memory, fetcher.clone(), Ledger::new(data_dir.join("usage")));
        let holder = ExpertHolder::new(fetcher.clone(), models.clone(), config.jobs.serve);
        let stages = StageHolder::new(fetcher, models.clone(), config.jobs.serve);
        let scheduler = Scheduler::new(&config.jobs, models, store.clone(), swarm.clone());
        let node = Advertiser { swarm: swarm.clone(), store, scheduler: scheduler.clone(), devices };

        let local = listener.local_addr().map_err(|source| DaemonError::Api { address, source })?;
        let access = Access { address: local, token: format!("{:032x}", rand::random::<u128>()) };
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (idle, stopped) = (scheduler.models().clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = idle.drop_idle() => {}
                () = stopped.cancelled() => {}
            }
        });
        tasks.spawn(watched("adverts", node.clone().run(stop.clone()), stop.clone()));
        let told = records::run(node.store.clone(), swarm.peers().clone(), stop.clone());
        tasks.spawn(watched("provider records", told, stop.clone()));
        tasks.spawn(watched("peers' requests", serve::run(node.clone(), stop.clone()), stop.clone()));
        tasks.spawn(watched("experts for peers", holder.run(stop.clone()), stop.clone()));
        tasks.spawn(watched("layers for peers", stages.run(stop.clone()), stop.clone()));
        let keys = http::Keys { token: access.token.clone(), programs };
        let shared = http::Shared { node, fetch, keys, names, hub: Hub::new(data_dir) };
        tasks.spawn(watched("the loopback interface", http::run(shared, listener, stop.clone()), stop.clone()));

        let access_file = data_dir.join(ACCESS_FILE);
        write_access(&access_file, &access)?;
        tracing::info!(peer = %swarm.id(), api = %access.address, data_dir = %data_dir.display(), "node started");
        Ok(Self { access, access_file, swarm, scheduler, stop, tasks, _lock: lock })
    }

    /// How to reach its loopback interface.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// What whoever started it wants to know.
    ///
    /// # Errors
    /// When the swarm has stopped.
    pub async fn ready(&self) -> Result<Ready, SwarmError> {
        let peer = self.swarm.id();
        let addresses = self.swarm.listen_addresses().await?;
        Ok(Ready {
            peer: peer.to_string(),
            addresses: addresses.iter().map(|address| format!("{address}/p2p/{peer}")).collect(),
            api: self.access.address,
            token: self.access.token.clone(),
        })
    }

    /// Ends when a part of the daemon broke down.
    pub async fn broke_down(&self) {
        self.stop.cancelled().await;
    }

    /// Stops: takes no more jobs, lets those at work finish or hands them over, then leaves the swarm.
    pub async fn stop(mut self) {
        tracing::info!("node stopping");
        self.scheduler.drain().await;
        let usage = self.scheduler.models().usage().clone();
        if let Err(error) = tokio::task::spawn_blocking(move || usage.close()).await {
            tracing::warn!(%error, "the usage of experts was not written");
        }
        self.stop.cancel();
        // Readers of the last events get a moment to take them; a reader that hangs does not hold the node up.
        let end = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_EVENTS, end).await.is_err() {
            tracing::debug!("a reader did not take its last events");
        }
        if let Err(error) = std::fs::remove_file(&self.access_file) {
            tracing::warn!(%error, "the file that names the loopback interface was not removed");
        }
        self.swarm.stop().await;
        tracing::info!("node stopped");
    }
}

/// How long readers get to take a job's last events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// How a node fetches models.
pub fn fetch_options(config: &StoreConfig) -> FetchOptions {
    FetchOptions {
        window: config.fetch_window,
        stall: Duration::from_secs(config.fetch_stall_seconds),
        ..FetchOptions::default()
    }
}

/// A task whose failure takes the daemon down in order, instead of leaving half of it running.
async fn watched<E: std::fmt::Display>(
    what: &'static str,
    work: impl Future<Output = Result<(), E>>,
    stop: CancellationToken,
) {
    if let Err(error) = work.await {
        tracing::error!(%error, "{what} broke down");
    }
    stop.cancel();
}

fn lock(data_dir: &Path) -> Result<File, DaemonError> {
    let (path, file) = open_lock(data_dir, "lock")?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(DaemonError::Locked { path: data_dir.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(DaemonError::DataDir { path, source }),
    }
}

/// A file to lock in the data directory, which is made where it is missing.
///
/// # Errors
/// When the directory or the file cannot be made.
pub fn open_lock(data_dir: &Path, name: &str) -> Result<(PathBuf, File), DaemonError> {
    let at = |path: PathBuf| move |source| DaemonError::DataDir { path, source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(at(data_dir.to_owned()))?;
    let path = data_dir.join(name);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(at(path.clone()))?;
    Ok((path, file))
}

fn write_access(path: &Path, access: &Access) -> Result<(), DaemonError> {
    let at = |source| DaemonError::DataDir { path: path.to_owned(), source };
    let text = serde_json::to_string(access).map_err(|error| at(error.into()))?;
    whole_file::replace(path, text.as_bytes(), whole_file::FOR_OWNER).map_err(at)
}
