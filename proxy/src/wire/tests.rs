use super::{codec::*, *};
use crate::body;
use http::{HeaderMap, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

fn get(path: &'static str) -> Request<Body> {
    Request::get(path).header("accept", "*/*").body(body::empty()).unwrap()
}

/// Hub and agent over one in-memory stream.
async fn exchange<F, A>(
    request: Request<Body>,
    answer: F,
) -> (Result<Response<Body>, WireError>, tokio::task::JoinHandle<Result<(), WireError>>)
where
    F: FnOnce(Request<Body>) -> A + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let (hub, agent) = duplex(256 * 1024);
    let agent = tokio::spawn(serve(agent, answer));
    (super::request(hub, request).await, agent)
}

async fn whole(body: Body) -> Result<Bytes, BodyError> {
    Ok(body.collect().await?.to_bytes())
}

#[tokio::test]
async fn a_small_call_and_its_answer() {
    let (response, agent) = exchange(get("/api/v1/pods?x=%2F"), async |request: Request<Body>| {
        assert_eq!(request.uri(), "/api/v1/pods?x=%2F");
        assert_eq!(request.headers()["accept"], "*/*");
        assert!(http_body::Body::is_end_stream(request.body()));
        Response::builder().status(404).header("content-length", "5").body(body::full("hello")).unwrap()
    })
    .await;
    let response = response.unwrap();
    assert_eq!(response.status(), 404);
    assert_eq!(response.headers()["content-length"], "5");
    assert_eq!(whole(response.into_body()).await.unwrap(), "hello");
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways_at_once() {
    let big = Bytes::from(vec![7; 3 << 20]);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    let request = Request::post("/x")
        .body(body::full(big.clone()).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync())
        .unwrap();
    // The answer is the request's own body: both directions are open at once.
    let (response, agent) = exchange(request, async |request: Request<Body>| Response::new(request.into_body())).await;
    let all = response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(all.trailers().map(|t| t["x-sum"].clone()), Some(HeaderValue::from_static("1")));
    assert!(all.to_bytes() == big);
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn every_event_of_a_watch_comes_at_once() {
    let (events, source) = tokio::sync::mpsc::channel::<Bytes>(1);
    let source = futures_util::stream::unfold(source, |mut source| async {
        source.recv().await.map(|event| (Ok(http_body::Frame::data(event)), source))
    });
    let source = Body::new(StreamBody::new(source));
    let (response, agent) = exchange(get("/w"), async |_| Response::new(source)).await;
    let mut body = response.unwrap().into_body();
    for event in ["one", "two", "three"] {
        events.send(Bytes::from_static(event.as_bytes())).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
    }
    drop(events);
    assert!(body.frame().await.is_none());
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn giving_up_on_an_answer_cancels_upstream() {
    struct Told(Option<tokio::sync::oneshot::Sender<()>>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.take().map(|told| told.send(()));
        }
    }
    // Before the head …
    let (told, heard) = tokio::sync::oneshot::channel();
    let (asks, asked) = tokio::sync::oneshot::channel();
    let (hub, agent, _sessions) = stream_pair().await;
    let agent = tokio::spawn(serve(agent, async move |_| {
        asks.send(()).unwrap();
        let _told = Told(Some(told));
        std::future::pending::<Response<Body>>().await
    }));
    let hub = tokio::spawn(super::request(hub, get("/slow")));
    asked.await.unwrap();
    hub.abort();
    heard.await.unwrap();
    assert!(agent.await.unwrap().is_err());
    // … and in the middle of a silent body.
    let (told, heard) = tokio::sync::oneshot::channel();
    let (hub, agent, _sessions) = stream_pair().await;
    let agent = tokio::spawn(serve(agent, async move |_| {
        let told = Told(Some(told));
        let silent = futures_util::stream::once(async move {
            let _told = told;
            std::future::pending::<Result<http_body::Frame<Bytes>, BodyError>>().await
        });
        Response::new(Body::new(StreamBody::new(silent)))
    }));
    let response = super::request(hub, get("/watch")).await.unwrap();
    drop(response);
    heard.await.unwrap();
    assert!(agent.await.unwrap().is_err());
}

/// Both ends of one stream of a session, and the sessions that carry it.
async fn stream_pair() -> (moorline_link::Stream, moorline_link::Stream, [moorline_link::Session; 2]) {
    let (at_hub, at_agent) = moorline_link::testing::session_pair();
    let header = moorline_proto::header::StreamHeader {
        target: moorline_proto::header::Target::Kube,
        class: moorline_proto::header::Class::Interactive,
        deadline_ms: 0,
        traceparent: None,
        principal: None,
    };
    let hub = at_hub.open(&header).await.unwrap();
    let agent = at_agent.accept().await.unwrap().accept_quietly();
    (hub, agent, [at_hub, at_agent])
}

/// What a hub reads when the agent's bytes are cut after `keep` of them.
async fn cut_short(keep: usize) -> Result<Bytes, String> {
    let mut bytes = BytesMut::new();
    encode_response(&ResponseHead { status: StatusCode::OK, headers: HeaderMap::new() }, &mut bytes).unwrap();
    frame(DATA, 5, &mut bytes);
    bytes.extend_from_slice(b"hello");
    frame(END, 0, &mut bytes);
    let (hub, mut agent) = duplex(4096);
    agent.write_all(&bytes[..keep.min(bytes.len())]).await.unwrap();
    agent.shutdown().await.unwrap();
    let result = super::request(hub, get("/")).await.map_err(|e| e.to_string())?;
    whole(result.into_body()).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn f04_an_answer_cut_anywhere_is_never_a_clean_end() {
    let all = 5 + 5 + 5 + 5 + 5;
    assert_eq!(cut_short(all).await.unwrap(), "hello");
    for keep in 0..all {
        assert!(cut_short(keep).await.is_err(), "cut after {keep} bytes");
    }
}

#[tokio::test]
async fn f04_a_failing_source_is_never_a_clean_end() {
    let source = || {
        let frames = [Ok(http_body::Frame::data(Bytes::from_static(b"half"))), Err(BodyError::Truncated)];
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    };
    let (response, agent) = exchange(get("/"), async move |_| Response::new(source())).await;
    if let Ok(response) = response {
        assert!(whole(response.into_body()).await.is_err());
    }
    assert!(agent.await.unwrap().is_err());
    // The same on the way up: the API server's client must see an error.
    let (seen, saw) = tokio::sync::oneshot::channel();
    let request = Request::post("/").body(source()).unwrap();
    let (response, agent) = exchange(request, async move |request: Request<Body>| {
        let _ = seen.send(whole(request.into_body()).await.is_err());
        Response::new(body::empty())
    })
    .await;
    assert!(response.is_err());
    assert!(agent.await.unwrap().is_err());
    assert!(saw.await.unwrap_or(true));
}

#[tokio::test]
async fn a_length_that_is_not_kept_is_an_error() {
    for (announced, body, good) in [("5", "hello", true), ("6", "hello", false), ("4", "hello", false), ("0", "", true)]
    {
        let (response, agent) = exchange(get("/"), async move |_| {
            Response::builder().header("content-length", announced).body(body::full(body)).unwrap()
        })
        .await;
        assert_eq!(whole(response.unwrap().into_body()).await.is_ok(), good, "{announced} {body}");
        drop(agent);
    }
    let head = Request::head("/").body(body::empty()).unwrap();
    let (response, _agent) =
        exchange(head, async |_| Response::builder().header("content-length", "99").body(body::empty()).unwrap()).await;
    assert!(whole(response.unwrap().into_body()).await.unwrap().is_empty(), "an answer to HEAD has no body");
}

#[tokio::test]
async fn an_upgrade_is_raw_bytes_both_ways_with_half_closes() {
    let mut request = get("/exec");
    request.headers_mut().insert("upgrade", HeaderValue::from_static("SPDY/3.1"));
    request.extensions_mut().insert(WantsUpgrade);
    let (mut server, upstream) = duplex(1024);
    let (response, agent) = exchange(request, async move |request: Request<Body>| {
        assert!(request.extensions().get::<WantsUpgrade>().is_some());
        let mut response = Response::builder().status(101).header("upgrade", "SPDY/3.1").body(body::empty()).unwrap();
        response.extensions_mut().insert(UpgradedIo::new(upstream));
        response
    })
    .await;
    let response = response.unwrap();
    assert_eq!(response.status(), 101);
    let mut client = response.extensions().get::<UpgradedIo>().unwrap().take().unwrap();
    client.write_all(b"ls\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"ls\n");
    server.write_all(b"still here after your end").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"still here after your end");
    agent.await.unwrap().unwrap();
}

#[tokio::test]
async fn s35_an_answer_with_more_than_one_length_is_none() {
    let cases: [&'static [&'static str]; 7] =
        [&["5", "5"], &["5", "6"], &["5, 5"], &["+5"], &["0x5"], &[""], &["99999999999999999999"]];
    for lengths in cases {
        let (response, agent) = exchange(get("/x"), async move |_| {
            let mut response = Response::new(body::full("hello"));
            for length in lengths {
                response.headers_mut().append("content-length", length.parse().unwrap());
            }
            response
        })
        .await;
        assert!(matches!(response, Err(WireError::Peer("bad content-length"))), "{lengths:?}: {response:?}");
        drop(agent);
    }
}

#[tokio::test]
async fn s30_a_101_that_nobody_asked_for_is_refused() {
    let mut bytes = BytesMut::new();
    encode_response(&ResponseHead { status: StatusCode::SWITCHING_PROTOCOLS, headers: HeaderMap::new() }, &mut bytes)
        .unwrap();
    let (hub, mut agent) = duplex(4096);
    agent.write_all(&bytes).await.unwrap();
    assert!(matches!(super::request(hub, get("/")).await, Err(WireError::Peer(_))));
}

#[tokio::test]
async fn a_small_call_is_one_write() {
    struct Writes(DuplexStream, std::sync::Arc<std::sync::atomic::AtomicUsize>);
    impl tokio::io::AsyncRead for Writes {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }
    impl tokio::io::AsyncWrite for Writes {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
        }
        fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }
    impl Io for Writes {}
    let (hub, agent) = duplex(64 * 1024);
    let (up, down) =
        <(std::sync::Arc<std::sync::atomic::AtomicUsize>, std::sync::Arc<std::sync::atomic::AtomicUsize>)>::default();
    let agent = tokio::spawn(serve(Writes(agent, down.clone()), async |_| Response::new(body::full("small"))));
    let response = super::request(Writes(hub, up.clone()), get("/")).await.unwrap();
    assert_eq!(whole(response.into_body()).await.unwrap(), "small");
    agent.await.unwrap().unwrap();
    assert_eq!(
        (up.load(std::sync::atomic::Ordering::Relaxed), down.load(std::sync::atomic::Ordering::Relaxed)),
        (1, 1)
    );
}

fn any_head() -> impl Strategy<Value = RequestHead> {
    let header = ("[a-z][a-z0-9-]{0,12}", "[ -~]{0,30}");
    (
        "(GET|POST|PATCH|WHATEVER)",
        "/[a-zA-Z0-9/%._~-]{0,40}(\\?[a-z=&%]{0,20})?",
        prop::collection::vec(header, 0..10),
        any::<bool>(),
    )
        .prop_map(|(method, target, headers, upgrade)| RequestHead {
            method: Method::from_bytes(method.as_bytes()).unwrap(),
            target: Uri::from(http::uri::PathAndQuery::try_from(target).unwrap()),
            headers: headers
                .into_iter()
                .map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap()))
                .collect(),
            upgrade,
        })
}

proptest! {
    /// What was written is what is read.
    #[test]
    fn heads_survive(head in any_head()) {
        let mut bytes = BytesMut::new();
        encode_request(&head, &mut bytes).unwrap();
        let (kind, len) = take_frame(&mut bytes).unwrap().unwrap();
        prop_assert_eq!(len, bytes.len());
        match decode_head(kind, &bytes) {
            Ok(Head::Request(read)) => prop_assert_eq!(read, head),
            other => prop_assert!(false, "{other:?}"),
        }
    }
    /// A head with one byte bent is a head or a typed error.
    #[test]
    fn z01_bent_heads_cannot_panic_us(head in any_head(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = BytesMut::new();
        encode_request(&head, &mut bytes).unwrap();
        *at.get_mut(&mut bytes[..]) = byte;
        if let Ok(Some((kind, len))) = take_frame(&mut bytes) {
            let _ = decode_head(kind, &bytes[..len.min(bytes.len())]);
        }
    }
}

#[test]
fn heads_over_their_limits_are_refused_on_both_sides() {
    let mut head =
        RequestHead { method: Method::GET, target: Uri::from_static("/"), headers: HeaderMap::new(), upgrade: false };
    for n in 0..=MAX_HEADERS {
        head.headers.append("x-a", HeaderValue::from(n));
    }
    assert!(encode_request(&head, &mut BytesMut::new()).is_err());
    head.headers.clear();
    head.headers.insert("x", HeaderValue::from_bytes(&[b'a'; MAX_HEAD]).unwrap());
    let mut out = BytesMut::new();
    assert!(encode_request(&head, &mut out).is_err() && out.is_empty());
    head.headers.clear();
    head.method = Method::CONNECT;
    assert!(encode_request(&head, &mut out).is_err());
    let mut long = BytesMut::from(&[DATA, 0, 1, 0, 1][..]);
    assert!(take_frame(&mut long).is_err(), "the announcement alone is refused");
    for bad in [
        &b"\0\0\x03GET\0\0\0\x02/a\0\x01\0\x01A\0\0\0\0"[..],
        b"\0\0\x03GET\0\0\0\x02/a\0\x01\0\x01a\0\0\0\x03a\r\n",
        b"\0\0\x03GET\0\0\0\x01*\0\0",
        b"\x02\0\x03GET\0\0\0\x01/\0\0",
        b"\0\0\x03GET\0\0\0\x01/\0\0x",
    ] {
        assert!(decode_head(REQUEST, bad).is_err(), "{bad:?}");
    }
}
