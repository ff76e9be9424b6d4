//! The HTTP face: paths and verbs.

use crate::{
    ApiError, Attributes, Authorizer, Cause, KindSpec, Limits, Metrics, Spec, Store,
    body::{Body, BoxError},
    client::Api,
    delete::{Deleted, Preconditions, Propagation},
    discovery,
    flow::Seats,
    list::from_the_future,
    negotiate::{self, Reply, render},
    ops::{MODIFIED, Ops, Part, Writer, Written},
    patch::Patch,
    request::{Call, Query, Reader, manager, revision},
    scale, versions,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request::Parts};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// An API server. Clones are the same one.
#[derive(Clone)]
pub struct ApiServer {
    ops: Arc<Ops>,
    /// Every version of every kind.
    versions: Vec<KindSpec>,
    pub(crate) metrics: Metrics,
    pub(crate) watches: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
    seats: Seats,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("kinds", &self.ops.kinds).finish_non_exhaustive()
    }
}

/// What comes of a request that succeeds.
enum Served {
    Whole(Reply),
    Stream(Response<Body>),
}

fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
}

fn method_not_allowed() -> ApiError {
    let message = "the server does not allow this method on the requested resource";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
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
        store.observe(&metrics);
        let seats = Seats::new(&limits);
        let versions = versions::all(&kinds);
        Ok(Self { ops: Arc::new(Ops { store, kinds, limits }), versions, metrics, watches, stop, seats })
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

    pub(crate) fn ops(&self) -> &Ops {
        &self.ops
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
            Ok(Served::Whole(reply)) => reply.into_response(&parts.headers),
            Ok(Served::Stream(response)) => response,
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
    ) -> Result<Served, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let _seat = self.seats.take(authorizer.flow(), parts.method != Method::GET)?;
        if discovery::serves(&self.versions, path) {
            if parts.method != Method::GET {
                return Err(method_not_allowed());
            }
            let form = negotiate::discovery(&parts.headers, path == "/openapi/v2")?;
            return discovery::answer(&self.versions, path, form).map(Served::Whole).ok_or_else(not_found);
        }
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (group, version, plural, rest) = match segments.as_slice() {
            ["apis", group, version, plural, rest @ ..] => (*group, *version, *plural, rest),
            _ => return Err(not_found()),
        };
        let stored = self.ops.kind(plural).filter(|k| k.group == group).ok_or_else(not_found)?;
        let view = stored.view(version).ok_or_else(not_found)?;
        let kind = view.map_or(stored, |view| &view.kind);
        let (name, part) = match rest {
            [] => ("", Part::Main),
            [name] if !name.is_empty() => (*name, Part::Main),
            [name, "status"] if kind.has_status && !name.is_empty() => (*name, Part::Status),
            [name, "scale"] if kind.scale.is_some() && !name.is_empty() => (*name, Part::Scale),
            _ => return Err(not_found()),
        };
        let query = Query::read(parts)?;
        let (form, syntax) = negotiate::objects(&parts.headers, query.get("includeObject"))?;
        let manager = manager(&query, &parts.headers)?;
        let call = Call { kind, stored, view, name, part, query, form, syntax, manager };
        let watch = call.query.is_true("watch");
        if parts.method == Method::GET && watch && part == Part::Main {
            return self.watch(&call, authorizer).map(Served::Stream);
        }
        let reader = Reader { parts, limits: &self.ops.limits };
        let mut reply = self.object(&call, &parts.method, &reader, body, &*authorizer).await?;
        reply.syntax = syntax;
        Ok(Served::Whole(reply))
    }

    async fn object<B>(
        &self,
        call: &Call<'_>,
        method: &Method,
        reader: &Reader<'_>,
        body: B,
        authorizer: &dyn Authorizer,
    ) -> Result<Reply, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let Call { stored: kind, name, .. } = *call;
        match (method, name.is_empty()) {
            (&Method::GET, true) => self.list(call, authorizer),
            (&Method::GET, false) => {
                self.permit(authorizer, call, "get")?;
                let newest = self.store().revision();
                if let Some(at) = revision(call.query.get("resourceVersion"))?.filter(|at| newest < *at) {
                    return Err(from_the_future(at, newest));
                }
                let object = self.ops.get(kind, name)?.value;
                Ok(Reply::ok(shown(call, object)))
            }
            (&Method::POST, true) => {
                let sent = reader.object(body).await?;
                if call.view.is_none() {
                    self.permit_object(authorizer, call, "create", Some(&sent))?;
                }
                let (sent, options, warnings) = call.take(sent, call.write_options("CreateOptions")?, true)?;
                if call.view.is_some() {
                    self.permit_object(authorizer, call, "create", Some(&sent))?;
                }
                let written = self.ops.create(kind, sent, options, Writer::Updates(&call.manager)).await?;
                Ok(reply(call, written, warnings))
            }
            (&Method::PUT, false) => {
                self.permit(authorizer, call, "update")?;
                let mut sent = reader.object(body).await?;
                if call.part == Part::Scale {
                    sent = scale::laid_over(kind, &self.ops.get(kind, name)?.value, &sent)?;
                }
                let mut taken = (sent, call.write_options("UpdateOptions")?, Vec::new());
                if call.part != Part::Scale {
                    taken = call.take(taken.0, taken.1, true)?;
                }
                let (sent, options, warnings) = taken;
                let written = self.ops.update(kind, name, call.part, sent, options, &call.manager).await?;
                Ok(reply(call, written, warnings))
            }
            (&Method::PATCH, false) => {
                self.permit(authorizer, call, "patch")?;
                let content_type = reader.content_type().to_owned();
                Patch::known(&content_type)?;
                let patch = Patch::read(&content_type, &reader.bytes(body).await?)?;
                self.patch(call, patch).await
            }
            (&Method::DELETE, _) if call.part == Part::Main => {
                self.permit(authorizer, call, if name.is_empty() { "deletecollection" } else { "delete" })?;
                let sent = reader.bytes(body).await?;
                self.delete(call, &sent, authorizer).await
            }
            _ => Err(method_not_allowed()),
        }
    }

    pub(crate) fn permit(&self, authorizer: &dyn Authorizer, call: &Call<'_>, verb: &str) -> Result<(), ApiError> {
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
        let subresource = call.subresource();
        let attributes = Attributes { verb, resource: call.kind.plural, subresource, name: call.name, object };
        authorizer.authorize(&attributes).map_err(|why| {
            let KindSpec { plural, group, .. } = call.kind;
            let name = if call.name.is_empty() { String::new() } else { format!(" \"{}\"", call.name) };
            ApiError::forbidden(format!("{plural}.{group}{name} is forbidden: {why}"))
        })
    }

    async fn patch(&self, call: &Call<'_>, patch: Patch) -> Result<Reply, ApiError> {
        let Call { stored: kind, name, part, .. } = *call;
        let invalid = |cause| Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", &[cause]));
        if let Patch::Apply(config) = &patch {
            if call.query.get("fieldManager").is_none() {
                return invalid(Cause::required("fieldManager", "is required for apply patch"));
            }
            if part == Part::Scale {
                return Err(ApiError::bad_request("the scale of an object cannot be applied"));
            }
            let manager = (call.manager.as_str(), call.query.is_true("force"));
            let (config, options, warnings) = call.take(config.clone(), call.write_options("PatchOptions")?, false)?;
            let written = self.ops.apply(kind, (name, part), &config, options, manager).await?;
            return Ok(reply(call, written, warnings));
        }
        if call.query.has("force") {
            return invalid(Cause::forbidden("force", "may not be specified for non-apply patch"));
        }
        let options = call.write_options("PatchOptions")?;
        for _ in 0..self.ops.limits.conflict_retries {
            let old = self.ops.get(kind, name)?;
            // The revision that was read stays in, so that a change in between is seen.
            let (new, options, warnings) = if part == Part::Scale {
                let scaled = patch.apply(&scale::of(kind, &old.value), &self.ops.limits)?;
                (scale::laid_over(kind, &old.value, &scaled)?, options, Vec::new())
            } else {
                call.take(patch.apply(&call.see(old.value), &self.ops.limits)?, options, true)?
            };
            match self.ops.update(kind, name, part, new, options, &call.manager).await {
                Ok(written) => return Ok(reply(call, written, warnings)),
                Err(error) if error.is_conflict() && !patch.names_revision() => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::conflict(kind.group, kind.plural, name, MODIFIED))
    }

    async fn delete(&self, call: &Call<'_>, sent: &[u8], authorizer: &dyn Authorizer) -> Result<Reply, ApiError> {
        let kind = call.stored;
        let wanted: Value = if sent.is_empty() {
            json!({})
        } else {
            serde_json::from_slice(sent)
                .map_err(|e| ApiError::bad_request(format!("the delete options cannot be read: {e}")))?
        };
        let text = |pointer: &str| wanted.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let preconditions =
            Preconditions { uid: text("/preconditions/uid"), resource_version: text("/preconditions/resourceVersion") };
        let policy = text("/propagationPolicy").or_else(|| call.query.get("propagationPolicy").map(str::to_owned));
        let propagation = match policy.as_deref() {
            None | Some("" | "Background") => Propagation::Background,
            Some("Foreground") => Propagation::Foreground,
            Some("Orphan") => Propagation::Orphan,
            Some(other) => {
                let supported = "\"Foreground\", \"Background\", \"Orphan\", \"nil\"";
                let message = format!("{other:?}: supported values: {supported}");
                let cause = Cause::new("FieldValueNotSupported", "propagationPolicy", message);
                return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &[cause]));
            }
        };
        let dry_run =
            call.write_options("DeleteOptions")?.dry_run || wanted["dryRun"].as_array().is_some_and(|d| !d.is_empty());
        if call.name.is_empty() {
            return self.delete_collection(call, propagation, dry_run, authorizer).await;
        }
        match self.ops.delete(kind, call.name, &preconditions, propagation, dry_run).await? {
            Deleted::Held(object) => Ok(Reply::ok(render(call.kind, &call.see(Arc::new(object)), call.form))),
            Deleted::Gone(object) => Ok(Reply::ok(json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {
                    "name": call.name, "group": kind.group, "kind": kind.plural, "uid": object["metadata"]["uid"],
                },
            }))),
        }
    }
}

/// An object as this call shows it.
fn shown(call: &Call<'_>, object: Arc<Value>) -> Value {
    match call.part {
        Part::Scale => scale::of(call.stored, &object),
        _ => render(call.kind, &call.see(object), call.form),
    }
}

fn reply(call: &Call<'_>, written: Written, mut warnings: Vec<String>) -> Reply {
    let code = if written.made { StatusCode::CREATED } else { StatusCode::OK };
    warnings.extend(written.warnings);
    Reply::new(code, shown(call, Arc::new(written.object))).warning(warnings)
}
