//! Provider records: a lookup drops those without an address, so a provider needs an external one.

use std::time::Duration;

use accel_node::store::StoreError;
use rust_ipfs::DhtMode;

use crate::node::{self, MIB, Node, data};

async fn dht_node() -> Node {
    let node = node::start().await;
    node.ipfs.dht_mode(DhtMode::Server).await.unwrap();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_with_an_external_address_is_found_and_fetched_from() {
    let (server, provider, fetcher) = (dht_node().await, dht_node().await, dht_node().await);
    for node in [&provider, &fetcher] {
        node.ipfs.add_peer((server.id, server.address().await)).await.unwrap();
        node.connect(&server).await;
    }
    let cid = provider.add_bytes("file.bin", &data(1, 2 * MIB)).await.root.cid;
    let error = provider.store.provide(&cid).await.unwrap_err();
    assert!(matches!(error, StoreError::Swarm { .. }), "{error}");
    provider.ipfs.add_external_address(provider.address().await).await.unwrap();
    provider.store.provide(&cid).await.unwrap();

    let found = fetcher.store.find_providers(&cid, Duration::from_secs(10)).await.unwrap();
    assert_eq!(found, [provider.id]);
    let report = fetcher.fetch(&cid, &[]).await.unwrap();
    assert_eq!(report.fetched_blocks, 3);
}
