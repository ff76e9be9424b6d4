//! Several hubs keep their locks in one record: each puts its own beside the others'.

use super::{LONGEST, Lock, Locks};
use std::{
    collections::HashMap,
    hash::Hash,
    time::{SystemTime, UNIX_EPOCH},
};

/// Two clocks that look at one lock may say that it ends so many seconds apart.
const ROUNDING: u64 = 2;

impl Locks {
    /// What is to be kept where `kept` is by now: all locks of both, the longer one of each, of which the `most` that end
    /// last. What this hub had and has no more was let in again here, unless it was locked anew elsewhere.
    pub fn merged(&self, had: &Self, kept: Self, clock: SystemTime, most: usize) -> Self {
        let now = clock.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            users: merged(&self.users, &had.users, kept.users, now, most),
            addresses: merged(&self.addresses, &had.addresses, kept.addresses, now, most),
        }
    }
}

fn merged<K>(ours: &[Lock<K>], had: &[Lock<K>], kept: Vec<Lock<K>>, now: u64, most: usize) -> Vec<Lock<K>>
where
    K: Hash + Eq + Ord + Clone,
{
    let ended: HashMap<&K, u64> = had.iter().map(|lock| (&lock.of, lock.until)).collect();
    let mut all: HashMap<K, Lock<K>> = ours.iter().map(|lock| (lock.of.clone(), lock.clone())).collect();
    for lock in kept.into_iter().filter(|lock| now < lock.until) {
        match all.get_mut(&lock.of) {
            Some(own) => {
                own.failures = own.failures.max(lock.failures);
                own.until = own.until.max(lock.until.min(now.saturating_add(LONGEST)));
            }
            None if ended.get(&lock.of).is_some_and(|until| lock.until <= until.saturating_add(ROUNDING)) => {}
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
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn locks(users: &[(&str, u32, u64)]) -> Locks {
        let lock = |&(of, failures, until): &(&str, u32, u64)| Lock { of: of.to_owned(), failures, until };
        Locks { users: users.iter().map(lock).collect(), addresses: Vec::new() }
    }

    fn merged(ours: &Locks, had: &Locks, kept: Locks, most: usize) -> Vec<(String, u32, u64)> {
        let merged = ours.merged(had, kept, UNIX_EPOCH + Duration::from_secs(100), most);
        merged.users.into_iter().map(|lock| (lock.of, lock.failures, lock.until)).collect()
    }

    fn said(all: &[(&str, u32, u64)]) -> Vec<(String, u32, u64)> {
        all.iter().map(|&(of, failures, until)| (of.to_owned(), failures, until)).collect()
    }

    #[test]
    fn locks_of_both_are_kept_and_the_longer_of_each() {
        let kept = locks(&[("ann", 9, 150), ("bob", 3, 300), ("over", 3, 100)]);
        let all = merged(&locks(&[("ann", 3, 200), ("eve", 3, 250)]), &locks(&[]), kept, 10);
        assert_eq!(all, said(&[("bob", 3, 300), ("eve", 3, 250), ("ann", 9, 200)]));
        let all = merged(&locks(&[("ann", 3, 200), ("eve", 3, 250)]), &locks(&[]), locks(&[("bob", 3, 300)]), 2);
        assert_eq!(all, said(&[("bob", 3, 300), ("eve", 3, 250)]), "those that end last");
    }

    #[test]
    fn who_was_let_in_again_here_stays_so_until_they_are_locked_anew_elsewhere() {
        let had = locks(&[("ann", 3, 200), ("bob", 3, 200)]);
        let kept = locks(&[("ann", 3, 201), ("bob", 3, 900)]);
        assert_eq!(merged(&locks(&[]), &had, kept, 10), said(&[("bob", 3, 900)]));
    }
}
