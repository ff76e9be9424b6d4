//! Several hubs keep their locks in one record: each puts its own beside the others'.

use super::{LONGEST, Lock, Locks};
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

/// Two clocks that look at one lock may say that it ends so many seconds apart.
pub(super) const ROUNDING: u64 = 2;

/// A lock that a hub had and the record had too, or may have.
#[derive(Debug, Clone)]
struct Known<K> {
    lock: Lock<K>,
    /// Until when it was there: one that was not begun here may be longer.
    until: u64,
    /// Whether it was there for certain: another hub has lifted it then, once it is there no more.
    there: bool,
}

/// What a hub had when it last wrote the record, or read it.
#[derive(Debug, Default, Clone)]
pub struct Had {
    users: Vec<Known<String>>,
    addresses: Vec<Known<IpAddr>>,
}

impl Had {
    /// Those of `ours` that are in the record.
    pub fn new(ours: &Locks, record: &Locks) -> Self {
        Self { users: known(&ours.users, &record.users), addresses: known(&ours.addresses, &record.addresses) }
    }

    /// The same once `ours` may have been written: nobody knows before the answer, and perhaps not after it.
    pub fn perhaps(&self, ours: &Locks) -> Self {
        Self { users: perhaps(&self.users, &ours.users), addresses: perhaps(&self.addresses, &ours.addresses) }
    }
}

/// What is to be kept, and what this hub lets in too.
#[derive(Debug, Default)]
pub struct Merged {
    pub locks: Locks,
    /// Those of its locks that were lifted elsewhere.
    pub lifted: Locks,
}

impl Locks {
    /// What is to be kept where `kept` is by now: all locks of both, the longer one of each, of which the `most` that end
    /// last. What this hub had and has no more was let in again here, unless it was locked anew elsewhere; what it has as it
    /// was, and the record has no more, was let in again elsewhere. `None`: nothing is known of the record.
    pub fn merged(&self, had: &Had, kept: Option<Self>, clock: SystemTime, most: usize) -> Merged {
        let now = clock.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (users, addresses) = kept.map(|kept| (kept.users, kept.addresses)).unzip();
        let (users, lifted_users) = merged(&self.users, &had.users, users, now, most);
        let (addresses, lifted_addresses) = merged(&self.addresses, &had.addresses, addresses, now, most);
        Merged { locks: Self { users, addresses }, lifted: Self { users: lifted_users, addresses: lifted_addresses } }
    }
}

fn by_key<K: Hash + Eq>(locks: &[Lock<K>]) -> HashMap<&K, &Lock<K>> {
    locks.iter().map(|lock| (&lock.of, lock)).collect()
}

fn known<K: Hash + Eq + Clone>(ours: &[Lock<K>], record: &[Lock<K>]) -> Vec<Known<K>> {
    let record = by_key(record);
    let one = |lock: &Lock<K>| {
        let until = record.get(&lock.of)?.until;
        Some(Known { lock: lock.clone(), until, there: true })
    };
    ours.iter().filter_map(one).collect()
}

fn perhaps<K: Hash + Eq + Clone>(had: &[Known<K>], ours: &[Lock<K>]) -> Vec<Known<K>> {
    let mut all: HashMap<K, Known<K>> = had.iter().map(|known| (known.lock.of.clone(), known.clone())).collect();
    for lock in ours {
        let before = all.get(&lock.of);
        let (until, there) = before.map_or((0, false), |had| (had.until, had.there && had.lock.is(lock)));
        let now = Known { lock: lock.clone(), until: until.max(lock.until), there };
        all.insert(lock.of.clone(), now);
    }
    all.into_values().collect()
}

fn merged<K>(
    ours: &[Lock<K>],
    had: &[Known<K>],
    kept: Option<Vec<Lock<K>>>,
    now: u64,
    most: usize,
) -> (Vec<Lock<K>>, Vec<Lock<K>>)
where
    K: Hash + Eq + Ord + Clone,
{
    let had: HashMap<&K, &Known<K>> = had.iter().map(|known| (&known.lock.of, known)).collect();
    // Of a full record more are missing than were let in.
    let (lifted, ours) = match kept.as_deref().filter(|kept| kept.len() < most).map(by_key) {
        Some(kept) => {
            let unchanged = |lock: &Lock<K>| had.get(&lock.of).is_some_and(|had| had.there && had.lock.is(lock));
            ours.iter().cloned().partition(|lock| !kept.contains_key(&lock.of) && unchanged(lock))
        }
        None => (Vec::new(), ours.to_vec()),
    };
    let mut all: HashMap<K, Lock<K>> = ours.into_iter().map(|lock| (lock.of.clone(), lock)).collect();
    for lock in kept.into_iter().flatten().filter(|lock| now < lock.until) {
        // Not one that only ended sooner here, where rules may be others.
        let let_in = |had: &&Known<K>| {
            let same = |until: u64| lock.until <= until.saturating_add(ROUNDING);
            same(had.until) && (now < had.lock.until || same(had.lock.until))
        };
        match all.get_mut(&lock.of) {
            Some(own) => {
                own.failures = own.failures.max(lock.failures);
                own.until = own.until.max(lock.until.min(now.saturating_add(LONGEST)));
            }
            None if had.get(&lock.of).is_some_and(let_in) => {}
            // One that ends later than any begun now is of a clock that was wrong, and would be here for ever.
            None => {
                let until = lock.until.min(now.saturating_add(LONGEST));
                all.insert(lock.of.clone(), Lock { until, ..lock });
            }
        }
    }
    let mut all: Vec<Lock<K>> = all.into_values().collect();
    all.sort_by(|a, b| b.until.cmp(&a.until).then_with(|| a.of.cmp(&b.of)));
    all.truncate(most);
    (all, lifted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn locks(users: &[(&str, u32, u64)]) -> Locks {
        let lock = |&(of, failures, until): &(&str, u32, u64)| Lock { of: of.to_owned(), failures, until };
        Locks { users: users.iter().map(lock).collect(), addresses: Vec::new() }
    }

    fn both(ours: &Locks, had: &Had, kept: Option<Locks>, most: usize) -> [Vec<(String, u32, u64)>; 2] {
        let merged = ours.merged(had, kept, UNIX_EPOCH + Duration::from_secs(100), most);
        let users = |locks: Locks| locks.users.into_iter().map(|lock| (lock.of, lock.failures, lock.until)).collect();
        [users(merged.locks), users(merged.lifted)]
    }

    fn merged(ours: &Locks, had: &Had, kept: Locks, most: usize) -> Vec<(String, u32, u64)> {
        let [all, lifted] = both(ours, had, Some(kept), most);
        assert_eq!(lifted, []);
        all
    }

    fn said(all: &[(&str, u32, u64)]) -> Vec<(String, u32, u64)> {
        all.iter().map(|&(of, failures, until)| (of.to_owned(), failures, until)).collect()
    }

    #[test]
    fn locks_of_both_are_kept_and_the_longer_of_each() {
        let kept = locks(&[("ann", 9, 150), ("bob", 3, 300), ("over", 3, 100)]);
        let all = merged(&locks(&[("ann", 3, 200), ("eve", 3, 250)]), &Had::default(), kept, 10);
        assert_eq!(all, said(&[("bob", 3, 300), ("eve", 3, 250), ("ann", 9, 200)]));
        let all = merged(&locks(&[("ann", 3, 200), ("eve", 3, 250)]), &Had::default(), locks(&[("bob", 3, 300)]), 2);
        assert_eq!(all, said(&[("bob", 3, 300), ("eve", 3, 250)]), "those that end last");
    }

    #[test]
    fn who_was_let_in_again_here_stays_so_until_they_are_locked_anew_elsewhere() {
        let had = locks(&[("ann", 3, 200), ("bob", 3, 200)]);
        let kept = locks(&[("ann", 3, 201), ("bob", 3, 900)]);
        assert_eq!(merged(&locks(&[]), &Had::new(&had, &had), kept, 10), said(&[("bob", 3, 900)]));
    }

    #[test]
    fn who_was_let_in_again_here_stays_so_where_the_record_has_a_longer_lock_than_rules_permit_here() {
        let record = locks(&[("ann", 3, 900), ("anew", 3, 900), ("over", 3, 900)]);
        let had = Had::new(&locks(&[("ann", 3, 200), ("anew", 3, 200), ("over", 3, 90)]), &record);
        let kept = locks(&[("ann", 3, 900), ("anew", 3, 950), ("over", 3, 900)]);
        // One that is over here was let in by nobody.
        let want = said(&[("anew", 3, 950), ("over", 3, 900)]);
        assert_eq!(merged(&locks(&[]), &had, kept, 10), want);
    }

    #[test]
    fn who_was_let_in_again_elsewhere_is_let_in_here_too_unless_they_are_locked_anew() {
        let before = locks(&[("ann", 3, 200), ("bob", 3, 200), ("unwritten", 3, 200)]);
        let had = Had::new(&before, &locks(&[("ann", 3, 201), ("bob", 3, 200)]));
        let now = locks(&[("ann", 3, 201), ("bob", 3, 280), ("unwritten", 3, 200), ("new", 3, 250)]);
        let kept = || locks(&[("eve", 3, 300)]);
        let all = said(&[("eve", 3, 300), ("bob", 3, 280), ("new", 3, 250), ("unwritten", 3, 200)]);
        assert_eq!(both(&now, &had, Some(kept()), 10), [all, said(&[("ann", 3, 201)])]);
        // Nothing is known from a record that has no room, or that cannot be read.
        let full = said(&[("eve", 3, 300)]);
        assert_eq!(both(&now, &had, Some(kept()), 1), [full, vec![]]);
        assert_eq!(both(&now, &had, None, 10)[0].len(), 4);
    }

    #[test]
    fn what_was_perhaps_written_is_taken_out_again_and_what_perhaps_was_not_stays() {
        let (none, ann) = (locks(&[]), locks(&[("ann", 3, 200)]));
        let had = Had::default().perhaps(&ann);
        assert_eq!(merged(&none, &had, ann.clone(), 10), [], "it was, and they were let in again");
        assert_eq!(merged(&ann, &had, locks(&[]), 10), said(&[("ann", 3, 200)]), "it was not");
        // Nor is a lock that was begun anew one that another lifted.
        let had = Had::new(&ann, &ann).perhaps(&locks(&[("ann", 3, 280)]));
        assert_eq!(merged(&locks(&[("ann", 3, 280)]), &had, locks(&[]), 10), said(&[("ann", 3, 280)]));
    }
}
