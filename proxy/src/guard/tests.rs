use super::*;
use crate::body;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// All that goes on of `bytes`, given in pieces of at most `cut`.
fn pass(bytes: &[u8], cut: usize) -> (Vec<u8>, Result<Place, Refusal>) {
    let (mut reader, mut input, mut out) = (Reader::default(), BytesMut::new(), BytesMut::new());
    for piece in bytes.chunks(cut) {
        input.extend_from_slice(piece);
        if let Err(refusal) = reader.step(&mut input, &mut out) {
            return (out.to_vec(), Err(refusal));
        }
    }
    (out.to_vec(), Ok(reader.place()))
}

fn head(lines: &str) -> Vec<u8> {
    format!("POST /x HTTP/1.1\r\nHost: hub\r\n{lines}\r\n").into_bytes()
}

/// Nothing of a refused request goes on.
fn assert_refused(bytes: &[u8]) {
    for cut in [1, 7, bytes.len()] {
        let (out, result) = pass(bytes, cut);
        assert!(result.is_err(), "{:?} cut {cut}", String::from_utf8_lossy(bytes));
        assert!(out.is_empty(), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn lawful_requests_go_on_as_they_are() {
    for (bytes, place) in [
        (&b"GET /api?x=%2F HTTP/1.1\r\nHost: hub:8443\r\nA:b\r\nC: \t d \r\n\r\n"[..], Place::Head),
        (b"GET / HTTP/1.0\r\n\r\n", Place::Head),
        (b"GET https://HUB./x HTTP/1.1\r\nHost: hub:8443\r\n\r\n", Place::Head),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: h\r\n\r\n", Place::Head),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhello", Place::Fixed(4)),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", Place::Head),
        (b"DELETE / HTTP/1.1\r\nHost: [::1]:80\r\nX: \xff\xfe\r\n\r\n", Place::Head),
    ] {
        for cut in [1, 3, 1000] {
            assert_eq!(pass(bytes, cut), (bytes.to_vec(), Ok(place)), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}

#[test]
fn s34_s35_lengths_have_one_meaning() {
    assert_refused(&head("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"));
    assert_refused(&head("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n"));
    assert_refused(&head("Content-Length: 5\r\nContent-Length: 6\r\n"));
    assert_refused(&head("Content-Length: 5\r\nContent-Length: 5\r\n"));
    for bad in [
        "5, 5",
        "+5",
        "-1",
        "0x5",
        "5 5",
        "",
        "5;",
        "12345678901234567890",
        "18446744073709551616",
        "\u{665}",
        "5\u{b}",
    ] {
        assert_refused(&head(&format!("Content-Length: {bad}\r\n")));
    }
    assert_refused(&head("Content_Length: 5\r\n"));
}

#[test]
fn s36_transfer_encoding_is_chunked_once() {
    for bad in [
        "chunked, identity",
        "xchunked",
        "identity",
        "chunked, chunked",
        "chunked,",
        "\u{b}chunked",
        "\"chunked\"",
        "",
        "gzip, chunked",
    ] {
        assert_refused(&head(&format!("Transfer-Encoding: {bad}\r\n")));
    }
    assert_refused(&head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"));
    assert_refused(&head("Transfer-Encoding : chunked\r\n"));
    assert_refused(&head("Transfer_Encoding: chunked\r\n"));
    assert_refused(&head("Transfer-Encoding:\r\n chunked\r\n"));
    assert_refused(b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
}

#[test]
fn s38_s06_heads_are_made_of_lines_and_tokens() {
    for bad in [
        "A: b\rc\r\n",
        "A: b\nC: d\r\n",
        "A: b\0\r\n",
        "A: b\r\n folded\r\n",
        "A: b\r\n\tfolded\r\n",
        ": empty\r\n",
        "A\r\n",
        "A : b\r\n",
        "A\t: b\r\n",
        "Impersonate-User : admin\r\n",
        "A\u{e9}: b\r\n",
        "A: b\r\r\n",
        "(a): b\r\n",
        "\0: b\r\n",
        "A: \u{7f}\r\n",
        "Host: other\r\n",
    ] {
        assert_refused(&head(bad));
    }
    for bad in [
        &b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"[..],
        b" GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
        b"GET /\tHTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        b"GET / http/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
        b"G\0T / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        assert_refused(bad);
    }
}

#[test]
fn s38_heads_over_their_limits_are_431() {
    let many = "a: b\r\n".repeat(100);
    assert_eq!(pass(&head(&many), 4096).1, Err(Refusal::TooLarge));
    assert!(pass(&head(&"a: b\r\n".repeat(99)), 4096).1.is_ok());
    let long = head(&format!("a: {}\r\n", "b".repeat(64 * 1024)));
    assert_eq!(pass(&long, 4096), (vec![], Err(Refusal::TooLarge)));
    assert_eq!(pass(&long[..40_000], 4096).1, Err(Refusal::TooLarge), "without waiting for its end");
}

#[test]
fn s42_targets_are_paths_of_this_host() {
    for bad in ["*", "x", "http://other/x", "ftp://hub/x", "//hub@other", "http://hub@other/", "/a#b", "hub:80"] {
        let bytes = format!("GET {bad} HTTP/1.1\r\nHost: hub\r\n\r\n");
        if bad.starts_with("//") {
            assert!(pass(bytes.as_bytes(), 99).1.is_ok(), "a path, for the path's own rules");
        } else {
            assert_refused(bytes.as_bytes());
        }
    }
}

#[test]
fn bad_chunks_end_it() {
    let start = head("Transfer-Encoding: chunked\r\n");
    for bad in [
        "5;x=y\r\nhello",
        " 5\r\nhello",
        "5 \r\nhello",
        "5\nhello",
        "0x5\r\nhello",
        "-1\r\n",
        "\r\n",
        "g\r\n",
        "1234567890abcdef1\r\n",
        "5\r\nhelloX\r\n",
        "5\r\nhello\n",
        "5\r\nhello\r\n\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nImpersonate-User: a\r\n\r\n",
        "0\r\nA: b\n\n",
    ] {
        let bytes = [&start[..], bad.as_bytes()].concat();
        for cut in [1, 1000] {
            assert!(pass(&bytes, cut).1.is_err(), "{bad:?}");
        }
    }
}

#[test]
fn s30_s31_s33_nothing_follows_a_request_to_switch() {
    let pipelined = "GET /api/v1/secrets HTTP/1.1\r\nHost: hub\r\n\r\n";
    for lines in [
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
        "Upgrade: websocket\r\n",
        "Upgrade: SPDY/3.1\r\nContent-Length: 0\r\n",
    ] {
        let request = head(lines);
        let bytes = [&request[..], pipelined.as_bytes()].concat();
        assert_eq!(pass(&bytes, 5), (request, Ok(Place::Held)));
    }
    let connect = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n";
    assert_eq!(pass(&[&connect[..], pipelined.as_bytes()].concat(), 9), (connect.to_vec(), Ok(Place::Held)));
    assert_refused(&head("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"));
    assert_refused(&head("Upgrade: websocket, h2c\r\n"));
    assert_refused(&head("Upgrade: websocket\r\nContent-Length: 5\r\n"));
    assert_refused(&head("Upgrade: websocket\r\nTransfer-Encoding: chunked\r\n"));
}

/// A real hyper server behind the guard. Returns what the client read, and which requests were served.
async fn serve(bytes: &[u8], switch: bool) -> (String, Vec<String>) {
    let (mut client, server) = duplex(256 * 1024);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = {
        let seen = seen.clone();
        hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let seen = seen.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned());
                seen.lock().unwrap().push(format!("{} {} {:?}", parts.method, parts.uri, body.ok()));
                let code = if switch { 101 } else { 403 };
                let mut response = Response::builder().status(code);
                if switch {
                    response = response.header("upgrade", "SPDY/3.1").header("connection", "upgrade");
                    let upgrade = hyper::upgrade::on(Request::from_parts(parts, ()));
                    tokio::spawn(async move {
                        let mut io = TokioIo::new(upgrade.await.unwrap());
                        let mut said = [0; 5];
                        io.read_exact(&mut said).await.unwrap();
                        io.write_all(&said).await.unwrap();
                        io.shutdown().await.unwrap();
                    });
                }
                Ok::<_, Infallible>(response.body(body::empty()).unwrap())
            }
        })
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(10))
        .max_headers(100)
        .serve_connection(TokioIo::new(Guarded::new(server)), service)
        .with_upgrades();
    let connection = tokio::spawn(connection);
    client.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let _ = connection.await;
    let seen = seen.lock().unwrap().clone();
    (String::from_utf8_lossy(&answer).into_owned(), seen)
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_is_answered_and_closed_and_never_served() {
    for (bytes, code) in [
        (head("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"), "400"),
        (head("A : b\r\n"), "400"),
        (head(&"a: b\r\n".repeat(100)), "431"),
    ] {
        let (answer, seen) = serve(&bytes, false).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")) && answer.contains("connection: close"), "{answer}");
        assert!(seen.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_lawful_request_comes_before_the_refusal_of_the_next() {
    let bytes = [b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), head("A : b\r\n")].concat();
    let (answer, seen) = serve(&bytes, false).await;
    assert_eq!(seen, [r#"GET /a Some("")"#]);
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.matches("HTTP/1.1 400 ").count() == 1, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_bad_chunk_is_an_error_for_who_reads_the_body() {
    let bytes = [head("Transfer-Encoding: chunked\r\n"), b"5\r\nhello\r\n5;a\r\nworld\r\n0\r\n\r\n".to_vec()].concat();
    let (_, seen) = serve(&bytes, false).await;
    assert_eq!(seen, ["POST /x None"]);
}

#[tokio::test(start_paused = true)]
async fn s29_s30_a_request_behind_a_refused_upgrade_is_never_served() {
    let upgrade = head("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n");
    let bytes = [&upgrade[..], b"GET /api/v1/secrets HTTP/1.1\r\nHost: hub\r\n\r\n"].concat();
    let (answer, seen) = serve(&bytes, false).await;
    assert_eq!(seen, [r#"POST /x Some("")"#]);
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn bytes_behind_an_accepted_upgrade_are_its_own() {
    let upgrade = head("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n");
    let (answer, seen) = serve(&[&upgrade[..], b"hello"].concat(), true).await;
    assert_eq!(seen.len(), 1);
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\nhello"), "{answer}");
}

fn any_line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("Host: hub\r\n".to_owned()),
        "Content-Length: ?[0-9]{1,2}\r\n",
        "Transfer-Encoding: ?(chunked|identity)\r\n",
        "[A-Za-z:_ -]{0,6}[:]?[ a-z0-9]{0,6}\r?\n",
        "(Upgrade|Connection): [a-z0-9,]{0,5}\r\n",
        any::<Vec<u8>>().prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    ]
}

proptest! {
    /// However the bytes are cut on the way, the same of them goes on.
    #[test]
    fn any_cut_is_the_same(lines in prop::collection::vec(any_line(), 0..6), tail in "[0-9a-z\r\n]{0,30}", cut in 1usize..40) {
        let bytes = format!("POST / HTTP/1.1\r\nHost: h\r\n{}\r\n{tail}", lines.concat()).into_bytes();
        let (whole, pieces) = (pass(&bytes, bytes.len()), pass(&bytes, cut));
        prop_assert_eq!(whole.1.is_err(), pieces.1.is_err());
        prop_assert_eq!(whole.0, pieces.0);
    }

    /// What goes on is a head for another parser too, which sees the same end and the same framing.
    #[test]
    fn z05_httparse_reads_the_same(lines in prop::collection::vec(any_line(), 0..6)) {
        let bytes = format!("POST / HTTP/1.1\r\n{}\r\n", lines.concat()).into_bytes();
        let (mut reader, mut input, mut out) = (Reader::default(), BytesMut::from(&bytes[..]), BytesMut::new());
        if reader.step(&mut input, &mut out).is_ok() && !out.is_empty() {
            let mut headers = [httparse::EMPTY_HEADER; 100];
            let mut request = httparse::Request::new(&mut headers);
            let parsed = request.parse(&bytes);
            let Ok(httparse::Status::Complete(end)) = parsed else { return Err(TestCaseError::fail(format!("{parsed:?}"))) };
            let values = |name: &str| request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value.trim_ascii()).collect::<Vec<_>>();
            let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
            prop_assert!(lengths.len() + codings.len() <= 1);
            prop_assert!(out.len() >= end && bytes.starts_with(&out));
            if let [length] = lengths[..] {
                prop_assert!(length.iter().all(u8::is_ascii_digit));
            }
            if let [coding] = codings[..] {
                prop_assert!(coding.eq_ignore_ascii_case(b"chunked"));
            }
        }
    }
}

/// Everything that http_desync_guardian calls severe or ambiguous is refused.
#[test]
fn s34_the_table_of_http_desync_guardian() {
    let mut rows = 0;
    let mut wrong = Vec::new();
    for row in include_str!("desync.txt").lines().filter(|line| !line.starts_with('#')) {
        let [verdict, reason, head] = row.splitn(3, '\t').collect::<Vec<_>>()[..] else { panic!("{row}") };
        rows += 1;
        let mut bytes = Vec::new();
        let mut rest = head;
        while let Some(at) = rest.find("\\x") {
            bytes.extend_from_slice(&rest.as_bytes()[..at]);
            bytes.push(u8::from_str_radix(&rest[at + 2..at + 4], 16).unwrap());
            rest = &rest[at + 4..];
        }
        bytes.extend_from_slice(rest.as_bytes());
        // Their rows have no Host, ours need one; it is not what they are about.
        let line = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
        if !head.to_ascii_lowercase().contains("host") {
            bytes.splice(line..line, *b"Host: h\r\n");
        }
        let refused = pass(&bytes, bytes.len()).1.is_err();
        if matches!(verdict, "Severe" | "Ambiguous") && !refused {
            wrong.push(format!("{verdict} {reason} {head}"));
        }
    }
    assert!(150 < rows, "the table was read: {rows}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
