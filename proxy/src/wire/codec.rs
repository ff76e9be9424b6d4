//! Frames and heads as bytes: no stream, no clock.

use bytes::{Buf, BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

/// Largest payload of a frame, in bytes. Checked while only the frame's five bytes are in hand.
pub const MAX_FRAME: usize = 64 * 1024;
/// Largest head or trailers, in bytes: one frame.
pub const MAX_HEAD: usize = MAX_FRAME;
/// Most headers in a head or in trailers.
pub const MAX_HEADERS: usize = 128;
/// Longest request target, in bytes.
const MAX_TARGET: usize = 32 * 1024;

pub(super) const FRAME: usize = 5;
pub(super) const REQUEST: u8 = 1;
pub(super) const RESPONSE: u8 = 2;
pub(super) const DATA: u8 = 3;
pub(super) const TRAILERS: u8 = 4;
pub(super) const END: u8 = 5;
const WANTS_UPGRADE: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    pub(super) target: Uri,
    pub(super) headers: HeaderMap,
    pub(super) upgrade: bool,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResponseHead {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}
#[derive(Debug)]
pub(super) enum Head {
    Request(RequestHead),
    Response(ResponseHead),
}

/// Appends the five bytes that begin a frame.
pub(super) fn frame(kind: u8, len: usize, out: &mut BytesMut) {
    out.put_u8(kind);
    out.put_u32(len as u32);
}

/// Reads the five bytes that begin a frame. `None`: not all there yet, nothing was taken.
pub(super) fn take_frame(input: &mut BytesMut) -> Result<Option<(u8, usize)>, &'static str> {
    let Some(mut header) = input.get(..FRAME) else { return Ok(None) };
    let (kind, len) = (header.get_u8(), header.get_u32() as usize);
    if MAX_FRAME < len {
        return Err("a frame over its limit");
    }
    input.advance(FRAME);
    Ok(Some((kind, len)))
}

/// Writes a whole head as one frame; on an error `out` is as it was.
fn framed(
    kind: u8,
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    let start = out.len();
    frame(kind, 0, out);
    let result = write(out).and_then(|()| {
        let len = out.len() - start - FRAME;
        if MAX_HEAD < len {
            return Err("over 64 KiB");
        }
        out[start + 1..start + FRAME].copy_from_slice(&(len as u32).to_be_bytes());
        Ok(())
    });
    if result.is_err() {
        out.truncate(start);
    }
    result
}

pub(super) fn encode_request(head: &RequestHead, out: &mut BytesMut) -> Result<(), &'static str> {
    let target = head.target.path_and_query().map_or("", |target| target.as_str());
    if !target.starts_with('/') {
        return Err("the target is not a path");
    }
    if MAX_TARGET < target.len() {
        return Err("the target is too long");
    }
    if head.method == Method::CONNECT || u8::MAX as usize <= head.method.as_str().len() {
        return Err("the method cannot be sent");
    }
    framed(REQUEST, out, |out| {
        out.put_u8(if head.upgrade { WANTS_UPGRADE } else { 0 });
        put_short(head.method.as_str().as_bytes(), out);
        put_long(target.as_bytes(), out);
        put_headers(&head.headers, out)
    })
}

pub(super) fn encode_response(head: &ResponseHead, out: &mut BytesMut) -> Result<(), &'static str> {
    framed(RESPONSE, out, |out| {
        out.put_u8(0);
        out.put_u16(head.status.as_u16());
        put_headers(&head.headers, out)
    })
}

pub(super) fn encode_trailers(trailers: &HeaderMap, out: &mut BytesMut) -> Result<(), &'static str> {
    framed(TRAILERS, out, |out| put_headers(trailers, out))
}

fn put_short(bytes: &[u8], out: &mut BytesMut) {
    out.put_u16(bytes.len() as u16);
    out.put_slice(bytes);
}
fn put_long(bytes: &[u8], out: &mut BytesMut) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

fn put_headers(headers: &HeaderMap, out: &mut BytesMut) -> Result<(), &'static str> {
    if MAX_HEADERS < headers.len() {
        return Err("over 128 headers");
    }
    out.put_u16(headers.len() as u16);
    for (name, value) in headers {
        // `http` holds names to tokens and values to visible bytes; what it lets through beyond RFC 9110 is refused when read.
        put_short(name.as_str().as_bytes(), out);
        put_long(value.as_bytes(), out);
    }
    Ok(())
}

pub(super) fn decode_head(kind: u8, payload: &[u8]) -> Result<Head, &'static str> {
    let mut input = payload;
    let head = match kind {
        REQUEST => {
            let flags = byte(&mut input)?;
            let method = Method::from_bytes(short(&mut input)?).map_err(|_| "bad method")?;
            let target = long(&mut input)?;
            if MAX_TARGET < target.len() || target.first() != Some(&b'/') {
                return Err("bad target");
            }
            if method == Method::CONNECT || WANTS_UPGRADE < flags {
                return Err("bad method or flags");
            }
            // Parsed as a path alone, so that `//a/b` is not read as an authority.
            let target = http::uri::PathAndQuery::try_from(target).map_err(|_| "bad target")?;
            let target = Uri::from(target);
            Head::Request(RequestHead {
                method,
                target,
                headers: headers(&mut input)?,
                upgrade: flags == WANTS_UPGRADE,
            })
        }
        RESPONSE => {
            if byte(&mut input)? != 0 {
                return Err("unknown flags");
            }
            let status = input.try_get_u16().map_err(|_| SHORT)?;
            let status = StatusCode::from_u16(status).map_err(|_| "bad status")?;
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                return Err("an answer that is none yet");
            }
            Head::Response(ResponseHead { status, headers: headers(&mut input)? })
        }
        _ => return Err("not a head"),
    };
    let headers = match &head {
        Head::Request(head) => &head.headers,
        Head::Response(head) => &head.headers,
    };
    one_length(headers)?;
    if input.is_empty() { Ok(head) } else { Err("bytes after a head") }
}

/// A head of which two readers could take the length of its body for different numbers is refused: it goes on as HTTP/1,
/// maybe through somebody who reads it otherwise.
fn one_length(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    let plain = |value: &HeaderValue| matches!(value.len(), 1..=19) && value.as_bytes().iter().all(u8::is_ascii_digit);
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if plain(one) => Ok(()),
        _ => Err("bad content-length"),
    }
}

pub(super) fn decode_trailers(payload: &[u8]) -> Result<HeaderMap, &'static str> {
    let mut input = payload;
    let trailers = headers(&mut input)?;
    if input.is_empty() { Ok(trailers) } else { Err("bytes after trailers") }
}

const SHORT: &str = "a head that ends early";
fn byte(input: &mut &[u8]) -> Result<u8, &'static str> {
    input.try_get_u8().map_err(|_| SHORT)
}
fn short<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let len = input.try_get_u16().map_err(|_| SHORT)?;
    input.split_off(..usize::from(len)).ok_or(SHORT)
}
fn long<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let len = input.try_get_u32().map_err(|_| SHORT)?;
    input.split_off(..len as usize).ok_or(SHORT)
}
fn headers(input: &mut &[u8]) -> Result<HeaderMap, &'static str> {
    let count = usize::from(input.try_get_u16().map_err(|_| SHORT)?);
    if MAX_HEADERS < count {
        return Err("too many headers");
    }
    let mut headers = HeaderMap::with_capacity(count);
    for _ in 0..count {
        let name = HeaderName::from_lowercase(short(input)?).map_err(|_| "bad header name")?;
        let value = HeaderValue::from_bytes(long(input)?).map_err(|_| "bad header value")?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// What the headers say about the length of the body. In a head that was read there is nothing odd.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
