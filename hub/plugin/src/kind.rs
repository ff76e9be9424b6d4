//! Kinds that plugins bring. Columns are data, and rules are asked under guard: no code of a plugin runs in the hub's
//! own threads.

use crate::{HubObject, guard::Guard};
use moorline_apiserver::{Cause, Column, Convert, KindSpec, Spec};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

pub(crate) type Rule = Arc<dyn Fn(&Value, Option<&Value>) -> Vec<Cause> + Send + Sync>;

/// A kind of the hub's API that a plugin brings.
#[derive(Clone)]
pub struct PluginKind {
    spec: KindSpec,
    plural: &'static str,
    rule: Option<Rule>,
}

impl PluginKind {
    /// The kind of `S`, with a status subresource and an Age column.
    pub fn of<S: Spec>() -> Self {
        Self { spec: KindSpec::of::<S>(), plural: S::PLURAL, rule: None }
    }

    pub(crate) fn plural(&self) -> &'static str {
        self.plural
    }

    /// A column of `kubectl get` that shows what stands at a JSON pointer; a list as its texts, joined by commas.
    pub fn column(mut self, name: &'static str, pointer: &'static str) -> Self {
        self.spec = self.spec.column(Column::with(name, move |object| shown(object.pointer(pointer))));
        self
    }

    /// The same, only with `-o wide`.
    pub fn wide_column(mut self, name: &'static str, pointer: &'static str) -> Self {
        self.spec = self.spec.column(Column::with(name, move |object| shown(object.pointer(pointer))).wide());
        self
    }

    /// A column that shows the status of a condition.
    pub fn condition_column(mut self, name: &'static str, condition: &'static str) -> Self {
        self.spec = self.spec.column(Column::condition(name, condition));
        self
    }

    /// Field paths (`spec.cluster`) that a fieldSelector may use besides `metadata.name`.
    pub fn selectable(mut self, fields: &'static [&'static str]) -> Self {
        self.spec = self.spec.selectable(fields);
        self
    }

    /// Serves an older version beside this one, whose [`Spec::VERSION`] is another. Objects are stored as this one; what
    /// comes in the older is turned into it and back, in place and by functions that cannot fail: of a server-side apply
    /// they see a part of an object alone, so they move what is there and add nothing.
    pub fn also<Old: Spec>(mut self, to_stored: Convert, from_stored: Convert) -> Self {
        self.spec = self.spec.also(KindSpec::of::<Old>(), to_stored, from_stored);
        self
    }

    /// No status subresource.
    pub fn without_status(mut self) -> Self {
        self.spec = self.spec.without_status();
        self
    }

    /// Checks what the schema cannot; sees the whole new object and, on updates, the old one. It runs in the plugin's own
    /// threads and has [`crate::limits::RULE`]: a write whose rule panics or does not end is refused.
    pub fn validate<S: Spec>(
        mut self,
        rule: impl Fn(&HubObject<S>, Option<&HubObject<S>>) -> Vec<Cause> + Send + Sync + 'static,
    ) -> Self {
        self.rule = Some(Arc::new(move |new, old| {
            let old = old.and_then(|old| HubObject::deserialize(old).ok());
            match HubObject::deserialize(new) {
                Ok(new) => rule(&new, old.as_ref()),
                Err(error) => vec![Cause::invalid("spec", error.to_string())],
            }
        }));
        self
    }

    /// As the API server takes it.
    pub(crate) fn guarded(self, guard: Guard) -> KindSpec {
        let Some(rule) = self.rule else { return self.spec };
        self.spec.validate(move |new, old| {
            let (rule, new, old) = (Arc::clone(&rule), new.clone(), old.cloned());
            match guard.run(move || rule(&new, old.as_ref())) {
                Ok(causes) => causes,
                Err(error) => vec![Cause::invalid("", error.to_string())],
            }
        })
    }
}

fn shown(value: Option<&Value>) -> Value {
    match value {
        Some(Value::Array(all)) => {
            let words: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
            Value::from(if words.is_empty() { "<none>".to_owned() } else { words.join(",") })
        }
        Some(other) => other.clone(),
        None => Value::Null,
    }
}
