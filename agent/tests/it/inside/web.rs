//! Services that speak HTTP.

use super::{LOOPBACK, World, free_port};
use crate::pki::{Authority, server_config};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{body::Frame, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use moorline_proto::{code::RefuseCode, inside::Payload};
use moorline_proxy::{
    Body, body,
    upgrade::UpgradedIo,
    wire::{WantsUpgrade, WireError},
};
use rcgen::SanType;
use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// A service that speaks HTTP and remembers what it saw.
struct Web {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<(Version, String, HeaderMap)>>>,
    connections: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Web {
    async fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (addr, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let connections = Arc::new(AtomicUsize::new(0));
        let (log, count) = (seen.clone(), connections.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut running = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (log, tls) = (log.clone(), tls.clone());
                running.spawn(async move {
                    let service = service_fn(move |request| page(request, log.clone()));
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = match tls {
                        None => server.serve_connection_with_upgrades(TokioIo::new(socket), service).await,
                        Some(tls) => match tokio_rustls::TlsAcceptor::from(tls).accept(socket).await {
                            Ok(socket) => server.serve_connection_with_upgrades(TokioIo::new(socket), service).await,
                            Err(_) => return,
                        },
                    };
                });
            }
        }));
        Self { addr, seen, connections, _task: task }
    }

    fn last(&self) -> (Version, String, HeaderMap) {
        self.seen.lock().unwrap().last().cloned().unwrap()
    }
}

type Page = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn page(
    mut request: Request<hyper::body::Incoming>,
    log: Arc<Mutex<Vec<(Version, String, HeaderMap)>>>,
) -> Result<Response<Page>, Infallible> {
    log.lock().unwrap().push((request.version(), request.uri().to_string(), request.headers().clone()));
    let full = |text: &'static str| Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync();
    let (path, uri) = (request.uri().path().to_owned(), request.uri().to_string());
    if path == "/socket" {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut space = [0; 64];
            while let Ok(n @ 1..) = io.read(&mut space).await {
                io.write_all(&space[..n]).await.unwrap();
            }
        });
        let answer = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
        return Ok(answer.body(full("")).unwrap());
    }
    let body = request.into_body().collect().await.map(|all| all.to_bytes()).unwrap_or_default();
    Ok(match path.as_str() {
        "/own" => Response::new(Full::new(Bytes::from(uri)).boxed_unsync()),
        "/large" => Response::new(Full::new(vec![b'x'; 1 << 20].into()).boxed_unsync()),
        "/echo" => Response::new(Full::new(body).boxed_unsync()),
        "/away" => {
            Response::builder().status(302).header("location", "http://169.254.169.254/latest").body(full("")).unwrap()
        }
        "/closed" => Response::builder().status(403).body(full("no")).unwrap(),
        "/grpc" => {
            let trailers: HeaderMap = [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
            let frames = futures_util::stream::iter([
                Ok(Frame::data(Bytes::from_static(b"message"))),
                Ok(Frame::trailers(trailers)),
            ]);
            Response::builder()
                .header("content-type", "application/grpc")
                .body(StreamBody::new(frames).boxed_unsync())
                .unwrap()
        }
        _ => Response::new(full("ok")),
    })
}

async fn text(answer: Response<Body>) -> (StatusCode, String) {
    let (head, body) = answer.into_parts();
    (head.status, String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned())
}

#[tokio::test]
async fn s08_s28_http_arrives_without_credentials_and_redirects_are_not_followed() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let web = Web::start(None).await;
    world.service("web", "TCP", &[(web.addr, true)]);
    for round in 0..5 {
        let request = Request::post("/echo?a=%2f")
            .header("content-length", "5")
            .header("authorization", "Bearer stolen")
            .header("impersonate-user", "root")
            .header("x-remote-user", "root")
            .header("proxy-authorization", "x")
            .header("cookie", "own=1")
            .header("x-forwarded-user", "alice")
            .header("x-forwarded-for", "192.0.2.9")
            .body(body::full("hello"))
            .unwrap();
        let answer = world.send("svc/shop/web:80", Payload::Http, request).await.unwrap();
        assert_eq!(text(answer).await, (StatusCode::OK, "hello".to_owned()), "{round}");
    }
    let (version, target, headers) = web.last();
    assert_eq!((version, target.as_str()), (Version::HTTP_11, "/echo?a=%2f"));
    let mut names: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "content-length: 5",
            "cookie: own=1",
            "host: web.shop.svc:80",
            "x-forwarded-for: 192.0.2.9",
            "x-forwarded-user: alice"
        ]
    );
    assert_eq!(web.connections.load(Ordering::SeqCst), 1, "connections are kept");
    let away =
        world.send("svc/shop/web:80", Payload::Http, Request::get("/away").body(body::empty()).unwrap()).await.unwrap();
    assert_eq!(
        (away.status().as_u16(), &away.headers()["location"]),
        (302, &"http://169.254.169.254/latest".parse::<http::HeaderValue>().unwrap())
    );
    let (_, _, headers) = { web.last() };
    assert!(!headers.contains_key("transfer-encoding"), "a GET goes out without a body");
}

#[tokio::test]
async fn s29_websockets_pass_and_a_refused_upgrade_is_an_answer() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let web = Web::start(None).await;
    world.service("web", "TCP", &[(web.addr, true)]);
    let upgrade = |path: &str| {
        let mut request = Request::get(path).header("upgrade", "websocket").body(body::empty()).unwrap();
        request.extensions_mut().insert(WantsUpgrade);
        request
    };
    let answer = world.send("svc/shop/web:80", Payload::Http, upgrade("/socket")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = answer.extensions().get::<UpgradedIo>().unwrap().take().unwrap();
    io.write_all(b"ping").await.unwrap();
    io.flush().await.unwrap();
    let mut back = [0; 4];
    timeout(Duration::from_secs(10), io.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"ping");
    let refused = world.send("svc/shop/web:80", Payload::Http, upgrade("/closed")).await.unwrap();
    assert_eq!(text(refused).await, (StatusCode::FORBIDDEN, "no".to_owned()));
}

/// Requests of many callers over the same connections, among callers that leave in the middle of an answer or a request, and
/// upgrades that are refused: nobody is given what is somebody else's.
#[tokio::test]
async fn s33_interleaved_requests_get_their_own_answers() {
    const CALLERS: usize = 20;
    const EACH: usize = 500;
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let web = Web::start(None).await;
    world.service("web", "TCP", &[(web.addr, true)]);
    let send = |request: Request<Body>| world.send("svc/shop/web:80", Payload::Http, request);
    let caller = async |caller: usize| {
        for nth in 0..EACH {
            match (caller + nth) % 25 {
                // Gone before its answer is whole, with its connection.
                0 => drop(send(Request::get("/large").body(body::empty()).unwrap()).await.unwrap()),
                // A request that is cut short after its head.
                1 => {
                    let cut = futures_util::stream::iter([
                        Ok(Frame::data(Bytes::from_static(b"GET /own?smuggled HTTP/1.1\r\n\r\n"))),
                        Err(std::io::Error::other("gone")),
                    ]);
                    let request = Request::post("/echo").header("content-length", "100");
                    let answer = send(request.body(body::from(StreamBody::new(cut))).unwrap()).await;
                    assert!(answer.is_err(), "{answer:?}");
                }
                2 => {
                    let mut request = Request::get("/closed").header("upgrade", "websocket");
                    request.extensions_mut().unwrap().insert(WantsUpgrade);
                    let refused = send(request.body(body::empty()).unwrap()).await.unwrap();
                    assert_eq!(text(refused).await, (StatusCode::FORBIDDEN, "no".to_owned()));
                }
                _ => {}
            }
            let own = format!("/own?{caller}-{nth}");
            let answer = send(Request::get(&own).body(body::empty()).unwrap()).await.unwrap();
            assert_eq!(text(answer).await, (StatusCode::OK, own));
        }
    };
    let all = futures_util::future::join_all((0..CALLERS).map(caller));
    timeout(Duration::from_secs(240), all).await.expect("all are answered");
    let seen = web.seen.lock().unwrap();
    assert!(!seen.iter().any(|(_, uri, _)| uri.contains("smuggled")));
    let own = seen.iter().filter(|(_, uri, _)| uri.starts_with("/own")).count();
    assert_eq!(own, CALLERS * EACH);
    let connections = web.connections.load(Ordering::SeqCst);
    assert!(connections < own / 4, "{connections} connections were made");
}

#[tokio::test]
async fn grpc_goes_out_as_http2_and_its_trailers_come_back() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let web = Web::start(None).await;
    world.service("web", "TCP", &[(web.addr, true)]);
    let request = Request::post("/grpc").header("content-type", "application/grpc").header("te", "trailers");
    let answer = world.send("svc/shop/web:80", Payload::Http, request.body(body::full("ask")).unwrap()).await.unwrap();
    let whole = answer.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(&whole.to_bytes()[..], b"message");
    let (version, _, headers) = web.last();
    assert_eq!((version, &headers["te"]), (Version::HTTP_2, &"trailers".parse::<http::HeaderValue>().unwrap()));
}

#[tokio::test]
async fn tls_is_proved_by_the_clusters_authority_or_one_that_the_owner_names() {
    let (cluster, other) = (Authority::new(), Authority::new());
    let names = || vec![SanType::DnsName("web.shop.svc".try_into().unwrap())];
    let get = || Request::get("/").body(body::empty()).unwrap();
    let to = "svc/shop/web:80";
    let pem: String = other.pem().lines().map(|line| format!("      {line}\n")).collect();
    let named = format!("  services:\n    allowAddresses: ['127.0.0.0/8']\n    authorities: |\n{pem}");
    let unverified = "  services: {allowAddresses: ['127.0.0.0/8'], unverifiedTls: ['shop/web']}";
    for (issuer, policy, opens) in [
        (&cluster, LOOPBACK, true),
        (&other, LOOPBACK, false),
        (&other, named.as_str(), true),
        (&other, unverified, true),
    ] {
        let web = Web::start(Some(server_config(issuer.issue(names()), &[b"h2", b"http/1.1"]))).await;
        let world = World::new(&cluster, policy).await;
        world.service("web", "TCP", &[(web.addr, true)]);
        let (status, words) = text(world.send(to, Payload::Https, get()).await.unwrap()).await;
        if opens {
            assert_eq!((status, words.as_str()), (StatusCode::OK, "ok"));
            assert_eq!(web.last().0, Version::HTTP_2);
        } else {
            assert_eq!(status, StatusCode::BAD_GATEWAY);
            assert!(words.contains("TLSMismatch") && words.contains("services.authorities"), "{words}");
        }
    }
    // TLS where none is spoken, and none where it is.
    let world = World::new(&cluster, LOOPBACK).await;
    let (plain, tls) = (Web::start(None).await, Web::start(Some(server_config(cluster.issue(names()), &[]))).await);
    world.service("web", "TCP", &[(plain.addr, true)]);
    let (status, words) = text(world.send(to, Payload::Https, get()).await.unwrap()).await;
    assert!(status == StatusCode::BAD_GATEWAY && words.contains("TLSMismatch"), "{words}");
    world.service("api", "TCP", &[(tls.addr, true)]);
    let (status, words) = text(world.send("svc/shop/api:80", Payload::Http, get()).await.unwrap()).await;
    assert!(status == StatusCode::BAD_GATEWAY && words.contains("https:"), "{words}");
}

#[tokio::test]
async fn failures_over_http_are_statuses_of_their_own() {
    let authority = Authority::new();
    let world = World::new(&authority, LOOPBACK).await;
    let get = || Request::get("/").body(body::empty()).unwrap();
    let Err(WireError::Refused(refusal)) = world.send("svc/shop/none:80", Payload::Http, get()).await else { panic!() };
    assert_eq!(refusal.code, RefuseCode::NotFound);
    world.service("web", "TCP", &[(free_port().await, true)]);
    let (status, words) = text(world.send("svc/shop/web:80", Payload::Http, get()).await.unwrap()).await;
    assert!(status == StatusCode::BAD_GATEWAY && words.contains("ConnectionRefused"), "{words}");
}
