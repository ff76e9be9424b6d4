//! What the peer says.

use super::{
    Event, Mux, Reset, StreamKey, Violation,
    frame::{ACK, FIN, HEADER, Header, INITIAL_WINDOW, Kind, RST, SYN},
    machine::Role,
    stream::Stream,
};
use crate::{
    code::{CloseCode, ResetCode},
    header::Class,
};
use bytes::{Buf, BytesMut};
use core::time::Duration;

/// The payload of a data frame, as far as it has not arrived.
#[derive(Debug)]
pub(super) struct Payload {
    /// `None`: of a stream that is gone.
    to: Option<StreamKey>,
    left: usize,
    fin: bool,
}

impl Mux {
    /// Whether [`Mux::receive`] may be given more: no more than a budget is unread.
    #[must_use]
    pub const fn can_receive(&self) -> bool {
        self.unread < self.limits.session_buffer_budget
    }

    /// Takes the carrier's bytes off the front of `input`, all but the beginning of a header. Payloads are handed on
    /// as they arrive: nothing is set aside for announced bytes. A breach ends the session, see [`Mux::end`].
    pub fn receive(&mut self, input: &mut BytesMut, now: Duration) {
        self.now = now;
        if !input.is_empty() {
            self.heard = now;
        }
        while self.end.is_none() {
            if let Some(payload) = &mut self.payload {
                let here = payload.left.min(input.len());
                payload.left -= here;
                let (to, fin, complete) = (payload.to, payload.fin, payload.left == 0);
                if complete {
                    self.payload = None;
                }
                self.arrived(to, input, here, complete && fin);
                if complete {
                    continue;
                }
                break;
            }
            let Some(bytes) = input.first_chunk::<HEADER>() else { break };
            let header = match Header::decode(bytes) {
                Ok(header) => header,
                Err(violation) => return self.fail(violation),
            };
            let code = match self.reset_code(header, input) {
                Ok(None) => break, // its four bytes are still on their way
                Ok(Some(code)) => code,
                Err(violation) => return self.fail(violation),
            };
            input.advance(HEADER);
            if let Err(violation) = self.on_frame(header, code, input) {
                return self.fail(violation);
            }
        }
        if self.end.is_some() {
            input.clear();
        }
        if !self.can_receive() && self.relieve_at.is_none() {
            let patience = if now < self.pressed_until { Duration::ZERO } else { self.limits.stall_grace };
            self.relieve_at = Some(now + patience);
            self.relieve(now);
        }
        self.feed_starved();
    }

    /// The code of a reset that is complete in `input`; `Ok(None)`: not all of it is there.
    fn reset_code(&self, header: Header, input: &[u8]) -> Result<Option<ResetCode>, Violation> {
        let Header { kind, stream, length, .. } = header;
        let plain = Ok(Some(ResetCode::Cancelled));
        if kind != Kind::Data || !header.has(RST) || length == 0 {
            return plain;
        }
        if length != 4 {
            return Err(Violation::ResetPayload { stream, length });
        }
        let code = input.get(HEADER..HEADER + 4).map(|mut code| ResetCode::from_number(code.get_u32()));
        Ok(code)
    }

    fn on_frame(&mut self, header: Header, code: ResetCode, input: &mut BytesMut) -> Result<(), Violation> {
        match header.kind {
            Kind::Ping => return self.on_ping(header),
            Kind::GoAway => return self.on_go_away(header),
            Kind::Data if self.limits.max_frame < header.length => {
                return Err(Violation::TooLong { stream: header.stream, length: header.length });
            }
            Kind::Data | Kind::WindowUpdate => {}
        }
        if header.has(RST) && header.kind == Kind::Data {
            input.advance(header.length as usize); // the code, which is all there
        }
        if header.flags == 0 && header.length == 0 && !self.empties.spend(1, self.now) {
            return Err(Violation::EmptyFlood);
        }
        if header.has(SYN) {
            return self.on_open(header);
        }
        match self.slots.key(header.stream) {
            Some(key) => self.on_stream(key, header, code),
            None => self.on_stray(header),
        }
    }

    fn on_ping(&mut self, header: Header) -> Result<(), Violation> {
        if header.has(ACK) {
            let at = self.pings_sent.iter().position(|(id, _)| *id == header.length);
            let (id, sent) =
                at.and_then(|at| self.pings_sent.remove(at)).ok_or(Violation::UnsolicitedPong(header.length))?;
            let rtt = self.now.saturating_sub(sent);
            self.rtt.measured(rtt, self.now);
            self.events.push_back(Event::Pong { id, rtt });
            return Ok(());
        }
        if !self.pings.spend(1, self.now) || self.limits.pongs_waiting <= self.pongs.len() {
            return Err(Violation::PingFlood);
        }
        self.pongs.push_back(header.length);
        Ok(())
    }

    fn on_go_away(&mut self, header: Header) -> Result<(), Violation> {
        if self.peer_going_away.is_some() && !self.empties.spend(1, self.now) {
            return Err(Violation::EmptyFlood);
        }
        // A second one may name a better reason: first "going", then why it is gone.
        let code = CloseCode::from_number(header.length);
        self.peer_going_away = Some(code);
        self.events.push_back(Event::PeerGoAway(code));
        Ok(())
    }

    fn on_open(&mut self, header: Header) -> Result<(), Violation> {
        let Header { stream: id, length, .. } = header;
        let ours = match self.role {
            Role::Client => 1,
            Role::Server => 0,
        };
        if id % 2 == ours {
            return Err(Violation::WrongParity { stream: id });
        }
        if !self.seen.insert(id) {
            return Err(Violation::IdReused { stream: id });
        }
        let is_data = header.kind == Kind::Data;
        if is_data && INITIAL_WINDOW < length {
            return Err(Violation::BeyondCredit { stream: id, length });
        }
        let credit = if is_data { Some(INITIAL_WINDOW) } else { INITIAL_WINDOW.checked_add(length) };
        let credit = credit.ok_or(Violation::WindowOverflow { stream: id })?;

        let full = self.limits.max_streams_in <= self.streams_in
            || self.limits.max_pending_opens <= self.pending.len()
            || self.limits.max_pending_opens <= self.refused.len();
        if full || self.going_away.is_some() {
            if !self.refusals.spend(1, self.now) || self.limits.max_pending_opens <= self.refused.len() {
                return Err(Violation::OpenFlood);
            }
            self.refused.push_back(id);
            let sent = if is_data { length } else { 0 };
            if !header.has(FIN) {
                self.bury(id, INITIAL_WINDOW - sent);
            }
            self.payload = is_data.then_some(Payload { to: None, left: length as usize, fin: false });
            return Ok(());
        }

        let key = self.slots.insert(Stream::new(id, Class::default(), false, credit, self.now));
        self.streams_in += 1;
        self.pending.push_back(key);
        self.events.push_back(Event::Incoming);
        self.on_body(key, header)
    }

    fn on_stream(&mut self, key: StreamKey, header: Header, code: ResetCode) -> Result<(), Violation> {
        let id = header.stream;
        let Some(stream) = self.slots.get_mut(key) else { return Ok(()) };
        if stream.syn {
            return Err(Violation::NotOpen { stream: id });
        }
        if stream.cut.is_some_and(|cut| cut.by_peer) {
            return Err(Violation::AfterReset { stream: id });
        }
        if header.has(ACK) {
            if !stream.unacked {
                return Err(Violation::UnsolicitedAck { stream: id });
            }
            stream.unacked = false;
            self.unacked -= 1;
        }
        if header.has(RST) {
            return self.on_reset(key, code);
        }
        if stream.recv.fin && (header.has(FIN) || (header.kind == Kind::Data && header.length > 0)) {
            return Err(Violation::AfterFin { stream: id });
        }
        self.on_body(key, header)
    }

    /// The part of a frame that opening and open streams share: data or credit, and the end.
    fn on_body(&mut self, key: StreamKey, header: Header) -> Result<(), Violation> {
        let Header { stream: id, length, .. } = header;
        let Some(stream) = self.slots.get_mut(key) else { return Ok(()) };
        if header.kind == Kind::Data {
            let beyond = Violation::BeyondCredit { stream: id, length };
            stream.recv.credit = stream.recv.credit.checked_sub(length).ok_or(beyond)?;
            self.payload = Some(Payload { to: Some(key), left: length as usize, fin: header.has(FIN) });
            return Ok(());
        }
        if !header.has(SYN) {
            let grown = stream.send.credit.checked_add(length).ok_or(Violation::WindowOverflow { stream: id })?;
            stream.send.credit = grown;
            if stream.has_room(&self.limits) {
                self.wake_writer(key);
            }
        }
        if header.has(FIN) {
            self.arrived(Some(key), &mut BytesMut::new(), 0, true);
        }
        Ok(())
    }

    fn on_reset(&mut self, key: StreamKey, code: ResetCode) -> Result<(), Violation> {
        let Some(stream) = self.slots.get_mut(key) else { return Ok(()) };
        let looked_at = stream.taken;
        if stream.cut.is_some() {
            // Both sides cut it at once. Ours stands; there is nothing left for the peer to send.
            stream.recv.fin = true;
        } else {
            stream.cut = Some(Reset { code, by_peer: true });
            self.queued -= stream.send.clear();
            if !stream.recv.fin {
                self.unread -= stream.recv.clear();
            }
        }
        self.noticed_room();
        self.wake_all(key);
        if !looked_at {
            self.pending.retain(|other| *other != key);
            self.release(key);
            if !self.refusals.spend(1, self.now) {
                return Err(Violation::OpenFlood);
            }
        }
        self.free(key);
        Ok(())
    }

    /// `len` bytes of a stream's data at the front of `input`, and whether they were the last.
    fn arrived(&mut self, to: Option<StreamKey>, input: &mut BytesMut, len: usize, fin: bool) {
        let stream = to.and_then(|key| Some((key, self.slots.get_mut(key)?)));
        let Some((key, stream)) = stream else { return input.advance(len) };
        stream.recv.fin |= fin;
        if stream.cut.is_some() {
            input.advance(len); // nobody will read it
        } else if len > 0 {
            self.unread += len;
            stream.recv.push(input, len, self.now);
        }
        if len > 0 || fin {
            self.wake_reader(key);
        }
        if fin {
            self.free(key);
        }
    }

    /// A frame of a stream that is gone: it was on its way when we forgot the stream, or it is a breach.
    fn on_stray(&mut self, header: Header) -> Result<(), Violation> {
        let Header { stream: id, length, .. } = header;
        let ours = match self.role {
            Role::Client => id % 2 == 1,
            Role::Server => id % 2 == 0,
        };
        let known = if ours { self.next_id.is_none_or(|next| id < next) } else { self.seen.contains(id) };
        if !known {
            return Err(Violation::NotOpen { stream: id });
        }
        let is_data = header.kind == Kind::Data && !header.has(RST);
        // Bytes cost as well, or a forgotten stream would be a way around all credit.
        let cost = if is_data { 1 + length / 1024 } else { 1 };
        let grave = self.tombstones.iter().position(|(buried, _)| *buried == id);
        match grave.and_then(|at| self.tombstones.get_mut(at)) {
            Some((_, credit)) if is_data => {
                *credit = credit.checked_sub(length).ok_or(Violation::BeyondCredit { stream: id, length })?;
            }
            Some(_) => {}
            None if self.strays.spend(cost, self.now) => {}
            None => return Err(Violation::StrayFlood),
        }
        if let (Some(at), true) = (grave, header.has(FIN) || header.has(RST)) {
            self.tombstones.remove(at);
        }
        if is_data {
            self.payload = Some(Payload { to: None, left: length as usize, fin: false });
        }
        Ok(())
    }
}
