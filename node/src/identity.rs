//! Who a node is: an ed25519 key, kept in a file that only its owner can read.

use std::io::ErrorKind;
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
            crate::data_dir::replace(path, &bytes).map_err(file)?;
            Ok(keypair)
        }
        Err(error) => Err(file(error)),
    }
}
