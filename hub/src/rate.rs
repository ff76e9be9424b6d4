//! How often somebody may try something.

use std::{
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

/// When each is full again: one number says both how full it is and how old.
#[derive(Debug)]
struct Buckets<K> {
    full_at: HashMap<K, Instant>,
    /// The same in order: a flood of names that were never seen before must not look through all for the one to forget.
    order: BTreeSet<(Instant, K)>,
}

impl<K: Hash + Ord + Clone> Buckets<K> {
    fn set(&mut self, key: &K, full_at: Instant) {
        if let Some(before) = self.full_at.insert(key.clone(), full_at) {
            self.order.remove(&(before, key.clone()));
        }
        self.order.insert((full_at, key.clone()));
    }

    fn forget_one(&mut self) {
        if let Some((_, key)) = self.order.pop_first() {
            self.full_at.remove(&key);
        }
    }
}

impl<K: Hash + Ord + Clone> RateLimit<K> {
    /// `burst` at once, one more each `every`, for at most `capacity` keys.
    pub fn new(burst: u32, every: Duration, capacity: usize) -> Self {
        let buckets = Buckets { full_at: HashMap::new(), order: BTreeSet::new() };
        Self { burst, every, capacity: capacity.max(1), buckets: Mutex::new(buckets) }
    }

    fn lock(&self) -> MutexGuard<'_, Buckets<K>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one; `Err`: how long until the next is there.
    pub fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.lock();
        let known = buckets.full_at.get(key).copied();
        let next = known.map_or(now, |full_at| full_at.max(now)) + self.every;
        let most = now + self.every * self.burst;
        if next > most {
            return Err(next - most);
        }
        if known.is_none() && self.capacity <= buckets.full_at.len() {
            buckets.forget_one();
        }
        buckets.set(key, next);
        Ok(())
    }

    /// Gives one back: the attempt turned out to be a lawful one.
    pub fn give_back(&self, key: &K) {
        let mut buckets = self.lock();
        let before = buckets.full_at.get(key).and_then(|full_at| full_at.checked_sub(self.every));
        if let Some(full_at) = before {
            buckets.set(key, full_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((buckets.full_at.len(), buckets.order.len()), (2, 2));
        assert!(buckets.full_at.contains_key("a"), "who tried most is forgotten last");
    }
}
