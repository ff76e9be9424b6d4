//! Webhook mode: TokenReviews.

use crate::world::{World, api_key, bundle, no_tokens, revoked, token};
use moorline_endpoint::limits;
use serde_json::json;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_hears_of_the_same_identity_that_the_proxy_says() {
    let world = World::new().await;
    let user = world.review(&token("anna")).unwrap();
    assert_eq!(user, json!({ "username": "anna", "uid": "u-anna", "groups": ["dev", "ops"] }));
    world.get(&token("anna"), "/api").await;
    let seen = world.up.last();
    let said = |name: &str| -> Vec<String> {
        seen.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.clone()).collect()
    };
    assert_eq!(said("impersonate-user"), [user["username"].as_str().unwrap()]);
    assert_eq!(said("impersonate-uid"), [user["uid"].as_str().unwrap()]);
    assert_eq!(json!(said("impersonate-group")), user["groups"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s10_s51_what_is_no_token_is_none_and_what_is_revoked_is_over_at_once() {
    let world = World::new().await;
    let mut more = bundle(2);
    more.revoked.push(revoked("revoked"));
    let (key, secret) = api_key("ci", None);
    let (bound, bound_secret) = api_key("ci", Some(&["get"]));
    more.api_keys.extend([key, bound]);
    world.next(&more).await;
    for (why, token) in no_tokens() {
        assert_eq!(world.review(&token), None, "{why}");
    }
    assert!(world.review(&secret).is_some());
    assert_eq!(world.review(&bound_secret), None, "nobody could keep it to its verbs");
    assert_eq!(world.review(&token("eve")), None, "s03: by the owner's policy");
    let mut without = more.clone();
    without.serial = 3;
    without.revoked.push(revoked("login-anna"));
    without.api_keys.clear();
    world.next(&without).await;
    assert_eq!((world.review(&token("anna")), world.review(&secret)), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn z09_whatever_is_no_review_is_refused_in_words() {
    let world = World::new().await;
    let good = |token: &str| {
        json!({ "apiVersion": "authentication.k8s.io/v1beta1", "kind": "TokenReview", "spec": { "token": token, "audiences": ["a"] } })
            .to_string()
    };
    let answer = world.webhook.answer(good(&token("anna")).as_bytes()).unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(
        (&answer["apiVersion"], &answer["status"]["authenticated"]),
        (&json!("authentication.k8s.io/v1beta1"), &json!(true))
    );
    for bad in [
        "",
        "{}",
        "[]",
        "null",
        "{\"apiVersion\":\"authentication.k8s.io/v1\",\"kind\":\"TokenReview\"}",
        "{\"apiVersion\":\"authentication.k8s.io/v1\",\"kind\":\"Pod\",\"spec\":{\"token\":\"x\"}}",
        "{\"apiVersion\":\"authentication.k8s.io/v9\",\"kind\":\"TokenReview\",\"spec\":{\"token\":\"x\"}}",
        "{\"apiVersion\":\"authentication.k8s.io/v1\",\"kind\":\"TokenReview\",\"spec\":{\"token\":7}}",
        "{\"apiVersion\":\"authentication.k8s.io/v1\",\"kind\":\"TokenReview\",\"spec\":{\"token\":\"x\",\"token\":\"y\"}}",
        &"[".repeat(60_000),
        &format!("{{\"spec\":{}", "{\"a\":".repeat(10_000)),
    ] {
        assert_eq!(world.webhook.answer(bad.as_bytes()), None, "{}", &bad[..bad.len().min(80)]);
    }
    let serve = async |method: &str, body: Vec<u8>| {
        let request =
            http::Request::builder().method(method).uri("/").body(http_body_util::Full::new(bytes::Bytes::from(body)));
        world.webhook.serve(request.unwrap()).await.status().as_u16()
    };
    assert_eq!(serve("POST", good("x").into_bytes()).await, 200);
    assert_eq!(serve("GET", Vec::new()).await, 405);
    assert_eq!(serve("POST", b"{}".to_vec()).await, 400);
    assert_eq!(serve("POST", vec![b' '; limits::REVIEW + 1]).await, 413);
}

/// Prints the work for one review: a known token, and one that was never seen.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: cargo test --release -p moorline-endpoint -- --ignored --nocapture how_long"]
async fn how_long_a_review_takes() {
    let world = World::new().await;
    let ask = |token: &str| {
        let begun = Instant::now();
        assert!(world.review(token).is_some());
        begun.elapsed()
    };
    let known = token("anna");
    ask(&known);
    let mut times: Vec<_> = (0..200).map(|_| ask(&known)).collect();
    times.sort();
    let fresh: Vec<_> = (0..50).map(|n| crate::world::bent(|claims| claims.jti = n.to_string())).collect();
    let mut new: Vec<_> = fresh.iter().map(|token| ask(token)).collect();
    new.sort();
    println!("known token: p50 {:?} p99 {:?}; new token: p50 {:?}", times[100], times[197], new[25]);
}
