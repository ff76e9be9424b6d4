//! Counters of an endpoint. Every label is from a fixed set.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// All of them; clones share.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Who asked, by answer.
    pub callers: IntCounterVec,
    /// Bundles, by what became of them.
    pub bundles: IntCounterVec,
    /// Serial of the bundle in use.
    pub serial: IntGauge,
    /// When it was made.
    pub issued: IntGauge,
    /// When its time is over.
    pub expires: IntGauge,
    /// How old it is.
    pub age: IntGauge,
    /// How long it lasts; below zero: since when nobody gets in.
    pub left: IntGauge,
    /// Open connections.
    pub connections: IntGauge,
    /// Bytes of audit records that the hub has not taken yet.
    pub queued: IntGauge,
    /// Bytes of recordings that the hub has not taken yet.
    pub recordings: IntGauge,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// Names that are already taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, label: &str| {
            let made = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let gauge = |name: &str, help: &str| {
            let made = IntGauge::new(name, help)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        Ok(Self {
            callers: counters(
                "moorline_endpoint_callers_total",
                "Callers by answer, or why they were refused",
                "answer",
            )?,
            bundles: counters("moorline_endpoint_bundles_total", "Bundles that were read, by result", "result")?,
            serial: gauge("moorline_endpoint_bundle_serial", "Serial of the bundle in use; 0: there is none")?,
            issued: gauge("moorline_endpoint_bundle_issued_seconds", "When the bundle in use was made, since 1970")?,
            expires: gauge("moorline_endpoint_bundle_expires_seconds", "When its time is over, since 1970")?,
            age: gauge("moorline_endpoint_bundle_age_seconds", "How old the bundle in use is; 0: there is none")?,
            left: gauge(
                "moorline_endpoint_bundle_left_seconds",
                "How long the bundle in use lasts; below zero: since when nobody gets in by it",
            )?,
            connections: gauge("moorline_endpoint_connections_open", "TCP connections")?,
            queued: gauge("moorline_endpoint_audit_queued_bytes", "Audit records that the hub has not taken yet")?,
            recordings: gauge(
                "moorline_endpoint_recordings_queued_bytes",
                "Recordings of sessions in terminals that the hub has not taken yet",
            )?,
        })
    }
}
