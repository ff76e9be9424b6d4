//! The owner's edge policy: read at the start, read again as its file changes.

use crate::{limits::POLICY, metrics::Metrics, state::read_text};
use moorline_authz::edge::EdgePolicy;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

/// Why the agent does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy file {path}: {cause}; the agent does not run without the policy that it was given")]
pub struct PolicyFileError {
    path: PathBuf,
    cause: String,
}

/// The policy in force.
#[derive(Debug)]
pub struct PolicyFile {
    path: Option<PathBuf>,
    current: RwLock<Arc<EdgePolicy>>,
}

impl PolicyFile {
    /// Reads the file; without one the built-in policy is in force.
    ///
    /// # Errors
    /// The file is missing, cannot be read or is no policy.
    pub fn open(path: Option<&Path>) -> Result<Self, PolicyFileError> {
        let policy = match path {
            Some(path) => load(path).map_err(|cause| PolicyFileError { path: path.to_owned(), cause })?,
            None => EdgePolicy::default(),
        };
        Ok(Self { path: path.map(Path::to_owned), current: RwLock::new(Arc::new(policy)) })
    }

    /// The policy for a request that begins now.
    pub fn current(&self) -> Arc<EdgePolicy> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Watches the file for ever. A file that is missing or broken leaves the last good policy in force.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn watch(&self, metrics: &Metrics) {
        metrics.policy_current.set(1);
        let Some(path) = self.path.clone() else { return std::future::pending().await };
        let mut told: Option<String> = None;
        loop {
            tokio::time::sleep(POLICY).await;
            let path = path.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || load(&path)).await else { continue };
            match read {
                Ok(policy) => {
                    metrics.policy_current.set(1);
                    told = None;
                    self.put(policy);
                }
                Err(cause) => {
                    metrics.policy_current.set(0);
                    if told.as_ref() != Some(&cause) {
                        tracing::error!(path = ?self.path, %cause, "the policy file cannot be used; the last good policy stays in force");
                        told = Some(cause);
                    }
                }
            }
        }
    }

    fn put(&self, policy: EdgePolicy) {
        if *self.current() != policy {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
            tracing::info!(path = ?self.path, "a new policy is in force");
        }
    }
}

fn load(path: &Path) -> Result<EdgePolicy, String> {
    let text = read_text(path).map_err(|e| e.to_string())?;
    EdgePolicy::from_yaml(&text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {api: {readOnly: true}}\n";

    #[test]
    fn s66_a_missing_empty_or_broken_policy_refuses_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        assert!(PolicyFile::open(Some(&path)).is_err());
        for bad in ["", "kind: EdgePolicy", &GOOD[..GOOD.len() / 2], &GOOD.replace("readOnly", "readonly")] {
            std::fs::write(&path, bad).unwrap();
            assert!(PolicyFile::open(Some(&path)).is_err(), "{bad:?}");
        }
        std::fs::write(&path, GOOD).unwrap();
        assert!(PolicyFile::open(Some(&path)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn s66_a_reload_keeps_the_last_good_policy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        std::fs::write(&path, GOOD).unwrap();
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let file = PolicyFile::open(Some(&path)).unwrap();
        let before = file.current();
        std::fs::write(&path, "spec: {").unwrap();
        let _ = tokio::time::timeout(POLICY * 3, file.watch(&metrics)).await;
        assert_eq!((metrics.policy_current.get(), file.current()), (0, before.clone()));
        std::fs::write(&path, GOOD.replace("true", "false")).unwrap();
        let _ = tokio::time::timeout(POLICY * 3, file.watch(&metrics)).await;
        assert_eq!(metrics.policy_current.get(), 1);
        assert_ne!(file.current(), before);
    }
}
