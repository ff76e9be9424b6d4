//! Counters of the hub. Every label is from a fixed set.

use moorline_link::{AcceptError, Carrier};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// All of them; clones share.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub sessions: IntGaugeVec,
    pub greetings: IntCounterVec,
    pub handshake_failures: IntCounterVec,
    pub closes: IntCounterVec,
    pub joins: IntCounterVec,
    pub logins: IntCounterVec,
    pub lockouts: IntCounterVec,
    pub refreshes: IntCounterVec,
    pub rechecks: IntCounterVec,
    pub bundles: IntCounterVec,
    pub bundle_bytes: IntCounterVec,
    pub endpoints: IntGaugeVec,
    pub visits: IntCounterVec,
    pub recordings_taken: IntCounterVec,
    pub bad_tokens: IntCounterVec,
    pub connections: IntGauge,
    pub connections_upgraded: IntGauge,
    pub connections_refused: IntCounter,
    pub accept_errors: IntCounter,
    pub slow_readers: IntCounter,
    pub requests: IntCounterVec,
    pub panics: IntCounter,
    pub streams_revoked: IntCounter,
    pub fallback_streams: IntCounter,
    pub fallback_switches: IntCounterVec,
    pub refusals: IntCounterVec,
    pub status_writes: IntCounterVec,
    pub audit_cut: IntCounter,
    pub access_ended: IntCounter,
    pub node_reports: IntCounterVec,
    pub plans: IntCounterVec,
    pub imports: IntCounterVec,
    pub certificate_current: IntGauge,
    pub authority_offers: IntCounterVec,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let counter = |name: &str, help: &str| {
            let made = IntCounter::new(name, help)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let sessions =
            IntGaugeVec::new(Opts::new("moorline_hub_sessions_open", "Sessions with agents"), &["carrier", "role"])?;
        registry.register(Box::new(sessions.clone()))?;
        let connections = IntGauge::new("moorline_hub_connections_open", "TCP connections, without agents' sessions")?;
        registry.register(Box::new(connections.clone()))?;
        let connections_upgraded = IntGauge::new(
            "moorline_hub_connections_upgraded",
            "Open TCP connections that were upgraded: sessions in terminals, port forwards, imports",
        )?;
        registry.register(Box::new(connections_upgraded.clone()))?;
        let certificate_current = IntGauge::new(
            "moorline_hub_given_certificate_current",
            "Whether the certificate that was given is in use as its files are now (1), or an older one (0)",
        )?;
        registry.register(Box::new(certificate_current.clone()))?;
        let endpoints = IntGaugeVec::new(
            Opts::new("moorline_hub_endpoint_clusters", "Clusters that want bundles, by how it stands with theirs"),
            &["bundle"],
        )?;
        registry.register(Box::new(endpoints.clone()))?;
        Ok(Self {
            certificate_current,
            sessions,
            connections,
            connections_upgraded,
            endpoints,
            bundle_bytes: counters(
                "moorline_hub_bundle_bytes_total",
                "Bytes of bundles that were delivered, whole or as what changed",
                &["form"],
            )?,
            greetings: counters("moorline_hub_greetings_total", "Agents' greetings by answer", &["answer"])?,
            handshake_failures: counters(
                "moorline_hub_handshake_failures_total",
                "Handshakes that came to nothing, by kind",
                &["kind"],
            )?,
            closes: counters("moorline_hub_session_closes_total", "Ended sessions by cause", &["code", "by"])?,
            joins: counters("moorline_hub_joins_total", "Joins by result", &["result"])?,
            visits: counters(
                "moorline_hub_endpoint_visits_total",
                "Visits to endpoints for their audit records, by result",
                &["result"],
            )?,
            recordings_taken: counters(
                "moorline_hub_recordings_taken_total",
                "Recordings of clusters' own endpoints, by what became of them",
                &["result"],
            )?,
            bundles: counters(
                "moorline_hub_bundles_total",
                "Bundles for clusters' own endpoints, by result",
                &["result"],
            )?,
            refreshes: counters(
                "moorline_hub_refreshes_total",
                "Refreshes and logouts of logins, by result",
                &["result"],
            )?,
            bad_tokens: counters(
                "moorline_hub_bad_access_tokens_total",
                "Access tokens refused, by cause",
                &["cause"],
            )?,
            rechecks: counters(
                "moorline_hub_login_rechecks_total",
                "Questions to login providers about who is logged in, by answer",
                &["result"],
            )?,
            lockouts: counters(
                "moorline_hub_lockouts_total",
                "Lockouts for wrong passwords, of user or address",
                &["of"],
            )?,
            authority_offers: counters(
                "moorline_hub_authority_offers_total",
                "Certificates offered to agents because the hub's authority is replaced, by result",
                &["result"],
            )?,
            logins: counters("moorline_hub_logins_total", "Logins by result", &["result"])?,
            connections_refused: counter("moorline_hub_connections_refused_total", "Connections over the bound")?,
            slow_readers: counter(
                "moorline_hub_slow_readers_total",
                "Connections that were ended as their clients took nothing of an answer for too long",
            )?,
            accept_errors: counter("moorline_hub_accept_errors_total", "Failures of accept(2)")?,
            requests: counters("moorline_hub_requests_total", "HTTP requests by kind and status", &["kind", "code"])?,
            panics: counter("moorline_hub_request_panics_total", "Requests whose handling panicked")?,
            imports: counters(
                "moorline_hub_import_connections_total",
                "Connections to imported services, by what became of them",
                &["result"],
            )?,
            fallback_streams: counter(
                "moorline_hub_fallback_streams_total",
                "Streams that a node agent took because no cluster agent could",
            )?,
            fallback_switches: counters(
                "moorline_hub_fallback_switches_total",
                "Clusters whose requests went over to node agents (node), or back to cluster agents (agent)",
                &["to"],
            )?,
            streams_revoked: counter(
                "moorline_hub_streams_revoked_total",
                "Tokens, users and streams whose right was taken away",
            )?,
            refusals: counters(
                "moorline_hub_refusals_total",
                "Requests that ended at the front door, by reason",
                &["reason"],
            )?,
            access_ended: counter("moorline_hub_access_ended_total", "Granted requests that the clock has ended")?,
            plans: counters("moorline_hub_plans_total", "Plans handed to nodes, by result", &["result"])?,
            node_reports: counters(
                "moorline_hub_node_reports_total",
                "Words of node agents about their nodes, by result",
                &["result"],
            )?,
            audit_cut: counter("moorline_hub_audit_cut_total", "Starts that found the audit log cut")?,
            status_writes: counters("moorline_hub_status_writes_total", "Writes of status by result", &["result"])?,
        })
    }

    pub fn handshake_failed(&self, error: &AcceptError) {
        let kind = match error {
            AcceptError::Handshake(_) => "handshake",
            AcceptError::Identity(_) => "identity",
            AcceptError::Timeout => "timeout",
            AcceptError::Protocol(_) => "protocol",
            AcceptError::Version { .. } => "version",
            AcceptError::Lost(_) => "lost",
        };
        self.handshake_failures.with_label_values(&[kind]).inc();
    }

    pub fn session_gauge(&self, carrier: Carrier, node: bool) -> IntGauge {
        let carrier = carrier.to_string();
        self.sessions.with_label_values(&[carrier.as_str(), if node { "node" } else { "agent" }])
    }
}
