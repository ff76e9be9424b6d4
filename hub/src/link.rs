//! What the tunnel to each cluster is like at this moment: for people, and as metrics.

use crate::{
    sessions::{Entry, Registry},
    status::time,
};
use prometheus::{
    GaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use serde::Serialize;
use std::sync::Arc;

/// One session, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Link {
    /// Name of the `Agent` object.
    pub agent: String,
    /// `cluster` or `node`.
    pub role: &'static str,
    /// `quic`, `tls` or `websocket`.
    pub carrier: String,
    /// In the agent's words: why it is on none that is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// RFC 3339.
    pub connected_since: String,
    /// Where it comes from, address and port.
    pub remote_address: String,
    /// The carrier's newest estimate of the round trip, in milliseconds.
    pub rtt_ms: f64,
    /// Packets to the agent, since the session began; absent over TCP, which does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<Packets>,
    /// Streams that are open.
    pub open_streams: usize,
    /// It takes no new streams.
    pub draining: bool,
    /// It has not answered its last probe.
    pub in_doubt: bool,
    /// What the agent is.
    pub software: String,
}

/// Packets that this side sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Packets {
    /// All of them.
    pub sent: u64,
    /// Those that never arrived, as far as is known.
    pub lost: u64,
    /// The second in hundredths of the first.
    pub lost_percent: f64,
}

impl Packets {
    /// What was sent and lost after `before`.
    pub fn since(now: (u64, u64), before: (u64, u64)) -> Self {
        let (sent, lost) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
        let lost_percent = if sent == 0 { 0.0 } else { 100.0 * lost as f64 / sent as f64 };
        Self { sent, lost, lost_percent }
    }
}

impl Link {
    /// How a session is now.
    pub fn of(entry: &Entry) -> Self {
        let session = &entry.session;
        Self {
            agent: entry.agent.clone(),
            role: if entry.node { "node" } else { "cluster" },
            carrier: session.carrier().to_string(),
            why: entry.why(),
            connected_since: time(entry.since),
            remote_address: session.remote().to_string(),
            rtt_ms: session.rtt().as_secs_f64() * 1e3,
            packets: session.losses().map(|now| Packets::since(now, (0, 0))),
            open_streams: session.open_streams(),
            draining: session.is_draining(),
            in_doubt: *entry.doubt.borrow(),
            software: entry.software.clone(),
        }
    }
}

/// Round trip, loss and budgets of every session, read when somebody asks for metrics and never otherwise. As many series as
/// sessions, which the hub bounds.
pub(crate) struct Links {
    registry: Arc<Registry>,
    rtt: GaugeVec,
    loss: GaugeVec,
    buffered: GaugeVec,
    relieved: GaugeVec,
}

impl Links {
    pub fn new(registry: Arc<Registry>) -> prometheus::Result<Self> {
        let labels = ["cluster", "agent", "carrier"];
        let gauge = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &labels);
        Ok(Self {
            registry,
            rtt: gauge("moorline_hub_session_rtt_seconds", "Round trip of each session")?,
            loss: gauge(
                "moorline_hub_session_loss_ratio",
                "Share of packets lost since each session began, QUIC alone",
            )?,
            buffered: gauge(
                "moorline_hub_session_buffered_bytes",
                "Bytes held for the streams of each session, over TCP alone: at most 32 MiB to be read and 8 MiB to be sent",
            )?,
            relieved: gauge(
                "moorline_hub_session_streams_reset_for_room",
                "Streams of each session that were reset because nobody read them and others needed their room",
            )?,
        })
    }

    fn all(&self) -> [&GaugeVec; 4] {
        [&self.rtt, &self.loss, &self.buffered, &self.relieved]
    }
}

impl Collector for Links {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }
    fn collect(&self) -> Vec<MetricFamily> {
        self.all().into_iter().for_each(GaugeVec::reset);
        for entry in self.registry.all() {
            let link = Link::of(&entry);
            let labels = [entry.cluster.as_str(), link.agent.as_str(), link.carrier.as_str()];
            self.rtt.with_label_values(&labels).set(link.rtt_ms / 1e3);
            if let Some(packets) = link.packets {
                self.loss.with_label_values(&labels).set(packets.lost_percent / 100.0);
            }
            if let Some(bytes) = entry.session.buffered() {
                self.buffered.with_label_values(&labels).set(bytes as f64);
            }
            self.relieved.with_label_values(&labels).set(entry.session.relieved() as f64);
        }
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_of_what_was_sent_meanwhile() {
        assert_eq!(Packets::since((0, 0), (0, 0)).lost_percent, 0.0);
        assert_eq!(Packets::since((300, 12), (100, 10)), Packets { sent: 200, lost: 2, lost_percent: 1.0 });
    }
}
