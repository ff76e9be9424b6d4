//! What the API server counts.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Counters of one API server.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) watches: IntGauge,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("moorline_apiserver_requests_total", "Requests to the hub's own API"),
            &["verb", "resource", "code"],
        )?;
        let watches = IntGauge::new("moorline_apiserver_watches", "Open watches of the hub's own API")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(watches.clone()))?;
        Ok(Self { requests, watches })
    }
}
