//! What a command prints: a table or a line for people, or one JSON value for programs.
//!
//! Peers name their devices and word their errors, so that control characters are taken out of what a terminal gets to
//! see of them.

use std::io::{ErrorKind, IsTerminal, Write};

use accel_protocol::ErrorCode;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::CliError;

/// Where and how a command prints.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `value` for programs, or what `text` makes of it for people.
    pub(super) fn value<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        let mut line =
            if self.json { serde_json::to_string(value).map_err(|error| failed(&error))? } else { text(value) };
        if !line.ends_with('\n') && !line.is_empty() {
            line.push('\n');
        }
        self.write(&line)
    }

    /// Writes text as it stands, at once.
    pub(super) fn write(&self, text: &str) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => CliError::Closed,
            _ => failed(&error),
        })
    }

    /// A piece of a model's answer: a file gets it as it stands, a terminal without control characters.
    pub(super) fn answer(&self, text: &str) -> Result<(), CliError> {
        if std::io::stdout().is_terminal() { self.write(&printable(text)) } else { self.write(text) }
    }

    /// A line for people beside the data; programs and files do not get it.
    pub(super) fn note(&self, text: &str) {
        if !self.json && std::io::stderr().is_terminal() {
            tell(text);
        }
    }

    /// Shows why the command failed.
    pub(super) fn error(&self, code: ErrorCode, error: &CliError) {
        // Whoever read the output has gone and wants to hear no more.
        if matches!(error, CliError::Closed) {
            return;
        }
        if self.json {
            let value = serde_json::json!({ "error": { "code": code, "message": error.to_string() } });
            // With standard output closed there is nobody left to tell.
            let _closed = self.write(&format!("{value}\n"));
        } else {
            tell(&format!("error: {}", printable(&error.to_string())));
        }
    }

    /// A progress bar over bytes; hidden unless a person looks on.
    pub(super) fn bytes_bar(&self, what: &str) -> Bar {
        self.bar(what, "{msg:<12} {bar:30} {bytes:>10} of {total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4}")
    }

    /// A progress bar over tokens; hidden unless a person looks on.
    pub(super) fn tokens_bar(&self, what: &str) -> Bar {
        self.bar(what, "{msg:<12} {bar:30} {pos:>7} of {len:<7} tokens {per_sec:>12} {eta:>4}")
    }

    /// A progress bar over steps; hidden unless a person looks on.
    pub(super) fn steps_bar(&self, what: &str) -> Bar {
        self.bar(what, "{msg:<12} {bar:30} {pos:>7} of {len:<7} {eta:>4}")
    }

    fn bar(&self, what: &str, style: &str) -> Bar {
        let hidden = self.json || !std::io::stderr().is_terminal();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Bar { bar }
    }
}

/// A progress bar; it vanishes when dropped.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub(super) fn show(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn failed(error: &dyn std::fmt::Display) -> CliError {
    CliError::Failed { doing: "write to standard output".to_owned(), message: error.to_string() }
}

/// A line on standard error. Where that is closed there is nobody left to tell.
fn tell(line: &str) {
    let _closed = writeln!(std::io::stderr(), "{line}");
}

/// The text without what would steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A plain table under `head`.
pub(super) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    // Each cell is padded on both sides; a line begins and ends with text.
    let plain = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
    let lines: Vec<String> = table.lines().map(plain).collect();
    lines.join("\n")
}

/// Bytes in the unit that suits them.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
