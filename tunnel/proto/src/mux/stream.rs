//! What is known of one stream.

use super::{MuxLimits, Reset, frame::INITIAL_WINDOW};
use crate::{code::ResetCode, header::Class};
use alloc::collections::VecDeque;
use bytes::{Buf, Bytes, BytesMut};
use core::{mem, time::Duration};

/// Pieces of the carrier's buffer from this size on are kept as they are, shorter ones are copied: a few bytes that
/// nobody reads must not hold on to a whole buffer. So the buffer should be no longer than twice this.
pub(super) const KEEP: usize = 32 * 1024;
/// Writes up to this size are gathered into one allocation.
const GATHER: usize = 4 * 1024;

/// One stream, as both sides of the machine see it.
#[derive(Debug)]
pub(super) struct Stream {
    pub id: u32,
    pub class: Class,
    /// Opened by this side.
    pub local: bool,
    /// The application has it: it opened or accepted it.
    pub taken: bool,
    /// The application has dropped it, or never got it.
    pub released: bool,
    /// The peer does not know of it yet: the next frame carries `SYN`.
    pub syn: bool,
    /// The peer does not know that we know of it: the next frame carries `ACK`.
    pub ack: bool,
    /// Opened by this side, and the peer has not acknowledged it.
    pub unacked: bool,
    /// It was cut short.
    pub cut: Option<Reset>,
    /// A reset that the peer must still be told.
    pub rst: Option<ResetCode>,
    /// Credit that the peer must still be told.
    pub grant: u32,
    /// The application wants to hear if it is cut short.
    pub watched: bool,
    /// In the queue of control frames.
    pub in_control: bool,
    /// In the schedule of data frames.
    pub in_data: bool,
    pub recv: Recv,
    pub send: Send,
}

/// The direction towards us.
#[derive(Debug)]
pub(super) struct Recv {
    pieces: VecDeque<Bytes>,
    /// What came last, in small pieces.
    tail: BytesMut,
    /// Bytes that arrived and were not read.
    pub unread: usize,
    /// What the peer may still send. `credit + unread + consumed` is the window.
    pub credit: u32,
    /// Bytes read and not yet granted again.
    pub consumed: u32,
    pub window: u32,
    /// The peer has ended it.
    pub fin: bool,
    /// Since when its pace is measured: a round trip or more.
    pub paced: Duration,
    /// Bytes read since.
    pub pace: u64,
    /// When the application last took something, or first could have.
    pub touched: Duration,
    /// The application waits for news.
    pub waiting: bool,
}

/// The direction towards the peer.
#[derive(Debug)]
pub(super) struct Send {
    pieces: VecDeque<Bytes>,
    /// What was written last, in small pieces.
    tail: BytesMut,
    /// Bytes written and not sent. Their credit is already spent.
    pub queued: usize,
    pub credit: u32,
    pub fin: Fin,
    /// The application waits for room.
    pub waiting: bool,
    /// It waits for room in the session, and stands in that queue.
    pub starved: bool,
}

/// The end of the direction towards the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fin {
    /// More may be written.
    No,
    /// Goes out with the last byte written.
    Due,
    /// The peer was told.
    Sent,
}

impl Stream {
    pub(super) fn new(id: u32, class: Class, local: bool, credit: u32, now: Duration) -> Self {
        Self {
            id,
            class,
            local,
            taken: local,
            released: false,
            syn: local,
            ack: !local,
            unacked: local,
            cut: None,
            rst: None,
            grant: 0,
            watched: false,
            in_control: false,
            in_data: false,
            recv: Recv {
                pieces: VecDeque::new(),
                tail: BytesMut::new(),
                unread: 0,
                credit: INITIAL_WINDOW,
                consumed: 0,
                window: INITIAL_WINDOW,
                fin: false,
                paced: now,
                pace: 0,
                touched: now,
                waiting: false,
            },
            send: Send {
                pieces: VecDeque::new(),
                tail: BytesMut::new(),
                queued: 0,
                credit,
                fin: Fin::No,
                waiting: false,
                starved: false,
            },
        }
    }

    /// Both directions came to their ordinary end.
    pub(super) fn is_complete(&self) -> bool {
        self.recv.fin && self.send.fin == Fin::Sent
    }

    /// A data frame could be sent now.
    pub(super) fn has_data(&self) -> bool {
        self.cut.is_none() && (self.send.queued > 0 || self.send.fin == Fin::Due)
    }

    /// The wake-up for a writer is worth its price: half of the buffer is free.
    pub(super) fn has_room(&self, limits: &MuxLimits) -> bool {
        self.send.credit > 0 && self.send.queued <= limits.stream_send_buffer / 2
    }
}

impl Recv {
    /// Whether more than a quarter of a window was read for each round trip since this was last asked: so windows fit paths
    /// whose usual round trip is a few times their least. Bursts do not count alone: it is never asked of less than one.
    pub(super) fn outpaces(&mut self, rtt: Duration, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.paced);
        if elapsed < rtt {
            return false;
        }
        self.paced = now;
        let read = u128::from(mem::take(&mut self.pace));
        u128::from(self.window) * elapsed.as_nanos() < 4 * read * rtt.as_nanos()
    }

    /// Takes `len` bytes off the front of `input`.
    pub(super) fn push(&mut self, input: &mut BytesMut, len: usize, now: Duration) {
        if self.unread == 0 {
            self.touched = now;
        }
        self.unread += len;
        if len < KEEP {
            self.tail.extend_from_slice(input.get(..len).unwrap_or_default());
            input.advance(len);
            if self.tail.len() < 2 * KEEP {
                return;
            }
        }
        if !self.tail.is_empty() {
            self.pieces.push_back(mem::take(&mut self.tail).freeze());
        }
        if KEEP <= len {
            self.pieces.push_back(input.split_to(len).freeze());
        }
    }

    /// Takes up to `max` bytes; empty only if there are none.
    pub(super) fn pop(&mut self, max: usize) -> Bytes {
        let taken = take(&mut self.pieces, &mut self.tail, max);
        self.unread -= taken.len();
        taken
    }

    /// Forgets what nobody will read; how many bytes that were.
    pub(super) fn clear(&mut self) -> usize {
        (self.pieces, self.tail) = (VecDeque::new(), BytesMut::new());
        mem::take(&mut self.unread)
    }
}

impl Send {
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        if self.tail.capacity() - self.tail.len() < bytes.len() && !self.tail.is_empty() {
            self.pieces.push_back(mem::take(&mut self.tail).freeze());
        }
        if bytes.len() < GATHER {
            if self.tail.capacity() == 0 && !self.pieces.is_empty() {
                self.tail.reserve(GATHER);
            }
            self.tail.extend_from_slice(bytes);
            self.spent(bytes.len());
        } else {
            self.push(Bytes::copy_from_slice(bytes));
        }
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if !self.tail.is_empty() {
            self.pieces.push_back(mem::take(&mut self.tail).freeze());
        }
        self.spent(bytes.len());
        self.pieces.push_back(bytes);
    }

    fn spent(&mut self, len: usize) {
        self.queued += len;
        // Callers ask for room first, so there is credit for all of it; a bug here must not become a wrap-around.
        self.credit = self.credit.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// Takes up to `max` bytes; empty only if there are none.
    pub(super) fn pop(&mut self, max: usize) -> Bytes {
        let taken = take(&mut self.pieces, &mut self.tail, max);
        self.queued -= taken.len();
        taken
    }

    /// Forgets what will not be sent; how many bytes that were.
    pub(super) fn clear(&mut self) -> usize {
        (self.pieces, self.tail) = (VecDeque::new(), BytesMut::new());
        mem::take(&mut self.queued)
    }
}

/// Takes up to `max` bytes off the front. An emptied tail gives its memory back: an idle stream holds none.
fn take(pieces: &mut VecDeque<Bytes>, tail: &mut BytesMut, max: usize) -> Bytes {
    match pieces.front_mut() {
        Some(front) if max < front.len() => front.split_to(max),
        Some(_) => {
            let whole = pieces.pop_front().unwrap_or_default();
            if pieces.is_empty() && 16 < pieces.capacity() {
                *pieces = VecDeque::new();
            }
            whole
        }
        None if max < tail.len() => tail.split_to(max).freeze(),
        None => mem::take(tail).freeze(),
    }
}
