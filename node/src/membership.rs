//! The private swarm that a node is in: its name, its key, and members to join by.
//!
//! They are kept in one file of the data directory, so that the next start is in the swarm too. Whoever changes the file
//! tells the daemon, if one runs; nothing here does. The key is all that keeps strangers out: it wraps every connection,
//! and who has had it keeps it until the swarm gets another. An invite's expiry is checked by who joins by it.

mod address;
mod name;
mod token;

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

pub use accel_ipfs::SwarmKey;
pub use address::{InvalidAddress, MemberAddress, listening, reachable, tcp_socket};
pub use name::{InvalidName, SwarmName};
pub use token::{ADDRESSES, CHARACTERS, Invite, InviteError, PREFIX};

use crate::data_dir::{self, DataDirError, at};

const FILE: &str = "swarm.json";
const LOCK: &str = "swarm.lock";
/// Bytes of the file at most.
const FILE_BYTES: usize = 16 << 10;

/// A membership that cannot be kept, or a change that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The file is not what it should be.
    #[error("{}: {reason}; restore it, or remove it to be in no private swarm", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong; nothing of the key.
        reason: String,
    },
    /// The node is in a swarm, where it should be in none.
    #[error("this node is in the private swarm {name}: accel-cli swarm leave first")]
    InAnother {
        /// Its name.
        name: SwarmName,
    },
    /// The swarm has the name of the one that the node is in, but not its key.
    #[error(
        "this node is in the private swarm {name} by another key, which is another swarm or was changed: accel-cli swarm \
         leave first"
    )]
    OtherKey {
        /// The name.
        name: SwarmName,
    },
    /// The node is in no private swarm.
    #[error("this node is in no private swarm: accel-cli swarm create NAME, or swarm join TOKEN")]
    InNone,
    /// Nobody could be reached by an invite.
    #[error(
        "no address is known at which others reach this node by TCP: start it first, or give one by --address, as in \
         --address /ip4/192.0.2.7/tcp/4601"
    )]
    NoAddress,
    /// The invite cannot be used.
    #[error(transparent)]
    Invite(#[from] InviteError),
}

impl MembershipError {
    /// Whether whoever asked for the change is to ask for something else, as against this machine being at fault.
    pub fn is_a_wrong_request(&self) -> bool {
        !matches!(self, Self::DataDir(_) | Self::Invalid { .. })
    }
}

/// The private swarm that a node is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its name.
    pub name: SwarmName,
    /// Its key.
    pub key: SwarmKey,
    /// Members to join by.
    pub bootstrap: Vec<MemberAddress>,
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFormat {
    name: String,
    /// In base58.
    key: String,
    bootstrap: Vec<Multiaddr>,
}

impl Membership {
    /// The membership that is kept in `data_dir`; none of a node that is in no private swarm.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what it should be.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, MembershipError> {
        let path = data_dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(&path)(error).into()),
        };
        Self::parse(&bytes).map(Some).map_err(|reason| MembershipError::Invalid { path, reason })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > FILE_BYTES {
            return Err(format!("expected at most {FILE_BYTES} bytes, found {}", bytes.len()));
        }
        // What serde says may quote the key; where it stumbled does not.
        let file: FileFormat = serde_json::from_slice(bytes)
            .map_err(|error| format!("line {}, column {} cannot be read", error.line(), error.column()))?;
        let mut key = [0; 32];
        if bs58::decode(&file.key).onto(&mut key) != Ok(key.len()) {
            return Err("the key is not 32 bytes in base58".to_owned());
        }
        let member = |address: &Multiaddr| MemberAddress::parse(address, None).map_err(|error| error.to_string());
        Ok(Self {
            name: file.name.parse().map_err(|error: InvalidName| error.to_string())?,
            key: SwarmKey(key),
            bootstrap: file.bootstrap.iter().map(member).collect::<Result<_, _>>()?,
        })
    }

    fn save(&self, data_dir: &Path) -> Result<(), MembershipError> {
        let path = data_dir.join(FILE);
        let file = FileFormat {
            name: self.name.to_string(),
            key: bs58::encode(self.key.0).into_string(),
            bootstrap: self.bootstrap.iter().map(|member| member.to_multiaddr()).collect(),
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|error| at(&path)(error.into()))?;
        Ok(data_dir::replace(&path, &text).map_err(at(&path))?)
    }

    /// An invite to this swarm by a member at `own`, and by those that this node joined by.
    ///
    /// # Errors
    /// When nobody could be reached by it.
    pub fn invite(&self, own: Vec<MemberAddress>, expires_unix: u64) -> Result<Invite, MembershipError> {
        if own.is_empty() {
            return Err(MembershipError::NoAddress);
        }
        let mut bootstrap = reachable(own.into_iter().chain(self.bootstrap.iter().copied()));
        bootstrap.truncate(ADDRESSES);
        Ok(Invite { name: self.name.clone(), key: self.key.clone(), bootstrap, expires_unix })
    }
}

/// Makes a private swarm and goes into it.
///
/// # Errors
/// When the node is in one already, or the file cannot be written.
pub fn create(data_dir: &Path, name: SwarmName) -> Result<Membership, MembershipError> {
    let _lock = lock(data_dir)?;
    if let Some(current) = Membership::load(data_dir)? {
        return Err(MembershipError::InAnother { name: current.name });
    }
    let created = Membership { name, key: SwarmKey(rand::random()), bootstrap: Vec::new() };
    created.save(data_dir)?;
    Ok(created)
}

/// Goes into the swarm of `invite`. A member only takes other members to join by from it, whether it has expired or not.
///
/// # Errors
/// When the invite has expired at `now_unix`, the node is in another swarm, or the file cannot be written.
pub fn join(data_dir: &Path, invite: &Invite, now_unix: u64) -> Result<Membership, MembershipError> {
    let _lock = lock(data_dir)?;
    let name = match Membership::load(data_dir)? {
        Some(current) if current.key == invite.key => current.name,
        Some(current) if current.name == invite.name => return Err(MembershipError::OtherKey { name: current.name }),
        Some(current) => return Err(MembershipError::InAnother { name: current.name }),
        None => {
            invite.check_expiry(now_unix)?;
            invite.name.clone()
        }
    };
    let joined = Membership { name, key: invite.key.clone(), bootstrap: invite.bootstrap.clone() };
    joined.save(data_dir)?;
    Ok(joined)
}

/// Leaves the private swarm, and gives what it was.
///
/// # Errors
/// When the node is in none, or the file cannot be removed.
pub fn leave(data_dir: &Path) -> Result<Membership, MembershipError> {
    let _lock = lock(data_dir)?;
    let left = Membership::load(data_dir)?.ok_or(MembershipError::InNone)?;
    let path = data_dir.join(FILE);
    std::fs::remove_file(&path).and_then(|()| data_dir::sync_directory_of(&path)).map_err(at(&path))?;
    Ok(left)
}

/// Gives the swarm another key. Nobody but this node has it yet.
///
/// # Errors
/// When the node is in no private swarm, or the file cannot be written.
pub fn rotate_key(data_dir: &Path) -> Result<Membership, MembershipError> {
    let _lock = lock(data_dir)?;
    let current = Membership::load(data_dir)?.ok_or(MembershipError::InNone)?;
    let rotated = Membership { key: SwarmKey(rand::random()), ..current };
    rotated.save(data_dir)?;
    Ok(rotated)
}

/// Held while the file is read and written, so that of two changes at once none is lost.
fn lock(data_dir: &Path) -> Result<File, MembershipError> {
    let (path, file) = data_dir::open_lock(data_dir, LOCK)?;
    file.lock().map_err(at(&path))?;
    Ok(file)
}
