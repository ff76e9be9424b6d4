//! Kinds that are served in several versions. One is stored; what comes in another is turned into that on its way in, and
//! back on its way out, so everything between (rules, merges, selectors of the store) knows one shape alone.

use crate::{
    ApiError, ApiServer, Batch, Cause, CommitError, Expect, KindSpec, decode,
    ops::{Ops, Unknown, name_of, unavailable},
};
use serde_json::Value;
use std::sync::Arc;

/// Turns an object of one version into one of another, in place: `spec` and `status`; `apiVersion` is written by the server.
/// It is pure and total. Of a server-side apply it sees a part of an object alone, so it moves what is there and adds nothing.
pub type Convert = fn(&mut Value);

/// A further version of a kind.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) kind: KindSpec,
    up: Convert,
    down: Convert,
}

impl KindSpec {
    /// Serves the kind in a further version too, beside this one, which is stored. Columns, selectable fields and schema are
    /// those of `other`; rules and hooks are this one's.
    #[must_use]
    pub fn also(mut self, mut other: Self, to_stored: Convert, from_stored: Convert) -> Self {
        debug_assert_eq!((self.group, self.plural, self.kind), (other.group, other.plural, other.kind));
        (other.scale, other.has_status, other.owns) = (self.scale, self.has_status, self.owns);
        self.views.push(Arc::new(View { kind: other, up: to_stored, down: from_stored }));
        self
    }

    /// The kind as this version of it is served: `None` for the one that is stored.
    pub(crate) fn view(&self, version: &str) -> Option<Option<&Arc<View>>> {
        if self.version == version {
            return Some(None);
        }
        self.views.iter().find(|view| view.kind.version == version).map(Some)
    }
}

/// Every version of every kind, those that are stored first.
pub(crate) fn all(kinds: &[KindSpec]) -> Vec<KindSpec> {
    let views = kinds.iter().flat_map(|kind| kind.views.iter().map(|view| view.kind.clone()));
    kinds.iter().cloned().chain(views).collect()
}

impl View {
    /// A stored object in this version.
    pub(crate) fn see(&self, stored: &Value) -> Value {
        let mut object = stored.clone();
        (self.down)(&mut object);
        object["apiVersion"] = self.kind.api_version().into();
        object
    }

    /// An object that was sent in this version, as it is stored, and what to warn of. `whole`: it has to pass this version's
    /// schema; a part of one is checked once it was laid over the rest.
    ///
    /// # Errors
    /// It is none of this version.
    pub(crate) fn take(
        &self,
        stored: &KindSpec,
        sent: Value,
        unknown: Unknown,
        whole: bool,
    ) -> Result<(Value, Vec<String>), ApiError> {
        let (mut object, warnings) = decode::object(&self.kind, sent, unknown)?;
        if whole {
            self.shape(&mut object)?;
        }
        (self.up)(&mut object);
        object["apiVersion"] = stored.api_version().into();
        Ok((object, warnings))
    }

    /// This version's defaults and types.
    fn shape(&self, object: &mut Value) -> Result<(), ApiError> {
        let kind = &self.kind;
        if let Some(default) = &kind.default {
            default(object);
        }
        let mut causes: Vec<Cause> = Vec::new();
        for (field, schema) in [("spec", &kind.spec_schema), ("status", &kind.status_schema)] {
            if let Some(value) = object.get_mut(field).filter(|value| !value.is_null()) {
                schema.fill(value);
                causes.extend(schema.check(value, field));
            }
        }
        if causes.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(kind.group, kind.kind, name_of(object), &causes))
    }
}

impl ApiServer {
    /// Writes objects anew that are stored in a version which is not the stored one any more, and says how many: to be
    /// called at start, before anything is served.
    ///
    /// # Errors
    /// The store does not take writes.
    pub async fn migrate_versions(&self) -> Result<usize, ApiError> {
        self.ops().migrate_versions().await
    }
}

impl Ops {
    async fn migrate_versions(&self) -> Result<usize, ApiError> {
        let mut migrated = 0;
        for kind in &self.kinds {
            for view in &kind.views {
                let old = view.kind.api_version();
                for entry in self.store.list_with(&kind.prefix(), &[&old]) {
                    if entry.value["apiVersion"] != *old {
                        continue;
                    }
                    let mut new = (*entry.value).clone();
                    (view.up)(&mut new);
                    new["apiVersion"] = kind.api_version().into();
                    let object = Some((kind.key(name_of(&new)), Expect::Revision(entry.revision), Some(new)));
                    match self.store.commit(Batch { object, private: Vec::new() }).await {
                        Ok(_) => migrated += 1,
                        // Another hub on the same store was faster.
                        Err(CommitError::Conflict(_)) => {}
                        Err(other) => return Err(unavailable(&other)),
                    }
                }
            }
        }
        Ok(migrated)
    }
}
