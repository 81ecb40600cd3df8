//! Models leave a node as files and as CAR files, and come into one from CAR files: with equal bytes and equal CIDs.

use std::path::{Path, PathBuf};

use accel_node::process::NodeProcess;
use accel_tests::cluster::{Cluster, import, installed, model_file};
use accel_tests::command::CommandLine;
use accel_tests::foreign::Foreign;
use anyhow::{Context, Result, ensure};

/// A node, and the command line of whoever uses it.
async fn node(cluster: &Cluster, name: &str) -> Result<(NodeProcess, CommandLine)> {
    let node = cluster.start(name, false, &[]).await?;
    let person = CommandLine::new(cluster, node.data_dir());
    Ok((node, person))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// A small directory with another inside.
fn directory(cluster: &Cluster) -> Result<PathBuf> {
    let directory = cluster.path("source");
    std::fs::create_dir_all(directory.join("inner"))?;
    std::fs::write(directory.join("config.json"), r#"{"model_type":"llama"}"#)?;
    std::fs::write(directory.join("empty"), "")?;
    std::fs::write(directory.join("inner/words.txt"), "words\n".repeat(400_000))?;
    Ok(directory)
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    Ok(std::fs::read(one)? == std::fs::read(other)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_goes_by_a_car_file_to_a_node_that_knows_nobody() -> Result<()> {
    let cluster = Cluster::new()?;
    let (first, sender) = node(&cluster, "first").await?;
    let model = import(&first, model_file()?).await?;
    let car = cluster.path("model.car");
    let told = sender.run(&["export", &model.to_string(), text(&car)?, "--json"]).await?;
    assert_eq!(told.json()?["bytes"], std::fs::metadata(&car)?.len(), "{told:?}");
    first.stop().await?;

    let (second, receiver) = node(&cluster, "second").await?;
    let cids = receiver.run(&["import", text(&car)?]).await?;
    assert_eq!(cids.data()?.trim(), model.to_string());
    let listed = second.api().models().await?;
    ensure!(listed.len() == 1 && listed[0].complete && listed[0].name == "model", "{listed:?}");
    let copy = cluster.path("copy.gguf");
    receiver.run(&["export", "model", text(&copy)?]).await?.data()?;
    assert!(same(&copy, &model_file()?)?);

    // What is here is not written again, also when it comes by a pipe.
    let again = receiver.run(&["import", text(&car)?, "--json"]).await?.json()?;
    assert_eq!((&again[0]["new_blocks"], &again[0]["cid"]), (&0.into(), &model.to_string().into()));
    Ok(second.stop().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_written_file_by_file_and_over_nothing() -> Result<()> {
    let cluster = Cluster::new()?;
    let (node, person) = node(&cluster, "node").await?;
    let source = directory(&cluster)?;
    let root = import(&node, source.clone()).await?.to_string();
    let copy = cluster.path("copy");
    let told = person.run(&["export", &root, text(&copy)?, "--json"]).await?.json()?;
    assert_eq!((&told["files"], &told["bytes"]), (&3.into(), &2_400_022.into()));
    for file in ["config.json", "empty", "inner/words.txt"] {
        assert!(same(&copy.join(file), &source.join(file))?, "{file}");
    }

    // A part of it: a file into a directory that is there, and a directory.
    let parts = cluster.directory("parts")?;
    person.run(&["export", &format!("{root}/config.json"), text(&parts)?]).await?.data()?;
    person.run(&["export", &format!("{root}/inner"), text(&parts)?]).await?.data()?;
    assert!(same(&parts.join("config.json"), &source.join("config.json"))?);
    assert!(same(&parts.join("words.txt"), &source.join("inner/words.txt"))?);

    // What is there stays, unless it is to go.
    std::fs::write(copy.join("inner/words.txt"), "mine")?;
    std::fs::remove_file(copy.join("empty"))?;
    let refused = person.run(&["export", &root, text(&copy)?]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(copy.join("inner/words.txt"))?, "mine");
    ensure!(!copy.join("empty").exists(), "a part was written before the refusal");
    person.run(&["export", &root, text(&copy)?, "--force"]).await?.data()?;
    assert!(same(&copy.join("inner/words.txt"), &source.join("inner/words.txt"))?);
    let left: Vec<_> = std::fs::read_dir(&copy)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    assert_eq!(left.len(), 3, "{left:?}");
    Ok(node.stop().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn helia_reads_our_car_files_and_we_read_those_of_helia() -> Result<()> {
    let cluster = Cluster::new()?;
    let mut helia = Foreign::helia(installed("ACCEL_TEST_NODE")?.as_os_str(), &installed("ACCEL_TEST_NPM")?).await?;
    let (node, person) = node(&cluster, "node").await?;
    let source = directory(&cluster)?;
    let (ours, theirs) = (cluster.path("ours.car"), cluster.path("theirs.car"));

    for root in [import(&node, source.clone()).await?, import(&node, model_file()?).await?] {
        let root = root.to_string();
        person.run(&["export", &root, text(&ours)?, "--force"]).await?.data()?;
        assert_eq!(helia.unpack(&ours).await?, vec![root.clone()]);
        // Helia knows no peer: all that it needs was in the file.
        let copy = cluster.path(&root);
        helia.get(&root, &copy).await?;
        let (found, expected) = match copy.is_dir() {
            true => (copy.join("inner/words.txt"), source.join("inner/words.txt")),
            false => (copy, model_file()?),
        };
        assert!(same(&found, &expected)?, "{root}");
    }

    std::fs::write(source.join("config.json"), "{}")?;
    let root = helia.add(&source).await?;
    helia.pack(&root, &theirs).await?;
    helia.stop().await?;
    let imported = person.run(&["import", text(&theirs)?]).await?;
    assert_eq!(imported.data()?.trim(), root);
    let copy = cluster.path("theirs");
    person.run(&["export", &root, text(&copy)?]).await?.data()?;
    assert_eq!(std::fs::read_to_string(copy.join("config.json"))?, "{}");
    assert!(same(&copy.join("inner/words.txt"), &source.join("inner/words.txt"))?);
    Ok(node.stop().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_car_file_is_refused_in_words() -> Result<()> {
    let cluster = Cluster::new()?;
    let (first, person) = node(&cluster, "first").await?;
    let root = import(&first, directory(&cluster)?).await?.to_string();
    let car = cluster.path("good.car");
    person.run(&["export", &root, text(&car)?]).await?.data()?;
    let good = std::fs::read(&car)?;
    first.stop().await?;

    let (second, person) = node(&cluster, "second").await?;
    let mut forged = good.clone();
    let middle = good.len() / 2;
    forged[middle] ^= 1;
    let mut rootless = vec![17, 0xa2, 0x65];
    rootless.extend(b"roots");
    rootless.extend([0x80, 0x67]);
    rootless.extend(b"version");
    rootless.push(1);
    let mut newer = rootless.clone();
    newer.pop();
    newer.push(7);
    // Whole pieces, the last of them left away: it is one of the leaves.
    let whole_pieces = pieces(&good)?;
    let shorter = good[..*whole_pieces.last().context("no pieces")?].to_vec();
    for (bytes, words) in [
        (good[..middle].to_vec(), "it is not whole"),
        (shorter, "which its root"),
        (forged, "other bytes than its CID says"),
        (std::fs::read(model_file()?)?[..4096].to_vec(), "is it a CAR file?"),
        (rootless, "0 roots"),
        (newer, "version 7"),
        (Vec::new(), "found nothing"),
    ] {
        std::fs::write(&car, bytes)?;
        let refused = person.run(&["import", text(&car)?]).await?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(words), "{words}: {refused:?}");
        ensure!(second.api().models().await?.is_empty(), "{words}: it was kept");
    }
    let absent = person.run(&["import", "nowhere.car"]).await?;
    ensure!(absent.code == Some(3) && absent.stderr.contains("nowhere.car"), "{absent:?}");
    let unknown = person.run(&["export", &root, text(&car)?, "--force"]).await?;
    ensure!(unknown.code == Some(3) && unknown.stderr.contains("is not here"), "{unknown:?}");

    // Version 2 has version 1 inside, and an index that nobody needs.
    let mut second_version = vec![0x0a, 0xa1, 0x67];
    second_version.extend(b"version");
    second_version.push(2);
    second_version.extend([0; 16]);
    let offset = 11 + 40 + 9;
    for number in [offset, good.len() as u64, offset + good.len() as u64] {
        second_version.extend(number.to_le_bytes());
    }
    second_version.extend([0; 9]);
    second_version.extend(&good);
    second_version.extend(b"an index");
    std::fs::write(&car, second_version)?;
    let imported = person.run(&["import", text(&car)?]).await?;
    assert_eq!(imported.data()?.trim(), root);
    Ok(second.stop().await?)
}

/// Where the pieces of a CAR file begin, after the header.
fn pieces(car: &[u8]) -> Result<Vec<usize>> {
    let (mut at, mut starts) = (0, Vec::new());
    while at < car.len() {
        starts.push(at);
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = *car.get(at).context("cut off")?;
            at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        at += length;
    }
    starts.remove(0);
    Ok(starts)
}
