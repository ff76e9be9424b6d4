//! Logins under way: browsers that are at a provider, codes that wait to be redeemed, devices that are polled.

use moorline_logins::{Round, Secret, pkce};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A map whose entries end, bounded in number: when full, the one that ends first goes.
struct Ending<T> {
    most: usize,
    all: Mutex<HashMap<String, (Instant, T)>>,
}

impl<T> Ending<T> {
    fn new(most: usize) -> Self {
        Self { most: most.max(1), all: Mutex::default() }
    }

    fn put(&self, key: String, life: Duration, value: T, now: Instant) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= self.most {
            all.retain(|_, (ends, _)| *ends > now);
        }
        if all.len() >= self.most
            && let Some(first) = all.iter().min_by_key(|(_, (ends, _))| *ends).map(|(key, _)| key.clone())
        {
            all.remove(&first);
        }
        all.insert(key, (now + life, value));
    }

    fn take(&self, key: &str, now: Instant) -> Option<T> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(key).filter(|(ends, _)| *ends > now).map(|(_, value)| value)
    }

    fn with<R>(&self, key: &str, now: Instant, see: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get_mut(key).filter(|(ends, _)| *ends > now).map(|(_, value)| see(value))
    }
}

/// A browser at a provider, and the program that waits for it.
pub(crate) struct AtProvider {
    pub provider: String,
    pub round: Round,
    /// Where the program listens, on the browser's own machine (RFC 8252 §7.3).
    pub back: String,
    /// What the program wants back.
    pub state: String,
    /// What the program can prove that it asked (RFC 7636).
    pub challenge: String,
}

/// A code that its program may redeem.
pub(crate) struct Redeemable {
    pub provider: String,
    pub user: String,
    pub user_uid: String,
    pub challenge: String,
}

/// A device that is polled.
pub(crate) struct Device {
    pub provider: String,
    pub code: Secret,
    pub interval: Duration,
    pub next: Instant,
}

/// How long somebody may take at a provider.
const AT_PROVIDER: Duration = Duration::from_secs(600);
/// How long a program may take to redeem its code (RFC 6749 §4.1.2 says 10 minutes at most).
const REDEEM: Duration = Duration::from_secs(60);
/// Longest life of a device's code, whatever its provider says.
const DEVICE: Duration = Duration::from_secs(1800);
/// RFC 8628 §3.5.
const SLOWER: Duration = Duration::from_secs(5);

/// All of them.
pub(crate) struct Rounds {
    browsers: Ending<AtProvider>,
    codes: Ending<Redeemable>,
    devices: Ending<Device>,
}

/// Whether a device may be asked about now.
pub(crate) enum Turn {
    Now { provider: String, code: Secret },
    TooSoon,
}

impl Rounds {
    /// At most `most` of each.
    pub fn new(most: usize) -> Self {
        Self { browsers: Ending::new(most), codes: Ending::new(most), devices: Ending::new(most) }
    }

    pub fn left(&self, at: AtProvider) {
        self.browsers.put(at.round.state.clone(), AT_PROVIDER, at, Instant::now());
    }

    /// Once.
    pub fn came_back(&self, state: &str) -> Option<AtProvider> {
        self.browsers.take(state, Instant::now())
    }

    pub fn redeemable(&self, what: Redeemable) -> String {
        let code = pkce::random();
        self.codes.put(code.clone(), REDEEM, what, Instant::now());
        code
    }

    /// Once, and only by who asked for it: a wrong verifier spoils the code.
    pub fn redeem(&self, code: &str, verifier: &str) -> Option<Redeemable> {
        let found = self.codes.take(code, Instant::now())?;
        (pkce::challenge(verifier) == found.challenge).then_some(found)
    }

    /// A handle to poll with.
    pub fn device(&self, provider: &str, code: Secret, interval: Duration, life: Duration) -> String {
        let (handle, now) = (pkce::random(), Instant::now());
        let device = Device { provider: provider.to_owned(), code, interval, next: now + interval };
        self.devices.put(handle.clone(), life.min(DEVICE), device, now);
        handle
    }

    /// `None`: no such device. Who asks too soon is slowed down without the provider being asked.
    pub fn poll(&self, handle: &str) -> Option<Turn> {
        let now = Instant::now();
        self.devices.with(handle, now, |device| {
            if now < device.next {
                return Turn::TooSoon;
            }
            device.next = now + device.interval;
            Turn::Now { provider: device.provider.clone(), code: device.code.clone() }
        })
    }

    /// The provider wants to be asked less often.
    pub fn slower(&self, handle: &str) {
        self.devices.with(handle, Instant::now(), |device| {
            device.interval += SLOWER;
            device.next = Instant::now() + device.interval;
        });
    }

    /// It is over, either way.
    pub fn polled(&self, handle: &str) {
        self.devices.take(handle, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_ends_is_bounded_and_good_once() {
        let (some, now) = (Ending::new(2), Instant::now());
        for (key, life) in [("a", 1), ("b", 9), ("c", 5)] {
            some.put(key.to_owned(), Duration::from_secs(life), key, now);
        }
        assert_eq!(some.take("a", now), None, "the first to end made room");
        assert_eq!(some.take("c", now + Duration::from_secs(5)), None, "too late");
        assert_eq!((some.take("b", now), some.take("b", now)), (Some("b"), None));
    }

    #[test]
    fn a_code_is_redeemed_once_by_who_asked() {
        let rounds = Rounds::new(4);
        let verifier = pkce::random();
        let make = || {
            let challenge = pkce::challenge(&verifier);
            rounds.redeemable(Redeemable { provider: "sso".into(), user: "a".into(), user_uid: "1".into(), challenge })
        };
        let code = make();
        assert!(rounds.redeem(&code, &pkce::random()).is_none());
        assert!(rounds.redeem(&code, &verifier).is_none(), "a wrong try spoils it");
        let code = make();
        assert!(rounds.redeem(&code, &verifier).is_some() && rounds.redeem(&code, &verifier).is_none());
    }
}
