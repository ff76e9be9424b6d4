//! What may be in a cluster without anybody having seen it there: an object that was asked for and never answered, one that a
//! listing does not have any more that was made while it was written. Until that is known it counts as there.

use super::{Key, Mirror, Objects, plain};
use crate::mirror::{CLUSTER_LABEL, PLUGIN_LABEL};
use kube::{Api, ResourceExt, api::DynamicObject};
use serde_json::Value;
use tokio::time::Instant;

/// What is to be taken away for certain waits for no more of these.
const ASKED_AT_ONCE: usize = 16;

impl Mirror {
    /// How many objects of the mirror's the cluster has, or may have.
    pub(super) fn there(&self) -> usize {
        let unseen = self.unsure.iter().filter(|key| !self.actual.contains_key(key)).count();
        let left_out: usize = self.left_out.values().map(|left| left.names.len()).sum();
        self.actual.len() + unseen + left_out
    }

    /// Asks after those of which nobody knows and that nobody wants any more: what is there of them is to be taken away. What
    /// is wanted is asked for again anyway. The answer: whether there are more to ask after.
    pub(super) async fn settle(&mut self, wanted: &Objects) -> bool {
        self.unsure.retain(|key| !self.actual.contains_key(key));
        let rests = |key: &Key| self.resting.get(key).is_some_and(|(until, _)| Instant::now() < *until);
        let made = |key: &Key| wanted.get(key).is_some_and(Value::is_object);
        let mut all = self.unsure.iter().filter(|key| !made(key) && !rests(key)).cloned();
        let due: Vec<Key> = all.by_ref().take(ASKED_AT_ONCE).collect();
        let more = all.next().is_some();
        for key in due {
            let Ok(kept) = self.kept(&key) else { continue };
            let api: Api<DynamicObject> = kept.api(&self.client, &key.namespace);
            match api.get_opt(&key.name).await {
                Ok(there) => {
                    self.unsure.remove(&key);
                    if let Some(there) = there.filter(|there| self.made(there)) {
                        self.actual.insert(key, plain(&there));
                    }
                }
                Err(error) => self.fail(key, super::words(error)),
            }
        }
        more
    }

    /// Whether it carries this mirror's labels.
    fn made(&self, object: &DynamicObject) -> bool {
        let is = |label: &str, value: &str| object.labels().get(label).is_some_and(|there| there == value);
        is(PLUGIN_LABEL, self.plugin) && is(CLUSTER_LABEL, &self.cluster_uid)
    }
}
