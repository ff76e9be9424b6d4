//! Whether a terminal's session is recorded: decided with the permit, from what cluster and grants say.

use super::{Facts, Grants};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::HashMap;

/// What is kept of a session in a terminal: `exec`, `attach`, a shell on a node. Each keeps more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Recording {
    /// Nothing but its record in the audit log.
    #[default]
    Never,
    /// What the terminal shows.
    Always,
    /// And what is typed, passwords included.
    WithInput,
}

impl Recording {
    /// Whether nothing is kept.
    pub fn is_never(&self) -> bool {
        *self == Self::Never
    }

    /// From a hub that may be newer: a word that is not known here asks for a recording of some kind.
    pub(crate) fn of_newer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::{IntoDeserializer, value::Error};
        let word = String::deserialize(deserializer)?;
        let read: Result<Self, Error> = Self::deserialize(word.as_str().into_deserializer());
        Ok(read.unwrap_or(Self::Always))
    }

    /// The same, where nothing may be said.
    pub(crate) fn maybe_of_newer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        #[derive(Deserialize)]
        struct Said(#[serde(deserialize_with = "Recording::of_newer")] Recording);
        Ok(Option::<Said>::deserialize(deserializer)?.map(|Said(recording)| recording))
    }
}

/// What is said of clusters.
#[derive(Debug, Clone, Default)]
pub(super) struct Recordings {
    usual: Recording,
    clusters: HashMap<String, Recording>,
}

impl Grants {
    /// With what is recorded where no grant says otherwise: in the clusters that are named, and in all others.
    #[must_use]
    pub fn with_recording(mut self, usual: Recording, clusters: impl IntoIterator<Item = (String, Recording)>) -> Self {
        self.recordings = Recordings { usual, clusters: clusters.into_iter().collect() };
        self
    }
}

/// The most that anybody asks for counts: of the cluster, or else of the hub, and of each grant by which the caller
/// reaches the cluster. `never` takes a caller out where every such grant says it; who administers the hub reaches
/// clusters by no grant, and is not taken out.
pub(super) fn decide(facts: &Facts<'_>, cluster: &str) -> Recording {
    let said = &facts.grants.recordings;
    let usual = said.clusters.get(cluster).copied().unwrap_or(said.usual);
    let (mut exempt, mut most) = (!facts.identity.is_admin(), Recording::Never);
    let mut any = false;
    for grant in facts.grants.opening(facts.identity, cluster) {
        any = true;
        exempt &= grant.record == Some(Recording::Never);
        most = most.max(grant.record.unwrap_or_default());
    }
    match (most, exempt && any) {
        (Recording::Never, true) => Recording::Never,
        (most, _) => most.max(usual),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Grant, authorize};
    use super::{Recording::*, *};
    use crate::identity::{ADMINS, Identity};

    fn of(usual: Recording, cluster: Option<Recording>, grants: &[Option<Recording>], admin: bool) -> Recording {
        let clusters = cluster.map(|recording| ("a".to_owned(), recording));
        let grants = grants.iter().map(|record| Grant {
            users: vec!["ann".to_owned()],
            clusters: vec!["a".to_owned()],
            record: *record,
            ..Grant::default()
        });
        let grants = Grants::new(grants).with_recording(usual, clusters);
        let identity = Identity::new("ann", admin.then_some(ADMINS));
        let facts = Facts { identity: &identity, token_clusters: None, grants: &grants };
        authorize(&facts, "a", None).unwrap().record()
    }

    #[test]
    fn the_most_that_anybody_asks_for_is_recorded() {
        for (usual, cluster, grants, admin, expected) in [
            (Never, None, &[None][..], false, Never),
            (Always, None, &[None], false, Always),
            (Always, Some(Never), &[None], false, Never),
            (Never, Some(Always), &[None], false, Always),
            (Never, None, &[None, Some(Always)], false, Always),
            (Never, Some(WithInput), &[Some(Always)], false, WithInput),
            (Never, Some(Always), &[Some(WithInput), Some(Never)], false, WithInput),
            // Taken out, by every grant or not at all.
            (Always, Some(Always), &[Some(Never)], false, Never),
            (Always, None, &[Some(Never), None], false, Always),
            (Always, None, &[Some(Never)], true, Always),
            (Always, None, &[], true, Always),
        ] {
            let got = of(usual, cluster, grants, admin);
            assert_eq!(got, expected, "{usual:?} {cluster:?} {grants:?} {admin}");
        }
    }
}
