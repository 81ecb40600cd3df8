//! Models go between nodes of ours and other implementations of IPFS, with equal bytes and equal CIDs.

use std::path::{Path, PathBuf};

use accel_node::api::Cut;
use accel_protocol::{Generation, ModelRef};
use accel_tests::cluster::{Cluster, events, import, import_cut, installed, model_file, question, tcp, text};
use accel_tests::foreign::Foreign;
use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

async fn kubo(cluster: &Cluster) -> Result<Foreign> {
    Foreign::kubo(installed("ACCEL_TEST_PYTHON")?.as_os_str(), &cluster.path("kubo")).await
}

async fn helia() -> Result<Foreign> {
    Foreign::helia(installed("ACCEL_TEST_NODE")?.as_os_str(), &installed("ACCEL_TEST_NPM")?).await
}

/// A directory as Hugging Face has them: small files of text, and weights of several blocks.
fn model_directory(cluster: &Cluster) -> Result<PathBuf> {
    let directory = cluster.path("directory");
    std::fs::create_dir(&directory)?;
    std::fs::write(directory.join("config.json"), r#"{"model_type":"llama","architectures":["LlamaForCausalLM"]}"#)?;
    std::fs::write(directory.join("generation_config.json"), "{}")?;
    std::fs::write(directory.join("README.md"), "")?;
    let header = r#"{"embed":{"dtype":"U8","shape":[3000000],"data_offsets":[0,3000000]},
                     "norm":{"dtype":"U8","shape":[1000],"data_offsets":[3000000,3001000]}}"#;
    let mut weights = vec![0; 8 + header.len() + 3_001_000];
    weights[..8].copy_from_slice(&(header.len() as u64).to_le_bytes());
    weights[8..8 + header.len()].copy_from_slice(header.as_bytes());
    StdRng::seed_from_u64(1).fill_bytes(&mut weights[8 + header.len()..]);
    std::fs::write(directory.join("model.safetensors"), weights)?;
    Ok(directory)
}

/// Whether two files, or two directories and all files in them, have the same bytes.
fn same(one: &Path, other: &Path) -> Result<bool> {
    if one.is_file() {
        return Ok(std::fs::read(one)? == std::fs::read(other)?);
    }
    let names = |directory: &Path| -> Result<Vec<_>> {
        let mut names: Vec<_> =
            std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    };
    let (found, expected) = (names(one)?, names(other)?);
    let equal = |name| same(&one.join(name), &other.join(name));
    Ok(found == expected && expected.iter().map(equal).collect::<Result<Vec<_>>>()?.into_iter().all(|equal| equal))
}

/// A peer takes a model and a directory from a node that has cut them at tensors.
async fn downloads(cluster: &Cluster, mut peer: Foreign) -> Result<()> {
    let node = cluster.start("node", false, &[]).await?;
    peer.connect(tcp(&node)?).await?;
    for (name, source) in [("model", model_file()?), ("copy", model_directory(cluster)?)] {
        let model = import(&node, source.clone()).await?;
        let copy = cluster.path(name);
        peer.get(&model.cid.to_string(), &copy).await?;
        assert!(same(&copy, &source)?, "{name} {model}");
    }
    peer.stop().await?;
    Ok(node.stop().await?)
}

/// A node takes from a peer what that has published, and can use it.
async fn publishes(cluster: &Cluster, mut peer: Foreign) -> Result<()> {
    let node = cluster.start("node", true, &[]).await?;
    node.api().connect(peer.address()).await?;

    let directory: ModelRef = peer.add(&model_directory(cluster)?).await?.parse()?;
    let pulled = node.api().pull(&directory, |_| {}).await?;
    assert!(pulled.fetched_bytes > 3_000_000, "{pulled:?}");
    let parts = node.api().model(&directory, false).await?;
    assert_eq!(parts.files.len(), 4);
    assert!(parts.files.iter().all(|file| file.here_bytes == file.bytes), "{parts:?}");
    let tensors: Vec<_> = parts.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.here_bytes)).collect();
    assert_eq!(tensors, [("embed", 3_000_000), ("norm", 1_000)]);

    let model: ModelRef = peer.add(&model_file()?).await?.parse()?;
    let pulled = node.api().pull(&model, |_| {}).await?;
    assert!(pulled.fetched_bytes > 90_000_000, "{pulled:?}");
    assert_eq!(pulled.duplicate_blocks, 0);
    assert!(node.api().models().await?.iter().all(|model| model.complete));
    peer.stop().await?;

    // With the publisher gone, all that the answer needs is here.
    let answer = events(node.api(), &question(&model, "What is the capital of France?", Generation::default())).await?;
    assert_eq!(text(&answer), "The capital of France is Paris.");
    Ok(node.stop().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn kubo_downloads_models_from_a_node() -> Result<()> {
    let cluster = Cluster::new()?;
    downloads(&cluster, kubo(&cluster).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn helia_downloads_models_from_a_node() -> Result<()> {
    downloads(&Cluster::new()?, helia().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_with_a_model_that_kubo_published() -> Result<()> {
    let cluster = Cluster::new()?;
    publishes(&cluster, kubo(&cluster).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_with_a_model_that_helia_published() -> Result<()> {
    publishes(&Cluster::new()?, helia().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_cuts_give_the_cids_of_helia() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", false, &[]).await?;
    let mut helia = helia().await?;
    for source in [model_file()?, model_directory(&cluster)?] {
        let ours = import_cut(&node, source.clone(), Cut::Fixed).await?;
        assert_eq!(ours.cid.to_string(), helia.add(&source).await?, "{}", source.display());
        let ours = import_cut(&node, source.clone(), Cut::Fixed256k).await?;
        assert_eq!(ours.cid.to_string(), helia.add_cut(&source, 256 << 10, 174).await?, "{}", source.display());
    }
    helia.stop().await?;
    Ok(node.stop().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubo_published_reaches_helia_through_a_node() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", false, &[]).await?;
    let (mut kubo, mut helia) = (kubo(&cluster).await?, helia().await?);
    let source = model_directory(&cluster)?;
    // By default this Kubo gives CIDs of version 0, and leaves that are nodes and not raw bytes.
    let cid = kubo.add(&source).await?;
    ensure!(cid.starts_with("Qm"), "{cid}");
    node.api().connect(kubo.address()).await?;
    node.api().pull(&cid.parse()?, |_| {}).await?;
    kubo.stop().await?;
    helia.connect(tcp(&node)?).await?;
    let copy = cluster.path("copy");
    helia.get(&cid, &copy).await?;
    assert!(same(&copy, &source)?);
    helia.stop().await?;
    Ok(node.stop().await?)
}
