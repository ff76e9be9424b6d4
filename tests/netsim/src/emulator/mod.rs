//! A bad network in userspace, for the kernel here has none: packets between two namespaces pass through this process,
//! which delays, drops, doubles and bends them as a [`Road`] says. What a scene changes holds from the next packet on.
//!
//! `down` is from the hub's side, which is the namespace of the test, to the agent's; `up` is back.

mod nat;
mod packet;
mod road;
mod tun;

pub use road::{Dice, Road};
pub use tun::{Namespace, Subnet};

use anyhow::{Context, Result};
use nat::Nat;
use packet::Packet;
use road::Traffic;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tun::{MTU, Tun};

/// Longest sleep of the thread that carries the packets: how late it sees that it is to end.
const LOOK: Duration = Duration::from_millis(20);
/// Packets taken from a device before the other one has its turn.
const TURN: usize = 64;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the hub to the agent.
    Down,
    /// From the agent to the hub.
    Up,
}

#[derive(Debug)]
struct State {
    roads: [Road; 2],
    nat: Option<Nat>,
    /// The next TCP packet with data that goes this way becomes a reset.
    reset: Option<Way>,
    /// Packets that went through and that were dropped, by way.
    counts: [(u64, u64); 2],
}

/// A link between this process's namespace and one of its own. Dropping it takes both away.
#[derive(Debug)]
pub struct Link {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
    /// The agent's side.
    pub inside: Namespace,
    /// Its addresses: `.1` on the hub's side, `.2` inside.
    pub subnet: Subnet,
    /// What every chance on it follows from.
    pub seed: u64,
}

impl Link {
    /// A clear link. Its seed is `MOORLINE_SEED`, or new; it is printed, and a failed test shows it.
    ///
    /// # Errors
    /// This process may not make devices and namespaces, or the system has none.
    pub fn make() -> Result<Self> {
        let seed = match std::env::var("MOORLINE_SEED") {
            Ok(text) => text.parse().context("MOORLINE_SEED is no number")?,
            Err(_) => std::time::UNIX_EPOCH.elapsed()?.subsec_nanos().into(),
        };
        println!("link with MOORLINE_SEED={seed}");
        let (inside, subnet, near, far) = Namespace::make()?;
        let state = State { roads: [Road::clear(), Road::clear()], nat: None, reset: None, counts: [(0, 0); 2] };
        let (state, stop) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let carrier = {
            let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
            std::thread::Builder::new().name("link".into()).spawn(move || carry([near, far], seed, &state, &stop))?
        };
        Ok(Self { state, stop, carrier: Some(carrier), inside, subnet, seed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on both directions are so.
    pub fn becomes(&self, road: Road) {
        self.lock().roads = [road.clone(), road];
    }

    /// From now on one direction is so.
    pub fn becomes_one_way(&self, way: Way, road: Road) {
        self.lock().roads[way as usize] = road;
    }

    /// Puts a box with NAT in the way, or has it forget what it knows: every flow goes on from another port.
    pub fn rebinds(&self) {
        let subnet = self.subnet;
        self.lock().nat.get_or_insert_with(|| Nat::new(subnet)).forget();
    }

    /// The agent's address towards the hub becomes another one.
    pub fn moves(&self) {
        let subnet = self.subnet;
        self.lock().nat.get_or_insert_with(|| Nat::new(subnet)).move_away();
    }

    /// Somebody in the way resets a TCP connection, in the middle of what it carries this way.
    pub fn resets_tcp(&self, way: Way) {
        self.lock().reset = Some(way);
    }

    /// Packets that went through one way, and packets that were dropped.
    pub fn counts(&self, way: Way) -> (u64, u64) {
        self.lock().counts[way as usize]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// A packet on its way: when, in which order, which way, which.
type Due = Reverse<(Duration, u64, usize, Vec<u8>)>;

/// Carries packets until it is told to stop.
fn carry(mut ends: [Tun; 2], seed: u64, state: &Mutex<State>, stop: &AtomicBool) {
    let begin = Instant::now();
    let mut traffic = [Traffic::new(seed), Traffic::new(!seed)];
    let mut waiting: BinaryHeap<Due> = BinaryHeap::new();
    let (mut space, mut order) = (vec![0; MTU + 64], 0u64);
    while !stop.load(Ordering::Relaxed) {
        let now = begin.elapsed();
        let due = waiting.peek().map_or(LOOK, |Reverse((due, ..))| due.saturating_sub(now).min(LOOK));
        let pause = Timespec { tv_sec: 0, tv_nsec: due.subsec_nanos().into() };
        let [near, far] = &ends;
        let mut both = [
            PollFd::from_borrowed_fd(near.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(far.as_fd(), PollFlags::IN),
        ];
        let _ = poll(&mut both, Some(&pause)); // an interruption is as good as news
        let now = begin.elapsed();
        {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            for (from, end) in ends.iter_mut().enumerate() {
                for _ in 0..TURN {
                    let Some(length) = end.receive(&mut space) else { break };
                    let mut bytes = space[..length].to_vec();
                    if !state.meets(&mut bytes, from) {
                        continue;
                    }
                    let arrivals = traffic[from].admit(&state.roads[from], &mut bytes, now);
                    for at in arrivals {
                        order += 1;
                        waiting.push(Reverse((at, order, 1 - from, bytes.clone())));
                    }
                }
                state.counts[from] = (traffic[from].passed, traffic[from].dropped);
            }
        }
        while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((_, _, to, bytes))) = waiting.pop() {
                ends[to].send(&bytes);
            }
        }
    }
}

impl State {
    /// The boxes on the way; whether the packet comes through them.
    fn meets(&mut self, bytes: &mut Vec<u8>, from: usize) -> bool {
        let Some(mut packet) = Packet::of(bytes) else { return true };
        if let Some(nat) = &mut self.nat {
            if from == Way::Up as usize {
                nat.outwards(&mut packet);
            } else if !nat.inwards(&mut packet) {
                return false;
            }
        }
        if self.reset.is_some_and(|way| way as usize == from) && packet.is_tcp_data() && !packet.ends_tcp() {
            packet.into_reset();
            self.reset = None;
        }
        true
    }
}
