//! CAR files: a DAG's blocks one after the other, each behind its CID.
//!
//! Version 1 is written; of version 2, which puts a version 1 between a header and an index, that part is read
//! (<https://ipld.io/specs/transport/car/>). Whoever wrote the file is a stranger, so lengths are bounded, and a block is
//! handed out only when its bytes are those of its CID. It knows no store and no network.

use std::io::{self, Read};

use cid::Cid;
use serde::{Deserialize, Serialize};

use super::blocks::MAX_BLOCK_BYTES;
use super::dag;
use super::error::StoreError;

/// A header of so many bytes names more roots than anybody packs.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// The longest CID: a version, a codec, and a hash of 64 bytes.
const MAX_CID_BYTES: u64 = 128;
/// What stands between the first bytes of version 2 and its version 1: characteristics, and three numbers.
const V2_HEADER_BYTES: usize = 40;
const V2_PRAGMA_BYTES: u64 = 11;

/// The order of the fields is that of the canonical form.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roots: Vec<Cid>,
    version: u64,
}

/// The beginning of a file with one root.
pub(super) fn header(root: &Cid) -> Result<Vec<u8>, StoreError> {
    let header = Header { roots: vec![*root], version: 1 };
    let header = serde_ipld_dagcbor::to_vec(&header).map_err(|error| invalid(error.to_string()))?;
    let mut bytes = Vec::new();
    dag::put_varint(&mut bytes, header.len() as u64);
    bytes.extend(header);
    Ok(bytes)
}

/// What stands before a block of so many bytes.
pub(super) fn section(cid: &Cid, block_bytes: u64) -> Vec<u8> {
    let cid = cid.to_bytes();
    let mut bytes = Vec::new();
    dag::put_varint(&mut bytes, cid.len() as u64 + block_bytes);
    bytes.extend(cid);
    bytes
}

fn invalid(found: impl Into<String>) -> StoreError {
    StoreError::Car { found: found.into() }
}

/// The blocks of a file, as they come.
pub(super) struct CarReader<R> {
    source: io::Take<R>,
    roots: Vec<Cid>,
}

impl<R: Read> CarReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// `Car` when it is none, or the source breaks off.
    pub fn open(source: R) -> Result<Self, StoreError> {
        let mut reader = Self { source: source.take(u64::MAX), roots: Vec::new() };
        let mut header = reader.header()?;
        if header.version == 2 {
            let mut fields = [0; V2_HEADER_BYTES];
            reader.exactly(&mut fields)?;
            let number = |at: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&fields[at..at + 8]);
                u64::from_le_bytes(bytes)
            };
            let (offset, bytes) = (number(16), number(24));
            let gap = offset.checked_sub(V2_PRAGMA_BYTES + V2_HEADER_BYTES as u64);
            let gap = gap.ok_or_else(|| invalid(format!("its blocks begin at {offset}, inside the header")))?;
            let skipped = io::copy(&mut reader.source.by_ref().take(gap), &mut io::sink()).map_err(broken)?;
            if skipped < gap {
                return Err(invalid("it ends before its first block"));
            }
            reader.source.set_limit(bytes);
            header = reader.header()?;
        }
        if header.version != 1 {
            return Err(invalid(format!("version {}, expected 1 or 2", header.version)));
        }
        reader.roots = header.roots;
        Ok(reader)
    }

    /// The roots that it names.
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    /// The next block, in the form in which blocks are stored.
    ///
    /// # Errors
    /// `Car` when there is something else, `NotUnixFs` for a block of a kind that the store does not keep.
    pub fn next(&mut self) -> Result<Option<(Cid, Vec<u8>)>, StoreError> {
        let Some(length) = self.length(MAX_BLOCK_BYTES + MAX_CID_BYTES)? else {
            return Ok(None);
        };
        let mut bytes = vec![0; length as usize];
        self.exactly(&mut bytes)?;
        let mut rest = bytes.as_slice();
        let cid = Cid::read_bytes(&mut rest).map_err(|error| invalid(format!("a block without a CID: {error}")))?;
        let cid = dag::canonical(&cid)?;
        let block = rest.to_vec();
        if block.len() as u64 > MAX_BLOCK_BYTES {
            return Err(invalid(format!("block {cid} has {} bytes, over {MAX_BLOCK_BYTES}", block.len())));
        }
        if !dag::matches(&cid, &block) {
            return Err(invalid(format!("block {cid} has other bytes than its CID says")));
        }
        Ok(Some((cid, block)))
    }

    fn header(&mut self) -> Result<Header, StoreError> {
        let length = self.length(MAX_HEADER_BYTES)?.ok_or_else(|| invalid("nothing"))?;
        let mut bytes = vec![0; length as usize];
        self.exactly(&mut bytes)?;
        serde_ipld_dagcbor::from_slice(&bytes).map_err(|_| invalid("no header; is it a CAR file?"))
    }

    /// A length; none at the end.
    fn length(&mut self, limit: u64) -> Result<Option<u64>, StoreError> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let mut byte = [0];
            match self.source.read_exact(&mut byte) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && shift == 0 => return Ok(None),
                Err(error) => return Err(broken(error)),
            }
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return if value <= limit {
                    Ok(Some(value))
                } else {
                    Err(invalid(format!("a piece of {value} bytes, over {limit}; is it a CAR file?")))
                };
            }
        }
        Err(invalid("a length over 63 bits; is it a CAR file?"))
    }

    fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.source.read_exact(bytes).map_err(broken)
    }
}

fn broken(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => invalid("an end in the middle of a piece; it is not whole"),
        _ => invalid(error.to_string()),
    }
}
