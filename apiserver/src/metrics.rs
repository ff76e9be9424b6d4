//! What the API server counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets};

/// Counters of one API server.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) watches: IntGauge,
    pub(crate) commits: Histogram,
    pub(crate) store_errors: IntCounter,
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
        // 0.1 ms to 26 s.
        let buckets = exponential_buckets(0.0001, 4.0, 10)?;
        let commits = Histogram::with_opts(
            HistogramOpts::new(
                "moorline_apiserver_commit_seconds",
                "Time that one group of writes took to reach the disk",
            )
            .buckets(buckets),
        )?;
        let store_errors =
            IntCounter::new("moorline_apiserver_store_errors_total", "Groups of writes that the disk did not take")?;
        registry.register(Box::new(commits.clone()))?;
        registry.register(Box::new(store_errors.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(watches.clone()))?;
        Ok(Self { requests, watches, commits, store_errors })
    }
}
