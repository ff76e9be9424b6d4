//! How much one user, one address and one cluster may ask for: over it there is 429 and when to come again.

use crate::rate::RateLimit;
use serde::Deserialize;
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// So many each second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rate {
    /// Requests each second, over time.
    pub per_second: u32,
    /// Requests at once.
    pub burst: u32,
}

/// Limits of requests that have proved who they are. None is set unless it is said: a cluster's own API server bounds
/// what it takes, and what a fleet's tools need differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimits {
    /// Of one user, wherever they are.
    pub per_user: Option<Rate>,
    /// Of one address, whoever is there.
    pub per_address: Option<Rate>,
    /// To one cluster, of all users together.
    pub per_cluster: Option<Rate>,
}

impl RateLimits {
    /// # Errors
    /// A rate of nothing, which would be a lock.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        let all = [self.per_user, self.per_address, self.per_cluster];
        let locked = all.into_iter().flatten().any(|rate| rate.per_second == 0 || rate.burst == 0);
        if locked { Err("perSecond and burst are at least 1") } else { Ok(()) }
    }
}

/// Where everybody is.
pub(crate) struct Quotas {
    users: Option<RateLimit<String>>,
    addresses: Option<RateLimit<IpAddr>>,
    clusters: Option<RateLimit<String>>,
}

/// Over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests {of}; come again in {} s", wait.as_secs() + 1)]
pub(crate) struct Over {
    of: &'static str,
    /// For metrics: one of a fixed set.
    pub label: &'static str,
    /// Until the next is there.
    pub wait: Duration,
}

impl Quotas {
    /// At most `remembered` users, addresses and clusters are kept count of.
    pub fn new(limits: &RateLimits, remembered: usize) -> Self {
        fn one<K: std::hash::Hash + Ord + Clone>(rate: Option<Rate>, remembered: usize) -> Option<RateLimit<K>> {
            rate.map(|rate| RateLimit::new(rate.burst, Duration::from_secs(1) / rate.per_second.max(1), remembered))
        }
        Self {
            users: one(limits.per_user, remembered),
            addresses: one(limits.per_address, remembered),
            clusters: one(limits.per_cluster, remembered),
        }
    }

    /// One more request of somebody.
    pub fn take(&self, user: &str, address: IpAddr) -> Result<(), Over> {
        let now = Instant::now();
        let over = |of, label| move |wait| Over { of, label, wait };
        if let Some(users) = &self.users {
            users.take(user, now).map_err(over("of this user", "quota_user"))?;
        }
        if let Some(addresses) = &self.addresses {
            addresses.take(&address, now).map_err(over("from this address", "quota_address"))?;
        }
        Ok(())
    }

    /// One more request to a cluster, of somebody who may reach it: nobody else uses up what its users have.
    pub fn take_cluster(&self, cluster: &str) -> Result<(), Over> {
        let Some(clusters) = &self.clusters else { return Ok(()) };
        let over = |wait| Over { of: "to this cluster", label: "quota_cluster", wait };
        clusters.take(cluster, Instant::now()).map_err(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_by_itself_and_told_when_to_come_again() {
        let rate = |burst| Some(Rate { per_second: 1, burst });
        let limits = RateLimits { per_user: rate(2), per_address: rate(3), per_cluster: rate(4) };
        let quotas = Quotas::new(&limits, 100);
        let (here, there): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let take = |user, at| quotas.take(user, at).map_err(|over| over.label);
        assert_eq!((take("ann", here), take("ann", here)), (Ok(()), Ok(())));
        assert_eq!(take("ann", there), Err("quota_user"));
        assert_eq!(take("bob", here), Ok(()));
        assert_eq!(take("bob", here), Err("quota_address"));
        assert!((0..4).all(|_| quotas.take_cluster("a").is_ok()));
        assert_eq!(quotas.take_cluster("a").map_err(|over| over.label), Err("quota_cluster"));
        assert_eq!(quotas.take_cluster("b"), Ok(()));
        let over = quotas.take("ann", there).unwrap_err();
        assert!(over.wait <= Duration::from_secs(1) && over.to_string().contains("of this user"), "{over}");
        let free = Quotas::new(&RateLimits::default(), 100);
        assert!((0..1000).all(|_| free.take("ann", here).is_ok() && free.take_cluster("a").is_ok()));
        assert!(RateLimits { per_user: rate(0), ..limits }.validate().is_err());
    }
}
