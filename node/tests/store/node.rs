//! Nodes with a store each, and deterministic contents.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use accel_backends::files::ModelFiles;
use accel_node::peers::Peers;
use accel_node::store::{
    AddOptions, AddReport, BlockFiles, FetchOptions, FetchReport, Store, StoreError, StoreOptions,
};
use cid::Cid;
use rust_ipfs::{Ipfs, Keypair, Multiaddr, PeerId};

pub const MIB: u64 = 1 << 20;

/// A node and its store; the directory goes with it.
pub struct Node {
    pub ipfs: Ipfs,
    pub store: Store,
    pub id: PeerId,
    pub directory: tempfile::TempDir,
}

pub async fn start() -> Node {
    start_with_quota(1 << 30).await
}

pub async fn start_with_quota(quota_bytes: u64) -> Node {
    let directory = tempfile::tempdir().unwrap();
    let settings = accel_ipfs::Settings {
        agent: "test",
        repository: Some(directory.path().to_owned()),
        listen: Vec::new(),
        bootstrap: Vec::new(),
        key: None,
        relay: accel_ipfs::RelayConfig::default(),
        mdns: false,
        connections: 64,
        connections_per_peer: 4,
        requests: accel_ipfs::RequestResponseConfig::new("/test/1"),
        gossip_bytes: 1 << 10,
    };
    let ipfs = accel_ipfs::start(Keypair::generate_ed25519(), settings, Box::new(|_| {})).await.unwrap();
    ipfs.add_listening_address("/ip4/127.0.0.1/tcp/0".parse().unwrap()).await.unwrap();
    let options = StoreOptions { repository: directory.path().to_owned(), quota_bytes, peers: Peers::default() };
    let store = Store::start(ipfs.clone(), options).await.unwrap();
    let id = ipfs.keypair().public().to_peer_id();
    Node { ipfs, store, id, directory }
}

impl Node {
    pub async fn address(&self) -> Multiaddr {
        let address = self.ipfs.listening_addresses().await.unwrap().remove(0);
        match address.iter().last() {
            Some(rust_ipfs::Protocol::P2p(_)) => address,
            _ => address.with(rust_ipfs::Protocol::P2p(self.id)),
        }
    }

    pub async fn connect(&self, other: &Node) {
        self.ipfs.connect(other.address().await).await.unwrap();
    }

    /// Writes a file beside the repository and imports it.
    pub async fn add_bytes(&self, name: &str, data: &[u8]) -> AddReport {
        self.add(&self.write(name, data), AddOptions::default()).await.unwrap()
    }

    pub async fn add(&self, path: &Path, options: AddOptions) -> Result<AddReport, StoreError> {
        self.store.add(path, options, |_| {}).await
    }

    pub fn write(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.directory.path().join("sources").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, data).unwrap();
        path
    }

    pub async fn fetch(&self, cid: &Cid, providers: &[&Node]) -> Result<FetchReport, StoreError> {
        self.store.fetch(cid, from(providers), |_| {}).await
    }

    /// Every block file: its CID and its path.
    pub fn block_files(&self) -> HashMap<Cid, PathBuf> {
        let mut found = HashMap::new();
        for shard in std::fs::read_dir(self.directory.path().join("blockstore")).unwrap() {
            for file in std::fs::read_dir(shard.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "data") {
                    found.insert(Cid::try_from(path.file_stem().unwrap().to_str().unwrap()).unwrap(), path);
                }
            }
        }
        found
    }

    /// A leaf of whatever is stored: the largest raw block.
    pub fn some_leaf(&self) -> (Cid, PathBuf) {
        let files = self.block_files().into_iter().filter(|(cid, _)| cid.codec() == 0x55);
        files.max_by_key(|(cid, path)| (std::fs::metadata(path).unwrap().len(), *cid)).unwrap()
    }
}

pub fn from(providers: &[&Node]) -> FetchOptions {
    FetchOptions {
        providers: providers.iter().map(|node| node.id).collect(),
        stall: std::time::Duration::from_secs(20),
        ..FetchOptions::default()
    }
}

/// `bytes` bytes that look random and follow from `seed` (xorshift64*).
pub fn data(seed: u64, bytes: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes as usize + 8);
    let mut state = seed;
    while (out.len() as u64) < bytes {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    out.truncate(bytes as usize);
    out
}

/// A safetensors file with these tensors of bytes, one after the other.
pub fn safetensors(tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, bytes) in tensors {
        let end = at + bytes.len();
        let entry = serde_json::json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": [at, end]});
        header.insert((*name).to_owned(), entry);
        at = end;
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    tensors.iter().for_each(|(_, bytes)| file.extend(bytes));
    file
}

pub fn read_all(files: &BlockFiles, name: &str) -> Vec<u8> {
    let info = files.files().iter().find(|info| info.name == name).unwrap();
    let mut buffer = vec![0; info.bytes as usize];
    files.read_at(name, 0, &mut buffer).unwrap();
    buffer
}
