//! Who may do what: asked of the embedding program for every request and every object.

use serde_json::Value;

/// What is asked, for whoever decides whether it may be.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: &'a str,
    /// Plural of the kind.
    pub resource: &'static str,
    /// `status`, `scale`, or empty.
    pub subresource: &'a str,
    /// Name of the object; empty for collections and creations.
    pub name: &'a str,
    /// The object: as stored, where it is named and there; as sent, where it is created.
    pub object: Option<&'a Value>,
}

/// Decides what a caller may do and see.
pub trait Authorizer: Send + Sync + 'static {
    /// May the caller do this?
    ///
    /// # Errors
    /// Why not, for the caller.
    fn authorize(&self, attributes: &Attributes<'_>) -> Result<(), String>;
    /// Does the caller see this object in lists and watches?
    fn visible(&self, resource: &str, object: &Value) -> bool;
    /// Does the caller see every object of this kind? Then none of them is looked at to show a list. `false`: ask for each.
    fn sees_all(&self, _resource: &str) -> bool {
        false
    }
    /// Whose requests count together against [`crate::Limits::caller_requests`].
    fn flow(&self) -> &str {
        ""
    }
}

/// Permits everything: for tests and for the process's own use.
#[derive(Debug, Clone, Copy)]
pub struct Everything;
impl Authorizer for Everything {
    fn authorize(&self, _: &Attributes<'_>) -> Result<(), String> {
        Ok(())
    }
    fn visible(&self, _: &str, _: &Value) -> bool {
        true
    }
    fn sees_all(&self, _: &str) -> bool {
        true
    }
}
