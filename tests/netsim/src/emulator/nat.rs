//! A box that gives the agent's side another address and forgets what it gave.

use super::{
    packet::{End, Packet},
    tun::Subnet,
};
use std::{collections::HashMap, net::Ipv4Addr};

type Flow = (u8, Ipv4Addr, u16);

/// The box. Empty, it lets nothing in that was not asked for from inside.
#[derive(Debug)]
pub struct Nat {
    subnet: Subnet,
    out: HashMap<Flow, (Ipv4Addr, u16)>,
    back: HashMap<Flow, (Ipv4Addr, u16)>,
    next: u16,
    outside: u8,
}

impl Nat {
    /// A box whose outside address is `.100` of the subnet.
    pub fn new(subnet: Subnet) -> Self {
        Self { subnet, out: HashMap::new(), back: HashMap::new(), next: 20_000, outside: 100 }
    }

    /// Forgets every flow: what goes on gets another port, and what comes back to the old one is dropped.
    pub fn forget(&mut self) {
        self.out.clear();
        self.back.clear();
    }

    /// The same, with another outside address: the agent has moved to another network.
    pub fn move_away(&mut self) {
        self.forget();
        self.outside += 1;
    }

    /// A packet from inside.
    pub fn outwards(&mut self, packet: &mut Packet<'_>) {
        let (address, port) = packet.end(End::Source);
        let flow = (packet.protocol(), address, port);
        let outside = self.subnet.host(self.outside);
        let (next, back) = (&mut self.next, &mut self.back);
        let given = *self.out.entry(flow).or_insert_with(|| {
            *next += 1;
            back.insert((flow.0, outside, *next), (address, port));
            (outside, *next)
        });
        packet.set_end(End::Source, given);
    }

    /// A packet from outside; whether it may pass.
    pub fn inwards(&mut self, packet: &mut Packet<'_>) -> bool {
        let (address, port) = packet.end(End::Target);
        let known = self.back.get(&(packet.protocol(), address, port)).copied();
        if let Some(inside) = known {
            packet.set_end(End::Target, inside);
        }
        known.is_some()
    }
}
