//! What waits for the writer: all lines in one piece of memory, which is handed over whole. A record of its own for each would
//! be made by one thread and freed by another, and that costs more than the record.

use super::lock;
use std::sync::{Condvar, Mutex};

/// Records on their way from those who call to the one who writes. Its bound is [`super::FileSink`]'s.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: Mutex<Lines>,
    come: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    closed: bool,
}

impl Queue {
    /// Takes a record, which holds no line's end. `false`: closed, and not taken.
    pub fn put(&self, record: &[u8]) -> bool {
        let mut lines = lock(&self.lines);
        if !lines.closed {
            lines.text.extend_from_slice(record);
            lines.text.push(b'\n');
            if lines.text.len() == record.len() + 1 {
                self.come.notify_one();
            }
        }
        !lines.closed
    }

    /// Waits until there is something. `false`: there never will be.
    pub fn wait(&self) -> bool {
        let idle = |lines: &mut Lines| !lines.closed && lines.text.is_empty();
        let lines = self.come.wait_while(lock(&self.lines), idle).unwrap_or_else(std::sync::PoisonError::into_inner);
        !lines.text.is_empty()
    }

    /// Everything that is there, for `empty`, which is filled next.
    pub fn exchange(&self, empty: &mut Vec<u8>) {
        std::mem::swap(&mut lock(&self.lines).text, empty);
    }

    /// Takes no more; what is there is still to be had.
    pub fn close(&self) {
        lock(&self.lines).closed = true;
        self.come.notify_one();
    }
}
