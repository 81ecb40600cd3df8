//! Who a node is: an ed25519 key, kept in a file that only its owner can read.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use libp2p::identity::Keypair;

/// An identity that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be used.
    #[error("identity {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no key.
    #[error(
        "identity {}: not an ed25519 key in libp2p's encoding; restore it, or remove it to become a new peer",
        path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
    },
}

/// The key in `path`, made when there is none.
///
/// # Errors
/// When the file cannot be read or written, or holds no key.
pub fn load_or_create(path: &Path) -> Result<Keypair, IdentityError> {
    let file = |source| IdentityError::File { path: path.to_owned(), source };
    match std::fs::read(path) {
        Ok(bytes) => {
            Keypair::from_protobuf_encoding(&bytes).map_err(|_| IdentityError::Invalid { path: path.to_owned() })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let keypair = Keypair::generate_ed25519();
            let bytes = keypair.to_protobuf_encoding().map_err(|_| IdentityError::Invalid { path: path.to_owned() })?;
            // Written beside its place and renamed, so that a crash never leaves half a key.
            let beside = path.with_extension("new");
            let mut target =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside).map_err(file)?;
            target.write_all(&bytes).and_then(|()| target.sync_all()).map_err(file)?;
            std::fs::rename(&beside, path).map_err(file)?;
            Ok(keypair)
        }
        Err(error) => Err(file(error)),
    }
}
