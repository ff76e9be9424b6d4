//! What this side says, in the order in which it matters.

use super::{
    Mux, Outgoing, StreamKey,
    frame::{ACK, FIN, Header, Kind, RST, SYN},
    stream::{Fin, Stream},
};
use crate::code::{CloseCode, ResetCode};
use core::{mem, time::Duration};

impl Mux {
    /// Whether [`Mux::transmit`] has anything to give.
    #[must_use]
    pub fn wants_transmit(&self) -> bool {
        self.go_away_due
            || !self.pongs.is_empty()
            || !self.pings_due.is_empty()
            || !self.refused.is_empty()
            || !self.control.is_empty()
            || !self.schedule.is_empty()
    }

    /// Adds frames to `out` until it holds [`super::MuxLimits::batch`] bytes or nothing is due. Control frames go
    /// first: they are small, and others wait for them. Data follows by class. `out` should be empty, so that
    /// nothing urgent stands behind an old batch.
    pub fn transmit(&mut self, out: &mut Outgoing, now: Duration) {
        self.now = now;
        while out.len() < self.limits.batch {
            if !self.session_frame(out) && !self.control_frame(out) && !self.data_frame(out) {
                break;
            }
        }
        // The last word of a session comes after all that was written before it.
        if self.end.is_some() && self.control.is_empty() && self.schedule.is_empty() {
            self.say_go_away(out);
        }
        self.feed_starved();
    }

    fn session_frame(&mut self, out: &mut Outgoing) -> bool {
        let of_session = |kind, flags, length| Header { kind, flags, stream: 0, length };
        if let Some(value) = self.pongs.pop_front() {
            out.header(of_session(Kind::Ping, ACK, value));
        } else if let Some(id) = self.pings_due.pop_front() {
            self.pings_sent.push_back((id, self.now));
            out.header(of_session(Kind::Ping, SYN, id));
        } else if let Some(id) = self.refused.pop_front() {
            reset(out, id, ResetCode::Refused);
        } else if self.end.is_none() && self.go_away_due {
            self.say_go_away(out);
            self.finish_drain();
        } else {
            return false;
        }
        true
    }

    fn say_go_away(&mut self, out: &mut Outgoing) {
        if mem::take(&mut self.go_away_due) {
            let code = self.going_away.unwrap_or(CloseCode::Normal).number();
            out.header(Header { kind: Kind::GoAway, flags: 0, stream: 0, length: code });
        }
    }

    /// The control frame of the next stream that has one due: its reset, or its credit.
    fn control_frame(&mut self, out: &mut Outgoing) -> bool {
        let Some(key) = self.control.pop_front() else { return false };
        let Some(stream) = self.slots.get_mut(key) else { return true };
        stream.in_control = false;
        if let Some(code) = stream.rst.take() {
            reset(out, stream.id, code);
        } else if stream.cut.is_none() {
            let grant = if stream.recv.fin { 0 } else { stream.grant };
            stream.grant = 0;
            // An opening or an acknowledgement alone needs no frame if data is about to carry it.
            if grant > 0 || ((stream.syn || stream.ack) && !stream.has_data()) {
                let flags = first_flags(stream);
                out.header(Header { kind: Kind::WindowUpdate, flags, stream: stream.id, length: grant });
            }
        }
        self.free(key);
        true
    }

    /// A data frame of the stream whose turn it is.
    fn data_frame(&mut self, out: &mut Outgoing) -> bool {
        let Some(key) = self.schedule.pop() else { return false };
        let alone = self.schedule.is_empty();
        let Some(stream) = self.slots.get_mut(key) else { return true };
        stream.in_data = false;
        if stream.has_data() {
            let most = if alone { self.limits.frame_alone } else { self.limits.frame_shared };
            let size = stream.send.queued.min(most);
            let last = size == stream.send.queued && stream.send.fin == Fin::Due;
            let flags = first_flags(stream) | if last { FIN } else { 0 };
            out.header(Header { kind: Kind::Data, flags, stream: stream.id, length: size as u32 });
            let mut left = size;
            while left > 0 {
                let piece = stream.send.pop(left);
                left -= piece.len();
                out.body(piece);
            }
            if last {
                stream.send.fin = Fin::Sent;
            }
            self.queued -= size;
            let (class, more, room) = (stream.class, stream.has_data(), stream.has_room(&self.limits));
            self.schedule.sent(class, size);
            if more {
                self.data_due(key);
            }
            if room {
                self.wake_writer_unless_starved(key);
            }
        }
        self.free(key);
        true
    }

    fn wake_writer_unless_starved(&mut self, key: StreamKey) {
        if self.slots.get(key).is_some_and(|stream| !stream.send.starved) {
            self.wake_writer(key);
        }
    }
}

/// The flags of the first frame of a stream from this side.
fn first_flags(stream: &mut Stream) -> u16 {
    let syn = if mem::take(&mut stream.syn) { SYN } else { 0 };
    syn | if mem::take(&mut stream.ack) { ACK } else { 0 }
}

fn reset(out: &mut Outgoing, stream: u32, code: ResetCode) {
    out.head(Header { kind: Kind::Data, flags: RST, stream, length: 4 }, Some(code.number()));
}
