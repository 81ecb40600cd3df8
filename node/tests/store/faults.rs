//! Faults of the IPFS library and of peers that a fetch must survive; each once hung or succeeded wrongly.

use std::time::Duration;

use accel_node::store::{FetchOptions, Source, StoreError};
use futures::StreamExt;

use crate::node::{self, MIB, data, from};

/// Without the patched stream map, bitswap never served a peer again after its first disconnect.
#[tokio::test(flavor = "multi_thread")]
async fn bitswap_serves_a_peer_that_comes_back() {
    let (provider, fetcher) = (node::start().await, node::start().await);
    let cids = [
        provider.add_bytes("one.bin", &data(1, 2 * MIB)).await.root.cid,
        provider.add_bytes("two.bin", &data(2, 2 * MIB)).await.root.cid,
        provider.add_bytes("three.bin", &data(3, 2 * MIB)).await.root.cid,
    ];
    for cid in cids {
        fetcher.connect(&provider).await;
        let block = fetcher.ipfs.get_block(cid).provider(provider.id).timeout(Duration::from_secs(20)).await.unwrap();
        assert_eq!(*block.cid(), cid);
        let mut events = provider.ipfs.swarm_events().await.unwrap();
        fetcher.ipfs.disconnect(provider.id).await.unwrap();
        while provider.ipfs.is_connected(fetcher.id).await.unwrap() {
            events.next().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_streams_survive_a_reconnect() {
    let (provider, fetcher) = (node::start().await, node::start().await);
    for seed in 1..4 {
        let cid = provider.add_bytes("file.bin", &data(seed, 2 * MIB)).await.root.cid;
        fetcher.connect(&provider).await;
        assert_eq!(fetcher.fetch(&cid, &[&provider]).await.unwrap().fetched_blocks, 3);
        fetcher.ipfs.disconnect(provider.id).await.unwrap();
    }
}

/// The library's recursive fetch said `Ok` with one block of many missing.
#[tokio::test(flavor = "multi_thread")]
async fn one_missing_block_is_an_error_until_someone_has_it() {
    let (one, two, fetcher) = (node::start().await, node::start().await, node::start().await);
    let contents = data(1, 40 * MIB);
    let cid = one.add_bytes("file.bin", &contents).await.root.cid;
    two.add_bytes("file.bin", &contents).await;
    let (lost, path) = one.some_leaf();
    std::fs::remove_file(path).unwrap();
    fetcher.connect(&one).await;
    let options = FetchOptions { stall: Duration::from_secs(3), ..from(&[&one]) };
    let error = fetcher.store.fetch(&cid, options, |_| {}).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotFound(story) if story.missing == lost), "{error}");
    assert!(fetcher.store.list().await.unwrap().is_empty());

    fetcher.connect(&two).await;
    let report = fetcher.fetch(&cid, &[&one, &two]).await.unwrap();
    assert_eq!((report.fetched_blocks, report.here_blocks), (1, 40));
    assert_eq!(report.sources[0].source, Source::Peer(two.id));
}

/// A damaged local block made a fetch wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_local_blocks_are_replaced() {
    let (provider, fetcher) = (node::start().await, node::start().await);
    fetcher.connect(&provider).await;
    let cid = provider.add_bytes("file.bin", &data(1, 8 * MIB)).await.root.cid;
    fetcher.fetch(&cid, &[&provider]).await.unwrap();
    let files = fetcher.block_files();
    let (_, leaf) = fetcher.some_leaf();
    for path in [&leaf, &files[&cid]] {
        std::fs::write(path, b"damaged").unwrap();
    }
    let report = fetcher.fetch(&cid, &[&provider]).await.unwrap();
    assert_eq!((report.fetched_blocks, report.here_blocks), (2, 7));
    assert!(fetcher.store.list().await.unwrap()[0].complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_one_provider_are_refused_and_another_is_asked() {
    let (one, two, fetcher) = (node::start().await, node::start().await, node::start().await);
    let contents = data(1, 20 * MIB);
    let cid = one.add_bytes("file.bin", &contents).await.root.cid;
    two.add_bytes("file.bin", &contents).await;
    for (leaf, path) in one.block_files() {
        if leaf != cid {
            std::fs::write(path, vec![7; 1 << 20]).unwrap();
        }
    }
    fetcher.connect(&one).await;
    fetcher.connect(&two).await;
    fetcher.fetch(&cid, &[&one, &two]).await.unwrap();
    let opened = fetcher.store.open(&cid, None).await.unwrap();
    assert!(node::read_all(&opened, "file") == contents);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_leaves_is_replaced() {
    let (one, two, fetcher) = (node::start().await, node::start().await, node::start().await);
    let contents = data(1, 96 * MIB);
    let cid = one.add_bytes("file.bin", &contents).await.root.cid;
    two.add_bytes("file.bin", &contents).await;
    fetcher.connect(&one).await;
    fetcher.connect(&two).await;
    let options = from(&[&one, &two]);
    let (reached, wait) = tokio::sync::oneshot::channel();
    let mut reached = Some(reached);
    let store = fetcher.store.clone();
    let fetch = tokio::spawn(async move {
        let tell = move |progress: &accel_node::store::FetchProgress| {
            if progress.fetched_blocks == 10 {
                reached.take().into_iter().for_each(|reached| reached.send(()).unwrap());
            }
        };
        store.fetch(&cid, options, tell).await
    });
    wait.await.unwrap();
    one.ipfs.exit_daemon().await;
    let report = fetch.await.unwrap().unwrap();
    assert_eq!(report.fetched_blocks, 97);
}
