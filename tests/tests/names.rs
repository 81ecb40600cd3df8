//! What models are called, on this node and on others.

use accel_node::api::ApiError;
use accel_node::process::NodeProcess;
use accel_protocol::ErrorCode;
use accel_tests::cluster::{Cluster, eventually, import};
use accel_tests::command::CommandLine;
use anyhow::{Result, ensure};

const NAME: &str = "notes/today:first";

async fn is_unknown(node: &NodeProcess, text: &str) -> Result<()> {
    match node.api().resolve(text).await {
        Err(ApiError::Refused(error)) if error.code == ErrorCode::ModelNotFound => Ok(()),
        other => anyhow::bail!("{text}: {other:?}"),
    }
}

async fn acquainted(node: &NodeProcess, peer: &str) -> Result<()> {
    eventually("a peer has told about itself", async || {
        let peers = node.api().peers().await?;
        Ok(peers.iter().any(|view| view.peer == peer && view.connected && view.advert.is_some()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_calls_a_model_is_known_by_name_and_peer_also_while_it_is_away() -> Result<()> {
    let cluster = Cluster::new()?;
    let owner = cluster.start("owner", false, &[]).await?;
    let second = cluster.start("second", false, &[&owner]).await?;
    let third = cluster.start("third", false, &[&second]).await?;
    acquainted(&second, owner.peer()).await?;
    acquainted(&third, second.peer()).await?;
    std::fs::write(cluster.path("first"), "first")?;
    std::fs::write(cluster.path("later"), "later")?;
    let (first, later) = (import(&owner, cluster.path("first")).await?, import(&owner, cluster.path("later")).await?);
    let everywhere = format!("{NAME}@{}", owner.peer());

    is_unknown(&second, &everywhere).await?;
    owner.api().set_name(&NAME.parse()?, &first).await?;
    assert_eq!(owner.api().resolve(NAME).await?, first);
    assert_eq!(owner.api().resolve(&everywhere).await?, first);
    assert_eq!(second.api().resolve(&everywhere).await?, first);
    is_unknown(&second, NAME).await?;
    // The owner may say something else at any time.
    owner.api().set_name(&NAME.parse()?, &later).await?;
    assert_eq!(second.api().resolve(&everywhere).await?, later);
    // By the command line too, wherever a CID may stand.
    let commands = CommandLine::new(&cluster, second.data_dir());
    let pulled = commands.run(&["pull", &everywhere]).await?;
    ensure!(pulled.data()?.contains(&later.to_string()), "{pulled:?}");

    // While the owner is away, whoever has heard it says so.
    let gone = owner.peer().to_owned();
    owner.stop().await?;
    eventually("the owner is gone", async || {
        let peers = third.api().peers().await?;
        Ok(!peers.iter().any(|view| view.peer == gone && view.connected))
    })
    .await?;
    assert_eq!(third.api().resolve(&everywhere).await?, later);
    is_unknown(&third, &format!("notes/never@{gone}")).await?;
    second.stop().await?;
    third.stop().await?;
    Ok(())
}
