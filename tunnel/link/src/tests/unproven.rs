use super::*;
use crate::{
    QuicListener,
    tests::faults::{configs, soon},
    tls::tests::welcome,
};
use bytes::BytesMut;
use moorline_proto::id::SessionId;
use quinn::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};
use tokio::{net::UdpSocket, sync::mpsc, task::JoinSet};

/// As many as an attacker has addresses, and far more than may shake hands without a proof.
const STRANGERS: usize = 300;
/// RFC 9000 §8.1: what an address that proved nothing may be sent, for each byte that came from it.
const FOLD: usize = 3;

/// A byte of the token in a first packet (RFC 9000 §17.2.2): after flags, version, two connection IDs of 8 to 20 bytes with
/// their lengths, and the token's own length.
const IN_TOKEN: usize = 1 + 4 + 2 * (1 + 20) + 2;

/// Somebody who says hello and then only listens.
struct Stranger {
    socket: UdpSocket,
    endpoint: Endpoint,
    handle: ConnectionHandle,
    conn: Connection,
    /// What was sent, in bytes.
    said: usize,
}

impl Stranger {
    async fn new(hub: SocketAddr, tls: &Arc<rustls::ClientConfig>) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(Arc::clone(tls)).unwrap()));
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
        let (handle, conn) = endpoint.connect(Instant::now(), config, hub, "localhost").unwrap();
        let mut one = Self { socket, endpoint, handle, conn, said: 0 };
        let hello = one.words();
        one.say(hub, &hello).await;
        one
    }

    /// What it says next.
    fn words(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let said = self.conn.poll_transmit(Instant::now(), 1, &mut out).unwrap();
        assert_eq!(said.size, out.len());
        out
    }

    async fn say(&mut self, hub: SocketAddr, words: &[u8]) {
        self.said += self.socket.send_to(words, hub).await.unwrap();
    }

    /// What has come so far.
    fn heard(&self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        std::iter::from_fn(|| self.socket.try_recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())).collect()
    }

    /// Waits for a datagram and takes it in.
    async fn hears(&mut self, hub: SocketAddr) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let n = soon(self.socket.recv(&mut buffer)).await.unwrap();
        let (mut out, data) = (Vec::new(), BytesMut::from(&buffer[..n]));
        let event = self.endpoint.handle(Instant::now(), hub, None, None, data, &mut out);
        if let Some(DatagramEvent::ConnectionEvent(at, event)) = event {
            assert_eq!(at, self.handle);
            self.conn.handle_event(event);
        }
        buffer[..n].to_vec()
    }
}

/// Whether a packet is a Retry of QUIC 1 (RFC 9000 §17.2.5).
fn is_retry(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0xf0 == 0xf0)
}

async fn bind(limits: &Limits) -> (QuicListener, SocketAddr, Arc<rustls::ClientConfig>) {
    let (server, client) = configs();
    let (Listener::Quic(listener), _) = Listener::bind(Carrier::Quic, server, limits).await else { unreachable!() };
    let at = listener.local_addr().unwrap();
    (listener, at, client)
}

/// A hub that takes whom it can, and tells what became of each who got as far as a handshake.
fn serve(listener: QuicListener) -> (tokio::task::JoinHandle<()>, mpsc::Receiver<Result<Session, AcceptError>>) {
    let (done, outcomes) = mpsc::channel(2 * STRANGERS);
    let hub = tokio::spawn(async move {
        let mut greetings = JoinSet::new();
        while let Some(incoming) = listener.accept().await {
            let done = done.clone();
            greetings.spawn(async move {
                let greeted = async { incoming.greet().await?.welcome(SessionId(1), welcome()).await };
                let _ = done.send(greeted.await).await;
            });
        }
    });
    (hub, outcomes)
}

#[tokio::test]
async fn s59_addresses_that_prove_nothing_are_sent_little_and_hurt_nobody() {
    let limits = Limits { handshake: Duration::from_secs(3), ..Limits::default() };
    let (listener, at, client) = bind(&limits).await;
    let (hub, mut outcomes) = serve(listener);
    let address = crate::HubAddress { host: "127.0.0.1".into(), port: at.port() };
    let join = || async { soon(dial(&address, Carrier::Quic, Arc::clone(&client), hello(), &limits)).await.unwrap().0 };
    let before = join().await;
    let mut sessions = vec![outcomes.recv().await.unwrap().unwrap()];
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        strangers.push(Stranger::new(at, &client).await);
    }
    let during = join().await;
    soon(before.ping()).await.unwrap();
    soon(during.ping()).await.unwrap();
    // Handshakes that nobody goes on with end by themselves; until then they are what is sent again and again.
    let mut ended = 0;
    while sessions.len() < 2 || ended < limits.quic_retry_from {
        match soon(outcomes.recv()).await.unwrap() {
            Ok(session) => sessions.push(session),
            Err(_) => ended += 1,
        }
    }
    let mut retried = 0;
    for stranger in &strangers {
        soon(stranger.socket.readable()).await.unwrap();
        let heard = stranger.heard();
        let bytes: usize = heard.iter().map(Vec::len).sum();
        assert!((1..=FOLD * stranger.said).contains(&bytes), "{bytes} bytes for {}", stranger.said);
        retried += usize::from(is_retry(&heard[0]));
    }
    assert!(retried >= STRANGERS / 2, "{retried}: most had to prove their address first");
    soon(before.ping()).await.unwrap();
    hub.abort();
}

#[tokio::test]
async fn s59_a_token_is_good_for_the_address_that_earned_it_and_once() {
    let limits = Limits { quic_retry_from: 0, ..Limits::default() };
    let (listener, at, client) = bind(&limits).await;
    let accepted = async {
        // Who has not proved an address is answered in here and not seen.
        let (mut one, other) =
            (Stranger::new(at, &client).await, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        assert!(is_retry(&one.hears(at).await));
        let hello = one.words();
        // From elsewhere it opens nothing, and what comes back is no more than a refusal.
        other.send_to(&hello, at).await.unwrap();
        let refusal = soon(other.recv(&mut [0; 2048])).await.unwrap();
        assert!(refusal < hello.len(), "{refusal}");
        // Bent, it is none: a proof is asked for again.
        let mut bent = hello.clone();
        bent[IN_TOKEN] ^= 1;
        other.send_to(&bent, at).await.unwrap();
        let mut again = [0; 2048];
        let n = soon(other.recv(&mut again)).await.unwrap();
        assert!(is_retry(&again[..n]));
        // Twice from where it is good: one connection.
        one.say(at, &hello).await;
        one.say(at, &hello).await;
        let mut two = Stranger::new(at, &client).await;
        assert!(is_retry(&two.hears(at).await));
        let hello = two.words();
        two.say(at, &hello).await;
        (one.socket.local_addr().unwrap(), two.socket.local_addr().unwrap())
    };
    let seen = async {
        let first = listener.accept().await.unwrap();
        (first.remote(), listener.accept().await.unwrap().remote())
    };
    let (wanted, seen) = soon(async { tokio::join!(accepted, seen) }).await;
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn s59_a_token_that_is_too_old_proves_nothing() {
    let limits = Limits { quic_retry_from: 0, quic_retry_life: Duration::ZERO, ..Limits::default() };
    let (listener, at, client) = bind(&limits).await;
    let too_late = async {
        let mut one = Stranger::new(at, &client).await;
        assert!(is_retry(&one.hears(at).await));
        let hello = one.words();
        one.say(at, &hello).await;
        let refusal = one.hears(at).await;
        assert!(!is_retry(&refusal) && refusal.len() < hello.len());
    };
    tokio::select! {
        biased;
        seen = listener.accept() => panic!("{:?} was let in", seen.map(|one| one.remote())),
        () = soon(too_late) => {}
    }
}
