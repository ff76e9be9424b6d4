//! Create, update, apply: the rules of Kubernetes' API machinery on one object.

use crate::{
    ApiError, Batch, Cause, CommitError, Created, Entry, Expect, KindSpec, Limits, NewObject, Store, StoreEvent, check,
    decode, manage::Managers, names,
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
    /// An update may come without the revision that it changes: for this process's own writes.
    pub(crate) unconditional: bool,
}

/// The object's content that a write may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Main,
    Status,
    /// The number of replicas, through the scale subresource.
    Scale,
}

impl Part {
    /// Its name in paths; empty for the object itself.
    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Scale => "scale",
        }
    }
}

/// Who writes, and by which rules the fields become theirs.
pub(crate) enum Writer<'a> {
    /// Whatever the write changes is this manager's.
    Updates(&'a str),
    /// An applied configuration: decided already.
    Applied(Managers),
}

/// An object as a write left it, and what the writer should know.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
    /// It was not there before.
    pub(crate) made: bool,
}

pub(crate) struct Ops {
    pub(crate) store: Store,
    pub(crate) kinds: Vec<KindSpec>,
    pub(crate) limits: Limits,
}

/// Fields of `metadata` that clients may write.
const META_WRITE: [&str; 6] = ["name", "generateName", "labels", "annotations", "finalizers", "ownerReferences"];

/// Longest prefix of a made name, so that what is added fits (Kubernetes has the same).
const GENERATED: usize = 58;

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name_of(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Ops {
    pub(crate) fn kind(&self, plural: &str) -> Option<&KindSpec> {
        self.kinds.iter().find(|k| k.plural == plural)
    }

    pub(crate) fn get(&self, kind: &KindSpec, name: &str) -> Result<Entry, ApiError> {
        self.store.get(&kind.key(name)).ok_or_else(|| ApiError::not_found(kind.group, kind.plural, name))
    }

    pub(crate) async fn create(
        &self,
        kind: &KindSpec,
        incoming: Value,
        options: WriteOptions,
        writer: Writer<'_>,
    ) -> Result<Written, ApiError> {
        let (object, warnings) = decode::object(kind, incoming, options.unknown)?;
        let object = self.make(kind, object, options, writer).await?;
        Ok(Written { object, warnings, made: true })
    }

    async fn make(
        &self,
        kind: &KindSpec,
        mut object: Value,
        options: WriteOptions,
        writer: Writer<'_>,
    ) -> Result<Value, ApiError> {
        let given: Map<String, Value> = object["metadata"].as_object().cloned().unwrap_or_default();
        if given.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let mut meta: Map<String, Value> = given
            .iter()
            .filter(|(k, v)| META_WRITE.contains(&k.as_str()) && !is_empty(v))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let mut generated = false;
        if !meta.contains_key("name") {
            let prefix = given.get("generateName").and_then(Value::as_str).unwrap_or_default();
            let name = match (prefix, kind.make_name) {
                ("", Some(make)) => make(),
                ("", None) => {
                    let causes = [Cause::required("metadata.name", "name or generateName is required")];
                    return Err(ApiError::invalid(kind.group, kind.kind, "", &causes));
                }
                (prefix, _) => {
                    generated = true;
                    let prefix: String = prefix.chars().take(GENERATED).collect();
                    let free = |name: &String| !self.store.has(&kind.key(name));
                    let mut tries = (0..self.limits.conflict_retries).map(|_| format!("{prefix}{}", names::suffix()));
                    tries.find(free).unwrap_or(prefix)
                }
            };
            meta.insert("name".into(), name.into());
        }
        meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        meta.insert("creationTimestamp".into(), now().into());
        meta.insert("generation".into(), 1.into());
        let sent = object.clone();
        object["metadata"] = meta.into();
        if kind.has_status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        check::object(kind, &mut object, None, &self.limits)?;
        let managers = match writer {
            Writer::Applied(managers) => managers,
            Writer::Updates(manager) => {
                let mut managers = Managers::sent(&sent, &Value::Null);
                managers.update(kind, Part::Main, manager, &json!({}), &object);
                managers
            }
        };
        set_managers(&mut object, &managers);
        hold(kind, &mut object);
        let name = name_of(&object).to_owned();
        let exists = || {
            let mut error = ApiError::already_exists(kind.group, kind.plural, &name);
            if generated {
                error.retry_after = Some(1);
            }
            error
        };
        if self.store.has(&kind.key(&name)) {
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
        Ok(object)
    }

    /// Replaces an object's main part or its status with `incoming`.
    pub(crate) async fn update(
        &self,
        kind: &KindSpec,
        name: &str,
        part: Part,
        incoming: Value,
        options: WriteOptions,
        manager: &str,
    ) -> Result<Written, ApiError> {
        let old = self.get(kind, name)?;
        let (sent, warnings) = decode::object(kind, incoming, options.unknown)?;
        let object = self.replace(kind, &old, part, &sent, options, Writer::Updates(manager)).await?;
        Ok(Written { object, warnings, made: false })
    }

    /// Server-side apply: lays a configuration over what is there.
    pub(crate) async fn apply(
        &self,
        kind: &KindSpec,
        (name, part): (&str, Part),
        config: &Value,
        options: WriteOptions,
        (manager, force): (&str, bool),
    ) -> Result<Written, ApiError> {
        let (config, warnings) = decode::object(kind, config.clone(), options.unknown)?;
        if !config["metadata"]["managedFields"].as_array().is_none_or(Vec::is_empty) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        if name_of(&config) != name {
            return Err(wrong_name(name_of(&config), name));
        }
        for _ in 0..self.limits.conflict_retries {
            let Some(old) = self.store.get(&kind.key(name)) else {
                if part != Part::Main {
                    return Err(ApiError::not_found(kind.group, kind.plural, name));
                }
                if !text(&config, "/metadata/uid").is_empty() {
                    let why = "uid mismatch: the provided object specified uid, and no existing object was found";
                    return Err(ApiError::conflict(kind.group, kind.plural, name, why));
                }
                let nothing = json!({});
                let (merged, managers) = Managers::default().apply(kind, part, manager, (&nothing, &config), force)?;
                match self.make(kind, merged, options, Writer::Applied(managers)).await {
                    Err(error) if error.is_already_exists() => continue,
                    made => return Ok(Written { object: made?, warnings, made: true }),
                }
            };
            let managers = Managers::of(&old.value);
            let (merged, managers) = managers.apply(kind, part, manager, (&old.value, &config), force)?;
            let written = self.replace(kind, &old, part, &merged, options, Writer::Applied(managers)).await;
            match written {
                // Only what the client itself names can be a conflict that it has to solve.
                Err(error) if error.is_conflict() && text(&config, "/metadata/resourceVersion").is_empty() => {}
                object => return Ok(Written { object: object?, warnings, made: false }),
            }
        }
        Err(ApiError::conflict(kind.group, kind.plural, name, MODIFIED))
    }

    async fn replace(
        &self,
        kind: &KindSpec,
        old: &Entry,
        part: Part,
        sent: &Value,
        options: WriteOptions,
        writer: Writer<'_>,
    ) -> Result<Value, ApiError> {
        let name = name_of(&old.value);
        let conflict = |why: &str| ApiError::conflict(kind.group, kind.plural, name, why);
        if name_of(sent) != name {
            return Err(wrong_name(name_of(sent), name));
        }
        let (uid, own) = (text(sent, "/metadata/uid"), text(&old.value, "/metadata/uid"));
        if !uid.is_empty() && uid != own {
            return Err(conflict(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {own}"
            )));
        }
        let version = text(sent, "/metadata/resourceVersion");
        if !version.is_empty() && version != old.revision.to_string() {
            return Err(conflict(MODIFIED));
        }
        if version.is_empty() && !options.unconditional && matches!(writer, Writer::Updates(_)) {
            let cause = Cause::invalid("metadata.resourceVersion", "0x0: must be specified for an update");
            return Err(ApiError::invalid(kind.group, kind.plural, name, &[cause]));
        }
        let mut new = laid_over(kind, &old.value, part, sent);
        check::object(kind, &mut new, Some(&old.value), &self.limits)?;
        if new["spec"] != old.value["spec"] {
            let generation = old.value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
            new["metadata"]["generation"] = (generation + 1).into();
        }
        let managers = match writer {
            Writer::Applied(managers) => managers,
            Writer::Updates(manager) => {
                let mut managers = Managers::sent(sent, &old.value);
                managers.update(kind, part, manager, &old.value, &new);
                managers
            }
        };
        set_managers(&mut new, &managers);
        if new == *old.value || options.dry_run {
            return Ok(new);
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
            self.gone(kind, &new).await?;
        }
        Ok(new)
    }
}

/// What Kubernetes' own types leave out when they are written.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The stored object with the part that a write may set as it was sent.
fn laid_over(kind: &KindSpec, old: &Value, part: Part, sent: &Value) -> Value {
    let mut new = old.clone();
    match part {
        Part::Status => match sent.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => drop(new.as_object_mut().and_then(|o| o.remove("status"))),
        },
        Part::Scale => new["spec"] = sent["spec"].clone(),
        Part::Main => {
            new["spec"] = sent["spec"].clone();
            for field in META_WRITE {
                match sent["metadata"].get(field).filter(|v| !is_empty(v)) {
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
    new
}

fn set_managers(object: &mut Value, managers: &Managers) {
    match (managers.to_json(), object["metadata"].as_object_mut()) {
        (Some(all), Some(meta)) => drop(meta.insert("managedFields".into(), all)),
        (None, Some(meta)) => drop(meta.remove("managedFields")),
        (_, None) => {}
    }
}

pub(crate) fn wrong_name(said: &str, name: &str) -> ApiError {
    if said.is_empty() {
        let why = format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
        return ApiError::bad_request(why);
    }
    ApiError::bad_request(format!("the name of the object ({said}) does not match the name on the URL ({name})"))
}

pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

pub(crate) fn unavailable(error: &CommitError) -> ApiError {
    match error {
        // Coming back is no use before someone has looked after the disk.
        CommitError::Failed(_) => ApiError::internal(error.to_string()),
        CommitError::TooLarge(_) => {
            ApiError::new(http::StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", error.to_string())
        }
        CommitError::Full(_)
        | CommitError::Unavailable(_)
        | CommitError::Moving
        | CommitError::Overloaded
        | CommitError::Conflict(_) => ApiError::unavailable(error.to_string()),
    }
}

/// How a watcher that selects only some objects sees a change: `ADDED`, `MODIFIED`, `DELETED`, or not at all.
pub(crate) fn seen(event: &StoreEvent, selects: impl Fn(&Value) -> bool) -> Option<(&'static str, Arc<Value>)> {
    let previous = event.previous();
    let before = previous.as_ref().is_some_and(|e| selects(&e.value));
    match event.value() {
        Some(value) if selects(&value) => Some((if before { "MODIFIED" } else { "ADDED" }, value)),
        // Deleted, or changed so that it is no longer selected: its last state, at the revision of the change.
        _ if before => {
            let mut last = previous.map(|e| (*e.value).clone())?;
            last["metadata"]["resourceVersion"] = event.revision.to_string().into();
            Some(("DELETED", Arc::new(last)))
        }
        _ => None,
    }
}

/// Puts the finalizers of its kind on a new object.
fn hold(kind: &KindSpec, object: &mut Value) {
    if kind.finalizers.is_empty() {
        return;
    }
    let all = &mut object["metadata"]["finalizers"];
    if !all.is_array() {
        *all = json!([]);
    }
    if let Some(all) = all.as_array_mut() {
        for name in &kind.finalizers {
            if !all.iter().any(|there| there == name) {
                all.push((*name).into());
            }
        }
    }
}
