//! Where a file is cut into blocks.
//!
//! `Fixed` is the plain profile that other IPFS importers use. `Tensor` cuts a weights file where its tensors begin,
//! so that equal tensors of two models are equal blocks, stored and fetched once, and a tensor can be fetched alone:
//!
//! * what precedes the first tensor (the header) has blocks of its own;
//! * a tensor of 256 KiB or more starts a block and is cut every 1 MiB from its own start; padding after it belongs to it;
//! * smaller tensors in a row share a block until the next would take it past 1 MiB; none shares one with a large
//!   tensor, so that inserting a bias does not move the cuts of a matrix.

/// No leaf is larger: bitswap messages end at 2 MiB, and other importers use this size.
pub(super) const LEAF_BYTES: u64 = 1 << 20;
/// Tensors of this size or more have blocks of their own.
const LARGE_TENSOR_BYTES: u64 = 256 << 10;

/// Where one tensor lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    pub offset: u64,
    pub bytes: u64,
}

/// Sizes of the leaves of a file of `file_bytes` in pieces of `chunk_bytes`. An empty file is one empty leaf.
pub(super) fn fixed(file_bytes: u64, chunk_bytes: u64) -> Vec<u64> {
    if file_bytes == 0 {
        return vec![0];
    }
    let mut leaves = Vec::new();
    push_run(&mut leaves, file_bytes, chunk_bytes);
    leaves
}

/// Sizes of the leaves of a weights file of `file_bytes` that holds `tensors`.
pub(super) fn by_tensor(file_bytes: u64, mut tensors: Vec<Extent>) -> Vec<u64> {
    tensors.retain(|tensor| tensor.bytes > 0 && tensor.offset < file_bytes);
    tensors.sort_unstable();
    tensors.dedup_by_key(|tensor| tensor.offset);
    let Some(first) = tensors.first() else {
        return fixed(file_bytes, LEAF_BYTES);
    };
    let mut leaves = Vec::new();
    push_run(&mut leaves, first.offset, LEAF_BYTES);
    let mut shared = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        // Up to the next tensor, so that padding and bytes no tensor claims are in some block.
        let end = tensors.get(index + 1).map_or(file_bytes, |next| next.offset);
        let span = end - tensor.offset;
        let large = tensor.bytes >= LARGE_TENSOR_BYTES || span > LEAF_BYTES;
        if shared > 0 && (large || shared + span > LEAF_BYTES) {
            leaves.push(shared);
            shared = 0;
        }
        if large {
            push_run(&mut leaves, span, LEAF_BYTES);
        } else {
            shared += span;
        }
    }
    if shared > 0 {
        leaves.push(shared);
    }
    leaves
}

fn push_run(leaves: &mut Vec<u64>, bytes: u64, chunk_bytes: u64) {
    let whole = bytes / chunk_bytes;
    leaves.extend((0..whole).map(|_| chunk_bytes));
    if !bytes.is_multiple_of(chunk_bytes) {
        leaves.push(bytes % chunk_bytes);
    }
}
