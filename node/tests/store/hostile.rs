//! DAGs that a stranger made up.

use accel_node::store::StoreError;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};
use rust_ipfs::Block;

use crate::node::{self, Node};

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![tag], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A UnixFS node of `kind` with these links (name, child, declared bytes).
fn unixfs(kind: u8, links: &[(&str, Cid, u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut data = [vec![0x08, kind, 0x18], varint(links.iter().map(|link| link.2).sum())].concat();
    for (name, cid, bytes) in links {
        let link = [field(0x0a, &cid.to_bytes()), field(0x12, name.as_bytes()), vec![0x18], varint(*bytes)].concat();
        out.extend(field(0x12, &link));
        if kind == 2 {
            data.extend([vec![0x20], varint(*bytes)].concat());
        }
    }
    out.extend(field(0x0a, &data));
    out
}

async fn put(node: &Node, codec: u64, data: Vec<u8>) -> Cid {
    let cid = Cid::new_v1(codec, Code::Sha2_256.digest(&data));
    node.ipfs.put_block(&Block::new(cid, data).unwrap()).await.unwrap()
}

async fn refused(build: impl AsyncFnOnce(&Node) -> Cid) -> StoreError {
    let (provider, fetcher) = (node::start().await, node::start().await);
    fetcher.connect(&provider).await;
    let cid = build(&provider).await;
    let error = fetcher.fetch(&cid, &[&provider]).await.unwrap_err();
    assert!(fetcher.store.list().await.unwrap().is_empty());
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_of_another_size_than_declared_are_refused() {
    let error = refused(async |node| {
        let leaf = put(node, 0x55, vec![1; 100]).await;
        put(node, 0x70, unixfs(2, &[("", leaf, 50), ("", leaf, 50)])).await
    })
    .await;
    assert!(matches!(error, StoreError::NotUnixFs { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_declarations_are_refused_before_anything_comes() {
    let error = refused(async |node| {
        let leaf = put(node, 0x55, vec![1; 100]).await;
        put(node, 0x70, unixfs(2, &[("", leaf, 1 << 60)])).await
    })
    .await;
    assert!(matches!(error, StoreError::Quota { needed, .. } if needed == 1 << 60), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_dags_are_refused() {
    let error = refused(async |node| {
        let mut cid = put(node, 0x55, vec![1; 100]).await;
        for _ in 0..40 {
            cid = put(node, 0x70, unixfs(2, &[("", cid, 100)])).await;
        }
        cid
    })
    .await;
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dag_that_doubles_at_every_level_is_refused() {
    let error = refused(async |node| {
        let mut cid = put(node, 0x55, Vec::new()).await;
        for _ in 0..30 {
            cid = put(node, 0x70, unixfs(2, &[("", cid, 0), ("", cid, 0)])).await;
        }
        cid
    })
    .await;
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_leave_the_directory_are_refused() {
    for name in ["..", "a/b", "", "a\\b"] {
        let error = refused(async |node| {
            let leaf = put(node, 0x55, vec![1; 100]).await;
            put(node, 0x70, unixfs(1, &[(name, leaf, 100)])).await
        })
        .await;
        assert!(matches!(error, StoreError::NotUnixFs { .. }), "{name}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_unixfs_is_named() {
    let error = refused(async |node| put(node, 0x70, vec![0xff; 40]).await).await;
    assert!(matches!(error, StoreError::NotUnixFs { .. }), "{error}");
    let node = node::start().await;
    let cbor = Cid::new_v1(0x71, Code::Sha2_256.digest(b"x"));
    assert!(matches!(node.fetch(&cbor, &[]).await, Err(StoreError::NotUnixFs { .. })));
}
