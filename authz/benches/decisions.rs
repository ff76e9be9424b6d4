//! How long it takes to know whether a request goes through: `cargo bench -p moorline-authz`. Prints, and fails where a
//! figure misses the project's goal.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use moorline_authz::{
    access::{Facts, Grant, Grants, authorize},
    access_token::{self, Audience, Claims, KeySet, SigningKey, Verifier},
    identity::Identity,
    token::TokenText,
};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

const USERS: usize = 100_000;
const GROUPS: usize = 10_000;
const GRANTS: usize = 1_000_000;
const CLUSTERS: usize = 5_000;
const GROUPS_OF_ONE: usize = 10;
const ROUNDS: usize = 100_000;

/// Numbers that look like chance and are the same each time.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

fn measure(what: &str, goal: Duration, mut work: impl FnMut(usize)) -> bool {
    (0..1000).for_each(&mut work);
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let begun = Instant::now();
            work(round);
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    let at = |part: f64| took[((ROUNDS as f64 * part) as usize).min(ROUNDS - 1)];
    let (p50, p99) = (at(0.5), at(0.99));
    let met = p99 <= goal;
    let verdict = if met { "met" } else { "MISSED" };
    println!("{what:<58} p50 {p50:>9.2?}  p99 {p99:>9.2?}  goal {goal:>7.2?} {verdict}");
    met
}

fn main() {
    let mut dice = Dice(7);
    let begun = Instant::now();
    let grants = Grants::new((0..GRANTS).map(|n| {
        // Nine of ten are to groups, as people write them.
        let (users, groups) = match n % 10 {
            0 => (vec![format!("user-{}", dice.roll(USERS))], vec![]),
            _ => (vec![], vec![format!("corp:group-{}", dice.roll(GROUPS))]),
        };
        let clusters = vec![format!("cluster-{}", dice.roll(CLUSTERS))];
        Grant {
            name: format!("grant-{n}"),
            users,
            groups,
            clusters,
            as_groups: vec!["viewers".to_owned()],
            record: None,
        }
    }));
    println!(
        "{USERS} users, {GROUPS} groups, {GRANTS} grants, {CLUSTERS} clusters: index made in {:.2?}",
        begun.elapsed()
    );
    let people: Vec<Identity> = (0..1000)
        .map(|_| {
            let groups: Vec<String> = (0..GROUPS_OF_ONE).map(|_| format!("corp:group-{}", dice.roll(GROUPS))).collect();
            Identity::new(format!("user-{}", dice.roll(USERS)), groups)
        })
        .collect();
    let clusters: Vec<String> = (0..1000).map(|_| format!("cluster-{}", dice.roll(CLUSTERS))).collect();
    let mut met = measure("decision, a million grants, ten groups each", Duration::from_micros(20), |round| {
        let facts = Facts { identity: &people[round % 1000], token_clusters: None, grants: &grants };
        let _ = black_box(authorize(&facts, &clusters[(round * 7) % 1000], None));
    });
    let small = Grants::new([Grant {
        name: "one".to_owned(),
        users: vec!["ann".to_owned()],
        clusters: vec!["edge1".to_owned()],
        ..Grant::default()
    }]);
    let ann = Identity::new("ann", ["dev", "ops"]);
    met &= measure("decision, a small fleet", Duration::from_micros(3), |_| {
        let facts = Facts { identity: &ann, token_clusters: None, grants: &small };
        let _ = black_box(authorize(&facts, "edge1", None));
    });
    let token = TokenText::generate_api();
    let (text, hash) = (token.reveal(), token.hash());
    met &= measure("an API key read and compared", Duration::from_micros(3), |_| {
        black_box(TokenText::parse(&text).is_ok_and(|token| hash.verify(&token)));
    });
    let (key, now) = (SigningKey::generate().expect("random bytes"), 1_800_000_000);
    let sign = |n: usize| {
        let text = |of: &str| format!("{of}{n}");
        let claims = Claims {
            iss: "spiffe://moorline.local".to_owned(),
            sub: text("user-"),
            uid: text("uid-"),
            aud: vec![Audience::Hub.text()],
            iat: now,
            nbf: now,
            exp: now + 3600,
            jti: text("jti-"),
            sid: "abcdefghijkl".to_owned(),
            sid_exp: now + 9000,
            verbs: None,
        };
        access_token::sign(&claims, &key)
    };
    let verifier = Verifier::new("spiffe://moorline.local", KeySet::new([key.public().clone()]));
    let one = sign(0);
    met &= measure("an access token that is known", Duration::from_micros(3), |_| {
        black_box(verifier.verify(&one, now).is_ok());
    });
    let many: Vec<String> = (1..=ROUNDS + 1000).map(sign).collect();
    let mut next = many.iter();
    met &= measure("an access token that is new", Duration::from_micros(100), |_| {
        black_box(next.next().is_some_and(|token| verifier.verify(token, now).is_ok()));
    });
    if !met {
        std::process::exit(1);
    }
}
