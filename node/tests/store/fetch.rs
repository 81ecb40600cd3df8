//! Fetching from peers of ours and from peers that speak bitswap only.

use std::time::Duration;

use accel_backends::files::ModelFiles;
use accel_node::store::{AddOptions, FetchOptions, FetchProgress, Source, StoreError};
use cid::Cid;

use crate::node::{self, MIB, Node, data, from, safetensors};

async fn pair() -> (Node, Node) {
    let (provider, fetcher) = (node::start().await, node::start().await);
    fetcher.connect(&provider).await;
    (provider, fetcher)
}

/// A provider that speaks bitswap only: its blocks are there, its store is not.
async fn without_store(provider: Node) -> (rust_ipfs::Ipfs, rust_ipfs::PeerId, tempfile::TempDir) {
    let Node { ipfs, store, id, directory } = provider;
    drop(store);
    (ipfs, id, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_arrives_whole() {
    let (provider, fetcher) = pair().await;
    let weights = safetensors(&[("embed", data(1, 5 * MIB)), ("norm", data(2, 64))]);
    provider.write("model/model.safetensors", &weights);
    let config = provider.write("model/config.json", b"{}");
    let added = provider.add(config.parent().unwrap(), AddOptions::default()).await.unwrap();
    let report = fetcher.fetch(&added.root.cid, &[&provider]).await.unwrap();
    assert_eq!((report.root.bytes, report.root.blocks), (added.root.bytes, added.root.blocks));
    assert_eq!((report.fetched_blocks, report.here_blocks, report.duplicate_blocks), (added.root.blocks, 0, 0));
    assert_eq!((report.sources.len(), &report.sources[0].source), (1, &Source::Peer(provider.id)));
    assert_eq!(report.sources[0].bytes, report.fetched_bytes);
    let opened = fetcher.store.open(&added.root.cid, None).await.unwrap();
    assert!(node::read_all(&opened, "model.safetensors") == weights);
    assert_eq!(fetcher.store.usage().used_bytes, provider.store.usage().used_bytes);

    let again = fetcher.fetch(&added.root.cid, &[]).await.unwrap();
    assert_eq!((again.fetched_blocks, again.here_bytes), (0, report.fetched_bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_with_bitswap_only_are_used() {
    let (provider, fetcher) = pair().await;
    let contents = data(1, 9 * MIB);
    let cid = provider.add_bytes("file.bin", &contents).await.root.cid;
    let (_ipfs, id, _directory) = without_store(provider).await;
    let options = FetchOptions { providers: vec![id], ..FetchOptions::default() };
    let report = fetcher.store.fetch(&cid, options, |_| {}).await.unwrap();
    assert_eq!((report.fetched_blocks, &report.sources[0].source), (10, &Source::Bitswap));
    assert_eq!(fetcher.store.usage().used_bytes, report.fetched_bytes);
    let opened = fetcher.store.open(&cid, None).await.unwrap();
    assert!(node::read_all(&opened, "file") == contents);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_providers_share_the_work() {
    let (one, two, fetcher) = (node::start().await, node::start().await, node::start().await);
    let contents = data(1, 64 * MIB);
    let cid = one.add_bytes("file.bin", &contents).await.root.cid;
    assert_eq!(two.add_bytes("file.bin", &contents).await.root.cid, cid);
    fetcher.connect(&one).await;
    fetcher.connect(&two).await;
    let report = fetcher.fetch(&cid, &[&one, &two]).await.unwrap();
    assert_eq!(report.duplicate_blocks, 0);
    for provider in [&one, &two] {
        let share = report.sources.iter().find(|share| share.source == Source::Peer(provider.id)).unwrap();
        assert!(share.bytes * 10 >= report.fetched_bytes * 3, "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_fetch_goes_on_where_it_stopped() {
    let (provider, fetcher) = pair().await;
    let cid = provider.add_bytes("file.bin", &data(1, 64 * MIB)).await.root.cid;
    let (reached, wait) = tokio::sync::oneshot::channel();
    let mut reached = Some(reached);
    let (store, options) = (fetcher.store.clone(), from(&[&provider]));
    let fetch = tokio::spawn(async move {
        let tell = move |progress: &FetchProgress| {
            if progress.fetched_blocks == 8 {
                reached.take().into_iter().for_each(|reached| reached.send(()).unwrap());
            }
        };
        store.fetch(&cid, options, tell).await
    });
    wait.await.unwrap();
    fetch.abort();
    assert!(fetch.await.unwrap_err().is_cancelled());
    let report = fetcher.fetch(&cid, &[&provider]).await.unwrap();
    assert!(report.here_bytes >= 7 * MIB, "{report:?}");
    assert_eq!(report.here_bytes + report.fetched_bytes, fetcher.store.usage().used_bytes);
    assert_eq!(report.here_blocks + report.fetched_blocks, 65);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_is_kept_before_bytes_come() {
    let provider = node::start().await;
    let fetcher = node::start_with_quota(6 * MIB).await;
    fetcher.connect(&provider).await;
    let small = provider.add_bytes("small.bin", &data(1, 4 * MIB)).await.root.cid;
    let large = provider.add_bytes("large.bin", &data(2, 4 * MIB)).await.root.cid;
    fetcher.fetch(&small, &[&provider]).await.unwrap();
    let used = fetcher.store.usage().used_bytes;
    let error = fetcher.fetch(&large, &[&provider]).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Quota { quota, needed, .. } if quota == 6 * MIB && needed == 4 * MIB),
        "{error}"
    );
    // The node over the leaves came, no leaf did.
    assert!(fetcher.store.usage().used_bytes < used + 1024);
    fetcher.store.remove(&small).await.unwrap();
    fetcher.fetch(&large, &[&provider]).await.unwrap();
    assert!(fetcher.store.usage().used_bytes <= 6 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_comes_alone() {
    let (provider, fetcher) = pair().await;
    let tensors = [("a", data(1, 8 * MIB)), ("b", data(2, 2 * MIB)), ("c", data(3, 8 * MIB))];
    let cid = provider.add_bytes("model.safetensors", &safetensors(&tensors)).await.root.cid;
    let dir_options = from(&[&provider]);
    let opened = fetcher.store.fetch_headers(&cid, dir_options.clone()).await.unwrap();
    assert!(fetcher.store.usage().used_bytes < MIB);
    let name = opened.files()[0].name.clone();
    let shown = provider.store.show(&cid, None).await.unwrap();
    let b = shown.tensors.iter().find(|tensor| tensor.name == "b").unwrap();
    let range = b.offset..b.offset + b.bytes;
    let opened = fetcher.store.fetch_ranges(&cid, "", &[range], dir_options).await.unwrap();
    let mut bytes = vec![0; 2 << 20];
    opened.read_at(&name, b.offset, &mut bytes).unwrap();
    assert!(bytes == tensors[1].1);
    assert!(fetcher.store.usage().used_bytes < 3 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_is_not_found() {
    let (provider, fetcher) = pair().await;
    let absent: Cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku".parse().unwrap();
    let options = FetchOptions { stall: Duration::from_secs(3), ..from(&[&provider]) };
    let error = fetcher.store.fetch(&absent, options, |_| {}).await.unwrap_err();
    let StoreError::NotFound(story) = &error else { panic!("{error}") };
    assert!(story.missing == absent && story.asked[0].starts_with(&provider.id.to_string()), "{error}");
}
