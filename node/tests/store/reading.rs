//! Reading stored models, looking at them, and letting go of them.

use accel_backends::files::ModelFiles;
use accel_node::store::{RootKind, StoreError};

use crate::node::{self, MIB, data, safetensors};

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_read_from_blocks() {
    let node = node::start().await;
    let contents = data(3, 3 * MIB + 17);
    let cid = node.add_bytes("file.bin", &contents).await.root.cid;
    let opened = node.store.open(&cid, None).await.unwrap();
    assert_eq!(opened.files()[0].name, "file.bin");
    for (offset, bytes) in [(0, 1), (MIB - 1, 2), (MIB, MIB), (5, 3 * MIB), (3 * MIB + 16, 1), (3 * MIB + 17, 0)] {
        // Twice: the first read hashes the block, the second reads part of it.
        for _ in 0..2 {
            let mut buffer = vec![0; bytes as usize];
            opened.read_at("file.bin", offset, &mut buffer).unwrap();
            assert!(buffer == contents[offset as usize..(offset + bytes) as usize], "{bytes} at {offset}");
        }
    }
    let past = opened.read_at("file.bin", 3 * MIB + 17, &mut [0]).unwrap_err();
    assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(opened.read_at("other", 0, &mut [0]).unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_missing_blocks_are_never_read() {
    let node = node::start().await;
    let cid = node.add_bytes("file.bin", &data(3, 3 * MIB)).await.root.cid;
    let (leaf, path) = node.some_leaf();
    let mut buffer = vec![0; 3 << 20];
    let mut damaged = std::fs::read(&path).unwrap();
    damaged[77] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let error = node.store.open(&cid, None).await.unwrap().read_at("file.bin", 0, &mut buffer).unwrap_err();
    assert!(
        error.kind() == std::io::ErrorKind::InvalidData && error.to_string().contains(&leaf.to_string()),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
    let error = node.store.open(&cid, None).await.unwrap().read_at("file.bin", 0, &mut buffer).unwrap_err();
    assert!(error.kind() == std::io::ErrorKind::NotFound && error.to_string().contains(&leaf.to_string()), "{error}");
    assert!(!node.store.list().await.unwrap()[0].complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_show_their_tensors() {
    let node = node::start().await;
    node.write("model/config.json", b"{}");
    let weights = safetensors(&[("embed", data(1, 2 * MIB)), ("norm", data(2, 64))]);
    let path = node.write("model/model.safetensors", &weights);
    let report = node.add(path.parent().unwrap(), Default::default()).await.unwrap();
    let shown = node.store.show(&report.root.cid, None).await.unwrap();
    assert_eq!((shown.kind, shown.files.len(), shown.tensors.len()), (RootKind::HuggingFace, 2, 2));
    let embed = shown.tensors.iter().find(|tensor| tensor.name == "embed").unwrap();
    assert_eq!((embed.dims.as_slice(), embed.bytes, embed.here_bytes), ([2 << 20].as_slice(), 2 * MIB, 2 * MIB));

    let error = node.store.show(&report.root.cid, Some("absent")).await.unwrap_err();
    assert!(matches!(&error, StoreError::NoEntry { entries, .. } if entries.len() == 2), "{error}");
    let file = node.add_bytes("notes.txt", b"no weights").await.root.cid;
    assert!(matches!(node.store.show(&file, None).await, Err(StoreError::NotAModel { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn open_models_outlive_their_removal() {
    let node = node::start().await;
    let contents = data(3, 3 * MIB);
    let cid = node.add_bytes("file.bin", &contents).await.root.cid;
    let opened = node.store.open(&cid, None).await.unwrap();
    assert_eq!(node.store.remove(&cid).await.unwrap().blocks, 0);
    assert_eq!(node.store.gc().await.unwrap().blocks, 0);
    assert!(node::read_all(&opened, "file.bin") == contents);
    drop(opened);
    assert_eq!(node.store.gc().await.unwrap().bytes, 3 * MIB + inner_node_bytes());
    assert_eq!(node.store.usage().used_bytes, 0);
}

/// Three links of 44 bytes, three block sizes, and the frame around them.
fn inner_node_bytes() -> u64 {
    let link = 2 + 2 + 36 + 2 + 1 + 3;
    let sizes = 2 + 1 + 4 + 3 * 4;
    3 * link + 2 + sizes
}
