//! Real QUIC connections on virtual time, through one bottleneck: what each gets of it.

use super::ModelConfig;
use crate::{
    Limits, quic,
    tls::{
        self,
        tests::{AGENT, Authority, HUB},
    },
};
use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, ServerConfig,
    StreamEvent, StreamId, Transmit,
    congestion::{BbrConfig, ControllerFactory, CubicConfig},
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    Ours,
    Cubic,
    Bbr,
}

/// The path.
#[derive(Debug, Clone, Copy)]
struct Path {
    /// Bits a second.
    rate: f64,
    /// There and back.
    rtt: Duration,
    /// Bytes that wait in front of it.
    queue: f64,
    loss: f64,
    /// How long a host is busy with what it was given at once: what comes meanwhile is handled together.
    busy: Duration,
}

/// A host that is busy now and then.
#[derive(Debug, Clone, Copy)]
struct Host {
    began: Instant,
    /// Something came meanwhile.
    more: bool,
}

impl Host {
    /// When what arrives at this time is handled.
    fn handles(&mut self, arrives: Instant, busy: Duration) -> Instant {
        while self.more && self.began + busy <= arrives {
            (self.began, self.more) = (self.began + busy, false);
        }
        if self.began + busy <= arrives {
            self.began = arrives;
            return arrives;
        }
        self.more = true;
        self.began + busy
    }
}

/// What a flow came to, after the first `warm` of the time.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// Share of the bottleneck's rate that arrived.
    share: f64,
    /// Mean wait in the queue of its packets.
    wait: Duration,
    /// Share of its packets that did not arrive.
    lost: f64,
}

struct Peer {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
}

struct Flow {
    /// Who sends, who receives.
    peers: [Peer; 2],
    stream: Option<StreamId>,
    received: u64,
    sent_packets: u64,
    lost_packets: u64,
    waited: Duration,
}

const ADDRESSES: [&str; 2] = ["10.0.0.1:1", "10.0.0.2:1"];

fn address(side: usize) -> SocketAddr {
    ADDRESSES[side].parse().unwrap()
}

fn flow(with: With, seed: u8, now: Instant) -> Flow {
    let (server, client) = configs();
    let controller: Arc<dyn ControllerFactory + Send + Sync> = match with {
        With::Ours => Arc::new(ModelConfig),
        With::Cubic => Arc::new(CubicConfig::default()),
        With::Bbr => Arc::new(BbrConfig::default()),
    };
    let limits = Limits::default();
    let mut transport = quic::transport(&limits, 16).unwrap();
    transport.congestion_controller_factory(controller);
    let transport = Arc::new(transport);
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
    server.transport_config(transport.clone());
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    client.transport_config(transport);
    let endpoint = |server, seed| {
        let mut config = EndpointConfig::default();
        config.rng_seed(Some([seed; 32]));
        Endpoint::new(Arc::new(config), server, true, None)
    };
    let mut sender = Peer { endpoint: endpoint(None, seed), connection: None };
    sender.connection = Some(sender.endpoint.connect(now, client, address(1), "localhost").unwrap());
    let receiver = Peer { endpoint: endpoint(Some(Arc::new(server)), seed ^ 0x80), connection: None };
    Flow {
        peers: [sender, receiver],
        stream: None,
        received: 0,
        sent_packets: 0,
        lost_packets: 0,
        waited: Duration::ZERO,
    }
}

fn configs() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let authority = Authority::new();
    let server = tls::server_config(&authority.identity(HUB), &authority.trust()).unwrap();
    (server, tls::client_config(&authority.identity(AGENT), &authority.trust()).unwrap())
}

/// When, in which order, of which flow, to which side, what.
type Due = Reverse<(Instant, u64, usize, usize, Vec<u8>)>;

struct World {
    begin: Instant,
    now: Instant,
    path: Path,
    busy_until: Instant,
    dice: u64,
    order: u64,
    waiting: BinaryHeap<Due>,
    hosts: [Host; 2],
    flows: Vec<Flow>,
    warm: Instant,
}

impl World {
    fn chance(&mut self, share: f64) -> bool {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.dice >> 33) as f64 / (1u64 << 31) as f64) < share
    }

    fn transmit(&mut self, flow: usize, from: usize, bytes: &[u8]) {
        let size = bytes.len() as f64 + 28.0;
        let counts = from == 0 && self.warm <= self.now;
        self.flows[flow].sent_packets += u64::from(counts);
        let mut leaves = self.now;
        if from == 0 {
            // Only one direction is narrow.
            let wait = self.busy_until.saturating_duration_since(self.now);
            let full = wait.as_secs_f64() * self.path.rate / 8.0 + size > self.path.queue;
            let lost = self.chance(self.path.loss);
            if full || lost {
                self.flows[flow].lost_packets += u64::from(counts);
                return;
            }
            self.flows[flow].waited += if counts { wait } else { Duration::ZERO };
            leaves = self.busy_until.max(self.now) + Duration::from_secs_f64(size * 8.0 / self.path.rate);
            self.busy_until = leaves;
        }
        self.order += 1;
        let arrives = self.hosts[1 - from].handles(leaves + self.path.rtt / 2, self.path.busy);
        self.waiting.push(Reverse((arrives, self.order, flow, 1 - from, bytes.to_vec())));
    }

    /// Lets one peer do all that it can do now.
    fn work(&mut self, flow: usize, side: usize) {
        let now = self.now;
        let mut out = Vec::new();
        {
            let Flow { peers, stream, received, .. } = &mut self.flows[flow];
            let Peer { endpoint, connection } = &mut peers[side];
            let Some((handle, connection)) = connection else { return };
            if connection.poll_timeout().is_some_and(|due| due <= now) {
                connection.handle_timeout(now);
            }
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(event) = endpoint.handle_event(*handle, event) {
                    connection.handle_event(event);
                }
            }
            while let Some(event) = connection.poll() {
                match event {
                    Event::Connected if side == 0 => *stream = connection.streams().open(Dir::Bi),
                    Event::Stream(StreamEvent::Opened { .. }) => {
                        *stream = stream.or(connection.streams().accept(Dir::Bi))
                    }
                    _ => {}
                }
            }
            if let Some(id) = *stream {
                if side == 0 {
                    let piece = [0; 16 << 10];
                    while connection.send_stream(id).write(&piece).is_ok_and(|written| written == piece.len()) {}
                } else {
                    let mut got = 0;
                    if let Ok(mut chunks) = connection.recv_stream(id).read(false) {
                        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                            got += chunk.bytes.len() as u64;
                        }
                        let _ = chunks.finalize();
                    }
                    *received += if self.warm <= now { got } else { 0 };
                }
            }
            let mut buffer = Vec::new();
            while let Some(Transmit { size, segment_size, .. }) = connection.poll_transmit(now, 10, &mut buffer) {
                let bytes = &buffer[..size];
                out.extend(bytes.chunks(segment_size.unwrap_or(size)).map(<[u8]>::to_vec));
                buffer.clear();
            }
        }
        for bytes in out {
            self.transmit(flow, side, &bytes);
        }
    }

    fn deliver(&mut self, flow: usize, side: usize, bytes: &[u8]) {
        let now = self.now;
        let peer = &mut self.flows[flow].peers[side];
        let mut answer = Vec::new();
        match peer.endpoint.handle(now, address(1 - side), None, None, BytesMut::from(bytes), &mut answer) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut peer.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                peer.connection = peer.endpoint.accept(incoming, now, &mut answer, None).ok();
            }
            _ => {}
        }
        self.work(flow, side);
    }

    fn run(&mut self, long: Duration) {
        let end = self.begin + long;
        for flow in 0..self.flows.len() {
            self.work(flow, 0);
        }
        loop {
            let mut next = self.waiting.peek().map(|Reverse((at, ..))| *at);
            let mut timer = None;
            for (flow, all) in self.flows.iter_mut().enumerate() {
                for (side, peer) in all.peers.iter_mut().enumerate() {
                    if let Some(at) = peer.connection.as_mut().and_then(|(_, connection)| connection.poll_timeout())
                        && next.is_none_or(|next| at < next)
                    {
                        (next, timer) = (Some(at), Some((flow, side)));
                    }
                }
            }
            let Some(at) = next else { return };
            if end <= at {
                return;
            }
            self.now = self.now.max(at);
            match timer {
                Some((flow, side)) => self.work(flow, side),
                None => {
                    if let Some(Reverse((_, _, flow, side, bytes))) = self.waiting.pop() {
                        self.deliver(flow, side, &bytes);
                    }
                }
            }
        }
    }
}

/// Lets the flows use the path for `long`, and measures the second half.
fn race(path: Path, flows: &[With], long: Duration) -> Vec<Outcome> {
    let begin = Instant::now();
    let all = flows.iter().zip(1..).map(|(with, seed)| flow(*with, seed, begin)).collect();
    let mut world = World {
        begin,
        now: begin,
        path,
        busy_until: begin,
        dice: 42,
        order: 0,
        waiting: BinaryHeap::new(),
        hosts: [Host { began: begin, more: false }; 2],
        flows: all,
        warm: begin + long / 2,
    };
    world.run(long);
    let measured = (long / 2).as_secs_f64();
    let outcome = |flow: &Flow| Outcome {
        share: flow.received as f64 * 8.0 / measured / path.rate,
        wait: flow.waited / u32::try_from(flow.sent_packets.max(1)).unwrap(),
        lost: flow.lost_packets as f64 / flow.sent_packets.max(1) as f64,
    };
    world.flows.iter().map(outcome).collect()
}

fn path(mbit: f64, rtt: u64, queue: f64, loss: f64) -> Path {
    let rate = mbit * 1e6;
    let holds = rate / 8.0 * rtt as f64 / 1e3;
    Path { rate, rtt: Duration::from_millis(rtt), queue: holds * queue, loss, busy: Duration::ZERO }
}

/// `cargo test -p moorline-link --lib congestion::sim::table -- --ignored --nocapture`
#[test]
#[ignore = "prints, for whoever works on the controller"]
fn table() {
    let secs = Duration::from_secs(16);
    for (name, path) in [
        ("20 Mbit/s 50 ms, 1 BDP", path(20.0, 50, 1.0, 0.0)),
        ("20 Mbit/s 50 ms, 1 BDP, 1 %", path(20.0, 50, 1.0, 0.01)),
        ("20 Mbit/s 50 ms, 1 BDP, 5 %", path(20.0, 50, 1.0, 0.05)),
        ("20 Mbit/s 50 ms, 1 BDP, 20 %", path(20.0, 50, 1.0, 0.2)),
        ("20 Mbit/s 200 ms, 0.3 BDP", path(20.0, 200, 0.3, 0.0)),
        ("2 Mbit/s 30 ms, 8 BDP", path(2.0, 30, 8.0, 0.0)),
    ] {
        for with in [With::Ours, With::Cubic, With::Bbr] {
            println!("{name}: {with:?} {:?}", race(path, &[with], secs));
        }
    }
    for queue in [0.5, 1.0, 2.0, 4.0] {
        println!(
            "beside CUBIC, {queue} BDP: {:?}",
            race(path(20.0, 40, queue, 0.0), &[With::Ours, With::Cubic], secs * 2)
        );
    }
    println!("two of ours: {:?}", race(path(20.0, 40, 1.0, 0.0), &[With::Ours, With::Ours], secs));
    println!("100 Mbit/s: {:?}", race(path(100.0, 50, 1.6, 0.01), &[With::Ours], secs / 2));
}

const LONG: Duration = Duration::from_secs(10);

/// quinn's own controllers: CUBIC keeps an eighth of this link, and BBR as much as ours behind a queue three times as long.
#[test]
fn f12_one_lost_packet_in_a_hundred_costs_nothing() {
    let [ours] = race(path(20.0, 50, 1.0, 0.01), &[With::Ours], LONG)[..] else { panic!() };
    // A packet of 1,452 bytes carries 1,400 and 28 of IP and UDP: 0.95 is all there is.
    assert!(0.87 < ours.share && ours.wait < Duration::from_millis(25), "{ours:?}");
    let [cubic] = race(path(20.0, 50, 1.0, 0.01), &[With::Cubic], LONG)[..] else { panic!() };
    assert!(cubic.share * 4.0 < ours.share, "{cubic:?}");
}

#[test]
fn f12_one_lost_packet_in_five_costs_little_more() {
    let [ours] = race(path(20.0, 50, 1.0, 0.2), &[With::Ours], LONG)[..] else { panic!() };
    assert!(0.6 < ours.share, "{ours:?}");
}

/// Where hardly anything can wait, asking for too much would lose it, and others' packets with it.
#[test]
fn a_short_queue_is_not_run_over() {
    let [ours] = race(path(20.0, 100, 0.3, 0.0), &[With::Ours], LONG)[..] else { panic!() };
    assert!(0.8 < ours.share && ours.lost < 0.03, "{ours:?}");
    let [bbr] = race(path(20.0, 100, 0.3, 0.0), &[With::Bbr], LONG)[..] else { panic!() };
    assert!(ours.lost * 3.0 < bbr.lost, "{bbr:?}");
}

#[test]
fn cubic_and_ours_leave_each_other_a_fair_share() {
    for queue in [0.5, 1.0, 2.0] {
        let [ours, cubic] = race(path(10.0, 40, queue, 0.0), &[With::Ours, With::Cubic], LONG * 2)[..] else {
            panic!()
        };
        assert!(0.25 < ours.share && 0.3 < cubic.share, "{queue}: {ours:?} {cubic:?}");
        assert!(0.8 < ours.share + cubic.share, "{queue}: {ours:?} {cubic:?}");
    }
}

/// Two processes on one machine: what the path holds by rate and round trip is a packet or two, and the other host
/// handles many at once.
#[test]
fn a_very_short_path_does_not_run_dry() {
    let (rtt, busy) = (Duration::from_micros(40), Duration::from_micros(400));
    let short = Path { rate: 200e6, rtt, queue: 512e3, loss: 0.0, busy };
    let [ours] = race(short, &[With::Ours], LONG / 10)[..] else { panic!() };
    assert!(0.93 < ours.share, "{ours:?}");
}

#[test]
fn two_of_ours_share() {
    let [one, other] = race(path(10.0, 40, 1.0, 0.01), &[With::Ours, With::Ours], LONG * 2)[..] else { panic!() };
    assert!(0.3 < one.share && 0.3 < other.share && 0.8 < one.share + other.share, "{one:?} {other:?}");
}
