//! UnixFS in dag-pb, written and read by hand.
//!
//! Encoding follows Kubo byte for byte (links before data, an empty name on file links, unpacked block sizes), since
//! a CID is a hash of these bytes. Decoding takes what Kubo and Helia write, and nothing it cannot check: every
//! length is bounded by the block, every file's parts add up, every entry name is a plain file name. Sharded (HAMT)
//! directories and symbolic links are refused by name. It does no I/O.

use std::ops::Range;

use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};

use super::error::StoreError;

/// Multicodec of a block that is bytes of a file and nothing else.
pub(super) const RAW: u64 = 0x55;
/// Multicodec of a protobuf node with links.
pub(super) const DAG_PB: u64 = 0x70;
const SHA2_256: u64 = 0x12;

const UNIXFS_RAW: u64 = 0;
const UNIXFS_DIRECTORY: u64 = 1;
const UNIXFS_FILE: u64 = 2;

/// A child of a file node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub cid: Cid,
    /// Bytes of the file under this child.
    pub file_bytes: u64,
    /// Bytes of all blocks under this child, itself included.
    pub dag_bytes: u64,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub cid: Cid,
    /// Bytes of all blocks under this entry.
    pub dag_bytes: u64,
}

/// What a block says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// A file or a part of one: bytes of its own at `inline` in the block, then those of its parts.
    File { inline: Range<usize>, parts: Vec<Part>, bytes: u64 },
    /// A plain directory.
    Directory { entries: Vec<Entry> },
}

/// The CID of a block of `codec`.
pub(super) fn cid_of(codec: u64, data: &[u8]) -> Cid {
    Cid::new_v1(codec, Code::Sha2_256.digest(data))
}

/// Whether `data` are the bytes of `cid`. Only sha2-256 is known.
pub(super) fn matches(cid: &Cid, data: &[u8]) -> bool {
    cid.hash().code() == SHA2_256 && Code::Sha2_256.digest(data).digest() == cid.hash().digest()
}

/// The form in which a block is stored and compared: version 1 of the same content.
///
/// # Errors
/// `NotUnixFs` when the codec or the hash is none that the store reads.
pub(super) fn canonical(cid: &Cid) -> Result<Cid, StoreError> {
    let refuse = |found: String| StoreError::NotUnixFs { cid: *cid, found };
    if cid.hash().code() != SHA2_256 || cid.hash().size() != 32 {
        return Err(refuse(format!("hash function {:#x}", cid.hash().code())));
    }
    match cid.codec() {
        RAW | DAG_PB => Ok(Cid::new_v1(cid.codec(), *cid.hash())),
        other => Err(refuse(format!("codec {other:#x}"))),
    }
}

/// The node over `parts` of one file.
pub(super) fn encode_file(parts: &[Part]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.len() * 56 + 16);
    for part in parts {
        put_link(&mut out, &part.cid, "", part.dag_bytes);
    }
    let mut data = vec![0x08, UNIXFS_FILE as u8, 0x18];
    put_varint(&mut data, parts.iter().map(|part| part.file_bytes).sum());
    for part in parts {
        data.push(0x20);
        put_varint(&mut data, part.file_bytes);
    }
    put_bytes(&mut out, 0x0a, &data);
    out
}

/// The node of a directory; `entries` sorted by name.
pub(super) fn encode_directory(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        put_link(&mut out, &entry.cid, &entry.name, entry.dag_bytes);
    }
    put_bytes(&mut out, 0x0a, &[0x08, UNIXFS_DIRECTORY as u8]);
    out
}

fn put_link(out: &mut Vec<u8>, cid: &Cid, name: &str, dag_bytes: u64) {
    let mut link = Vec::with_capacity(56 + name.len());
    put_bytes(&mut link, 0x0a, &cid.to_bytes());
    put_bytes(&mut link, 0x12, name.as_bytes());
    link.push(0x18);
    put_varint(&mut link, dag_bytes);
    put_bytes(out, 0x12, &link);
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a number as LEB128, as multiformats and protocol buffers write it.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a verified block.
///
/// # Errors
/// `NotUnixFs`, saying what is wrong.
pub(super) fn decode(cid: &Cid, block: &[u8]) -> Result<Node, StoreError> {
    if cid.codec() == RAW {
        return Ok(Node::File { inline: 0..block.len(), parts: Vec::new(), bytes: block.len() as u64 });
    }
    decode_dag_pb(block).map_err(|found| StoreError::NotUnixFs { cid: *cid, found })
}

struct RawLink {
    cid: Cid,
    name: String,
    dag_bytes: u64,
}

#[derive(Default)]
struct UnixFs {
    kind: Option<u64>,
    inline: Range<usize>,
    bytes: Option<u64>,
    part_bytes: Vec<u64>,
}

fn decode_dag_pb(block: &[u8]) -> Result<Node, String> {
    let mut links = Vec::new();
    let mut data = None;
    let mut reader = Reader { block, at: 0, end: block.len() };
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (2, Value::Bytes(range)) => links.push(decode_link(block, range)?),
            (1, Value::Bytes(range)) => data = Some(range),
            _ => {}
        }
    }
    let unixfs = decode_unixfs(block, data.ok_or("a dag-pb node without UnixFS data")?)?;
    match unixfs.kind {
        Some(UNIXFS_FILE | UNIXFS_RAW) => file_node(unixfs, links),
        Some(UNIXFS_DIRECTORY) => directory_node(links),
        Some(3) => Err("a UnixFS metadata node".into()),
        Some(4) => Err("a symbolic link".into()),
        Some(5) => Err("a sharded (HAMT) directory".into()),
        other => Err(format!("UnixFS type {other:?}")),
    }
}

fn file_node(unixfs: UnixFs, links: Vec<RawLink>) -> Result<Node, String> {
    if unixfs.part_bytes.len() != links.len() {
        return Err(format!("a file node with {} links and {} block sizes", links.len(), unixfs.part_bytes.len()));
    }
    let parts: Vec<Part> = links
        .into_iter()
        .zip(&unixfs.part_bytes)
        .map(|(link, &file_bytes)| Part { cid: link.cid, file_bytes, dag_bytes: link.dag_bytes })
        .collect();
    let sum = parts
        .iter()
        .try_fold(unixfs.inline.len() as u64, |sum, part| sum.checked_add(part.file_bytes))
        .ok_or("block sizes that overflow")?;
    if unixfs.bytes.is_some_and(|bytes| bytes != sum) {
        return Err(format!("a file node that declares {:?} bytes over parts of {sum}", unixfs.bytes));
    }
    Ok(Node::File { inline: unixfs.inline, parts, bytes: sum })
}

fn directory_node(links: Vec<RawLink>) -> Result<Node, String> {
    let mut entries = Vec::with_capacity(links.len());
    for RawLink { cid, name, dag_bytes } in links {
        if !is_plain_name(&name) {
            return Err(format!("a directory entry named {name:?}"));
        }
        entries.push(Entry { name, cid, dag_bytes });
    }
    entries.sort_by(|left, right| left.name.cmp(&right.name));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(format!("two directory entries named {:?}", pair[0].name));
    }
    Ok(Node::Directory { entries })
}

/// A name that cannot leave its directory on any system.
pub(super) fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\\', '\0'])
}

fn decode_link(block: &[u8], range: Range<usize>) -> Result<RawLink, String> {
    let mut cid = None;
    let (mut name, mut dag_bytes) = (String::new(), 0);
    let mut reader = Reader { block, at: range.start, end: range.end };
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Value::Bytes(range)) => {
                let bytes = &block[range];
                let read = Cid::read_bytes(bytes).map_err(|error| format!("a link that is no CID ({error})"))?;
                if read.encoded_len() != bytes.len() {
                    return Err("a link with bytes after its CID".into());
                }
                cid = Some(read);
            }
            (2, Value::Bytes(range)) => {
                name = str::from_utf8(&block[range]).map_err(|_| "a link name that is not UTF-8")?.to_owned();
            }
            (3, Value::Varint(value)) => dag_bytes = value,
            _ => {}
        }
    }
    Ok(RawLink { cid: cid.ok_or("a link without a CID")?, name, dag_bytes })
}

fn decode_unixfs(block: &[u8], range: Range<usize>) -> Result<UnixFs, String> {
    let mut unixfs = UnixFs::default();
    let mut reader = Reader { block, at: range.start, end: range.end };
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Value::Varint(kind)) => unixfs.kind = Some(kind),
            (2, Value::Bytes(range)) => unixfs.inline = range,
            (3, Value::Varint(bytes)) => unixfs.bytes = Some(bytes),
            (4, Value::Varint(bytes)) => unixfs.part_bytes.push(bytes),
            (4, Value::Bytes(range)) => {
                let mut packed = Reader { block, at: range.start, end: range.end };
                while packed.at < packed.end {
                    unixfs.part_bytes.push(packed.varint()?);
                }
            }
            _ => {}
        }
    }
    Ok(unixfs)
}

enum Value {
    Varint(u64),
    Bytes(Range<usize>),
    Skipped,
}

/// A protobuf reader over a part of a block.
struct Reader<'a> {
    block: &'a [u8],
    at: usize,
    end: usize,
}

impl Reader<'_> {
    fn field(&mut self) -> Result<Option<(u64, Value)>, String> {
        if self.at >= self.end {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Skipped)?,
            2 => {
                let bytes = self.varint()?;
                Value::Bytes(self.take(bytes)?)
            }
            5 => self.take(4).map(|_| Value::Skipped)?,
            other => return Err(format!("protobuf wire type {other}")),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn take(&mut self, bytes: u64) -> Result<Range<usize>, String> {
        let left = self.end - self.at;
        if bytes > left as u64 {
            return Err(format!("a protobuf field of {bytes} bytes where {left} are left"));
        }
        let start = self.at;
        self.at += bytes as usize;
        Ok(start..self.at)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            if self.at >= self.end {
                return Err("a protobuf number that is cut off".into());
            }
            let byte = self.block[self.at];
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a protobuf number over 64 bits".into())
    }
}
