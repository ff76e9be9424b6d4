//! What quinn leaves to its user about the bytes of a connection: how many may wait to be sent, and what becomes of
//! streams that nobody reads while everybody waits for the room that they take.

use crate::Limits;
use moorline_proto::code::ResetCode;
use quinn::VarInt;
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{io::ReadBuf, sync::Notify, time::Instant};

mod turns;

use turns::Turns;

/// Bytes written between two looks at how many may wait.
const LOOK: u64 = 16 << 10;
/// Bytes that may wait beside those that are in flight: what a writer that wakes up late leaves unused, and what a more
/// urgent one has to wait for.
const WAITING: u64 = 32 << 10;
/// Bytes that are written over the bound to see whether it is the bound that a writer waits for.
const PROBE: usize = 1 << 10;
/// Bytes that a stream which sends much may write in one turn while the connection has room for a part of what it has
/// only: handing over costs a wake-up, and whoever comes next would find the connection full.
const TURN: u64 = 128 << 10;
/// How often it is looked for streams that nobody reads.
const TICK: Duration = Duration::from_secs(1);

/// The bytes of one connection.
#[derive(Debug)]
pub(crate) struct Flow {
    conn: quinn::Connection,
    begin: Instant,
    written: AtomicU64,
    most: u64,
    /// Bytes that may wait, as last set.
    window: AtomicU64,
    turns: Turns,
    grace: Duration,
    readers: Mutex<HashMap<u64, Weak<Receiver>>>,
    /// There is a reader where there was none.
    first: Notify,
    relieved: AtomicU64,
}

/// What is kept of a stream that may send much.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    /// It does.
    pub is: bool,
    /// It waits for the connection and not for its own reader.
    waits: bool,
    /// Bytes written in this turn.
    written: u64,
}

type Written = Result<usize, quinn::WriteError>;

/// The reading half of a stream, which its connection can stop.
#[derive(Debug)]
pub(crate) struct Receiver {
    recv: Mutex<quinn::RecvStream>,
    flow: Arc<Flow>,
    id: u64,
    /// When it was last read from, in milliseconds since the connection began.
    read_at: AtomicU64,
    /// Whoever reads waits for bytes.
    hungry: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flow {
    pub fn new(conn: quinn::Connection, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            conn,
            begin: Instant::now(),
            written: AtomicU64::new(0),
            most: limits.send_window.into(),
            window: AtomicU64::new(limits.send_window.into()),
            turns: Turns::default(),
            grace: limits.stall_grace,
            readers: Mutex::default(),
            first: Notify::new(),
            relieved: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Writes to a stream. quinn has one bound for what waits to be sent, and wakes the writer that came last first: left
    /// alone, one that sends much would keep out all the others. So those that send much take turns, and the others may
    /// go over the bound.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        send: &mut quinn::SendStream,
        bulk: &mut Bulk,
        buf: &[u8],
    ) -> Poll<Written> {
        if !bulk.is {
            return match self.write(cx, send, buf) {
                Poll::Pending => self.write_over(cx, send, buf),
                done => done,
            };
        }
        let id = VarInt::from(send.id()).into_inner();
        if !self.turns.take(id, cx) {
            return Poll::Pending;
        }
        let written = match self.write(cx, send, buf) {
            // Is it the bound, for which those whose turn it is wait? Or this stream's own reader, for whom the others do
            // not? A few bytes over the bound tell.
            Poll::Pending if !bulk.waits => {
                let few = buf.get(..PROBE.min(buf.len())).unwrap_or_default();
                let tried = self.write_over(cx, send, few);
                // Not all of them: that was the last that its reader lets come.
                bulk.waits = matches!(tried, Poll::Ready(Ok(n)) if n == few.len());
                tried
            }
            Poll::Pending => {
                self.turns.sleeps(id);
                return Poll::Pending; // keeps its turn
            }
            done => {
                bulk.waits = false;
                done
            }
        };
        let goes_on = match &written {
            Poll::Ready(Ok(bytes)) => {
                bulk.written += *bytes as u64;
                0 < *bytes && *bytes < buf.len() && bulk.written < TURN
            }
            _ => false,
        };
        if !bulk.waits && !goes_on {
            bulk.written = 0;
            self.turns.give(id);
        }
        written
    }

    fn write(&self, cx: &mut Context<'_>, send: &mut quinn::SendStream, buf: &[u8]) -> Poll<Written> {
        let written = Pin::new(send).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = &written {
            self.wrote(*bytes);
        }
        written
    }

    fn write_over(&self, cx: &mut Context<'_>, send: &mut quinn::SendStream, buf: &[u8]) -> Poll<Written> {
        self.conn.set_send_window(self.most);
        let written = self.write(cx, send, buf);
        self.conn.set_send_window(self.window.load(Ordering::Relaxed));
        written
    }

    /// A stream is gone, or sends little from now on.
    pub fn leave(&self, send: &quinn::SendStream) {
        self.turns.give(VarInt::from(send.id()).into_inner());
    }

    /// Bytes were written. What waits to be sent is bounded by what the path takes: on a slow one a small answer would
    /// otherwise stand behind megabytes of large ones.
    fn wrote(&self, bytes: usize) {
        let bytes = bytes as u64;
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / LOOK != (before + bytes) / LOOK {
            let window = self.conn.stats().path.cwnd.saturating_mul(2).saturating_add(WAITING);
            let window = window.min(self.most);
            self.window.store(window, Ordering::Relaxed);
            self.conn.set_send_window(window);
        }
    }

    /// Streams that were reset because nobody read them and others needed their room.
    pub fn relieved(&self) -> u64 {
        self.relieved.load(Ordering::Relaxed)
    }

    /// Takes the reading half of a stream.
    pub fn reader(self: &Arc<Self>, recv: quinn::RecvStream) -> Arc<Receiver> {
        let id = VarInt::from(recv.id()).into_inner();
        let (read_at, hungry) = (AtomicU64::new(self.now()), AtomicBool::new(false));
        let receiver = Arc::new(Receiver { recv: Mutex::new(recv), flow: Arc::clone(self), id, read_at, hungry });
        let mut readers = locked(&self.readers);
        if readers.is_empty() {
            self.first.notify_one();
        }
        readers.insert(id, Arc::downgrade(&receiver));
        receiver
    }

    /// Streams that have something to read which nobody has read for [`Limits::stall_grace`], the longest first.
    fn stalled(&self) -> Vec<Arc<Receiver>> {
        let now = self.now();
        let grace = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX);
        let idle = |receiver: &Arc<Receiver>| {
            !receiver.hungry.load(Ordering::Relaxed)
                && grace <= now.saturating_sub(receiver.read_at.load(Ordering::Relaxed))
        };
        let mut all: Vec<_> = locked(&self.readers).values().filter_map(Weak::upgrade).filter(idle).collect();
        all.sort_by_key(|receiver| receiver.read_at.load(Ordering::Relaxed));
        all
    }

    /// Watches over the readers until the connection ends: once the peer may send nothing any more because of what lies
    /// unread, streams that nobody has read for a while are cut, the longest unread first.
    pub async fn relieve(&self) {
        let (mut heard, mut granted) = (0, 0);
        let mut full_since: Option<Instant> = None;
        loop {
            if locked(&self.readers).is_empty() {
                self.first.notified().await;
            }
            self.turns.tend(TICK).await;
            let stats = self.conn.stats();
            if granted < stats.frame_tx.max_data {
                full_since = None; // somebody reads, and the peer may go on
            }
            if heard < stats.frame_rx.data_blocked {
                full_since.get_or_insert_with(Instant::now);
            }
            (heard, granted) = (stats.frame_rx.data_blocked, stats.frame_tx.max_data);
            if full_since.is_none_or(|since| since.elapsed() < TICK) {
                continue;
            }
            let stalled = self.stalled();
            let some = stalled.len().div_ceil(2);
            for receiver in stalled.into_iter().take(some) {
                tracing::warn!(stream = receiver.id, "nobody reads this stream, and others need its room: it is reset");
                receiver.stop(ResetCode::Idle);
                self.relieved.fetch_add(1, Ordering::Relaxed);
                locked(&self.readers).remove(&receiver.id);
            }
        }
    }
}

impl Receiver {
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<(), quinn::ReadError>> {
        let polled = locked(&self.recv).poll_read_buf(cx, buf);
        self.hungry.store(polled.is_pending(), Ordering::Relaxed);
        self.read_at.store(self.flow.now(), Ordering::Relaxed);
        polled
    }

    /// Reads no more. Fails only where there is nothing more to read.
    pub fn stop(&self, code: ResetCode) {
        let _ = locked(&self.recv).stop(VarInt::from_u32(code.number()));
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        locked(&self.flow.readers).remove(&self.id);
    }
}
