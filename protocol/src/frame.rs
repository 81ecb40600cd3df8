//! A frame: four bytes of length, big-endian, then bincode. Both are bounded before anything is allocated.
//!
//! While decoding, the limit counts integers at their full width and not as the bytes they take on the wire, so that a
//! small frame cannot become a large value. What is sent has to stay well inside it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::FRAME_BYTES;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// A frame that is not well-formed or too large.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length prefix or the value is over the limit.
    #[error("a frame of {found} bytes is over the limit of {FRAME_BYTES} bytes")]
    TooLarge {
        /// Bytes announced or needed.
        found: usize,
    },
    /// The bytes are not a value of the expected type.
    #[error("malformed frame: {0}")]
    Malformed(#[source] bincode::error::DecodeError),
    /// Bytes are left over after the value.
    #[error("{left} bytes are left over after the value in a frame")]
    Trailing {
        /// How many.
        left: usize,
    },
    /// The value cannot be encoded.
    #[error("a value cannot be encoded: {0}")]
    Encode(#[source] bincode::error::EncodeError),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_BYTES>()
}

/// A value's bytes, without a prefix.
///
/// # Errors
/// When the value cannot be encoded or is over the limit.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = bincode::serde::encode_to_vec(value, config()).map_err(FrameError::Encode)?;
    if bytes.len() > FRAME_BYTES {
        return Err(FrameError::TooLarge { found: bytes.len() });
    }
    Ok(bytes)
}

/// The value that `bytes` hold, all of them.
///
/// # Errors
/// When the bytes are not exactly one value, or too many.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    if bytes.len() > FRAME_BYTES {
        return Err(FrameError::TooLarge { found: bytes.len() });
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, config()).map_err(FrameError::Malformed)?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(FrameError::Trailing { left }),
    }
}

/// A value's frame: prefix and bytes.
///
/// # Errors
/// As [`encode`].
pub fn frame<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let body = encode(value)?;
    let mut frame = Vec::with_capacity(PREFIX_BYTES + body.len());
    let length = u32::try_from(body.len()).map_err(|_| FrameError::TooLarge { found: body.len() })?;
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// How many bytes follow a prefix.
///
/// # Errors
/// When they are over the limit.
pub fn body_length(prefix: [u8; PREFIX_BYTES]) -> Result<usize, FrameError> {
    let found = u32::from_be_bytes(prefix) as usize;
    if found > FRAME_BYTES { Err(FrameError::TooLarge { found }) } else { Ok(found) }
}
