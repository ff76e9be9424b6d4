//! Two sessions, a carrier that delivers when it likes, and any order of calls.

extern crate std;

use super::*;
use alloc::collections::{BTreeMap, VecDeque};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Open(u8),
    Write {
        pick: u8,
        len: usize,
    },
    Read {
        pick: u8,
        len: usize,
    },
    Finish(u8),
    Reset(u8),
    Release(u8),
    /// Takes up to this many bytes out of the machine and puts them on the way.
    Send,
    /// Delivers up to this many bytes of what is on the way.
    Deliver(usize),
    Tick,
}

fn any_op() -> impl Strategy<Value = (bool, Op)> {
    let pick = any::<u8>();
    let op = prop_oneof![
        4 => pick.prop_map(Op::Open),
        20 => (pick, 1usize..100_000).prop_map(|(pick, len)| Op::Write { pick, len }),
        24 => (pick, 1usize..100_000).prop_map(|(pick, len)| Op::Read { pick, len }),
        4 => pick.prop_map(Op::Finish),
        1 => pick.prop_map(Op::Reset),
        3 => pick.prop_map(Op::Release),
        20 => Just(Op::Send),
        20 => (1usize..200_000).prop_map(Op::Deliver),
        2 => Just(Op::Tick),
    ];
    (any::<bool>(), op)
}

/// One direction of one stream, as the world sees it.
#[derive(Debug, Default, Clone, Copy)]
struct Flow {
    written: usize,
    read: usize,
    finished: bool,
    ended: bool,
}

/// The byte at `at` of the direction that `writer` writes on stream `id`.
const fn pattern(id: u32, writer: usize, at: usize) -> u8 {
    (at as u32).wrapping_mul(31).wrapping_add(id * 7 + writer as u32 * 3 + (at >> 8) as u32) as u8
}

struct World {
    ends: [Mux; 2],
    held: [Vec<StreamKey>; 2],
    /// On the way to the end with this index.
    wire: [VecDeque<u8>; 2],
    inputs: [BytesMut; 2],
    /// By stream and writer.
    flows: BTreeMap<(u32, usize), Flow>,
    /// Streams that anyone has cut.
    cut: BTreeMap<u32, ()>,
    now: Duration,
}

const BUDGET: usize = 600_000;

impl World {
    fn new() -> Self {
        let limits = MuxLimits { session_buffer_budget: BUDGET, session_send_budget: 200_000, ..MuxLimits::default() };
        Self {
            ends: [Mux::new(Role::Client, limits.clone(), START), Mux::new(Role::Server, limits, START)],
            held: Default::default(),
            wire: Default::default(),
            inputs: Default::default(),
            flows: BTreeMap::new(),
            cut: BTreeMap::new(),
            now: START,
        }
    }

    fn pick(&self, end: usize, pick: u8) -> Option<StreamKey> {
        let held = &self.held[end];
        held.get(usize::from(pick) % held.len().max(1)).copied()
    }

    fn step(&mut self, end: usize, op: &Op) {
        match *op {
            Op::Open(pick) => {
                let class = [Class::Interactive, Class::Watch, Class::Bulk][usize::from(pick % 3)];
                if self.held[end].len() < 6 {
                    self.held[end].push(self.ends[end].open(class).unwrap());
                }
            }
            Op::Write { pick, len } => {
                let Some(key) = self.pick(end, pick) else { return };
                let flow = self.flows.entry((key.id(), end)).or_default();
                let bytes: Vec<u8> = (flow.written..flow.written + len).map(|at| pattern(key.id(), end, at)).collect();
                match self.ends[end].write(key, &bytes) {
                    Ok(n) => {
                        assert!(!flow.finished && n <= len);
                        flow.written += n;
                    }
                    Err(_) => assert!(flow.finished || self.cut.contains_key(&key.id())),
                }
            }
            Op::Read { pick, len } => {
                if let Some(key) = self.pick(end, pick) {
                    self.read(end, key, len);
                }
            }
            Op::Finish(pick) => {
                let Some(key) = self.pick(end, pick) else { return };
                self.ends[end].finish(key);
                self.flows.entry((key.id(), end)).or_default().finished = true;
            }
            Op::Reset(pick) => {
                let Some(key) = self.pick(end, pick) else { return };
                self.ends[end].reset(key, ResetCode::Broken);
                self.cut.insert(key.id(), ());
            }
            Op::Release(pick) => {
                let Some(key) = self.pick(end, pick) else { return };
                let (ours, theirs) = (self.flow(key.id(), end), self.flow(key.id(), 1 - end));
                if !(ours.finished && theirs.finished && theirs.read == theirs.written && theirs.ended) {
                    self.cut.insert(key.id(), ());
                }
                self.ends[end].release(key);
                self.held[end].retain(|held| *held != key);
            }
            Op::Send => {
                let mut out = Outgoing::new();
                self.ends[end].transmit(&mut out, self.now);
                assert!(out.len() <= 2 * self.ends[end].limits.batch + 1000);
                out.pieces().for_each(|piece| self.wire[1 - end].extend(piece));
            }
            Op::Deliver(most) => {
                if !self.ends[end].can_receive() {
                    return;
                }
                let n = most.min(self.wire[end].len());
                let bytes: Vec<u8> = self.wire[end].drain(..n).collect();
                self.inputs[end].extend_from_slice(&bytes);
                self.ends[end].receive(&mut self.inputs[end], self.now);
                assert!(self.ends[end].unread() <= BUDGET + n);
                while let Some(key) = self.ends[end].accept() {
                    self.held[end].push(key);
                }
            }
            Op::Tick => self.now += Duration::from_millis(30),
        }
        events(&mut self.ends[end]);
        assert_eq!(self.ends[end].end(), None);
        check(&self.ends[end]);
    }

    fn flow(&self, id: u32, writer: usize) -> Flow {
        self.flows.get(&(id, writer)).copied().unwrap_or_default()
    }

    fn read(&mut self, end: usize, key: StreamKey, len: usize) -> bool {
        let id = key.id();
        let flow = self.flows.entry((id, 1 - end)).or_default();
        match self.ends[end].read(key, len) {
            Ok(Read::Data(bytes)) => {
                assert!(!bytes.is_empty() && bytes.len() <= len);
                for (at, byte) in (flow.read..).zip(&bytes) {
                    assert_eq!(*byte, pattern(id, 1 - end, at), "stream {id} at {at}");
                }
                flow.read += bytes.len();
                assert!(flow.read <= flow.written);
                true
            }
            Ok(Read::Pending) => false,
            Ok(Read::End) => {
                // An end is only where the writer has put it, and after all that it wrote.
                assert!(flow.finished && flow.read == flow.written, "stream {id}: {flow:?}");
                flow.ended = true;
                false
            }
            Err(_) => {
                assert!(self.cut.contains_key(&id), "stream {id}");
                false
            }
        }
    }

    /// Everything is delivered and read; what was not cut has arrived whole.
    fn finish(mut self) {
        loop {
            let mut moved = false;
            for end in [0, 1] {
                moved |= self.ends[end].wants_transmit() || !self.wire[end].is_empty();
                self.step(end, &Op::Send);
                self.step(end, &Op::Deliver(usize::MAX));
                for key in self.held[end].clone() {
                    while self.read(end, key, usize::MAX) {
                        moved = true;
                    }
                }
            }
            if !moved {
                break;
            }
        }
        for ((id, writer), flow) in &self.flows {
            if !self.cut.contains_key(id) {
                assert_eq!((flow.read, flow.ended), (flow.written, flow.finished), "stream {id} from {writer}");
            }
        }
        // What one side may send is what the other expects: no credit was lost or made up.
        for (end, other) in [(0, 1), (1, 0)] {
            for (_, stream) in self.ends[end].slots.iter() {
                let peer = self.ends[other].slots.key(stream.id).and_then(|key| self.ends[other].slots.get(key));
                if let Some(peer) = peer.filter(|peer| peer.cut.is_none() && stream.cut.is_none() && !peer.recv.fin) {
                    assert_eq!(stream.send.credit, peer.recv.credit, "stream {}", stream.id);
                }
            }
        }
        // And when all let go, nothing is left.
        for end in [0, 1] {
            for key in core::mem::take(&mut self.held[end]) {
                self.ends[end].release(key);
            }
        }
        for _ in 0..4 {
            for end in [0, 1] {
                self.step(end, &Op::Send);
                self.step(end, &Op::Deliver(usize::MAX));
                for key in core::mem::take(&mut self.held[end]) {
                    self.ends[end].release(key);
                }
            }
        }
        for end in &self.ends {
            assert_eq!((end.open_streams(), end.unread(), end.queued(), end.grown), (0, 0, 0, 0));
        }
    }
}

/// So many cases, or `PROPTEST_CASES`, which a number that is given with it would override.
fn cases(usual: u32) -> ProptestConfig {
    let told = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig::default();
    if told { config } else { ProptestConfig { cases: usual, ..config } }
}

proptest! {
    #![proptest_config(cases(150))]

    /// Bytes arrive exact and in order; an end is an end and a reset a reset; credit and memory stay in bounds.
    #[test]
    fn any_order_of_calls(ops in prop::collection::vec(any_op(), 0..400)) {
        let mut world = World::new();
        for (end, op) in &ops {
            world.step(usize::from(*end), op);
        }
        world.finish();
    }
}
