//! The changes under a prefix, one after the other.

use super::{Compacted, Store, StoreEvent};
use std::{collections::VecDeque, sync::PoisonError};
use tokio::sync::watch;

/// Follows the changes under a prefix. Holds no events but a bounded portion: one that is too slow is told so.
#[derive(Debug)]
pub struct Watcher {
    pub(super) store: Store,
    pub(super) prefix: String,
    pub(super) seen: u64,
    /// Of the state that this was of.
    pub(super) age: u64,
    pub(super) revision: watch::Receiver<u64>,
    pub(super) ready: VecDeque<StoreEvent>,
}

/// Events that a watcher takes out of the history at once.
const PORTION: usize = 64;

impl Watcher {
    /// The newest revision that was looked at: while [`Watcher::next`] waits, everything up to it was given out.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The next change. `Ok(None)`: the store is closed.
    ///
    /// # Errors
    /// This watcher fell behind what is kept.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<StoreEvent>, Compacted> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            self.revision.borrow_and_update();
            {
                let state = self.store.shared.state.read().unwrap_or_else(PoisonError::into_inner);
                // A state that was taken over whole may be of another history: an etcd that was put back from a backup.
                if self.seen < state.compacted || self.age != state.age {
                    return Err(Compacted);
                }
                let skip = state.history.partition_point(|e| e.revision <= self.seen);
                let mut last = state.revision.max(self.seen);
                for event in state.history.iter().skip(skip) {
                    if self.ready.len() == PORTION {
                        last = event.revision - 1;
                        break;
                    }
                    if event.key.starts_with(&self.prefix) {
                        self.ready.push_back(event.clone());
                    }
                }
                self.seen = last;
            }
            if self.ready.is_empty() && self.revision.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}
