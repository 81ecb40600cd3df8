//! Measures the store: import, transfer between two processes, and a plain libp2p stream for comparison.
//!
//! `store_transfer provide <directory> <file>` imports a file, prints `<address> <cid>` and serves until its input
//! ends. `store_transfer fetch <directory> <cid> <address>...` fetches from those, reads it back, and then takes as many
//! bytes over a plain stream from the first. `bitswap` in place of `fetch` uses bitswap only. Both print their peak memory.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use accel_backends::files::ModelFiles;
use accel_node::store::{AddOptions, FetchOptions, Store, StoreOptions};
use anyhow::{Context, bail};
use cid::Cid;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use futures::stream::{FuturesUnordered, StreamExt};
use rust_ipfs::builder::DefaultIpfsBuilder;
use rust_ipfs::{Ipfs, Multiaddr, PeerId, Protocol, StreamProtocol};

const PLAIN: StreamProtocol = StreamProtocol::new("/accel/example/plain/1");
const MEGABYTE: f64 = 1e6;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["provide", directory, file] => provide(directory.as_ref(), file.as_ref()).await?,
        [how @ ("fetch" | "bitswap"), directory, cid, addresses @ ..] if !addresses.is_empty() => {
            fetch(directory.as_ref(), cid.parse()?, addresses, *how == "bitswap").await?;
        }
        _ => bail!("provide <directory> <file> | fetch|bitswap <directory> <cid> <address>..."),
    }
    eprintln!("peak memory: {}", peak_memory()?);
    Ok(())
}

async fn start(directory: &Path) -> anyhow::Result<(Ipfs, Store)> {
    let ipfs = DefaultIpfsBuilder::new().with_default().with_streams().enable_tcp().set_path(directory);
    let ipfs = ipfs.start().await?;
    ipfs.add_listening_address("/ip4/127.0.0.1/tcp/0".parse()?).await?;
    let options = StoreOptions { repository: PathBuf::from(directory), quota_bytes: 1 << 36 };
    let store = Store::start(ipfs.clone(), options).await?;
    Ok((ipfs, store))
}

async fn provide(directory: &Path, file: &Path) -> anyhow::Result<()> {
    let (ipfs, store) = start(directory).await?;
    let mut plain = ipfs.new_stream(PLAIN).await?;
    tokio::spawn(async move {
        while let Some((_, mut stream)) = plain.next().await {
            let block = vec![7; 1 << 20];
            while stream.write_all(&block).await.is_ok() {}
        }
    });
    let report = store.add(file, AddOptions::default(), |_| {}).await?;
    eprintln!("add: {} blocks, {}", report.root.blocks, rate(report.root.bytes, report.seconds));
    let again = store.add(file, AddOptions::default(), |_| {}).await?;
    eprintln!("add again: {} new blocks, {}", again.new_blocks, rate(again.root.bytes, again.seconds));
    let address = ipfs.listening_addresses().await?.first().context("no address")?.clone();
    println!("{}/p2p/{} {}", address, ipfs.keypair().public().to_peer_id(), report.root.cid);
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

async fn fetch(directory: &Path, cid: Cid, addresses: &[&str], bitswap: bool) -> anyhow::Result<()> {
    let (ipfs, store) = start(directory).await?;
    let mut providers = Vec::new();
    for address in addresses {
        let address: Multiaddr = address.parse()?;
        let Some(Protocol::P2p(peer)) = address.iter().last() else { bail!("{address}: no peer id") };
        ipfs.connect(address).await?;
        providers.push(peer);
    }
    if bitswap {
        return by_bitswap(&ipfs, &store, cid, providers[0]).await;
    }
    let options = FetchOptions { providers: providers.clone(), ..FetchOptions::default() };
    let report = store.fetch(&cid, options, |_| {}).await?;
    eprintln!(
        "fetch: {} of {} blocks, {}",
        report.fetched_blocks,
        report.root.blocks,
        rate(report.fetched_bytes, report.seconds)
    );
    for share in &report.peers {
        eprintln!("  {:?}: {} bytes", share.peer, share.bytes);
    }
    read_back(&store, &cid, report.root.bytes).await?;
    plain_stream(&ipfs, providers[0], report.root.bytes).await
}

/// Every leaf of the fetched DAG by bitswap, sixteen at a time; the list of leaves comes from the direct protocol.
async fn by_bitswap(ipfs: &Ipfs, store: &Store, cid: Cid, peer: PeerId) -> anyhow::Result<()> {
    let options = FetchOptions { providers: vec![peer], ..FetchOptions::default() };
    store.fetch_headers(&cid, options).await?;
    let root = ipfs.get_block(cid).await?;
    let mut leaves = Vec::new();
    root.references(&mut leaves)?;
    let started = Instant::now();
    let mut wanted = leaves.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut bytes = 0;
    loop {
        while asked.len() < 16 {
            let Some(leaf) = wanted.next() else { break };
            asked.push(std::future::IntoFuture::into_future(ipfs.get_block(leaf).provider(peer)));
        }
        let Some(block) = asked.next().await else { break };
        bytes += block?.data().len() as u64;
    }
    eprintln!("bitswap: {}", rate(bytes, started.elapsed().as_secs_f64()));
    Ok(())
}

async fn read_back(store: &Store, cid: &Cid, bytes: u64) -> anyhow::Result<()> {
    let opened = store.open(cid, None).await?;
    for pass in ["read, every block hashed", "read again"] {
        let opened = opened.clone();
        let started = Instant::now();
        tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            for info in opened.files() {
                let mut buffer = vec![0; 1 << 20];
                let mut at = 0;
                while at < info.bytes {
                    let size = buffer.len().min((info.bytes - at) as usize);
                    opened.read_at(&info.name, at, &mut buffer[..size])?;
                    at += size as u64;
                }
            }
            Ok(())
        })
        .await??;
        eprintln!("{pass}: {}", rate(bytes, started.elapsed().as_secs_f64()));
    }
    Ok(())
}

async fn plain_stream(ipfs: &Ipfs, peer: PeerId, bytes: u64) -> anyhow::Result<()> {
    let Ok(mut stream) = ipfs.open_stream(peer, PLAIN).await else {
        eprintln!("plain stream: the peer has none");
        return Ok(());
    };
    let started = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    let mut taken = 0;
    while taken < bytes {
        taken += stream.read(&mut buffer).await? as u64;
    }
    eprintln!("plain stream: {}", rate(bytes, started.elapsed().as_secs_f64()));
    Ok(())
}

fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.0} MB in {seconds:.2} s, {:.0} MB/s", bytes as f64 / MEGABYTE, bytes as f64 / MEGABYTE / seconds)
}

fn peak_memory() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    Ok(line.context("no VmHWM in /proc/self/status")?.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
}
