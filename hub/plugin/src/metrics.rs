//! Counters of plugins. Every label is from a fixed set.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// Those of all plugins; clones share.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) ready: IntGaugeVec,
    pub(crate) clusters: IntGaugeVec,
    restarts: IntCounterVec,
    rules: IntCounterVec,
    events: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        let gauges = |name: &str, help: &str| {
            let made = IntGaugeVec::new(Opts::new(name, help), &["plugin"])?;
            registry.register(Box::new(made.clone())).map(|()| made)
        };
        Ok(Self {
            ready: gauges("moorline_plugin_ready", "Whether a plugin runs and answers")?,
            clusters: gauges("moorline_plugin_clusters", "Clusters that a plugin runs for")?,
            restarts: counters(
                "moorline_plugin_restarts_total",
                "Parts of plugins that ended and are started again, by cause",
                &["plugin", "cause"],
            )?,
            rules: counters(
                "moorline_plugin_rule_failures_total",
                "Rules of plugins that gave no answer, by cause",
                &["plugin", "cause"],
            )?,
            events: counters("moorline_plugin_events_total", "What plugins did", &["plugin", "event"])?,
        })
    }

    pub(crate) fn of(&self, plugin: &'static str) -> PluginMetrics {
        PluginMetrics { all: self.clone(), plugin }
    }
}

/// Those of one plugin.
#[derive(Debug, Clone)]
pub struct PluginMetrics {
    pub(crate) all: Metrics,
    plugin: &'static str,
}

impl PluginMetrics {
    /// Counts something that the plugin did, as `moorline_plugin_events_total{plugin, event}`. The set of events is fixed
    /// by the code.
    pub fn count(&self, event: &'static str) {
        self.all.events.with_label_values(&[self.plugin, event]).inc();
    }

    pub(crate) fn restarted(&self, cause: &'static str) {
        self.all.restarts.with_label_values(&[self.plugin, cause]).inc();
    }

    pub(crate) fn rule_failed(&self, cause: &'static str) {
        self.all.rules.with_label_values(&[self.plugin, cause]).inc();
    }

    pub(crate) fn ready(&self, ready: bool) {
        self.all.ready.with_label_values(&[self.plugin]).set(ready.into());
    }

    pub(crate) fn clusters(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.all.clusters.with_label_values(&[self.plugin]).set(count);
    }
}
