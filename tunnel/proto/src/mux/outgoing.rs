//! Frames on their way to the carrier.

use super::frame::{HEADER, Header};
use alloc::collections::VecDeque;
use bytes::{Buf, Bytes};

/// Frames that were taken from the mux and wait for the carrier. Payloads are not copied into it.
#[derive(Debug, Default)]
pub struct Outgoing {
    pieces: VecDeque<Piece>,
    len: usize,
}

#[derive(Debug)]
enum Piece {
    /// A header, with the code of a reset behind it; the bytes from `at` up to `end` are left.
    Head {
        bytes: [u8; HEADER + 4],
        at: u8,
        end: u8,
    },
    Body(Bytes),
}

impl Piece {
    fn rest(&self) -> &[u8] {
        match self {
            Self::Head { bytes, at, end } => bytes.get(usize::from(*at)..usize::from(*end)).unwrap_or_default(),
            Self::Body(body) => body,
        }
    }
}

impl Outgoing {
    /// Nothing to send.
    #[must_use]
    pub const fn new() -> Self {
        Self { pieces: VecDeque::new(), len: 0 }
    }

    /// Bytes left.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is left, in order, none of it empty.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(Piece::rest)
    }

    /// The carrier took `n` bytes.
    ///
    /// # Panics
    /// Never; more than what is left counts as all.
    pub fn advance(&mut self, mut n: usize) {
        self.len = self.len.saturating_sub(n);
        while let Some(piece) = self.pieces.front_mut() {
            let rest = piece.rest().len();
            if rest <= n {
                n -= rest;
                self.pieces.pop_front();
                continue;
            }
            match piece {
                Piece::Head { at, .. } => *at += n as u8, // below HEADER + 4
                Piece::Body(body) => body.advance(n),
            }
            return;
        }
    }

    /// Gives back what a busy time has grown.
    pub fn release(&mut self) {
        if self.pieces.is_empty() {
            self.pieces = VecDeque::new();
        }
    }

    pub(super) fn header(&mut self, header: Header) {
        self.head(header, None);
    }

    pub(super) fn head(&mut self, header: Header, code: Option<u32>) {
        let mut bytes = [0; HEADER + 4];
        let (head, tail) = bytes.split_at_mut(HEADER);
        head.copy_from_slice(&header.encode());
        tail.copy_from_slice(&code.unwrap_or_default().to_be_bytes());
        let end = if code.is_some() { HEADER + 4 } else { HEADER };
        self.pieces.push_back(Piece::Head { bytes, at: 0, end: end as u8 });
        self.len += end;
    }

    pub(super) fn body(&mut self, body: Bytes) {
        if !body.is_empty() {
            self.len += body.len();
            self.pieces.push_back(Piece::Body(body));
        }
    }
}
