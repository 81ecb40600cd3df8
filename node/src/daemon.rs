//! The daemon: what starts in which order, and how it stops without losing a job.
//!
//! `accel-node`, the demo, and a command that finds no daemon all come in here.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libp2p::identity::Keypair;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::advert::Advertiser;
use crate::api::{ACCESS_FILE, Access, Ready};
use crate::config::{Config, ConfigError, StoreConfig};
use crate::data_dir::{self, DataDirError, at};
use crate::http;
use crate::hub::Hub;
use crate::identity::{self, IdentityError};
use crate::membership::{Membership, MembershipError};
use crate::names::{Names, NamesError};
use crate::scheduler::{Models, Scheduler};
use crate::shares::{ExpertHolder, Fetcher, StageHolder};
use crate::store::{FetchOptions, Store, StoreError, StoreOptions};
use crate::swarm::{self, Swarm, SwarmError};
use crate::usage::Ledger;
use crate::{hardware, records, rejoin, serve};

/// A daemon that does not start, or broke down.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
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
    /// The private swarm that the node is in cannot be told.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The node's own past keeps the blocks from its present.
    #[error("the blocks in {} are still in use by what ran before the swarm was changed; start the node again", path.display())]
    StillInUse {
        /// Where they are.
        path: PathBuf,
    },
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
    place: Place,
    node: Node,
}

/// What outlives a change of the swarm, so that programs that use the daemon keep their way to it.
#[derive(Debug)]
struct Place {
    keypair: Keypair,
    /// The loopback interface; what comes between two nodes waits in its queue.
    listener: std::net::TcpListener,
    access: Access,
    access_file: PathBuf,
    /// What requests have to carry.
    keys: http::Keys,
    /// Tells that another swarm is to be gone into.
    changes: watch::Sender<()>,
    /// How many nodes have been here, this one counted.
    starts: u64,
    /// Held as long as the daemon lives, so that no second one works on the same data.
    _lock: File,
}

/// The node itself, from start to stop in one swarm.
#[derive(Debug)]
struct Node {
    swarm: Swarm,
    scheduler: Scheduler,
    /// Stops the tasks that take and answer requests.
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Place {
    async fn take(config: &Config) -> Result<Self, DaemonError> {
        let data_dir = &config.data_dir;
        let lock = lock(data_dir)?;
        let keypair = identity::load_or_create(&data_dir.join("identity.key"))?;
        let address = config.api.listen;
        let failed = |source| DaemonError::Api { address, source };
        let listener = TcpListener::bind(address).await.and_then(TcpListener::into_std).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let access = Access { address: local, token: format!("{:032x}", rand::random::<u128>()) };
        let access_file = data_dir.join(ACCESS_FILE);
        let keys = http::Keys { token: access.token.clone(), programs: config.api.key()? };
        Ok(Self {
            keypair,
            listener,
            access,
            access_file,
            keys,
            changes: watch::Sender::new(()),
            starts: 0,
            _lock: lock,
        })
    }

    /// Says how to reach the daemon.
    fn announce(&self) -> Result<(), DaemonError> {
        let text = serde_json::to_vec(&self.access).map_err(|error| at(&self.access_file)(error.into()))?;
        Ok(data_dir::replace(&self.access_file, &text).map_err(at(&self.access_file))?)
    }

    fn withdraw(&self) {
        if let Err(error) = std::fs::remove_file(&self.access_file) {
            tracing::warn!(%error, "the file that names the loopback interface was not removed");
        }
    }
}

impl Node {
    async fn start(config: &Config, place: &Place) -> Result<Self, DaemonError> {
        let data_dir = &config.data_dir;
        let Place { keypair, access, .. } = place;
        let membership = Membership::load(data_dir)?;
        let swarm_config = match &membership {
            Some(membership) => swarm::private(&config.swarm, membership, keypair.public().to_peer_id())?,
            None => config.swarm.clone(),
        };
        let address = access.address;
        let listener = place.listener.try_clone().and_then(TcpListener::from_std);
        let listener = listener.map_err(|source| DaemonError::Api { address, source })?;
        let repository = data_dir.join("ipfs");
        let swarm = Swarm::start(keypair, &swarm_config, membership.as_ref(), Some(&repository)).await?;
        let quota_bytes = config.store.quota_bytes;
        let store =
            Store::start(swarm.ipfs().clone(), StoreOptions { repository, quota_bytes, peers: swarm.peers().clone() });
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
        let devices = hardware::within(devices, models.memory().budget_bytes());
        let holder = ExpertHolder::new(fetcher.clone(), models.clone(), config.jobs.serve);
        let stages = StageHolder::new(fetcher, models.clone(), config.jobs.serve);
        let scheduler = Scheduler::new(&config.jobs, models, store.clone(), swarm.clone(), devices.clone());
        let node = Advertiser { swarm: swarm.clone(), store, scheduler: scheduler.clone(), devices };

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
        let reached = swarm.clone().stay_reachable(stop.clone());
        tasks.spawn(watched("the way to this node", reached, stop.clone()));
        let joined = rejoin::run(swarm.clone(), swarm_config.bootstrap, stop.clone());
        tasks.spawn(watched("peers to join by", joined, stop.clone()));
        let told = records::run(node.store.clone(), swarm.peers().clone(), stop.clone());
        tasks.spawn(watched("provider records", told, stop.clone()));
        let names = Names::open(data_dir.join("names.json"), keypair.clone())?;
        let served = serve::run(node.clone(), names.clone(), stop.clone());
        tasks.spawn(watched("peers' requests", served, stop.clone()));
        tasks.spawn(watched("experts for peers", holder.run(stop.clone()), stop.clone()));
        tasks.spawn(watched("layers for peers", stages.run(stop.clone()), stop.clone()));
        let keys = place.keys.clone();
        let reload = Reload {
            data_dir: data_dir.clone(),
            running: membership,
            changes: place.changes.clone(),
            starts: place.starts,
        };
        let shared = http::Shared { node, fetch, keys, names, hub: Hub::new(data_dir), reload };
        tasks.spawn(watched("the loopback interface", http::run(shared, listener, stop.clone()), stop.clone()));
        let private = swarm.name().map(tracing::field::display);
        tracing::info!(peer = %swarm.id(), swarm = private, api = %address, data_dir = %data_dir.display(), "node started");
        Ok(Self { swarm, scheduler, stop, tasks })
    }

    /// Takes no more jobs, lets those at work finish or hands them over, and ends whatever else goes on.
    async fn wind_up(&mut self) {
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
    }

    async fn leave(mut self) {
        self.tasks.shutdown().await;
        self.swarm.stop().await;
        tracing::info!("node stopped");
    }
}

/// How a daemon is told that the membership in its data directory has changed.
#[derive(Clone, Debug)]
pub struct Reload {
    data_dir: PathBuf,
    running: Option<Membership>,
    changes: watch::Sender<()>,
    starts: u64,
}

impl Reload {
    /// How many times the node has been started in this process.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// Has the daemon go into the swarm that the data directory names, and gives which of its starts will be in it; none when
    /// nobody starts this daemon again, because a command brought it up for itself.
    ///
    /// # Errors
    /// When the membership cannot be read.
    pub fn ask(&self) -> Result<Option<u64>, MembershipError> {
        if Membership::load(&self.data_dir)? == self.running {
            return Ok(Some(self.starts));
        }
        Ok(self.changes.send(()).is_ok().then_some(self.starts + 1))
    }
}

impl Daemon {
    /// Starts everything.
    ///
    /// # Errors
    /// When any part does not start; what had started stops again.
    pub async fn start(config: &Config) -> Result<Self, DaemonError> {
        let mut place = Place::take(config).await?;
        place.starts += 1;
        let node = Node::start(config, &place).await?;
        place.announce()?;
        Ok(Self { place, node })
    }

    /// Stops the node and starts another in the swarm that the data directory names now. Its loopback interface stays where
    /// it is: requests that come meanwhile wait.
    ///
    /// # Errors
    /// When the node does not start again.
    pub async fn restart(self, config: &Config) -> Result<Self, DaemonError> {
        let Self { mut place, mut node } = self;
        node.wind_up().await;
        node.leave().await;
        place.starts += 1;
        let started = async {
            free(&config.data_dir.join("ipfs")).await?;
            Node::start(config, &place).await
        };
        match started.await {
            Ok(node) => Ok(Self { place, node }),
            Err(error) => {
                place.withdraw();
                Err(error)
            }
        }
    }

    /// Wakes when the daemon is to go into another swarm by [`Daemon::restart`]. Whoever holds this does that; a daemon of
    /// which nobody has asked for it stays in its swarm, and says so.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.place.changes.subscribe()
    }

    /// How to reach its loopback interface.
    pub fn access(&self) -> &Access {
        &self.place.access
    }

    /// What whoever started it wants to know.
    ///
    /// # Errors
    /// When the swarm has stopped.
    pub async fn ready(&self) -> Result<Ready, SwarmError> {
        let swarm = &self.node.swarm;
        let peer = swarm.id();
        let addresses = swarm.listen_addresses().await?;
        Ok(Ready {
            peer: peer.to_string(),
            addresses: addresses.iter().map(|address| format!("{address}/p2p/{peer}")).collect(),
            api: self.place.access.address,
            token: self.place.access.token.clone(),
        })
    }

    /// Ends when a part of the daemon broke down.
    pub async fn broke_down(&self) {
        self.node.stop.cancelled().await;
    }

    /// Stops: takes no more jobs, lets those at work finish or hands them over, then leaves the swarm.
    pub async fn stop(mut self) {
        self.node.wind_up().await;
        self.place.withdraw();
        self.node.leave().await;
    }
}

/// How long readers get to take a job's last events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// How long what a node leaves behind may hold on to its blocks.
const LET_GO: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Waits until the node that was stopped has let go of its repository: its tasks end when the runtime gets to them.
async fn free(repository: &Path) -> Result<(), DaemonError> {
    let path = repository.join("repo_lock");
    let begun = Instant::now();
    loop {
        let file = File::open(&path).map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) if begun.elapsed() < LET_GO => tokio::time::sleep(LOOK_AGAIN).await,
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(DaemonError::StillInUse { path: repository.to_owned() });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(at(&path)(source).into()),
        }
    }
}

/// How a node fetches models.
pub fn fetch_options(config: &StoreConfig) -> FetchOptions {
    FetchOptions {
        gateways: config.gateways.clone(),
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
    let (path, file) = data_dir::open_lock(data_dir, "lock")?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(DaemonError::Locked { path: data_dir.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(at(&path)(source).into()),
    }
}
