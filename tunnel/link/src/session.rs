//! A session: streams and control messages between one agent and one hub.

use crate::{
    Carrier, IncomingStream, Limits, Stream, StreamError,
    carrier::{Conn, Raw},
    control,
    stream::{Count, refuse},
};
use moorline_proto::{
    code::{CloseCode, RefuseCode, ResetCode},
    codec::put_framed,
    control::{Control, Hello},
    header::{Refusal, StreamHeader},
    id::{SessionId, SpiffeId},
    tlv::WireError,
};
use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::Poll,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    sync::{Mutex as AsyncMutex, Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// Pings of one session whose answers are awaited.
const PINGS: usize = 64;
/// Messages for [`Session::recv`] that nobody has taken yet.
const INBOX: usize = 16;
/// Longest wait, after this side said that it drains, for the peer to have heard it.
const DRAIN_HEARD: Duration = Duration::from_secs(2);

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// The cause.
    pub code: CloseCode,
    /// Whether the peer ended it, and not this side.
    pub by_peer: bool,
    /// For people.
    pub message: String,
}

/// The session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("session closed ({}): {}", .0.code, .0.message)]
pub struct Closed(pub CloseReason);

/// Why no stream was opened. Nothing reached the peer's target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The session is over.
    #[error("session closed ({}): {}", .0.code, .0.message)]
    Closed(CloseReason),
    /// One side is draining: open it on another session.
    #[error("the session is draining")]
    Draining,
    /// The peer permits no more streams now.
    #[error("too many open streams")]
    TooMany,
    /// The header is over its limits.
    #[error("stream header over its limits")]
    Header,
}

/// Which side of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Hub,
    Agent,
}

/// What a session is made of, once both sides have greeted.
#[derive(Debug)]
pub(crate) struct Parts {
    pub id: SessionId,
    pub side: Side,
    pub peer: SpiffeId,
    pub carrier: Carrier,
    pub remote: SocketAddr,
    pub hello: Option<Hello>,
    pub conn: Conn,
    pub limits: Limits,
}

/// Questions for a sign of life.
#[derive(Debug)]
struct Pings {
    waiting: HashMap<u64, (Instant, oneshot::Sender<()>)>,
    next: u64,
    /// When the newest of the answered ones was asked.
    answered: Instant,
}

#[derive(Debug)]
pub(crate) struct Shared {
    parts: Parts,
    pub outbox: mpsc::Sender<Control>,
    inbox: AsyncMutex<mpsc::Receiver<Control>>,
    incoming: AsyncMutex<mpsc::Receiver<IncomingStream>>,
    streams: Arc<Count>,
    drain_until: watch::Sender<Option<Instant>>,
    peer_drains: watch::Sender<Option<Duration>>,
    /// What the peer said on the control stream when it ended the session.
    goodbye: OnceLock<CloseReason>,
    pings: Mutex<Pings>,
}
impl std::ops::Deref for Shared {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Shared {
    pub fn is_hub(&self) -> bool {
        self.side == Side::Hub
    }
    fn pings(&self) -> MutexGuard<'_, Pings> {
        self.pings.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Whether this answers a question of ours.
    pub fn heard_pong(&self, number: u64) -> bool {
        let mut pings = self.pings();
        let Some((sent, waiting)) = pings.waiting.remove(&number) else { return false };
        pings.answered = pings.answered.max(sent);
        let _ = waiting.send(()); // who gave up does not mind
        true
    }
    /// Sends a question; `None`: too many wait for their answers. It takes a place in the outbox that is its own already: what
    /// is not sent would wait for ever.
    fn ask(&self, place: mpsc::Permit<'_, Control>) -> Option<oneshot::Receiver<()>> {
        let (answered, answer) = oneshot::channel();
        let mut pings = self.pings();
        if PINGS <= pings.waiting.len() {
            return None;
        }
        pings.next += 1;
        let number = pings.next;
        pings.waiting.insert(number, (Instant::now(), answered));
        place.send(Control::Ping(number));
        Some(answer)
    }
    /// The same, unless the outbox is full: that is as bad as no answer.
    fn ask_now(&self) {
        if let Ok(place) = self.outbox.try_reserve() {
            let _ = self.ask(place); // hearing it is enough
        }
    }
    /// Whether an agent has waited for an answer for longer than [`LATE`].
    fn answer_is_late(&self) -> bool {
        self.limits.keep_alive + LATE <= self.pings().answered.elapsed()
    }
    pub fn heard_drain(&self, grace: Duration) {
        self.peer_drains.send_if_modified(|now| {
            let first = now.is_none();
            now.get_or_insert(grace);
            first
        });
    }
    pub fn heard_goodbye(&self, code: CloseCode, message: String) {
        let _ = self.goodbye.set(CloseReason { code, by_peer: true, message });
    }
    async fn closed(&self) -> CloseReason {
        let reason = self.conn.closed().await;
        self.goodbye.get().cloned().unwrap_or(reason)
    }
    async fn ping(&self) -> Result<Duration, Closed> {
        let start = Instant::now();
        let answered = async {
            let place = self.outbox.reserve().await.ok();
            if let Some(answer) = place.and_then(|place| self.ask(place))
                && answer.await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await; // the session is over, which the other branch tells, or too many wait
        };
        tokio::select! {
            () = answered => Ok(start.elapsed()),
            reason = self.closed() => Err(Closed(reason)),
        }
    }
}

/// A session with one peer. Clones are handles to the same session; dropping the last one closes it.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
    _owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}
impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.conn.close(CloseCode::Normal, "no longer needed");
    }
}

impl Session {
    /// Starts the session's task. `control`: the control stream; `None` takes the first stream that the peer opens.
    pub(crate) fn start(parts: Parts, control: Option<Raw>) -> Self {
        let (outbox, queued) = mpsc::channel(parts.limits.control_queue.max(1));
        let (heard, inbox) = mpsc::channel(INBOX);
        let (arrived, incoming) = mpsc::channel(parts.limits.accept_queue.max(1));
        let shared = Arc::new(Shared {
            parts,
            outbox,
            inbox: AsyncMutex::new(inbox),
            incoming: AsyncMutex::new(incoming),
            streams: Arc::default(),
            drain_until: watch::Sender::new(None),
            peer_drains: watch::Sender::new(None),
            goodbye: OnceLock::new(),
            pings: Mutex::new(Pings { waiting: HashMap::new(), next: 0, answered: Instant::now() }),
        });
        let span = tracing::info_span!("session", id = %shared.id, peer = %shared.peer, carrier = %shared.carrier);
        let task = tokio::spawn(run(Arc::clone(&shared), control, queued, heard, arrived).instrument(span));
        let owner = Owner { shared: Arc::clone(&shared), _task: AbortOnDropHandle::new(task) };
        Self { shared, _owner: Arc::new(owner) }
    }

    /// Its number in this process.
    pub fn id(&self) -> SessionId {
        self.shared.id
    }
    /// Whom the peer's certificate names.
    pub fn peer(&self) -> &SpiffeId {
        &self.shared.peer
    }
    /// What carries it.
    pub fn carrier(&self) -> Carrier {
        self.shared.carrier
    }
    /// The peer's address when the session began.
    pub fn remote(&self) -> SocketAddr {
        self.shared.remote
    }
    /// The carrier's newest estimate of the round trip. Zero: none yet.
    pub fn rtt(&self) -> Duration {
        self.shared.conn.rtt()
    }
    /// Bytes that arrived so far: it tells whether anything does.
    pub fn received(&self) -> u64 {
        self.shared.conn.received()
    }
    /// Packets sent and packets of them that were lost, since the session began; `None` over TCP.
    pub fn losses(&self) -> Option<(u64, u64)> {
        self.shared.conn.losses()
    }
    /// Bytes held for its streams: received and not read, written and not sent, at most [`Limits::session_window`] and
    /// [`Limits::send_window`]. `None` on QUIC, whose library keeps that for itself.
    pub fn buffered(&self) -> Option<usize> {
        self.shared.conn.buffered()
    }
    /// Streams that this side has reset because nobody read them and others needed their room.
    pub fn relieved(&self) -> u64 {
        self.shared.conn.relieved()
    }
    /// What the agent said of itself; `None` on the agent's side.
    pub fn hello(&self) -> Option<&Hello> {
        self.shared.hello.as_ref()
    }

    /// Opens a stream. Does not wait for the peer's verdict, only, and for a bounded time, for its permission.
    ///
    /// # Errors
    /// See [`OpenError`]; in no case has the peer's target seen anything.
    pub async fn open(&self, header: &StreamHeader) -> Result<Stream, OpenError> {
        let shared = &self.shared;
        if self.is_draining() || shared.peer_drains.borrow().is_some() {
            return Err(OpenError::Draining);
        }
        let mut bytes = Vec::new();
        put_framed(&mut bytes, |out| header.encode(out)).map_err(|_| OpenError::Header)?;
        let slot = shared.streams.take();
        let mut stream = Stream::opened(shared.conn.open(header.class).await?, header.class, slot);
        // Dropping the stream, as a caller that gives up does, resets it: no half header stays behind.
        match timeout(shared.limits.open_wait, stream.write_all(&bytes)).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(error)) if StreamError::of(&error) == Some(&StreamError::Lost) => {
                Err(OpenError::Closed(shared.closed().await))
            }
            // A stream that was cut while its header was on the way says why when it is read.
            Ok(Err(_)) => Ok(stream),
            Err(_) => Err(OpenError::TooMany),
        }
    }

    /// The next stream that the peer opened, its header read. `None`: the session is over.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn accept(&self) -> Option<IncomingStream> {
        self.shared.incoming.lock().await.recv().await
    }

    /// Asks the peer's session for a sign of life; how long it took. No time limit of its own.
    ///
    /// # Errors
    /// The session ended first.
    pub async fn ping(&self) -> Result<Duration, Closed> {
        self.shared.ping().await
    }

    /// How long an agent's question for a sign of life has been waiting for its answer; nothing, if none is late. An agent
    /// asks every [`Limits::keep_alive`].
    pub fn unanswered(&self) -> Duration {
        let answered = self.shared.pings().answered;
        answered.elapsed().saturating_sub(self.shared.limits.keep_alive)
    }

    /// Queues a message: `Renew` and `Facts` from an agent, `Renewed` and `RenewRefused` from a hub.
    ///
    /// # Errors
    /// The session is over. A message that the peer would have to refuse closes the session with `Internal`.
    pub async fn send(&self, message: Control) -> Result<(), Closed> {
        let fits = match self.shared.side {
            Side::Agent => matches!(message, Control::Renew { .. } | Control::Facts(_)),
            Side::Hub => matches!(message, Control::Renewed { .. } | Control::RenewRefused { .. }),
        };
        if !fits || message.encode(&mut Vec::new()).is_err() {
            self.shared.conn.close(CloseCode::Internal, "a control message that cannot be sent");
            return Err(Closed(self.closed().await));
        }
        match self.shared.outbox.send(message).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Closed(self.closed().await)),
        }
    }

    /// The next `Renew`, `Renewed`, `RenewRefused` or `Facts`; everything else is handled inside. `None`: the session
    /// is over.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn recv(&self) -> Option<Control> {
        self.shared.inbox.lock().await.recv().await
    }

    /// Opens no more streams and asks the peer not to; closes with `Shutdown` when the open ones have ended, at the
    /// latest after `grace`. Streams that were on their way are still served. The first call counts.
    pub fn drain(&self, grace: Duration) {
        self.shared.drain_until.send_if_modified(|until| {
            let first = until.is_none();
            until.get_or_insert(Instant::now() + grace);
            first
        });
    }

    /// Whether this side drains.
    pub fn is_draining(&self) -> bool {
        self.shared.drain_until.borrow().is_some()
    }

    /// Whether the peer drains.
    pub fn is_peer_draining(&self) -> bool {
        self.shared.peer_drains.borrow().is_some()
    }

    /// Waits until the peer says that it drains; how long it will wait before it closes. Never, if it does not.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn peer_draining(&self) -> Duration {
        let mut watched = self.shared.peer_drains.subscribe();
        match watched.wait_for(Option::is_some).await.ok().and_then(|grace| *grace) {
            Some(grace) => grace,
            None => std::future::pending().await, // not reached: `shared` holds the sender
        }
    }

    /// Streams open now, opened by either side, the control stream not counted.
    pub fn open_streams(&self) -> usize {
        self.shared.streams.get()
    }

    /// Ends the session and every stream on it. The first call counts.
    pub fn close(&self, code: CloseCode, message: &str) {
        self.shared.conn.close(code, message);
    }

    /// Waits for the end.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn closed(&self) -> CloseReason {
        self.shared.closed().await
    }
}

/// The session's one task: whichever part ends first ends the session.
async fn run(
    shared: Arc<Shared>,
    control: Option<Raw>,
    queued: mpsc::Receiver<Control>,
    heard: mpsc::Sender<Control>,
    arrived: mpsc::Sender<IncomingStream>,
) {
    let control = match control {
        Some(control) => Some(control),
        None => shared.conn.accept().await,
    };
    let Some(control) = control else { return };
    let (from, to) = tokio::io::split(control);
    let (code, message) = tokio::select! {
        reason = shared.closed() => {
            tracing::debug!(code = %reason.code, by_peer = reason.by_peer, message = reason.message, "session closed");
            return;
        }
        end = control::listen(&shared, from, heard) => end,
        end = control::speak(&shared, to, queued) => end,
        end = take_streams(&shared, arrived) => end,
        end = drain(&shared) => end,
        end = alive(&shared) => end,
    };
    shared.conn.close(code, &message);
    let reason = shared.closed().await;
    tracing::debug!(code = %reason.code, by_peer = reason.by_peer, message = reason.message, "session closed");
}

/// How often it is looked whether anything arrives on a session on which something should.
pub(crate) const LATE: Duration = Duration::from_secs(1);

/// When something arrived last, as seen by whoever looks.
#[derive(Debug)]
pub(crate) struct Arrivals {
    bytes: u64,
    at: Instant,
}
impl Arrivals {
    pub fn new(shared: &Shared) -> Self {
        Self { bytes: shared.conn.received(), at: Instant::now() }
    }
    pub fn last(&mut self, shared: &Shared) -> Instant {
        let bytes = shared.conn.received();
        if bytes != std::mem::replace(&mut self.bytes, bytes) {
            self.at = Instant::now();
        }
        self.at
    }
}

/// Asks the hub for a sign of life, and ends with a session whose hub gives none. A hub asks nothing: it hears whether
/// it is asked, see [`control::listen`].
async fn alive(shared: &Shared) -> (CloseCode, String) {
    if shared.is_hub() {
        return std::future::pending().await;
    }
    let mut ask_at = Instant::now() + shared.limits.keep_alive;
    let mut arrivals = Arrivals::new(shared);
    loop {
        sleep_until(ask_at.min(Instant::now() + LATE)).await;
        // An answer that stands behind much else is late, and no sign of death.
        if shared.limits.silence <= arrivals.last(shared).elapsed() {
            return (CloseCode::Silent, "the hub did not answer in time".into());
        }
        // A path that was away is found by the next thing that is sent: while an answer is late, that must not be long.
        if ask_at <= Instant::now() || shared.answer_is_late() {
            ask_at = Instant::now() + shared.limits.keep_alive;
            shared.ask_now();
        }
    }
}

/// Waits until this side drains, tells the peer, waits for the open streams.
async fn drain(shared: &Shared) -> (CloseCode, String) {
    let mut watched = shared.drain_until.subscribe();
    let until = watched.wait_for(Option::is_some).await.ok().and_then(|until| *until);
    let Some(until) = until else { return std::future::pending().await };
    let grace = until.saturating_duration_since(Instant::now());
    let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
    let ended = async {
        let _ = shared.outbox.send(Control::Drain { grace_ms }).await;
        // Once the peer has answered a ping that follows, it has heard, and opens nothing more; what it opened
        // before is at most a lost packet behind.
        let _ = timeout(DRAIN_HEARD, shared.ping()).await;
        sleep((shared.conn.rtt() * 2).clamp(Duration::from_millis(50), Duration::from_secs(1))).await;
        loop {
            let changed = shared.streams.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if shared.streams.get() == 0 {
                break;
            }
            changed.await;
        }
    };
    match timeout_at(until, ended).await {
        Ok(()) => (CloseCode::Shutdown, "drained".into()),
        Err(_) => (CloseCode::Shutdown, "drained; streams that were left were cut".into()),
    }
}

/// Takes the peer's streams. Reading their headers does not hold up the next one.
async fn take_streams(shared: &Shared, arrived: mpsc::Sender<IncomingStream>) -> (CloseCode, String) {
    let permits = Arc::new(Semaphore::new(shared.limits.pending_headers.max(1)));
    let mut readers = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return std::future::pending().await };
        while readers.try_join_next().is_some() {}
        let Some(raw) = shared.conn.accept().await else { return std::future::pending().await };
        if shared.is_hub() {
            let mut raw = raw;
            raw.reset(ResetCode::Refused);
            return (CloseCode::ForbiddenStream, "an agent opens no streams".into());
        }
        let slot = shared.streams.take();
        shared.conn.permit(shared.streams.get());
        let (arrived, wait) = (arrived.clone(), shared.limits.header);
        let mut reader = Box::pin(async move {
            let _permit = permit;
            let mut raw = raw;
            match timeout(wait, read_header(&mut raw)).await {
                Ok(Ok(header)) => {
                    // Fails when the session is over: the stream is reset by its drop.
                    let _ = arrived.send(IncomingStream::new(header, raw, slot)).await;
                }
                Ok(Err(control::ReadError::Wire(error))) => {
                    let code = match error {
                        WireError::UnknownTarget(_) => RefuseCode::UnknownTarget,
                        _ => RefuseCode::BadHeader,
                    };
                    let refusal = Refusal { code, message: error.to_string(), retry_elsewhere: false };
                    let told = refuse(&mut raw, refusal).await;
                    raw.abandon(told, told, ResetCode::Refused);
                }
                Ok(Err(_)) => raw.reset(ResetCode::Protocol),
                Err(_) => raw.reset(ResetCode::Idle),
            }
        });
        // Most headers are there with the stream: then a task is not worth its price.
        if poll_fn(|cx| Poll::Ready(reader.as_mut().poll(cx))).await.is_pending() {
            readers.spawn(reader);
        }
    }
}

async fn read_header(raw: &mut Raw) -> Result<StreamHeader, control::ReadError> {
    Ok(StreamHeader::decode(&control::read_framed(raw).await?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::session_pair_with;
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    #[tokio::test]
    async fn a_question_that_is_not_sent_waits_for_no_answer() {
        let (_hub, agent) = session_pair_with(&Limits { control_queue: 1, ..Limits::default() });
        // Nothing is awaited here, so the session sends nothing.
        agent.shared.ask_now();
        for _ in 0..=PINGS {
            agent.shared.ask_now();
            let asked = pin!(agent.shared.ping()).poll(&mut Context::from_waker(Waker::noop()));
            assert!(asked.is_pending());
        }
        assert_eq!(agent.shared.pings().waiting.len(), 1, "the one that has a place");
        assert!(timeout(Duration::from_secs(20), agent.ping()).await.is_ok(), "and the next one is asked");
    }
}
