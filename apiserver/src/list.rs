//! Lists: pages of one moment, and deletions of all that a list would show.

use crate::{
    ApiError, ApiServer, Authorizer, Cause, KindSpec,
    delete::{Deleted, Preconditions, Propagation},
    negotiate::{Form, Reply, Syntax, render},
    ops::name_of,
    request::{Call, revision},
    store::Kept,
    stored::Stored,
    table::table,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::{Value, json};
use std::{ops::Deref, sync::Arc};

/// Where a list goes on.
struct Continue {
    /// The moment of the list; `None`: whatever is newest.
    at: Option<u64>,
    after: String,
}

impl Continue {
    fn write(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!({ "v": "meta.k8s.io/v1", "rv": self.at, "start": self.after }).to_string())
    }

    fn read(token: &str) -> Result<Self, ApiError> {
        let read = || {
            let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
            Some(Self { at: value["rv"].as_u64(), after: value["start"].as_str()?.to_owned() })
        };
        read().ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: a continue key comes from an answer, and only from there")
        })
    }
}

const EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a \
    new list without the continue parameter, or use the continue token in this response to retrieve the remainder of \
    the results. Continuing with the provided token results in an inconsistent list - objects that were created, \
    modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// The objects of a list, and the moment of it.
struct Found {
    at: u64,
    after: String,
    objects: Vec<(Arc<str>, Stored)>,
}

/// How `resourceVersion` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Any,
    NotOlderThan(u64),
    Exact(u64),
}

fn invalid(cause: Cause) -> ApiError {
    ApiError::invalid("meta.k8s.io", "ListOptions", "", &[cause])
}

/// The rules of <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.
fn wanted(call: &Call<'_>, going_on: bool) -> Result<Match, ApiError> {
    const FIELD: &str = "resourceVersionMatch";
    let version = call.query.get("resourceVersion");
    let how = call.query.get(FIELD);
    if let Some(how) = how {
        if going_on {
            let message = "resourceVersionMatch is forbidden when continue is provided";
            return Err(invalid(Cause::forbidden(FIELD, message)));
        }
        if version.is_none() {
            let message = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(invalid(Cause::forbidden(FIELD, message)));
        }
        if !matches!(how, "Exact" | "NotOlderThan") {
            let message = format!("{how:?}: supported values: \"Exact\", \"NotOlderThan\", \"\"");
            return Err(invalid(Cause::new("FieldValueNotSupported", FIELD, message)));
        }
        if how == "Exact" && version == Some("0") {
            let message = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            return Err(invalid(Cause::forbidden(FIELD, message)));
        }
    }
    if going_on && version.is_some_and(|v| v != "0") {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    if call.query.has("sendInitialEvents") {
        let message = "sendInitialEvents is forbidden for list";
        return Err(invalid(Cause::forbidden("sendInitialEvents", message)));
    }
    Ok(match (revision(version)?, how) {
        (None | Some(0), _) => Match::Any,
        (Some(at), Some("Exact")) => Match::Exact(at),
        // A limit without a word on the match asks for exactly that moment.
        (Some(at), None) if call.number("limit")?.is_some_and(|n| 0 < n) => Match::Exact(at),
        (Some(at), _) => Match::NotOlderThan(at),
    })
}

/// A revision that has not been yet.
pub(crate) fn from_the_future(at: u64, newest: u64) -> ApiError {
    let message = format!("Timeout: Too large resource version: {at}, current: {newest}");
    let mut error = ApiError::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
    let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
    error.details = Some(json!({ "causes": [cause] }));
    error.retry_after = Some(1);
    error
}

/// The name in a key.
fn name<'a>(key: &'a str, prefix: &str) -> &'a str {
    key.strip_prefix(prefix).unwrap_or_default()
}

impl ApiServer {
    pub(crate) fn list(&self, call: &Call<'_>, authorizer: &dyn Authorizer) -> Result<Reply, ApiError> {
        self.permit(authorizer, call, "list")?;
        let selects = call.selects()?;
        let limit = call.number("limit")?.filter(|n| 0 < *n);
        let limit = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let Found { at, after, objects } = self.found(call)?;
        let prefix = call.kind.prefix();
        // Where nothing depends on what is in them, none is looked at.
        let all = call.selects_all() && authorizer.sees_all(call.kind.plural);
        let shown = |stored: &Stored| {
            let object = stored.value();
            authorizer.visible(call.kind.plural, &object) && selects(&call.see(object))
        };
        let later = |key: &str| name(key, &prefix) > after.as_str();
        let mut chosen = objects.into_iter().filter(|(key, stored)| later(key) && (all || shown(stored)));
        let page: Vec<(Arc<str>, Stored)> = chosen.by_ref().take(limit).collect();
        let mut metadata = json!({ "resourceVersion": at.to_string() });
        let left = chosen.count();
        if left > 0
            && let Some((last, _)) = page.last()
        {
            metadata["continue"] = Continue { at: Some(at), after: name(last, &prefix).to_owned() }.write().into();
            // With a selector Kubernetes does not say how many are left, for it does not know.
            if call.query.get("labelSelector").is_none() && call.query.get("fieldSelector").is_none() {
                metadata["remainingItemCount"] = left.into();
            }
        }
        if call.form == Form::Whole && call.syntax == Syntax::Json && call.view.is_none() {
            return Ok(whole(call.kind, &page, &metadata));
        }
        let mut reply = Reply::ok(list_of(call, page.iter().map(|(_, stored)| call.see(stored.value())), metadata));
        reply.syntax = call.syntax;
        Ok(reply)
    }

    /// The newest objects that a call may be about: the one that it names, or all of its kind.
    pub(crate) fn candidates(&self, call: &Call<'_>) -> (u64, Vec<(Arc<str>, Kept)>) {
        match call.only() {
            Some(name) => self.store().kept_one(&call.kind.key(name)),
            None => self.store().kept(&call.kind.prefix()),
        }
    }

    fn found(&self, call: &Call<'_>) -> Result<Found, ApiError> {
        let store = self.store();
        let prefix = call.kind.prefix();
        let values = |all: Vec<(_, Kept)>| all.into_iter().map(|(key, kept)| (key, kept.stored)).collect();
        let token = call.query.get("continue").map(Continue::read).transpose()?;
        let wanted = wanted(call, token.is_some())?;
        if let Some(Continue { at, after }) = token {
            let Some(at) = at else {
                let (at, all) = store.kept(&prefix);
                return Ok(Found { at, after, objects: values(all) });
            };
            let objects = store.kept_at(&prefix, at).map_err(|_| {
                let mut error = ApiError::expired(EXPIRED);
                error.go_on = Some(Continue { at: None, after: after.clone() }.write());
                error
            })?;
            return Ok(Found { at, after, objects: values(objects) });
        }
        let (newest, all) = self.candidates(call);
        match wanted {
            Match::Exact(at) | Match::NotOlderThan(at) if newest < at => Err(from_the_future(at, newest)),
            Match::Exact(at) => {
                let objects = store.kept_at(&prefix, at).map_err(|_| {
                    ApiError::expired(format!("The resourceVersion for the provided list is too old: {at}"))
                })?;
                Ok(Found { at, after: String::new(), objects: values(objects) })
            }
            Match::Any | Match::NotOlderThan(_) => Ok(Found { at: newest, after: String::new(), objects: values(all) }),
        }
    }

    /// Deletes what the selectors choose and the caller sees.
    pub(crate) async fn delete_collection(
        &self,
        call: &Call<'_>,
        propagation: Propagation,
        dry_run: bool,
        authorizer: &dyn Authorizer,
    ) -> Result<Reply, ApiError> {
        let kind = call.stored;
        let selects = call.selects()?;
        let mut gone = Vec::new();
        for (_, entry) in self.store().list(&kind.prefix()).1 {
            if !selects(&call.see(Arc::clone(&entry.value))) || !authorizer.visible(kind.plural, &entry.value) {
                continue;
            }
            let any = Preconditions::default();
            match self.ops().delete(kind, name_of(&entry.value), &any, propagation, dry_run).await {
                Ok(Deleted::Gone(object) | Deleted::Held(object)) => gone.push(call.see(Arc::new(object))),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let metadata = json!({ "resourceVersion": self.store().revision().to_string() });
        Ok(Reply::ok(list_of(call, gone.into_iter(), metadata)))
    }
}

/// A list as text, put together from those of the stored objects.
fn whole(kind: &KindSpec, page: &[(Arc<str>, Stored)], metadata: &Value) -> Reply {
    let mut text = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
        kind.kind,
        kind.api_version()
    );
    text.reserve(page.iter().map(|(_, stored)| stored.text().len() + 1).sum::<usize>() + 2);
    for (i, (_, stored)) in page.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(stored.text());
    }
    text.push_str("]}");
    let mut reply = Reply::ok(Value::Null);
    reply.media = Some("application/json");
    reply.written = Some(text.into_bytes());
    reply
}

fn list_of(call: &Call<'_>, objects: impl Iterator<Item = impl Deref<Target = Value>>, metadata: Value) -> Value {
    let kind = call.kind;
    let (list_kind, version) = match call.form {
        Form::Table(include) => return table(kind, objects, include, metadata),
        Form::Partial => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        Form::Whole => (format!("{}List", kind.kind), kind.api_version()),
    };
    let items: Vec<Value> = objects.map(|o| render(kind, &o, call.form)).collect();
    json!({ "kind": list_kind, "apiVersion": version, "metadata": metadata, "items": items })
}
