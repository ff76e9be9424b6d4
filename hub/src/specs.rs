//! The kinds as the API server is told of them: columns, rules, and what happens at creation.

use crate::kinds::{
    AccessRequestSpec, AgentSpec, CONNECTED, ClusterGrantSpec, ClusterSpec, GroupSpec, JoinTokenSpec, ServiceGrantSpec,
    TokenSpec, UserSpec,
};
use crate::pki::Authority;
use bytes::Bytes;
use futures_util::FutureExt;
use moorline_apiserver::{ApiError, Cause, Column, Created, KindSpec, Object, Spec, Store, dns_label};
use moorline_authz::{
    identity::{ADMINS, APPROVERS, AUDITORS},
    refresh::RefreshText,
    token::TokenText,
};
use moorline_proto::id::{AgentName, ClusterId};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

mod shares;

/// Suffix of the private record that holds the hash of a token.
pub(crate) const HASH: &str = "hash";
/// Suffix of the private record that holds what proves a login's refresh tokens.
pub(crate) const REFRESH: &str = "refresh";
/// Suffix of the private record that holds the hash of a user's password.
pub(crate) const PASSWORD: &str = "password";

/// What the creation of a join token needs to know.
#[derive(Debug, Clone)]
pub(crate) struct JoinFacts {
    /// Whose key is pinned.
    pub authority: Arc<Authority>,
    /// `https://host:port`
    pub public_url: String,
}

/// All kinds.
pub(crate) fn all(store: &Store, join: JoinFacts) -> Vec<KindSpec> {
    vec![
        cluster(),
        agent(),
        crate::nodes::kind(),
        plan(store.clone()),
        crate::events::kind(),
        user(),
        group(),
        access_request(store.clone()),
        token(store.clone()),
        join_token(store.clone(), Arc::new(join)),
        grant(),
        service_grant(),
        shares::export(),
        shares::import(),
    ]
}

/// Makes an object the property of what it is for: it goes with it, and a namesake made later has nothing of it.
fn own<S: Spec>(store: &Store, object: &mut Value, field: &str, name: &str) -> Result<(), ApiError> {
    let owner = store.get(&format!("{}/{}/{name}", S::GROUP, S::PLURAL));
    let owner = owner.and_then(|entry| Object::<S>::deserialize(&*entry.value).ok()).ok_or_else(|| {
        let cause = Cause::invalid(field, format!("{} {name:?} does not exist", S::SINGULAR));
        ApiError::invalid(S::GROUP, text(object, "/kind"), text(object, "/metadata/name"), &[cause])
    })?;
    object["metadata"]["ownerReferences"] = json!([owner.owner_reference()]);
    Ok(())
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn invalid(field: &str, message: impl Into<String>) -> Cause {
    Cause::invalid(field, message)
}

fn joined(pointer: &'static str) -> impl Fn(&Value) -> Value + Send + Sync + 'static {
    move |object| {
        let list = object.pointer(pointer).and_then(Value::as_array);
        let words: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
        Value::from(if words.is_empty() { "<none>".to_owned() } else { words.join(",") })
    }
}

fn last_seen(object: &Value) -> Value {
    let connected = object.pointer("/status/connectedSince").is_some();
    if connected { Value::from("now") } else { object.pointer("/status/lastSeen").cloned().unwrap_or(Value::Null) }
}

fn nodes(object: &Value) -> Value {
    let count = |pointer| object.pointer(pointer).and_then(Value::as_u64);
    match (count("/status/nodesReady"), count("/status/nodes")) {
        (Some(ready), Some(all)) => Value::from(format!("{ready}/{all}")),
        _ => Value::Null,
    }
}

fn cluster() -> KindSpec {
    KindSpec::of::<ClusterSpec>()
        .name_rule(|name| name.parse::<ClusterId>().map(drop).map_err(|e| e.to_string()))
        .column(Column::condition("Connected", CONNECTED).described("Whether an agent is connected"))
        .column(Column::at("Carrier", "/status/carrier").described("What carries the session"))
        .column(Column::with("RTT", |object| match object.pointer("/status/rttMs").and_then(Value::as_u64) {
            Some(ms) => Value::from(format!("{ms}ms")),
            None => Value::Null,
        }))
        .column(Column::at("K8s", "/status/kubernetesVersion").described("Version of the cluster's API server"))
        .column(Column::at("Agents", "/status/agents").typed("integer").described("Agents connected now"))
        .column(Column::with("Last-Seen", last_seen).described("When the last session ended"))
        .column(Column::at("Remote", "/status/remoteAddress").wide())
        .column(Column::at("Agent-Version", "/status/agentVersion").wide())
        .column(Column::condition("Agent-Up-To-Date", "AgentUpToDate").wide())
        .column(Column::condition("Ready", "Ready").wide())
        .column(Column::with("Nodes", nodes).described("Ready, and all").wide())
        .column(Column::at("CPU", "/status/capacity/cpu").wide())
        .column(Column::at("Memory", "/status/capacity/memory").wide())
        .owns(&["agents", "jointokens", "nodeplans", "events", "clusterimports"])
}

fn agent() -> KindSpec {
    KindSpec::of::<AgentSpec>()
        .column(Column::at("Cluster", "/spec/cluster"))
        .column(Column::at("Role", "/spec/role"))
        .column(Column::condition("Connected", CONNECTED))
        .column(Column::at("Carrier", "/status/carrier"))
        .column(Column::at("Version", "/status/version"))
        .column(Column::at("Remote", "/status/remoteAddress").wide())
        .column(Column::at("Certificate-Expires", "/status/certificateExpires").wide())
        .selectable(&["spec.cluster"])
        .owns(&["nodes"])
        .validate(|object, old| {
            let mut wrong = Vec::new();
            let (cluster, name) = (text(object, "/spec/cluster"), text(object, "/spec/name"));
            if cluster.parse::<ClusterId>().is_err() {
                wrong.push(invalid("spec.cluster", "not a cluster name"));
            }
            if name.parse::<AgentName>().is_err() {
                wrong.push(invalid("spec.name", "not an agent name"));
            }
            if text(object, "/metadata/name") != format!("{cluster}.{name}") {
                wrong.push(invalid("metadata.name", "must be <spec.cluster>.<spec.name>"));
            }
            if old.is_some_and(|old| text(old, "/spec/cluster") != cluster) {
                wrong.push(invalid("spec.cluster", "an agent never moves to another cluster"));
            }
            wrong
        })
}

fn user() -> KindSpec {
    KindSpec::of::<UserSpec>()
        .column(Column::at("Display-Name", "/spec/displayName"))
        .column(Column::with("Groups", joined("/spec/groups")))
        .column(Column::with("Providers", providers))
        .column(Column::at("Disabled", "/spec/disabled").typed("boolean"))
        .validate(|object, _| {
            let groups = object.pointer("/spec/groups").and_then(Value::as_array);
            let reserved = groups.into_iter().flatten().filter_map(Value::as_str).find(|g| g.starts_with("system:"));
            let mut wrong: Vec<Cause> = reserved
                .map(|g| invalid("spec.groups", format!("{g:?}: groups of Kubernetes itself are not given here")))
                .into_iter()
                .collect();
            if text(object, "/metadata/name").starts_with("system:") {
                wrong.push(invalid("metadata.name", "users of Kubernetes itself are not made here"));
            }
            let identities = object.pointer("/spec/identities").and_then(Value::as_array);
            let mut seen = std::collections::BTreeSet::new();
            if identities.into_iter().flatten().any(|i| !seen.insert(text(i, "/provider").to_owned())) {
                wrong.push(invalid("spec.identities", "one identity of each provider"));
            }
            wrong
        })
        .owns(&["tokens", "accessrequests"])
}

fn providers(object: &Value) -> Value {
    let list = object.pointer("/spec/identities").and_then(Value::as_array);
    let names: Vec<&str> = list.into_iter().flatten().map(|i| text(i, "/provider")).collect();
    Value::from(if names.is_empty() { "<none>".to_owned() } else { names.join(",") })
}

fn group() -> KindSpec {
    KindSpec::of::<GroupSpec>()
        .without_status()
        .name_rule(|name| match name {
            ADMINS | APPROVERS | AUDITORS => Ok(()),
            _ => moorline_apiserver::dns_subdomain(name).map(drop).map_err(|e| e.to_string()),
        })
        .column(Column::at("Display-Name", "/spec/displayName"))
        .column(Column::with("Users", joined("/spec/users")))
        .column(Column::with("Groups", joined("/spec/groups")))
}

fn access_request(store: Store) -> KindSpec {
    KindSpec::of::<AccessRequestSpec>()
        .column(Column::at("User", "/spec/user"))
        .column(Column::at("Cluster", "/spec/cluster"))
        .column(Column::with("Groups", joined("/spec/groups")))
        .column(Column::at("Seconds", "/spec/durationSeconds").typed("integer"))
        .column(Column::with("Phase", |object| match text(object, "/status/phase") {
            "" => Value::from("Pending"),
            phase => Value::from(phase),
        }))
        .column(Column::at("Decided-By", "/status/decidedBy"))
        .column(Column::at("Expires", "/status/expires"))
        .column(Column::at("Reason", "/spec/reason"))
        .selectable(&["spec.user", "spec.cluster"])
        .make_name(never_used_name)
        .validate(|object, old| {
            let mut wrong = Vec::new();
            if text(object, "/spec/cluster").parse::<ClusterId>().is_err() {
                wrong.push(invalid("spec.cluster", "not a cluster name"));
            }
            let groups = object.pointer("/spec/groups").and_then(Value::as_array);
            let mut names = groups.into_iter().flatten().filter_map(Value::as_str);
            if let Some(group) = names.find(|g| g.starts_with("system:") || g.starts_with("moorline:")) {
                wrong.push(invalid("spec.groups", format!("{group:?} is not given for a while")));
            }
            let seconds = object.pointer("/spec/durationSeconds").and_then(Value::as_u64);
            if !seconds.is_some_and(|seconds| crate::access::DURATION.contains(&seconds)) {
                wrong.push(invalid("spec.durationSeconds", "from 1 to 86400"));
            }
            if old.is_some_and(|old| old["spec"] != object["spec"]) {
                wrong.push(invalid("spec", "what was asked for is not changed; ask anew"));
            }
            wrong
        })
        .on_create(move |new| {
            let store = store.clone();
            async move {
                let user = text(new.object, "/spec/user").to_owned();
                own::<UserSpec>(&store, new.object, "spec.user", &user)?;
                Ok(Created { response: None, private: Vec::new() })
            }
            .boxed()
        })
}

/// `expires` must be a time, and on creation one to come.
fn check_expires(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    match text(object, "/spec/expires").parse::<jiff::Timestamp>() {
        Err(_) => vec![invalid("spec.expires", "must be a time such as 2030-01-31T12:00:00Z")],
        Ok(at) if old.is_none() && at <= jiff::Timestamp::now() => vec![invalid("spec.expires", "lies in the past")],
        Ok(_) => Vec::new(),
    }
}

fn never_used_name() -> String {
    TokenText::generate_api().id
}

/// The verbs that a token can be bound to: those of Kubernetes' own requests.
const VERBS: [&str; 9] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "proxy"];

fn token(store: Store) -> KindSpec {
    KindSpec::of::<TokenSpec>()
        .column(Column::at("User", "/spec/user"))
        .column(Column::at("Description", "/spec/description"))
        .column(Column::at("Login", "/spec/provider").described("Who proved it; none: an API key"))
        .column(Column::with("Clusters", joined("/spec/clusters")))
        .column(Column::with("Verbs", joined("/spec/verbs")).wide())
        .column(Column::at("Expires", "/spec/expires"))
        .selectable(&["spec.user"])
        .make_name(never_used_name)
        .validate(|object, old| {
            let mut wrong = check_expires(object, old);
            if old.is_some_and(|old| text(old, "/spec/user") != text(object, "/spec/user")) {
                wrong.push(invalid("spec.user", "a token never changes its user"));
            }
            if old.is_some_and(|old| text(old, "/spec/provider") != text(object, "/spec/provider")) {
                wrong.push(invalid("spec.provider", "a login stays a login, and a key stays a key"));
            }
            let verbs = object.pointer("/spec/verbs").and_then(Value::as_array).into_iter().flatten();
            for verb in verbs.filter_map(Value::as_str).filter(|verb| !VERBS.contains(verb)) {
                wrong.push(invalid("spec.verbs", format!("{verb:?} is none of {}", VERBS.join(", "))));
            }
            wrong
        })
        .on_create(move |new| {
            let store = store.clone();
            async move {
                let id = token_id(new.object)?;
                let user = text(new.object, "/spec/user").to_owned();
                own::<UserSpec>(&store, new.object, "spec.user", &user)?;
                if !text(new.object, "/spec/provider").is_empty() {
                    let token = RefreshText::generate(id);
                    let kept = token.record(crate::signing::now()).store();
                    return Ok(Created {
                        response: Some(json!({ "status": { "token": token.reveal().as_str() } })),
                        private: vec![(REFRESH.to_owned(), Bytes::from(kept))],
                    });
                }
                let token = TokenText { id, ..TokenText::generate_api() };
                Ok(Created {
                    response: Some(json!({ "status": { "token": token.reveal().as_str() } })),
                    private: vec![(HASH.to_owned(), Bytes::copy_from_slice(token.hash().as_bytes()))],
                })
            }
            .boxed()
        })
}

/// A plan belongs to its cluster: what was to be restored in one is not done to the next of that name.
fn plan(store: Store) -> KindSpec {
    crate::plans::kind().on_create(move |new| {
        let store = store.clone();
        async move {
            let cluster = text(new.object, "/spec/cluster").to_owned();
            own::<ClusterSpec>(&store, new.object, "spec.cluster", &cluster)?;
            Ok(Created::default())
        }
        .boxed()
    })
}

fn join_token(store: Store, facts: Arc<JoinFacts>) -> KindSpec {
    KindSpec::of::<JoinTokenSpec>()
        .column(Column::at("Cluster", "/spec/cluster"))
        .column(Column::with("Uses", |object| {
            let number = |pointer| object.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
            Value::from(format!("{}/{}", number("/status/uses"), number("/spec/maxUses")))
        }))
        .column(Column::at("Expires", "/spec/expires"))
        .selectable(&["spec.cluster"])
        .make_name(never_used_name)
        .validate(|object, old| {
            let mut wrong = check_expires(object, old);
            if let Err(why) = dns_label(text(object, "/spec/cluster")) {
                wrong.push(invalid("spec.cluster", why));
            }
            if old.is_some_and(|old| text(old, "/spec/cluster") != text(object, "/spec/cluster")) {
                wrong.push(invalid("spec.cluster", "a join token never changes its cluster"));
            }
            wrong
        })
        .on_create(move |new| {
            let (store, facts) = (store.clone(), Arc::clone(&facts));
            async move {
                let id = token_id(new.object)?;
                let cluster = text(new.object, "/spec/cluster").to_owned();
                own::<ClusterSpec>(&store, new.object, "spec.cluster", &cluster)?;
                let token = TokenText { id, ..TokenText::generate_join(facts.authority.pin()) };
                let line = format!("moorline agent --hub {} --token {}", facts.public_url, token.reveal().as_str());
                Ok(Created {
                    response: Some(json!({ "status": { "token": token.reveal().as_str(), "joinCommand": line } })),
                    private: vec![(HASH.to_owned(), Bytes::copy_from_slice(token.hash().as_bytes()))],
                })
            }
            .boxed()
        })
}

/// The object's name is the token's id, so it has the form of one.
fn token_id(object: &Value) -> Result<String, ApiError> {
    let name = text(object, "/metadata/name");
    let ok = name.len() == 12 && name.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b));
    if ok { Ok(name.to_owned()) } else { Err(ApiError::bad_request("leave metadata.name empty: the hub names tokens")) }
}

fn grant() -> KindSpec {
    KindSpec::of::<ClusterGrantSpec>()
        .without_status()
        .column(Column::with("Users", joined("/spec/users")))
        .column(Column::with("Groups", joined("/spec/groups")))
        .column(Column::with("Clusters", joined("/spec/clusters")))
        .column(Column::with("As-Groups", joined("/spec/asGroups")))
        .validate(|object, _| {
            let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
            let mut wrong = Vec::new();
            for cluster in list("/spec/clusters").iter().filter_map(Value::as_str) {
                if cluster != "*" && cluster.parse::<ClusterId>().is_err() {
                    wrong.push(invalid("spec.clusters", format!("{cluster:?} is neither a cluster name nor *")));
                }
            }
            for group in list("/spec/asGroups").iter().filter_map(Value::as_str) {
                if group == moorline_authz::identity::MASTERS {
                    wrong.push(invalid("spec.asGroups", "nobody is put into system:masters"));
                }
            }
            wrong
        })
}

fn service_grant() -> KindSpec {
    KindSpec::of::<ServiceGrantSpec>()
        .without_status()
        .column(Column::with("Users", joined("/spec/users")))
        .column(Column::with("Groups", joined("/spec/groups")))
        .column(Column::with("Clusters", joined("/spec/clusters")))
        .column(Column::with("Namespaces", joined("/spec/namespaces")))
        .column(Column::with("Services", joined("/spec/services")))
        .column(Column::with("Pods", joined("/spec/pods")).wide())
        .column(Column::with("Hosts", joined("/spec/hosts")))
        .validate(|object, _| {
            let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
            let mut wrong = Vec::new();
            for cluster in list("/spec/clusters").iter().filter_map(Value::as_str) {
                if cluster != "*" && cluster.parse::<ClusterId>().is_err() {
                    wrong.push(invalid("spec.clusters", format!("{cluster:?} is neither a cluster name nor *")));
                }
            }
            for (field, pointer) in [("spec.namespaces", "/spec/namespaces"), ("spec.services", "/spec/services")] {
                for name in list(pointer).iter().filter_map(Value::as_str) {
                    if name != "*" && dns_label(name).is_err() {
                        wrong.push(invalid(field, format!("{name:?} is neither a name nor *")));
                    }
                }
            }
            for host in list("/spec/hosts").iter().filter_map(Value::as_str) {
                if let Err(e) = host.parse::<moorline_authz::address::HostRule>() {
                    wrong.push(invalid("spec.hosts", e.to_string()));
                }
            }
            let named = !list("/spec/services").is_empty() || !list("/spec/pods").is_empty();
            if named && list("/spec/namespaces").is_empty() {
                wrong.push(invalid("spec.namespaces", "services and pods are in namespaces: name them, or * for all"));
            }
            wrong
        })
}
