//! Who is here, counted by where they come from: there is room for so many, and one address does not take all of it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// Bits of an IPv6 address that say whose it is: the others are their owner's to choose. A line has a /56 as a rule
/// (RIPE-690, 4.2).
const NETWORK: u128 = !0 << 72;
/// Under which networks without IPv4 have the whole of it (RFC 6052, 2.1).
const NAT64: u128 = 0x64_ff9b << 96;

/// Why somebody has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Their address has all that one may have. Others may find room.
    OfOne,
    /// There is room for nobody.
    OfAll,
}

impl Full {
    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::OfOne => "busy_address",
            Self::OfAll => "busy",
        }
    }
}

/// Everybody.
#[derive(Debug)]
pub(crate) struct Crowd {
    all: Arc<Semaphore>,
    most_of_one: usize,
    /// What is left to each address of which somebody is here or waits.
    of: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// Somebody's place. Dropping it makes room.
#[derive(Debug)]
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_one: Share,
}

/// A place among those of one address, or the wait for it. With its last an address is forgotten.
#[derive(Debug)]
struct Share {
    crowd: Arc<Crowd>,
    of: IpAddr,
    taken: Option<OwnedSemaphorePermit>,
}

impl Crowd {
    /// Room for `most`, of which one address has at most `most_of_one`.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        let bounded = |most: usize| most.min(Semaphore::MAX_PERMITS);
        let all = Arc::new(Semaphore::new(bounded(most)));
        Self { all, most_of_one: bounded(most_of_one), of: Mutex::default() }
    }

    /// A place, if there is one now.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let (mut share, left) = self.share(address);
        share.taken = Some(left.try_acquire_owned().map_err(|_| Full::OfOne)?);
        let all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| Full::OfAll)?;
        Ok(Place { _of_all: all, _of_one: share })
    }

    /// A place in their turn, for which they wait no longer than this. Each address has a line of its own and sends no more
    /// into the common one than may be here: who waits behind an address that sends many waits for its share alone.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line.
    pub async fn wait(self: &Arc<Self>, address: IpAddr, patience: Duration) -> Result<Place, Full> {
        let until = Instant::now() + patience;
        let (mut share, left) = self.share(address);
        share.taken = Some(in_turn(left, until).await.ok_or(Full::OfOne)?);
        let all = in_turn(Arc::clone(&self.all), until).await.ok_or(Full::OfAll)?;
        Ok(Place { _of_all: all, _of_one: share })
    }

    fn share(self: &Arc<Self>, address: IpAddr) -> (Share, Arc<Semaphore>) {
        let of = owner(address);
        let left = Arc::clone(self.known().entry(of).or_insert_with(|| Arc::new(Semaphore::new(self.most_of_one))));
        (Share { crowd: Arc::clone(self), of, taken: None }, left)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn in_turn(places: Arc<Semaphore>, until: Instant) -> Option<OwnedSemaphorePermit> {
    timeout_at(until, places.acquire_owned()).await.ok()?.ok()
}

impl Drop for Share {
    fn drop(&mut self) {
        drop(self.taken.take());
        let mut known = self.crowd.known();
        // Whoever is here or waits holds it too, and has taken hold of it under this lock.
        if known.get(&self.of).is_some_and(|left| Arc::strong_count(left) == 1) {
            known.remove(&self.of);
        }
    }
}

fn owner(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => match u32::try_from(address.to_bits() ^ NAT64) {
            Ok(v4) => Ipv4Addr::from_bits(v4).into(),
            Err(_) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        },
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_leaves_room_for_others_and_nobody_is_remembered() {
        let crowd = Arc::new(Crowd::new(4, 2));
        let at = |text: &str| crowd.enter(ip(text));
        let (one, two) = (at("192.0.2.1").unwrap(), at("::ffff:192.0.2.1").unwrap());
        assert_eq!(at("192.0.2.1").unwrap_err(), Full::OfOne, "however it is written");
        assert_eq!(at("64:ff9b::192.0.2.1").unwrap_err(), Full::OfOne);
        let (other, again) = (at("2001:db8::1").unwrap(), at("2001:db8:0:ff::1").unwrap());
        assert_eq!(at("2001:db8::2").unwrap_err(), Full::OfOne);
        assert_eq!(at("2001:db8:0:100::1").unwrap_err(), Full::OfAll);
        drop(one);
        assert_eq!(at("2001:db8::2").unwrap_err(), Full::OfOne, "there is room, and not for them");
        assert!(at("2001:db8:0:100::1").is_ok() && at("192.0.2.1").is_ok());
        assert_eq!(crowd.known().len(), 2, "who was refused, or has left, is forgotten");
        drop((two, other, again));
        assert_eq!((crowd.known().len(), crowd.all.available_permits()), (0, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_behind_their_own_address_holds_up_nobody_else() {
        let crowd = Arc::new(Crowd::new(3, 1));
        let held = crowd.wait(ip("192.0.2.1"), PATIENCE).await.unwrap();
        let mut line: Vec<_> = (0..9).map(|_| Box::pin(crowd.wait(ip("192.0.2.1"), PATIENCE))).collect();
        assert!(line.iter_mut().all(|waits| waits.as_mut().now_or_never().is_none()));
        let other = crowd.wait(ip("192.0.2.2"), PATIENCE).now_or_never();
        assert!(other.is_some_and(|other| other.is_ok()), "others pass at once");
        drop(held);
        let next = line.remove(0).now_or_never().expect("the first of the line has its turn");
        // Who gives up is forgotten, and so is who has waited for long enough.
        line.truncate(2);
        let begun = Instant::now();
        for waits in line {
            assert_eq!(waits.await.unwrap_err(), Full::OfOne);
        }
        assert!(PATIENCE <= begun.elapsed());
        let _others = (crowd.enter(ip("192.0.2.2")).unwrap(), crowd.enter(ip("192.0.2.3")).unwrap());
        assert_eq!(crowd.wait(ip("192.0.2.4"), PATIENCE).await.unwrap_err(), Full::OfAll);
        assert_eq!(crowd.known().len(), 3);
        assert!(next.is_ok());
    }
}
