//! Reading the audit log and recordings: off the runtime, and so many at a time.

use std::sync::Arc;
use tokio::sync::Semaphore;

/// Places for searches.
pub(crate) struct Searches(Arc<Semaphore>);

/// Why one was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSearch {
    /// All places are taken.
    TooMany,
    /// It failed by a bug.
    Failed,
}

impl Searches {
    /// `most` at a time.
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Does it on a thread for such. Its place is free when it is over, also if nobody waits for it any more: a thread
    /// that reads does not end because a client hangs up.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        search: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoSearch> {
        let place = Arc::clone(&self.0).try_acquire_owned().map_err(|_| NoSearch::TooMany)?;
        let searched = tokio::task::spawn_blocking(move || {
            let found = search();
            drop(place);
            found
        });
        searched.await.map_err(|_| NoSearch::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        pin::pin,
        sync::mpsc,
        task::{Context, Waker},
        time::Duration,
    };

    #[tokio::test]
    async fn who_hangs_up_frees_no_place() {
        let searches = Searches::new(1);
        let (go, gate) = mpsc::channel::<()>();
        {
            let mut search = pin!(searches.run(move || gate.recv()));
            assert!(search.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert_eq!(searches.run(|| ()).await, Err(NoSearch::TooMany));
        go.send(()).unwrap();
        let free = async {
            while searches.run(|| ()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), free).await.unwrap();
    }
}
