//! Asks a plugin's code something while the hub answers a request: elsewhere, with a bound, and ready for a panic.

use crate::{limits, metrics::PluginMetrics};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{RecvTimeoutError, sync_channel},
    },
};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RuleError {
    #[error("the rules of plugin {0:?} failed; the hub's log says how")]
    Panic(&'static str),
    #[error("the rules of plugin {0:?} do not answer")]
    Silent(&'static str),
}

#[derive(Clone)]
pub(crate) struct Guard {
    pub(crate) plugin: &'static str,
    pub(crate) handle: Handle,
    pub(crate) metrics: PluginMetrics,
    pub(crate) asked: Arc<AtomicUsize>,
}

struct Asked(Arc<AtomicUsize>);
impl Drop for Asked {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Guard {
    /// Runs `ask` on a thread of the plugin and waits for at most [`limits::RULE`].
    pub(crate) fn run<T: Send + 'static>(&self, ask: impl FnOnce() -> T + Send + 'static) -> Result<T, RuleError> {
        let silent = || {
            self.metrics.rule_failed("silent");
            Err(RuleError::Silent(self.plugin))
        };
        let one = Asked(Arc::clone(&self.asked));
        if self.asked.fetch_add(1, Ordering::AcqRel) >= limits::RULES {
            return silent();
        }
        let (done, answer) = sync_channel(1);
        self.handle.spawn_blocking(move || {
            let _one = one;
            let _ = done.send(catch_unwind(AssertUnwindSafe(ask)));
        });
        let wait = || answer.recv_timeout(limits::RULE);
        // The thread that waits is made up for, where the runtime can do that.
        let threads = Handle::try_current().map(|here| here.runtime_flavor());
        let answer =
            if matches!(threads, Ok(RuntimeFlavor::MultiThread)) { tokio::task::block_in_place(wait) } else { wait() };
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => {
                self.metrics.rule_failed("panic");
                Err(RuleError::Panic(self.plugin))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => silent(),
        }
    }
}
