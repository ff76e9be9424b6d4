//! The thread that writes the log: a slow disk holds up nothing else.

use super::{OnFailure, chain::Chain, files::Output, now, queue::Queue};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// How often what could not be written is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// How long the writer waits for more records before it writes.
const GATHER: Duration = Duration::from_millis(5);
/// Memory kept for the next batch, in bytes.
const BATCH: usize = 256 << 10;

/// What those who record know of the writer, and it of them.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The records themselves.
    pub queue: Queue,
    /// Records that are not written yet.
    pub waiting: AtomicUsize,
    /// Told when there are fewer of them.
    pub room: Notify,
    /// What is at the front cannot be written.
    pub failed: AtomicBool,
    /// What cannot be written now never will be.
    pub closing: AtomicBool,
    pub lost: Lost,
}

/// Records that were not kept.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Not told of yet.
    now: AtomicU64,
    /// In all.
    pub all: AtomicU64,
}

impl Lost {
    pub fn add(&self, many: u64) {
        self.now.fetch_add(many, Ordering::AcqRel);
        self.all.fetch_add(many, Ordering::AcqRel);
    }
}

/// The thread's own.
pub(super) struct Writer<O> {
    pub out: O,
    pub chain: Chain,
    /// How many records may wait, and what becomes of calls when they do.
    pub most: usize,
    pub policy: OnFailure,
    pub shared: Arc<Shared>,
}

impl<O: Output> Writer<O> {
    /// Writes what comes until nobody records any more.
    pub fn run(mut self) {
        let (mut lines, mut batch) = (Vec::new(), Vec::new());
        while self.shared.queue.wait() {
            // One wake-up and one write for all that come close together: each costs as much as a small request.
            std::thread::sleep(GATHER);
            self.shared.queue.exchange(&mut lines);
            let count = each(&lines, |line| self.chain.seal(line, &mut batch));
            lines.clear();
            lines.shrink_to(BATCH);
            if !self.put(&batch) {
                return self.give_up(count);
            }
            self.shared.waiting.fetch_sub(count, Ordering::AcqRel);
            self.shared.room.notify_waiters();
            batch.clear();
            // In the same way as records: half of it would break the chain, and none of it would hide that any are lost.
            if self.tell(&mut batch) && !self.put(&batch) {
                return self.give_up(0);
            }
            batch.clear();
            batch.shrink_to(BATCH);
            if let Err(error) = self.out.settled(&self.chain) {
                tracing::error!("the audit log stays in its old file: {error}");
            }
        }
    }

    /// Counts what nobody writes any more: `count` records, and those that wait.
    fn give_up(&self, count: usize) {
        let mut lines = Vec::new();
        self.shared.queue.exchange(&mut lines);
        let rest = count + each(&lines, |_| ());
        self.shared.lost.add(rest as u64);
        tracing::error!(lost = rest, "the audit log was closed while it could not be written");
    }

    /// Writes all of it, however long that takes: a record is never given up, and one that cannot be written waits. Whether
    /// it is written: it is not where the log is closed meanwhile.
    fn put(&mut self, batch: &[u8]) -> bool {
        let (mut rest, shared) = (batch, &self.shared);
        while let Err(error) = write(&mut self.out, &mut rest) {
            if !shared.failed.swap(true, Ordering::AcqRel) {
                tracing::error!("the audit log cannot be written, {}: {error}", self.policy.meanwhile(self.most));
            }
            if shared.closing.load(Ordering::Acquire) {
                return false;
            }
            std::thread::park_timeout(RETRY);
        }
        if shared.failed.swap(false, Ordering::AcqRel) {
            tracing::info!("the audit log is written again");
        }
        true
    }

    /// The log itself says what it lacks. Whether there is anything to say.
    fn tell(&mut self, out: &mut Vec<u8>) -> bool {
        let lost = self.shared.lost.now.swap(0, Ordering::AcqRel);
        if lost > 0 {
            tracing::error!(lost, "audit records were lost while the log could not be written");
            let (at, words) =
                (now(), "records were lost here: the log could not be written, and calls went on by policy");
            let line = format!("{{\"stageTimestamp\":\"{at}\",\"lostRecords\":{lost},\"message\":\"{words}\"}}");
            self.chain.seal(line.as_bytes(), out);
        }
        lost > 0
    }
}

/// Calls `what` with each line, without its end. How many there are.
fn each(lines: &[u8], mut what: impl FnMut(&[u8])) -> usize {
    let (mut count, mut from) = (0, 0);
    for end in memchr::memchr_iter(b'\n', lines) {
        what(lines.get(from..end).unwrap_or_default());
        (count, from) = (count + 1, end + 1);
    }
    count
}

/// Writes `rest`, and leaves in it what was not taken.
fn write(out: &mut impl io::Write, rest: &mut &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => *rest = rest.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    out.flush()
}
