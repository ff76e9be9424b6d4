//! A cluster whose API server is a map: what plugins do with a cluster (list, watch, apply, patch, delete) works, and a
//! test says and sees what is there.

use crate::world::World;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use moorline_link::Session;
use moorline_proxy::{Body, body, wire};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

#[derive(Default)]
struct State {
    /// By collection and name: `/api/v1/namespaces/team/configmaps`, `one`.
    objects: BTreeMap<(String, String), Value>,
    /// What happened, for watches: the kind of event, the collection, the object.
    log: Vec<(&'static str, String, Value)>,
    /// Answers that are no objects, by path and query.
    fixed: BTreeMap<String, (u16, String)>,
    /// Who asked for what.
    seen: Vec<(String, String)>,
}

/// The cluster.
#[derive(Default)]
pub struct Stub {
    state: Arc<Mutex<State>>,
    grown: watch::Sender<usize>,
    /// Its agent's.
    session: Option<Session>,
}

impl Stub {
    /// Connects it as a new cluster of this name.
    pub async fn connect(&mut self, world: &World, name: &str) {
        world.cluster(name).await;
        let token = world.join_token(name, 1, "2999-01-01T00:00:00Z").await;
        let member = world.join(&token, "a1", None).await.unwrap();
        let session = world.session(&member).await;
        self.session = Some(session.clone());
        let (all, tell) = (Arc::clone(&self.state), self.grown.clone());
        tokio::spawn(async move {
            while let Some(stream) = session.accept().await {
                let user = stream.header.principal.clone().unwrap_or_default().user;
                let (stream, all, tell) = (stream.accept(), Arc::clone(&all), tell.clone());
                tokio::spawn(async move {
                    let _ = wire::serve(stream, |request| answer(request, user, all, tell)).await;
                });
            }
        });
    }

    /// Its agent ends.
    pub fn disconnect(&mut self) {
        if let Some(session) = self.session.take() {
            session.close(moorline_proto::code::CloseCode::Shutdown, "bye");
        }
    }

    /// Puts an object where it says that it is: `/api/v1/nodes/n1`.
    pub fn put(&self, path: &str, object: Value) {
        let (collection, name) = path.rsplit_once('/').unwrap();
        put(&mut self.state.lock().unwrap(), &self.grown, collection, name, object);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        let (collection, name) = path.rsplit_once('/').unwrap();
        self.state.lock().unwrap().objects.get(&(collection.to_owned(), name.to_owned())).cloned()
    }

    /// What is answered at a path that is no object's.
    pub fn fix(&self, path: &str, code: u16, body: impl ToString) {
        self.state.lock().unwrap().fixed.insert(path.to_owned(), (code, body.to_string()));
    }

    /// `user: METHOD path` of everything that was asked.
    pub fn seen(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.iter().map(|(user, line)| format!("{user}: {line}")).collect()
    }
}

fn put(state: &mut State, grown: &watch::Sender<usize>, collection: &str, name: &str, mut object: Value) {
    let key = (collection.to_owned(), name.to_owned());
    let event = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
    object["metadata"]["name"] = name.into();
    if let Some((_, rest)) = collection.split_once("/namespaces/") {
        object["metadata"]["namespace"] = rest.split('/').next().into();
    }
    object["metadata"]["uid"] = format!("{collection}/{name}").into();
    object["metadata"]["resourceVersion"] = (state.log.len() + 1).to_string().into();
    state.objects.insert(key, object.clone());
    state.log.push((event, collection.to_owned(), object));
    grown.send_replace(state.log.len());
}

/// Whether what is in `there` is of `asked`, which may be of all namespaces.
fn within(asked: &str, there: &str) -> bool {
    if asked == there {
        return true;
    }
    let (version, plural) = asked.rsplit_once('/').unwrap_or_default();
    let rest = there.strip_prefix(version).and_then(|rest| rest.strip_prefix("/namespaces/"));
    rest.and_then(|rest| rest.split_once('/')).is_some_and(|(_, of)| of == plural)
}

/// `a=b,c!=d`, each side by the value that `find` has for it.
fn selects(selector: &str, find: impl Fn(&str) -> String) -> bool {
    selector.split(',').filter(|part| !part.is_empty()).all(|part| match part.split_once("!=") {
        Some((key, value)) => find(key) != value,
        None => part.split_once('=').is_some_and(|(key, value)| find(key) == value),
    })
}

fn picked(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let label = |key: &str| text(&object["metadata"]["labels"][key]);
    let field = |key: &str| text(object.pointer(&format!("/{}", key.replace('.', "/"))).unwrap_or(&Value::Null));
    let of = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    selects(of("labelSelector"), label) && selects(of("fieldSelector"), field)
}

fn said(code: u16, value: &Value) -> Response<Body> {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(body::full(value.to_string()))
        .unwrap()
}

fn status(code: u16, reason: &str) -> Response<Body> {
    let status = json!({ "apiVersion": "v1", "kind": "Status", "status": if code < 300 { "Success" } else { "Failure" },
        "reason": reason, "message": reason, "code": code });
    said(code, &status)
}

async fn answer(
    request: Request<Body>,
    user: String,
    all: Arc<Mutex<State>>,
    grown: watch::Sender<usize>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let sent = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default());
    let mut state = all.lock().unwrap();
    state.seen.push((user, format!("{} {}", parts.method, parts.uri)));
    if let Some((code, body)) = state.fixed.get(&parts.uri.to_string()) {
        return Response::builder().status(*code).body(body::full(body.clone())).unwrap();
    }
    let query: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    // After the version come a plural, or a namespace and a plural; and then perhaps a name.
    let from = if path.starts_with("/api/") { 3 } else { 4 };
    let rest = path.split('/').count().saturating_sub(from);
    let namespaced = path.split('/').nth(from) == Some("namespaces") && rest > 2;
    let one = rest == if namespaced { 4 } else { 2 };
    if !one {
        if query.get("watch").is_some_and(|on| on == "true") {
            let after = query.get("resourceVersion").and_then(|at| at.parse().ok()).unwrap_or(0);
            drop(state);
            return watching(path, query, after, all, grown.subscribe());
        }
        return listed(&state, &path, &query);
    }
    let (collection, name) = path.rsplit_once('/').unwrap();
    let key = (collection.to_owned(), name.to_owned());
    let there = state.objects.get(&key).cloned();
    match (parts.method, there) {
        (Method::PATCH, there) => {
            let patch: Value = serde_json::from_slice(&sent).unwrap();
            let apply = parts.headers["content-type"].to_str().unwrap().contains("apply");
            let new = match (there, apply) {
                (_, true) => patch,
                (Some(mut there), false) => {
                    merge(&mut there, &patch);
                    there
                }
                (None, false) => return status(404, "NotFound"),
            };
            put(&mut state, &grown, collection, name, new);
            said(200, &state.objects[&key])
        }
        (_, None) => status(404, "NotFound"),
        (Method::GET, Some(there)) => said(200, &there),
        (Method::DELETE, Some(there)) => {
            state.objects.remove(&key);
            state.log.push(("DELETED", collection.to_owned(), there));
            grown.send_replace(state.log.len());
            status(200, "")
        }
        _ => status(405, "MethodNotAllowed"),
    }
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        into.clone_from(patch);
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().and_then(|into| into.remove(key));
        } else {
            merge(&mut into[key], value);
        }
    }
}

fn listed(state: &State, path: &str, query: &BTreeMap<String, String>) -> Response<Body> {
    let here =
        state.objects.iter().filter(|((collection, _), object)| within(path, collection) && picked(object, query));
    let all: Vec<&Value> = here.map(|(_, object)| object).collect();
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let mut meta = json!({ "resourceVersion": state.log.len().to_string() });
    if limit < all.len() && !query.contains_key("fieldSelector") {
        meta["remainingItemCount"] = (all.len() - limit).into();
    }
    let items: Vec<_> = all.into_iter().take(limit).collect();
    said(200, &json!({ "apiVersion": "v1", "kind": "List", "metadata": meta, "items": items }))
}

fn watching(
    path: String,
    query: BTreeMap<String, String>,
    after: usize,
    all: Arc<Mutex<State>>,
    grown: watch::Receiver<usize>,
) -> Response<Body> {
    let events = futures_util::stream::unfold((after, grown), move |(mut at, mut grown)| {
        let (all, path, query) = (Arc::clone(&all), path.clone(), query.clone());
        async move {
            loop {
                grown.wait_for(|length| at < *length).await.ok()?;
                let (kind, collection, object) = all.lock().unwrap().log[at].clone();
                at += 1;
                if within(&path, &collection) && picked(&object, &query) {
                    let line = format!("{}\n", json!({ "type": kind, "object": object }));
                    return Some((Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(line))), (at, grown)));
                }
            }
        }
    });
    Response::new(body::from(http_body_util::StreamBody::new(Box::pin(events))))
}
