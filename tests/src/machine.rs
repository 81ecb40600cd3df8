//! Machines of their own network inside a test: each a network namespace, joined by cables, behind a router where one is
//! wanted. A test makes them inside the namespace that [`crate::namespace`] gives it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::namespace::command;

/// At which port a router sends on what comes from behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// At that where it came from, if it is free: two behind such routers can open a way to each other.
    Kept,
    /// At one that nobody can guess.
    Random,
}

/// A machine. It is there as long as its handle.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// Keeps the namespace open.
    holder: Child,
    /// Runs `accel-cli` there.
    program: PathBuf,
    /// Where our programs are.
    programs: PathBuf,
}

impl Machine {
    /// A machine that is connected to nothing yet. Its name is at most ten letters.
    ///
    /// # Errors
    /// When the system gives no namespace.
    pub fn new(cluster: &Cluster, name: &str) -> Result<Self> {
        let mut holder = Command::new("unshare");
        // It says when it is there, and ends with whoever holds its input.
        holder.args(["--net", "--", "sh", "-c", "ip link set lo up && echo up && read -r _"]);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("unshare")?;
        let mut up = String::new();
        let said = holder.stdout.as_mut().context("no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut up)?;
        ensure!(up == "up\n", "the machine {name} does not come up");
        let program = cluster.path(&format!("on-{name}"));
        let text = format!(
            "#!/bin/sh\nexec nsenter --net=/proc/{}/ns/net {} \"$@\"\n",
            holder.id(),
            cluster.program().display()
        );
        std::fs::write(&program, text)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        let programs = cluster.program().parent().context("no directory of programs")?.to_owned();
        Ok(Self { name: name.to_owned(), holder, program, programs })
    }

    /// `accel-cli` as it runs there.
    pub fn program(&self) -> &PathBuf {
        &self.program
    }

    /// Runs a command there that must succeed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.id());
        command("nsenter", &[&[namespace.as_str(), program][..], arguments].concat())
    }

    /// A line for the shell of somebody at this machine, whose home is `home` and who has our programs.
    ///
    /// # Errors
    /// When it is not known where those are.
    pub fn shell(&self, line: &str, home: &Path) -> Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new("nsenter");
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.id());
        let path = format!("{}:{}", self.programs.display(), std::env::var("PATH").context("no PATH")?);
        command.args([namespace.as_str(), "sh", "-c", line]).env_clear();
        command.env("PATH", path).env("HOME", home).current_dir(home);
        Ok(command)
    }

    /// Lays a cable from here to a switch in the test's own namespace, and gives this end an address such as
    /// `10.0.0.1/24`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn plug(&self, switch: &str, address: &str) -> Result<()> {
        let (here, there) = (format!("{}-{switch}", self.name), format!("{switch}-{}", self.name));
        let namespace = self.holder.id().to_string();
        command("ip", &["link", "add", &there, "type", "veth", "peer", "name", &here, "netns", &namespace])?;
        command("ip", &["link", "set", &there, "master", switch, "up"])?;
        self.run("ip", &["address", "add", address, "dev", &here])?;
        self.run("ip", &["link", "set", &here, "up"])
    }

    /// Sends what goes elsewhere to a router.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn route(&self, router: &str) -> Result<()> {
        self.run("ip", &["route", "add", "default", "via", router])
    }

    /// Makes a router of it that hides those behind it, as those at home do: what comes from behind goes out under its own
    /// address, and what comes in that was not asked for is dropped without an answer.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn hide(&self, outside: &str, ports: Ports) -> Result<()> {
        let interface = format!("{}-{outside}", self.name);
        let how = match ports {
            Ports::Kept => "",
            Ports::Random => "fully-random",
        };
        let rules = format!(
            "table ip nat {{
                chain out {{ type nat hook postrouting priority 100; oifname \"{interface}\" masquerade {how}; }}
            }}
            table ip filter {{
                chain to_itself {{
                    type filter hook input priority 0;
                    iifname \"{interface}\" ct state new drop;
                }}
                chain through {{
                    type filter hook forward priority 0; policy drop;
                    oifname \"{interface}\" accept;
                    ct state established,related accept;
                }}
            }}"
        );
        self.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        self.run("nft", &[&rules])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its input closed it ends; what it made vanishes with the last process in it.
        drop(self.holder.stdin.take());
        if let Err(error) = self.holder.wait() {
            eprintln!("the machine {} did not end: {error}", self.name);
        }
    }
}

/// A switch in the test's own namespace.
///
/// # Errors
/// When the system refuses.
pub fn switch(name: &str) -> Result<()> {
    command("ip", &["link", "add", name, "type", "bridge"])?;
    command("ip", &["link", "set", name, "up"])
}
