//! Headers of SPDY/3.1: pairs of names and values, compressed with what was before them.

use super::HEADERS;
use crate::tape::Unreadable;
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT},
};

/// How far back compressed headers refer (RFC 1951 §2).
const WINDOW: usize = 32 << 10;

/// Names and values.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The headers of one direction: one zlib stream (RFC 1950) over all frames, with a dictionary that both know.
pub(super) struct Headers {
    inflate: Box<DecompressorOxide>,
    window: Vec<u8>,
    at: usize,
    begun: bool,
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Headers").finish_non_exhaustive()
    }
}

impl Headers {
    pub(super) fn new() -> Self {
        Self { inflate: Box::default(), window: Vec::new(), at: 0, begun: false }
    }

    pub(super) fn read(&mut self, mut block: &[u8]) -> Result<Pairs, Unreadable> {
        if !self.begun && !block.is_empty() {
            // CMF, FLG and, where bit 5 says so, the dictionary's checksum. What follows is plain deflate, and a
            // dictionary is nothing but what was there before.
            let [_, flags, rest @ ..] = block else { return Err(Unreadable("compressed headers that are cut short")) };
            block = rest;
            self.window = vec![0; WINDOW];
            if flags & 0x20 != 0 {
                let dictionary = dictionary();
                let Some((id, rest)) = block.split_first_chunk::<4>() else {
                    return Err(Unreadable("compressed headers that are cut short"));
                };
                if *id != DICTIONARY_ID.to_be_bytes() {
                    return Err(Unreadable("headers with an unknown dictionary"));
                }
                block = rest;
                if let Some(place) = self.window.get_mut(..dictionary.len()) {
                    place.copy_from_slice(&dictionary);
                }
                self.at = dictionary.len();
            }
            self.begun = true;
        }
        let mut plain = Vec::new();
        loop {
            let (status, taken, made) =
                decompress(&mut self.inflate, block, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            block = block.get(taken..).unwrap_or_default();
            plain.extend_from_slice(self.window.get(self.at..self.at + made).unwrap_or_default());
            self.at = (self.at + made) % WINDOW;
            match status {
                _ if HEADERS < plain.len() => return Err(Unreadable("SPDY headers that are too long")),
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if block.is_empty() => return parse(&plain),
                _ => return Err(Unreadable("SPDY headers that cannot be decompressed")),
            }
        }
    }
}

/// A number of pairs, then each name and value with its length before it, all numbers of 32 bits.
fn parse(mut plain: &[u8]) -> Result<Pairs, Unreadable> {
    fn number(from: &mut &[u8]) -> Option<usize> {
        let (number, rest) = from.split_first_chunk::<4>()?;
        *from = rest;
        usize::try_from(u32::from_be_bytes(*number)).ok()
    }
    fn text(from: &mut &[u8]) -> Option<Vec<u8>> {
        let length = number(from)?;
        let (text, rest) = from.split_at_checked(length)?;
        *from = rest;
        Some(text.to_vec())
    }
    let short = Unreadable("SPDY headers that are cut short");
    let count = number(&mut plain).ok_or(short)?;
    let mut all = Vec::new();
    for _ in 0..count {
        match (text(&mut plain), text(&mut plain)) {
            (Some(name), Some(value)) => all.push((name, value)),
            _ => return Err(short),
        }
    }
    if plain.is_empty() { Ok(all) } else { Err(Unreadable("SPDY headers with something after them")) }
}

/// Adler-32 of [`dictionary`].
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

/// The dictionary of SPDY/3 (its draft, §2.6.10.1): words with their lengths, then text.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host \
        if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards \
        pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding \
        upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public \
        set-cookie keep-alive origin";
    const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
        Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
        Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
        Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
        application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=\
        utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut all = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        all.extend(u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        all.extend(word.as_bytes());
    }
    all.extend(TEXT.as_bytes());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adler(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_one_that_all_know() {
        assert_eq!((dictionary().len(), adler(&dictionary())), (1423, DICTIONARY_ID));
    }
}
