//! As much of IPv4, TCP and UDP as a bad network has to know.

use std::net::Ipv4Addr;

/// TCP's number in an IP header.
pub const TCP: u8 = 6;
/// UDP's.
pub const UDP: u8 = 17;

const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who sent it.
    Source,
    /// Whom it is for.
    Target,
}

/// A whole IPv4 packet without fragments, TCP or UDP.
#[derive(Debug)]
pub struct Packet<'a> {
    bytes: &'a mut Vec<u8>,
    header: usize,
}

impl<'a> Packet<'a> {
    /// Looks at a packet; `None`: it is of no kind that is known here.
    pub fn of(bytes: &'a mut Vec<u8>) -> Option<Self> {
        let first = *bytes.first()?;
        let header = usize::from(first & 15) * 4;
        let protocol = *bytes.get(9)?;
        let least = header + if protocol == TCP { 20 } else { 8 };
        let fits = first >> 4 == 4 && [TCP, UDP].contains(&protocol) && header >= 20 && least <= bytes.len();
        fits.then_some(Self { bytes, header })
    }

    /// [`TCP`] or [`UDP`].
    pub fn protocol(&self) -> u8 {
        self.bytes[9]
    }

    /// Address and port of one end.
    pub fn end(&self, end: End) -> (Ipv4Addr, u16) {
        let (address, port) = self.places(end);
        let four = [0, 1, 2, 3].map(|n| self.bytes[address + n]);
        (four.into(), u16::from_be_bytes([self.bytes[port], self.bytes[port + 1]]))
    }

    /// Another address and port for one end.
    pub fn set_end(&mut self, end: End, (to, port_to): (Ipv4Addr, u16)) {
        let (address, port) = self.places(end);
        self.bytes[address..address + 4].copy_from_slice(&to.octets());
        self.bytes[port..port + 2].copy_from_slice(&port_to.to_be_bytes());
        self.seal();
    }

    fn places(&self, end: End) -> (usize, usize) {
        match end {
            End::Source => (12, self.header),
            End::Target => (16, self.header + 2),
        }
    }

    fn payload_at(&self) -> usize {
        match self.protocol() {
            TCP => self.header + usize::from(self.bytes[self.header + 12] >> 4) * 4,
            _ => self.header + 8,
        }
    }

    /// Whether it carries bytes of a TCP stream.
    pub fn is_tcp_data(&self) -> bool {
        self.protocol() == TCP && self.payload_at() < self.bytes.len()
    }

    /// Whether it begins or ends a TCP connection.
    pub fn ends_tcp(&self) -> bool {
        self.protocol() == TCP && self.bytes[self.header + 13] & (FIN | RST) != 0
    }

    /// Makes a reset of it, in the place of its data: what a box in the middle sends that cuts a connection.
    pub fn into_reset(mut self) {
        let end = self.header + 20;
        self.bytes.truncate(end);
        self.bytes[self.header + 12] = 5 << 4;
        self.bytes[self.header + 13] = RST | ACK;
        let length = u16::try_from(end).unwrap_or(u16::MAX).to_be_bytes();
        self.bytes[2..4].copy_from_slice(&length);
        self.seal();
    }

    /// Turns one bit of the payload, `at` counted from its beginning and wrapped around. The checksum of UDP is mended,
    /// so that the application sees it; that of TCP is not.
    pub fn flip(&mut self, at: usize) {
        let begin = self.payload_at();
        let Some(bits) = self.bytes.len().checked_sub(begin).map(|bytes| bytes * 8).filter(|bits| *bits > 0) else {
            return;
        };
        let at = at % bits;
        self.bytes[begin + at / 8] ^= 1 << (at % 8);
        if self.protocol() == UDP {
            self.seal();
        }
    }

    /// Writes the checksums anew.
    fn seal(&mut self) {
        self.bytes[10..12].fill(0);
        let sum = !fold(sum(&self.bytes[..self.header]));
        self.bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        let at = self.header + if self.protocol() == TCP { 16 } else { 6 };
        self.bytes[at..at + 2].fill(0);
        let length = u32::try_from(self.bytes.len() - self.header).unwrap_or(u32::MAX);
        let pseudo = sum2(&self.bytes[12..20]) + u32::from(self.protocol()) + length;
        let sum = !fold(pseudo + sum2(&self.bytes[self.header..]));
        // Zero stands for "no checksum" in UDP (RFC 768).
        let sum = if sum == 0 && self.protocol() == UDP { u16::MAX } else { sum };
        self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

fn sum(bytes: &[u8]) -> u32 {
    sum2(bytes)
}

fn sum2(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | two.get(1).map_or(0, |low| u32::from(*low))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP packet, with checksums as the kernel made them.
    fn udp() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, UDP, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
        packet.extend([0x9c, 0x40, 0x20, 0xfb, 0, 12, 0, 0, 1, 2, 3, 4]);
        packet
    }

    fn is_sealed(packet: &mut [u8]) -> bool {
        let length = packet.len() as u32 - 20;
        let transport = sum2(&packet[12..20]) + u32::from(packet[9]) + length + sum2(&packet[20..]);
        fold(sum2(&packet[..20])) == 0xffff && fold(transport) == 0xffff
    }

    #[test]
    fn what_is_rewritten_has_right_checksums() {
        let mut bytes = udp();
        let mut packet = Packet::of(&mut bytes).unwrap();
        assert_eq!(packet.end(End::Source), (Ipv4Addr::new(10, 0, 0, 2), 40_000));
        packet.set_end(End::Source, (Ipv4Addr::new(10, 0, 0, 9), 50_001));
        assert_eq!(packet.end(End::Source), (Ipv4Addr::new(10, 0, 0, 9), 50_001));
        packet.flip(9);
        assert_eq!(bytes[29], 2 ^ 2);
        assert!(is_sealed(&mut bytes));
    }

    #[test]
    fn what_is_too_short_is_not_touched() {
        for cut in 0..28 {
            assert!(Packet::of(&mut udp()[..cut].to_vec()).is_none(), "{cut}");
        }
    }
}
