//! Several hubs keep their locks in one record: each puts its own beside the others'.

use super::{LONGEST, LeftOut, Lock, Locks};
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

/// Two clocks that look at one lock may say that it ends so many seconds apart.
pub(super) const ROUNDING: u64 = 2;
/// How long a lock that is over stays in the record, in seconds: by the clock of another hub it may not be over yet.
const GRACE: u64 = 10 * 60;
/// Locks that a hub knows to have been in the record, or perhaps, at most: those that end last. More than the record takes
/// come together only while writes have no answer. Of one that is forgotten nothing follows: it is taken for another's where
/// it was let in again here, and stays where it was let in elsewhere.
const KNOWN: usize = 2_000;

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
    pub fn perhaps(&self, ours: &Locks, clock: SystemTime) -> Self {
        let now = seconds(clock);
        Self {
            users: perhaps(&self.users, &ours.users, now),
            addresses: perhaps(&self.addresses, &ours.addresses, now),
        }
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
    /// was, and the record has no more, was let in again elsewhere, unless there was no room for it. `None`: nothing is known
    /// of the record.
    pub fn merged(&self, had: &Had, kept: Option<Self>, clock: SystemTime, most: usize) -> Merged {
        let now = seconds(clock);
        let (users, addresses) = kept
            .map(|Self { users, addresses, left_out }| {
                ((users, left_out.map(|by| by.users)), (addresses, left_out.map(|by| by.addresses)))
            })
            .unzip();
        let users = merged(&self.users, &had.users, users, now, most);
        let addresses = merged(&self.addresses, &had.addresses, addresses, now, most);
        let left_out = Some(LeftOut { users: users.left_out, addresses: addresses.left_out });
        Merged {
            locks: Self { users: users.locks, addresses: addresses.locks, left_out },
            lifted: Self { users: users.lifted, addresses: addresses.lifted, left_out: None },
        }
    }
}

fn seconds(clock: SystemTime) -> u64 {
    clock.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
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

fn perhaps<K: Hash + Eq + Clone>(had: &[Known<K>], ours: &[Lock<K>], now: u64) -> Vec<Known<K>> {
    let end = |known: &Known<K>| known.until.max(known.lock.until);
    // The record does not have it for longer either.
    let had = had.iter().filter(|known| now < end(known).saturating_add(GRACE));
    let mut all: HashMap<K, Known<K>> = had.map(|known| (known.lock.of.clone(), known.clone())).collect();
    for lock in ours {
        let before = all.get(&lock.of);
        let (until, there) = before.map_or((0, false), |had| (had.until, had.there && had.lock.is(lock)));
        let now = Known { lock: lock.clone(), until: until.max(lock.until), there };
        all.insert(lock.of.clone(), now);
    }
    let mut all: Vec<Known<K>> = all.into_values().collect();
    all.sort_by_key(|known| std::cmp::Reverse(end(known)));
    all.truncate(KNOWN);
    all
}

/// What [`Merged`] has of one kind, and up to when there may be more.
struct Part<K> {
    locks: Vec<Lock<K>>,
    lifted: Vec<Lock<K>>,
    left_out: u64,
}

/// `kept`: what the record has, and up to when what it does not have may have been left out of it; `None`: it does not say.
fn merged<K>(
    ours: &[Lock<K>],
    had: &[Known<K>],
    kept: Option<(Vec<Lock<K>>, Option<u64>)>,
    now: u64,
    most: usize,
) -> Part<K>
where
    K: Hash + Eq + Ord + Clone,
{
    let had: HashMap<&K, &Known<K>> = had.iter().map(|known| (&known.lock.of, known)).collect();
    // What ends later than any lock that begins now is of a clock that was wrong, and would be here for ever.
    let sane = |until: u64| until.min(now.saturating_add(LONGEST));
    let said = kept.as_ref().and_then(|(_, left_out)| *left_out);
    // Of a full record more are missing than were let in. One of an older version was full when it was written, whatever is
    // over by now; and what it had no room for ended no later than all that it has.
    let full = |kept: &[Lock<K>]| match said {
        Some(_) => most <= kept.iter().filter(|lock| now < lock.until).count(),
        None => most <= kept.len(),
    };
    let unsaid = || kept.as_ref().filter(|(kept, _)| full(kept))?.0.iter().map(|lock| lock.until).min();
    let mut left_out = sane(said.or_else(unsaid).unwrap_or_default());
    let (lifted, ours) = match kept.as_ref().filter(|(kept, _)| !full(kept)).map(|(kept, _)| by_key(kept)) {
        Some(kept) => {
            let unchanged = |lock: &Lock<K>| had.get(&lock.of).is_some_and(|had| had.there && had.lock.is(lock));
            let had_room = |lock: &Lock<K>| left_out.saturating_add(ROUNDING) < lock.until;
            ours.iter().cloned().partition(|lock| !kept.contains_key(&lock.of) && unchanged(lock) && had_room(lock))
        }
        None => (Vec::new(), ours.to_vec()),
    };
    let mut all: HashMap<K, Lock<K>> = ours.into_iter().map(|lock| (lock.of.clone(), lock)).collect();
    for lock in kept.into_iter().flat_map(|(kept, _)| kept) {
        if lock.until.saturating_add(GRACE) <= now {
            left_out = left_out.max(lock.until);
            continue;
        }
        // Not one that only ended here, where rules and clock may be others: nobody let it in.
        let let_in = |had: &&Known<K>| {
            lock.until <= had.until.saturating_add(ROUNDING) && now.saturating_add(ROUNDING) < had.lock.until
        };
        match all.get_mut(&lock.of) {
            Some(own) if now < lock.until => {
                own.failures = own.failures.max(lock.failures);
                own.until = own.until.max(sane(lock.until));
            }
            // Begun since that one was over.
            Some(_) => {}
            None if had.get(&lock.of).is_some_and(let_in) => {}
            None => {
                let until = sane(lock.until);
                all.insert(lock.of.clone(), Lock { until, ..lock });
            }
        }
    }
    let mut all: Vec<Lock<K>> = all.into_values().collect();
    all.sort_by(|a, b| b.until.cmp(&a.until).then_with(|| a.of.cmp(&b.of)));
    let over = all.split_off(most.min(all.len()));
    let left_out = over.iter().map(|lock| lock.until).fold(left_out, u64::max);
    Part { locks: all, lifted, left_out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn locks(users: &[(&str, u32, u64)]) -> Locks {
        let lock = |&(of, failures, until): &(&str, u32, u64)| Lock { of: of.to_owned(), failures, until };
        Locks { users: users.iter().map(lock).collect(), ..Locks::default() }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn both(ours: &Locks, had: &Had, kept: Option<Locks>, most: usize) -> [Vec<(String, u32, u64)>; 2] {
        let merged = ours.merged(had, kept, at(100), most);
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
        assert_eq!(all, said(&[("bob", 3, 300), ("eve", 3, 250), ("ann", 9, 200), ("over", 3, 100)]));
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
        let had = Had::default().perhaps(&ann, at(100));
        assert_eq!(merged(&none, &had, ann.clone(), 10), [], "it was, and they were let in again");
        assert_eq!(merged(&ann, &had, locks(&[]), 10), said(&[("ann", 3, 200)]), "it was not");
        // Nor is a lock that was begun anew one that another lifted.
        let had = Had::new(&ann, &ann).perhaps(&locks(&[("ann", 3, 280)]), at(100));
        assert_eq!(merged(&locks(&[("ann", 3, 280)]), &had, locks(&[]), 10), said(&[("ann", 3, 280)]));
    }

    #[test]
    fn a_lock_that_is_over_by_one_clock_alone_is_lifted_by_nobody() {
        let (none, ann) = (locks(&[]), locks(&[("ann", 3, 9_990)]));
        // Here it is 10,000: it is over, whether this hub had it or not. There it is a minute less.
        for had in [Had::default(), Had::new(&ann, &ann)] {
            let record = none.merged(&had, Some(ann.clone()), at(10_000), 10).locks;
            let there = ann.merged(&Had::new(&ann, &ann), Some(record.clone()), at(9_940), 10);
            assert!(there.lifted.users.is_empty() && there.locks.users[0].of == "ann");
            // Nor is it back as one of here: who fails anew has a count of their own.
            let anew = locks(&[("ann", 1, 10_900)]);
            let record = anew.merged(&Had::default(), Some(record), at(10_000), 10).locks;
            assert_eq!((record.users[0].failures, record.users[0].until), (1, 10_900));
        }
        // It stays for its grace, and one whose clock is further behind than that still has it.
        let later = |seconds| none.merged(&Had::default(), Some(ann.clone()), at(seconds), 10).locks;
        assert_eq!(later(9_990 + GRACE - 1).users.len(), 1);
        let record = later(9_990 + GRACE);
        assert!(record.users.is_empty());
        let there = ann.merged(&Had::new(&ann, &ann), Some(record), at(9_940), 10);
        assert!(there.lifted.users.is_empty() && there.locks.users[0].of == "ann");
    }

    #[test]
    fn what_the_record_had_no_room_for_is_lifted_nowhere() {
        let (ann, eve) = (locks(&[("ann", 3, 200)]), locks(&[("eve", 3, 260)]));
        let others = locks(&[("bob", 3, 300), ("cid", 3, 290)]);
        let full = others.merged(&Had::default(), Some(ann.clone()), at(100), 2).locks;
        assert!(full.users.iter().all(|lock| lock.of != "ann"));
        // Then one of the others is let in, and it is not full any more.
        let less = locks(&[("bob", 3, 300)]);
        let record = less.merged(&Had::new(&others, &full), Some(full), at(100), 2).locks;
        assert_eq!(record.users.len(), 1);
        let there = ann.merged(&Had::new(&ann, &ann), Some(record.clone()), at(100), 2);
        assert!(there.lifted.users.is_empty() && there.locks.users.iter().any(|lock| lock.of == "ann"));
        // One that would have had room was let in.
        let there = eve.merged(&Had::new(&eve, &eve), Some(record), at(100), 2);
        assert_eq!(there.lifted.users.len(), 1);
        // A record without end is of a clock that was wrong: it is bounded as locks are.
        let wrong = Locks { left_out: Some(LeftOut { users: u64::MAX, addresses: 0 }), ..Locks::default() };
        assert_eq!(less.merged(&Had::default(), Some(wrong), at(100), 2).locks.left_out.unwrap().users, 100 + LONGEST);
    }

    #[test]
    fn what_a_full_record_of_an_older_version_had_no_room_for_is_lifted_nowhere_though_one_that_it_has_is_over() {
        // Here it is 100: of the two that it has one is over.
        let older = || {
            serde_json::from_str::<Locks>(
                r#"{"users":[{"of":"bob","failures":3,"until":300},{"of":"cid","failures":3,"until":90}],"addresses":[]}"#,
            )
        };
        let ann = locks(&[("ann", 3, 200)]);
        let had = Had::new(&ann, &ann);
        assert_eq!(merged(&ann, &had, older().unwrap(), 2), said(&[("bob", 3, 300), ("ann", 3, 200)]));
        // One that has room is told the truth by it.
        let lifted = both(&ann, &had, Some(older().unwrap()), 3)[1].clone();
        assert_eq!(lifted, said(&[("ann", 3, 200)]));
        // Written by this version, it says up to when what it does not have may have been left out.
        let older = Locks { users: locks(&[("bob", 3, 300), ("cid", 3, 280)]).users, ..older().unwrap() };
        let none = locks(&[]);
        let less = none.merged(&Had::new(&older, &older), Some(older), at(100), 2).locks;
        assert!(less.users.is_empty(), "all were let in here");
        assert_eq!(merged(&ann, &had, less, 2), said(&[("ann", 3, 200)]));
    }

    #[test]
    fn what_was_perhaps_written_is_bounded_however_long_no_answer_comes() {
        let (mut had, mut names) = (Had::default(), 0..);
        for round in 0..20 {
            let ours = names.by_ref().take(KNOWN / 4).map(|n: u64| Lock { of: n.to_string(), failures: 3, until: n });
            let ours = Locks { users: ours.collect(), ..Locks::default() };
            had = had.perhaps(&ours, at(0));
            assert!(had.users.len() <= KNOWN, "{round}");
        }
        // Those that end last are known.
        let last = names.next().unwrap() - 1;
        assert!(had.users.iter().any(|known| known.lock.until == last));
        assert!(had.users.iter().all(|known| last - known.lock.until < KNOWN as u64));
        // And what is over is not: the record does not have it either.
        assert!(had.perhaps(&locks(&[]), at(last + GRACE)).users.is_empty());
    }
}
