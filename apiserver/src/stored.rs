//! An object as it is held in memory: its text, a fifth of what the tree of it takes. The tree is made when somebody looks
//! at it, and is one for all who do at a time.

use serde::Deserialize;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// See the module. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Stored(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    text: Box<str>,
    /// There while somebody has it.
    tree: Mutex<Weak<Value>>,
}

/// What of an object the store itself reads.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Meta,
}
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    resource_version: Option<String>,
}

impl Stored {
    /// An object that is new. It is read again soon, so its tree is given back to be kept for a while.
    pub(crate) fn new(value: Arc<Value>) -> Self {
        let text = value.to_string().into_boxed_str();
        Self(Arc::new(Inner { text, tree: Mutex::new(Arc::downgrade(&value)) }))
    }

    /// A text that was kept, and the revision that it says. No tree is made.
    ///
    /// # Errors
    /// It is not JSON.
    pub(crate) fn read(text: Vec<u8>) -> Result<(Self, u64), serde_json::Error> {
        // Checked as a whole by this: the rest of the members is skipped, but read.
        let head: Head = serde_json::from_slice(&text)?;
        let text = String::from_utf8(text).map_err(serde::de::Error::custom)?.into_boxed_str();
        let revision = head.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or(0);
        Ok((Self(Arc::new(Inner { text, tree: Mutex::default() })), revision))
    }

    /// Its text.
    pub(crate) fn text(&self) -> &str {
        &self.0.text
    }

    /// Its tree.
    pub(crate) fn value(&self) -> Arc<Value> {
        let mut tree = self.0.tree.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = tree.upgrade() {
            return made;
        }
        // Every text was checked before it was taken in.
        let made = Arc::new(serde_json::from_str(&self.0.text).unwrap_or_default());
        *tree = Arc::downgrade(&made);
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tree_is_made_once_for_all_who_look_and_forgotten_after_them() {
        let object = json!({ "metadata": { "name": "a", "resourceVersion": "7" }, "spec": [1, { "b": "ü" }] });
        let (stored, revision) = Stored::read(object.to_string().into_bytes()).unwrap();
        assert_eq!((revision, stored.text()), (7, object.to_string().as_str()));
        let (one, other) = (stored.value(), stored.clone().value());
        assert!(Arc::ptr_eq(&one, &other) && *one == object);
        drop((one, other));
        assert!(stored.0.tree.lock().unwrap().upgrade().is_none());
        let fresh = Arc::new(object);
        assert!(Arc::ptr_eq(&Stored::new(Arc::clone(&fresh)).value(), &fresh));
    }

    #[test]
    fn what_is_not_json_is_not_taken_in() {
        for bad in [&b"{\"a\": tru}"[..], b"{\"spec\": {\"a\": [1, 2}}", b"", b"{\"a\":\"\xff\"}", b"{} {}"] {
            assert!(Stored::read(bad.to_vec()).is_err(), "{bad:?}");
        }
        assert!(Stored::read(b"{\"spec\": 1}".to_vec()).is_ok_and(|(_, revision)| revision == 0));
    }
}
