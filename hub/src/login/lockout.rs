//! Wrong passwords in a row: who guesses too long is kept out for a while, whether or not there is such a user.

mod merge;

pub(super) use merge::{Had, Merged};

use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;

/// Longest lock that rules may have, in seconds: a week.
const LONGEST: u64 = 7 * 24 * 3600;

/// When somebody is locked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lockout {
    /// Wrong passwords in a row for one local user, from wherever: a right one begins the count anew.
    pub user_failures: u32,
    /// Wrong passwords from one address, for whomever, with less than `seconds` between one and the next. Right ones
    /// change nothing: whoever has a password of their own could guess at others' for ever.
    pub address_failures: u32,
    /// For how long, in seconds. So long after the last wrong one they are forgotten, too.
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
        let fits = self.user_failures > 0 && self.address_failures > 0 && (1..=LONGEST).contains(&self.seconds);
        if fits { Ok(()) } else { Err("userFailures and addressFailures are at least 1, and seconds at most a week") }
    }
}

#[derive(Debug, Clone, Copy)]
struct Count {
    failures: u32,
    /// The last one that failed.
    last: Instant,
    /// Under way: they count as failures until they are known not to be.
    pending: u32,
    /// The last one that was begun.
    tried: Instant,
}

impl Count {
    /// Failures that are not forgotten yet.
    fn failures(&self, now: Instant, life: Duration) -> u32 {
        if now < self.last + life { self.failures } else { 0 }
    }
}

/// That somebody was locked out, or let in again.
#[derive(Debug, Default)]
struct News {
    changes: AtomicU64,
    told: Notify,
}

impl News {
    fn note(&self, changed: bool) {
        if changed {
            self.changes.fetch_add(1, Ordering::AcqRel);
            self.told.notify_one();
        }
    }
}

/// Keys and their failures, bounded in number: the one that failed longest ago is forgotten first, and who is locked out last.
#[derive(Debug)]
struct Counts<K> {
    most: u32,
    life: Duration,
    capacity: usize,
    all: Mutex<HashMap<K, Count>>,
    news: Arc<News>,
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
    fn new(most: u32, life: Duration, capacity: usize, news: Arc<News>) -> Self {
        Self { most, life, capacity: capacity.max(1), all: Mutex::default(), news }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Count>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt as one that failed, before it is made: many at once are no way around. What is counted so is given
    /// back or said to have failed, each once.
    fn attempt(&self, key: &K, now: Instant) -> Verdict {
        let (mut all, life) = (self.lock(), self.life);
        let known = all.get(key).copied().map(|count| Count { failures: count.failures(now, life), ..count });
        let known = known.unwrap_or(Count { failures: 0, last: now, pending: 0, tried: now });
        if self.most <= known.failures + known.pending {
            let since = if self.most <= known.failures { known.last } else { known.tried };
            return Verdict::Locked((since + life).saturating_duration_since(now));
        }
        if !all.contains_key(key) && self.capacity <= all.len() {
            all.retain(|_, count| count.pending != 0 || count.failures(now, life) != 0);
            if self.capacity <= all.len() {
                let rank = |count: &Count| (self.most <= count.failures + count.pending, count.last.max(count.tried));
                let oldest = all.iter().min_by_key(|(_, count)| rank(count));
                if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                    all.remove(&key);
                }
            }
        }
        let count = Count { pending: known.pending + 1, tried: now, ..known };
        all.insert(key.clone(), count);
        if count.failures + count.pending == self.most { Verdict::Last } else { Verdict::Open }
    }

    /// An attempt did not fail for its password: as if it had never been made.
    fn give_back(&self, key: &K) {
        let mut all = self.lock();
        let Some(count) = all.get_mut(key) else { return };
        count.pending = count.pending.saturating_sub(1);
        if count.pending == 0 && count.failures == 0 {
            all.remove(key);
        }
    }

    /// An attempt that was begun `at` that time failed.
    fn failed(&self, key: &K, at: Instant) {
        let mut all = self.lock();
        // One that was forgotten meanwhile begins anew with the next.
        let Some(count) = all.get_mut(key) else { return };
        count.pending = count.pending.saturating_sub(1);
        count.failures = count.failures(at, self.life) + 1;
        count.last = if count.failures == 1 { at } else { count.last.max(at) };
        let locked = self.most <= count.failures;
        drop(all);
        self.news.note(locked);
    }

    fn forget(&self, key: &K) -> bool {
        let known = self.lock().remove(key);
        self.news.note(known.is_some_and(|count| self.most <= count.failures));
        known.is_some()
    }

    /// Takes up a lock that ends in `left`, which is no longer than one that begins now.
    fn take_up(&self, key: K, failures: u32, left: Duration, now: Instant) {
        let gone = self.life.saturating_sub(left);
        // A clock that begins with the machine may not reach so far back: then it ends later, never sooner.
        let last = now.checked_sub(gone).unwrap_or(now);
        let count = Count { failures: failures.max(self.most), last, pending: 0, tried: last };
        let mut all = self.lock();
        if all.len() < self.capacity {
            all.insert(key, count);
        }
    }

    /// Forgets locks that were lifted elsewhere, unless they are others by now. There is nothing to be told of it.
    fn lift(&self, lifted: &[Lock<K>], clock: SystemTime) {
        let now = ending(self.locked(Instant::now()), clock);
        let now: HashMap<&K, &Lock<K>> = now.iter().map(|lock| (&lock.of, lock)).collect();
        let mut all = self.lock();
        for lock in lifted.iter().filter(|lock| now.get(&lock.of).is_some_and(|now| now.is(lock))) {
            all.remove(&lock.of);
        }
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

/// A lock, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Lock<K> {
    of: K,
    failures: u32,
    /// Seconds since 1970.
    until: u64,
}

impl<K> Lock<K> {
    /// Whether it is the same lock of the same one, as clocks can tell.
    fn is(&self, other: &Self) -> bool {
        self.failures == other.failures && self.until.abs_diff(other.until) <= merge::ROUNDING
    }
}

/// All locks, as they are kept.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Locks {
    users: Vec<Lock<String>>,
    addresses: Vec<Lock<IpAddr>>,
    /// `None`: an older version wrote it, which does not say.
    left_out: Option<LeftOut>,
}

/// Locks that end by then and are not among those that are kept may have been left out: there was no room for them, or they
/// were over. Nobody has lifted them. Seconds since 1970.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct LeftOut {
    users: u64,
    addresses: u64,
}

/// All counts.
#[derive(Debug)]
pub(crate) struct Lockouts {
    users: Arc<Counts<String>>,
    addresses: Arc<Counts<IpAddr>>,
    news: Arc<News>,
}

/// One count's part of an attempt. Dropped, it has failed.
#[derive(Debug)]
struct Held<K: Hash + Eq + Clone> {
    counts: Arc<Counts<K>>,
    key: K,
    at: Instant,
    settled: bool,
}

impl<K: Hash + Eq + Clone> Held<K> {
    /// With whether it locks if it fails. `Err`: locked out for so long.
    fn begin(counts: &Arc<Counts<K>>, key: K, at: Instant) -> Result<(Self, bool), Duration> {
        match counts.attempt(&key, at) {
            Verdict::Locked(wait) => Err(wait),
            verdict => Ok((Self { counts: Arc::clone(counts), key, at, settled: false }, verdict == Verdict::Last)),
        }
    }

    fn give_back(mut self) {
        self.settled = true;
        self.counts.give_back(&self.key);
    }

    fn forget(mut self) {
        self.settled = true;
        self.counts.forget(&self.key);
    }
}

impl<K: Hash + Eq + Clone> Drop for Held<K> {
    fn drop(&mut self) {
        if !self.settled {
            self.counts.failed(&self.key, self.at);
        }
    }
}

/// An attempt under way. Dropped, it is counted as one that failed.
#[derive(Debug)]
#[must_use]
pub(crate) struct Attempt {
    user: Held<String>,
    address: Held<IpAddr>,
    /// This one, if it fails, locks: the user, the address.
    pub locks: (bool, bool),
}

impl Attempt {
    /// The password was right: the user starts anew.
    pub fn right(self) {
        self.user.forget();
        self.address.give_back();
    }

    /// Nothing was found out.
    pub fn undecided(self) {
        self.user.give_back();
        self.address.give_back();
    }
}

impl Lockouts {
    pub fn new(rules: &Lockout, remembered: usize) -> Self {
        let life = Duration::from_secs(rules.seconds);
        let news = Arc::<News>::default();
        Self {
            users: Arc::new(Counts::new(rules.user_failures, life, remembered, Arc::clone(&news))),
            addresses: Arc::new(Counts::new(rules.address_failures, life, remembered, Arc::clone(&news))),
            news,
        }
    }

    /// How often anybody was locked out or let in again.
    pub(super) fn changes(&self) -> u64 {
        self.news.changes.load(Ordering::Acquire)
    }

    /// Waits for the next time; what came before it was waited for counts too. For one who waits.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn changed(&self) {
        self.news.told.notified().await;
    }

    /// All locks.
    pub(super) fn locks(&self, clock: SystemTime) -> Locks {
        let now = Instant::now();
        let (users, addresses) = (self.users.locked(now), self.addresses.locked(now));
        Locks { users: ending(users, clock), addresses: ending(addresses, clock), left_out: None }
    }

    /// Lets those in who were let in elsewhere.
    pub(super) fn lift(&self, lifted: &Locks, clock: SystemTime) {
        self.users.lift(&lifted.users, clock);
        self.addresses.lift(&lifted.addresses, clock);
    }

    /// Takes up what was kept and is not over.
    pub(super) fn take_up(&self, locks: Locks, clock: SystemTime) {
        fn all<K: Hash + Eq + Clone>(counts: &Counts<K>, locks: Vec<Lock<K>>, clock: SystemTime) {
            let now = Instant::now();
            for lock in locks {
                let until = UNIX_EPOCH.checked_add(Duration::from_secs(lock.until));
                if let Some(left) =
                    until.and_then(|until| until.duration_since(clock).ok()).filter(|left| !left.is_zero())
                {
                    counts.take_up(lock.of, lock.failures, left, now);
                }
            }
        }
        all(&self.users, locks.users, clock);
        all(&self.addresses, locks.addresses, clock);
    }

    /// `Err`: locked out for so long. Names are counted whether or not there is such a user.
    pub fn attempt(&self, user: &str, address: IpAddr) -> Result<Attempt, Duration> {
        let now = Instant::now();
        let (address, locks_address) = Held::begin(&self.addresses, address, now)?;
        match Held::begin(&self.users, user.to_lowercase(), now) {
            Ok((user, locks_user)) => Ok(Attempt { user, address, locks: (locks_user, locks_address) }),
            Err(wait) => {
                // It was not tried: no guess of this address.
                address.give_back();
                Err(wait)
            }
        }
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

fn ending<K>(locked: Vec<(K, u32, Duration)>, clock: SystemTime) -> Vec<Lock<K>> {
    let until = |left: Duration| (clock + left).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() + 1;
    locked.into_iter().map(|(of, failures, left)| Lock { of, failures, until: until(left) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn at(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn counts(most: u32, capacity: usize) -> Counts<&'static str> {
        Counts::new(most, Duration::from_secs(10), capacity, Arc::default())
    }

    /// One wrong password.
    fn wrong(counts: &Counts<&'static str>, key: &'static str, now: Instant) -> Verdict {
        let verdict = counts.attempt(&key, now);
        if !matches!(verdict, Verdict::Locked(_)) {
            counts.failed(&key, now);
        }
        verdict
    }

    #[test]
    fn so_many_in_a_row_lock_and_time_unlocks() {
        let (counts, now) = (counts(3, 9), Instant::now());
        let locked = Verdict::Locked(Duration::from_secs(10));
        // Whether they are under way or known to have failed.
        let verdicts: Vec<_> = (0..4).map(|_| counts.attempt(&"a", now)).collect();
        assert_eq!(verdicts, [Verdict::Open, Verdict::Open, Verdict::Last, locked]);
        (0..3).for_each(|_| counts.failed(&"a", now));
        let second = now + Duration::from_secs(6);
        assert_eq!(wrong(&counts, "a", second), Verdict::Locked(Duration::from_secs(4)), "tries do not lengthen it");
        assert_eq!(wrong(&counts, "b", second), Verdict::Open);
        assert_eq!(counts.attempt(&"a", now + Duration::from_secs(10)), Verdict::Open, "and the count begins anew");
        counts.give_back(&"a");
        assert!(!counts.forget(&"a") && counts.forget(&"b"), "what was given back is as if it had never been");
    }

    #[test]
    fn right_ones_keep_no_wrong_ones_in_memory() {
        let (counts, now) = (counts(5, 9), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        (0..2).for_each(|_| assert_eq!(wrong(&counts, "nat", now), Verdict::Open));
        // Somebody else behind the same address logs in all the time, each before the one before is over.
        counts.attempt(&"nat", now);
        for second in 1..12 {
            assert_eq!(counts.attempt(&"nat", after(second)), Verdict::Open);
            counts.give_back(&"nat");
        }
        assert_eq!(wrong(&counts, "nat", after(12)), Verdict::Open);
        assert_eq!(counts.lock()["nat"].failures, 1, "the two were forgotten ten seconds after the last of them");
    }

    #[test]
    fn it_is_bounded_and_who_is_locked_is_forgotten_last() {
        let (counts, now) = (counts(2, 3), Instant::now());
        let _ = (wrong(&counts, "locked", now), wrong(&counts, "locked", now));
        for (n, key) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            wrong(&counts, key, now + Duration::from_millis(n as u64 + 1));
        }
        assert_eq!(counts.lock().len(), 3);
        assert!(matches!(wrong(&counts, "locked", now + Duration::from_secs(1)), Verdict::Locked(_)));
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
            all.attempt("ann", at(4)).unwrap().right();
            all.attempt("bob", at(5)).unwrap().undecided();
        }
        assert!(!all.unlock_user("ann") && !all.unlock_address(at(4)) && !all.unlock_address(at(5)), "nothing stays");
    }

    #[test]
    fn what_was_kept_ends_when_it_would_have_and_never_later_than_the_rules_say() {
        let rules = Lockout { user_failures: 2, address_failures: 2, seconds: 900 };
        let clock = SystemTime::now();
        let before = Lockouts::new(&rules, 100);
        for _ in 0..2 {
            drop(before.attempt("ann", at(1)));
        }
        drop(before.attempt("bob", at(2)));
        let kept = serde_json::to_vec(&before.locks(clock)).unwrap();
        let begun = |rules: &Lockout, clock, bytes: &[u8]| {
            let after = Lockouts::new(rules, 100);
            after.take_up(serde_json::from_slice(bytes).unwrap(), clock);
            after
        };
        let locks = |all: &Lockouts| all.locked().into_iter().map(|one| one.name).collect::<Vec<_>>();
        let after = begun(&rules, clock + Duration::from_secs(600), &kept);
        assert_eq!(locks(&after), ["192.0.2.1", "ann"]);
        let wait = after.attempt("ann", at(3)).unwrap_err().as_secs();
        assert!((299..=301).contains(&wait), "{wait}");
        assert!(locks(&begun(&rules, clock + Duration::from_secs(902), &kept)).is_empty(), "it is over");
        // Rules and clocks change while nobody looks.
        let shorter = Lockout { seconds: 60, user_failures: 50, ..rules };
        let wait = begun(&shorter, clock, &kept).attempt("ann", at(3)).unwrap_err();
        assert!(wait <= Duration::from_secs(60), "{wait:?}");
        let set_back = begun(&rules, clock - Duration::from_secs(1 << 30), &kept);
        assert!(set_back.attempt("ann", at(3)).unwrap_err() <= Duration::from_secs(900));
        let far = br#"{"users":[{"of":"ann","failures":2,"until":18446744073709551615}],"addresses":[]}"#;
        assert!(begun(&rules, clock, far).locked().len() <= 1, "what no clock can say is no panic");
    }
}
