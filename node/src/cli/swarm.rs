//! Who is there and what they can do.

use accel_protocol::{Advert, Device};

use super::CliError;
use super::output::{Output, bytes, table};
use crate::api::{Api, Reach};

pub(super) async fn peers(api: &Api, output: &Output) -> Result<(), CliError> {
    let peers = api.peers().await?;
    output.value(&peers, |peers| {
        if peers.is_empty() {
            return "no peers".to_owned();
        }
        let rows = peers.iter().map(|peer| {
            let told = |show: fn(&Advert) -> String| peer.advert.as_ref().map_or("-".to_owned(), show);
            vec![
                peer.peer.clone(),
                match (peer.connected, peer.relayed) {
                    (true, true) => "by a relay",
                    (true, false) => "yes",
                    (false, _) => "no",
                }
                .to_owned(),
                peer.round_trip_ms.map_or("-".to_owned(), |ms| format!("{ms:.1} ms")),
                told(|advert| if advert.serves_jobs { "yes" } else { "no" }.to_owned()),
                told(|advert| format!("{}/{}", advert.load.running + advert.load.queued, advert.load.capacity)),
                told(|advert| advert.devices.iter().map(device_name).collect::<Vec<_>>().join(", ")),
                told(|advert| advert.models.iter().map(|held| held.model.to_string()).collect::<Vec<_>>().join(" ")),
            ]
        });
        table(&["PEER", "CONNECTED", "ROUND TRIP", "RUNS JOBS", "LOAD", "DEVICES", "MODELS"], rows)
    })
}

fn device_name(device: &Device) -> String {
    match &device.proof {
        Ok(proof) => format!("{} ({:.0} GFLOP/s)", device.name, proof.gflops),
        Err(_) => device.name.clone(),
    }
}

pub(super) async fn connect(api: &Api, address: &str, output: &Output) -> Result<(), CliError> {
    let peer = api.connect(address).await?;
    output.value(&serde_json::json!({ "peer": peer }), |_| format!("connected to {peer}"))
}

pub(super) async fn id(api: &Api, output: &Output) -> Result<(), CliError> {
    let node = api.node().await?;
    output.value(&node, |node| {
        let mut text = format!("peer        {}\n", node.peer);
        for address in &node.addresses {
            text.push_str(&format!("address     {address}\n"));
        }
        text.push_str(&format!("swarm       {}\n", in_words(node.swarm.as_deref())));
        text.push_str(&format!("reachable   {}\n", reach(node.reachability)));
        text.push_str(&format!(
            "agent       {}\narithmetic  {}\nruns jobs   {}\nload        {} of {}\ndisk        {} of {}",
            node.agent,
            node.arithmetic,
            if node.serves_jobs { "yes" } else { "no" },
            node.load.running + node.load.queued,
            node.load.capacity,
            bytes(node.used_bytes),
            bytes(node.quota_bytes),
        ));
        text
    })
}

/// A swarm and what carries it.
pub(super) fn in_words(swarm: Option<&str>) -> String {
    swarm.map_or("public, over TCP and QUIC".to_owned(), |name| {
        format!("{name}, private, over TCP with a pre-shared key")
    })
}

/// Whether others can open connections to this node, for people.
pub(super) fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::Unknown => "not known: no peer with a public address has tried yet",
        Reach::Public => "yes: peers have opened connections to it",
        Reach::Private => "no: it is behind NAT or a firewall, and no peer passes connections on to it",
        Reach::Relayed => "by a relay: it is behind NAT or a firewall",
    }
}

pub(super) async fn hardware(api: &Api, output: &Output) -> Result<(), CliError> {
    let devices = api.hardware().await?;
    output.value(&devices, |devices| {
        let rows = devices.iter().map(|device| {
            let backend = format!("{:?}", device.backend).to_lowercase();
            let memory = if device.memory_bytes > 0 { bytes(device.memory_bytes) } else { "-".to_owned() };
            match &device.proof {
                Ok(proof) => vec![
                    backend,
                    device.name.clone(),
                    memory,
                    format!("{:.1} GFLOP/s", proof.gflops),
                    format!("{:.1} GB/s", proof.gbytes_per_second),
                    format!("proven, largest error {:.1e}", proof.max_error),
                ],
                Err(reason) => {
                    vec![backend, device.name.clone(), memory, "-".to_owned(), "-".to_owned(), reason.clone()]
                }
            }
        });
        table(&["BACKEND", "DEVICE", "MEMORY", "COMPUTE", "READ", "STATE"], rows)
    })
}
