//! A test in a world of its own: file systems and networks that the test makes and nobody else sees.
//!
//! The test's program runs itself again under `unshare`, once, and there the test finds that it may mount and configure
//! as it likes. Whatever it makes vanishes with its last process.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Says to the second run that it is inside.
const INSIDE: &str = "ACCEL_TEST_INSIDE";

/// What the test gets for itself.
#[derive(Clone, Copy, Debug)]
pub enum Own {
    /// File systems.
    Mounts,
    /// Network interfaces.
    Network,
}

impl Own {
    fn flag(self) -> &'static str {
        match self {
            Self::Mounts => "--mount",
            Self::Network => "--net",
        }
    }
}

/// Whether the test named `test` is inside already. If it is not, it runs there now, and this returns when it has passed.
///
/// # Errors
/// When the test fails inside, or this machine lets nobody in.
pub fn is_inside(test: &str, own: Own) -> Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let mut command = unshare(own)?;
    command.arg(std::env::current_exe()?).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = command.stderr(Stdio::inherit()).output().context("run the test inside")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // A name that no test has would pass without a test.
    ensure!(output.status.success() && said.contains("1 passed"), "{test} did not pass inside:\n{said}");
    Ok(false)
}

/// `unshare` as it works here: as an ordinary user by a user namespace, or else as root.
fn unshare(own: Own) -> Result<Command> {
    let as_user = ["--user", "--map-root-user", own.flag(), "--"];
    for flags in [&as_user[..], &as_user[2..]] {
        let tried = Command::new("unshare").args(flags).arg("true").stderr(Stdio::null()).status();
        let tried = tried.context("unshare is missing: install util-linux (on Debian: apt-get install util-linux)")?;
        if tried.success() {
            let mut command = Command::new("unshare");
            command.args(flags);
            return Ok(command);
        }
    }
    anyhow::bail!(
        "this machine gives no namespace of its own ({}): allow unprivileged user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces), or run the tests as root",
        own.flag()
    )
}

/// Runs a command that must succeed, such as `mount` or `ip`.
///
/// # Errors
/// When it is missing or fails, with what it said.
pub fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} is missing: install it (on Debian: apt-get install mount iproute2)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
