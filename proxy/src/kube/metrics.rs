//! Counters and histograms of the proxy. Labels are of fixed sets, whatever clients send.

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters and histograms of the proxy.
#[derive(Debug, Clone)]
pub struct ProxyMetrics {
    pub(super) requests: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) in_flight: IntGauge,
    pub(super) bytes_in: IntCounter,
    pub(super) bytes_out: IntCounter,
    pub(super) audit_refusals: IntCounter,
    pub(super) slow_bodies: IntCounter,
    pub(super) recordings: IntCounterVec,
    pub(super) recordings_open: IntGauge,
    pub(super) recordings_lost: IntCounter,
}

impl ProxyMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// Names that are already taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = Opts::new("moorline_proxy_requests_total", "Calls to clusters that have ended.");
        let duration = HistogramOpts::new(
            "moorline_proxy_request_duration_seconds",
            "From the request's head to the answer's end.",
        )
        .buckets(prometheus::exponential_buckets(0.001, 4.0, 10)?);
        let bytes = |direction: &str| {
            let opts = Opts::new("moorline_proxy_bytes_total", "Bytes of bodies and upgraded connections.");
            IntCounter::with_opts(opts.const_label("direction", direction))
        };
        let this = Self {
            requests: IntCounterVec::new(requests, &["verb", "code"])?,
            duration: HistogramVec::new(duration, &["verb"])?,
            in_flight: IntGauge::new("moorline_proxy_requests_in_flight", "Calls to clusters under way.")?,
            bytes_in: bytes("in")?,
            bytes_out: bytes("out")?,
            audit_refusals: IntCounter::new(
                "moorline_proxy_audit_refusals_total",
                "Calls refused as the audit log was full.",
            )?,
            slow_bodies: IntCounter::new(
                "moorline_proxy_slow_bodies_total",
                "Calls that were ended as their clients sent the body too slowly.",
            )?,
            recordings: IntCounterVec::new(
                Opts::new(
                    "moorline_proxy_recordings_total",
                    "Sessions in terminals that had to be recorded, by what came of it: sealed, failed, refused.",
                ),
                &["result"],
            )?,
            recordings_open: IntGauge::new("moorline_proxy_recordings_open", "Sessions that are being recorded.")?,
            recordings_lost: IntCounter::new(
                "moorline_proxy_recordings_lost_bytes_total",
                "Bytes of sessions that are not in their recordings.",
            )?,
        };
        registry.register(Box::new(this.requests.clone()))?;
        registry.register(Box::new(this.duration.clone()))?;
        registry.register(Box::new(this.in_flight.clone()))?;
        registry.register(Box::new(this.bytes_in.clone()))?;
        registry.register(Box::new(this.bytes_out.clone()))?;
        registry.register(Box::new(this.audit_refusals.clone()))?;
        registry.register(Box::new(this.slow_bodies.clone()))?;
        registry.register(Box::new(this.recordings.clone()))?;
        registry.register(Box::new(this.recordings_open.clone()))?;
        registry.register(Box::new(this.recordings_lost.clone()))?;
        Ok(this)
    }

    pub(super) fn duration_of(&self, verb: &str) -> Histogram {
        self.duration.with_label_values(&[verb_label(verb)])
    }
}

/// A verb as a label: one of a fixed set.
pub(super) fn verb_label(verb: &str) -> &'static str {
    const VERBS: [&str; 9] =
        ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "proxy"];
    VERBS.into_iter().find(|known| *known == verb).unwrap_or("other")
}

/// A status as a label: one of a fixed set.
pub(super) fn code_label(code: u16) -> &'static str {
    match code {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}
