//! The HTTP face: paths, verbs, parameters, content types.

use crate::{
    ApiError, Cause, KindSpec, LabelSelector, Limits, Metrics, Spec, Store,
    body::{Body, BoxError},
    client::Api,
    discovery,
    ops::{Deleted, MODIFIED, Ops, Part, Preconditions, Unknown, WriteOptions, name_of},
    patch::Patch,
    select::FieldSelector,
    status::json_response,
    table::{Include, partial, table},
    watch::{Selects, Watch},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

/// What is asked, for whoever decides whether it may be.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: &'a str,
    /// Plural of the kind.
    pub resource: &'static str,
    /// `status`, or empty.
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
}

/// An API server. Clones are the same one.
#[derive(Clone)]
pub struct ApiServer {
    ops: Arc<Ops>,
    metrics: Metrics,
    watches: Arc<Semaphore>,
    stop: CancellationToken,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("kinds", &self.ops.kinds).finish_non_exhaustive()
    }
}

/// How objects are shown: whole, as table rows, or their metadata alone.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    Whole,
    Table(Include),
    Partial,
}

/// One object as the client wants it.
pub(crate) fn render(kind: &KindSpec, object: &Value, form: Form) -> Value {
    match form {
        Form::Whole => object.clone(),
        Form::Partial => partial(object),
        Form::Table(include) => {
            let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
            table(kind, std::iter::once(object), include, metadata)
        }
    }
}

type Query = HashMap<String, String>;

/// `a=b&c=d`, percent-decoded. A name that comes twice: the first wins, as in Go's `url.Values.Get`.
fn query(parts: &Parts) -> Result<Query, ApiError> {
    let mut out = Query::new();
    for pair in parts.uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key)?, decode(value)?);
        out.entry(key).or_insert(value);
    }
    Ok(out)
}

fn decode(text: &str) -> Result<String, ApiError> {
    let bad = || ApiError::bad_request("the query is not valid");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let pair = [bytes.next().ok_or_else(bad)?, bytes.next().ok_or_else(bad)?];
                let digits = std::str::from_utf8(&pair).map_err(|_| bad())?;
                u8::from_str_radix(digits, 16).map_err(|_| bad())?
            }
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| bad())
}

fn is_true(query: &Query, key: &str) -> bool {
    query.get(key).is_some_and(|v| v == "true" || v == "1")
}

fn form(headers: &HeaderMap, query: &Query) -> Result<Form, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    for item in accept.split(',') {
        let mut parts = item.split(';').map(str::trim);
        let (media, mut wanted) = (parts.next().unwrap_or_default(), "");
        let mut version = "v1";
        for parameter in parts {
            match parameter.split_once('=') {
                Some(("as", name)) => wanted = name,
                Some(("v", v)) => version = v,
                _ => {}
            }
        }
        if !matches!(media, "application/json" | "application/*" | "*/*") || version != "v1" {
            continue;
        }
        match wanted {
            "" => return Ok(Form::Whole),
            "Table" => {
                return Ok(Form::Table(match query.get("includeObject").map(String::as_str) {
                    Some("None") => Include::None,
                    Some("Object") => Include::Object,
                    _ => Include::Metadata,
                }));
            }
            "PartialObjectMetadata" | "PartialObjectMetadataList" => return Ok(Form::Partial),
            _ => {}
        }
    }
    let message = "only the following media types are accepted: application/json";
    Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message))
}

/// A request for objects, taken apart.
struct Call<'a> {
    kind: &'a KindSpec,
    name: &'a str,
    status: bool,
    query: Query,
    form: Form,
}

impl ApiServer {
    /// Serves `kinds` from `store`. `stop` ends watches.
    ///
    /// # Errors
    /// Metrics that are already registered.
    pub fn new(
        store: Store,
        kinds: Vec<KindSpec>,
        limits: Limits,
        registry: &prometheus::Registry,
        stop: CancellationToken,
    ) -> Result<Self, prometheus::Error> {
        let watches = Arc::new(Semaphore::new(limits.watches));
        let metrics = Metrics::new(registry)?;
        Ok(Self { ops: Arc::new(Ops { store, kinds, limits }), metrics, watches, stop })
    }

    /// Whether a path is one of this API's.
    pub fn serves(path: &str) -> bool {
        let first = path.trim_start_matches('/').split('/').next();
        matches!(first, Some("api" | "apis" | "openapi" | "version"))
    }

    /// Typed access for this process, without authorization.
    pub fn api<S: Spec>(&self) -> Api<S> {
        Api::new(Arc::clone(&self.ops))
    }

    /// The store behind it.
    pub fn store(&self) -> &Store {
        &self.ops.store
    }

    /// Deletes dependents whose owners are gone, and says how many: to be called at start, since a stop between the
    /// deletion of an owner and that of its dependents leaves them.
    ///
    /// # Errors
    /// The store does not take writes.
    pub async fn collect_orphans(&self) -> Result<usize, ApiError> {
        self.ops.collect_orphans().await
    }

    /// Serves one request of an authenticated caller.
    pub async fn handle<B>(&self, request: Request<B>, authorizer: Arc<dyn Authorizer>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let (verb, resource) = self.labels(&parts, &path);
        let response = match self.serve(&parts, &path, body, authorizer).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        };
        self.metrics.requests.with_label_values(&[verb, resource, response.status().as_str()]).inc();
        response
    }

    /// Metric labels: bounded sets, whatever a client sends.
    fn labels(&self, parts: &Parts, path: &str) -> (&'static str, &'static str) {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let kind = segments.get(3).and_then(|plural| self.ops.kind(plural));
        let many = segments.len() == 4;
        let watch = parts.uri.query().is_some_and(|q| q.split('&').any(|p| p == "watch=true" || p == "watch=1"));
        let verb = match (&parts.method, many) {
            (&Method::GET, _) if watch => "watch",
            (&Method::GET, true) => "list",
            (&Method::GET, false) => "get",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, true) => "deletecollection",
            (&Method::DELETE, false) => "delete",
            _ => "other",
        };
        (verb, kind.map_or("other", |k| k.plural))
    }

    async fn serve<B>(
        &self,
        parts: &Parts,
        path: &str,
        body: B,
        authorizer: Arc<dyn Authorizer>,
    ) -> Result<Response<Body>, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let not_found =
            || ApiError::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource");
        let method_not_allowed = || {
            let message = "the server does not allow this method on the requested resource";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
        };
        if let Some(found) = discovery::answer(&self.ops.kinds, path) {
            if parts.method != Method::GET {
                return Err(method_not_allowed());
            }
            return Ok(json_response(StatusCode::OK, &found));
        }
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (group, version, plural, rest) = match segments.as_slice() {
            ["apis", group, version, plural, rest @ ..] => (*group, *version, *plural, rest),
            _ => return Err(not_found()),
        };
        let kind = self.ops.kind(plural).filter(|k| k.group == group && k.version == version).ok_or_else(not_found)?;
        let (name, status) = match rest {
            [] => ("", false),
            [name] if !name.is_empty() => (*name, false),
            [name, "status"] if kind.has_status && !name.is_empty() => (*name, true),
            _ => return Err(not_found()),
        };
        let query = query(parts)?;
        let form = form(&parts.headers, &query)?;
        let call = Call { kind, name, status, query, form };
        let watch = is_true(&call.query, "watch");
        match (&parts.method, name.is_empty()) {
            (&Method::GET, _) if watch => self.watch(&call, authorizer),
            (&Method::GET, true) => self.list(&call, &*authorizer),
            (&Method::GET, false) => {
                self.permit(&*authorizer, &call, "get")?;
                let entry = self.ops.get(kind, name)?;
                Ok(json_response(StatusCode::OK, &render(kind, &entry.value, call.form)))
            }
            (&Method::POST, true) => {
                let sent = self.object(parts, body).await?;
                self.permit_object(&*authorizer, &call, "create", Some(&sent))?;
                let (made, warnings) = self.ops.create(kind, sent, options(&call.query)?).await?;
                Ok(answer(StatusCode::CREATED, &render(kind, &made, call.form), &warnings))
            }
            (&Method::PUT, false) => {
                self.permit(&*authorizer, &call, "update")?;
                let sent = self.object(parts, body).await?;
                let (new, warnings) = self.ops.update(kind, name, call.part(), sent, options(&call.query)?).await?;
                Ok(answer(StatusCode::OK, &render(kind, &new, call.form), &warnings))
            }
            (&Method::PATCH, false) => {
                self.permit(&*authorizer, &call, "patch")?;
                let patch = Patch::read(content_type(&parts.headers), &self.body(parts, body).await?)?;
                self.patch(&call, &patch).await
            }
            (&Method::DELETE, _) => {
                let verb = if name.is_empty() { "deletecollection" } else { "delete" };
                self.permit(&*authorizer, &call, verb)?;
                let sent = self.body(parts, body).await?;
                self.delete(&call, &sent, &*authorizer).await
            }
            _ => Err(method_not_allowed()),
        }
    }

    fn permit(&self, authorizer: &dyn Authorizer, call: &Call<'_>, verb: &str) -> Result<(), ApiError> {
        let stored = self.ops.store.get(&call.kind.key(call.name));
        self.permit_object(authorizer, call, verb, stored.as_ref().map(|e| &*e.value))
    }

    fn permit_object(
        &self,
        authorizer: &dyn Authorizer,
        call: &Call<'_>,
        verb: &str,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        let subresource = if call.status { "status" } else { "" };
        let attributes = Attributes { verb, resource: call.kind.plural, subresource, name: call.name, object };
        authorizer.authorize(&attributes).map_err(|why| {
            let KindSpec { plural, group, .. } = call.kind;
            let name = if call.name.is_empty() { String::new() } else { format!(" \"{}\"", call.name) };
            ApiError::forbidden(format!("{plural}.{group}{name} is forbidden: {why}"))
        })
    }

    /// A whole body, never more than the limit.
    async fn body<B>(&self, parts: &Parts, body: B) -> Result<Bytes, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let limit = self.ops.limits.body;
        let too_large = || {
            let message = format!("the request body must not have more than {limit} bytes");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
        };
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|n| u64::try_from(limit).is_ok_and(|limit| limit < n)) {
            return Err(too_large());
        }
        let whole = Box::pin(Limited::new(body, limit).collect());
        match tokio::time::timeout(self.ops.limits.body_time, whole).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(ApiError::bad_request(format!("the request body ended early: {error}"))),
            Err(_) => {
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "Timeout", "the request body did not come in time"))
            }
        }
    }

    async fn object<B>(&self, parts: &Parts, body: B) -> Result<Value, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        if !matches!(content_type(&parts.headers), "" | "application/json") {
            let message =
                "the body of the request was in an unknown format - accepted media types include: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message));
        }
        let bytes = self.body(parts, body).await?;
        serde_json::from_slice(&bytes).map_err(|e| ApiError::bad_request(format!("the object cannot be read: {e}")))
    }

    fn selects(call: &Call<'_>) -> Result<Selects, ApiError> {
        let text = |key: &str| call.query.get(key).map_or("", String::as_str);
        let labels = LabelSelector::parse(text("labelSelector")).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(text("fieldSelector"), call.kind)?;
        let name = call.name.to_owned();
        Ok(Arc::new(move |object: &Value| {
            (name.is_empty() || name_of(object) == name)
                && labels.matches(&object["metadata"]["labels"])
                && fields.matches(object)
        }))
    }

    fn list(&self, call: &Call<'_>, authorizer: &dyn Authorizer) -> Result<Response<Body>, ApiError> {
        self.permit(authorizer, call, "list")?;
        let selects = Self::selects(call)?;
        let prefix = call.kind.prefix();
        let limit: usize = match call.query.get("limit").map(String::as_str) {
            None | Some("" | "0") => usize::MAX,
            Some(text) => text.parse().map_err(|_| ApiError::bad_request("limit must be a number"))?,
        };
        let wanted = revision(call.query.get("resourceVersion").map_or("", String::as_str))?;
        let (at, after, entries) = match call.query.get("continue").filter(|c| !c.is_empty()) {
            Some(token) => {
                let (at, after) = read_continue(token)?;
                let entries = self.ops.store.list_at(&prefix, at).map_err(|_| {
                    ApiError::expired("The provided continue parameter is too old; start a new list without it")
                })?;
                (at, after, entries)
            }
            None => {
                let exact = call.query.get("resourceVersionMatch").is_some_and(|m| m == "Exact");
                let (newest, entries) = self.ops.store.list(&prefix);
                match wanted {
                    Some(at) if exact && at != 0 => {
                        let entries = self.ops.store.list_at(&prefix, at);
                        (at, String::new(), entries.map_err(|_| ApiError::expired("the resource version is too old"))?)
                    }
                    Some(at) if newest < at => {
                        let mut error = ApiError::new(
                            StatusCode::GATEWAY_TIMEOUT,
                            "Timeout",
                            format!("Too large resource version: {at}, current: {newest}"),
                        );
                        error.retry_after = Some(1);
                        return Err(error);
                    }
                    _ => (newest, String::new(), entries),
                }
            }
        };
        let mut chosen = entries.into_iter().map(|(_, e)| e.value).filter(|object| {
            *name_of(object) > *after && selects(object) && authorizer.visible(call.kind.plural, object)
        });
        let page: Vec<Arc<Value>> = chosen.by_ref().take(limit).collect();
        let mut metadata = json!({ "resourceVersion": at.to_string() });
        let left = chosen.count();
        if left > 0
            && let Some(last) = page.last()
        {
            metadata["continue"] = write_continue(at, name_of(last)).into();
            metadata["remainingItemCount"] = left.into();
        }
        let kind = call.kind;
        let list = match call.form {
            Form::Table(include) => table(kind, page.iter().map(|o| &**o), include, metadata),
            form => {
                let items: Vec<Value> = page.iter().map(|o| render(kind, o, form)).collect();
                let (list_kind, version) = match form {
                    Form::Partial => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
                    _ => (format!("{}List", kind.kind), kind.api_version()),
                };
                json!({ "kind": list_kind, "apiVersion": version, "metadata": metadata, "items": items })
            }
        };
        Ok(json_response(StatusCode::OK, &list))
    }

    fn watch(&self, call: &Call<'_>, authorizer: Arc<dyn Authorizer>) -> Result<Response<Body>, ApiError> {
        self.permit(&*authorizer, call, "watch")?;
        let selects = Self::selects(call)?;
        let limits = &self.ops.limits;
        let place = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| {
            let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "too many open watches");
            error.retry_after = Some(5);
            error
        })?;
        let prefix = call.kind.prefix();
        let seconds: Option<u64> = match call.query.get("timeoutSeconds").map(String::as_str) {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| ApiError::bad_request("timeoutSeconds must be a number"))?),
        };
        let life = seconds.map_or(limits.watch_time, Duration::from_secs).min(limits.watch_time);
        let bookmarks = is_true(&call.query, "allowWatchBookmarks");
        let initial = is_true(&call.query, "sendInitialEvents");
        if initial && call.query.get("resourceVersionMatch").is_none_or(|m| m != "NotOlderThan") {
            let message = "sendInitialEvents needs resourceVersionMatch=NotOlderThan";
            let causes = [Cause::forbidden("resourceVersionMatch", message)];
            return Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", &causes));
        }
        let from = revision(call.query.get("resourceVersion").map_or("", String::as_str))?;
        let mut first = std::collections::VecDeque::new();
        let from = match from {
            Some(from) if from != 0 && !initial => from,
            _ => {
                let (at, entries) = self.ops.store.list(&prefix);
                let chosen = entries.into_iter().map(|(_, e)| e.value);
                let chosen = chosen.filter(|o| selects(o) && authorizer.visible(call.kind.plural, o));
                first.extend(chosen.map(|o| ("ADDED", (*o).clone())));
                if initial && bookmarks {
                    first.push_back((
                        "BOOKMARK",
                        json!({
                            "kind": call.kind.kind, "apiVersion": call.kind.api_version(),
                            "metadata": {
                                "resourceVersion": at.to_string(), "creationTimestamp": null,
                                "annotations": { "k8s.io/initial-events-end": "true" },
                            },
                        }),
                    ));
                }
                at
            }
        };
        let watcher = self
            .ops
            .store
            .watch(&prefix, from)
            .map_err(|_| ApiError::expired(format!("too old resource version: {from}; list again")))?;
        let watch = Watch {
            kind: call.kind.clone(),
            watcher,
            selects,
            authorizer,
            form: call.form,
            bookmarks: bookmarks.then_some(limits.bookmark_every),
            first,
            until: Instant::now() + life,
            stop: self.stop.clone(),
            _place: place,
            gauge: self.metrics.watches.clone(),
        };
        let mut response = Response::new(watch.into_body());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }

    async fn patch(&self, call: &Call<'_>, patch: &Patch) -> Result<Response<Body>, ApiError> {
        let Call { kind, name, .. } = *call;
        let options = options(&call.query)?;
        for _ in 0..self.ops.limits.conflict_retries {
            let old = self.ops.get(kind, name)?;
            // The revision that was read stays in, so that a change in between is seen.
            let new = patch.apply(&old.value, &self.ops.limits)?;
            match self.ops.update(kind, name, call.part(), new, options).await {
                Ok((new, warnings)) => return Ok(answer(StatusCode::OK, &render(kind, &new, call.form), &warnings)),
                Err(error) if error.is_conflict() && !patch.names_revision() => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::conflict(kind.group, kind.plural, name, MODIFIED))
    }

    async fn delete(
        &self,
        call: &Call<'_>,
        sent: &[u8],
        authorizer: &dyn Authorizer,
    ) -> Result<Response<Body>, ApiError> {
        let kind = call.kind;
        let wanted: Value = if sent.is_empty() {
            json!({})
        } else {
            serde_json::from_slice(sent)
                .map_err(|e| ApiError::bad_request(format!("the delete options cannot be read: {e}")))?
        };
        let text = |pointer: &str| wanted.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let preconditions =
            Preconditions { uid: text("/preconditions/uid"), resource_version: text("/preconditions/resourceVersion") };
        let propagation = text("/propagationPolicy").or_else(|| call.query.get("propagationPolicy").cloned());
        match propagation.as_deref() {
            // Foreground and background are one here: dependents are gone when the answer comes.
            None | Some("" | "Background" | "Foreground") => {}
            Some("Orphan") if kind.owns.is_empty() => {}
            Some(other) => {
                let message = format!("{other:?}: supported values: \"Background\", \"Foreground\"");
                let causes = [Cause::invalid("propagationPolicy", message)];
                return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &causes));
            }
        }
        let dry_run = options(&call.query)?.dry_run || wanted["dryRun"].as_array().is_some_and(|d| !d.is_empty());
        if !call.name.is_empty() {
            return Ok(match self.ops.delete(kind, call.name, &preconditions, dry_run).await? {
                Deleted::Held(object) => json_response(StatusCode::OK, &render(kind, &object, call.form)),
                Deleted::Gone(object) => {
                    let status = json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                        "details": {
                            "name": call.name, "group": kind.group, "kind": kind.plural,
                            "uid": object["metadata"]["uid"],
                        },
                    });
                    json_response(StatusCode::OK, &status)
                }
            });
        }
        let selects = Self::selects(call)?;
        let mut gone = Vec::new();
        for (_, entry) in self.ops.store.list(&kind.prefix()).1 {
            if !selects(&entry.value) || !authorizer.visible(kind.plural, &entry.value) {
                continue;
            }
            match self.ops.delete(kind, name_of(&entry.value), &Preconditions::default(), dry_run).await {
                Ok(Deleted::Gone(object)) => gone.push((*object).clone()),
                Ok(Deleted::Held(object)) => gone.push(object),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let list = json!({
            "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
            "metadata": { "resourceVersion": self.ops.store.revision().to_string() }, "items": gone,
        });
        Ok(json_response(StatusCode::OK, &list))
    }
}

impl Call<'_> {
    fn part(&self) -> Part {
        if self.status { Part::Status } else { Part::Main }
    }
}

fn content_type(headers: &HeaderMap) -> &str {
    let text = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

fn options(query: &Query) -> Result<WriteOptions, ApiError> {
    let dry_run = match query.get("dryRun").map(String::as_str) {
        None | Some("") => false,
        Some("All") => true,
        Some(other) => return Err(ApiError::bad_request(format!("dryRun: unsupported value {other:?}"))),
    };
    // Without a wish the server warns, as kube-apiserver does.
    let unknown = match query.get("fieldValidation").map(String::as_str) {
        None | Some("" | "Warn") => Unknown::Warn,
        Some("Strict") => Unknown::Refuse,
        Some("Ignore") => Unknown::Drop,
        Some(other) => return Err(ApiError::bad_request(format!("fieldValidation: unsupported value {other:?}"))),
    };
    Ok(WriteOptions { unknown, dry_run })
}

fn revision(text: &str) -> Result<Option<u64>, ApiError> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| ApiError::bad_request(format!("invalid resource version {text:?}"))),
    }
}

fn write_continue(revision: u64, after: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({ "rv": revision, "start": after }).to_string())
}

fn read_continue(token: &str) -> Result<(u64, String), ApiError> {
    let read = || {
        let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        Some((value["rv"].as_u64()?, value["start"].as_str()?.to_owned()))
    };
    read().ok_or_else(|| ApiError::bad_request("continue key is not valid"))
}

fn answer(code: StatusCode, value: &Value, warnings: &[String]) -> Response<Body> {
    let mut response = json_response(code, value);
    for warning in warnings {
        // RFC 9111 §5.5 as Kubernetes uses it: code 299, the agent `-`, the text quoted.
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}
