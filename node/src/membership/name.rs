//! What people call a private swarm.

use std::fmt;
use std::str::FromStr;

/// Characters of a name at most.
const CHARACTERS: usize = 32;

/// A name that a swarm cannot have.
#[derive(Debug, thiserror::Error)]
#[error("the name of a swarm has 1 to {CHARACTERS} characters, letters of ASCII, digits, '.', '_' and '-'")]
pub struct InvalidName;

/// The name of a private swarm. It says nothing about who may come in: the key does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmName(String);

impl FromStr for SwarmName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > CHARACTERS || !text.bytes().all(plain) {
            return Err(InvalidName);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SwarmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
