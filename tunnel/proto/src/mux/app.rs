//! What the application does with streams.

use super::{
    Event, Mux, StreamKey,
    frame::INITIAL_WINDOW,
    machine::Role,
    stream::{Fin, Stream},
};
use crate::{
    code::{CloseCode, ResetCode},
    header::Class,
};
use bytes::Bytes;

/// Acknowledgements that wait for a frame to ride on before they get frames of their own. Far below any opener's
/// bound on unacknowledged streams: 256 in the yamux crate.
const ACKS_WAITING: usize = 16;

/// Why no stream was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The session is over.
    Ended,
    /// One side is going away.
    GoingAway,
    /// [`super::MuxLimits::max_streams_out`], [`super::MuxLimits::max_pending_opens`], or every id was used.
    TooMany,
}

/// A stream was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// The cause.
    pub code: ResetCode,
    /// Whether the peer did it.
    pub by_peer: bool,
}

/// What reading found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Bytes, at least one.
    Data(Bytes),
    /// Nothing yet; an [`super::Event::Readable`] follows.
    Pending,
    /// All was read, and the peer has ended its direction.
    End,
}

impl Mux {
    /// Opens a stream. The peer hears of it with its first data, or when this side waits for the peer's.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&mut self, class: Class) -> Result<StreamKey, OpenError> {
        if self.end.is_some() {
            return Err(OpenError::Ended);
        }
        if self.going_away.is_some() || self.peer_going_away.is_some() {
            return Err(OpenError::GoingAway);
        }
        let full = self.limits.max_streams_out <= self.streams_out || self.limits.max_pending_opens <= self.unacked;
        let Some(id) = self.next_id.filter(|_| !full) else { return Err(OpenError::TooMany) };
        self.next_id = id.checked_add(2);
        self.streams_out += 1;
        self.unacked += 1;
        Ok(self.slots.insert(Stream::new(id, class, true, INITIAL_WINDOW, self.now)))
    }

    /// Takes the next stream that the peer has opened.
    pub fn accept(&mut self) -> Option<StreamKey> {
        let key = self.pending.pop_front()?;
        if let Some(stream) = self.slots.get_mut(key) {
            stream.taken = true;
            self.acks.push_back(key);
            if ACKS_WAITING <= self.acks.len() {
                self.flush_acks();
            }
        }
        Some(key)
    }

    /// Takes up to `max` bytes that have arrived, `max` above 0. The peer gets credit for what was taken.
    ///
    /// # Errors
    /// The stream was cut short by either side, or the session has ended before the stream did. A reset that comes
    /// after the peer's end of the stream does not take back what the peer had sent.
    pub fn read(&mut self, key: StreamKey, max: usize) -> Result<Read, Reset> {
        let over = self.end.is_some();
        let lost = Reset { code: ResetCode::SessionLost, by_peer: false };
        let stream = self.slots.get_mut(key).ok_or(lost)?;
        if stream.recv.unread > 0 {
            let data = stream.recv.pop(max);
            stream.recv.touched = self.now;
            self.unread -= data.len();
            self.noticed_room();
            self.consumed(key, data.len() as u32);
            return Ok(Read::Data(data));
        }
        match stream.cut {
            // What was complete before the peer's reset stays complete.
            Some(cut) if !(cut.by_peer && stream.recv.fin) => Err(cut),
            _ if stream.recv.fin => Ok(Read::End),
            _ if over => Err(lost),
            _ => {
                stream.recv.waiting = true;
                // Whoever waits for an answer must have asked.
                if stream.syn && stream.send.queued == 0 {
                    self.control_due(key);
                }
                Ok(Read::Pending)
            }
        }
    }

    /// Grants credit for what was read, in portions of half a window. Windows of streams that are read as fast as
    /// the path delivers double: what a window needs less than four round trips for, the path could do faster. These are the
    /// path's own: a window that grew with the queue that it makes would only make a longer one, and others wait in it too.
    fn consumed(&mut self, key: StreamKey, n: u32) {
        let (limits, now) = (&self.limits, self.now);
        let Some(stream) = self.slots.get_mut(key) else { return };
        let recv = &mut stream.recv;
        recv.consumed += n;
        recv.pace += u64::from(n);
        if recv.fin || stream.cut.is_some() || recv.consumed < recv.window / 2 {
            return;
        }
        let mut credit = recv.consumed;
        let fast = self.rtt.least().is_some_and(|rtt| recv.outpaces(rtt, now));
        let grow = recv.window.min(limits.stream_window.saturating_sub(recv.window));
        if fast && self.grown + grow as usize <= limits.session_buffer_budget / 2 {
            recv.window += grow;
            self.grown += grow as usize;
            credit += grow;
        }
        recv.credit += credit;
        recv.consumed = 0;
        stream.grant += credit;
        self.control_due(key);
    }

    /// How many of `want` bytes [`Mux::write`] would take now. 0: none; an [`Event::Writable`] follows.
    ///
    /// # Errors
    /// [`super::Reset`] if the stream was cut short or the session has ended; after [`Mux::finish`] nothing can be
    /// written, which reads as a reset by this side with `Protocol`.
    pub fn writable(&mut self, key: StreamKey, want: usize) -> Result<usize, Reset> {
        let lost = Reset { code: ResetCode::SessionLost, by_peer: false };
        if self.end.is_some() {
            return Err(self.slots.get(key).and_then(|stream| stream.cut).unwrap_or(lost));
        }
        let stream = self.slots.get_mut(key).ok_or(lost)?;
        if let Some(cut) = stream.cut {
            return Err(cut);
        }
        if stream.send.fin != Fin::No {
            return Err(Reset { code: ResetCode::Protocol, by_peer: false });
        }
        let budget = self.limits.session_send_budget;
        let share = match stream.class {
            Class::Interactive => budget,
            Class::Watch => budget / 4 * 3,
            Class::Bulk => budget / 2,
        };
        let of_session = share.saturating_sub(self.queued);
        let room = self.limits.stream_send_buffer.saturating_sub(stream.send.queued).min(stream.send.credit as usize);
        let n = want.min(room).min(of_session);
        if n == 0 && want > 0 {
            stream.send.waiting = true;
            if of_session == 0 && !stream.send.starved {
                stream.send.starved = true;
                self.starved.push_back(key);
            }
        }
        Ok(n)
    }

    /// Copies as much of `bytes` as there is room for. 0: none; an [`Event::Writable`] follows.
    ///
    /// # Errors
    /// As [`Mux::writable`].
    pub fn write(&mut self, key: StreamKey, bytes: &[u8]) -> Result<usize, Reset> {
        let n = self.writable(key, bytes.len())?;
        if let (Some(stream), Some(bytes @ [_, ..])) = (self.slots.get_mut(key), bytes.get(..n)) {
            stream.send.copy(bytes);
            self.queued += n;
            self.data_due(key);
        }
        Ok(n)
    }

    /// Takes the front of `bytes` without copying it. 0: none; an [`Event::Writable`] follows.
    ///
    /// # Errors
    /// As [`Mux::writable`].
    pub fn write_bytes(&mut self, key: StreamKey, bytes: &mut Bytes) -> Result<usize, Reset> {
        let n = self.writable(key, bytes.len())?;
        if let Some(stream) = self.slots.get_mut(key)
            && n > 0
        {
            stream.send.push(bytes.split_to(n));
            self.queued += n;
            self.data_due(key);
        }
        Ok(n)
    }

    /// Ends the direction towards the peer after what was written. The other direction goes on.
    pub fn finish(&mut self, key: StreamKey) {
        if let Some(stream) = self.slots.get_mut(key)
            && stream.send.fin == Fin::No
            && stream.cut.is_none()
            && self.end.is_none()
        {
            stream.send.fin = Fin::Due;
            self.data_due(key);
        }
    }

    /// Cuts both directions short. What was not sent or not read is gone.
    pub fn reset(&mut self, key: StreamKey, code: ResetCode) {
        self.cut(key, code);
    }

    /// The application lets go of a stream. One that has not come to its end both ways is reset with `Cancelled`.
    pub fn release(&mut self, key: StreamKey) {
        let Some(stream) = self.slots.get_mut(key) else { return };
        stream.released = true;
        (stream.recv.waiting, stream.send.waiting, stream.watched) = (false, false, false);
        if self.end.is_none() && !(stream.send.fin != Fin::No && stream.recv.fin && stream.recv.unread == 0) {
            self.cut(key, ResetCode::Cancelled);
        }
        self.free(key);
    }

    /// Changes how urgent the bytes of a stream are.
    pub fn set_class(&mut self, key: StreamKey, class: Class) {
        // A stream that waits for its turn moves to its new class with the turn after.
        if let Some(stream) = self.slots.get_mut(key) {
            stream.class = class;
        }
    }

    /// Whether, and how, a stream was cut short, without reading or writing. `None`: not yet; an [`Event::Cut`]
    /// follows if it is.
    pub fn watch(&mut self, key: StreamKey) -> Option<Reset> {
        let lost = self.end.map(|_| Reset { code: ResetCode::SessionLost, by_peer: false });
        let Some(stream) = self.slots.get_mut(key) else { return lost };
        let cut = stream.cut.or(lost);
        stream.watched = cut.is_none();
        cut
    }

    /// Which side this is.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The code of the go-away that was sent or is due.
    #[must_use]
    pub const fn going_away(&self) -> Option<CloseCode> {
        self.going_away
    }

    /// Wakes writers that waited for room in the session.
    pub(super) fn feed_starved(&mut self) {
        if self.limits.session_send_budget / 4 < self.queued {
            return;
        }
        while let Some(key) = self.starved.pop_front() {
            if let Some(stream) = self.slots.get_mut(key) {
                stream.send.starved = false;
                if core::mem::take(&mut stream.send.waiting) {
                    self.events.push_back(Event::Writable(key));
                }
            }
        }
    }
}
