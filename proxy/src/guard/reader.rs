//! HTTP/1 framing as bytes: what of the input has exactly one meaning, and may go on. No stream, no clock.

use super::head::{self, Body, Refusal};
use bytes::{Buf, BytesMut};

/// Longest head, in bytes.
pub const MAX_HEAD: usize = 32 * 1024;
/// Most headers in a head, and in trailers.
pub const MAX_HEADERS: usize = 100;
/// Longest line that gives a chunk's size, in bytes: 15 digits and CRLF.
const MAX_CHUNK_LINE: usize = 17;

/// Where in a connection the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a request's head, of which nothing has gone on yet.
    Head,
    /// In a body of which this many bytes are to come.
    Fixed(u64),
    /// In the line that gives a chunk's size.
    ChunkSize,
    /// In a chunk of which this many bytes are to come.
    ChunkData(u64),
    /// In the line end after a chunk.
    ChunkEnd,
    /// In the lines after the last chunk, of which nothing has gone on yet.
    Trailers,
    /// After a request that asks for something else than HTTP: held until that is decided.
    Held,
    /// Something else than HTTP.
    Raw,
    /// Nothing more goes on.
    Over,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub struct Reader {
    place: Place,
    /// Bytes of the current head or trailers that have been looked at.
    scanned: usize,
    /// Where in it the current line begins.
    line: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self { place: Place::Head, scanned: 0, line: 0 }
    }
}

impl Reader {
    /// Where the next byte belongs.
    pub fn place(&self) -> Place {
        self.place
    }

    /// What was asked for instead of HTTP is decided.
    pub fn decide(&mut self, switched: bool) {
        if self.place == Place::Held {
            self.place = if switched { Place::Raw } else { Place::Over };
        }
    }

    /// Bytes that go on as they are, without being looked at. 0: the next ones must come through [`Reader::step`].
    pub fn unseen(&self) -> u64 {
        match self.place {
            Place::Fixed(left) | Place::ChunkData(left) => left,
            Place::Raw => u64::MAX,
            _ => 0,
        }
    }

    /// So many of [`Reader::unseen`] went on.
    pub fn pass(&mut self, n: u64) {
        match &mut self.place {
            Place::Fixed(left) => {
                *left = left.saturating_sub(n);
                if *left == 0 {
                    self.place = Place::Head;
                }
            }
            Place::ChunkData(left) => {
                *left = left.saturating_sub(n);
                if *left == 0 {
                    self.place = Place::ChunkEnd;
                }
            }
            _ => {}
        }
    }

    /// Moves from `input` to `out` all that may go on.
    ///
    /// # Errors
    /// What has no one meaning. Nothing of it was moved, and nothing will be.
    pub fn step(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<(), Refusal> {
        let result = self.advance(input, out);
        if result.is_err() {
            self.place = Place::Over;
        }
        result
    }

    fn advance(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<(), Refusal> {
        loop {
            match self.place {
                Place::Held => return Ok(()),
                Place::Over => {
                    input.clear();
                    return Ok(());
                }
                Place::Fixed(_) | Place::ChunkData(_) | Place::Raw => {
                    if input.is_empty() {
                        return Ok(());
                    }
                    let n = usize::try_from(self.unseen()).unwrap_or(usize::MAX).min(input.len());
                    out.extend_from_slice(&input[..n]);
                    input.advance(n);
                    self.pass(n as u64);
                }
                Place::Head => {
                    let Some(end) = self.block(input)? else { return Ok(()) };
                    self.place = match head::check(&input[..end])? {
                        Body::None => Place::Head,
                        Body::Length(0) => Place::Head,
                        Body::Length(n) => Place::Fixed(n),
                        Body::Chunked => Place::ChunkSize,
                        Body::Switch => Place::Held,
                    };
                    self.take(end, input, out);
                }
                Place::Trailers => {
                    let Some(end) = self.block(input)? else { return Ok(()) };
                    head::check_trailers(&input[..end])?;
                    self.place = Place::Head;
                    self.take(end, input, out);
                }
                Place::ChunkSize => {
                    let Some(end) = input.iter().position(|&b| b == b'\n') else {
                        return if MAX_CHUNK_LINE <= input.len() { Err(Refusal::Bad("chunk size")) } else { Ok(()) };
                    };
                    let size = head::chunk_size(&input[..=end])?;
                    self.place = if size == 0 { Place::Trailers } else { Place::ChunkData(size) };
                    self.take(end + 1, input, out);
                }
                Place::ChunkEnd => {
                    if !b"\r\n".starts_with(&input[..input.len().min(2)]) {
                        return Err(Refusal::Bad("end of a chunk"));
                    }
                    if input.len() < 2 {
                        return Ok(());
                    }
                    self.place = Place::ChunkSize;
                    self.take(2, input, out);
                }
            }
        }
    }

    fn take(&mut self, n: usize, input: &mut BytesMut, out: &mut BytesMut) {
        out.extend_from_slice(&input[..n]);
        input.advance(n);
        (self.scanned, self.line) = (0, 0);
    }

    /// The length of a block of lines up to its empty one. `None`: not all there.
    fn block(&mut self, input: &[u8]) -> Result<Option<usize>, Refusal> {
        let within = input.get(..MAX_HEAD).unwrap_or(input);
        while let Some(n) = memchr::memchr(b'\n', within.get(self.scanned..).unwrap_or_default()) {
            let at = self.scanned + n;
            if at == self.line || within[at - 1] != b'\r' {
                return Err(Refusal::Bad("line feed without carriage return"));
            }
            self.scanned = at + 1;
            if at == self.line + 1 {
                return Ok(Some(self.scanned));
            }
            self.line = self.scanned;
        }
        self.scanned = within.len();
        if within.len() < input.len() { Err(Refusal::TooLarge) } else { Ok(None) }
    }
}
