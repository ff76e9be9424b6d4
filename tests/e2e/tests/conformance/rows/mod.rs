//! The table: each behaviour with its source and the requests that show it.

mod deletions;
mod input;
mod reads;
mod versions;
mod writes;

use crate::target::Ask;
use serde_json::{Value, json};

/// What is to come of a row.
pub enum Verdict {
    /// Both answer the same.
    Same,
    /// Kubernetes' documents describe what came after 1.20; ours follows them.
    Newer { since: &'static str, ours: &'static str },
    /// Ours differs on purpose.
    Different { why: &'static str, ours: &'static str },
}

pub struct Row {
    pub name: &'static str,
    /// Where the behaviour is described.
    pub doc: &'static str,
    pub steps: Vec<Step>,
    pub verdict: Verdict,
    /// Compare `managedFields` too.
    pub managers: bool,
    /// Compare `Content-Type` too.
    pub media: bool,
    /// Numbers in texts are revisions.
    pub numbers: bool,
    /// Pointers into the steps' `{code, body}` that are not compared.
    pub without: &'static [&'static str],
}

#[derive(Clone)]
pub struct Step {
    pub ask: Ask,
    /// Ask again until this is the code.
    pub until: Option<u16>,
    /// Before it, what lies in the past is forgotten.
    pub forget: bool,
}

impl Step {
    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.ask.headers.retain(|(n, _)| *n != name);
        self.ask.headers.push((name, value.into()));
        self
    }
    pub(super) fn until(mut self, code: u16) -> Self {
        self.until = Some(code);
        self
    }
    pub(super) fn forgotten(mut self) -> Self {
        self.forget = true;
        self
    }
}

pub(super) fn ask(method: &'static str, path: &str, content_type: &str, body: impl ToString) -> Step {
    let path = if path.starts_with("//") { path[1..].to_owned() } else { format!("/apis/moorline.dev/v1alpha1{path}") };
    let mut headers = vec![("accept", "application/json".to_owned()), ("user-agent", "table/1".to_owned())];
    if !content_type.is_empty() {
        headers.push(("content-type", content_type.to_owned()));
    }
    Step { ask: Ask { method, path, headers, body: body.to_string() }, until: None, forget: false }
}

pub(super) const JSON: &str = "application/json";

pub(super) fn get(path: &str) -> Step {
    ask("GET", path, "", "")
}
pub(super) fn post(path: &str, body: Value) -> Step {
    ask("POST", path, JSON, body)
}
pub(super) fn put(path: &str, body: Value) -> Step {
    ask("PUT", path, JSON, body)
}
pub(super) fn delete(path: &str) -> Step {
    ask("DELETE", path, JSON, "")
}
pub(super) fn delete_with(path: &str, body: Value) -> Step {
    ask("DELETE", path, JSON, body)
}
pub(super) fn merge(path: &str, body: Value) -> Step {
    ask("PATCH", path, "application/merge-patch+json", body)
}
pub(super) fn json_patch(path: &str, body: Value) -> Step {
    ask("PATCH", path, "application/json-patch+json", body)
}
pub(super) fn apply(path: &str, body: Value) -> Step {
    ask("PATCH", path, "application/apply-patch+yaml", body)
}

/// A boat of ten metres, with more on top.
pub(super) fn boat(name: &str, more: Value) -> Value {
    let mut boat = json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": { "name": name }, "spec": { "metres": 10 },
    });
    lay(&mut boat, &more);
    boat
}

pub(super) fn line(name: &str, owner: Value) -> Value {
    let mut reference =
        json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "name": "ada", "uid": "{uid:1}" });
    lay(&mut reference, &owner);
    json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "Line", "spec": {},
        "metadata": { "name": name, "ownerReferences": [reference] },
    })
}

fn lay(onto: &mut Value, more: &Value) {
    match more.as_object() {
        Some(map) => map.iter().for_each(|(key, value)| lay(&mut onto[key], value)),
        None => *onto = more.clone(),
    }
}

pub(super) const CONCEPTS: &str = "reference/using-api/api-concepts";
pub(super) const CONVENTIONS: &str = "sig-architecture/api-conventions";
pub(super) const APPLY: &str = "reference/using-api/server-side-apply";
pub(super) const NAMES: &str = "concepts/overview/working-with-objects/names";
pub(super) const LABELS: &str = "concepts/overview/working-with-objects/labels";
pub(super) const FINALIZERS: &str = "concepts/overview/working-with-objects/finalizers";
pub(super) const GARBAGE: &str = "concepts/architecture/garbage-collection";
pub(super) const CRD: &str = "tasks/extend-kubernetes/custom-resources/custom-resource-definitions";

pub(super) fn row(name: &'static str, doc: &'static str, steps: Vec<Step>) -> Row {
    Row { name, doc, steps, verdict: Verdict::Same, managers: false, media: false, numbers: false, without: &[] }
}

impl Row {
    pub(super) fn newer(mut self, since: &'static str, ours: &'static str) -> Self {
        self.verdict = Verdict::Newer { since, ours };
        self
    }
    pub(super) fn different(mut self, why: &'static str, ours: &'static str) -> Self {
        self.verdict = Verdict::Different { why, ours };
        self
    }
    pub(super) fn managers(mut self) -> Self {
        self.managers = true;
        self
    }
    pub(super) fn numbers(mut self) -> Self {
        self.numbers = true;
        self
    }
    pub(super) fn without(mut self, pointers: &'static [&'static str]) -> Self {
        self.without = pointers;
        self
    }
}

pub fn all() -> Vec<Row> {
    [writes::objects(), input::bad_input(), input::patches(), writes::applies(), deletions::deletions(), reads::lists()]
        .into_iter()
        .chain([reads::watches(), reads::forms(), versions::versions()])
        .flatten()
        .collect()
}
