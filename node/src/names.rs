//! What models are called: on this node, kept in one small file, and on others, as they say it.
//!
//! The file is replaced whole, so it is the old table or the new one. What a peer calls something is asked of the peer, as
//! `NAME@PEER`; it signs what it says, so that whoever has heard it can pass it on while the peer is away.

mod signed;

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use accel_protocol::{
    ErrorCode, JobError, JobRequest, JobResponse, ModelName, ModelRef, NameRecord, NameRequest, SignedName,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};

use crate::advert::Advertiser;
use crate::data_dir;
use crate::hub::HubModel;
use crate::peers::unix_ms;
use crate::swarm::Swarm;

pub use signed::{sign, verify};

/// Names at most, so that the file stays small.
const NAMES: usize = 4096;
/// How long a peer may take to say what it calls so.
const ANSWER: Duration = Duration::from_secs(5);
/// Others that are asked while it is away.
const OTHERS: usize = 8;

/// Names that cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{}: {source}; mend the file, or remove it to begin without names", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// There are as many names as there can be.
    #[error("this node has {NAMES} names, and no room for another; remove one")]
    Full,
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// What people call it.
    pub name: ModelName,
    /// What it is.
    pub model: ModelRef,
}

/// The names of a node. Clones share them.
#[derive(Clone, Debug)]
pub struct Names {
    path: PathBuf,
    table: Arc<Mutex<BTreeMap<ModelName, ModelRef>>>,
    keypair: Keypair,
    heard: Arc<Mutex<HashMap<(PeerId, ModelName), Heard>>>,
}

/// What a peer has said of a name of its own.
#[derive(Clone, Debug)]
struct Heard {
    record: NameRecord,
    signed: SignedName,
}

impl Names {
    /// The names in a file; none where there is no file yet. Peers who ask are answered under `keypair`.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn open(path: PathBuf, keypair: Keypair) -> Result<Self, NamesError> {
        let table = match std::fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| NamesError::Damaged { path: path.clone(), source })?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(NamesError::File { path, source }),
        };
        Ok(Self { path, table: Arc::new(Mutex::new(table)), keypair, heard: Arc::default() })
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<ModelName, ModelRef>> {
        // The table is replaced whole, so a panic elsewhere leaves nothing half-done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All names, in their order.
    pub fn all(&self) -> Vec<Named> {
        self.table().iter().map(|(name, model)| Named { name: name.clone(), model: model.clone() }).collect()
    }

    /// The names of a model.
    pub fn of(&self, model: &ModelRef) -> Vec<ModelName> {
        self.table().iter().filter(|(_, named)| *named == model).map(|(name, _)| name.clone()).collect()
    }

    /// Gives a model a name, which another may have had. Blocks on the disk.
    ///
    /// # Errors
    /// When there is no room for another name, or the file cannot be written.
    pub fn set(&self, name: ModelName, model: ModelRef) -> Result<(), NamesError> {
        let mut table = self.table();
        if table.len() >= NAMES && !table.contains_key(&name) {
            return Err(NamesError::Full);
        }
        let mut changed = table.clone();
        changed.insert(name, model);
        self.replace(&mut table, changed)
    }

    /// Takes a name away; what it stood for, if it was one. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remove(&self, name: &ModelName) -> Result<Option<ModelRef>, NamesError> {
        let mut table = self.table();
        let mut changed = table.clone();
        let removed = changed.remove(name);
        self.replace(&mut table, changed)?;
        Ok(removed)
    }

    fn replace(
        &self,
        table: &mut BTreeMap<ModelName, ModelRef>,
        changed: BTreeMap<ModelName, ModelRef>,
    ) -> Result<(), NamesError> {
        let text = serde_json::to_vec_pretty(&changed)
            .map_err(|source| NamesError::Damaged { path: self.path.clone(), source })?;
        data_dir::replace(&self.path, &text).map_err(|source| NamesError::File { path: self.path.clone(), source })?;
        *table = changed;
        Ok(())
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<(PeerId, ModelName), Heard>> {
        // Entries come and go whole.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a peer says of a name of its own: this node of its own, and of others what it has heard and still counts.
    pub fn told(&self, request: &NameRequest) -> Option<SignedName> {
        let peer: PeerId = request.peer.parse().ok()?;
        if peer == self.keypair.public().to_peer_id() {
            let model = self.table().get(&request.name).cloned()?;
            return sign(&self.keypair, &request.name, &model, unix_ms());
        }
        let heard = self.heard().get(&(peer, request.name.clone())).cloned()?;
        (heard.record.expires_unix_ms > unix_ms()).then_some(heard.signed)
    }

    /// What `peer` calls so: by itself, or, while it is away, by what others have heard of it.
    async fn ask(&self, swarm: &Swarm, peer: PeerId, name: ModelName) -> Result<ModelRef, JobError> {
        if peer == swarm.id() {
            let own = self.table().get(&name).cloned();
            return own.ok_or_else(|| JobError::new(ErrorCode::ModelNotFound, format!("{name} is no name here")));
        }
        let request = JobRequest::Name(Box::new(NameRequest { peer: peer.to_string(), name: name.clone() }));
        let away = match swarm.request(peer, &request, ANSWER).await {
            Ok(JobResponse::Name(Some(told))) => return self.hear(peer, &name, *told),
            Ok(JobResponse::Name(None)) => {
                let words = format!("{peer} calls nothing {name}");
                return Err(JobError::new(ErrorCode::ModelNotFound, words));
            }
            Ok(_) => format!("{peer} answered something else"),
            Err(error) => error.to_string(),
        };
        let others =
            swarm.peers().all().into_iter().filter(|(_, known)| known.is_connected() && known.advert.is_some());
        let asked: FuturesUnordered<_> =
            others.take(OTHERS).map(|(other, _)| swarm.request(other, &request, ANSWER)).collect();
        let told: Vec<_> = asked.collect().await;
        for answer in told {
            if let Ok(JobResponse::Name(Some(told))) = answer {
                // What a third says may be wrong, or older than what is known.
                let _refused = self.hear(peer, &name, *told);
            }
        }
        let known = self.heard().get(&(peer, name.clone())).cloned();
        match known.filter(|heard| heard.record.expires_unix_ms > unix_ms()) {
            Some(heard) => Ok(heard.record.model),
            None => {
                let words = format!("{away}; and nobody else has heard what it calls {name}");
                Err(JobError::new(ErrorCode::ModelNotFound, words))
            }
        }
    }

    /// Takes in what `peer` has said, whoever passed it on; the latest counts.
    fn hear(&self, peer: PeerId, name: &ModelName, told: SignedName) -> Result<ModelRef, JobError> {
        let record = verify(&told, peer, name, unix_ms())
            .map_err(|reason| JobError::new(ErrorCode::InvalidRequest, format!("{name}@{peer}: {reason}")))?;
        let mut heard = self.heard();
        if heard.len() >= NAMES {
            heard.retain(|_, heard| heard.record.expires_unix_ms > unix_ms());
        }
        let key = (peer, name.clone());
        let is_later = heard.get(&key).is_none_or(|known| known.record.signed_unix_ms <= record.signed_unix_ms);
        let model = record.model.clone();
        if is_later && (heard.len() < NAMES || heard.contains_key(&key)) {
            heard.insert(key, Heard { record, signed: told });
        }
        Ok(model)
    }

    /// The model that a text names: by its CID, by a name given here, by what a peer calls it (`NAME@PEER`), or by what its
    /// file or directory was called when it was imported, if only one was called so.
    ///
    /// # Errors
    /// When nothing is called so, or several things here are.
    pub async fn resolve(&self, node: &Advertiser, text: &str) -> Result<ModelRef, JobError> {
        if let Ok(model) = text.parse() {
            return Ok(model);
        }
        if let Some((name, peer)) = text.rsplit_once('@')
            && let Ok(peer) = peer.parse()
        {
            let invalid = |error| JobError::new(ErrorCode::InvalidRequest, error);
            return self.ask(&node.swarm, peer, name.parse().map_err(invalid)?).await;
        }
        // What came from the hub is known by the hub's name too, as whoever pulled it wrote it.
        let of_hub = text.parse().ok().and_then(|model: HubModel| model.name().ok());
        let name: Option<ModelName> = of_hub.or_else(|| text.parse().ok());
        if let Some(model) = name.and_then(|name| self.table().get(&name).cloned()) {
            return Ok(model);
        }
        let pinned = node.store.pinned().await.map_err(JobError::from)?;
        let called: Vec<_> = pinned.iter().filter(|root| root.name == text).collect();
        let words = match called.as_slice() {
            [one] => return Ok(ModelRef::from(one.cid)),
            [] => format!("{text:?} is no model that is known here; name one by its CID, or see accel-cli ls"),
            several => format!("{text:?} is what {} models here were called; name one by its CID", several.len()),
        };
        Err(JobError::new(ErrorCode::ModelNotFound, words))
    }
}

impl From<NamesError> for JobError {
    fn from(error: NamesError) -> Self {
        let code = match &error {
            NamesError::Full => ErrorCode::OutOfResources,
            NamesError::File { source, .. } if source.kind() == ErrorKind::StorageFull => ErrorCode::OutOfResources,
            NamesError::File { .. } | NamesError::Damaged { .. } => ErrorCode::Internal,
        };
        Self::new(code, error)
    }
}
