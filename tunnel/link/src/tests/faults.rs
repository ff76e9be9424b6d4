use super::*;
use crate::{
    CloseReason, QuicKeys, QuicListener,
    carrier::{Conn, Raw},
    control::{read_message, write_message},
    dial::shake_hands,
    testing::silent_session,
    tls::tests::welcome,
};
use moorline_proto::{codec::put_framed, id::SessionId};
use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    time::{Instant, timeout},
};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(LONG, what).await.expect("it takes too long")
}

/// Both sides' configurations, of one authority.
pub(super) fn configs() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let ca = Authority::new();
    let server = tls::server_config(&ca.identity(HUB), &ca.trust()).unwrap();
    (server, tls::client_config(&ca.identity(AGENT), &ca.trust()).unwrap())
}

/// A hub's session, and an agent that does only what the test does.
async fn bare_agent(carrier: Carrier) -> (Session, Conn, Raw, Listener) {
    let ((server, client), limits) = (configs(), Limits::default());
    let (listener, at) = Listener::bind(carrier, server, &limits).await;
    let greet = async { listener.greet().await.unwrap().welcome(SessionId(1), welcome()).await.unwrap() };
    let agent = async {
        let conn = shake_hands(&at, carrier, None, client, &limits).await.unwrap().conn;
        let mut control = conn.open(Class::Interactive).await.unwrap();
        write_message(&mut control, &Control::Hello(hello())).await.unwrap();
        assert!(matches!(read_message(&mut control).await.unwrap(), Control::Welcome(_)));
        (conn, control)
    };
    let (hub, (conn, control)) = soon(async { tokio::join!(greet, agent) }).await;
    (hub, conn, control, listener)
}

/// An agent's session, and a hub that does only what the test does.
async fn bare_hub(carrier: Carrier, limits: &Limits) -> (Session, Conn, Raw, Listener) {
    let (server, client) = configs();
    let (listener, at) = Listener::bind(carrier, server, limits).await;
    let greet = async {
        let mut greeting = listener.greet().await.unwrap();
        write_message(&mut greeting.control, &Control::Welcome(welcome())).await.unwrap();
        (greeting.conn, greeting.control)
    };
    let dialled = dial(&at, carrier, client, hello(), limits);
    let ((conn, control), agent) = soon(async { tokio::join!(greet, dialled) }).await;
    (agent.unwrap().0, conn, control, listener)
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_framed(&mut bytes, |out| {
        out.extend_from_slice(body);
        Ok(())
    })
    .unwrap();
    bytes
}

fn message(message: &Control) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    framed(&bytes)
}

/// Both sides name the same code, and agree on who ended it.
async fn ended_by_hub(hub: &Session, agent: &Conn) -> CloseCode {
    let (here, there): (CloseReason, CloseReason) = soon(async { tokio::join!(hub.closed(), agent.closed()) }).await;
    assert_eq!((here.by_peer, there.by_peer, here.code), (false, true, there.code), "{here:?} {there:?}");
    here.code
}

#[tokio::test]
async fn garbage_on_a_live_control_stream_ends_the_session_by_name() {
    for carrier in ALL {
        for (bytes, code) in [
            (vec![0xff; 4], CloseCode::TooLarge),
            (framed(&[0xff; 9]), CloseCode::Protocol),
            (framed(&[3 * 64 + 1]), CloseCode::Protocol),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), CloseCode::TooLarge),
            (message(&Control::Hello(hello())), CloseCode::Protocol),
            (message(&Control::Welcome(welcome())), CloseCode::Protocol),
            (message(&Control::Pong(4711)), CloseCode::Protocol),
        ] {
            let (hub, conn, mut control, _listener) = bare_agent(carrier).await;
            control.write_all(&bytes).await.unwrap();
            control.flush().await.unwrap();
            assert_eq!(ended_by_hub(&hub, &conn).await, code, "{carrier} {bytes:?}");
        }
        let (hub, conn, mut control, _listener) = bare_agent(carrier).await;
        control.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
        control.shutdown().await.unwrap();
        assert_eq!(ended_by_hub(&hub, &conn).await, CloseCode::Protocol, "{carrier}: half a message and no more");
    }
}

#[tokio::test]
async fn a_flood_of_messages_ends_the_session_by_name() {
    let burst = u64::from(Limits::default().control_burst);
    let pings: Vec<u8> = (0..=burst).flat_map(|n| message(&Control::Ping(n))).collect();
    let to_be_ignored = framed(&[0x7f, 0xfe]).repeat(2 * burst as usize);
    for carrier in ALL {
        for flood in [&pings, &to_be_ignored] {
            let (hub, conn, mut control, _listener) = bare_agent(carrier).await;
            let sent = async {
                let _ = control.write_all(flood).await; // the hub may cut it short
                let _ = control.flush().await;
            };
            let (code, ()) = tokio::join!(ended_by_hub(&hub, &conn), sent);
            assert_eq!(code, CloseCode::Flood, "{carrier}");
        }
    }
}

#[tokio::test]
async fn a_header_that_cannot_be_read_costs_one_stream() {
    let unknown_target = [0x03, 0x03, 0x03, 0x01, 0x20]; // target { kind 32 }
    for carrier in ALL {
        let (agent, conn, _control, _listener) = bare_hub(carrier, &Limits::default()).await;
        for (header, code) in [
            (&[0xff; 12][..], RefuseCode::BadHeader),
            (&[], RefuseCode::BadHeader),
            (&unknown_target[..], RefuseCode::UnknownTarget),
        ] {
            let mut raw = conn.open(Class::Interactive).await.unwrap();
            raw.write_all(&framed(header)).await.unwrap();
            raw.flush().await.unwrap();
            let mut verdict = [0; 1];
            soon(raw.read_exact(&mut verdict)).await.unwrap();
            assert_eq!(verdict, [1], "{carrier}");
            let refusal = Refusal::decode(&soon(crate::control::read_framed(&mut raw)).await.unwrap()).unwrap();
            assert_eq!(refusal.code, code, "{carrier} {header:?}");
        }
        let mut raw = conn.open(Class::Interactive).await.unwrap();
        let mut header = Vec::new();
        echo().encode(&mut header).unwrap();
        raw.write_all(&framed(&header)).await.unwrap();
        raw.flush().await.unwrap();
        assert_eq!(soon(agent.accept()).await.unwrap().header, echo(), "the session lives on");
    }
}

#[tokio::test]
async fn a_header_that_does_not_come_is_not_waited_for() {
    let limits = Limits { header: Duration::from_millis(100), pending_headers: 2, ..Limits::default() };
    for carrier in ALL {
        let (agent, conn, _control, _listener) = bare_hub(carrier, &limits).await;
        let mut slow = Vec::new();
        for _ in 0..5 {
            let mut raw = conn.open(Class::Interactive).await.unwrap();
            raw.write_all(&[0, 0]).await.unwrap();
            raw.flush().await.unwrap();
            slow.push(raw);
        }
        for raw in &mut slow {
            let error = soon(raw.read(&mut [0])).await.unwrap_err();
            assert_eq!(cause(error), StreamError::Reset(ResetCode::Idle), "{carrier}");
        }
        assert_eq!(agent.open_streams(), 0);
    }
}

#[tokio::test]
async fn a_slow_greeting_is_given_up_by_both_sides() {
    // Short for the side that waits, and not for the one that is to keep its time.
    let (limits, patient) = (Limits { hello: Duration::from_millis(500), ..Limits::default() }, Limits::default());
    for carrier in ALL {
        let (server, client) = configs();
        let (listener, at) = Listener::bind(carrier, Arc::clone(&server), &limits).await;
        // An agent that says half a hello.
        let agent = async {
            let conn = shake_hands(&at, carrier, None, client.clone(), &patient).await.unwrap().conn;
            let mut control = conn.open(Class::Interactive).await.unwrap();
            control.write_all(&[0, 0]).await.unwrap();
            control.flush().await.unwrap();
            conn.closed().await
        };
        let (greeted, reason) = soon(async { tokio::join!(listener.greet(), agent) }).await;
        assert!(matches!(greeted, Err(AcceptError::Timeout)), "{carrier}");
        assert_eq!((reason.code, reason.by_peer), (CloseCode::SlowHello, true), "{carrier}");
        // A hub that says nothing.
        let (listener, at) = Listener::bind(carrier, server, &patient).await;
        let dialled = dial(&at, carrier, client, hello(), &limits);
        let (greeted, dialled) = soon(async { tokio::join!(listener.greet(), dialled) }).await;
        assert!(matches!(dialled, Err(DialError::Timeout { phase: "greeting", .. })), "{carrier}");
        assert_eq!(soon(greeted.unwrap().conn.closed()).await.code, CloseCode::SlowHello, "{carrier}");
    }
}

#[tokio::test]
async fn a_port_that_says_nothing_is_given_up() {
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let (_, client) = configs();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (tcp, udp) = (TcpListener::bind(any).await.unwrap(), UdpSocket::bind(any).unwrap());
    for (carrier, at) in [(Carrier::Tls, tcp.local_addr().unwrap()), (Carrier::Quic, udp.local_addr().unwrap())] {
        let at = format!("127.0.0.1:{}", at.port()).parse().unwrap();
        let error = soon(shake_hands(&at, carrier, None, client.clone(), &limits)).await.err().unwrap();
        assert!(matches!(error, DialError::Timeout { phase: "handshake", .. }), "{carrier}: {error}");
    }
}

/// A hub that can be killed: it lives in a runtime of its own, and whatever it holds ends with that without a word.
struct Mortal {
    runtime: Runtime,
    held: (QuicListener, Session),
}

impl Mortal {
    /// A hub with these keys on this socket, and an agent's session with it.
    async fn with_agent(socket: &UdpSocket, keys: QuicKeys, limits: &Limits) -> (Self, Session) {
        let (server, client) = configs();
        let at = format!("127.0.0.1:{}", socket.local_addr().unwrap().port()).parse().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (socket, theirs) = (socket.try_clone().unwrap(), limits.clone());
        let hub = runtime.spawn(async move {
            let listener = QuicListener::bind(socket, server, keys, &theirs).unwrap();
            let greeting = listener.accept().await.unwrap().greet().await.unwrap();
            let session = greeting.welcome(SessionId(1), welcome()).await.unwrap();
            (listener, session)
        });
        let (agent, _) = soon(dial(&at, Carrier::Quic, client, hello(), limits)).await.unwrap();
        (Self { held: soon(hub).await.unwrap(), runtime }, agent)
    }

    /// Nothing is sent from here on: the tasks that would are gone before the handles.
    fn kill(self) {
        let Self { runtime, held } = self;
        let end = move || {
            runtime.shutdown_timeout(LONG);
            drop(held);
        };
        std::thread::spawn(end).join().unwrap(); // a runtime may not end within another
    }
}

/// The agent's own keep-alives are what tells it: it has nothing to say, and silence would take an hour.
#[tokio::test]
async fn f01_a_killed_hub_tells_of_it_in_its_next_life() {
    let (silence, keep_alive) = (Duration::from_secs(3600), Duration::from_millis(50));
    let limits = Limits { silence, keep_alive, ..Limits::default() };
    let (socket, keys) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), QuicKeys::new(&[1; 32]));
    let (hub, agent) = Mortal::with_agent(&socket, keys, &limits).await;
    hub.kill();
    let _next = QuicListener::bind(socket, configs().0, QuicKeys::new(&[1; 32]), &limits).unwrap();
    let reason = soon(agent.closed()).await;
    assert_eq!((reason.code, reason.by_peer), (CloseCode::Forgotten, true), "{reason:?}");
}

/// Whoever does not have the secret cannot end a session by a packet that names it.
#[tokio::test]
async fn another_hubs_word_ends_no_session() {
    let limits = Limits { keep_alive: Duration::from_millis(50), ..Limits::default() };
    let (socket, keys) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), QuicKeys::new(&[1; 32]));
    let (hub, agent) = Mortal::with_agent(&socket, keys, &limits).await;
    hub.kill();
    let _other = QuicListener::bind(socket, configs().0, QuicKeys::new(&[2; 32]), &limits).unwrap();
    tokio::time::pause();
    assert_eq!(agent.closed().await.code, CloseCode::Silent);
}

#[tokio::test]
async fn f08_a_peer_that_vanished_is_noticed_within_the_limit_on_quic() {
    let limits = Limits::default();
    let (socket, keys) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), QuicKeys::new(&[1; 32]));
    let (hub, agent) = Mortal::with_agent(&socket, keys, &limits).await;
    hub.kill();
    tokio::time::pause();
    noticed(&agent, &limits).await;
}

#[tokio::test(start_paused = true)]
async fn f08_a_peer_that_vanished_is_noticed_within_the_limit_on_the_mux() {
    let limits = Limits::default();
    let (agent, _peer) = silent_session(&limits);
    noticed(&agent, &limits).await;
}

async fn noticed(agent: &Session, limits: &Limits) {
    let begin = Instant::now();
    let reason = agent.closed().await;
    assert_eq!((reason.code, reason.by_peer), (CloseCode::Silent, false), "{reason:?}");
    // QUIC counts from its own first question that was not answered (RFC 9000 §10.1).
    let most = limits.silence + limits.keep_alive + Duration::from_secs(1);
    assert!(begin.elapsed() <= most, "{:?} took longer than {most:?}", begin.elapsed());
    assert!(matches!(agent.open(&echo()).await, Err(OpenError::Closed(_) | OpenError::Draining)));
}

/// What quinn lets a peer do that has our certificate and none of our manners.
#[tokio::test]
async fn s60_quic_grants_no_more_than_the_limits() {
    let ((server, client), limits) = (configs(), Limits::default());
    let (listener, at) = Listener::bind(Carrier::Quic, server, &limits).await;
    let (greeting, conn) = soon(async {
        tokio::join!(listener.greet(), async {
            let conn = shake_hands(&at, Carrier::Quic, None, client, &limits).await.unwrap().conn;
            let mut control = conn.open(Class::Interactive).await.unwrap();
            write_message(&mut control, &Control::Hello(hello())).await.unwrap();
            (conn, control)
        })
    })
    .await;
    let _greeting = greeting.unwrap();
    let Conn::Quic(quic) = &conn.0 else { panic!("QUIC was dialled") };
    let quic = quic.bare();
    assert_eq!(quic.max_datagram_size(), None, "datagrams");
    let mut streams = Vec::new();
    for _ in 1..limits.streams_to_hub {
        streams.push(soon(quic.open_bi()).await.unwrap());
    }
    tokio::time::pause();
    let wait = Duration::from_secs(5);
    assert!(timeout(wait, quic.open_bi()).await.is_err(), "one stream more than permitted");
    assert!(timeout(wait, quic.open_uni()).await.is_err(), "unidirectional streams");
}
