//! Two ends of a session, a carrier between them that delivers when it likes, and any order of calls: bytes arrive exact
//! and in order, an end is an end, memory stays within its budgets, and nobody is blamed.

use bytes::BytesMut;
use moorline_proto::{
    code::{CloseCode, ResetCode},
    header::Class,
    mux::{Mux, MuxLimits, Outgoing, Read, Role, StreamKey},
};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

const BUDGET: usize = 400_000;
const SEND_BUDGET: usize = 200_000;
/// Streams that one end holds.
const HELD: usize = 6;

/// One direction of a stream.
#[derive(Default)]
struct Flow {
    written: usize,
    read: usize,
    finished: bool,
}

struct World {
    ends: [Mux; 2],
    held: [Vec<StreamKey>; 2],
    /// On the way to the end of this number.
    wire: [BytesMut; 2],
    inputs: [BytesMut; 2],
    /// By stream and writer.
    flows: HashMap<(u32, usize), Flow>,
    cut: HashSet<u32>,
    going: bool,
    now: Duration,
}

/// The byte at `at` of what `writer` writes on stream `id`.
fn pattern(id: u32, writer: usize, at: usize) -> u8 {
    (at.wrapping_mul(31) + id as usize * 7 + writer * 3 + (at >> 8)) as u8
}

/// Three bytes are one call: what, at which stream, how much.
pub fn run(data: &[u8]) {
    let limits = MuxLimits { session_buffer_budget: BUDGET, session_send_budget: SEND_BUDGET, ..MuxLimits::default() };
    let now = Duration::from_secs(1000);
    let mut world = World {
        ends: [Mux::new(Role::Client, limits.clone(), now), Mux::new(Role::Server, limits, now)],
        held: Default::default(),
        wire: Default::default(),
        inputs: Default::default(),
        flows: HashMap::new(),
        cut: HashSet::new(),
        going: false,
        now,
    };
    // Longer lists find nothing that shorter ones do not, and take their time.
    for call in data.chunks_exact(3).take(2000) {
        world.call(usize::from(call[0] & 1), call[0] >> 1, call[1], call[2]);
    }
    world.settle();
}

impl World {
    fn call(&mut self, end: usize, what: u8, pick: u8, much: u8) {
        let key = self.held[end].get(usize::from(pick) % self.held[end].len().max(1)).copied();
        let len = (usize::from(much) * usize::from(much) + 1).min(60_000);
        match (what % 16, key) {
            (0, _) if self.held[end].len() < HELD => {
                let class = [Class::Interactive, Class::Watch, Class::Bulk][usize::from(pick % 3)];
                match self.ends[end].open(class) {
                    Ok(key) => self.held[end].push(key),
                    Err(error) => assert!(self.going, "{error:?}"),
                }
            }
            (1..=4, Some(key)) => self.write(end, key, len),
            (5..=8, Some(key)) => {
                self.read(end, key, len);
            }
            (9, Some(key)) => {
                self.ends[end].finish(key);
                self.flows.entry((key.id(), end)).or_default().finished = true;
            }
            (10, Some(key)) => {
                self.cut.insert(key.id());
                self.ends[end].reset(key, ResetCode::Broken);
            }
            (11, Some(key)) => {
                self.cut.insert(key.id()); // what has not come to its end is cut
                self.ends[end].release(key);
                self.held[end].retain(|held| *held != key);
            }
            (12, _) => self.send(end),
            (13, _) => self.deliver(end, len * 4),
            (14, _) => {
                self.now += Duration::from_millis(u64::from(much));
                self.ends[end].on_timer(self.now);
            }
            // Seldom: nothing can be opened after it.
            (15, _) if much == 255 => {
                self.going = true;
                self.ends[end].go_away(CloseCode::Shutdown);
            }
            _ => {}
        }
        while self.ends[end].poll_event().is_some() {}
        self.blameless(end);
    }

    fn blameless(&self, end: usize) {
        if let Some(over) = self.ends[end].end() {
            assert!(self.going && over.violation.is_none() && over.code == CloseCode::Shutdown, "{over:?}");
        }
    }

    fn write(&mut self, end: usize, key: StreamKey, len: usize) {
        let flow = self.flows.entry((key.id(), end)).or_default();
        let bytes: Vec<u8> = (flow.written..flow.written + len).map(|at| pattern(key.id(), end, at)).collect();
        match self.ends[end].write(key, &bytes) {
            Ok(n) => {
                assert!(!flow.finished && n <= len);
                flow.written += n;
            }
            Err(_) => assert!(flow.finished || self.cut.contains(&key.id()) || self.going),
        }
        assert!(self.ends[end].queued() <= SEND_BUDGET);
    }

    /// Whether there was anything.
    fn read(&mut self, end: usize, key: StreamKey, len: usize) -> bool {
        let id = key.id();
        let flow = self.flows.entry((id, 1 - end)).or_default();
        match self.ends[end].read(key, len) {
            Ok(Read::Data(bytes)) => {
                assert!(!bytes.is_empty() && bytes.len() <= len);
                assert!((flow.read..).zip(&bytes).all(|(at, byte)| *byte == pattern(id, 1 - end, at)), "stream {id}");
                flow.read += bytes.len();
                assert!(flow.read <= flow.written);
                true
            }
            Ok(Read::Pending) => false,
            Ok(Read::End) => {
                assert!(flow.finished && flow.read == flow.written, "stream {id} ended early");
                false
            }
            Err(_) => {
                assert!(self.cut.contains(&id) || self.going, "stream {id} was cut by nobody");
                false
            }
        }
    }

    fn send(&mut self, end: usize) {
        let mut out = Outgoing::new();
        self.ends[end].transmit(&mut out, self.now);
        out.pieces().for_each(|piece| self.wire[1 - end].extend_from_slice(piece));
    }

    fn deliver(&mut self, end: usize, most: usize) {
        if !self.ends[end].can_receive() {
            return;
        }
        let most = most.min(self.wire[end].len());
        let bytes = self.wire[end].split_to(most);
        self.inputs[end].extend_from_slice(&bytes);
        self.ends[end].receive(&mut self.inputs[end], self.now);
        assert!(self.ends[end].unread() <= BUDGET + most);
        while let Some(key) = self.ends[end].accept() {
            self.held[end].push(key);
        }
    }

    /// Everything is delivered and read: what nobody has cut has arrived whole, and nothing is left behind.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for end in [0, 1] {
                moved |= self.ends[end].wants_transmit() || !self.wire[end].is_empty();
                self.send(end);
                self.deliver(end, usize::MAX);
                for key in self.held[end].clone() {
                    while self.read(end, key, usize::MAX) {
                        moved = true;
                    }
                }
                while self.ends[end].poll_event().is_some() {}
                self.blameless(end);
            }
            if !moved {
                break;
            }
        }
        for ((id, writer), flow) in &self.flows {
            assert!(self.going || self.cut.contains(id) || flow.read == flow.written, "stream {id} from {writer}");
        }
        for end in [0, 1] {
            for key in std::mem::take(&mut self.held[end]) {
                self.ends[end].release(key);
            }
        }
        for _ in 0..4 {
            for end in [0, 1] {
                self.send(end);
                self.deliver(end, usize::MAX);
                for key in std::mem::take(&mut self.held[end]) {
                    self.ends[end].release(key);
                }
            }
        }
        for end in &self.ends {
            assert_eq!((end.open_streams(), end.unread(), end.queued()), (0, 0, 0));
        }
    }
}
