//! Configurations as Python writes them.

use std::io;

use accel_backends::files::{FileInfo, ModelFiles};
use accel_models::config::{Config, ConfigError};

/// A model whose only file is its configuration.
struct Text {
    files: Vec<FileInfo>,
    text: String,
}

impl ModelFiles for Text {
    fn files(&self) -> &[FileInfo] {
        &self.files
    }

    fn read_at(&self, _file: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        buffer.copy_from_slice(&self.text.as_bytes()[from..][..buffer.len()]);
        Ok(())
    }
}

fn read(text: &str) -> Result<Config, ConfigError> {
    let files = vec![FileInfo { name: "config.json".into(), bytes: text.len() as u64 }];
    Config::read(&Text { files, text: text.into() })
}

#[test]
fn infinity_is_a_number() {
    let config = read(r#"{"limit": [0.0, Infinity], "low": -Infinity, "plain": 1.5}"#).unwrap();
    assert_eq!(config.numbers("limit", 2).unwrap(), [0.0, f64::INFINITY]);
    assert_eq!(config.number("low").unwrap(), f64::NEG_INFINITY);
    assert_eq!(config.number("plain").unwrap(), 1.5);
    assert!(config.size("limit").is_err() && config.size("low").is_err());
}

#[test]
fn what_is_no_number_spoils_only_its_own_key() {
    let config = read(r#"{"scale": NaN, "size": 3}"#).unwrap();
    assert_eq!(config.size("size").unwrap(), 3);
    assert!(config.number("scale").is_err() && config.text("scale").is_err());
}

#[test]
fn texts_keep_their_words() {
    let config = read(r#"{"name": "Infinity \" NaN", "NaN": "-Infinity\\", "limit": Infinity}"#).unwrap();
    assert_eq!(config.text("name").unwrap(), "Infinity \" NaN");
    assert_eq!(config.text("NaN").unwrap(), "-Infinity\\");
    assert_eq!(config.number("limit").unwrap(), f64::INFINITY);
}

#[test]
fn nothing_else_is_let_through() {
    for text in [
        "{Infinity: 1}",
        "{NaN: 1}",
        r#"{"a": Infinity5}"#,
        r#"{"a": NaNs}"#,
        r#"{"a": +Infinity}"#,
        r#"{"a": --Infinity}"#,
        r#"{"a": 1Infinity}"#,
        r#"{"a": 1-Infinity}"#,
        r#"{"a": infinity}"#,
        r#"{"a": Infinity"#,
        r#"{"a": "Infinity}"#,
        "Infinity",
    ] {
        assert!(matches!(read(text), Err(ConfigError::Syntax { .. })), "{text}");
    }
}
