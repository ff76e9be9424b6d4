//! How often somebody may try something.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Token buckets by key, bounded in number: when full, the bucket that was used longest ago is forgotten.
#[derive(Debug)]
pub(crate) struct RateLimit<K> {
    burst: u32,
    every: Duration,
    capacity: usize,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// When it is full again: one number says both how full it is and how old.
    full_at: Instant,
}

impl<K: Hash + Eq + Clone> RateLimit<K> {
    /// `burst` at once, one more each `every`, for at most `capacity` keys.
    pub fn new(burst: u32, every: Duration, capacity: usize) -> Self {
        Self { burst, every, capacity: capacity.max(1), buckets: Mutex::default() }
    }

    /// Takes one; `Err`: how long until the next is there.
    pub fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.get(key).map_or(now, |b| b.full_at.max(now));
        let next = full_at + self.every;
        let most = now + self.every * self.burst;
        if next > most {
            return Err(next - most);
        }
        if !buckets.contains_key(key) && buckets.len() >= self.capacity {
            buckets.retain(|_, b| b.full_at > now);
            if buckets.len() >= self.capacity
                && let Some(oldest) = buckets.iter().min_by_key(|(_, b)| b.full_at).map(|(k, _)| k.clone())
            {
                buckets.remove(&oldest);
            }
        }
        buckets.insert(key.clone(), Bucket { full_at: next });
        Ok(())
    }

    /// Gives one back: the attempt turned out to be a lawful one.
    pub fn give_back(&self, key: &K) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(key) {
            bucket.full_at = bucket.full_at.checked_sub(self.every).unwrap_or(bucket.full_at);
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
        assert!(rate.buckets.lock().unwrap().len() <= 2);
    }
}
