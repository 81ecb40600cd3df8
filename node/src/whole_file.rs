//! Small files that are the old one or the new one, whatever happens.

use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Who may read a file that anybody may.
pub const FOR_ALL: u32 = 0o644;
/// Who may read a secret: its owner.
pub const FOR_OWNER: u32 = 0o600;

/// Writes a file aside, waits for the disk, and puts it in the place of what was there.
///
/// # Errors
/// When it cannot be written; then what was there still is.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = Path::new(&aside);
    // One that was left behind by a crash may be readable by others.
    match std::fs::remove_file(aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(aside, path)?;
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        _ => Ok(()),
    }
}
