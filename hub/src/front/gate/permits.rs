//! Permits that were given before: most callers come to the same clusters again and again.

use crate::directory::Authenticated;
use moorline_authz::{
    access::{Denial, Facts, Grants, Permit, authorize},
    identity::{ActAs, Identity},
};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, Weak},
};

/// Permits remembered. When there are more, all are forgotten: each is made again in microseconds.
pub(super) const REMEMBERED: usize = 10_000;

/// Remembers what [`authorize`] gave. It gives the same for the same facts, and facts do not change: what changes is which ones
/// count. So a permit is known again by the very grants and the very identity that it was made from, and a right that is taken
/// away, which makes others of these, finds nothing here.
#[derive(Debug, Default)]
pub(crate) struct Permits(RwLock<Kept>);

/// A permit, and what else is asked of the same facts.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub permit: Permit,
    /// See [`Facts::reaches_all`].
    pub reaches_all: bool,
}

#[derive(Debug, Default)]
struct Kept {
    /// All are of these. Their address is nobody else's while this is held, and it holds none of them in memory.
    grants: Weak<Grants>,
    by_who: HashMap<usize, Of>,
    permits: usize,
}

/// Somebody's, by cluster.
#[derive(Debug)]
struct Of {
    /// Held, so that its address is nobody else's.
    identity: Arc<Identity>,
    clusters: HashMap<String, Given>,
}

impl Permits {
    /// May this caller reach this cluster? See [`authorize`]. Of who reaches all only what `exists` is
    /// remembered: they may ask for names without end.
    pub(super) fn authorize(
        &self,
        who: &Authenticated,
        grants: &Arc<Grants>,
        cluster: &str,
        act_as: Option<ActAs>,
        exists: impl FnOnce() -> bool,
    ) -> Result<Given, Denial> {
        let facts = Facts { identity: &who.identity, token_clusters: who.clusters.as_deref(), grants };
        let made = |act_as| {
            authorize(&facts, cluster, act_as).map(|permit| Given { permit, reaches_all: facts.reaches_all() })
        };
        // Who asks to act as somebody, or with a token for some clusters, is rare, and has more facts than the two.
        if act_as.is_some() || who.clusters.is_some() {
            return made(act_as);
        }
        if let Some(given) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&who.identity, grants, cluster) {
            return Ok(given.clone());
        }
        let given = made(None)?;
        if !given.reaches_all || exists() {
            let forgotten = {
                let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
                kept.put(&who.identity, grants, cluster, given.clone())
            };
            drop(forgotten); // while nobody waits
        }
        Ok(given)
    }

    #[cfg(test)]
    pub(super) fn forget(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        kept.by_who.values().map(|of| of.clusters.len()).sum()
    }
}

impl Kept {
    fn get(&self, identity: &Arc<Identity>, grants: &Arc<Grants>, cluster: &str) -> Option<&Given> {
        if self.grants.as_ptr() != Arc::as_ptr(grants) {
            return None;
        }
        let of = self.by_who.get(&Arc::as_ptr(identity).addr())?;
        of.clusters.get(cluster).filter(|_| Arc::ptr_eq(&of.identity, identity))
    }

    /// The answer is what is forgotten with that.
    fn put(&mut self, identity: &Arc<Identity>, grants: &Arc<Grants>, cluster: &str, given: Given) -> Option<Self> {
        let full = self.grants.as_ptr() != Arc::as_ptr(grants) || REMEMBERED <= self.permits;
        let anew = || Self { grants: Arc::downgrade(grants), ..Self::default() };
        let forgotten = full.then(|| std::mem::replace(self, anew()));
        let new = || Of { identity: Arc::clone(identity), clusters: HashMap::new() };
        let of = self.by_who.entry(Arc::as_ptr(identity).addr()).or_insert_with(new);
        if of.clusters.insert(cluster.to_owned(), given).is_none() {
            self.permits += 1;
        }
        forgotten
    }
}
