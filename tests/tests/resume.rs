//! Connections that break between a program and its daemon: the answer goes on where it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use accel_node::api::{ACCESS_FILE, Access, Api};
use accel_protocol::Generation;
use accel_tests::cluster::{Cluster, events, import, model_file, question, text, tokens};
use accel_tests::command::CommandLine;
use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of answers after which a connection is cut: in the middle of a line, and after a few tokens.
const CUT_AFTER: usize = 3_001;
const PROMPT: &str = "Write a long story about a lighthouse keeper who finds a map.";

/// Passes a connection on until so many bytes have come back.
async fn pass(mut program: TcpStream, daemon: std::net::SocketAddr) -> std::io::Result<bool> {
    let mut daemon = TcpStream::connect(daemon).await?;
    let (mut asked, mut answered, mut sent) = ([0; 4096], [0; 4096], 0);
    loop {
        tokio::select! {
            read = program.read(&mut asked) => match read? {
                0 => return Ok(false),
                read => daemon.write_all(&asked[..read]).await?,
            },
            read = daemon.read(&mut answered) => {
                let read = read?;
                let passed = read.min(CUT_AFTER - sent);
                program.write_all(&answered[..passed]).await?;
                sent += passed;
                if read == 0 || sent == CUT_AFTER {
                    return Ok(sent == CUT_AFTER);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_lost_or_repeated_when_connections_to_the_daemon_break() -> Result<()> {
    let cluster = Cluster::new()?;
    let node = cluster.start("node", true, &[]).await?;
    let model = import(&node, model_file()?).await?;
    let generation = Generation { max_tokens: 100, ignore_eos: true, ..Generation::default() };
    let body = question(&model, PROMPT, generation);
    let undisturbed = events(node.api(), &body).await?;

    let mut access: Access = serde_json::from_str(&std::fs::read_to_string(node.data_dir().join(ACCESS_FILE))?)?;
    let daemon = access.address;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    access.address = listener.local_addr()?;
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = cuts.clone();
    let fragile = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((program, _)) = listener.accept().await {
            let cuts = counted.clone();
            connections.spawn(async move {
                if pass(program, daemon).await.is_ok_and(|cut| cut) {
                    cuts.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });

    // `events` checks that the numbers follow each other.
    let resumed = events(&Api::new(access.clone()), &body).await?;
    assert_eq!(tokens(&resumed), tokens(&undisturbed));
    ensure!(cuts.swap(0, Ordering::Relaxed) > 1, "nothing was cut");

    // The command line reads where the daemon is from a file.
    let directory = cluster.path("fragile");
    std::fs::create_dir(&directory)?;
    std::fs::write(directory.join(ACCESS_FILE), serde_json::to_string(&access)?)?;
    let commands = CommandLine::new(&cluster, &directory);
    let ran = commands.run(&["run", &model.to_string(), PROMPT, "--max-tokens", "100", "--ignore-eos"]).await?;
    assert_eq!(ran.data()?, format!("{}\n", text(&undisturbed)));
    ensure!(cuts.load(Ordering::Relaxed) > 1, "nothing was cut");

    fragile.abort();
    node.stop().await?;
    Ok(())
}
