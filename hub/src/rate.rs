//! How often somebody may try something.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Token buckets by key, bounded in number: when there are too many, the one that is full first is forgotten.
#[derive(Debug)]
pub(crate) struct RateLimit<K> {
    burst: u32,
    every: Duration,
    capacity: usize,
    buckets: Mutex<Buckets<K>>,
}

#[derive(Debug)]
struct Buckets<K> {
    of: HashMap<K, Bucket>,
    /// In the order of `noted`: a flood of names that were never seen before must not look through all for the one to forget.
    order: BTreeSet<(Instant, K)>,
}

#[derive(Debug)]
struct Bucket {
    /// When it is full again: one number says both how full it is and how old.
    full_at: Instant,
    /// Where it stands in the order, never after `full_at`. It moves up when it comes to be looked at there, and not with
    /// each one that is taken: most of these are never asked for their place.
    noted: Instant,
}

impl<K: Hash + Ord + Clone> Buckets<K> {
    fn add(&mut self, key: K, full_at: Instant) {
        self.order.insert((full_at, key.clone()));
        self.of.insert(key, Bucket { full_at, noted: full_at });
    }

    /// The one that is full first. What stands too early in the order moves up, once for all that was taken of it.
    fn forget_one(&mut self) {
        while let Some((noted, key)) = self.order.pop_first() {
            match self.of.get_mut(&key) {
                Some(bucket) if noted < bucket.full_at => {
                    bucket.noted = bucket.full_at;
                    self.order.insert((bucket.noted, key));
                }
                _ => {
                    self.of.remove(&key);
                    return;
                }
            }
        }
    }
}

impl<K: Hash + Ord + Clone> RateLimit<K> {
    /// `burst` at once, one more each `every`, for at most `capacity` keys.
    pub fn new(burst: u32, every: Duration, capacity: usize) -> Self {
        let buckets = Buckets { of: HashMap::new(), order: BTreeSet::new() };
        Self { burst, every, capacity: capacity.max(1), buckets: Mutex::new(buckets) }
    }

    fn lock(&self) -> MutexGuard<'_, Buckets<K>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one; `Err`: how long until the next is there.
    pub fn take<Q>(&self, key: &Q, now: Instant) -> Result<(), Duration>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let mut buckets = self.lock();
        let known = buckets.of.get_mut(key);
        let next = known.as_ref().map_or(now, |bucket| bucket.full_at.max(now)) + self.every;
        let most = now + self.every * self.burst;
        if next > most {
            return Err(next - most);
        }
        match known {
            Some(bucket) => bucket.full_at = next,
            None => {
                if self.capacity <= buckets.of.len() {
                    buckets.forget_one();
                }
                buckets.add(key.to_owned(), next);
            }
        }
        Ok(())
    }

    /// Gives one back: the attempt turned out to be a lawful one.
    pub fn give_back(&self, key: &K) {
        let mut buckets = self.lock();
        let Some(bucket) = buckets.of.get_mut(key) else { return };
        let Some(full_at) = bucket.full_at.checked_sub(self.every) else { return };
        bucket.full_at = full_at;
        let noted = bucket.noted;
        // It may be the first now.
        if full_at < noted {
            bucket.noted = full_at;
            buckets.order.remove(&(noted, key.clone()));
            buckets.order.insert((full_at, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_burst_then_one_each_interval_and_no_growth() {
        let rate = RateLimit::new(3, Duration::from_secs(1), 2);
        let now = Instant::now();
        assert!((0..3).all(|_| rate.take(&"a", now).is_ok()));
        assert_eq!(rate.take(&"a", now), Err(Duration::from_secs(1)));
        assert!(rate.take(&"a", now + Duration::from_secs(1)).is_ok());
        rate.give_back(&"a");
        assert!(rate.take(&"a", now + Duration::from_secs(1)).is_ok());
        for key in ["b", "c", "d"] {
            assert!(rate.take(&key, now).is_ok());
        }
        let buckets = rate.lock();
        assert_eq!((buckets.of.len(), buckets.order.len()), (2, 2));
        assert!(buckets.of.contains_key("a"), "who tried most is forgotten last");
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Take(u8),
        GiveBack(u8),
        Pause(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..6).prop_map(Step::Take),
            1 => (0u8..6).prop_map(Step::GiveBack),
            1 => (0u64..4).prop_map(Step::Pause),
        ]
    }

    proptest! {
        /// Whatever is done: who is let in, and who is forgotten, is the same as where the order is made anew each time.
        #[test]
        fn the_one_that_is_full_first_is_forgotten(steps in prop::collection::vec(step(), 0..200)) {
            const BURST: u32 = 5;
            const CAPACITY: usize = 3;
            let every = Duration::from_secs(1);
            let rate = RateLimit::new(BURST, every, CAPACITY);
            let (begun, mut now) = (Instant::now() + every * 1000, Instant::now() + every * 1000);
            let mut plain: BTreeMap<u8, Instant> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Pause(seconds) => now += every * seconds as u32,
                    Step::GiveBack(key) => {
                        rate.give_back(&key);
                        plain.entry(key).and_modify(|full_at| *full_at -= every);
                    }
                    Step::Take(key) => {
                        let next = plain.get(&key).map_or(now, |full_at| now.max(*full_at)) + every;
                        let fits = next <= now + every * BURST;
                        prop_assert_eq!(rate.take(&key, now).is_ok(), fits, "{:?}", now - begun);
                        if fits && !plain.contains_key(&key) && plain.len() == CAPACITY {
                            let first = plain.iter().min_by_key(|(key, full_at)| (**full_at, **key)).map(|(key, _)| *key);
                            plain.remove(&first.unwrap());
                        }
                        if fits {
                            plain.insert(key, next);
                        }
                    }
                }
                let buckets = rate.lock();
                let kept: BTreeMap<u8, Instant> = buckets.of.iter().map(|(key, bucket)| (*key, bucket.full_at)).collect();
                prop_assert_eq!(&kept, &plain);
                prop_assert_eq!(buckets.order.len(), plain.len());
            }
        }
    }
}
