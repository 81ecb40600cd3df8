//! An invite as one word that people copy and paste.
//!
//! `accel1` names the format, and base58 follows: what the invite holds, then the beginning of its SHA-256, so that a
//! mistyped word is told from an expired one. The word is a stranger's bytes: everything is bounded before it is decoded and
//! checked before it is used. It holds the key of the swarm, so it has no `Display` and is not part of any error.

use std::net::SocketAddr;
use std::time::Duration;

use accel_ipfs::SwarmKey;
use accel_protocol::frame;
use libp2p::PeerId;
use multihash_codetable::{Code, MultihashDigest};
use serde::{Deserialize, Serialize};

use super::address::{InvalidAddress, MemberAddress};
use super::name::{InvalidName, SwarmName};

/// What every invite of this format begins with.
pub const PREFIX: &str = "accel1";
/// Members that an invite names at most.
pub const ADDRESSES: usize = 8;
/// Characters of an invite at most; one that is full has about 600.
pub const CHARACTERS: usize = 2048;
const CHECKSUM_BYTES: usize = 4;

/// A word that is no invite, or one that is over.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// It is too long.
    #[error("an invite has at most {CHARACTERS} characters, and this is longer")]
    TooLong,
    /// It begins with something else.
    #[error("this is no invite: an invite is one word that begins with {PREFIX}")]
    NotOne,
    /// It is of a format that this program does not know.
    #[error("this invite is of another format than {PREFIX}, perhaps that of a newer version: update this program")]
    OtherFormat,
    /// Its characters do not belong together.
    #[error("this invite is mistyped or cut off: its checksum does not fit; copy the whole word again")]
    Mistyped,
    /// The checksum fits, but what it holds cannot be used.
    #[error("this invite cannot be used: {0}; whoever made it has to make another")]
    Content(String),
    /// Its time is over.
    #[error("this invite expired {} ago by this machine's clock; ask a member for another", in_words(*ago))]
    Expired {
        /// For how long.
        ago: Duration,
    },
}

impl From<InvalidName> for InviteError {
    fn from(error: InvalidName) -> Self {
        Self::Content(error.to_string())
    }
}

impl From<InvalidAddress> for InviteError {
    fn from(error: InvalidAddress) -> Self {
        Self::Content(error.to_string())
    }
}

/// What another machine needs to get into a private swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The swarm's name.
    pub name: SwarmName,
    /// Its key.
    pub key: SwarmKey,
    /// Members to join by: one at least, [`ADDRESSES`] at most.
    pub bootstrap: Vec<MemberAddress>,
    /// When it expires, in seconds since the Unix epoch.
    pub expires_unix: u64,
}

/// What a word holds.
#[derive(Serialize, Deserialize)]
struct Payload {
    name: String,
    key: [u8; 32],
    bootstrap: Vec<(Vec<u8>, SocketAddr)>,
    expires_unix: u64,
}

impl Invite {
    /// The invite as a word.
    ///
    /// # Errors
    /// When it names too few or too many members.
    pub fn to_word(&self) -> Result<String, InviteError> {
        check_count(self.bootstrap.len())?;
        let payload = Payload {
            name: self.name.to_string(),
            key: self.key.0,
            bootstrap: self.bootstrap.iter().map(|member| (member.peer.to_bytes(), member.address)).collect(),
            expires_unix: self.expires_unix,
        };
        let mut bytes = frame::encode(&payload).map_err(|error| InviteError::Content(error.to_string()))?;
        bytes.extend_from_slice(&checksum(&bytes));
        Ok(format!("{PREFIX}{}", bs58::encode(bytes).into_string()))
    }

    /// The invite that a word holds; white space around it does not matter. Whether it has expired is another question.
    ///
    /// # Errors
    /// When the word is none, is mistyped, or holds what cannot be used.
    pub fn from_word(word: &str) -> Result<Self, InviteError> {
        let word = word.trim();
        if word.len() > CHARACTERS {
            return Err(InviteError::TooLong);
        }
        let Some(encoded) = word.strip_prefix(PREFIX) else {
            let version = word.strip_prefix("accel").and_then(|rest| rest.chars().next());
            let is_other = version.is_some_and(|version| version.is_ascii_digit());
            return Err(if is_other { InviteError::OtherFormat } else { InviteError::NotOne });
        };
        let bytes = bs58::decode(encoded).into_vec().map_err(|_| InviteError::Mistyped)?;
        let (payload, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(InviteError::Mistyped)?;
        if checksum(payload) != *sum {
            return Err(InviteError::Mistyped);
        }
        // The decoder's own words may quote what it found, and that may be the key.
        let payload: Payload = frame::decode(payload)
            .map_err(|_| InviteError::Content("it does not hold what an invite holds".to_owned()))?;
        check_count(payload.bootstrap.len())?;
        let member = |(peer, address): (Vec<u8>, SocketAddr)| {
            let peer = PeerId::from_bytes(&peer).map_err(|_| InviteError::Content("a member has no peer id".into()))?;
            Ok(MemberAddress::new(peer, address)?)
        };
        Ok(Self {
            name: payload.name.parse()?,
            key: SwarmKey(payload.key),
            bootstrap: payload.bootstrap.into_iter().map(member).collect::<Result<_, InviteError>>()?,
            expires_unix: payload.expires_unix,
        })
    }

    /// Whether its time is over at `now_unix`.
    ///
    /// # Errors
    /// When it is, since when.
    pub fn check_expiry(&self, now_unix: u64) -> Result<(), InviteError> {
        match now_unix.checked_sub(self.expires_unix) {
            Some(seconds) => Err(InviteError::Expired { ago: Duration::from_secs(seconds) }),
            None => Ok(()),
        }
    }
}

fn check_count(members: usize) -> Result<(), InviteError> {
    if (1..=ADDRESSES).contains(&members) {
        return Ok(());
    }
    Err(InviteError::Content(format!("it names {members} members to join by, where 1 to {ADDRESSES} can be")))
}

/// Of the format's name too, so that a word of one format is none of another.
fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Code::Sha2_256.digest(&[PREFIX.as_bytes(), payload].concat());
    let mut sum = [0; CHECKSUM_BYTES];
    sum.iter_mut().zip(hash.digest()).for_each(|(to, from)| *to = *from);
    sum
}

/// A length of time in its two largest units.
pub fn in_words(time: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut seconds = time.as_secs();
    let mut words = Vec::new();
    for (unit, name) in UNITS {
        if seconds >= unit && words.len() < 2 {
            words.push(format!("{} {name}", seconds / unit));
            seconds %= unit;
        }
    }
    if words.is_empty() { "0 s".to_owned() } else { words.join(" ") }
}
