//! Where a member of a private swarm is reached: by TCP, at an address of the Internet Protocol, with its id.
//!
//! Names of hosts are not among them, for the swarm resolves none.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

/// An address at which no member can be reached.
#[derive(Debug, thiserror::Error)]
#[error("{found}: expected /ip4/ADDRESS/tcp/PORT or /ip6/ADDRESS/tcp/PORT of one machine, with /p2p/PEER_ID behind it")]
pub struct InvalidAddress {
    found: String,
}

/// Where a member is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberAddress {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub address: SocketAddr,
}

impl MemberAddress {
    /// `peer` at `address`.
    ///
    /// # Errors
    /// When that is no address of one machine: unspecified, of a group, or without a port.
    pub fn new(peer: PeerId, address: SocketAddr) -> Result<Self, InvalidAddress> {
        let ip = address.ip();
        // A link-local address of IPv6 means something else on each machine.
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let group = ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        if address.port() == 0 || ip.is_unspecified() || group || link_local {
            return Err(InvalidAddress { found: address.to_string() });
        }
        Ok(Self { peer, address: SocketAddr::new(ip, address.port()) })
    }

    /// What `address` says; `peer` is meant where it names none.
    ///
    /// # Errors
    /// When it is another kind of address, or names nobody.
    pub fn parse(address: &Multiaddr, peer: Option<PeerId>) -> Result<Self, InvalidAddress> {
        let wrong = || InvalidAddress { found: address.to_string() };
        let socket = tcp_socket(address).ok_or_else(wrong)?;
        let named = match address.iter().nth(2) {
            Some(Protocol::P2p(named)) if address.iter().count() == 3 => Some(named),
            None => peer,
            Some(_) => None,
        };
        Self::new(named.ok_or_else(wrong)?, socket).map_err(|_| wrong())
    }

    /// The address as the swarm dials it.
    pub fn to_multiaddr(self) -> Multiaddr {
        Multiaddr::from(self.address.ip()).with(Protocol::Tcp(self.address.port())).with(Protocol::P2p(self.peer))
    }
}

impl fmt::Display for MemberAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_multiaddr().fmt(f)
    }
}

/// The socket that an address begins with, when that is one of TCP.
pub fn tcp_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// Where `peer` is reached that listens on `listen`, on a machine with the addresses `own`. A port that is chosen only when
/// the node starts cannot be told.
pub fn listening(peer: PeerId, listen: &[Multiaddr], own: &[IpAddr]) -> Vec<MemberAddress> {
    let mut found = Vec::new();
    for socket in listen.iter().filter_map(tcp_socket) {
        let ips = match socket.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => own.iter().copied().filter(IpAddr::is_ipv4).collect(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => own.iter().copied().filter(IpAddr::is_ipv6).collect(),
            ip => vec![ip],
        };
        let addresses = ips.into_iter().map(|ip| SocketAddr::new(ip, socket.port()));
        found.extend(addresses.filter_map(|address| MemberAddress::new(peer, address).ok()));
    }
    found
}

/// Those that other machines can reach, each once; loopback only where there is nothing else.
pub fn reachable(addresses: impl IntoIterator<Item = MemberAddress>) -> Vec<MemberAddress> {
    let mut kept: Vec<MemberAddress> = Vec::new();
    for address in addresses {
        if !kept.contains(&address) {
            kept.push(address);
        }
    }
    let is_loopback = |member: &MemberAddress| member.address.ip().is_loopback();
    if !kept.iter().all(is_loopback) {
        kept.retain(|member| !is_loopback(member));
    }
    // What a machine gave itself because nobody gave it an address reaches its own wire only.
    let last_resort = |member: &MemberAddress| matches!(member.address.ip(), IpAddr::V4(ip) if ip.is_link_local());
    kept.sort_by_key(last_resort);
    kept
}
