use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Both ends, without a handshake.
async fn pair(room: usize) -> (WebSocketBytes<DuplexStream>, WebSocketBytes<DuplexStream>) {
    let (near, far) = tokio::io::duplex(room);
    let socket = WebSocketStream::from_raw_socket(near, Role::Client, Some(config())).await;
    (WebSocketBytes { socket, message: Bytes::new(), empty: 0 }, serve(far).await)
}

#[tokio::test]
async fn bytes_arrive_whatever_the_cut() {
    let (mut client, mut server) = pair(1000).await;
    let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let write = async {
        for piece in sent.chunks(70_001) {
            client.write_all(piece).await.unwrap();
        }
        client.shutdown().await.unwrap();
    };
    let mut seen = Vec::new();
    let (read, ()) = tokio::join!(server.read_to_end(&mut seen), write);
    read.unwrap();
    assert!(seen == sent);
}

#[tokio::test]
async fn several_pieces_make_one_message() {
    let (mut client, mut server) = pair(1 << 20).await;
    let pieces = [io::IoSlice::new(&[1; 40_000]), io::IoSlice::new(&[]), io::IoSlice::new(&[2; 40_000])];
    assert_eq!(client.write_vectored(&pieces).await.unwrap(), MESSAGE);
    client.flush().await.unwrap();
    let mut seen = vec![0; MESSAGE];
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!((seen[39_999], seen[40_000], seen[MESSAGE - 1]), (1, 2, 2));
}

/// A peer that never reads costs what the limits say, and no more.
#[tokio::test]
async fn s62_a_reader_that_stands_still_stops_the_writer() {
    let (mut client, _server) = pair(1000).await;
    let mut taken = 0;
    let write = async {
        loop {
            taken += client.write(&[0; 10_000]).await.unwrap();
        }
    };
    assert!(futures_util::FutureExt::now_or_never(write).is_none());
    assert!(taken <= MAX_WRITE_BUFFER, "{taken} bytes wait");
}

/// What a hub's end makes of these bytes from an agent, after a good message.
async fn hear(bytes: &[u8]) -> io::Result<usize> {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let mut server = serve(far).await;
    near.write_all(&[0x82, 0x81, 0, 0, 0, 0, 7]).await.unwrap();
    near.write_all(bytes).await.unwrap();
    let mut seen = [0; 16];
    assert_eq!((server.read(&mut seen).await.unwrap(), seen[0]), (1, 7));
    server.read(&mut seen).await
}

#[tokio::test]
async fn s62_broken_frames_end_the_connection() {
    let masked = |head: &[u8], body: usize| [head, &vec![0; 4 + body]].concat();
    for (bytes, what) in [
        (vec![0x82, 0x01, 7], "unmasked"),
        (masked(&[0xc2, 0x81], 1), "a reserved bit"),
        (masked(&[0x83, 0x81], 1), "a reserved kind"),
        (masked(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], 0), "a length with its top bit set"),
        (masked(&[0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0], 0), "a length that nobody has"),
        (masked(&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1], 0), "a message over the limit"),
        (masked(&[0x89, 0xfe, 0, 126], 126), "a ping of 126 bytes"),
        (masked(&[0x81, 0x81], 1), "text"),
        ([0x89, 0x80, 0, 0, 0, 0].repeat(1 + EMPTY_RUN as usize), "a flood of pings"),
        ([0x82, 0x80, 0, 0, 0, 0].repeat(1 + EMPTY_RUN as usize), "a flood of nothing"),
    ] {
        let error = hear(&bytes).await.expect_err(what);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
    }
    let some = [0x89, 0x80, 0, 0, 0, 0].repeat(EMPTY_RUN as usize);
    assert_eq!(hear(&[&some[..], &[0x82, 0x81, 0, 0, 0, 0, 8]].concat()).await.unwrap(), 1);
    assert_eq!(hear(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap(), 0, "a close is an end");
}

#[test]
fn s64_only_a_proper_request_is_agreed_to() {
    let good = || {
        Request::get(PATH)
            .header("Host", "hub")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Protocol", PROTOCOL)
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap()
    };
    let response = upgrade(&good()).unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(response.headers()["sec-websocket-protocol"], PROTOCOL);
    type Bend = fn(&mut Request<()>);
    let bent: [(Bend, u16); 9] = [
        (|r| drop(r.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("8"))), 426),
        (|r| drop(r.headers_mut().remove("sec-websocket-version")), 426),
        (|r| *r.version_mut() = http::Version::HTTP_10, 400),
        (|r| *r.method_mut() = http::Method::POST, 400),
        (|r| drop(r.headers_mut().remove("sec-websocket-key")), 400),
        (|r| drop(r.headers_mut().insert("sec-websocket-key", HeaderValue::from_static("short"))), 400),
        (|r| drop(r.headers_mut().remove("upgrade")), 400),
        (|r| drop(r.headers_mut().remove("sec-websocket-protocol")), 400),
        (
            |r| drop(r.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("chat, moorline.v2"))),
            400,
        ),
    ];
    for (n, (bend, status)) in bent.into_iter().enumerate() {
        let mut request = good();
        bend(&mut request);
        assert_eq!(upgrade(&request).unwrap_err().0.as_u16(), status, "{n}");
    }
    let mut several = good();
    several.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("chat, moorline.v1"));
    assert!(upgrade(&several).is_ok());
}
