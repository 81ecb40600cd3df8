//! Import: what is written, what is shared, what is released.

use accel_node::store::{AddOptions, Chunker, RootKind, StoreError};

use crate::node::{self, MIB, data, safetensors};

fn moved() -> AddOptions {
    AddOptions { move_source: true, ..AddOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn adding_again_writes_nothing() {
    let node = node::start().await;
    let first = node.add_bytes("model.bin", &data(1, 5 * MIB)).await;
    assert_eq!((first.new_blocks, first.root.blocks), (6, 6));
    let used = node.store.usage().used_bytes;
    let again = node.add_bytes("model.bin", &data(1, 5 * MIB)).await;
    assert_eq!((again.new_blocks, again.new_bytes, again.root.cid), (0, 0, first.root.cid));
    assert_eq!(node.store.usage().used_bytes, used);
    assert_eq!(node.store.list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_is_mended_by_adding_again() {
    let node = node::start().await;
    node.add_bytes("model.bin", &data(1, 3 * MIB)).await;
    let (cid, path) = node.some_leaf();
    std::fs::write(&path, b"damaged").unwrap();
    assert_eq!(node.add_bytes("model.bin", &data(1, 3 * MIB)).await.new_blocks, 1, "{cid}");
    assert!(node.store.list().await.unwrap()[0].complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_cut_at_their_tensors() {
    let node = node::start().await;
    let (big, small) = (data(1, 2 * MIB + 5), data(2, 1000));
    let file = safetensors(&[("a.small", small.clone()), ("b.small", small), ("c.big", big.clone()), ("d.big", big)]);
    let report = node.add_bytes("model.safetensors", &file).await;
    // The header, the two small ones together, three blocks for both equal big ones, and the node over them.
    assert_eq!(report.new_blocks, 6);
    let sizes = node.block_files().into_values().map(|path| std::fs::metadata(path).unwrap().len());
    assert!(sizes.max().unwrap() <= MIB);
    let opened = node.store.open(&report.root.cid, None).await.unwrap();
    assert_eq!(node::read_all(&opened, "model.safetensors"), file);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_share_the_blocks_of_equal_tensors() {
    let node = node::start().await;
    let shared = data(7, 4 * MIB);
    let one = safetensors(&[("embed", shared.clone()), ("head", data(1, MIB))]);
    let two = safetensors(&[("a_longer_name_in_front", data(2, 300 << 10)), ("embed", shared), ("head", data(3, MIB))]);
    let first = node.add_bytes("one.safetensors", &one).await;
    let used = node.store.usage().used_bytes;
    let second = node.add_bytes("two.safetensors", &two).await;
    let shared_bytes = second.root.bytes - second.new_bytes;
    assert!(shared_bytes > 4 * MIB - 1024, "{shared_bytes} bytes shared");

    let freed = node.store.remove(&first.root.cid).await.unwrap();
    assert!(freed.bytes < used - 4 * MIB + 1024, "{freed:?} of {used}");
    let opened = node.store.open(&second.root.cid, None).await.unwrap();
    assert_eq!(node::read_all(&opened, "two.safetensors"), two);
    drop(opened);
    node.store.remove(&second.root.cid).await.unwrap();
    assert_eq!(node.store.usage().used_bytes, 0);
    assert!(node.block_files().is_empty());
    assert!(matches!(node.store.remove(&second.root.cid).await, Err(StoreError::NotPinned { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_releases_the_source_once_it_is_stored() {
    let node = node::start_with_quota(4 * MIB).await;
    node.write("dir/.hidden", b"not imported");
    let config = node.write("dir/config.json", b"{}");
    let weights = node.write("dir/model.bin", &data(1, 2 * MIB));
    let directory = config.parent().unwrap().to_owned();
    let report = node.add(&directory, moved()).await.unwrap();
    assert_eq!(report.root.kind, RootKind::HuggingFace);
    assert!(!config.exists() && !weights.exists() && directory.join(".hidden").exists());
    let opened = node.store.open(&report.root.cid, Some("model.bin")).await.unwrap();
    assert_eq!(node::read_all(&opened, "model.bin"), data(1, 2 * MIB));

    let too_large = node.write("large.bin", &data(2, 3 * MIB));
    assert!(matches!(node.add(&too_large, moved()).await, Err(StoreError::Quota { .. })));
    assert!(too_large.exists());
    #[cfg(unix)]
    {
        let link = too_large.with_file_name("link.bin");
        std::os::unix::fs::symlink(&too_large, &link).unwrap();
        assert!(matches!(node.add(&link, moved()).await, Err(StoreError::Source { .. })));
        assert!(link.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_holds_and_what_was_written_is_garbage() {
    let node = node::start_with_quota(4 * MIB).await;
    let path = node.write("large.bin", &data(1, 6 * MIB));
    let error = node.add(&path, AddOptions::default()).await.unwrap_err();
    let StoreError::Quota { quota, used, needed } = error else { panic!("{error}") };
    assert_eq!((quota, used, needed), (4 * MIB, 4 * MIB, MIB));
    assert_eq!(node.store.gc().await.unwrap().blocks, 4);
    assert_eq!(node.store.usage().used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_import_goes_on_where_it_stopped() {
    let node = node::start().await;
    let path = node.write("model.bin", &data(1, 64 * MIB));
    let (reached, wait) = tokio::sync::oneshot::channel();
    let mut reached = Some(reached);
    let (store, source) = (node.store.clone(), path.clone());
    let import = tokio::spawn(async move {
        let tell = move |progress: &accel_node::store::AddProgress| {
            if progress.new_blocks == 8 {
                reached.take().into_iter().for_each(|reached| reached.send(()).unwrap());
            }
        };
        store.add(source, AddOptions::default(), tell).await
    });
    wait.await.unwrap();
    import.abort();
    assert!(import.await.unwrap_err().is_cancelled());
    assert!(node.store.list().await.unwrap().is_empty());
    let report = node.add(&path, AddOptions::default()).await.unwrap();
    assert!(report.new_blocks <= 65 - 8, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_cannot_be_used_are_named() {
    let node = node::start().await;
    let absent = node.directory.path().join("absent");
    let error = node.add(&absent, AddOptions::default()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Source { path, .. } if *path == absent), "{error}");

    let mut damaged = b"GGUF".to_vec();
    damaged.extend([0xff; 100]);
    let path = node.write("damaged.gguf", &damaged);
    let error = node.add(&path, AddOptions::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Weights { .. }), "{error}");
    assert!(error.to_string().contains("damaged.gguf"), "{error}");
    let options = AddOptions { chunker: Chunker::UNIXFS_2025, ..AddOptions::default() };
    assert_eq!(node.add(&path, options).await.unwrap().root.kind, RootKind::Gguf);

    let chunker = Chunker::Fixed { chunk_bytes: 2 * MIB, links: 1024 };
    let error = node.add(&path, AddOptions { chunker, ..AddOptions::default() }).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}
