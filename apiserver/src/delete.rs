//! Deletion, and what goes with it: finalizers, dependents, orphans.

use crate::{
    ApiError, Batch, CommitError, Entry, Expect, KindSpec,
    ops::{MODIFIED, Ops, name_of, now, text, unavailable},
};
use serde_json::{Value, json};

/// What a deletion has to find.
#[derive(Debug, Clone, Default)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

/// What becomes of an object's dependents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// They go after it.
    #[default]
    Background,
    /// They go before it.
    Foreground,
    /// They stay, without the reference.
    Orphan,
}

/// What came of a deletion.
pub(crate) enum Deleted {
    /// It is gone; this is what it was.
    Gone(Value),
    /// It is marked: finalizers, or its dependents, hold it.
    Held(Value),
}

const FOREGROUND: &str = "foregroundDeletion";

fn finalizers(object: &Value) -> &[Value] {
    object["metadata"]["finalizers"].as_array().map_or(&[], Vec::as_slice)
}

fn is_going(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

fn depends_on<'a>(object: &'a Value, uid: &str) -> Option<&'a Value> {
    object["metadata"]["ownerReferences"].as_array()?.iter().find(|o| o["uid"] == uid)
}

impl Preconditions {
    fn check(&self, kind: &KindSpec, object: &Value) -> Result<(), ApiError> {
        for (what, wanted, pointer, perhaps) in [
            ("UID", &self.uid, "/metadata/uid", "deleted and then recreated"),
            ("ResourceVersion", &self.resource_version, "/metadata/resourceVersion", "modified"),
        ] {
            let found = text(object, pointer);
            if let Some(wanted) = wanted.as_ref().filter(|w| *w != found) {
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object \
                     might have been {perhaps}"
                );
                return Err(ApiError::conflict(kind.group, kind.kind, name_of(object), &why));
            }
        }
        Ok(())
    }
}

impl Ops {
    pub(crate) async fn delete(
        &self,
        kind: &KindSpec,
        name: &str,
        wanted: &Preconditions,
        propagation: Propagation,
        dry_run: bool,
    ) -> Result<Deleted, ApiError> {
        for _ in 0..self.limits.conflict_retries {
            let old = self.get(kind, name)?;
            wanted.check(kind, &old.value)?;
            if propagation == Propagation::Orphan && !dry_run {
                self.orphan(kind, &old.value).await?;
            }
            let foreground = propagation == Propagation::Foreground && !kind.owns.is_empty();
            let held = foreground || !finalizers(&old.value).is_empty();
            let mut new = (*old.value).clone();
            if held {
                mark(&mut new, foreground);
                if new == *old.value {
                    return Ok(Deleted::Held(new));
                }
            }
            if dry_run {
                return Ok(if held { Deleted::Held(new) } else { Deleted::Gone(new) });
            }
            match self.put(kind, name, &old, held.then(|| new.clone())).await {
                Ok(revision) if held => {
                    new["metadata"]["resourceVersion"] = revision.to_string().into();
                    if foreground {
                        self.dependents_first(kind, &new).await?;
                    }
                    return Ok(Deleted::Held(new));
                }
                Ok(_) => {
                    self.gone(kind, &old.value).await?;
                    return Ok(Deleted::Gone(new));
                }
                Err(CommitError::Conflict(_)) => {}
                Err(other) => return Err(unavailable(&other)),
            }
        }
        Err(ApiError::conflict(kind.group, kind.plural, name, MODIFIED))
    }

    async fn put(&self, kind: &KindSpec, name: &str, old: &Entry, value: Option<Value>) -> Result<u64, CommitError> {
        let object = Some((kind.key(name), Expect::Revision(old.revision), value));
        self.store.commit(Batch { object, private: Vec::new() }).await
    }

    /// What follows when an object is gone: its dependents go, and owners that waited for it.
    pub(crate) async fn gone(&self, kind: &KindSpec, object: &Value) -> Result<(), ApiError> {
        self.delete_dependents(kind, object).await?;
        for reference in object["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
            let Some(owner_kind) = self.owner(kind, reference) else { continue };
            let name = reference["name"].as_str().unwrap_or_default();
            if let Some(owner) = self.store.get(&owner_kind.key(name))
                && owner.value["metadata"]["uid"] == reference["uid"]
                && is_going(&owner.value)
                && finalizers(&owner.value).iter().any(|f| f == FOREGROUND)
            {
                self.release(owner_kind, name).await?;
            }
        }
        Ok(())
    }

    /// Deletes dependents, then lets the owner go that waits for them.
    async fn dependents_first(&self, kind: &KindSpec, owner: &Value) -> Result<(), ApiError> {
        self.delete_dependents(kind, owner).await?;
        self.release(kind, name_of(owner)).await
    }

    /// Takes the mark of a foreground deletion off once no dependent blocks it.
    async fn release(&self, kind: &KindSpec, name: &str) -> Result<(), ApiError> {
        for _ in 0..self.limits.conflict_retries {
            let Some(old) = self.store.get(&kind.key(name)) else { return Ok(()) };
            let uid = text(&old.value, "/metadata/uid");
            let blocks = |object: &Value| depends_on(object, uid).is_some_and(|o| o["blockOwnerDeletion"] == true);
            if self.dependents(kind, uid).any(|(_, object)| blocks(&object.value)) {
                return Ok(());
            }
            let mut new = (*old.value).clone();
            let left: Vec<Value> = finalizers(&new).iter().filter(|f| *f != FOREGROUND).cloned().collect();
            let released = left.is_empty();
            new["metadata"]["finalizers"] = left.into();
            match self.put(kind, name, &old, (!released).then(|| new.clone())).await {
                Ok(_) if released => return Box::pin(self.gone(kind, &new)).await,
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict(_)) => {}
                Err(other) => return Err(unavailable(&other)),
            }
        }
        Err(ApiError::conflict(kind.group, kind.plural, name, MODIFIED))
    }

    /// Every object that has this owner, of the kinds that this kind owns.
    fn dependents<'a>(&'a self, kind: &'a KindSpec, uid: &'a str) -> impl Iterator<Item = (&'a KindSpec, Entry)> + 'a {
        kind.owns.iter().filter_map(|plural| self.kind(plural)).flat_map(move |dependent| {
            let all = self.store.list_with(&dependent.prefix(), &[uid]).into_iter();
            all.filter(|entry| depends_on(&entry.value, uid).is_some()).map(move |entry| (dependent, entry))
        })
    }

    async fn delete_dependents(&self, kind: &KindSpec, owner: &Value) -> Result<(), ApiError> {
        let uid = text(owner, "/metadata/uid");
        let mut left = self.limits.cascade;
        for (dependent, entry) in self.dependents(kind, uid) {
            left = left.checked_sub(1).ok_or_else(|| ApiError::internal("too many dependents; delete again"))?;
            let owners = entry.value["metadata"]["ownerReferences"].as_array();
            // One that has another living owner loses the reference and stays.
            let others = owners.into_iter().flatten().filter(|o| o["uid"] != uid);
            let stays = others.into_iter().any(|o| self.owner(dependent, o).is_some_and(|k| self.stands(k, o)));
            let name = name_of(&entry.value);
            let done = if stays {
                self.unown(dependent, name, uid).await
            } else {
                let (any, background) = (Preconditions::default(), Propagation::Background);
                Box::pin(self.delete(dependent, name, &any, background, false)).await.map(drop)
            };
            match done {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the owner out of all of its dependents.
    async fn orphan(&self, kind: &KindSpec, owner: &Value) -> Result<(), ApiError> {
        let uid = text(owner, "/metadata/uid");
        for (dependent, entry) in self.dependents(kind, uid) {
            self.unown(dependent, name_of(&entry.value), uid).await?;
        }
        Ok(())
    }

    async fn unown(&self, kind: &KindSpec, name: &str, uid: &str) -> Result<(), ApiError> {
        for _ in 0..self.limits.conflict_retries {
            let Some(old) = self.store.get(&kind.key(name)) else { return Ok(()) };
            let mut new = (*old.value).clone();
            if let Some(owners) = new["metadata"]["ownerReferences"].as_array_mut() {
                owners.retain(|o| o["uid"] != uid);
            }
            if new == *old.value {
                return Ok(());
            }
            match self.put(kind, name, &old, Some(new)).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict(_)) => {}
                Err(other) => return Err(unavailable(&other)),
            }
        }
        Err(ApiError::conflict(kind.group, kind.plural, name, MODIFIED))
    }

    /// Deletes dependents whose owners are all gone, and ends deletions that wait for no dependent any more: what a stop
    /// between two steps of a deletion leaves behind.
    pub(crate) async fn collect_orphans(&self) -> Result<usize, ApiError> {
        let mut collected = 0;
        for kind in &self.kinds {
            // What is not going has to have an owner to be of interest.
            for entry in self.store.list_with(&kind.prefix(), &["\"ownerReferences\"", "\"deletionTimestamp\""]) {
                if is_going(&entry.value) && finalizers(&entry.value).iter().any(|f| f == FOREGROUND) {
                    self.dependents_first(kind, &entry.value).await?;
                    continue;
                }
                let owners = entry.value["metadata"]["ownerReferences"].as_array();
                let mut known = owners.into_iter().flatten().filter_map(|o| Some((self.owner(kind, o)?, o))).peekable();
                // An owner of a kind that is not served here is not ours to judge.
                let all_known = owners.is_some_and(|all| all.iter().all(|o| self.owner(kind, o).is_some()));
                if known.peek().is_none() || !all_known || known.any(|(owner, o)| self.stands(owner, o)) {
                    continue;
                }
                // It is deleted as it was judged, or not at all.
                let preconditions =
                    Preconditions { uid: Some(text(&entry.value, "/metadata/uid").to_owned()), resource_version: None };
                let background = Propagation::Background;
                match self.delete(kind, name_of(&entry.value), &preconditions, background, false).await {
                    Ok(_) => collected += 1,
                    Err(error) if error.is_not_found() || error.is_conflict() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(collected)
    }

    /// The kind of an owner that takes objects of `dependent` with it.
    fn owner(&self, dependent: &KindSpec, reference: &Value) -> Option<&KindSpec> {
        self.kinds.iter().find(|k| {
            reference["kind"] == k.kind
                && reference["apiVersion"] == k.api_version()
                && k.owns.contains(&dependent.plural)
        })
    }

    fn stands(&self, kind: &KindSpec, reference: &Value) -> bool {
        let name = reference["name"].as_str().unwrap_or_default();
        self.store.get(&kind.key(name)).is_some_and(|e| e.value["metadata"]["uid"] == reference["uid"])
    }
}

/// Marks an object as going.
fn mark(object: &mut Value, foreground: bool) {
    let meta = &mut object["metadata"];
    if !meta["deletionTimestamp"].is_string() {
        meta["deletionTimestamp"] = now().into();
        meta["deletionGracePeriodSeconds"] = 0.into();
        let generation = meta["generation"].as_i64().unwrap_or(0);
        meta["generation"] = (generation + 1).into();
    }
    if foreground {
        if !meta["finalizers"].is_array() {
            meta["finalizers"] = json!([]);
        }
        if let Some(all) = meta["finalizers"].as_array_mut().filter(|all| !all.iter().any(|f| f == FOREGROUND)) {
            all.push(FOREGROUND.into());
        }
    }
}
