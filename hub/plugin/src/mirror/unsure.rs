//! What may be in a cluster without anybody having seen it there: an object that was asked for and never answered, one that a
//! listing does not have any more that was made while it was written. Until that is known it counts as there. A write without
//! an answer may be made later, so that it says nothing that its object is not there yet: [`limits::LANDING`].

use super::{CLUSTER_LABEL, Key, Mirror, Objects, PLUGIN_LABEL, plain};
use crate::limits;
use kube::{Api, ResourceExt, api::DynamicObject};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// What is to be taken away for certain waits for no more of these.
const ASKED_AT_ONCE: usize = 16;

/// What may be there, and until when it may still come. Clones share it: who takes a mirror's place in a cluster has to know
/// of what that one had on its way.
#[derive(Debug, Clone, Default)]
pub(super) struct Unsure(Arc<Mutex<BTreeMap<Key, Instant>>>);

impl Unsure {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody has it, and nothing of it may still come.
    pub fn is_over(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.lock().values().all(|until| *until <= Instant::now())
    }

    pub fn contains(&self, key: &Key) -> bool {
        self.lock().contains_key(key)
    }

    pub fn keys(&self) -> BTreeSet<Key> {
        self.lock().keys().cloned().collect()
    }

    /// Those that cannot come any more: whether they are there can be asked.
    pub fn due(&self) -> BTreeSet<Key> {
        let now = Instant::now();
        self.lock().iter().filter(|(_, until)| **until <= now).map(|(key, _)| key.clone()).collect()
    }

    /// It was there, and a listing does not have it.
    pub fn missing(&self, key: Key) {
        self.lock().entry(key).or_insert_with(Instant::now);
    }

    /// It is asked for from now on. What was known before is for [`Self::answered`].
    pub fn asking(&self, key: &Key) -> Option<Instant> {
        self.lock().insert(key.clone(), Instant::now() + limits::LANDING)
    }

    /// It was answered, and is there if it was `made`. One that was asked for before and was not answered may come after it; and
    /// a refusal says nothing of what came of that.
    pub fn answered(&self, key: &Key, before: Option<Instant>, made: bool) {
        let mut all = self.lock();
        match before.filter(|until| !made || Instant::now() < *until) {
            Some(until) => drop(all.insert(key.clone(), until)),
            None => drop(all.remove(key)),
        }
    }

    fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }
}

impl Mirror {
    /// How many objects of the mirror's the cluster has, or may have.
    pub(super) fn there(&self) -> usize {
        let unseen = self.unsure.lock().keys().filter(|key| !self.actual.contains_key(key)).count();
        let left_out: usize = self.left_out.values().map(|left| left.names.len()).sum();
        self.actual.len() + unseen + left_out
    }

    /// When there is one to ask after: nobody wants it and nobody saw it. The time may be over.
    pub(super) fn ask_at(&self, wanted: &Objects) -> Option<Instant> {
        let all = self.unsure.lock();
        let unseen = all.iter().filter(|(key, _)| !made(wanted, key) && !self.actual.contains_key(key));
        unseen.filter(|(key, _)| !self.resting.contains_key(key)).map(|(_, until)| *until).min()
    }

    /// Asks after those of which nobody knows and that nobody wants any more: what is there of them is to be taken away. What
    /// is wanted is asked for again anyway.
    pub(super) async fn settle(&mut self, wanted: &Objects) {
        let now = Instant::now();
        self.unsure.lock().retain(|key, until| now < *until || !self.actual.contains_key(key));
        let rests = |key: &Key| self.resting.get(key).is_some_and(|(until, _)| now < *until);
        let due = |key: &Key| !made(wanted, key) && !rests(key) && !self.actual.contains_key(key);
        let due: Vec<Key> = self.unsure.due().into_iter().filter(due).take(ASKED_AT_ONCE).collect();
        for key in due {
            let kept = match self.kept(&key) {
                Ok(kept) => kept,
                Err(why) => {
                    self.fail(key, why);
                    continue;
                }
            };
            let api: Api<DynamicObject> = kept.api(&self.client, &key.namespace);
            match api.get_opt(&key.name).await {
                Ok(there) => {
                    self.unsure.forget(&key);
                    self.resting.remove(&key);
                    if let Some(there) = there.filter(|there| self.made(there)) {
                        self.actual.insert(key, plain(&there));
                    }
                }
                Err(error) => self.fail(key, super::words(error)),
            }
        }
    }

    /// Whether it carries this mirror's labels.
    fn made(&self, object: &DynamicObject) -> bool {
        let is = |label: &str, value: &str| object.labels().get(label).is_some_and(|there| there == value);
        is(PLUGIN_LABEL, self.plugin) && is(CLUSTER_LABEL, &self.cluster_uid)
    }
}

/// Whether an object of that name is to be there.
fn made(wanted: &Objects, key: &Key) -> bool {
    wanted.get(key).is_some_and(Value::is_object)
}
