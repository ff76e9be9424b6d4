//! What an agent counts.

use moorline_link::Carrier;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The agent's metrics, registered once.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Whether a session to the hub serves (0 or 1).
    pub session_up: IntGauge,
    /// Whether the hub wants no session of this agent now (0 or 1): others stand by.
    pub parked: IntGauge,
    /// Attempts to dial the hub, by result.
    pub dials: IntCounterVec,
    /// Ends of sessions, by code.
    pub closes: IntCounterVec,
    /// Moves of the session to another carrier, by both.
    pub moves: IntCounterVec,
    /// What carries the session (1) and what does not (0).
    pub carrier: IntGaugeVec,
    /// Streams being served.
    pub streams: IntGauge,
    /// Streams refused before they were served, by code.
    pub refusals: IntCounterVec,
    /// Tasks of streams that failed by a bug; each ended its stream alone.
    pub panics: IntCounter,
    /// Requests to the API server, by result.
    pub upstream_requests: IntCounterVec,
    /// Connections to the API server.
    pub upstream_connections: IntGauge,
    /// Round trip to the hub in milliseconds, as last probed.
    pub rtt: IntGauge,
    /// Renewals of the certificate, by result.
    pub renewals: IntCounterVec,
    /// When the certificate expires, seconds since the Unix epoch.
    pub certificate_expiry: IntGauge,
    /// Bundles for the cluster's own endpoint, by result.
    pub bundles: IntCounterVec,
    /// Whether the policy file, as it is now, is in force (1) or an older one is (0).
    pub policy_current: IntGauge,
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// One of the names is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let metric = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let moves = Opts::new("moorline_agent_moves_total", "Moves of the session to another carrier");
        let moves = IntCounterVec::new(moves, &["from", "to"])?;
        registry.register(Box::new(moves.clone()))?;
        let carrier = Opts::new("moorline_agent_session_carrier", "What carries the session to the hub");
        let carrier = IntGaugeVec::new(carrier, &["carrier"])?;
        registry.register(Box::new(carrier.clone()))?;
        Ok(Self {
            moves,
            carrier,
            session_up: gauge("moorline_agent_session_up", "Whether a session to the hub serves")?,
            parked: gauge(
                "moorline_agent_parked",
                "Whether the hub wants no session of this agent now: others stand by",
            )?,
            dials: counters("moorline_agent_dials_total", "Attempts to dial the hub", "result")?,
            closes: counters("moorline_agent_session_closes_total", "Ends of sessions to the hub", "code")?,
            streams: gauge("moorline_agent_streams", "Streams being served")?,
            refusals: counters(
                "moorline_agent_streams_refused_total",
                "Streams refused before they were served",
                "code",
            )?,
            panics: counter("moorline_agent_stream_panics_total", "Tasks of streams that failed by a bug")?,
            upstream_requests: counters(
                "moorline_agent_upstream_requests_total",
                "Requests to the API server",
                "result",
            )?,
            upstream_connections: gauge("moorline_agent_upstream_connections", "Connections to the API server")?,
            rtt: gauge("moorline_agent_session_rtt_milliseconds", "Round trip to the hub")?,
            renewals: counters("moorline_agent_certificate_renewals_total", "Renewals of the certificate", "result")?,
            certificate_expiry: gauge(
                "moorline_agent_certificate_expiry_timestamp_seconds",
                "When the certificate expires",
            )?,
            bundles: counters(
                "moorline_agent_endpoint_bundles_total",
                "Bundles of the hub for the cluster's own endpoint: kept whole or as a delta, or why they were refused",
                "result",
            )?,
            policy_current: gauge("moorline_agent_policy_current", "Whether the policy file as it is now is in force")?,
        })
    }

    /// Notes what carries the session.
    pub fn carries(&self, now: Carrier) {
        for carrier in [Carrier::Quic, Carrier::Tls, Carrier::WebSocket] {
            self.carrier.with_label_values(&[carrier.to_string()]).set(i64::from(carrier == now));
        }
    }
}
