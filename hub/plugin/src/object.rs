//! Objects of the hub's API, as kube-rs sees them.

use kube::core::{ObjectMeta, TypeMeta};
use kube::{Resource, core::ClusterResourceScope};
use moorline_apiserver::Spec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// One object of the kind whose spec is `S`: `kube::Api<HubObject<S>>`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct HubObject<S: Spec> {
    /// Version and kind.
    #[serde(flatten)]
    pub types: TypeMeta,
    /// Name, labels, revision and the like.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// What is.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub status: Option<S::Status>,
}

/// Of a kind that has none: see [`crate::PluginKind::without_status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoStatus {}

fn none<T>() -> Option<T> {
    None
}

impl<S: Spec> HubObject<S> {
    /// A new object, not yet stored.
    pub fn new(name: impl Into<String>, spec: S) -> Self {
        let types = TypeMeta { api_version: format!("{}/{}", S::GROUP, S::VERSION), kind: S::KIND.to_owned() };
        Self { types, metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }, spec, status: None }
    }

    /// Its name; empty for one that has none yet.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

/// Kind and name alone: what is in it may be a secret.
impl<S: Spec> std::fmt::Debug for HubObject<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", S::KIND, self.name())
    }
}

impl<S: Spec> Resource for HubObject<S> {
    type DynamicType = ();
    type Scope = ClusterResourceScope;
    fn kind((): &()) -> Cow<'_, str> {
        S::KIND.into()
    }
    fn group((): &()) -> Cow<'_, str> {
        S::GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        S::VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        S::PLURAL.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
