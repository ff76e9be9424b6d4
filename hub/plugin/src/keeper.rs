//! Keeps one part of a plugin running, and knows whether the plugin's threads live.

use crate::{PluginError, limits, metrics::PluginMetrics};
use futures_util::future::BoxFuture;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// When a plugin's threads last showed that they live.
#[derive(Debug)]
pub(crate) struct Pulse {
    since: Instant,
    last: AtomicU64,
}

impl Pulse {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { since: Instant::now(), last: AtomicU64::new(0) })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Runs on the plugin's runtime.
    pub(crate) async fn beat(self: Arc<Self>) {
        loop {
            self.last.store(self.now(), Ordering::Relaxed);
            tokio::time::sleep(limits::HEARTBEAT).await;
        }
    }

    /// For how long nothing was heard.
    pub(crate) fn silent(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Ordering::Relaxed)))
    }
}

/// What is wrong with a part; `None`: it runs.
#[derive(Debug, Default)]
pub(crate) struct State(Mutex<Option<String>>);

impl State {
    fn set(&self, trouble: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A part of a plugin.
pub(crate) struct Part<F> {
    pub(crate) plugin: &'static str,
    /// Empty: the hub-wide part.
    pub(crate) cluster: String,
    pub(crate) make: F,
    pub(crate) stop: CancellationToken,
    pub(crate) metrics: PluginMetrics,
    pub(crate) state: Arc<State>,
}

/// The pause after so many failures in a row.
pub(crate) fn pause(failures: u32) -> Duration {
    let whole = limits::RESTART_FIRST.saturating_mul(1 << failures.min(10)).min(limits::RESTART_LONGEST);
    whole.mul_f64(rand::random_range(0.5..1.0))
}

impl<F> Part<F>
where
    F: Fn() -> BoxFuture<'static, Result<(), PluginError>> + Clone + Send + 'static,
{
    /// Runs it until `stop`, again and again. When this is done, so is what was run.
    pub(crate) async fn keep(self) {
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let make = self.make.clone();
            let mut task = AbortOnDropHandle::new(tokio::spawn(async move { make().await }));
            self.state.set(None);
            let ended = tokio::select! {
                () = self.stop.cancelled() => {
                    task.abort();
                    let _ = task.await; // aborted
                    return;
                }
                ended = &mut task => ended,
            };
            let (cause, why) = match ended {
                Ok(Ok(())) => ("ended", "it ended by itself".to_owned()),
                // Its words may be a cluster's.
                Ok(Err(error)) => ("error", error.to_string().chars().take(limits::MESSAGE).collect()),
                Err(error) if error.is_panic() => ("panic", "it panicked; the log says where".to_owned()),
                Err(_) => return,
            };
            if limits::RECOVERED < begun.elapsed() {
                failures = 0;
            }
            let wait = pause(failures);
            failures += 1;
            let (plugin, cluster) = (self.plugin, &self.cluster);
            tracing::warn!(plugin, cluster, cause, again_in = ?wait, "a plugin's part ended: {why}");
            self.metrics.restarted(cause);
            self.state.set(Some(why));
            if self.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        for failures in 0..40 {
            assert!(pause(failures) <= limits::RESTART_LONGEST);
            assert!(limits::RESTART_FIRST / 2 <= pause(failures));
        }
        assert!(limits::RESTART_LONGEST / 2 <= pause(u32::MAX));
    }
}
