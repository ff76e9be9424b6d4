//! What a cluster has to know of users, for its bundle.

use super::{Directory, Proof};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use moorline_authz::{
    access::{Facts, Grants},
    access_token::{LEEWAY, MAX_LIFE, cluster_life},
    bundle::{Bundle, BundleGrant, BundleKey, BundleUser, Revoked},
    identity::Identity,
};
use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{SystemTime, UNIX_EPOCH},
};

/// Logins and keys remembered after their end; those whose tokens are over first are forgotten first.
const REMEMBERED: usize = 100_000;

/// Logins and keys that were ended while tokens made by them may be out: name to the time of the last of these.
#[derive(Debug, Default)]
pub(super) struct Ended(BTreeMap<String, u64>);

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Ended {
    /// Notes one that would have lasted until `expires`.
    pub fn note(&mut self, id: &str, expires: SystemTime) {
        let now = crate::signing::now();
        let last = (now + cluster_life(MAX_LIFE).as_secs()).min(seconds(expires)) + LEEWAY.as_secs();
        self.0.retain(|_, until| now < *until);
        if now < last {
            self.0.insert(id.to_owned(), last);
        }
        while REMEMBERED < self.0.len() {
            let Some(first) = self.0.iter().min_by_key(|(_, until)| **until).map(|(id, _)| id.clone()) else { return };
            self.0.remove(&first);
        }
    }

    fn list(&self) -> Vec<Revoked> {
        let now = crate::signing::now();
        let live = self.0.iter().filter(|(_, until)| now < **until);
        live.map(|(id, until)| Revoked { id: id.clone(), until: *until }).collect()
    }
}

impl Directory {
    /// What was ended lately, to be kept over a restart.
    pub fn ended(&self) -> Vec<Revoked> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).list()
    }

    /// Takes up what was kept.
    pub fn recall(&self, kept: Vec<Revoked>) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.0.extend(kept.into_iter().take(REMEMBERED).map(|revoked| (revoked.id, revoked.until)));
    }

    /// Who may use `cluster`, by what, and with which keys of their own. Serial, times, issuer and signing keys are left
    /// to whoever signs.
    pub fn bundle(&self, cluster: &str) -> Bundle {
        let about = |clusters: &[String]| clusters.iter().any(|name| name == "*" || name == cluster);
        let (held, record) = self.index.read(|entries| {
            let held: Vec<_> = entries.grants.values().filter(|grant| about(&grant.clusters)).cloned().collect();
            (held, entries.recorded.get(cluster).copied().unwrap_or(self.index.usual()))
        });
        let grants = held.iter().map(|grant| BundleGrant {
            users: grant.users.clone(),
            groups: grant.groups.clone(),
            as_groups: grant.as_groups.clone(),
            record: grant.record,
        });
        let grants: Vec<_> = grants.collect();
        let index = Grants::new(held);
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let mut users: Vec<_> = maps
            .users
            .iter()
            .filter(|(_, user)| !user.gone.is_cancelled())
            .filter(|(name, user)| {
                let identity = Identity::new((*name).clone(), user.in_all.groups.iter().cloned());
                Facts { identity: &identity, token_clusters: None, grants: &index }.reaches(cluster)
            })
            .map(|(name, user)| BundleUser {
                name: name.clone(),
                uid: user.uid.clone(),
                groups: user.in_all.groups.to_vec(),
            })
            .collect();
        users.sort_by(|a, b| a.name.cmp(&b.name));
        let names = |clusters: &Option<std::sync::Arc<[String]>>| {
            clusters.as_ref().is_some_and(|only| only.iter().any(|name| name == cluster))
        };
        let now = SystemTime::now();
        let mut api_keys: Vec<_> = maps
            .tokens
            .iter()
            .filter(|(_, token)| {
                names(&token.clusters) && now < *token.life.expires.borrow() && !token.life.gone.is_cancelled()
            })
            .filter(|(_, token)| maps.users.get(&token.user).is_some_and(|user| user.uid == token.user_uid))
            .filter_map(|(id, token)| {
                let Proof::Key(hash) = &token.proof else { return None };
                Some(BundleKey {
                    id: id.clone(),
                    hash: URL_SAFE_NO_PAD.encode(hash.as_bytes()),
                    user: token.user.clone(),
                    expires: seconds(*token.life.expires.borrow()),
                    verbs: token.verbs.as_ref().map(|verbs| verbs.to_vec()),
                })
            })
            .collect();
        api_keys.sort_by(|a, b| a.id.cmp(&b.id));
        drop(maps);
        Bundle {
            cluster: cluster.to_owned(),
            users,
            grants,
            api_keys,
            revoked: self.ended(),
            record,
            ..Bundle::default()
        }
    }
}
