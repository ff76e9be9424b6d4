//! What a kind is.

use crate::{ApiError, Cause, Scale, names, schema::Schema};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{fmt, sync::Arc};

/// The spec type of a kind, which carries what else there is to know of it at compile time.
pub trait Spec: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static {
    /// What the status holds; `()`-like types for kinds without one.
    type Status: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static;
    /// API group, for instance `moorline.dev`.
    const GROUP: &'static str = "moorline.dev";
    /// API version.
    const VERSION: &'static str = "v1alpha1";
    /// `Cluster`.
    const KIND: &'static str;
    /// `clusters`.
    const PLURAL: &'static str;
    /// `cluster`.
    const SINGULAR: &'static str;
    /// What people may type instead.
    const SHORT_NAMES: &'static [&'static str] = &[];
}

/// A column of `kubectl get`.
#[derive(Clone)]
pub struct Column {
    /// Head of the column.
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date` (shown as an age).
    pub kind: &'static str,
    /// Shown by API explorers.
    pub description: &'static str,
    /// 0: always shown; above: only with `-o wide`.
    pub priority: i32,
    /// The cell of an object.
    pub cell: Arc<dyn Fn(&Value) -> Value + Send + Sync>,
}

impl Column {
    /// A text column that shows what stands at a JSON pointer, for instance `/status/carrier`.
    pub fn at(name: &'static str, pointer: &'static str) -> Self {
        Self::with(name, move |object| object.pointer(pointer).cloned().unwrap_or(Value::Null))
    }

    /// A text column with a computed cell.
    pub fn with(name: &'static str, cell: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        Self { name, kind: "string", description: name, priority: 0, cell: Arc::new(cell) }
    }

    /// The status of the condition of that type: `True`, `False` or `Unknown`.
    pub fn condition(name: &'static str, condition: &'static str) -> Self {
        Self::with(name, move |object| {
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let found = conditions.and_then(|all| all.iter().find(|c| c["type"] == condition));
            found.map_or_else(|| Value::from("Unknown"), |c| c["status"].clone())
        })
    }

    /// Another type than text.
    pub fn typed(mut self, kind: &'static str) -> Self {
        self.kind = kind;
        self
    }

    /// What it shows.
    pub fn described(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    /// Only with `-o wide`.
    pub fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

/// An object about to be stored, as its kind's creation hook sees it: valid, with name and uid.
pub struct NewObject<'a> {
    /// May still be changed, but for its name.
    pub object: &'a mut Value,
    /// Nothing will be stored; secrets need not be made.
    pub dry_run: bool,
}

/// What a creation hook wants besides the object.
#[derive(Default)]
pub struct Created {
    /// Merged (RFC 7396) into the answer of this one call, never stored. The place of secrets.
    pub response: Option<Value>,
    /// Private records, stored in the same transaction: (suffix, value). They go with the object.
    pub private: Vec<(String, Bytes)>,
}

type DefaultFn = Arc<dyn Fn(&mut Value) + Send + Sync>;
type ValidateFn = Arc<dyn Fn(&Value, Option<&Value>) -> Vec<Cause> + Send + Sync>;
type CreateFn = Arc<dyn for<'a> Fn(NewObject<'a>) -> BoxFuture<'a, Result<Created, ApiError>> + Send + Sync>;
pub(crate) type NormaliseFn = fn(&Value) -> Result<Value, String>;

/// A kind of object that the server serves. Cluster-scoped.
#[derive(Clone)]
pub struct KindSpec {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) columns: Vec<Column>,
    pub(crate) has_status: bool,
    pub(crate) spec_schema: Schema,
    pub(crate) status_schema: Schema,
    pub(crate) normalise_spec: NormaliseFn,
    pub(crate) normalise_status: NormaliseFn,
    pub(crate) default: Option<DefaultFn>,
    pub(crate) validate: Option<ValidateFn>,
    pub(crate) on_create: Option<CreateFn>,
    pub(crate) name_rule: fn(&str) -> Result<(), String>,
    pub(crate) make_name: Option<fn() -> String>,
    pub(crate) selectable: &'static [&'static str],
    pub(crate) owns: &'static [&'static str],
    pub(crate) finalizers: Vec<&'static str>,
    pub(crate) scale: Option<Scale>,
    pub(crate) categories: &'static [&'static str],
    /// Further versions.
    pub(crate) views: Vec<Arc<crate::versions::View>>,
    /// The schema of a whole object.
    pub(crate) whole: Arc<Value>,
}

impl fmt::Debug for KindSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}/{}", self.plural, self.group, self.version)
    }
}

fn normalise<T: Serialize + DeserializeOwned>(value: &Value) -> Result<Value, String> {
    let typed: T = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    serde_json::to_value(typed).map_err(|e| e.to_string())
}

impl KindSpec {
    /// The kind of `S`, with a status subresource, an Age column and DNS names.
    pub fn of<S: Spec>() -> Self {
        let (spec_schema, status_schema) = (Schema::of::<S>(), Schema::of::<S::Status>());
        Self {
            whole: Arc::new(crate::schema::whole(&spec_schema, &status_schema)),
            group: S::GROUP,
            version: S::VERSION,
            kind: S::KIND,
            plural: S::PLURAL,
            singular: S::SINGULAR,
            short_names: S::SHORT_NAMES,
            columns: Vec::new(),
            has_status: true,
            spec_schema,
            status_schema,
            normalise_spec: normalise::<S>,
            normalise_status: normalise::<S::Status>,
            default: None,
            validate: None,
            on_create: None,
            name_rule: names::dns_subdomain,
            make_name: None,
            selectable: &[],
            owns: &[],
            finalizers: Vec::new(),
            scale: None,
            categories: &[],
            views: Vec::new(),
        }
    }

    /// Adds a column between Name and Age.
    pub fn column(mut self, column: Column) -> Self {
        self.columns.push(column);
        self
    }

    /// Fills what the client left out; runs on every write, before validation, on the whole object.
    pub fn default(mut self, f: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        self.default = Some(Arc::new(f));
        self
    }

    /// Checks what the schema cannot; sees the whole new object and, on updates, the old one.
    pub fn validate(mut self, f: impl Fn(&Value, Option<&Value>) -> Vec<Cause> + Send + Sync + 'static) -> Self {
        self.validate = Some(Arc::new(f));
        self
    }

    /// Runs once an object has passed validation, just before it is stored.
    pub fn on_create<F>(mut self, f: F) -> Self
    where
        F: for<'a> Fn(NewObject<'a>) -> BoxFuture<'a, Result<Created, ApiError>> + Send + Sync + 'static,
    {
        self.on_create = Some(Arc::new(f));
        self
    }

    /// Another rule for names than RFC 1123 subdomains.
    pub fn name_rule(mut self, rule: fn(&str) -> Result<(), String>) -> Self {
        self.name_rule = rule;
        self
    }

    /// Names objects that come with neither `name` nor `generateName`.
    pub fn make_name(mut self, make: fn() -> String) -> Self {
        self.make_name = Some(make);
        self
    }

    /// Field paths (`spec.cluster`) that a fieldSelector may use besides `metadata.name`.
    pub fn selectable(mut self, fields: &'static [&'static str]) -> Self {
        self.selectable = fields;
        self
    }

    /// Plurals of the kinds whose objects go when an owning object of this kind goes.
    pub fn owns(mut self, plurals: &'static [&'static str]) -> Self {
        self.owns = plurals;
        self
    }

    /// Every new object carries this finalizer from its first revision on: whoever takes it off is never too late.
    pub fn finalizer(mut self, name: &'static str) -> Self {
        self.finalizers.push(name);
        self
    }

    /// Names under which clients find it together with other kinds, such as `all`.
    pub fn categories(mut self, names: &'static [&'static str]) -> Self {
        self.categories = names;
        self
    }

    /// A scale subresource.
    pub fn scale(mut self, scale: Scale) -> Self {
        self.scale = Some(scale);
        self
    }

    /// The schema of a whole object, as Kubernetes writes schemas (`openAPIV3Schema` of a CRD takes it as it is).
    pub fn schema(&self) -> &Value {
        &self.whole
    }

    /// No status subresource.
    pub fn without_status(mut self) -> Self {
        self.has_status = false;
        self
    }

    /// Its plural, which is its name in paths.
    pub fn plural(&self) -> &'static str {
        self.plural
    }

    pub(crate) fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    pub(crate) fn prefix(&self) -> String {
        format!("{}/{}/", self.group, self.plural)
    }

    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.group, self.plural)
    }
}
