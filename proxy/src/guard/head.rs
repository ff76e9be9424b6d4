//! The rules of a head: RFC 9112, without its leniencies.

use super::reader::MAX_HEADERS;
use crate::path::canonical_host;
use moorline_authz::impersonation::{canonical, is_identity_header};

/// Why a connection ends here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Malformed, or with more than one meaning: 400.
    #[error("ambiguous or malformed: {0}")]
    Bad(&'static str),
    /// Over a limit: 431.
    #[error("head over its limits")]
    TooLarge,
}
use Refusal::Bad;

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// The next head.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks (RFC 9112 §7.1).
    Chunked,
    /// Whatever is agreed upon, if it is.
    Switch,
}

/// Checks a whole head, up to and with its empty line.
pub(super) fn check(head: &[u8]) -> Result<Body, Refusal> {
    let mut lines = lines(head);
    let (method, target, old) = request_line(lines.next().unwrap_or_default())?;
    let (mut count, mut host, mut length, mut chunked, mut switch) = (0, None, None, false, method == b"CONNECT");
    for line in lines {
        count += 1;
        if MAX_HEADERS < count {
            return Err(Refusal::TooLarge);
        }
        let (name, value) = field(line)?;
        if is_twin(name) {
            return Err(Bad("the twin of a framing header"));
        }
        let mut room = [0; LONGEST];
        match lower(name, &mut room) {
            "host" if host.is_some() => return Err(Bad("two Host headers")),
            "host" => host = Some(std::str::from_utf8(value).ok().and_then(canonical_host).ok_or(Bad("Host"))?),
            "content-length" if length.is_some() => return Err(Bad("two Content-Length headers")),
            "content-length" => length = Some(decimal(value).ok_or(Bad("Content-Length"))?),
            "transfer-encoding" if old => return Err(Bad("Transfer-Encoding in HTTP/1.0")),
            "transfer-encoding" if chunked => return Err(Bad("two Transfer-Encoding headers")),
            "transfer-encoding" if value.eq_ignore_ascii_case(b"chunked") => chunked = true,
            "transfer-encoding" => return Err(Bad("Transfer-Encoding")),
            "http2-settings" => return Err(Bad("upgrade to HTTP/2")),
            "upgrade" if value.to_ascii_lowercase().windows(3).any(|part| part == b"h2c") => {
                return Err(Bad("upgrade to HTTP/2"));
            }
            "upgrade" => switch = true,
            _ => {}
        }
    }
    if host.is_none() && !old {
        return Err(Bad("no Host"));
    }
    if method != b"CONNECT" {
        check_target(target, host.as_deref())?;
    }
    let reads = matches!(method, b"GET" | b"HEAD");
    match (chunked, length) {
        (true, None) | (false, Some(1..)) if reads => Err(Bad("a body of a GET or HEAD")),
        (true, Some(_)) => Err(Bad("Content-Length with Transfer-Encoding")),
        (true, None) | (false, Some(1..)) if switch => Err(Bad("a body before a switch of protocols")),
        _ if switch => Ok(Body::Switch),
        (true, None) => Ok(Body::Chunked),
        (false, Some(length)) => Ok(Body::Length(length)),
        (false, None) => Ok(Body::None),
    }
}

/// Checks the lines after the last chunk, up to and with the empty one.
pub(super) fn check_trailers(block: &[u8]) -> Result<(), Refusal> {
    for (at, line) in lines(block).enumerate() {
        if MAX_HEADERS <= at {
            return Err(Refusal::TooLarge);
        }
        let (name, _) = field(line)?;
        let framing = matches!(
            canonical(name).as_str(),
            "content-length" | "transfer-encoding" | "host" | "connection" | "upgrade" | "te"
        );
        if framing || is_identity_header(name) {
            return Err(Bad("a trailer that must not be one"));
        }
    }
    Ok(())
}

/// The longest name that means something here.
const LONGEST: usize = "transfer-encoding".len();

/// The name in lower case; empty if it is longer than any that means something here.
fn lower<'a>(name: &str, room: &'a mut [u8; LONGEST]) -> &'a str {
    let Some(room) = room.get_mut(..name.len()) else { return "" };
    room.copy_from_slice(name.as_bytes());
    room.make_ascii_lowercase();
    std::str::from_utf8(room).unwrap_or_default()
}

/// Whether somebody else may take the name for that of a header that frames, which it is not.
fn is_twin(name: &str) -> bool {
    let letters = || name.bytes().filter(|b| !matches!(b, b'-' | b'_')).map(|b| b.to_ascii_lowercase());
    ["content-length", "transfer-encoding", "host"]
        .iter()
        .any(|exact| !name.eq_ignore_ascii_case(exact) && letters().eq(exact.bytes().filter(|b| *b != b'-')))
}

/// A chunk's size from its line. Extensions have no use here, and parsers differ on them: refused.
pub(super) fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let digits = line.strip_suffix(b"\r\n").ok_or(Bad("chunk size"))?;
    let legal = matches!(digits.len(), 1..=15) && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| legal).ok_or(Bad("chunk size"))?;
    u64::from_str_radix(text, 16).map_err(|_| Bad("chunk size"))
}

/// The lines of a block without their line ends and without the empty one. The reader has seen that each ends in CRLF.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut begin = 0;
    let lines = memchr::memchr_iter(b'\n', block).map(move |end| &block[std::mem::replace(&mut begin, end + 1)..end]);
    lines.filter_map(|line| line.strip_suffix(b"\r")).filter(|line| !line.is_empty())
}

/// Method, target, and whether it is HTTP/1.0.
fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], bool), Refusal> {
    let mut parts = line.split(|&b| b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Bad("request line"));
    };
    if method.is_empty() || !method.iter().all(|&b| is_token(b)) {
        return Err(Bad("method"));
    }
    if target.is_empty() || !target.iter().all(|&b| b.is_ascii_graphic() && b != b'#') {
        return Err(Bad("target"));
    }
    match version {
        b"HTTP/1.1" => Ok((method, target, false)),
        b"HTTP/1.0" => Ok((method, target, true)),
        _ => Err(Bad("version")),
    }
}

/// A path; or a whole URI of the host that `Host` names.
fn check_target(target: &[u8], host: Option<&str>) -> Result<(), Refusal> {
    if target.starts_with(b"/") {
        return Ok(());
    }
    let uri = std::str::from_utf8(target).ok().and_then(|text| text.parse::<http::Uri>().ok());
    let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https"))).ok_or(Bad("target"))?;
    let named = uri.authority().and_then(|authority| canonical_host(authority.as_str()));
    if named.is_some() && named.as_deref() == host { Ok(()) } else { Err(Bad("the target names another host")) }
}

fn field(line: &[u8]) -> Result<(&str, &[u8]), Refusal> {
    let colon = line.iter().position(|&b| b == b':').ok_or(Bad("a header without a colon"))?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // A folded line begins with white space, and so has no token for a name; nor has one with a space before its colon.
    if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
        return Err(Bad("header name"));
    }
    if has_control(value) {
        return Err(Bad("a control character in a header"));
    }
    let value = value.trim_ascii();
    Ok((std::str::from_utf8(name).map_err(|_| Bad("header name"))?, value))
}

/// Looks at all of a piece, which the compiler does many bytes at a time; tokens are long.
fn has_control(value: &[u8]) -> bool {
    let control = |b: u8| (b == 0x7f) | ((b < b' ') & (b != b'\t'));
    value.chunks(64).any(|piece| piece.iter().fold(false, |found, &b| found | control(b)))
}

/// RFC 9110 §5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn decimal(value: &[u8]) -> Option<u64> {
    let legal = matches!(value.len(), 1..=19) && value.iter().all(u8::is_ascii_digit);
    // hyper keeps the two largest numbers for itself.
    std::str::from_utf8(value).ok().filter(|_| legal)?.parse().ok().filter(|&n: &u64| n < u64::MAX - 2)
}
