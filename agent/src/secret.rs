//! The state's copy in a Secret of the cluster: a pod has no disk of its own that outlives it.
//!
//! The folder is filled from the Secret at the start and the Secret follows the folder. The agent never makes the Secret:
//! a right to create Secrets cannot be bound to one name, rights to get and patch can (Kubernetes, "Authorization").

use crate::{
    limits,
    state::{self, StateDir, StateError},
    upstream::{ApiServer, chain},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, Request, StatusCode, header};
use moorline_proxy::{body, edge::UpstreamError};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt, path::Path, str::FromStr, sync::Arc, time::Duration};
use tokio::time::sleep;

/// Which Secret: `NAME`, or `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName {
    /// Default: the service account's.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
}

impl FromStr for SecretName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let label = |part: &str| {
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            !part.is_empty() && part.len() <= 253 && part.chars().all(good) && !part.starts_with(['-', '.'])
        };
        let (namespace, name) = text.split_once('/').map_or((None, text), |(namespace, name)| (Some(namespace), name));
        if !label(name) || !namespace.is_none_or(label) {
            return Err(format!("{text:?} is no name of a Secret: NAME or NAMESPACE/NAME, lower case"));
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace.as_deref().unwrap_or("default"), self.name)
    }
}

/// Why the Secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It does not exist.
    #[error(
        "the Secret {0} does not exist, and the agent may not make it: kubectl create secret generic, or apply the agent's manifests"
    )]
    Missing(SecretName),
    /// The agent may not.
    #[error("the agent may not {what} the Secret {name}; it needs get and patch on this one: apply its Role")]
    Forbidden {
        /// Which right is missing.
        what: &'static str,
        /// On what.
        name: SecretName,
    },
    /// Somebody else wrote it since it was read.
    #[error("the Secret {0} was changed meanwhile")]
    Changed(SecretName),
    /// The API server answered something else.
    #[error("the Secret {name}: the API server answers {answer}")]
    Answer {
        /// Which.
        name: SecretName,
        /// What it said.
        answer: String,
    },
    /// The API server does not answer.
    #[error("the Secret {name} cannot be reached: {cause}")]
    Unreachable {
        /// Which.
        name: SecretName,
        /// Why.
        #[source]
        cause: UpstreamError,
    },
    /// The folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

impl SecretError {
    /// Whether time may heal it.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Answer { .. } | Self::Changed(_))
    }
}

#[derive(Deserialize)]
struct Secret {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    resource_version: String,
}

/// The Secret that follows a state folder.
pub struct SecretCopy {
    upstream: Arc<ApiServer>,
    name: SecretName,
}

impl SecretCopy {
    /// Of this name; `account` is the service account's folder, which knows the pod's namespace.
    pub fn new(upstream: Arc<ApiServer>, name: &SecretName, account: Option<&Path>) -> Self {
        let own = || state::read_text(&account?.join("namespace")).ok().map(|text| text.trim().to_owned());
        let namespace = name.namespace.clone().or_else(own);
        Self { upstream, name: SecretName { namespace, ..name.clone() } }
    }

    fn path(&self) -> String {
        let namespace = self.name.namespace.as_deref().unwrap_or("default");
        format!("/api/v1/namespaces/{namespace}/secrets/{}", self.name.name)
    }

    /// Fills a folder that is not whole with what the Secret has. Tries until the API server answers.
    ///
    /// # Errors
    /// What time does not heal: no such Secret, no right, or the folder cannot be written.
    pub async fn restore(&self, state: &StateDir) -> Result<(), SecretError> {
        if state.is_whole()? {
            return Ok(());
        }
        let read = self.insist("cannot restore the state from the Secret yet; trying again", || self.read()).await?;
        state.fill(&read.0)?;
        Ok(())
    }

    /// Puts what the folder has into the Secret, now. Tries until the API server has taken it.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub async fn save(&self, state: &StateDir) -> Result<(), SecretError> {
        let files = state.files()?;
        let told = "the state is not in its Secret yet; trying again";
        self.insist(told, || self.write(&files, None)).await
    }

    /// Saves after each change of the folder. Never ends; trouble is told and tried again.
    pub async fn follow(&self, state: &StateDir) {
        let mut changes = state.changes();
        while changes.changed().await.is_ok() {
            while let Err(e) = self.save(state).await {
                tracing::error!(cause = %e, "the state is not in its Secret: a new pod would have to join anew");
                sleep(limits::SECRET_PAUSE_MAX).await;
            }
        }
        std::future::pending().await
    }

    /// Tries what time may heal until it is healed.
    ///
    /// # Errors
    /// What time does not heal.
    pub(crate) async fn insist<T, F: Future<Output = Result<T, SecretError>>>(
        &self,
        told: &'static str,
        attempt: impl Fn() -> F,
    ) -> Result<T, SecretError> {
        let mut pause = Duration::from_secs(1);
        loop {
            match attempt().await {
                Err(e) if e.is_retryable() => tracing::warn!(cause = %chain(&e), "{told}"),
                done => return done,
            }
            sleep(pause).await;
            pause = (pause * 2).min(limits::SECRET_PAUSE_MAX);
        }
    }

    /// What it has, and the version of the object.
    pub(crate) async fn read(&self) -> Result<(BTreeMap<String, Vec<u8>>, String), SecretError> {
        let answer = self.call("get", Method::GET, "application/json", None).await?;
        let secret: Secret = serde_json::from_slice(&answer).map_err(|e| self.answer(&e))?;
        let decoded = secret.data.into_iter().map(|(key, value)| Ok((key, STANDARD.decode(value)?)));
        let decoded = decoded.collect::<Result<_, base64::DecodeError>>().map_err(|e| self.answer(&e))?;
        Ok((decoded, secret.metadata.resource_version))
    }

    /// Puts files into it; with a version, only if the object still is that one.
    pub(crate) async fn write(
        &self,
        files: &BTreeMap<String, Vec<u8>>,
        version: Option<&str>,
    ) -> Result<(), SecretError> {
        let data: BTreeMap<&str, String> =
            files.iter().map(|(name, bytes)| (&**name, STANDARD.encode(bytes))).collect();
        let mut patch = json!({ "data": data });
        if let Some(version) = version {
            patch["metadata"]["resourceVersion"] = version.into();
        }
        self.call("patch", Method::PATCH, "application/merge-patch+json", Some(patch)).await.map(drop)
    }

    fn answer(&self, why: &dyn fmt::Display) -> SecretError {
        SecretError::Answer { name: self.name.clone(), answer: why.to_string() }
    }

    async fn call(
        &self,
        what: &'static str,
        method: Method,
        kind: &str,
        content: Option<Value>,
    ) -> Result<bytes::Bytes, SecretError> {
        let content = content.map_or_else(body::empty, |value| body::full(value.to_string()));
        let request = Request::builder().method(method).uri(self.path()).header(header::ACCEPT, "application/json");
        let request = request.header(header::CONTENT_TYPE, kind).body(content).map_err(|e| self.answer(&e))?;
        let called = self.upstream.own(request).await;
        match called.map_err(|cause| SecretError::Unreachable { name: self.name.clone(), cause })? {
            (StatusCode::OK, answer) => Ok(answer),
            (StatusCode::NOT_FOUND, _) => Err(SecretError::Missing(self.name.clone())),
            (StatusCode::FORBIDDEN, _) => Err(SecretError::Forbidden { what, name: self.name.clone() }),
            (StatusCode::CONFLICT, _) => Err(SecretError::Changed(self.name.clone())),
            (status, _) => Err(self.answer(&status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_with_or_without_its_namespace() {
        let parse = |text: &str| text.parse::<SecretName>();
        assert_eq!(parse("state").unwrap(), SecretName { namespace: None, name: "state".into() });
        assert_eq!(parse("moorline/state").unwrap().to_string(), "moorline/state");
        for bad in ["", "a/b/c", "/x", "x/", "A", "../x", "a b"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
