//! What authentication and authorisation add to a call: all of the gate, as `Front::cluster` passes it.

use super::{Gate, Permits, check_host};
use crate::{
    directory::Directory,
    front::{inside, shell},
    kinds::{ClusterGrantSpec, TokenSpec, UserSpec},
    known::Known,
    login::LOCAL,
    metrics::Metrics,
    quota::{Quotas, Rate, RateLimits},
    records::{Change, tests::records},
};
use http::Request;
use moorline_apiserver::{Object, OwnerReference, Spec};
use moorline_authz::{
    access::Permit,
    access_token::{Audience, Claims, KeySet, SigningKey, Verifier, sign},
};
use moorline_proxy::path;
use std::{
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

const USERS: usize = 1000;
const GROUPS: usize = 200;
const GROUPS_OF_ONE: usize = 10;
const CLUSTERS: usize = 1000;
/// Calls that are measured.
const ROUNDS: usize = 200_000;
/// The same with tokens that were never seen before: each has to be made.
const NEW: usize = 20_000;
/// The project's own bounds, at p99.
const KNOWN_IN: Duration = Duration::from_micros(3);
const NEW_IN: Duration = Duration::from_micros(100);

const ISSUER: &str = "spiffe://moorline.local";

pub(super) fn cluster_of(user: usize) -> String {
    format!("cluster-{}", user * 7 % CLUSTERS)
}

/// Everybody is in ten groups, and reaches a cluster by a grant to one of these. All limits are set, and wide.
pub(super) async fn gate(dir: &std::path::Path, key: &SigningKey) -> Gate {
    let (records, metrics) = (records(dir).await, Metrics::new(&prometheus::Registry::new()).unwrap());
    let verifier = Arc::new(Verifier::new(ISSUER, KeySet::new([key.public().clone()])));
    let directory = Directory::new(records.clone(), metrics.clone(), verifier, Vec::new());
    directory.at_once(|| {
        for n in 0..USERS {
            let groups = (0..GROUPS_OF_ONE).map(|of| format!("corp:group-{}", (n + of * 13) % GROUPS)).collect();
            let mut user = Object::new(format!("user-{n}"), UserSpec { groups, ..UserSpec::default() });
            user.metadata.uid = format!("uid-{n}");
            let owner = OwnerReference {
                kind: UserSpec::KIND.to_owned(),
                uid: user.metadata.uid.clone(),
                ..OwnerReference::default()
            };
            directory.user_changed(&Change::Put(Box::new(user)));
            let login = TokenSpec {
                user: format!("user-{n}"),
                expires: "2999-01-01T00:00:00Z".to_owned(),
                provider: Some(LOCAL.to_owned()),
                ..TokenSpec::default()
            };
            let mut login = Object::new(format!("login-{n}"), login);
            login.metadata.owner_references = vec![owner];
            directory.token_changed(&Change::Put(Box::new(login)));
            let grant = ClusterGrantSpec {
                groups: vec![format!("corp:group-{}", n % GROUPS)],
                clusters: vec![cluster_of(n)],
                as_groups: vec!["viewers".to_owned()],
                ..ClusterGrantSpec::default()
            };
            directory.grant_changed(&Change::Put(Box::new(Object::new(format!("grant-{n}"), grant))));
        }
    });
    let wide = Some(Rate { per_second: 1_000_000, burst: 100_000_000 });
    let limits = RateLimits { per_user: wide, per_address: wide, per_cluster: wide };
    Gate {
        directory: Arc::new(directory),
        records,
        quotas: Quotas::new(&limits, 10_000),
        metrics,
        permits: Permits::default(),
        rights_without_store: Duration::from_secs(21),
    }
}

/// An access token of the login of user `n`.
pub(super) fn signed(key: &SigningKey, n: usize, id: String) -> String {
    let now = crate::signing::now();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        sub: format!("user-{n}"),
        uid: format!("uid-{n}"),
        aud: vec![Audience::Hub.text()],
        iat: now,
        nbf: now,
        exp: now + 3600,
        jti: id,
        sid: format!("login-{n}"),
        sid_exp: now + 9000,
        verbs: None,
    };
    sign(&claims, key)
}

/// A call of user `n`, as kubectl makes it.
pub(super) fn call(n: usize, token: &str) -> Request<()> {
    let mut call = Request::get(format!("/k8s/clusters/{}/api/v1/namespaces/shop/pods?limit=500", cluster_of(n)))
        .header("host", "hub.example:8443")
        .header("user-agent", "kubectl/v1.32.4 (linux/amd64) kubernetes/59526cd")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
        .header("accept-encoding", "gzip")
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .unwrap();
    call.extensions_mut().insert(Known::default());
    call
}

pub(super) fn pass(gate: &Gate, call: &Request<()>, remote: SocketAddr) -> Option<Permit> {
    check_host(call, Some("hub.example")).ok()?;
    let path = path::split(call.uri().path_and_query()?.as_str()).ok()??;
    let who = gate.enter(call, remote).ok()?;
    if inside::Asked::of(&path).is_some() || shell::asked(&path).is_some() {
        return None;
    }
    let grants = gate.directory.watch_grants();
    let known = Arc::clone(&grants.borrow());
    let permit = gate.judge(call, &path, &who, &known).ok()?;
    gate.over_quota_to(path.cluster).is_none().then_some(permit)
}

/// Whether it was in time at p99.
fn measure(what: &str, goal: Duration, times: usize, mut pass: impl FnMut(usize) -> Option<Permit>) -> bool {
    let mut took: Vec<Duration> = (0..times)
        .map(|round| {
            let begun = Instant::now();
            let permit = black_box(pass(round));
            let took = begun.elapsed();
            assert!(permit.is_some(), "{what}: refused");
            took
        })
        .collect();
    took.sort_unstable();
    let (p50, p99) = (took[times / 2], took[times * 99 / 100]);
    println!("{what:<44} p50 {p50:>9.2?}  p99 {p99:>9.2?}  goal {goal:>7.2?}");
    p99 <= goal
}

#[tokio::test]
#[ignore = "a figure, for a machine that does nothing else: cargo test --release -p moorline-hub --lib -- --ignored --nocapture what_the_gate_adds"]
async fn what_the_gate_adds() {
    let (dir, key) = (tempfile::tempdir().unwrap(), SigningKey::generate().unwrap());
    let gate = gate(dir.path(), &key).await;
    let remote = SocketAddr::from(([192, 0, 2, 1], 40_000));
    println!("{USERS} users in {GROUPS_OF_ONE} groups each, {USERS} grants, limits per user, address and cluster:");
    let known: Vec<_> = (0..USERS).map(|user| call(user, &signed(&key, user, format!("known-{user}")))).collect();
    let all = |round: usize| pass(&gate, &known[round % USERS], remote);
    let warm = (0..10 * USERS).all(|round| all(round).is_some());
    assert!(warm, "everybody gets in");
    let in_time = measure("a call with a token that is known", KNOWN_IN, ROUNDS, all);
    let first_in_time = measure("the first to its cluster, or since a change", NEW_IN, ROUNDS, |round| {
        if round % USERS == 0 {
            gate.permits.forget();
        }
        all(round)
    });
    let new: Vec<_> = (0..NEW).map(|n| call(n % USERS, &signed(&key, n % USERS, format!("new-{n}")))).collect();
    let new_in_time = measure("a call with a token that is new", NEW_IN, NEW, |round| pass(&gate, &new[round], remote));
    assert!(in_time && first_in_time && new_in_time, "slower than it may be");
}
