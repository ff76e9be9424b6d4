//! Who is connected, counted by where they come from: there is room for so many, and one address does not take all of it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Bits of an IPv6 address that say whose it is: the others are their owner's to choose.
const NETWORK: u128 = !0 << 64;

/// Everybody.
#[derive(Debug)]
pub(crate) struct Crowd {
    most: usize,
    most_of_one: usize,
    here: Mutex<Here>,
}

#[derive(Debug, Default)]
struct Here {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// Somebody's place. Dropping it makes room.
#[derive(Debug)]
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    of: IpAddr,
}

impl Crowd {
    /// Room for `most`, of which one address has at most `most_of_one`.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, here: Mutex::default() }
    }

    /// `None`: there is no room.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let of = owner(address);
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        if self.most <= here.all || here.of.get(&of).is_some_and(|many| self.most_of_one <= *many) {
            return None;
        }
        here.all += 1;
        *here.of.entry(of).or_default() += 1;
        Some(Place { crowd: Arc::clone(self), of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut here = self.crowd.here.lock().unwrap_or_else(PoisonError::into_inner);
        here.all -= 1;
        if let Some(many) = here.of.get_mut(&self.of) {
            *many -= 1;
            if *many == 0 {
                here.of.remove(&self.of);
            }
        }
    }
}

fn owner(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_others_and_nobody_is_remembered() {
        let crowd = Arc::new(Crowd::new(4, 2));
        let at = |text: &str| crowd.enter(text.parse().unwrap());
        let (one, _two) = (at("192.0.2.1").unwrap(), at("::ffff:192.0.2.1").unwrap());
        assert!(at("192.0.2.1").is_none(), "however it is written");
        let (other, _again) = (at("2001:db8::1").unwrap(), at("2001:db8::ffff:1").unwrap());
        assert!(at("2001:db8::2").is_none() && at("2001:db8:0:1::1").is_none(), "full for one, and then for all");
        drop(one);
        assert!(at("2001:db8::2").is_none(), "there is room, and not for them");
        assert!(at("2001:db8:0:1::1").is_some() && at("192.0.2.1").is_some());
        drop(other);
        let names = crowd.here.lock().unwrap().of.len();
        assert_eq!((names, crowd.here.lock().unwrap().all), (2, 2));
    }
}
