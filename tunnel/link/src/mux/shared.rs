//! The machine, and who waits for it.

use super::MuxStats;
use crate::{CloseReason, Closed, OpenError};
use bytes::BytesMut;
use moorline_proto::{
    code::CloseCode,
    header::Class,
    mux::{self, Event, Mux, MuxLimits, Outgoing, Role, StreamKey},
};
use std::{
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// One session, as its driver, its handles and its streams see it.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    started: Instant,
    /// A stream may be accepted, or never again.
    incoming: Notify,
    /// The peer goes away, or the session has ended.
    news: Notify,
}

#[derive(Debug)]
struct State {
    mux: Mux,
    /// By the slot of the stream.
    streams: Vec<Waiters>,
    driver: Option<Waker>,
    /// The driver was woken and has not run yet.
    driver_called: bool,
    /// The driver does not read, for too much is unread.
    paused: bool,
    /// The wake-ups that the machine's news call for; rung once the lock is free.
    bells: Vec<Waker>,
    /// Who waits for which ping.
    pings: Vec<(u32, oneshot::Sender<Duration>)>,
    bytes_in: u64,
    bytes_out: u64,
    /// What this side said about the end that it asked for.
    message: String,
    reason: Option<CloseReason>,
}

#[derive(Debug, Default)]
struct Waiters {
    reader: Option<Waker>,
    writer: Option<Waker>,
    watcher: Option<Waker>,
}

/// What one turn of the driver has found.
#[derive(Debug)]
pub(super) struct Turn {
    /// The session has ended, and there is nothing left to send.
    pub finished: bool,
    /// Reading may go on.
    pub may_read: bool,
    /// There is more to send than is in the batch.
    pub more: bool,
    /// When to come back at the latest.
    pub wake_at: Option<Duration>,
}

/// What the driver brings to the machine.
pub(super) struct Visit<'a> {
    pub input: &'a mut BytesMut,
    pub out: &'a mut Outgoing,
    pub read: usize,
    pub written: usize,
    /// The carrier came to its end, or broke for this cause.
    pub lost: Option<String>,
    pub timer: bool,
    pub trim: bool,
}

impl Shared {
    pub(super) fn new(role: Role, limits: MuxLimits) -> Self {
        let state = State {
            mux: Mux::new(role, limits, Duration::ZERO),
            streams: Vec::new(),
            driver: None,
            driver_called: false,
            paused: false,
            bells: Vec::new(),
            pings: Vec::new(),
            bytes_in: 0,
            bytes_out: 0,
            message: String::new(),
            reason: None,
        };
        Self { state: Mutex::new(state), started: Instant::now(), incoming: Notify::new(), news: Notify::new() }
    }

    /// The instant of a time of the machine.
    pub(super) fn instant(&self, at: Duration) -> Instant {
        self.started + at
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug of ours; the state is as consistent as any other, and hanging is worse.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` on the machine, then wakes whoever has to know.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Access<'_>) -> R) -> R {
        let mut state = self.lock();
        let result = work(&mut Access { state: &mut state });
        self.deliver(&mut state);
        let due = state.mux.wants_transmit() || (state.paused && state.mux.can_receive());
        if due && !mem::replace(&mut state.driver_called, true) {
            let driver = state.driver.clone();
            state.bells.extend(driver);
        }
        ring(state);
        result
    }

    /// One turn of the driver, under one lock.
    pub(super) fn turn(&self, visit: Visit<'_>, cx: &Context<'_>) -> Turn {
        let now = self.started.elapsed();
        let mut state = self.lock();
        state.driver_called = false;
        if state.driver.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            state.driver = Some(cx.waker().clone());
        }
        state.bytes_in += visit.read as u64;
        state.bytes_out += visit.written as u64;
        if visit.timer {
            state.mux.on_timer(now);
        }
        state.mux.receive(visit.input, now);
        if let Some(cause) = visit.lost {
            if state.message.is_empty() {
                state.message = cause;
            }
            state.mux.carrier_lost();
        }
        if visit.out.is_empty() {
            state.mux.transmit(visit.out, now);
        }
        if visit.trim {
            state.mux.release_memory(visit.out);
        }
        self.deliver(&mut state);
        let turn = Turn {
            finished: state.mux.is_finished(),
            may_read: state.mux.can_receive(),
            more: state.mux.wants_transmit(),
            wake_at: state.mux.wake_at(),
        };
        state.paused = !turn.may_read;
        ring(state);
        turn
    }

    /// Passes the machine's news on.
    fn deliver(&self, state: &mut State) {
        while let Some(event) = state.mux.poll_event() {
            let slot = |key: StreamKey| key.slot();
            match event {
                Event::Readable(key) => {
                    state.bells.extend(state.streams.get_mut(slot(key)).and_then(|w| w.reader.take()));
                }
                Event::Writable(key) => {
                    state.bells.extend(state.streams.get_mut(slot(key)).and_then(|w| w.writer.take()));
                }
                Event::Cut(key) => {
                    state.bells.extend(state.streams.get_mut(slot(key)).and_then(|w| w.watcher.take()));
                }
                Event::Incoming => self.incoming.notify_one(),
                Event::Pong { id, rtt } => {
                    for (_, waiter) in state.pings.extract_if(.., |(waits_for, _)| *waits_for == id) {
                        let _ = waiter.send(rtt); // its caller may have left
                    }
                }
                Event::PeerGoAway(_) => self.news.notify_waiters(),
                Event::Ended => {
                    state.reason = state.mux.end().map(|end| CloseReason {
                        code: end.code,
                        by_peer: end.by_peer,
                        message: match end.violation {
                            Some(violation) => violation.to_string(),
                            None if end.by_peer => "the peer has closed".to_owned(),
                            None => mem::take(&mut state.message),
                        },
                    });
                    state.pings.clear();
                    // Reading paused by a full budget goes on, to see the peer hang up.
                    let driver = state.driver.clone();
                    state.bells.extend(driver);
                    self.news.notify_waiters();
                    self.incoming.notify_waiters();
                }
            }
        }
    }

    pub(super) fn open(&self, class: Class) -> Result<StreamKey, OpenError> {
        self.with(|access| {
            access.mux().open(class).map_err(|error| match error {
                mux::OpenError::Ended => OpenError::Closed(access.reason()),
                mux::OpenError::GoingAway => OpenError::Draining,
                mux::OpenError::TooMany => OpenError::TooMany,
            })
        })
    }

    pub(super) async fn accept(&self) -> Option<StreamKey> {
        until(&self.incoming, || {
            self.with(|access| match access.mux().accept() {
                Some(key) => Some(Some(key)),
                None => access.mux().end().map(|_| None),
            })
        })
        .await
    }

    pub(super) async fn ping(&self) -> Result<Duration, Closed> {
        let waiting = self.with(|access| {
            if access.mux().end().is_some() {
                return None;
            }
            let id = access.mux().ping();
            let (answer, waiting) = oneshot::channel();
            access.state.pings.retain(|(_, waiter)| !waiter.is_closed());
            access.state.pings.push((id, answer));
            Some(waiting)
        });
        if let Some(waiting) = waiting
            && let Ok(rtt) = waiting.await
        {
            return Ok(rtt);
        }
        Err(Closed(self.closed().await))
    }

    pub(super) fn go_away(&self, code: CloseCode, message: &str) {
        self.with(|access| {
            message.clone_into(&mut access.state.message);
            access.mux().go_away(code);
        });
    }

    pub(super) fn close(&self, code: CloseCode, message: &str) {
        self.with(|access| {
            if access.mux().end().is_none() {
                message.clone_into(&mut access.state.message);
                access.mux().close(code);
            }
        });
    }

    pub(super) fn is_draining(&self) -> bool {
        self.lock().mux.is_going_away()
    }

    pub(super) fn peer_is_draining(&self) -> bool {
        self.lock().mux.peer_going_away().is_some()
    }

    pub(super) async fn peer_draining(&self) {
        until(&self.news, || {
            let state = self.lock();
            (state.mux.peer_going_away().is_some() || state.reason.is_some()).then_some(())
        })
        .await;
    }

    pub(super) async fn closed(&self) -> CloseReason {
        until(&self.news, || self.lock().reason.clone()).await
    }

    pub(super) fn stats(&self) -> MuxStats {
        let state = self.lock();
        MuxStats {
            open_streams: state.mux.open_streams(),
            bytes_in: state.bytes_in,
            bytes_out: state.bytes_out,
            buffered: state.mux.unread() + state.mux.queued(),
            relieved: state.mux.relieved(),
            rtt: state.mux.rtt().unwrap_or_default(),
        }
    }
}

/// Waits until `ready` has an answer; `notify` says when to ask again.
async fn until<T>(notify: &Notify, mut ready: impl FnMut() -> Option<T>) -> T {
    loop {
        let mut notified = pin!(notify.notified());
        // Stands in line before it asks: news between the two is not missed.
        notified.as_mut().enable();
        if let Some(answer) = ready() {
            return answer;
        }
        poll_fn(|cx| notified.as_mut().poll(cx)).await;
    }
}

/// Wakes without the lock: the woken take it first thing.
fn ring(mut state: MutexGuard<'_, State>) {
    if state.bells.is_empty() {
        return;
    }
    let mut bells = mem::take(&mut state.bells);
    drop(state);
    bells.drain(..).for_each(Waker::wake);
}

/// What a stream's task may wait for.
#[derive(Debug, Clone, Copy)]
pub(super) enum News {
    Readable,
    Writable,
    Cut,
}

/// The machine while it is locked.
pub(super) struct Access<'a> {
    state: &'a mut State,
}

impl Access<'_> {
    pub(super) const fn mux(&mut self) -> &mut Mux {
        &mut self.state.mux
    }

    fn reason(&self) -> CloseReason {
        let unknown = || CloseReason { code: CloseCode::Internal, by_peer: false, message: String::new() };
        self.state.reason.clone().unwrap_or_else(unknown)
    }

    /// Wakes the task of `cx` once the machine has such news of the stream.
    pub(super) fn wait<T>(&mut self, key: StreamKey, news: News, cx: &Context<'_>) -> Poll<T> {
        let slot = key.slot();
        if self.state.streams.len() <= slot {
            self.state.streams.resize_with(slot + 1, Waiters::default);
        }
        if let Some(waiters) = self.state.streams.get_mut(slot) {
            let place = match news {
                News::Readable => &mut waiters.reader,
                News::Writable => &mut waiters.writer,
                News::Cut => &mut waiters.watcher,
            };
            if place.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                *place = Some(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// The application drops a stream.
    pub(super) fn release(&mut self, key: StreamKey) {
        if let Some(waiters) = self.state.streams.get_mut(key.slot()) {
            *waiters = Waiters::default();
        }
        self.state.mux.release(key);
        // A burst of streams leaves nothing behind once it is over.
        if self.state.mux.open_streams() == 0 {
            self.state.streams = Vec::new();
        }
    }
}
