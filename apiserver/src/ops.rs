//! Create, update, delete: the rules of Kubernetes' API machinery on one object.

use crate::{
    ApiError, Batch, Cause, CommitError, Created, Entry, Expect, KindSpec, Limits, NewObject, Store, StoreEvent, names,
    patch,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What to do with fields that the kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Refuse,
    Warn,
    Drop,
}

/// How a write is to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteOptions {
    pub(crate) unknown: Unknown,
    pub(crate) dry_run: bool,
}

/// What a deletion has to find.
#[derive(Debug, Clone, Default)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

/// What came of a deletion.
pub(crate) enum Deleted {
    /// It is gone; this is what it was.
    Gone(Arc<Value>),
    /// Finalizers hold it; this is what it is now.
    Held(Value),
}

/// The object's content that a write may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Main,
    Status,
}

pub(crate) struct Ops {
    pub(crate) store: Store,
    pub(crate) kinds: Vec<KindSpec>,
    pub(crate) limits: Limits,
}

/// Fields of `metadata` that clients may write. `managedFields` and the like are accepted and not kept.
const META_WRITE: [&str; 5] = ["name", "labels", "annotations", "finalizers", "ownerReferences"];
const META_KNOWN: [&str; 16] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "clusterName",
];

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name_of(object: &Value) -> &str {
    text(object, "/metadata/name")
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Ops {
    pub(crate) fn kind(&self, plural: &str) -> Option<&KindSpec> {
        self.kinds.iter().find(|k| k.plural == plural)
    }

    pub(crate) fn get(&self, kind: &KindSpec, name: &str) -> Result<Entry, ApiError> {
        self.store.get(&kind.key(name)).ok_or_else(|| ApiError::not_found(kind.group, kind.plural, name))
    }

    /// Takes what a client sent apart: known fields only, in the right shape.
    fn read(&self, kind: &KindSpec, incoming: Value, unknown: Unknown) -> Result<(Value, Vec<String>), ApiError> {
        let Value::Object(mut fields) = incoming else {
            return Err(ApiError::bad_request("the object must be a JSON object"));
        };
        for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
            match fields.remove(field) {
                None => {}
                Some(Value::String(given)) if given == wanted => {}
                Some(given) => {
                    return Err(ApiError::bad_request(format!(
                        "the {field} in the data ({given}) does not match the expected {field} ({wanted})"
                    )));
                }
            }
        }
        let Value::Object(mut meta) = fields.remove("metadata").unwrap_or_else(|| json!({})) else {
            return Err(ApiError::bad_request("metadata must be an object"));
        };
        let mut strangers = Vec::new();
        let (mut spec, mut status) = (fields.remove("spec"), fields.remove("status"));
        strangers.extend(fields.keys().cloned());
        meta.retain(|key, _| {
            let known = META_KNOWN.contains(&key.as_str());
            if !known {
                strangers.push(format!("metadata.{key}"));
            }
            known
        });
        if let Some(spec) = &mut spec {
            strangers.extend(kind.spec_schema.prune(spec, "spec"));
        }
        if let Some(status) = &mut status {
            strangers.extend(kind.status_schema.prune(status, "status"));
        }
        strangers.sort();
        let mut warnings = Vec::new();
        match unknown {
            Unknown::Refuse if !strangers.is_empty() => {
                let list: Vec<String> = strangers.iter().map(|f| format!("unknown field \"{f}\"")).collect();
                return Err(ApiError::bad_request(format!("strict decoding error: {}", list.join(", "))));
            }
            Unknown::Warn => warnings.extend(strangers.iter().map(|f| format!("unknown field \"{f}\""))),
            _ => {}
        }
        let mut object = json!({ "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": meta });
        object["spec"] = spec.unwrap_or_else(|| json!({}));
        if let Some(status) = status {
            object["status"] = status;
        }
        Ok((object, warnings))
    }

    /// Defaults, types and rules. `old`: on updates.
    fn check(&self, kind: &KindSpec, object: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
        if let Some(default) = &kind.default {
            default(object);
        }
        if patch::DEPTH < patch::depth(object) {
            return Err(patch::too_deep());
        }
        let mut causes = Vec::new();
        for (field, normalise) in [("spec", kind.normalise_spec), ("status", kind.normalise_status)] {
            if let Some(value) = object.get(field).filter(|v| !v.is_null()) {
                match normalise(value) {
                    Ok(normal) => object[field] = normal,
                    Err(why) => causes.push(Cause::invalid(field, why)),
                }
            }
        }
        let name = name_of(object).to_owned();
        if old.is_none()
            && let Err(rule) = (kind.name_rule)(&name)
        {
            causes.push(Cause::invalid("metadata.name", format!("\"{name}\": {rule}")));
        }
        self.check_metadata(object, &mut causes);
        if causes.is_empty()
            && let Some(validate) = &kind.validate
        {
            causes.extend(validate(object, old));
        }
        if !causes.is_empty() {
            return Err(ApiError::invalid(kind.group, kind.kind, &name, &causes));
        }
        if self.limits.object < object.to_string().len() {
            return Err(patch::too_large(self.limits.object));
        }
        Ok(())
    }

    fn check_metadata(&self, object: &Value, causes: &mut Vec<Cause>) {
        let Some(meta) = object.get("metadata") else { return };
        for field in ["labels", "annotations"] {
            let path = format!("metadata.{field}");
            let map = match meta.get(field) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(map)) => map,
                Some(_) => {
                    causes.push(Cause::invalid(path, "must be a map of strings"));
                    continue;
                }
            };
            let mut size = 0;
            for (key, value) in map {
                if !names::qualified(key) {
                    causes.push(Cause::invalid(&path, format!("\"{key}\": not a qualified name")));
                }
                match value.as_str() {
                    Some(value) if field == "labels" && !names::label_value(value) => {
                        causes.push(Cause::invalid(&path, format!("\"{value}\": not a valid label value")));
                    }
                    Some(value) => size += key.len() + value.len(),
                    None => causes.push(Cause::invalid(&path, format!("\"{key}\": must be a string"))),
                }
            }
            if self.limits.annotations < size {
                causes.push(Cause::invalid(path, format!("must have at most {} bytes", self.limits.annotations)));
            }
        }
        if let Some(finalizers) = meta.get("finalizers").filter(|v| !v.is_null()) {
            let ok =
                finalizers.as_array().is_some_and(|all| all.iter().all(|f| f.as_str().is_some_and(names::qualified)));
            if !ok {
                causes.push(Cause::invalid("metadata.finalizers", "must be a list of qualified names"));
            }
        }
        if let Some(owners) = meta.get("ownerReferences").filter(|v| !v.is_null()) {
            let whole = |o: &Value| ["apiVersion", "kind", "name", "uid"].iter().all(|f| o[*f].is_string());
            if !owners.as_array().is_some_and(|all| all.iter().all(whole)) {
                causes.push(Cause::invalid("metadata.ownerReferences", "each needs apiVersion, kind, name and uid"));
            }
        }
    }

    pub(crate) async fn create(
        &self,
        kind: &KindSpec,
        incoming: Value,
        options: WriteOptions,
    ) -> Result<(Value, Vec<String>), ApiError> {
        let (mut object, warnings) = self.read(kind, incoming, options.unknown)?;
        let given: Map<String, Value> =
            object["metadata"].as_object().map(|m| m.clone().into_iter().collect()).unwrap_or_default();
        if given.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let mut meta: Map<String, Value> = given
            .iter()
            .filter(|(k, v)| META_WRITE.contains(&k.as_str()) && !v.is_null())
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if meta.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
            let prefix = given.get("generateName").and_then(Value::as_str).unwrap_or_default();
            let name = match (prefix, kind.make_name) {
                ("", Some(make)) => make(),
                ("", None) => {
                    let causes = [Cause::required("metadata.name", "name or generateName is required")];
                    return Err(ApiError::invalid(kind.group, kind.kind, "", &causes));
                }
                (prefix, _) => format!("{prefix}{}", names::suffix()),
            };
            meta.insert("name".into(), name.into());
        }
        meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        meta.insert("creationTimestamp".into(), now().into());
        meta.insert("generation".into(), 1.into());
        object["metadata"] = meta.into();
        if kind.has_status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        self.check(kind, &mut object, None)?;
        let name = name_of(&object).to_owned();
        let exists = || ApiError::already_exists(kind.group, kind.plural, &name);
        if self.store.get(&kind.key(&name)).is_some() {
            return Err(exists());
        }
        let Created { response, private } = match &kind.on_create {
            Some(hook) => hook(NewObject { object: &mut object, dry_run: options.dry_run }).await?,
            None => Created::default(),
        };
        if !options.dry_run {
            let key = kind.key(&name);
            let private = private.into_iter().map(|(suffix, value)| (format!("{key}/{suffix}"), Some(value))).collect();
            let batch = Batch { object: Some((key, Expect::Absent, Some(object.clone()))), private };
            let revision = self.store.commit(batch).await.map_err(|e| match e {
                CommitError::Conflict(_) => exists(),
                other => unavailable(&other),
            })?;
            object["metadata"]["resourceVersion"] = revision.to_string().into();
        }
        if let Some(response) = response {
            json_patch::merge(&mut object, &response);
        }
        Ok((object, warnings))
    }

    /// Replaces an object's main part or its status with `incoming`.
    pub(crate) async fn update(
        &self,
        kind: &KindSpec,
        name: &str,
        part: Part,
        incoming: Value,
        options: WriteOptions,
    ) -> Result<(Value, Vec<String>), ApiError> {
        let old = self.get(kind, name)?;
        let (sent, warnings) = self.read(kind, incoming, options.unknown)?;
        let conflict = |why: &str| ApiError::conflict(kind.group, kind.plural, name, why);
        if name_of(&sent) != name {
            let said = name_of(&sent);
            return Err(ApiError::bad_request(format!(
                "the name of the object ({said}) does not match the name on the URL ({name})"
            )));
        }
        let uid = text(&sent, "/metadata/uid");
        if !uid.is_empty() && uid != text(&old.value, "/metadata/uid") {
            return Err(conflict("Precondition failed: UID in precondition does not match UID in object meta"));
        }
        let version = text(&sent, "/metadata/resourceVersion");
        if !version.is_empty() && version != old.revision.to_string() {
            return Err(conflict(MODIFIED));
        }
        let mut new = (*old.value).clone();
        match part {
            Part::Status => new["status"] = sent.get("status").cloned().unwrap_or_else(|| json!({})),
            Part::Main => {
                new["spec"] = sent["spec"].clone();
                for field in META_WRITE {
                    match sent["metadata"].get(field).filter(|v| !v.is_null()) {
                        Some(value) => new["metadata"][field] = value.clone(),
                        None => drop(new["metadata"].as_object_mut().and_then(|m| m.remove(field))),
                    }
                }
                if !kind.has_status
                    && let Some(status) = sent.get("status")
                {
                    new["status"] = status.clone();
                }
            }
        }
        self.check(kind, &mut new, Some(&old.value))?;
        if new["spec"] != old.value["spec"] {
            let generation = old.value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
            new["metadata"]["generation"] = (generation + 1).into();
        }
        if new == *old.value || options.dry_run {
            return Ok((new, warnings));
        }
        let released = new["metadata"]["deletionTimestamp"].is_string()
            && new["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        let value = if released { None } else { Some(new.clone()) };
        let batch =
            Batch { object: Some((kind.key(name), Expect::Revision(old.revision), value)), private: Vec::new() };
        let revision = self.store.commit(batch).await.map_err(|e| match e {
            CommitError::Conflict(_) => conflict(MODIFIED),
            other => unavailable(&other),
        })?;
        new["metadata"]["resourceVersion"] = revision.to_string().into();
        if released {
            self.cascade(kind, &new).await?;
        }
        Ok((new, warnings))
    }

    pub(crate) async fn delete(
        &self,
        kind: &KindSpec,
        name: &str,
        wanted: &Preconditions,
        dry_run: bool,
    ) -> Result<Deleted, ApiError> {
        for _ in 0..self.limits.conflict_retries {
            let old = self.get(kind, name)?;
            let is = |wanted: &Option<String>, pointer| wanted.as_ref().is_none_or(|w| *w == text(&old.value, pointer));
            if !is(&wanted.uid, "/metadata/uid") || !is(&wanted.resource_version, "/metadata/resourceVersion") {
                return Err(ApiError::conflict(kind.group, kind.plural, name, "Precondition failed"));
            }
            let held = old.value["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
            let mut new = (*old.value).clone();
            if held {
                if new["metadata"]["deletionTimestamp"].is_string() {
                    return Ok(Deleted::Held(new));
                }
                new["metadata"]["deletionTimestamp"] = now().into();
                new["metadata"]["deletionGracePeriodSeconds"] = 0.into();
            }
            if dry_run {
                return Ok(if held { Deleted::Held(new) } else { Deleted::Gone(old.value) });
            }
            let value = held.then(|| new.clone());
            let batch =
                Batch { object: Some((kind.key(name), Expect::Revision(old.revision), value)), private: Vec::new() };
            match self.store.commit(batch).await {
                Ok(revision) if held => {
                    new["metadata"]["resourceVersion"] = revision.to_string().into();
                    return Ok(Deleted::Held(new));
                }
                Ok(_) => {
                    self.cascade(kind, &old.value).await?;
                    return Ok(Deleted::Gone(old.value));
                }
                Err(CommitError::Conflict(_)) => {}
                Err(other) => return Err(unavailable(&other)),
            }
        }
        Err(ApiError::conflict(kind.group, kind.plural, name, MODIFIED))
    }

    /// Deletes the dependents of an object that has gone.
    async fn cascade(&self, kind: &KindSpec, owner: &Value) -> Result<(), ApiError> {
        let uid = text(owner, "/metadata/uid");
        let mut left = self.limits.cascade;
        for plural in kind.owns {
            let Some(dependent) = self.kind(plural) else { continue };
            for (_, entry) in self.store.list(&dependent.prefix()).1 {
                let owners = entry.value["metadata"]["ownerReferences"].as_array();
                if !owners.is_some_and(|all| all.iter().any(|o| o["uid"] == uid)) {
                    continue;
                }
                left = left.checked_sub(1).ok_or_else(|| ApiError::internal("too many dependents; delete again"))?;
                let name = name_of(&entry.value).to_owned();
                match Box::pin(self.delete(dependent, &name, &Preconditions::default(), false)).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Deletes dependents whose owners are all gone: what a stop between a deletion and its cascade leaves behind.
    pub(crate) async fn collect_orphans(&self) -> Result<usize, ApiError> {
        let mut collected = 0;
        for kind in &self.kinds {
            for (_, entry) in self.store.list(&kind.prefix()).1 {
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
                match self.delete(kind, name_of(&entry.value), &preconditions, false).await {
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

pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

fn unavailable(error: &CommitError) -> ApiError {
    ApiError::unavailable(error.to_string())
}

/// How a watcher that selects only some objects sees a change: `ADDED`, `MODIFIED`, `DELETED`, or not at all.
pub(crate) fn seen(event: &StoreEvent, selects: impl Fn(&Value) -> bool) -> Option<(&'static str, Value)> {
    let before = event.previous.as_ref().is_some_and(|e| selects(&e.value));
    match &event.value {
        Some(value) if selects(value) => Some((if before { "MODIFIED" } else { "ADDED" }, Value::clone(value))),
        // Deleted, or changed so that it is no longer selected: its last state, at the revision of the change.
        _ if before => {
            let mut last = event.previous.as_ref().map(|e| (*e.value).clone())?;
            last["metadata"]["resourceVersion"] = event.revision.to_string().into();
            Some(("DELETED", last))
        }
        _ => None,
    }
}
