//! Distance between nodes of one machine: a relay of TCP that lets bytes through later than they came.
//!
//! Kernels that can delay packets are not to be had everywhere, and a runtime's timers count milliseconds; threads that
//! sleep are fine enough.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Result;

/// A way to a node; its distance can be changed while it is in use.
#[derive(Clone, Debug)]
pub struct Distance {
    address: SocketAddr,
    one_way_nanos: Arc<AtomicU64>,
}

impl Distance {
    /// A relay to `target`, whose threads end with the process.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn to(target: SocketAddr, round_trip: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let distance = Self { address: listener.local_addr()?, one_way_nanos: Arc::default() };
        distance.set(round_trip);
        let nanos = distance.one_way_nanos.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                // A relay that cannot have another stream or thread breaks this connection and no other.
                let _broken = relay(&near, &far, &nanos).and_then(|()| relay(&far, &near, &nanos));
            }
        });
        Ok(distance)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long the way there and back takes from now on.
    pub fn set(&self, round_trip: Duration) {
        let nanos = u64::try_from(round_trip.as_nanos() / 2).unwrap_or(u64::MAX);
        self.one_way_nanos.store(nanos, Ordering::Relaxed);
    }
}

/// Lets bytes through in one direction.
fn relay(from: &TcpStream, to: &TcpStream, nanos: &Arc<AtomicU64>) -> std::io::Result<()> {
    let (from, to, nanos) = (from.try_clone()?, to.try_clone()?, nanos.clone());
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    let (arrived, leaving) = channel();
    std::thread::Builder::new().spawn(move || read(from, &arrived, &nanos))?;
    std::thread::Builder::new().spawn(move || write(to, &leaving))?;
    Ok(())
}

fn read(mut from: TcpStream, arrived: &Sender<(Instant, Vec<u8>)>, nanos: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        let leaves = Instant::now() + Duration::from_nanos(nanos.load(Ordering::Relaxed));
        if arrived.send((leaves, buffer[..bytes].to_vec())).is_err() {
            return;
        }
    }
}

fn write(mut to: TcpStream, leaving: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((leaves, bytes)) = leaving.recv() {
        std::thread::sleep(leaves.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // The other side may have closed first.
    let _closed = to.shutdown(Shutdown::Both);
}
