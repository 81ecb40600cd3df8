//! What a peer says of its names, signed, so that others can pass it on.

use accel_protocol::limits::{NAME_LIFE_MS, NAME_RECORD_BYTES};
use accel_protocol::name::NAME_DOMAIN;
use accel_protocol::{ModelName, ModelRef, NameRecord, SignedName, frame};
use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey};

/// What this node says of a name of its own; none where it cannot be signed.
pub fn sign(keypair: &Keypair, name: &ModelName, model: &ModelRef, now_unix_ms: u64) -> Option<SignedName> {
    let record = NameRecord {
        name: name.clone(),
        model: model.clone(),
        signed_unix_ms: now_unix_ms,
        expires_unix_ms: now_unix_ms + NAME_LIFE_MS,
    };
    let record = frame::encode(&record).ok()?;
    let signature = keypair.sign(&signed_bytes(&record)).ok()?;
    Some(SignedName { record, key: keypair.public().encode_protobuf(), signature })
}

/// What `peer` has said of its `name`.
///
/// # Errors
/// Why it has not: another signed it, it is about something else, or it counts no more; in words.
pub fn verify(told: &SignedName, peer: PeerId, name: &ModelName, now_unix_ms: u64) -> Result<NameRecord, &'static str> {
    if told.record.len() > NAME_RECORD_BYTES {
        return Err("a record over its size");
    }
    let key = PublicKey::try_decode_protobuf(&told.key).map_err(|_| "no key of libp2p")?;
    if key.to_peer_id() != peer || !key.verify(&signed_bytes(&told.record), &told.signature) {
        return Err("not signed by that peer");
    }
    let record: NameRecord = frame::decode(&told.record).map_err(|_| "a record that cannot be read")?;
    if record.name != *name {
        return Err("a record of another name");
    }
    // Clocks differ; one that claims to live much longer than it may is no record of this kind.
    let lives = record.expires_unix_ms > now_unix_ms && record.expires_unix_ms <= now_unix_ms + 2 * NAME_LIFE_MS;
    if lives { Ok(record) } else { Err("a record that has expired, or lives too long") }
}

fn signed_bytes(record: &[u8]) -> Vec<u8> {
    [NAME_DOMAIN, record].concat()
}
