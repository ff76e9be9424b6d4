//! HTTP/2 as attackers write it: frames by hand (RFC 9113), headers without compression (RFC 7541 §6.2.2).

use crate::world::{World, eventually};
use moorline_link::Carrier;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` of the static table.
const STATUS_200: u8 = 0x88;
const SOON: Duration = Duration::from_secs(20);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut all = vec![length[1], length[2], length[3], kind, flags];
    all.extend_from_slice(&stream.to_be_bytes());
    all.extend_from_slice(payload);
    all
}

/// A string without Huffman coding (RFC 7541 §5.2).
fn string(out: &mut Vec<u8>, text: &[u8]) {
    let mut left = text.len();
    if left < 127 {
        out.push(u8::try_from(left).unwrap());
    } else {
        out.push(127);
        left -= 127;
        while left >= 128 {
            out.push(u8::try_from(left % 128).unwrap() | 0x80);
            left /= 128;
        }
        out.push(u8::try_from(left).unwrap());
    }
    out.extend_from_slice(text);
}

fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in headers {
        out.push(0);
        string(&mut out, name.as_bytes());
        string(&mut out, value.as_bytes());
    }
    out
}

struct Raw {
    read: ReadHalf<TlsStream<TcpStream>>,
    write: WriteHalf<TlsStream<TcpStream>>,
}

/// How the hub answered.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// A block of headers, with its first byte.
    Headers(u8),
    /// The stream was reset.
    Reset,
    /// The connection was ended, with GOAWAY's code where one came.
    Ended(Option<u32>),
}

impl Raw {
    async fn new(world: &World) -> Self {
        let (read, write) = tokio::io::split(world.connect("localhost", &[b"h2"]).await);
        let mut raw = Self { read, write };
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    /// Sends; `false` once the hub takes nothing more.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        self.write.write_all(bytes).await.is_ok() && self.write.flush().await.is_ok()
    }

    /// The first thing that the hub says about a request, or of the connection.
    async fn answer(&mut self) -> Answer {
        let mut head = [0; 9];
        let read = async {
            loop {
                if self.read.read_exact(&mut head).await.is_err() {
                    return Answer::Ended(None);
                }
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                if self.read.read_exact(&mut payload).await.is_err() {
                    return Answer::Ended(None);
                }
                match head[3] {
                    HEADERS => return Answer::Headers(payload[0]),
                    RST_STREAM => return Answer::Reset,
                    GOAWAY => return Answer::Ended(Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))),
                    _ => {}
                }
            }
        };
        timeout(SOON, read).await.expect("an answer in time")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s41_what_means_something_else_in_http1_reaches_nobody() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let bearer = format!("Bearer {}", world.admin);
    let path = "/k8s/clusters/edge1/api";
    let base = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
        ("authorization", bearer.as_str()),
    ];
    let with = |more: &[(&str, &str)]| block(&[&base[..], more].concat());
    let but = |name: &str, value: &str| {
        block(
            &base
                .map(|(n, v)| if n == name { (n, value.to_owned()) } else { (n, v.to_owned()) })
                .iter()
                .map(|(n, v)| (*n, v.as_str()))
                .collect::<Vec<_>>(),
        )
    };
    let mut good = Raw::new(&world).await;
    good.send(&frame(HEADERS, END_HEADERS, 1, &with(&[("content-length", "5")]))).await;
    good.send(&frame(DATA, END_STREAM, 1, b"hello")).await;
    assert_eq!(good.answer().await, Answer::Headers(STATUS_200));
    assert_eq!((agent.last().line.as_str(), agent.last().body.as_str()), ("POST /api", "hello"));
    let bad = [
        ("CRLF in :path", but(":path", "/k8s/clusters/edge1/api HTTP/1.1\r\nX-A: b"), &b""[..]),
        ("space in :path", but(":path", "/k8s/clusters/edge1/api HTTP/1.1"), b""),
        ("CRLF in a value", with(&[("x-a", "b\r\nImpersonate-User: admin")]), b""),
        ("LF in a value", with(&[("x-a", "b\nc")]), b""),
        ("NUL in a value", with(&[("x-a", "b\0c")]), b""),
        ("CRLF in a name", with(&[("x-a: b\r\nx-c", "d")]), b""),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")]), b"0\r\n\r\n"),
        ("connection", with(&[("connection", "close")]), b""),
        ("keep-alive", with(&[("keep-alive", "1")]), b""),
        ("upgrade", with(&[("upgrade", "websocket")]), b""),
        ("te", with(&[("te", "gzip")]), b""),
        ("an upper-case name", with(&[("X-Upper", "a")]), b""),
        ("two :path", with(&[(":path", "/livez")]), b""),
        ("two :authority", with(&[(":authority", "other.example")]), b""),
        (":authority and host differ", with(&[("host", "other.example")]), b""),
        ("two host", with(&[("host", "localhost"), ("host", "localhost")]), b""),
        ("a pseudo-header after others", with(&[(":x", "y")]), b""),
        ("no :path", block(&[(":method", "GET"), (":scheme", "https"), ("authorization", &bearer)]), b""),
        ("a :path that is none", but(":path", "*"), b""),
        ("extended CONNECT", with(&[(":protocol", "websocket")]), b""),
        ("more than content-length", with(&[("content-length", "3")]), b"hello"),
        ("less than content-length", with(&[("content-length", "9")]), b"hello"),
        ("two content-length", with(&[("content-length", "5"), ("content-length", "6")]), b"hello"),
        ("no number", with(&[("content-length", "+5")]), b"hello"),
    ];
    let before = agent.lines();
    for (what, headers, body) in bad {
        let mut raw = Raw::new(&world).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &headers)).await;
        raw.send(&frame(DATA, END_STREAM, 1, body)).await;
        let answer = raw.answer().await;
        assert_ne!(answer, Answer::Headers(STATUS_200), "{what}");
        assert_eq!(agent.lines(), before, "{what} arrived: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s58_floods_end_their_connection_and_nobody_elses() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let bearer = format!("Bearer {}", world.admin);
    let ask = |path: &str| {
        block(&[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", path),
            ("authorization", &bearer),
        ])
    };
    let waits = ask("/k8s/clusters/edge1/waits");
    let opened = |stream: u32| frame(HEADERS, END_HEADERS | END_STREAM, stream, &waits);
    let reset = |stream: u32| [opened(stream), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat();
    let huge = frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes());
    // Each entry of the bomb's dynamic table is named again and again by one byte.
    let mut bomb = ask("/livez");
    bomb.push(0x40);
    string(&mut bomb, b"x-bomb");
    string(&mut bomb, &[b'a'; 3000]);
    bomb.extend(std::iter::repeat_n(0xbe, 12_000));
    let odd = |n: u32| 2 * n + 1;
    type Flood<'a> = Box<dyn Fn(u32) -> Vec<u8> + Send + 'a>;
    let floods: [(&str, u32, Flood<'_>); 7] = [
        ("HEADERS and RST_STREAM", 100_000, Box::new(|n| reset(odd(n)))),
        ("WINDOW_UPDATE of nothing", 1, Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &0u32.to_be_bytes()))),
        ("WINDOW_UPDATE beyond the largest", 2, Box::new(|_| huge.clone())),
        (
            "CONTINUATION without an end",
            10_000,
            Box::new(|n| match n {
                0 => frame(HEADERS, 0, 1, &waits),
                _ => frame(CONTINUATION, 0, 1, &block(&[("x-a", &"a".repeat(1000))])),
            }),
        ),
        (
            "an empty CONTINUATION without an end",
            100_000,
            Box::new(|n| match n {
                0 => frame(HEADERS, 0, 1, &waits),
                _ => frame(CONTINUATION, 0, 1, &[]),
            }),
        ),
        ("a frame larger than was agreed", 1, Box::new(|_| frame(DATA, 0, 1, &[0; 100_000]))),
        ("DATA for a stream that is none", 1, Box::new(|_| frame(DATA, 0, 7, b"x"))),
    ];
    for (what, times, flood) in floods {
        let Raw { mut read, mut write } = Raw::new(&world).await;
        // What the hub says is read all the time: a flood must not end because its sender is deaf.
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            let _ = read.read_to_end(&mut all).await;
            all
        });
        for n in 0..times {
            if write.write_all(&flood(n)).await.is_err() {
                break;
            }
        }
        let _ = write.flush().await;
        let told = timeout(SOON, reading).await.unwrap_or_else(|_| panic!("{what}: the connection goes on")).unwrap();
        assert!(told.len() < 1 << 20, "{what}: {} bytes of answers", told.len());
    }
    // A head that unpacks to more than the hub takes is refused, and the connection may go on.
    let mut raw = Raw::new(&world).await;
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
    assert_ne!(raw.answer().await, Answer::Headers(STATUS_200), "an HPACK bomb");
    // Streams beyond the bound are refused while the others wait.
    let mut raw = Raw::new(&world).await;
    for n in 0..1000 {
        raw.send(&opened(odd(n))).await;
    }
    assert_eq!(raw.answer().await, Answer::Reset, "a thousand requests at once");
    // What costs the hub nothing lasting: it answers in between, to this connection and to others.
    for chatter in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[]), frame(DATA, 0, 1, &[])] {
        let mut raw = Raw::new(&world).await;
        let post =
            block(&[(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", "/auth/login")]);
        raw.send(&frame(HEADERS, END_HEADERS, 1, &post)).await;
        let Raw { mut read, mut write } = raw;
        let reading = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        for _ in 0..20_000 {
            if write.write_all(&chatter).await.is_err() {
                break;
            }
        }
        let _ = write.flush().await;
        assert_eq!(world.send("GET", "/livez", &[], "").await.code, 200);
        reading.abort();
    }
    assert_eq!(world.get(&world.admin, "/k8s/clusters/edge1/api").await.code, 200);
    assert_eq!(world.metric("moorline_hub_request_panics_total"), 0.0);
}

/// S77: of somebody who reads nothing any more the hub does not wait to hear. Real time: the clock is the kernel's.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn s77_a_client_that_reads_nothing_is_cut_off() {
    let world = World::with(|config| config.limits.unacknowledged = Duration::from_secs(1)).await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let mut raw = Raw::new(&world).await;
    // All that HTTP/2 lets it send it may: what stands still is TCP.
    let window = 0x7fff_0000_u32.to_be_bytes();
    raw.send(&frame(SETTINGS, 0, 0, &[&[0, 4], &window[..]].concat())).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 0, &window)).await;
    let bearer = format!("Bearer {}", world.admin);
    let ask = block(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/k8s/clusters/edge1/large"),
        ("authorization", &bearer),
    ]);
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &ask)).await;
    let in_flight = || world.metric("moorline_proxy_requests_in_flight");
    eventually("begun", async || in_flight() == 1.0).await;
    eventually("cut off", async || in_flight() == 0.0 && world.metric("moorline_hub_connections_open") == 0.0).await;
}
