//! Models on disk: import, fetch by CID, reading, pins, quota and garbage.
//!
//! A model is a UnixFS DAG in the block files of the node's own IPFS repository, so whatever is stored here any IPFS
//! peer can fetch, and nothing is kept twice. `Store` is a cloneable handle; file work runs on the blocking pool, and
//! the runtime only waits. Parts, each with its own story: `add` (files to blocks), `add_car` and `car` (blocks from a
//! file), `export` (blocks and files out of it), `fetch` (blocks from peers),
//! `open` (ranges of files for loaders), `inspect`, `collect` (unpin, free), `provide` (who has what), `serve` (blocks
//! to other nodes). It runs no model, and reads weights only as far as to know where tensors lie.
//!
//! Pins and garbage collection are the store's own: the repository's collector (`with_gc`, `Ipfs::gc`) must stay off.

mod add;
mod add_car;
mod blocks;
mod car;
mod collect;
mod cut;
mod dag;
mod error;
mod export;
mod fetch;
mod inputs;
mod inspect;
mod layout;
mod open;
mod provide;
mod roots;
mod serve;
mod tree;
mod weights;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use cid::Cid;
use rust_ipfs::Ipfs;
use tokio::sync::watch;

use crate::peers::Peers;

pub use add::{AddOptions, AddProgress, AddReport, Chunker};
pub use collect::Freed;
pub use error::{NotFound, StoreError};
pub use export::Export;
pub use fetch::{FetchOptions, FetchProgress, FetchReport, Source, SourceShare};
pub use inputs::Lent;
pub use inspect::{Contents, Listed, Shown, ShownFile, ShownTensor, Usage};
pub use open::BlockFiles;
pub use roots::{Root, RootKind};

use blocks::Blocks;
use roots::Roots;

/// Name of the list of pinned roots in the repository's directory.
const ROOTS_FILE: &str = "accel-roots.json";

/// Where the store is and how large it may grow.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The directory of the IPFS repository, as given to the node's `set_path`.
    pub repository: PathBuf,
    /// Bytes of blocks it may hold.
    pub quota_bytes: u64,
    /// Who is reached how: blocks go by no relay.
    pub peers: Peers,
}

/// A handle on the models of this node.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    ipfs: Ipfs,
    peers: Peers,
    blocks: Blocks,
    roots: Mutex<Roots>,
    /// Wakes those who tell others what is here.
    changed: watch::Sender<()>,
    _serving: serve::Serving,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("directory", &self.blocks.directory()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store of a started node, and serves its blocks to other nodes while a handle lives.
    ///
    /// The node must have been built with this repository as its path, `with_bitswap` and `with_streams`.
    ///
    /// # Errors
    /// `Roots` when the list of pins is unreadable, `Io`, or `Swarm` when the node takes no streams.
    pub async fn start(ipfs: Ipfs, options: StoreOptions) -> Result<Self, StoreError> {
        let StoreOptions { repository, quota_bytes, peers } = options;
        let (blocks, roots) = blocking(move || {
            let blocks = Blocks::open(repository.join("blockstore"), quota_bytes)?;
            Ok((blocks, Roots::open(repository.join(ROOTS_FILE))?))
        })
        .await?;
        let serving = serve::Serving::start(&ipfs, blocks.clone(), peers.clone()).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                ipfs,
                peers,
                blocks,
                roots: Mutex::new(roots),
                changed: watch::Sender::default(),
                _serving: serving,
            }),
        })
    }

    /// Wakes when a root is pinned or let go.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// The pinned roots. Each was whole when it was pinned; [`Store::list`] looks again.
    ///
    /// # Errors
    /// `Cancelled` when the runtime stops.
    pub async fn pinned(&self) -> Result<Vec<Root>, StoreError> {
        let store = self.clone();
        blocking(move || Ok(store.roots().list().to_vec())).await
    }

    fn blocks(&self) -> &Blocks {
        &self.inner.blocks
    }

    fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    fn ipfs(&self) -> &Ipfs {
        &self.inner.ipfs
    }

    /// The list of roots, which also orders pinning against collecting. Blocking threads only.
    fn roots(&self) -> MutexGuard<'_, Roots> {
        // The list is replaced whole, so it is consistent after any panic of its holder.
        self.inner.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pinned_name(&self, cid: &Cid) -> Option<String> {
        let cid = dag::canonical(cid).ok()?;
        self.roots().get(&cid).map(|root| root.name.clone())
    }

    /// Pins a root that was fetched without a pin, and whose blocks are held, by open files for example.
    ///
    /// # Errors
    /// `Io` or `DiskFull`.
    pub async fn keep(&self, root: Root) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || {
            if store.roots().get(&root.cid).is_some_and(|known| root.part || !known.part) {
                return Ok(());
            }
            store.blocks().sync()?;
            store.pin(root, ())
        })
        .await
    }

    /// Pins a root, and only then lets go of the hold that kept its blocks.
    fn pin<H>(&self, root: Root, hold: H) -> Result<(), StoreError> {
        self.roots().insert(root)?;
        drop(hold);
        self.inner.changed.send_replace(());
        Ok(())
    }
}

/// Runs file work on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Cancelled)?
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
