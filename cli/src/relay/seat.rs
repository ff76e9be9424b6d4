//! What a relay keeps: `relay/` beside the settings, its owner's alone.
//!
//! `seat.json` has its port and the secret that its user shows to it; `ca.crt` and `ca.key` are its own authority, which no
//! program but this user's kubectl believes; one file for each cluster says where the direct way leads.

use crate::{
    failure::advise,
    files::{self, ProcessLock},
    settings::{self, Secret},
};
use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use moorline_endpoint::tls;
use serde::{Deserialize, Serialize};
use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    path::PathBuf,
    time::Duration,
};

/// Ports to choose from: below those that systems give to outgoing connections (Linux: 32768 and up).
const PORTS: Range<u16> = 20_000..30_000;
/// Tries to find one that is free.
const TRIES: u32 = 100;
/// Longest wait for another program of this user that chooses.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names of a relay.
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

/// Where this user's relay listens, and what it wants to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// TCP, on 127.0.0.1.
    pub port: u16,
    /// A bearer token that is good at the relay alone.
    pub secret: Secret,
}

/// The way to a cluster that does not lead through the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direct {
    /// `https://host:port`
    pub server: String,
    /// PEM.
    pub authority: String,
}

/// The folder.
pub fn dir() -> anyhow::Result<PathBuf> {
    Ok(settings::path()?.with_file_name("relay"))
}

impl Seat {
    /// What was chosen before, if anything was.
    pub fn load() -> anyhow::Result<Option<Self>> {
        let path = dir()?.join("seat.json");
        let Some(text) = files::read_text(&path)? else { return Ok(None) };
        let read = serde_json::from_str(&text);
        Ok(Some(read.with_context(|| format!("{} is damaged; delete it and write the contexts anew", path.display()))?))
    }

    /// The same; chosen now where nothing was, or where `port` is another.
    pub async fn take(port: Option<u16>) -> anyhow::Result<Self> {
        let dir = dir()?;
        files::make_private_dir(&dir)?;
        let _one = ProcessLock::take(&dir.join("seat"), PATIENCE).await?;
        let before = Self::load()?;
        let seat = match (before, port) {
            (Some(before), None) => return Ok(before),
            (Some(before), Some(port)) => Self { port, ..before },
            (None, port) => Self {
                port: port.map_or_else(free_port, Ok)?,
                secret: Secret::new(format!("mll_{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))),
            },
        };
        let text = serde_json::to_vec(&seat)?;
        files::write_private(&dir.join("seat.json"), &text)?;
        Ok(seat)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The server of a cluster's context.
    pub fn server(&self, hub: &str, cluster: &str) -> String {
        format!("{}/hubs/{}/clusters/{cluster}", self.url(), place(hub))
    }

    /// Its authority, PEM: made the first time.
    pub fn authority(&self) -> anyhow::Result<String> {
        Ok(self.certificate()?.ca_pem)
    }

    /// What it proves itself with.
    pub fn certificate(&self) -> anyhow::Result<tls::Served> {
        Ok(tls::own(&dir()?, &NAMES.map(str::to_owned))?)
    }
}

fn free_port() -> anyhow::Result<u16> {
    let any = || rand::random_range(PORTS);
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let found = (0..TRIES).map(|_| any()).find(free);
    found.ok_or_else(|| advise("no free port was found on this machine's loopback", "name one: --auto-port PORT"))
}

/// A hub's address as one segment of a path, and of a file's name.
pub fn place(url: &str) -> String {
    let place = url.trim_start_matches("https://");
    place.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect()
}

fn record(hub: &str, cluster: &str) -> anyhow::Result<PathBuf> {
    Ok(dir()?.join(format!("{}~{cluster}.json", place(hub))))
}

/// Keeps where the direct way to a cluster leads.
pub fn remember(hub: &str, cluster: &str, direct: Option<&Direct>) -> anyhow::Result<()> {
    files::write_private(&record(hub, cluster)?, &serde_json::to_vec(&direct)?)
}

/// What was kept last.
pub fn recall(hub: &str, cluster: &str) -> anyhow::Result<Option<Direct>> {
    let text = files::read_text(&record(hub, cluster)?)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_one_segment_of_a_path() {
        assert_eq!(place("https://hub-1.example:8443"), "hub-1.example_8443");
        assert_eq!(place("https://[2001:db8::1]"), "_2001_db8__1_");
        let seat = Seat { port: 20_001, secret: Secret::new("x".into()) };
        assert_eq!(seat.server("https://h:1", "edge1"), "https://127.0.0.1:20001/hubs/h_1/clusters/edge1");
    }
}
