//! Logins: signed access tokens, refresh tokens that are good once, tokens for clusters alone, keys bound to verbs.

use crate::{
    rights::{EXEC, UPGRADE, ended, open},
    world::{API, Answer, World, eventually},
};
use moorline_authz::access_token::{Audience, KeySet, verify};
use moorline_link::Carrier;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ISSUER: &str = "spiffe://moorline.local";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A user with a password who may use `clusters`.
async fn user(world: &World, name: &str, clusters: &[&str]) {
    world.user(name, clusters).await;
    let path = format!("{API}/users/{name}/password");
    assert_eq!(world.call(&world.admin, "PUT", &path, &json!({ "password": "correct horse" })).await.code, 200);
}

async fn login(world: &World, name: &str) -> Value {
    let body = json!({ "username": name, "password": "correct horse" }).to_string();
    let answer = world.send("POST", "/auth/login", &[], &body).await;
    assert_eq!(answer.code, 200, "{answer:?}");
    answer.json()
}

async fn refresh(world: &World, token: &str) -> Answer {
    world.send("POST", "/auth/refresh", &[], &json!({ "refreshToken": token }).to_string()).await
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_a_signed_token_that_anybody_verifies_and_a_refresh_token_that_is_good_once() {
    let world = World::new().await;
    user(&world, "anna", &[]).await;
    let first = login(&world, "anna").await;
    let access = text(&first, "token");
    let me = world.get(access, "/auth/whoami").await;
    assert_eq!((me.code, text(&me.json(), "user")), (200, "anna"));
    // Offline, with what the hub publishes.
    let keys = world.send("GET", "/auth/keys", &[], "").await;
    assert_eq!(keys.header("cache-control"), Some("public, max-age=300"));
    let keys: KeySet = serde_json::from_value(keys.json()).unwrap();
    let claims = verify(access, &keys, ISSUER, now()).unwrap();
    assert_eq!((claims.sub.as_str(), claims.aud.as_slice()), ("anna", &["moorline:hub".to_owned()][..]));
    assert_eq!((claims.exp - claims.iat, claims.sid.as_str()), (3600, text(&first, "session")));
    assert!(claims.sid_exp > claims.exp);

    let second = refresh(&world, text(&first, "refreshToken")).await.json();
    assert_ne!(text(&first, "refreshToken"), text(&second, "refreshToken"));
    assert_eq!(text(&first, "sessionExpires"), text(&second, "sessionExpires"), "a refresh makes no login longer");
    let third = refresh(&world, text(&second, "refreshToken")).await.json();
    assert_eq!(world.get(text(&third, "token"), "/auth/whoami").await.code, 200);
    assert_eq!(world.get(access, "/auth/whoami").await.code, 200);
    // What the store and the API show of it is no secret.
    let tokens = world.get(&world.admin, &format!("{API}/tokens")).await.body;
    assert!(tokens.contains("\"provider\":\"local\""), "{tokens}");
    let secret = |answer: &Value| text(answer, "refreshToken").rsplit_once('.').unwrap().1.to_owned();
    for answer in [&first, &second, &third] {
        assert!(!tokens.contains(&secret(answer)));
    }
    let log = world.audit_at_end().await;
    assert_eq!(log.matches("\"/auth/refresh\"").count(), 2, "{log}");
    for answer in [&first, &second, &third] {
        assert!(!log.contains(&secret(answer)) && !log.contains(text(answer, "token")), "s69");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_fails_is_on_record_with_whom_it_was_tried_for_if_there_is_such_a_user() {
    let world = World::new().await;
    user(&world, "anna", &[]).await;
    let attempt = async |name: &str, provider: &str| {
        let body = json!({ "username": name, "password": "tr0ub4dor", "provider": provider }).to_string();
        world.send("POST", "/auth/login", &[], &body).await
    };
    let wrong = attempt("anna", "local").await;
    for name in ["Anna", "s3cret typed too early", "ghost", "anna/password"] {
        let answer = attempt(name, "local").await;
        assert_eq!((answer.code, answer.body), (401, wrong.body.clone()), "{name}: all are told the same");
    }
    assert_eq!(attempt("anna", "elsewhere").await.code, 400);
    let mut codes = Vec::new();
    eventually("written", async || {
        let found = world.get(&world.admin, "/auth/audit?user=anna&resource=logins").await.json();
        let items = found["items"].as_array().unwrap();
        codes = items.iter().map(|one| one["responseStatus"]["code"].as_u64().unwrap()).collect();
        1 < codes.len()
    })
    .await;
    assert_eq!(codes, [401, 401], "by any spelling of hers, and by no provider that she does not come by");
    let log = world.audit_at_end().await;
    assert_eq!(log.matches("\"/auth/login\"").count(), 6, "{log}");
    assert_eq!(log.matches("\"username\":\"\"").count(), 4, "{log}");
    for word in ["s3cret", "ghost", "tr0ub4dor"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_refresh_token_that_comes_a_second_time_ends_the_login_and_what_is_open() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    user(&world, "anna", &["edge1"]).await;
    let (stolen, other) = (login(&world, "anna").await, login(&world, "anna").await);
    let shell = open(&world, text(&stolen, "token"), EXEC, UPGRADE).await;
    let second = refresh(&world, text(&stolen, "refreshToken")).await.json();
    let third = refresh(&world, text(&second, "refreshToken")).await.json();
    // A stranger who knows the login's name ends nothing.
    let guess = format!("mlr_{}.{}", text(&stolen, "session"), "A".repeat(43));
    assert_eq!(refresh(&world, &guess).await.code, 401);
    assert_eq!(world.get(text(&third, "token"), "/auth/whoami").await.code, 200);
    let reused = refresh(&world, text(&stolen, "refreshToken")).await;
    assert!(reused.code == 401 && reused.body.contains("used before"), "{reused:?}");
    ended(shell, "a shell").await;
    for answer in [&stolen, &second, &third] {
        assert_eq!(world.get(text(answer, "token"), "/auth/whoami").await.code, 401);
        assert_eq!(refresh(&world, text(answer, "refreshToken")).await.code, 401);
    }
    assert_eq!(world.get(text(&other, "token"), "/auth/whoami").await.code, 200, "another login goes on");
    assert_eq!(world.metric("moorline_hub_refreshes_total{result=\"reused\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_a_user_who_is_disabled_and_a_logout_end_access_tokens_too() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    for name in ["anna", "ben"] {
        user(&world, name, &["edge1"]).await;
    }
    let (anna, ben, again) = (login(&world, "anna").await, login(&world, "ben").await, login(&world, "ben").await);
    let (hers, his) = (
        open(&world, text(&anna, "token"), EXEC, UPGRADE).await,
        open(&world, text(&ben, "token"), EXEC, UPGRADE).await,
    );
    world.patch(&format!("{API}/users/anna"), &json!({ "spec": { "disabled": true } })).await;
    ended(hers, "her shell").await;
    assert_eq!(world.get(text(&anna, "token"), "/auth/whoami").await.code, 401);
    assert_eq!(refresh(&world, text(&anna, "refreshToken")).await.code, 401);
    // With the access token, and with the refresh token where the access token is over.
    assert_eq!(world.call(text(&ben, "token"), "POST", "/auth/logout", &json!({})).await.code, 200);
    ended(his, "his shell").await;
    assert_eq!(refresh(&world, text(&ben, "refreshToken")).await.code, 401);
    let body = json!({ "refreshToken": text(&again, "refreshToken") }).to_string();
    assert_eq!(world.send("POST", "/auth/logout", &[], &body).await.code, 200);
    assert_eq!(world.get(text(&again, "token"), "/auth/whoami").await.code, 401);
    assert_eq!(world.send("POST", "/auth/logout", &[], &body).await.code, 401);
}

/// S70: by whichever token somebody logs out, their login is what is deleted; and strangers write nothing down.
#[tokio::test(flavor = "multi_thread")]
async fn s70_a_logout_is_on_record_as_the_end_of_its_login() {
    let world = World::new().await;
    user(&world, "anna", &[]).await;
    let (one, two) = (login(&world, "anna").await, login(&world, "anna").await);
    assert_eq!(world.call(text(&one, "token"), "POST", "/auth/logout", &json!({})).await.code, 200);
    let out = async |token: &str| {
        let body = json!({ "refreshToken": token }).to_string();
        world.send("POST", "/auth/logout", &[], &body).await.code
    };
    let guess = format!("mlr_{}.{}", text(&two, "session"), "A".repeat(43));
    assert_eq!(out(&guess).await, 401);
    assert_eq!(out(text(&two, "refreshToken")).await, 200);
    assert_eq!(out(text(&two, "refreshToken")).await, 401, "it is over");
    let over = world.metric("moorline_hub_refreshes_total{result=\"over\"}");
    assert_eq!((over, world.metric("moorline_hub_refreshes_total{result=\"ok\"}")), (2.0, 2.0));
    let log = world.audit_at_end().await;
    let records = log.lines().filter(|line| line.contains("\"/auth/logout\""));
    let said = records.map(|line| {
        let record: Value = serde_json::from_str(line).unwrap();
        let at = |place: &str| record.pointer(place).cloned().unwrap_or_default();
        let (who, object) = (at("/user/username"), [at("/objectRef/resource"), at("/objectRef/name")]);
        json!([at("/verb"), who, object, at("/responseStatus/code")])
    });
    let ended = |login: &Value| json!(["delete", "anna", ["tokens", text(login, "session")], 200]);
    assert_eq!(said.collect::<Vec<_>>(), [ended(&one), ended(&two)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_and_nobody_is_logged_out() {
    let world = World::new().await;
    user(&world, "anna", &[]).await;
    let anna = login(&world, "anna").await;
    let kid = |token: &str| token.split('.').next().unwrap().to_owned();
    let rotate = async |token: &str, lost: bool| {
        world.call(token, "POST", "/auth/keys/rotate", &json!({ "lost": lost })).await.code
    };
    assert_eq!(rotate(text(&anna, "token"), true).await, 403);
    assert_eq!(rotate(&world.admin, false).await, 200);
    assert_eq!(world.get(text(&anna, "token"), "/auth/whoami").await.code, 200);
    let next = refresh(&world, text(&anna, "refreshToken")).await.json();
    assert_ne!(kid(text(&anna, "token")), kid(text(&next, "token")));
    // Somebody else may have the keys: what they signed is over, who is logged in is not.
    assert_eq!(rotate(&world.admin, true).await, 200);
    assert_eq!(world.get(text(&next, "token"), "/auth/whoami").await.code, 401);
    let last = refresh(&world, text(&next, "refreshToken")).await.json();
    assert_eq!(world.get(text(&last, "token"), "/auth/whoami").await.code, 200);
    assert!(world.metric("moorline_hub_bad_access_tokens_total{cause=\"unknown_key\"}") >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_by_the_clock() {
    let world = World::with(|config| {
        (config.access_life, config.signing_key_life) = (Duration::from_secs(1), Duration::from_secs(1));
    })
    .await;
    let keys = async || world.send("GET", "/auth/keys", &[], "").await.body;
    let first = keys().await;
    eventually("rotated", async || keys().await != first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_a_token_for_one_cluster_opens_nothing_else() {
    let world = World::new().await;
    let _a = world.connected("edge1", Carrier::Tls).await;
    world.cluster("edge2").await;
    world.cluster("edge3").await;
    user(&world, "anna", &["edge1", "edge2"]).await;
    let anna = login(&world, "anna").await;
    let ask = async |token: &str, clusters: Value| {
        world.call(token, "POST", "/auth/token", &json!({ "clusters": clusters })).await
    };
    let one = ask(text(&anna, "token"), json!(["edge1"])).await.json();
    assert_eq!(one["expiresIn"], 4320, "a sixth of it over, an access token's hour is left: f01");
    let one = text(&one, "token");
    assert_eq!(world.get(one, "/k8s/clusters/edge1/api").await.code, 200);
    assert_eq!(world.get(one, "/k8s/clusters/edge2/api").await.code, 403);
    let wrong = [
        ask(one, json!(["edge2"])).await.code,
        ask(text(&anna, "token"), json!(["edge3"])).await.code,
        ask(text(&anna, "token"), json!([])).await.code,
        ask(text(&anna, "token"), json!("edge1")).await.code,
        ask(text(&anna, "token"), json!(vec!["edge1"; 33])).await.code,
    ];
    assert_eq!(wrong, [403, 403, 400, 400, 400]);
    let spec = json!({ "user": "anna", "expires": "2999-01-01T00:00:00Z" });
    let made = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Token", "spec": spec });
    assert_eq!(world.call(one, "POST", &format!("{API}/tokens"), &made).await.code, 403);
    let keys: KeySet = serde_json::from_value(world.send("GET", "/auth/keys", &[], "").await.json()).unwrap();
    let claims = verify(one, &keys, ISSUER, now()).unwrap();
    assert!(claims.is_for(&Audience::Cluster("edge1".into())) && !claims.is_for(&Audience::Hub));
    assert_eq!(claims.sid, text(&anna, "session"));
    // It ends with the login that it was made by.
    assert_eq!(world.call(text(&anna, "token"), "POST", "/auth/logout", &json!({})).await.code, 200);
    assert_eq!(world.get(one, "/k8s/clusters/edge1/api").await.code, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn s48_a_key_is_bound_to_verbs_and_makes_no_others() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    world.user("ci", &["edge1"]).await;
    let spec = json!({ "user": "ci", "expires": "2999-01-01T00:00:00Z", "verbs": ["get", "list"] });
    let made = world.create("tokens", "Token", "", spec.clone()).await;
    let key = made["status"]["token"].as_str().unwrap();
    let pods = "/k8s/clusters/edge1/api/v1/namespaces/a/pods";
    assert_eq!(world.get(key, pods).await.code, 200);
    let seen = agent.lines().len();
    assert_eq!(world.call(key, "POST", pods, &json!({})).await.code, 403);
    assert_eq!(world.get(key, &format!("{pods}?watch=1")).await.code, 403);
    // S48: over a WebSocket an exec is a GET, and a right to read is no right to run.
    let bearer = format!("Authorization: Bearer {key}");
    let node = "/k8s/clusters/edge1/api/v1/nodes/n/proxy";
    for running in [
        format!("{pods}/b/exec?command=sh"),
        format!("{pods}/b/attach"),
        format!("{pods}/b/portforward?ports=80"),
        format!("{node}/exec/a/b/c?command=sh"),
        format!("{node}/run/a/b/c"),
        format!("{node}/attach/a/b/c"),
    ] {
        for headers in [&[bearer.as_str()][..], &[&bearer, "Connection: Upgrade", "Upgrade: websocket"]] {
            assert_eq!(world.send("GET", &running, headers, "").await.code, 403, "{running} {headers:?}");
        }
    }
    assert_eq!(agent.lines().len(), seen, "nothing arrived");
    let object = |spec: &Value| json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Token", "spec": spec });
    assert_eq!(world.call(key, "POST", &format!("{API}/tokens"), &object(&spec)).await.code, 403);
    let direct = world.call(key, "POST", "/auth/token", &json!({ "clusters": ["edge1"] })).await.json();
    assert_eq!(world.call(text(&direct, "token"), "POST", pods, &json!({})).await.code, 403, "it hands its bounds on");
    let wrong = json!({ "user": "ci", "expires": "2999-01-01T00:00:00Z", "verbs": ["run"] });
    assert_eq!(world.call(&world.admin, "POST", &format!("{API}/tokens"), &object(&wrong)).await.code, 422);
    // Nobody writes a login.
    let login = json!({ "user": "ci", "expires": "2999-01-01T00:00:00Z", "provider": "local" });
    assert_eq!(world.call(&world.admin, "POST", &format!("{API}/tokens"), &object(&login)).await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_s56_z08_whatever_is_no_refresh_token_gets_one_answer() {
    let world = World::new().await;
    user(&world, "anna", &[]).await;
    let anna = login(&world, "anna").await;
    for (body, code) in [
        ("{}", 400),
        ("", 400),
        ("{\"refreshToken\": 7}", 400),
        ("{\"refreshToken\": \"mlr_x\", \"more\": 1}", 400),
        ("{\"refreshToken\": \"mlr_x\"}", 401),
        (&json!({ "refreshToken": text(&anna, "token") }).to_string(), 401),
        (&json!({ "refreshToken": world.admin }).to_string(), 401),
        (&"[".repeat(10_000), 400),
        (&json!({ "refreshToken": "x".repeat(20_000) }).to_string(), 413),
    ] {
        assert_eq!(world.send("POST", "/auth/refresh", &[], body).await.code, code, "{}", &body[..body.len().min(60)]);
    }
    // A refresh token opens nothing by itself; nor does the name of a login.
    assert_eq!(world.get(text(&anna, "refreshToken"), "/auth/whoami").await.code, 401);
    let as_key = text(&anna, "refreshToken").replace("mlr_", "mlt_");
    assert_eq!(world.get(&as_key, "/auth/whoami").await.code, 401);
    assert_eq!(world.get(text(&anna, "token"), "/auth/whoami").await.code, 200, "and ended nothing");
}
