//! `metadata.managedFields`: who set which field, and server-side apply on top of it.
//!
//! The rules are Kubernetes': <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

use crate::{
    ApiError, KindSpec,
    fields::Set,
    ops::{Part, now},
    shape,
};
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Apply,
    Update,
}

/// What one manager set.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    operation: Operation,
    subresource: String,
    api_version: String,
    time: String,
    fields: Set,
}

/// All managers of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Managers(Vec<Entry>);

/// Most entries of updaters that one object keeps; the oldest are then one entry (kube-apiserver has the same number).
const UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

impl Managers {
    /// The managers of an object.
    pub(crate) fn of(object: &Value) -> Self {
        let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        Self(entries.filter_map(Entry::read).collect())
    }

    /// What an update says of the managers: `[{}]` or an empty list forgets all, nothing leaves them as they are.
    pub(crate) fn sent(sent: &Value, stored: &Value) -> Self {
        match sent["metadata"]["managedFields"].as_array() {
            Some(_) => Self::of(sent),
            None => Self::of(stored),
        }
    }

    pub(crate) fn to_json(&self) -> Option<Value> {
        let mut all: Vec<&Entry> = self.0.iter().filter(|e| !e.fields.is_empty()).collect();
        all.sort_by(|a, b| (a.operation, &a.time, &a.manager).cmp(&(b.operation, &b.time, &b.manager)));
        if all.is_empty() { None } else { Some(all.into_iter().map(Entry::to_json).collect()) }
    }

    fn position(&mut self, kind: &KindSpec, manager: &str, operation: Operation, part: Part) -> usize {
        let (subresource, version) = (part.subresource(), kind.api_version());
        let same = |e: &Entry| {
            e.manager == manager && e.operation == operation && e.subresource == subresource && e.api_version == version
        };
        if let Some(found) = self.0.iter().position(same) {
            return found;
        }
        self.0.push(Entry {
            manager: manager.to_owned(),
            operation,
            subresource: subresource.to_owned(),
            api_version: version,
            time: now(),
            fields: Set::default(),
        });
        self.0.len() - 1
    }

    /// An update by `manager` made `new` out of `old`.
    pub(crate) fn update(&mut self, kind: &KindSpec, part: Part, manager: &str, old: &Value, new: &Value) {
        let mut found = shape::compare(&kind.whole, Some(old), Some(new));
        for set in [&mut found.changed, &mut found.removed] {
            strip(set, part);
        }
        if found.changed.is_empty() && found.removed.is_empty() {
            return;
        }
        let own = self.position(kind, manager, Operation::Update, part);
        for (i, entry) in self.0.iter_mut().enumerate() {
            entry.fields.subtract(&found.removed);
            if i != own {
                entry.fields.subtract(&found.changed);
            } else if !found.changed.is_empty() {
                entry.fields.union(&found.changed);
                entry.time = now();
            }
        }
        self.0.retain(|e| !e.fields.is_empty());
        self.bound();
    }

    fn bound(&mut self) {
        while UPDATERS < self.0.iter().filter(|e| e.operation == Operation::Update).count() {
            let mut updaters: Vec<usize> =
                (0..self.0.len()).filter(|i| self.0[*i].operation == Operation::Update).collect();
            updaters.sort_by(|a, b| self.0[*a].time.cmp(&self.0[*b].time));
            let &[oldest, second, ..] = updaters.as_slice() else { return };
            let merged = self.0[oldest].fields.clone();
            self.0[second].fields.union(&merged);
            ANCIENT.clone_into(&mut self.0[second].manager);
            self.0[second].subresource.clear();
            self.0.remove(oldest);
        }
    }

    /// `manager` applies `config` to `live`: the object that comes of it, and its managers.
    ///
    /// # Errors
    /// Fields that others own and that would change, unless `force`.
    pub(crate) fn apply(
        mut self,
        kind: &KindSpec,
        part: Part,
        manager: &str,
        (live, config): (&Value, &Value),
        force: bool,
    ) -> Result<(Value, Self), ApiError> {
        if self.0.is_empty() && !live["metadata"].is_null() {
            // Written before fields were tracked: all of it is someone else's.
            self.update(kind, Part::Main, "before-first-apply", &json!({}), live);
        }
        let mut mine = shape::named(&kind.whole, config);
        strip(&mut mine, part);
        let own = self.position(kind, manager, Operation::Apply, part);
        let last = std::mem::replace(&mut self.0[own].fields, mine);
        let mut merged = shape::merge(&kind.whole, live, config);
        if !last.is_empty() {
            let mut kept = Set::default();
            self.0.iter().for_each(|e| kept.union(&e.fields));
            shape::prune(&kind.whole, &mut merged, &last, &kept);
        }
        let mut found = shape::compare(&kind.whole, Some(live), Some(&merged));
        for set in [&mut found.changed, &mut found.removed] {
            strip(set, part);
        }
        let mut conflicts = BTreeMap::<String, Vec<String>>::new();
        for (i, entry) in self.0.iter_mut().enumerate().filter(|(i, _)| *i != own) {
            debug_assert_ne!(i, own);
            let both = entry.fields.intersection(&found.changed);
            if !both.is_empty() {
                conflicts.entry(entry.text()).or_default().extend(both.paths());
            }
            entry.fields.subtract(&both);
            entry.fields.subtract(&found.removed);
        }
        if !force && !conflicts.is_empty() {
            return Err(conflict(&conflicts));
        }
        if self.0[own].fields != last {
            self.0[own].time = now();
        }
        self.0.retain(|e| !e.fields.is_empty());
        Ok((merged, self))
    }
}

impl Entry {
    fn read(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let operation = match value["operation"].as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Self {
            manager: text("manager"),
            operation,
            subresource: text("subresource"),
            api_version: text("apiVersion"),
            time: text("time"),
            fields: Set::from_json(&value["fieldsV1"]),
        })
    }

    fn to_json(&self) -> Value {
        let mut value = json!({
            "manager": self.manager, "operation": format!("{:?}", self.operation), "apiVersion": self.api_version,
            "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_json(),
        });
        if !self.subresource.is_empty() {
            value["subresource"] = self.subresource.as_str().into();
        }
        value
    }

    /// Who it is, in a conflict.
    fn text(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// Takes out what nobody manages, and what a write of this part of the object does not touch.
fn strip(set: &mut Set, part: Part) {
    set.member = false;
    set.below.retain(|key, _| match part {
        Part::Main => !matches!(key.as_str(), "f:apiVersion" | "f:kind" | "f:status"),
        Part::Status => key == "f:status",
        Part::Scale => key == "f:spec",
    });
    if part == Part::Main
        && let Some(meta) = set.below.get_mut("f:metadata")
    {
        meta.member = false;
        let managed = ["f:labels", "f:annotations", "f:finalizers", "f:ownerReferences", "f:generateName"];
        meta.below.retain(|key, _| managed.contains(&key.as_str()));
        if meta.is_empty() {
            set.below.remove("f:metadata");
        }
    }
}

fn conflict(all: &BTreeMap<String, Vec<String>>) -> ApiError {
    let count: usize = all.values().map(Vec::len).sum();
    let pairs = || all.iter().flat_map(|(who, paths)| paths.iter().map(move |path| (who, path)));
    let causes: Vec<Value> = pairs()
        .map(|(who, path)| {
            json!({ "reason": "FieldManagerConflict", "message": format!("conflict with {who}"), "field": path })
        })
        .collect();
    let text = match pairs().next() {
        Some((who, path)) if count == 1 => format!("conflict with {who}: {path}"),
        _ => {
            let each = all.iter().map(|(who, paths)| format!("conflicts with {who}:\n- {}", paths.join("\n- ")));
            each.collect::<Vec<_>>().join("\n")
        }
    };
    let plural = if count == 1 { "" } else { "s" };
    let message = format!("Apply failed with {count} conflict{plural}: {text}");
    let mut error = ApiError::new(StatusCode::CONFLICT, "Conflict", message);
    error.details = Some(json!({ "causes": causes }));
    error
}
