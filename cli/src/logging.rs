//! The log of the hub and the agent: lines to standard error that can never hold up traffic.
//!
//! Lines go through a bounded queue to one writer thread. If whoever reads standard error stops reading, a line waits
//! up to [`PATIENCE`] for room; after that lines are dropped and counted until there is room again, and the log says
//! how many are missing.

use anyhow::Context;
use prometheus::{IntCounter, Registry};
use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt};

/// Bytes of log that may wait to be written.
const MAX_QUEUED: usize = 1024 * 1024;
/// Longest that one line waits for room.
const PATIENCE: Duration = Duration::from_millis(100);
/// Longest that the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What is logged unless `MOORLINE_LOG` says otherwise. Of an answer that it cannot read kube-client warns with all of it, and
/// that may be Secrets; whoever asked tells of the error.
const DEFAULT: &str = "info,kube_client=error";

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line, for programs
    Json,
}

/// Where the log goes, unless to standard error.
static OUT: Mutex<Option<Box<dyn Write + Send>>> = Mutex::new(None);

/// Sends the log of this process, once started, to `out`: a service has no standard error.
pub fn write_to(out: Box<dyn Write + Send>) {
    *OUT.lock().unwrap_or_else(PoisonError::into_inner) = Some(out);
}

/// Keeps the log running; dropping it writes what is still queued.
pub struct LogGuard(Arc<Shared>);

/// Starts the log of this process. `MOORLINE_LOG` filters it, as `RUST_LOG` does elsewhere; default `info`, and of kube-client
/// errors alone.
pub fn start(format: LogFormat, registry: &Registry) -> anyhow::Result<LogGuard> {
    let dropped = IntCounter::new(
        "moorline_log_lines_dropped_total",
        "Log lines dropped because standard error was not read for too long.",
    )?;
    registry.register(Box::new(dropped.clone()))?;
    let filter = match std::env::var("MOORLINE_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(&directives)
            .with_context(|| format!("MOORLINE_LOG={directives:?} is no filter, such as info,moorline_link=debug"))?,
        _ => EnvFilter::new(DEFAULT),
    };
    let shared = Arc::new(Shared::new(dropped, format));
    let guard = LogGuard(shared.clone());
    let writer = shared.clone();
    // Not joined: it may be stuck in a write for ever, which must not keep the process from ending.
    let out = OUT.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut out = out.unwrap_or_else(|| Box::new(io::stderr()));
    thread::Builder::new().name("log".into()).spawn(move || writer.write_to(&mut *out))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Sink(shared));
    let colour = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    match format {
        LogFormat::Text => builder.with_ansi(colour).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).finish().try_init(),
    }
    .context("the log cannot be set up")?;
    Ok(guard)
}

struct Shared {
    state: Mutex<State>,
    /// Something to write, or closing.
    work: Condvar,
    /// Something was written.
    room: Condvar,
    dropped: IntCounter,
    format: LogFormat,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Vec<u8>>,
    /// Bytes in `queue` and in the write that is going on.
    bytes: usize,
    /// A line waited in vain; until something is written no other one waits.
    stuck: bool,
    /// Lines dropped since the log last said so.
    missing: u64,
}

impl Shared {
    fn new(dropped: IntCounter, format: LogFormat) -> Self {
        Self { state: Mutex::default(), work: Condvar::new(), room: Condvar::new(), dropped, format }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let until = Instant::now() + PATIENCE;
        let mut state = self.lock();
        // A line larger than the whole queue is let into an empty one.
        while state.bytes != 0 && MAX_QUEUED < state.bytes + line.len() {
            let left = until.saturating_duration_since(Instant::now());
            if state.stuck || left.is_zero() {
                state.stuck = true;
                state.missing += 1;
                self.dropped.inc();
                return;
            }
            state = self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.bytes += line.len();
        state.queue.push_back(line.to_vec());
        self.work.notify_one();
    }

    /// The writer thread. Never ends: it dies with the process.
    fn write_to(&self, out: &mut dyn Write) {
        loop {
            let mut state = self.lock();
            let line = loop {
                match state.queue.pop_front() {
                    Some(line) => break line,
                    None => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            let missing = std::mem::take(&mut state.missing);
            drop(state);
            // Nobody can be told that standard error is gone.
            let _ = out.write_all(&line);
            if missing != 0 {
                let _ = out.write_all(self.notice(missing).as_bytes());
            }
            let mut state = self.lock();
            state.bytes -= line.len();
            state.stuck = false;
            self.room.notify_all();
        }
    }

    fn notice(&self, missing: u64) -> String {
        let text = format!("{missing} log lines were dropped: standard error was not read");
        let now = jiff::Timestamp::now();
        match self.format {
            LogFormat::Text => format!("{now}  WARN {text}\n"),
            LogFormat::Json => {
                format!("{}\n", serde_json::json!({ "timestamp": now.to_string(), "level": "WARN", "message": text }))
            }
        }
    }

    fn flush(&self) {
        let until = Instant::now() + LAST_LINES;
        let mut state = self.lock();
        while state.bytes != 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush();
    }
}

struct Sink(Arc<Shared>);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// The subscriber hands over each line in one write.
struct Line<'a>(&'a Shared);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A reader that takes nothing until it is told to.
    struct Blocked {
        entered: mpsc::Sender<()>,
        go: mpsc::Receiver<()>,
        seen: mpsc::Sender<Vec<u8>>,
    }
    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            if self.go.recv().is_err() {
                // The test is over.
                loop {
                    thread::park();
                }
            }
            let _ = self.seen.send(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_cluster_answers_is_not_in_the_log() {
        let shared = Arc::new(Shared::new(IntCounter::new("dropped", "test").unwrap(), LogFormat::Text));
        let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(DEFAULT)).with_writer(Sink(shared.clone()));
        tracing::subscriber::with_default(log.finish(), || {
            tracing::warn!(target: "kube_client::client", "an answer, whole");
            tracing::error!(target: "kube_client::client", "an error");
            tracing::info!("news");
        });
        let lines: String = shared.lock().queue.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        assert!(!lines.contains("an answer") && lines.contains("an error") && lines.contains("news"), "{lines}");
    }

    /// F49: with a blocked log sink a caller waits up to 100 ms once, then not at all, and the drops are counted.
    #[test]
    fn f49_a_blocked_sink_holds_nobody_up_for_long() {
        let counter = IntCounter::new("dropped", "test").unwrap();
        let shared = Arc::new(Shared::new(counter.clone(), LogFormat::Text));
        let ((entered, is_in), (release, go), (seen, read)) = (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let writer = shared.clone();
        thread::spawn(move || writer.write_to(&mut Blocked { entered, go, seen }));
        let big = vec![b'x'; MAX_QUEUED];
        shared.push(&big);
        is_in.recv().unwrap();
        let started = Instant::now();
        (0..1000).for_each(|_| shared.push(b"line\n"));
        let took = started.elapsed();
        assert!(PATIENCE <= took && took < PATIENCE * 100, "1000 lines took {took:?}");
        assert_eq!(counter.get(), 1000);
        release.send(()).unwrap();
        assert_eq!(read.recv().unwrap().len(), MAX_QUEUED);
        // Let the writer give the room back before the next line comes.
        while shared.lock().stuck {
            thread::yield_now();
        }
        shared.push(b"again\n");
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert_eq!(read.recv().unwrap(), b"again\n");
        let notice = String::from_utf8(read.recv().unwrap()).unwrap();
        assert!(notice.contains("1000 log lines were dropped"), "{notice}");
    }
}
