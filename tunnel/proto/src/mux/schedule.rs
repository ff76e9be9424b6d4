//! Whose frame is next.

use super::StreamKey;
use crate::header::Class;
use alloc::collections::VecDeque;

/// Streams with data to send: round robin inside a class, the more urgent class first, and a share for each.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    classes: [Queue; 3],
}

#[derive(Debug, Default)]
struct Queue {
    ready: VecDeque<StreamKey>,
    /// Bytes that more urgent classes sent while this one waited.
    passed: usize,
}

/// Bytes that may pass a waiting class before it gets a turn, most urgent class first. With turns of 16 KiB and
/// everything busy, watches get a third of what interactive streams leave to them, bulk a fifth.
const PATIENCE: [usize; 3] = [usize::MAX, 32 * 1024, 64 * 1024];

const fn index(class: Class) -> usize {
    match class {
        Class::Interactive => 0,
        Class::Watch => 1,
        Class::Bulk => 2,
    }
}

impl Schedule {
    /// Puts a stream at the end of its class.
    pub(super) fn push(&mut self, class: Class, key: StreamKey) {
        if let Some(queue) = self.classes.get_mut(index(class)) {
            queue.ready.push_back(key);
        }
    }

    /// Takes the stream whose turn it is.
    pub(super) fn pop(&mut self) -> Option<StreamKey> {
        let waits = |queue: &Queue| !queue.ready.is_empty();
        let starved = self.classes.iter().zip(PATIENCE).rposition(|(queue, most)| waits(queue) && most <= queue.passed);
        let turn = starved.or_else(|| self.classes.iter().position(waits))?;
        let queue = self.classes.get_mut(turn)?;
        queue.passed = 0;
        queue.ready.pop_front()
    }

    /// Counts what a stream of `class` has sent against the patience of the classes below it.
    pub(super) fn sent(&mut self, class: Class, bytes: usize) {
        for queue in self.classes.iter_mut().skip(index(class) + 1) {
            queue.passed = if queue.ready.is_empty() { 0 } else { queue.passed.saturating_add(bytes) };
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.classes.iter().all(|queue| queue.ready.is_empty())
    }

    /// Forgets everyone, and gives back what a busy time has grown.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
