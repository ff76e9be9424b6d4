//! Wrong passwords in a row: who guesses too long is kept out for a while, whether or not there is such a user.

use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// When somebody is locked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lockout {
    /// Wrong passwords in a row for one local user, from wherever.
    pub user_failures: u32,
    /// Wrong passwords in a row from one address, for whomever.
    pub address_failures: u32,
    /// For how long, in seconds. So long after the last wrong one it is forgotten, too.
    pub seconds: u64,
}

impl Default for Lockout {
    fn default() -> Self {
        Self { user_failures: 20, address_failures: 200, seconds: 900 }
    }
}

impl Lockout {
    /// # Errors
    /// What cannot work, in words.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        let fits = self.user_failures > 0 && self.address_failures > 0 && (1..=7 * 24 * 3600).contains(&self.seconds);
        if fits { Ok(()) } else { Err("userFailures and addressFailures are at least 1, and seconds at most a week") }
    }
}

#[derive(Debug, Clone, Copy)]
struct Count {
    failures: u32,
    last: Instant,
}

/// Keys and their failures, bounded in number: the one that failed longest ago is forgotten first, and who is locked out last.
#[derive(Debug)]
struct Counts<K> {
    most: u32,
    life: Duration,
    capacity: usize,
    all: Mutex<HashMap<K, Count>>,
}

/// What one more attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Open,
    /// The last before the lock.
    Last,
    Locked(Duration),
}

impl<K: Hash + Eq + Clone> Counts<K> {
    fn new(most: u32, life: Duration, capacity: usize) -> Self {
        Self { most, life, capacity: capacity.max(1), all: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Count>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt as one that failed, before it is made: many at once are no way around.
    fn attempt(&self, key: &K, now: Instant) -> Verdict {
        let mut all = self.lock();
        let before = all.get(key).filter(|count| now < count.last + self.life).map_or(0, |count| count.failures);
        if let Some(count) = all.get(key).filter(|_| self.most <= before) {
            return Verdict::Locked(count.last + self.life - now);
        }
        if !all.contains_key(key) && self.capacity <= all.len() {
            all.retain(|_, count| now < count.last + self.life);
            if self.capacity <= all.len() {
                let oldest = all.iter().min_by_key(|(_, count)| (self.most <= count.failures, count.last));
                if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                    all.remove(&key);
                }
            }
        }
        all.insert(key.clone(), Count { failures: before + 1, last: now });
        if before + 1 == self.most { Verdict::Last } else { Verdict::Open }
    }

    /// That attempt did not fail for its password.
    fn give_back(&self, key: &K) {
        let mut all = self.lock();
        if let Some(count) = all.get_mut(key) {
            count.failures = count.failures.saturating_sub(1);
        }
    }

    fn forget(&self, key: &K) -> bool {
        self.lock().remove(key).is_some()
    }

    fn locked(&self, now: Instant) -> Vec<(K, u32, Duration)> {
        let left = |count: &Count| (count.last + self.life).checked_duration_since(now).filter(|left| !left.is_zero());
        let all = self.lock();
        let locked = all.iter().filter(|(_, count)| self.most <= count.failures);
        locked.filter_map(|(key, count)| Some((key.clone(), count.failures, left(count)?))).collect()
    }
}

/// Who is locked out, for those who administer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Locked {
    /// `user` or `address`.
    pub kind: &'static str,
    pub name: String,
    pub failures: u32,
    /// RFC 3339.
    pub until: String,
}

/// All counts.
#[derive(Debug)]
pub(crate) struct Lockouts {
    users: Counts<String>,
    addresses: Counts<IpAddr>,
}

/// An attempt under way. Dropped, it stays counted as one that failed.
#[derive(Debug)]
#[must_use]
pub(crate) struct Attempt {
    user: String,
    address: IpAddr,
    /// This one, if it fails, locks: the user, the address.
    pub locks: (bool, bool),
}

impl Lockouts {
    pub fn new(rules: &Lockout, remembered: usize) -> Self {
        let life = Duration::from_secs(rules.seconds);
        Self {
            users: Counts::new(rules.user_failures, life, remembered),
            addresses: Counts::new(rules.address_failures, life, remembered),
        }
    }

    /// `Err`: locked out for so long. Names are counted whether or not there is such a user.
    pub fn attempt(&self, user: &str, address: IpAddr) -> Result<Attempt, Duration> {
        let (user, now) = (user.to_lowercase(), Instant::now());
        let by_address = match self.addresses.attempt(&address, now) {
            Verdict::Locked(wait) => return Err(wait),
            verdict => verdict == Verdict::Last,
        };
        match self.users.attempt(&user, now) {
            Verdict::Locked(wait) => {
                // It was not tried: no guess of this address.
                self.addresses.give_back(&address);
                Err(wait)
            }
            verdict => Ok(Attempt { user, address, locks: (verdict == Verdict::Last, by_address) }),
        }
    }

    /// The password was right: the user starts anew.
    pub fn right(&self, attempt: &Attempt) {
        self.users.forget(&attempt.user);
        self.addresses.give_back(&attempt.address);
    }

    /// Nothing was found out.
    pub fn undecided(&self, attempt: &Attempt) {
        self.users.give_back(&attempt.user);
        self.addresses.give_back(&attempt.address);
    }

    /// Lets a user in again; whether they were counted.
    pub fn unlock_user(&self, user: &str) -> bool {
        self.users.forget(&user.to_lowercase())
    }

    /// Lets an address in again; whether it was counted.
    pub fn unlock_address(&self, address: IpAddr) -> bool {
        self.addresses.forget(&address)
    }

    /// All that are locked out now.
    pub fn locked(&self) -> Vec<Locked> {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let one =
            |kind, name, failures, left| Locked { kind, name, failures, until: crate::status::time(clock + left) };
        let users = self.users.locked(now).into_iter().map(|(user, n, left)| one("user", user, n, left));
        let addresses = self
            .addresses
            .locked(now)
            .into_iter()
            .map(|(address, n, left)| one("address", address.to_string(), n, left));
        let mut all: Vec<Locked> = users.chain(addresses).collect();
        all.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn at(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn counts(most: u32, capacity: usize) -> Counts<&'static str> {
        Counts::new(most, Duration::from_secs(10), capacity)
    }

    #[test]
    fn so_many_in_a_row_lock_and_time_unlocks() {
        let (counts, now) = (counts(3, 9), Instant::now());
        let verdicts: Vec<_> = (0..4).map(|_| counts.attempt(&"a", now)).collect();
        let locked = Verdict::Locked(Duration::from_secs(10));
        assert_eq!(verdicts, [Verdict::Open, Verdict::Open, Verdict::Last, locked]);
        let second = now + Duration::from_secs(6);
        assert_eq!(counts.attempt(&"a", second), Verdict::Locked(Duration::from_secs(4)), "tries do not lengthen it");
        assert_eq!(counts.attempt(&"b", second), Verdict::Open);
        assert_eq!(counts.attempt(&"a", now + Duration::from_secs(10)), Verdict::Open, "and the count begins anew");
        counts.give_back(&"a");
        assert!(counts.forget(&"a") && !counts.forget(&"a"));
    }

    #[test]
    fn it_is_bounded_and_who_is_locked_is_forgotten_last() {
        let (counts, now) = (counts(2, 3), Instant::now());
        let _ = (counts.attempt(&"locked", now), counts.attempt(&"locked", now));
        for (n, key) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            counts.attempt(&key, now + Duration::from_millis(n as u64 + 1));
        }
        assert_eq!(counts.lock().len(), 3);
        assert!(matches!(counts.attempt(&"locked", now + Duration::from_secs(1)), Verdict::Locked(_)));
    }

    #[test]
    fn users_and_addresses_are_counted_apart() {
        let rules = Lockout { user_failures: 2, address_failures: 3, seconds: 900 };
        let all = Lockouts::new(&rules, 100);
        let fail = |user, address| all.attempt(user, address).map(|attempt| attempt.locks);
        assert_eq!((fail("Ann", at(1)), fail("ann", at(2))), (Ok((false, false)), Ok((true, false))));
        assert!(fail("ANN", at(3)).is_err(), "from wherever");
        assert_eq!((fail("bob", at(1)), fail("eve", at(1))), (Ok((false, false)), Ok((false, true))));
        assert!(fail("dan", at(1)).is_err(), "whomever");
        let names: Vec<_> = all.locked().into_iter().map(|one| (one.kind, one.name)).collect();
        assert_eq!(names, [("address", "192.0.2.1".to_owned()), ("user", "ann".to_owned())]);
        assert!(all.unlock_user("Ann") && all.unlock_address(at(1)) && all.locked().is_empty());
        // Who gets it right starts anew; what told nothing counts nothing.
        for _ in 0..5 {
            all.right(&all.attempt("ann", at(4)).unwrap());
            all.undecided(&all.attempt("bob", at(5)).unwrap());
        }
    }
}
