//! The work of one TokenReview at a cluster's endpoint: `cargo bench -p moorline-endpoint`. Prints, and fails where the p99
//! is over a millisecond, the project's goal.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use moorline_authz::{
    access_token::{Audience, Claims, KeySet, SigningKey, sign},
    bundle::{self, Bundle, BundleGrant, BundleUser, delta},
    edge::EdgePolicy,
};
use moorline_endpoint::{live::Live, metrics::Metrics, now, shelf::Shelf, trust::Anchors, webhook::Webhook};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SigningKey as _};
use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

const USERS: usize = 100_000;
const ROUNDS: usize = 20_000;
const GOAL: Duration = Duration::from_millis(1);

fn bundle(key: &SigningKey, serial: u64) -> Bundle {
    let user = |n: usize| BundleUser {
        name: format!("user-{n:06}"),
        uid: format!("{:016x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        groups: (0..5).map(|g| format!("corp:group-{}", (n * 7 + g * 1_013) % 10_000)).collect(),
    };
    let grant = |n: usize| BundleGrant {
        groups: vec![format!("corp:group-{n}")],
        as_groups: vec!["viewers".to_owned()],
        ..BundleGrant::default()
    };
    Bundle {
        cluster: "edge1".to_owned(),
        serial,
        issued: now(),
        expires: now() + 86_400,
        issuer: "spiffe://moorline.local".to_owned(),
        keys: KeySet::new([key.public().clone()]),
        users: (0..USERS).map(user).collect(),
        grants: (0..10_000).map(grant).collect(),
        ..Bundle::default()
    }
}

fn review(key: &SigningKey, n: usize, jti: usize) -> Vec<u8> {
    let claims = Claims {
        iss: "spiffe://moorline.local".to_owned(),
        sub: format!("user-{n:06}"),
        uid: format!("{:016x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        aud: vec![Audience::Cluster("edge1".to_owned()).text()],
        iat: now(),
        nbf: now(),
        exp: now() + 3600,
        jti: jti.to_string(),
        sid: "abcdefghijkl".to_owned(),
        sid_exp: now() + 9000,
        verbs: None,
    };
    let token = sign(&claims, key);
    let asked = serde_json::json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
    asked.to_string().into_bytes()
}

fn measure(what: &str, webhook: &Webhook, mut next: impl FnMut(usize) -> Vec<u8>) -> bool {
    let mut took: Vec<Duration> = (0..ROUNDS + 500)
        .map(|round| {
            let asked = next(round);
            let begun = Instant::now();
            let answer = black_box(webhook.answer(&asked));
            let took = begun.elapsed();
            assert!(answer.is_some_and(|answer| answer.windows(20).any(|w| w == b"\"authenticated\":true")));
            took
        })
        .skip(500)
        .collect();
    took.sort_unstable();
    let (p50, p99, most) = (took[ROUNDS / 2], took[ROUNDS * 99 / 100], took[ROUNDS - 1]);
    let verdict = if p99 < GOAL { "met" } else { "MISSED" };
    println!("{what:<44} p50 {p50:>9.2?}  p99 {p99:>9.2?}  max {most:>9.2?}  goal {GOAL:?} {verdict}");
    p99 < GOAL
}

fn main() {
    let (authority, key) = (KeyPair::generate().unwrap(), SigningKey::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&authority).unwrap().pem();
    let seal = |bundle: &Bundle| bundle::seal(bundle, |message| authority.sign(message)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(dir.path(), "edge1", Anchors::from_pem(&pem).unwrap(), None).unwrap();
    let mut content = bundle(&key, 1);
    let base = seal(&content);
    let begun = Instant::now();
    shelf.put(&base).unwrap();
    let at_rest = std::fs::metadata(shelf.file()).unwrap().len();
    println!(
        "{USERS} users: a bundle of {} bytes, kept in {:.2?}, {at_rest} bytes at rest",
        base.len(),
        begun.elapsed()
    );
    content.users.remove(USERS / 2);
    (content.serial, content.expires) = (2, content.expires + 60);
    let next = seal(&content);
    let begun = Instant::now();
    let change = delta::make(&base, &next).unwrap();
    let made = begun.elapsed();
    let begun = Instant::now();
    shelf.put_delta(&change).unwrap();
    println!("one user less: {} bytes, made in {made:.2?}, checked and kept in {:.2?}", change.len(), begun.elapsed());
    let begun = Instant::now();
    let live = Live::open(shelf, Vec::new(), Metrics::new(&prometheus::Registry::new()).unwrap()).unwrap();
    println!("ready to be asked after {:.2?}", begun.elapsed());
    let policy = Arc::new(EdgePolicy::default());
    let webhook = Webhook { live, policy: Arc::new(move || Arc::clone(&policy)) };
    let known = review(&key, 4_711, 0);
    let mut met = measure("a review of a token that is known", &webhook, |_| known.clone());
    met &= measure("a review of a token that is new", &webhook, |n| review(&key, (n * 3) % 50_000, n + 1));
    if !met {
        std::process::exit(1);
    }
}
