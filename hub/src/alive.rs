//! Whether what a hub consists of still runs: what `/readyz` asks.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// How long after a failure to accept the port counts as closed. The accept loop tries again more often than this.
const ACCEPT_MEMORY: Duration = Duration::from_secs(1);

/// A task without which the hub is not whole.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// Accepts TCP connections.
    Tcp,
    /// Accepts QUIC connections.
    Quic,
    /// Follows the store, so that rights which are taken away end.
    Changes,
}

/// What has ended, and when accepting failed last.
#[derive(Debug, Default)]
pub(crate) struct Alive {
    ended: [AtomicUsize; 3],
    failed: Mutex<Option<Instant>>,
}

impl Alive {
    /// Runs a part. However it ends, a panic too, it has ended.
    pub fn while_running<F>(self: &Arc<Self>, part: Part, task: F) -> impl Future<Output = ()> + use<F>
    where
        F: Future<Output = ()>,
    {
        let ending = Ending(Arc::clone(self), part);
        async move {
            let _ending = ending;
            task.await;
        }
    }

    /// The listener could not accept, and not because of the one connection.
    pub fn accept_failed(&self) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether connections are accepted.
    pub fn listening(&self) -> Result<(), String> {
        self.check(Part::Tcp, "connections are not accepted any more")?;
        self.check(Part::Quic, "QUIC connections are not accepted any more")?;
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_some_and(|at| at.elapsed() < ACCEPT_MEMORY) {
            return Err("connections cannot be accepted: see the log".to_owned());
        }
        Ok(())
    }

    /// Whether changes in the store take effect.
    pub fn following(&self) -> Result<(), String> {
        self.check(Part::Changes, "changes of the store are not followed any more: restart the hub")
    }

    fn count(&self, part: Part) -> &AtomicUsize {
        let [tcp, quic, changes] = &self.ended;
        match part {
            Part::Tcp => tcp,
            Part::Quic => quic,
            Part::Changes => changes,
        }
    }

    fn check(&self, part: Part, words: &str) -> Result<(), String> {
        if self.count(part).load(Ordering::Acquire) == 0 { Ok(()) } else { Err(words.to_owned()) }
    }
}

struct Ending(Arc<Alive>, Part);
impl Drop for Ending {
    fn drop(&mut self) {
        self.0.count(self.1).fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ended_or_panicked_is_told() {
        let alive = Arc::new(Alive::default());
        let runs = tokio::spawn(alive.while_running(Part::Tcp, std::future::pending()));
        assert_eq!((alive.listening(), alive.following()), (Ok(()), Ok(())));
        let panics = async { unreachable!("as a defect would") };
        assert!(tokio::spawn(alive.while_running(Part::Changes, panics)).await.is_err());
        assert!(alive.following().is_err() && alive.listening().is_ok());
        runs.abort();
        assert!(runs.await.is_err() && alive.listening().is_err());
    }

    #[test]
    fn a_listener_that_cannot_accept_is_told_while_it_cannot() {
        let alive = Alive::default();
        alive.accept_failed();
        assert!(alive.listening().is_err());
        *alive.failed.lock().unwrap() = Some(Instant::now() - ACCEPT_MEMORY);
        assert_eq!(alive.listening(), Ok(()));
    }
}
