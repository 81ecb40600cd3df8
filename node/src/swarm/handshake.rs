//! What can be said of a peer that is reached, but with whom no connection comes about.
//!
//! A pre-shared key shows itself to nobody: with another key, or without one, both sides read noise, and wait for each
//! other or hang up. But the order in which they speak differs. A node of a private swarm begins with a nonce of 24 bytes as
//! soon as somebody is there; any other node of libp2p waits until it is spoken to. So whoever could not be dialled is
//! listened to for a moment. It may still be something else, which is why the words say "probably".

use std::fmt;
use std::time::Duration;

use libp2p::Multiaddr;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::membership::{SwarmName, tcp_socket};

/// Bytes of the nonce that a connection with a pre-shared key begins with.
const NONCE_BYTES: usize = 24;
/// How long the system may take to connect.
const REACHED: Duration = Duration::from_secs(2);
/// How long a nonce may take.
const LISTENS: Duration = Duration::from_secs(1);

/// Why two that reach each other by TCP do not understand each other, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The other begins as nodes of private swarms do, and this node is in none.
    OnlyTheyArePrivate,
    /// The other begins as nodes of private swarms do, and does not understand this swarm's key.
    BothArePrivate(SwarmName),
    /// The other does not begin as nodes of private swarms do, and this node is in one.
    OnlyWeArePrivate(SwarmName),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyTheyArePrivate => f.write_str(
                "it is probably in a private swarm, and this node is in none: join by an invite (accel-cli swarm join TOKEN)",
            ),
            Self::BothArePrivate(own) => write!(
                f,
                "it is probably in a private swarm with another key than that of {own}, which this node is in: another \
                 swarm, or one whose key was changed"
            ),
            Self::OnlyWeArePrivate(own) => write!(
                f,
                "it is probably not in a private swarm, and this node is in {own}, where only members can be reached"
            ),
        }
    }
}

/// What keeps a node that is in the private swarm `own`, or in none, from whoever is at `address`; nothing where that
/// cannot be reached, or where it is not about keys.
pub async fn misfit(address: &Multiaddr, own: Option<&SwarmName>) -> Option<Misfit> {
    let socket = tcp_socket(address)?;
    let mut stream = tokio::time::timeout(REACHED, TcpStream::connect(socket)).await.ok()?.ok()?;
    let mut nonce = [0; NONCE_BYTES];
    let begun = tokio::time::timeout(LISTENS, stream.read_exact(&mut nonce)).await;
    // Other servers that speak first begin with words.
    let is_nonce = matches!(begun, Ok(Ok(_))) && !nonce.iter().all(u8::is_ascii);
    match (is_nonce, own) {
        (true, None) => Some(Misfit::OnlyTheyArePrivate),
        (true, Some(own)) => Some(Misfit::BothArePrivate(own.clone())),
        (false, Some(own)) => Some(Misfit::OnlyWeArePrivate(own.clone())),
        (false, None) => None,
    }
}
