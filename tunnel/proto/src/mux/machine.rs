//! The session as a whole: its state, its end, its timers.

use super::{
    MuxLimits, Outgoing, StreamKey, Violation, ids::SeenIds, limits::Allowance, receive::Payload,
    round_trip::RoundTrip, schedule::Schedule, slots::Slots, stream::Stream,
};
use crate::code::{CloseCode, ResetCode};
use alloc::collections::VecDeque;
use core::{mem, time::Duration};

/// Which side of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Dialled: opens odd ids.
    Client,
    /// Accepted: opens even ids.
    Server,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The cause.
    pub code: CloseCode,
    /// Whether the peer ended it, and not this side.
    pub by_peer: bool,
    /// The breach that ended it, if one did.
    pub violation: Option<Violation>,
}

/// What the owner of a [`Mux`] is told. A stream's news come only to those who asked in vain before: one wake-up for
/// each wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// [`Mux::read`] has more to say.
    Readable(StreamKey),
    /// [`Mux::write`] has more to say.
    Writable(StreamKey),
    /// [`Mux::accept`] has a stream.
    Incoming,
    /// A stream for which [`Mux::watch`] found nothing was cut short.
    Cut(StreamKey),
    /// The ping with this id was answered.
    Pong {
        /// What [`Mux::ping`] returned.
        id: u32,
        /// From the sending of the ping to now.
        rtt: Duration,
    },
    /// The peer takes no new streams.
    PeerGoAway(CloseCode),
    /// The session is over, see [`Mux::end`].
    Ended,
}

/// One session. Times are since one arbitrary start.
#[derive(Debug)]
pub struct Mux {
    pub(super) role: Role,
    pub(super) limits: MuxLimits,
    pub(super) now: Duration,
    pub(super) events: VecDeque<Event>,
    pub(super) slots: Slots,
    pub(super) streams_in: usize,
    pub(super) streams_out: usize,
    /// Streams of the peer that nobody has accepted.
    pub(super) pending: VecDeque<StreamKey>,
    /// Streams of ours that the peer has not acknowledged.
    pub(super) unacked: usize,
    /// Streams whose acknowledgement waits for a frame to ride on.
    pub(super) acks: VecDeque<StreamKey>,
    /// The next id of ours. `None`: all are used up.
    pub(super) next_id: Option<u32>,
    pub(super) seen: SeenIds,
    /// Streams cut by us and forgotten: what the peer may still send before it has heard of that.
    pub(super) tombstones: VecDeque<(u32, u32)>,
    /// The payload whose header was read.
    pub(super) payload: Option<Payload>,
    pub(super) unread: usize,
    pub(super) queued: usize,
    /// Credit granted beyond the initial windows.
    pub(super) grown: usize,
    /// Writers that wait for room in the session.
    pub(super) starved: VecDeque<StreamKey>,
    pub(super) control: VecDeque<StreamKey>,
    pub(super) schedule: Schedule,
    /// Streams that were refused, and must be told.
    pub(super) refused: VecDeque<u32>,
    pub(super) pongs: VecDeque<u32>,
    /// Pings to be sent.
    pub(super) pings_due: VecDeque<u32>,
    /// Pings that were sent, and when.
    pub(super) pings_sent: VecDeque<(u32, Duration)>,
    pub(super) next_ping_id: u32,
    pub(super) next_ping: Duration,
    pub(super) rtt: RoundTrip,
    pub(super) heard: Duration,
    /// When streams are looked at that nobody reads, because the carrier stands still for what is unread.
    pub(super) relieve_at: Option<Duration>,
    /// Until when it is known that nobody reads some of them: what stands still again waits no longer.
    pub(super) pressed_until: Duration,
    /// Streams that were reset to make room.
    pub(super) relieved: u64,
    /// This side takes no new streams and opens none.
    pub(super) going_away: Option<CloseCode>,
    pub(super) go_away_due: bool,
    pub(super) peer_going_away: Option<CloseCode>,
    pub(super) end: Option<End>,
    pub(super) pings: Allowance,
    pub(super) refusals: Allowance,
    pub(super) strays: Allowance,
    pub(super) empties: Allowance,
}

impl Mux {
    /// A session that begins at `now`. It asks for the round trip at once.
    #[must_use]
    pub fn new(role: Role, limits: MuxLimits, now: Duration) -> Self {
        let (first, peers_first) = match role {
            Role::Client => (1, 2),
            Role::Server => (2, 1),
        };
        let mut mux = Self {
            role,
            now,
            events: VecDeque::new(),
            slots: Slots::default(),
            streams_in: 0,
            streams_out: 0,
            pending: VecDeque::new(),
            unacked: 0,
            acks: VecDeque::new(),
            next_id: Some(first),
            seen: SeenIds::new(peers_first, limits.id_gaps),
            tombstones: VecDeque::new(),
            payload: None,
            unread: 0,
            queued: 0,
            grown: 0,
            starved: VecDeque::new(),
            control: VecDeque::new(),
            schedule: Schedule::default(),
            refused: VecDeque::new(),
            pongs: VecDeque::new(),
            pings_due: VecDeque::new(),
            pings_sent: VecDeque::new(),
            next_ping_id: 0,
            next_ping: now + limits.ping_every,
            rtt: RoundTrip::default(),
            heard: now,
            relieve_at: None,
            pressed_until: Duration::ZERO,
            relieved: 0,
            going_away: None,
            go_away_due: false,
            peer_going_away: None,
            end: None,
            pings: Allowance::new(limits.pings, now),
            refusals: Allowance::new(limits.refusals, now),
            strays: Allowance::new(limits.strays, now),
            empties: Allowance::new(limits.empties, now),
            limits,
        };
        mux.ping();
        mux
    }

    /// The next piece of news. The owner takes all of them after each call that may bring some.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Why the session ended, once it has.
    #[must_use]
    pub const fn end(&self) -> Option<End> {
        self.end
    }

    /// The session has ended, and the carrier has been given all that there was to send: close it.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.end.is_some() && !self.wants_transmit()
    }

    /// Streams that are open, in either direction, or still have something to send.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.slots.len()
    }

    /// Bytes received and not read.
    #[must_use]
    pub const fn unread(&self) -> usize {
        self.unread
    }

    /// Bytes written and not sent.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.queued
    }

    /// Streams that were reset because nobody read them and others needed their room.
    #[must_use]
    pub const fn relieved(&self) -> u64 {
        self.relieved
    }

    /// The newest round trip.
    #[must_use]
    pub const fn rtt(&self) -> Option<Duration> {
        self.rtt.newest()
    }

    /// Whether [`Mux::go_away`] or [`Mux::close`] was called.
    #[must_use]
    pub const fn is_going_away(&self) -> bool {
        self.going_away.is_some()
    }

    /// Whether the peer takes no new streams, and why.
    #[must_use]
    pub const fn peer_going_away(&self) -> Option<CloseCode> {
        self.peer_going_away
    }

    /// Asks for the round trip; the answer is an [`Event::Pong`] with the id returned. Above
    /// [`MuxLimits::pings_waiting`] the newest ping under way stands for this one.
    pub fn ping(&mut self) -> u32 {
        if self.end.is_none() && self.pings_due.len() + self.pings_sent.len() < self.limits.pings_waiting {
            self.next_ping_id = self.next_ping_id.wrapping_add(1);
            self.pings_due.push_back(self.next_ping_id);
        }
        self.next_ping_id
    }

    /// No new streams in either direction from now on. Once the open ones have finished, the session ends with `code`.
    pub fn go_away(&mut self, code: CloseCode) {
        if self.going_away.is_none() && self.end.is_none() {
            self.going_away = Some(code);
            self.go_away_due = true;
        }
    }

    /// Ends the session. What was written before is still sent if the carrier takes it, then the peer is told `code`.
    pub fn close(&mut self, code: CloseCode) {
        if self.end.is_none() {
            self.go_away_due = self.going_away.replace(code) != Some(code) || self.go_away_due;
            self.finish_session(End { code, by_peer: false, violation: None });
        }
    }

    /// The carrier came to its end or broke: nothing more is heard, and nothing more can be said.
    pub fn carrier_lost(&mut self) {
        if self.end.is_none() {
            let (code, by_peer) = match self.peer_going_away {
                Some(code) => (code, true),
                None => (CloseCode::Silent, false),
            };
            self.finish_session(End { code, by_peer, violation: None });
        }
        self.forget_outgoing();
        self.go_away_due = false;
    }

    /// The next moment at which [`Mux::on_timer`] has something to do.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        if self.end.is_some() {
            return None;
        }
        let wake = self.next_ping.min(self.heard + self.limits.silence);
        Some(self.relieve_at.map_or(wake, |at| wake.min(at)))
    }

    /// Does what is due at `now`: pings, the end of a silent session, the reset of streams that hold up the others.
    pub fn on_timer(&mut self, now: Duration) {
        self.now = now;
        if self.end.is_some() {
            return;
        }
        if !self.can_receive() {
            self.heard = now; // we are the ones who do not listen
            self.relieve(now);
        }
        if self.next_ping <= now {
            self.next_ping = now + self.limits.ping_every;
            self.ping();
            self.flush_acks();
        }
        if self.heard + self.limits.silence <= now {
            self.go_away_due = false;
            self.finish_session(End { code: CloseCode::Silent, by_peer: false, violation: None });
            self.forget_outgoing();
        }
    }

    /// Resets streams that nobody reads until there is room again, the fullest first.
    pub(super) fn relieve(&mut self, now: Duration) {
        let grace = self.limits.stall_grace;
        if self.relieve_at.is_none_or(|at| now < at) {
            return;
        }
        while !self.can_receive() {
            let idle = |stream: &Stream| 0 < stream.recv.unread && stream.recv.touched + grace <= now;
            let fullest = self.slots.iter().filter(|(_, s)| idle(s)).max_by_key(|(_, s)| s.recv.unread);
            let Some((key, _)) = fullest else { break };
            self.cut(key, ResetCode::Idle);
            self.relieved += 1;
            self.pressed_until = now + grace * 2;
        }
        // Whoever is read, but slowly, has its time anew; the first whose time may be over is looked at then.
        let unread = self.slots.iter().filter(|(_, stream)| 0 < stream.recv.unread);
        let first = unread.map(|(_, stream)| stream.recv.touched).min().unwrap_or(now);
        self.relieve_at = (!self.can_receive()).then_some(first + grace);
    }

    /// Ends the session over a breach by the peer. Nothing but the reason is sent any more.
    pub(super) fn fail(&mut self, violation: Violation) {
        let code = violation.close_code();
        self.forget_outgoing();
        self.going_away = Some(code);
        self.go_away_due = true;
        self.finish_session(End { code, by_peer: false, violation: Some(violation) });
    }

    fn finish_session(&mut self, end: End) {
        self.end = Some(end);
        self.payload = None;
        self.pongs.clear();
        self.pings_due.clear();
        self.pings_sent.clear();
        self.refused.clear();
        self.events.push_back(Event::Ended);
        while let Some(key) = self.pending.pop_front() {
            self.release(key);
        }
        for key in self.slots.keys() {
            self.wake_all(key);
            self.free(key);
        }
    }

    /// Drops everything that waits to be sent.
    fn forget_outgoing(&mut self) {
        self.control.clear();
        self.schedule.clear();
        self.starved.clear();
        for key in self.slots.keys() {
            let Some(stream) = self.slots.get_mut(key) else { continue };
            (stream.in_control, stream.in_data, stream.rst) = (false, false, None);
            self.queued -= stream.send.clear();
            self.free(key);
        }
    }

    /// Gives back what a busy time has grown, once it is over.
    pub fn release_memory(&mut self, out: &mut Outgoing) {
        out.release();
        fn shrink<T>(queue: &mut VecDeque<T>) {
            if queue.is_empty() && 16 < queue.capacity() {
                *queue = VecDeque::new();
            }
        }
        shrink(&mut self.events);
        shrink(&mut self.pending);
        shrink(&mut self.acks);
        shrink(&mut self.starved);
        shrink(&mut self.control);
        shrink(&mut self.refused);
        if self.schedule.is_empty() {
            self.schedule.clear();
        }
    }

    // What the other parts share.

    pub(super) fn wake_reader(&mut self, key: StreamKey) {
        if let Some(stream) = self.slots.get_mut(key)
            && mem::take(&mut stream.recv.waiting)
        {
            self.events.push_back(Event::Readable(key));
        }
    }

    pub(super) fn wake_writer(&mut self, key: StreamKey) {
        if let Some(stream) = self.slots.get_mut(key)
            && mem::take(&mut stream.send.waiting)
        {
            self.events.push_back(Event::Writable(key));
        }
    }

    /// The stream was cut short: whoever waits for it must hear.
    pub(super) fn wake_all(&mut self, key: StreamKey) {
        self.wake_reader(key);
        self.wake_writer(key);
        if let Some(stream) = self.slots.get_mut(key)
            && mem::take(&mut stream.watched)
        {
            self.events.push_back(Event::Cut(key));
        }
    }

    /// A control frame of this stream is due.
    pub(super) fn control_due(&mut self, key: StreamKey) {
        if let Some(stream) = self.slots.get_mut(key)
            && !mem::replace(&mut stream.in_control, true)
        {
            self.control.push_back(key);
        }
    }

    /// A data frame of this stream is due.
    pub(super) fn data_due(&mut self, key: StreamKey) {
        if let Some(stream) = self.slots.get_mut(key)
            && !mem::replace(&mut stream.in_data, true)
        {
            self.schedule.push(stream.class, key);
        }
    }

    /// Acknowledgements wait for a frame to ride on, but not for ever.
    pub(super) fn flush_acks(&mut self) {
        while let Some(key) = self.acks.pop_front() {
            if self.slots.get(key).is_some_and(|stream| stream.ack) {
                self.control_due(key);
            }
        }
    }

    /// Cuts a stream short from this side. Afterwards nothing of it is held, whoever cut it first.
    pub(super) fn cut(&mut self, key: StreamKey, code: ResetCode) {
        let Some(stream) = self.slots.get_mut(key) else { return };
        if stream.is_complete() && stream.recv.unread == 0 {
            return;
        }
        self.unread -= stream.recv.clear();
        self.queued -= stream.send.clear();
        // A stream of which the peer has never heard ends without a word, and so does one that needs no more.
        let peer_must_hear = stream.cut.is_none() && !stream.syn && !stream.is_complete() && self.end.is_none();
        if stream.cut.is_none_or(|cut| cut.by_peer && stream.recv.fin) {
            stream.cut = Some(super::Reset { code, by_peer: false });
        }
        if peer_must_hear {
            stream.rst = Some(code);
            self.control_due(key);
        }
        self.noticed_room();
        self.wake_all(key);
    }

    /// Forgets a stream that nobody needs any more.
    pub(super) fn free(&mut self, key: StreamKey) {
        let over = self.end.is_some();
        let Some(stream) = self.slots.get(key) else { return };
        let settled = stream.cut.is_some() || stream.is_complete() || (over && !stream.has_data());
        if !stream.released || stream.rst.is_some() || stream.in_control || stream.in_data || !settled {
            return;
        }
        let Some(mut stream) = self.slots.remove(key) else { return };
        self.unread -= stream.recv.clear();
        self.queued -= stream.send.clear();
        self.grown -= (stream.recv.window - super::INITIAL_WINDOW) as usize;
        self.unacked -= usize::from(stream.unacked);
        *(if stream.local { &mut self.streams_out } else { &mut self.streams_in }) -= 1;
        if stream.cut.is_some_and(|cut| !cut.by_peer) && !stream.recv.fin && !stream.syn {
            self.bury(stream.id, stream.recv.credit);
        }
        self.noticed_room();
        self.finish_drain();
    }

    pub(super) fn bury(&mut self, id: u32, credit: u32) {
        if self.limits.tombstones <= self.tombstones.len() {
            self.tombstones.pop_front();
        }
        self.tombstones.push_back((id, credit));
    }

    /// The session goes away, and its last stream has ended.
    pub(super) fn finish_drain(&mut self) {
        if let (Some(code), None, 0) = (self.going_away, self.end, self.slots.len())
            && !self.go_away_due
        {
            self.finish_session(End { code, by_peer: false, violation: None });
        }
    }

    /// Something was read or forgotten: the carrier may move again.
    pub(super) fn noticed_room(&mut self) {
        if self.can_receive() {
            self.relieve_at = None;
        }
    }
}
