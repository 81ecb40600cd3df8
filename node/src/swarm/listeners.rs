//! Whether the addresses that a node listens on are up.
//!
//! rust-ipfs reports them late and only logs what fails, so each is waited for. One that stands for all addresses of the
//! machine comes up address by address, and whoever asks the node where it listens is to hear of all of them.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use rust_ipfs::Ipfs;

use super::{DIAL_TIMEOUT, SwarmError, ipfs};

/// How long the further addresses of a listener on all of them may take: the system may know some that nobody reports.
const FURTHER: Duration = Duration::from_secs(1);

/// Waits until the node listens on each address of `listen`.
///
/// # Errors
/// When one does not come up.
pub async fn wait(node: &Ipfs, listen: &[Multiaddr]) -> Result<(), SwarmError> {
    for wanted in listen {
        until(node, wanted, |addresses| addresses.iter().any(|found| is_of(found, wanted)), DIAL_TIMEOUT).await?;
    }
    let own = if_addrs::get_if_addrs().unwrap_or_default();
    for wanted in listen {
        let Some(all) = ip(wanted).filter(IpAddr::is_unspecified) else { continue };
        let ips = own.iter().map(if_addrs::Interface::ip).filter(|ip| ip.is_ipv4() == all.is_ipv4());
        let ips: Vec<IpAddr> = ips.collect();
        let all_up = |addresses: &[Multiaddr]| {
            let up = |own: &IpAddr| addresses.iter().any(|found| ip(found) == Some(*own) && is_of(found, wanted));
            ips.iter().all(up)
        };
        if until(node, wanted, all_up, FURTHER).await.is_err() {
            tracing::debug!(address = %wanted, "does not come up on all addresses of this machine");
        }
    }
    Ok(())
}

async fn until(
    node: &Ipfs,
    wanted: &Multiaddr,
    is_up: impl Fn(&[Multiaddr]) -> bool,
    within: Duration,
) -> Result<(), SwarmError> {
    let failed = || SwarmError::Listen { address: wanted.clone() };
    let mut events = node.swarm_events().await.map_err(ipfs("watch the swarm"))?;
    let wait = async {
        while !is_up(&node.listening_addresses().await.map_err(ipfs("list listeners"))?) {
            events.next().await.ok_or_else(failed)?;
        }
        Ok(())
    };
    tokio::time::timeout(within, wait).await.map_err(|_| failed())?
}

/// Whether `found` is what a node that is to listen on `wanted` may listen on.
fn is_of(found: &Multiaddr, wanted: &Multiaddr) -> bool {
    let same_ip = ip(wanted).is_none_or(|wanted| wanted.is_unspecified() || ip(found) == Some(wanted));
    match (port(found), port(wanted)) {
        (Some((found_udp, found_port)), Some((wanted_udp, wanted_port))) => {
            same_ip && found_udp == wanted_udp && (wanted_port == 0 || found_port == wanted_port)
        }
        _ => false,
    }
}

fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Whether it is one of UDP, and its number.
fn port(address: &Multiaddr) -> Option<(bool, u16)> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some((false, port)),
        Protocol::Udp(port) => Some((true, port)),
        _ => None,
    })
}
