//! Sessions over real sockets, each scene on every carrier.

use crate::{AcceptError, DialError, dial, tls};
use crate::{
    Carrier, Limits, OpenError, Session, Stream, StreamError,
    mux::{self, MuxHandle, MuxRole},
    splice::{SpliceError, splice},
    testing::session_pair,
    tls::tests::{AGENT, Authority, HUB, Listener, connected, hello},
};
use moorline_proto::{
    code::{CloseCode, RefuseCode, ResetCode},
    control::{Control, Goodbye},
    header::{Class, Refusal, StreamHeader, Target},
};
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a live session gets from a peer that breaks the rules, or is gone.
mod faults;
/// Networks that nobody would want, on simulated time.
mod simulated;
/// Readers that stand still.
mod stalled;
/// Addresses that nobody has proved.
mod unproven;

const ALL: [Carrier; 3] = [Carrier::Tls, Carrier::Quic, Carrier::WebSocket];

fn echo() -> StreamHeader {
    StreamHeader { target: Target::Echo, class: Class::Interactive, deadline_ms: 0, traceparent: None, principal: None }
}

async fn pair(carrier: Carrier) -> (Session, Session, Listener) {
    connected(carrier, &Limits::default()).await
}

/// A stream from the hub, accepted by the agent.
async fn stream(hub: &Session, agent: &Session) -> (Stream, Stream) {
    let opened = hub.open(&echo()).await.unwrap();
    let incoming = agent.accept().await.unwrap();
    assert_eq!(incoming.header, echo());
    (opened, incoming.accept())
}

fn cause(error: std::io::Error) -> StreamError {
    StreamError::of(&error).cloned().unwrap()
}

#[tokio::test]
async fn bytes_go_both_ways_and_end_one_way_at_a_time() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        assert_eq!((hub.carrier(), hub.hello().unwrap().facts.len()), (carrier, 1));
        let (mut a, mut b) = stream(&hub, &agent).await;
        a.write_all(b"question").await.unwrap();
        a.shutdown().await.unwrap();
        let mut seen = Vec::new();
        b.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"question");
        b.write_all(b"answer").await.unwrap();
        b.shutdown().await.unwrap();
        seen.clear();
        a.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"answer");
        let (mut a, mut b) = stream(&hub, &agent).await;
        let big = vec![7; 5 << 20];
        let (written, ()) = tokio::join!(
            async {
                b.write_all(&big).await.unwrap();
                b.shutdown().await.unwrap();
                big.len()
            },
            async {
                let mut seen = Vec::new();
                a.read_to_end(&mut seen).await.unwrap();
                assert!(seen.len() == 5 << 20 && seen.iter().all(|&b| b == 7));
            },
        );
        assert_eq!(written, 5 << 20);
        assert!(hub.ping().await.unwrap() < Duration::from_secs(5));
        assert!(agent.ping().await.is_ok());
    }
}

#[tokio::test]
async fn a_reset_is_never_an_end_of_input() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let (mut a, mut b) = stream(&hub, &agent).await;
        b.write_all(b"x").await.unwrap();
        a.accepted().await.unwrap();
        b.reset(ResetCode::Broken);
        assert_eq!(cause(a.read_to_end(&mut Vec::new()).await.unwrap_err()), StreamError::Reset(ResetCode::Broken));
        let (a, mut b) = stream(&hub, &agent).await;
        drop(a);
        assert_eq!(cause(b.read_to_end(&mut Vec::new()).await.unwrap_err()), StreamError::Reset(ResetCode::Cancelled));
    }
}

#[tokio::test]
async fn giving_up_is_heard_by_a_side_that_has_read_everything() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let mut a = hub.open(&echo()).await.unwrap();
        a.write_all(b"question").await.unwrap();
        a.shutdown().await.unwrap();
        let mut b = agent.accept().await.unwrap().accept_quietly();
        b.read_to_end(&mut Vec::new()).await.unwrap();
        let mut cut = poll_fn(|cx| b.poll_cut(cx));
        assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut cut).poll(cx))).await.is_pending(), "the opener still waits");
        drop(a);
        assert_eq!(cut.await, StreamError::Reset(ResetCode::Cancelled));
        let (_a, mut b) = stream(&hub, &agent).await;
        hub.close(CloseCode::Shutdown, "enough");
        assert_eq!(poll_fn(|cx| b.poll_cut(cx)).await, StreamError::Lost);
    }
}

#[tokio::test]
async fn an_acceptor_that_answers_at_once_says_so_with_its_first_bytes() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let mut a = hub.open(&echo()).await.unwrap();
        let mut b = agent.accept().await.unwrap().accept_quietly();
        assert!(poll_fn(|cx| Poll::Ready(pin!(b.read(&mut [0])).poll(cx).is_pending())).await);
        hub.ping().await.unwrap(); // whatever was said would be here by now
        assert!(poll_fn(|cx| Poll::Ready(pin!(a.accepted()).poll(cx).is_pending())).await, "nothing was said yet");
        b.write_all(b"answer").await.unwrap();
        b.shutdown().await.unwrap();
        let mut seen = Vec::new();
        a.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"answer");
    }
}

#[tokio::test]
async fn a_refusal_ends_one_stream_and_says_why() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let refusal = Refusal { code: RefuseCode::Policy, message: "no".into(), retry_elsewhere: true };
        for _ in 0..3 {
            let mut opened = hub.open(&echo()).await.unwrap();
            let incoming = agent.accept().await.unwrap();
            let (seen, ()) = tokio::join!(
                async {
                    opened.write_all(b"early").await.unwrap_or(());
                    opened.accepted().await.unwrap_err()
                },
                incoming.refuse(refusal.clone()),
            );
            assert_eq!(seen, StreamError::Refused(refusal.clone()));
            assert_eq!(cause(opened.read(&mut [0]).await.unwrap_err()), StreamError::Refused(refusal.clone()));
        }
        let (mut a, mut b) = stream(&hub, &agent).await;
        b.write_all(b"still here").await.unwrap();
        b.shutdown().await.unwrap();
        let mut seen = String::new();
        a.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "still here");
    }
}

#[tokio::test]
async fn an_acceptor_that_only_reads_has_said_yes() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let (mut a, mut b) = stream(&hub, &agent).await;
        let mut seen = String::new();
        let (accepted, read) = tokio::join!(
            async {
                a.accepted().await.unwrap();
                a.write_all(b"after the verdict").await.unwrap();
                a.shutdown().await
            },
            b.read_to_string(&mut seen),
        );
        accepted.unwrap();
        assert_eq!((read.unwrap(), seen.as_str()), (17, "after the verdict"));
    }
}

#[tokio::test]
async fn a_thousand_streams_and_nothing_left() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let serve = async {
            for _ in 0..1000 {
                let mut stream = agent.accept().await.unwrap().accept();
                let mut byte = [0];
                stream.read_exact(&mut byte).await.unwrap();
                stream.write_all(&byte).await.unwrap();
                stream.shutdown().await.unwrap();
                assert_eq!(stream.read(&mut byte).await.unwrap(), 0);
            }
        };
        let ask = async {
            for n in 0..1000 {
                let mut stream = hub.open(&echo()).await.unwrap();
                stream.write_all(&[n as u8]).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut seen = Vec::new();
                stream.read_to_end(&mut seen).await.unwrap();
                assert_eq!(seen, [n as u8]);
            }
        };
        tokio::join!(serve, ask);
        assert_eq!((hub.open_streams(), agent.open_streams()), (0, 0));
    }
}

#[tokio::test]
async fn more_streams_than_were_permitted_at_first() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let mut held = Vec::new();
        for _ in 0..1000 {
            held.push(stream(&hub, &agent).await);
        }
        assert_eq!((hub.open_streams(), agent.open_streams()), (1000, 1000));
    }
}

#[tokio::test]
async fn an_agent_that_opens_a_stream_is_cut() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let _stream = agent.open(&echo()).await.unwrap();
        let (at_hub, at_agent) = (hub.closed().await, agent.closed().await);
        assert_eq!((at_hub.code, at_hub.by_peer), (CloseCode::ForbiddenStream, false), "{carrier}");
        assert_eq!((at_agent.code, at_agent.by_peer), (CloseCode::ForbiddenStream, true), "{carrier}");
        assert!(hub.accept().await.is_none());
    }
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_then_closes() {
    for carrier in ALL {
        for by_hub in [true, false] {
            let (hub, agent, _listener) = pair(carrier).await;
            let (mut a, mut b) = stream(&hub, &agent).await;
            let (one, other) = if by_hub { (&hub, &agent) } else { (&agent, &hub) };
            one.drain(Duration::from_secs(30));
            assert!(other.peer_draining().await <= Duration::from_secs(30));
            assert_eq!(hub.open(&echo()).await.unwrap_err(), OpenError::Draining);
            a.write_all(b"late").await.unwrap();
            a.shutdown().await.unwrap();
            let mut seen = Vec::new();
            b.read_to_end(&mut seen).await.unwrap();
            b.shutdown().await.unwrap();
            a.read_to_end(&mut seen).await.unwrap();
            drop((a, b));
            let (here, there) = (one.closed().await, other.closed().await);
            assert_eq!((here.code, here.by_peer), (CloseCode::Shutdown, false), "{carrier}");
            assert_eq!((there.code, there.by_peer), (CloseCode::Shutdown, true), "{carrier}");
        }
    }
}

#[tokio::test]
async fn closing_tells_code_and_streams() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let (_a, mut b) = stream(&hub, &agent).await;
        hub.close(CloseCode::Replaced, "a newer one");
        let reason = agent.closed().await;
        assert_eq!((reason.code, reason.by_peer), (CloseCode::Replaced, true));
        assert_eq!(cause(b.read_to_end(&mut Vec::new()).await.unwrap_err()), StreamError::Lost);
        assert!(matches!(agent.open(&echo()).await, Err(OpenError::Closed(_))));
        assert!(agent.recv().await.is_none());
        let (hub, agent, _listener) = pair(carrier).await;
        drop(agent);
        assert_eq!(hub.closed().await.code, CloseCode::Normal);
    }
}

#[tokio::test]
async fn messages_reach_the_other_side_only_in_their_direction() {
    for carrier in ALL {
        let (hub, agent, _listener) = pair(carrier).await;
        let facts = Control::Facts(vec![("kubernetesVersion".into(), "v1.36".into())]);
        agent.send(facts.clone()).await.unwrap();
        assert_eq!(hub.recv().await, Some(facts.clone()));
        assert!(hub.send(facts).await.is_err());
        assert_eq!(agent.closed().await.code, CloseCode::Internal);
    }
}

#[tokio::test]
async fn pairs_in_memory_work_the_same() {
    let (hub, agent) = session_pair();
    let (mut a, b) = stream(&hub, &agent).await;
    let (near, mut far) = tokio::io::duplex(64);
    let spliced = splice(b, near, Duration::from_secs(5));
    let talk = async {
        a.write_all(b"through").await.unwrap();
        a.shutdown().await.unwrap();
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        far.write_all(&seen).await.unwrap();
        far.shutdown().await.unwrap();
        let mut back = Vec::new();
        a.read_to_end(&mut back).await.unwrap();
        assert_eq!((seen.as_slice(), back.as_slice()), (&b"through"[..], &b"through"[..]));
    };
    let (moved, ()) = tokio::join!(spliced, talk);
    let moved = moved.unwrap();
    assert_eq!((moved.a_to_b, moved.b_to_a), (7, 7));
}

#[tokio::test(start_paused = true)]
async fn a_silent_splice_ends() {
    let ((a, _x), (b, _y)) = (tokio::io::duplex(64), tokio::io::duplex(64));
    assert!(matches!(splice(a, b, Duration::from_secs(60)).await, Err(SpliceError::Idle)));
}

/// A hub on TLS that greets one connection, and a mux that an agent's certificate opened to it.
async fn raw_agent() -> (Result<crate::Greeting, AcceptError>, MuxHandle, Vec<u8>, CloseCode) {
    raw_agent_saying(&[0, 1, 0, 1]).await
}
async fn raw_agent_saying(bytes: &[u8]) -> (Result<crate::Greeting, AcceptError>, MuxHandle, Vec<u8>, CloseCode) {
    let ca = Authority::new();
    let limits = Limits::default();
    let server = tls::server_config(&ca.identity(HUB), &ca.trust()).unwrap();
    let client = tls::client_config(&ca.identity(AGENT), &ca.trust()).unwrap();
    let (listener, at) = Listener::bind(Carrier::Tls, server, &limits).await;
    let agent = async {
        let socket = tokio::net::TcpStream::connect((at.host.as_str(), at.port)).await.unwrap();
        let name = "hub".try_into().unwrap();
        let conn = tokio_rustls::TlsConnector::from(client).connect(name, socket).await.unwrap();
        let mux = mux::spawn(conn, MuxRole::Client, &limits);
        let mut control = mux.open(Class::Interactive).unwrap();
        control.write_all(bytes).await.unwrap();
        let mut seen = Vec::new();
        let _ = control.read_to_end(&mut seen).await;
        let code = mux.closed().await.code;
        (mux, seen, code)
    };
    let (greeted, (mux, seen, code)) = tokio::join!(listener.greet(), agent);
    (greeted, mux, seen, code)
}

#[tokio::test]
async fn a_hello_that_is_none_is_told_so() {
    let (greeted, _, _, code) = raw_agent().await;
    assert!(greeted.is_err());
    assert_eq!(code, CloseCode::TooLarge);
    for garbage in [&[0, 0, 0, 1, 0xff][..], &[0, 0, 0, 2, 9, 9], b"GET / HTTP/1.1"] {
        let (greeted, _, _, code) = raw_agent_saying(garbage).await;
        assert!(greeted.is_err());
        assert!(matches!(code, CloseCode::Protocol | CloseCode::TooLarge), "{code}");
    }
}

#[tokio::test]
async fn an_agent_hears_why_and_for_how_long_it_is_refused() {
    let (ca, limits) = (Authority::new(), Limits::default());
    for carrier in ALL {
        let server = tls::server_config(&ca.identity(HUB), &ca.trust()).unwrap();
        let client = tls::client_config(&ca.identity(AGENT), &ca.trust()).unwrap();
        let (listener, at) = Listener::bind(carrier, server, &limits).await;
        let goodbye = Goodbye { code: CloseCode::Busy, message: "later".into(), retry_after_ms: 1500 };
        let refuse = async { listener.greet().await.unwrap().refuse(goodbye.clone()).await };
        let ((), dialled) = tokio::join!(refuse, dial(&at, carrier, client.clone(), hello(), &limits));
        let error = dialled.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
        assert!(matches!(error, DialError::Refused(heard) if heard == goodbye));

        let mut future = hello();
        (future.min_version, future.max_version) = (2, 3);
        let (greeted, dialled) = tokio::join!(listener.greet(), dial(&at, carrier, client, future, &limits));
        assert!(matches!(greeted, Err(AcceptError::Version { min: 2, max: 3, ours: 1 })));
        assert!(matches!(dialled, Err(DialError::Refused(Goodbye { code: CloseCode::Version, .. }))));
    }
}

#[test]
fn quic_runs_on_our_limits() {
    let config = format!("{:?}", crate::quic::transport(&Limits::default(), 256).unwrap());
    for setting in [
        "max_concurrent_bidi_streams: 256",
        "max_concurrent_uni_streams: 0",
        "stream_receive_window: 2097152",
        "receive_window: 33554432",
        "send_window: 8388608",
        "crypto_buffer_size: 16384",
        "datagram_receive_buffer_size: None",
    ] {
        assert!(config.contains(setting), "{setting} is not in {config}");
    }
}
