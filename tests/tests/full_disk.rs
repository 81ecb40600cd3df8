//! A node whose disk is full: it says so, goes on, and can be tidied up.

use std::path::Path;

use accel_tests::cluster::{Cluster, import, model_file};
use accel_tests::command::CommandLine;
use accel_tests::namespace::{Own, command, is_inside};
use anyhow::{Context, Result, ensure};

const KEPT_BYTES: usize = 2 << 20;

/// Bytes that do not repeat, so that no two blocks are the same.
fn contents(bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 4).flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

/// Takes all space that is left on the file system of `directory`, to the last byte.
fn fill(directory: &Path) -> Result<std::path::PathBuf> {
    let path = directory.join("filler");
    let mut file = std::fs::File::create(&path)?;
    for piece in [1 << 20, 4096, 1] {
        while std::io::Write::write_all(&mut file, &vec![1; piece]).is_ok() {}
    }
    Ok(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_loses_nothing_that_was_there() -> Result<()> {
    if !is_inside("a_full_disk_is_named_and_loses_nothing_that_was_there", Own::Mounts)? {
        return Ok(());
    }
    let cluster = Cluster::new()?;
    let small = cluster.path("small");
    std::fs::create_dir(&small)?;
    let mount_point = small.to_str().context("the temporary directory is no text")?;
    command("mount", &["-t", "tmpfs", "-o", "size=16m", "none", mount_point])?;
    let provider = cluster.start("provider", false, &[]).await?;
    let model = import(&provider, model_file()?).await?.to_string();
    let node = cluster.start("small", false, &[&provider]).await?;
    let commands = CommandLine::new(&cluster, node.data_dir());

    let kept_file = cluster.path("kept");
    std::fs::write(&kept_file, contents(KEPT_BYTES))?;
    let kept = import(&node, kept_file).await?;
    let kept_name = kept.to_string();
    let used = node.api().node().await?.used_bytes;
    let source = cluster.path("source.gguf");
    std::fs::copy(model_file()?, &source)?;
    let source_name = source.to_str().context("the temporary directory is no text")?;

    for arguments in [&["add", source_name, "--move"][..], &["pull", &model]] {
        let failed = commands.run(arguments).await?;
        ensure!(failed.code == Some(6) && failed.stdout.is_empty(), "{failed:?}");
        for word in [mount_point, "the disk is full", "free space", "accel-cli gc"] {
            ensure!(failed.stderr.contains(word), "{arguments:?}: {word}: {failed:?}");
        }
        let failed = commands.run(&[arguments, &["--json"][..]].concat()).await?.json()?;
        ensure!(failed["error"]["code"] == "out-of-resources", "{failed}");
        // The node goes on, and what came so far can be let go of.
        let listed = commands.run(&["ls", "--json"]).await?.json()?;
        let only = &listed.as_array().context("no list")?[..];
        ensure!(only.len() == 1 && only[0]["cid"] == kept_name.as_str() && only[0]["complete"] == true, "{listed}");
        let freed = commands.run(&["gc", "--json"]).await?.json()?;
        ensure!(freed["bytes"].as_u64() > Some(1 << 20), "{freed}");
        assert_eq!(node.api().node().await?.used_bytes, used);
    }
    ensure!(source.exists(), "a source that was not imported is gone");

    // What was there before can still be fetched from the node, and all of it is right.
    provider.api().connect(node.addresses().first().context("no address")?).await?;
    let pulled = provider.api().pull(&kept, |_| {}).await?;
    ensure!(pulled.fetched_bytes >= KEPT_BYTES as u64, "{pulled:?}");

    // With not one byte left a model can be removed; with its space, another comes in, over a restart too.
    let filler = fill(&small)?;
    let freed = commands.run(&["rm", &kept_name, "--json"]).await?;
    freed.data()?;
    ensure!(freed.json()?["bytes"].as_u64() >= Some(KEPT_BYTES as u64), "{freed:?}");
    let another = cluster.path("another");
    std::fs::write(&another, contents(KEPT_BYTES / 2))?;
    let another = import(&node, another).await?.to_string();
    node.stop().await?;

    // A node that finds its disk full says why it does not start.
    fill(&small)?;
    let refused = commands.run(&["id", "--mdns", "false", "--listen", "/ip4/127.0.0.1/tcp/0"]).await?;
    let named = refused.stderr.contains(mount_point) && refused.stderr.contains("No space left");
    ensure!(refused.code == Some(6) && named, "{refused:?}");
    std::fs::remove_file(filler)?;
    let node = cluster.start("small", false, &[]).await?;
    let models = node.api().models().await?;
    ensure!(models.len() == 1 && models[0].cid == another && models[0].complete, "{models:?}");
    node.stop().await?;
    provider.stop().await?;
    Ok(())
}
