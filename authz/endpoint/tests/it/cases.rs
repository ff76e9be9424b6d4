//! Cases of the project's list that the other files have for one mode: here for the other, or for both.

use crate::world::{SOON, World, api_key, bent, bundle, eventually, revoked, token};
use moorline_endpoint::{now, tls};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// Whether the proxy and the webhook let this token in; they never differ.
async fn lets_in(world: &World, token: &str) -> bool {
    let by_proxy = match world.get(token, "/api/v1/pods").await.code {
        200 => true,
        401 | 403 => false,
        other => panic!("{other}"),
    };
    assert_eq!(world.review(token).is_some(), by_proxy, "the modes differ about {token}");
    by_proxy
}

/// The user that a webhook's answer names.
fn user(answer: &crate::world::Answer) -> Option<Value> {
    let body = answer.text.split_once("\r\n\r\n").unwrap().1;
    let answer: Value = serde_json::from_str(body).unwrap();
    (answer["status"]["authenticated"] == true).then(|| answer["status"]["user"].clone())
}

/// What an API server's request says of identity beside the token is nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn s01_s02_s03_s05_s06_a_webhook_hears_of_identity_by_the_token_alone() {
    let world = World::new().await;
    let plain = user(&world.post_review(&token("anna"), &[]).await).unwrap();
    for header in [
        "Impersonate-User: system:admin",
        "Impersonate-Group: system:masters",
        "Impersonate_User: bob",
        "X-Remote-User: admin",
        "X-Remote-Group: system:masters",
        "X-Forwarded-User: admin",
        "Authorization: Bearer somebody",
    ] {
        let answer = world.post_review(&token("anna"), &[header]).await;
        assert_eq!((answer.code, user(&answer)), (200, Some(plain.clone())), "{header}");
        assert_eq!(user(&world.post_review("none", &[header]).await), None, "{header}");
    }
    assert_eq!(world.post_review(&token("anna"), &["Impersonate-User : bob"]).await.code, 400, "s06");
    assert_eq!(user(&world.post_review(&token("eve"), &[]).await), None, "s03: system:masters is nobody's");
}

/// No token that is good: one answer, whatever is wrong, also while the body is still coming.
#[tokio::test(flavor = "multi_thread")]
async fn s09_a_webhook_says_one_thing_to_all_who_are_not_known() {
    let world = World::new().await;
    let mut answers = std::collections::BTreeSet::new();
    for (why, token) in crate::world::no_tokens().into_iter().filter(|(why, _)| *why != "a revoked login") {
        let answer = world.post_review(&token, &[]).await;
        assert_eq!(answer.code, 200, "{why}");
        answers.insert(answer.text.split_once("\r\n\r\n").unwrap().1.to_owned());
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    let mut stream = world.hook().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    stream.flush().await.unwrap();
    let mut all = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&all).contains("408") && stream.read_buf(&mut all).await.unwrap_or(0) > 0 {}
    };
    timeout(SOON, read).await.expect("an end to the wait");
    assert!(String::from_utf8_lossy(&all).starts_with("HTTP/1.1 408"), "{}", String::from_utf8_lossy(&all));
}

/// A webhook knows no upgrade, no path that means anything, and one way to read a length.
#[tokio::test(flavor = "multi_thread")]
async fn s29_s34_s43_s48_a_webhook_reads_strictly_and_upgrades_nothing() {
    let world = World::new().await;
    let both =
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX";
    assert_eq!(world.raw_hook(both.as_bytes()).await.code, 400);
    let folded = "POST / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n";
    assert_eq!(world.raw_hook(folded.as_bytes()).await.code, 400);
    assert_eq!(world.raw_hook(b"POST x HTTP/1.1\r\nHost: localhost\r\n\r\n").await.code, 400);
    let mut stream = world.hook().await;
    let upgrade = "GET /api/v1/namespaces/a/pods/b/exec HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains("only POST") {
        assert_ne!(timeout(SOON, stream.read_buf(&mut all)).await.unwrap().unwrap(), 0);
    }
    assert!(String::from_utf8_lossy(&all).starts_with("HTTP/1.1 405"));
    for path in ["/../x", "/%2e%2e/", "//x", "/;/"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}");
        assert_eq!(world.raw_hook(head.as_bytes()).await.code, 400, "whatever the path, {{}} is no review: {path}");
    }
    // s48: nobody could keep a token to its verbs behind a webhook.
    let (key, secret) = api_key("ci", Some(&["get"]));
    let mut more = bundle(2);
    more.api_keys.push(key);
    world.next(&more).await;
    assert_eq!(user(&world.post_review(&secret, &[]).await), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn s51_s54_what_a_newer_bundle_takes_away_is_gone_at_the_webhook_too() {
    let world = World::new().await;
    assert!(lets_in(&world, &token("anna")).await);
    type Change = fn(&mut moorline_authz::bundle::Bundle);
    let steps: [(&str, Change); 4] = [
        ("a login that was ended", |b| b.revoked.push(revoked("login-anna"))),
        ("a user who is deactivated", |b| b.users.retain(|user| user.name != "anna")),
        ("a group that is gone", |b| b.users.iter_mut().for_each(|user| user.groups.clear())),
        ("a grant that was withdrawn", |b| b.grants.clear()),
    ];
    for (at, (what, change)) in steps.into_iter().enumerate() {
        let (mut without, serial) = (bundle(0), 10 + 2 * at as u64);
        change(&mut without);
        without.serial = serial;
        world.next(&without).await;
        assert!(!lets_in(&world, &token("anna")).await, "{what}");
        world.next(&bundle(serial + 1)).await;
        assert!(lets_in(&world, &token("anna")).await, "{what}: given back");
    }
}

#[test]
fn s66_half_a_certificate_serves_nobody() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&dir, &other] {
        tls::own(dir.path(), &["localhost".to_owned()]).unwrap();
    }
    let (cert, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
    assert!(tls::given(&cert, &key).is_ok());
    let text = std::fs::read_to_string(&cert).unwrap();
    for bad in [
        "",
        "x",
        &text[..text.len() / 2],
        &format!("{text}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        let path = dir.path().join("bad.crt");
        std::fs::write(&path, bad).unwrap();
        assert!(tls::given(&path, &key).is_err(), "{bad:?}");
    }
    assert!(tls::given(&cert, &other.path().join("ca.key")).is_err(), "another's key");
    assert!(tls::given(&dir.path().join("none"), &key).is_err());
    // An authority of its own that has lost a half is not made anew behind everybody's back.
    std::fs::remove_file(&key).unwrap();
    assert!(tls::own(dir.path(), &["localhost".to_owned()]).is_err());
    std::fs::write(&key, "").unwrap();
    assert!(tls::own(dir.path(), &["localhost".to_owned()]).is_err());
}

/// The endpoint's clock, or the hub's, is ten minutes off: a minute is forgiven, more is refused under its name.
#[tokio::test(flavor = "multi_thread")]
async fn f28_clocks_may_be_a_minute_apart_and_ten_are_named() {
    let world = World::new().await;
    assert!(lets_in(&world, &bent(|c| (c.iat, c.nbf) = (now() + 50, now() + 50))).await);
    assert!(lets_in(&world, &bent(|c| c.exp = now() - 50)).await);
    let refused = |label: &str| world.metric(&format!("moorline_endpoint_callers_total{{answer=\"{label}\"}}"));
    assert!(!lets_in(&world, &bent(|c| (c.iat, c.nbf) = (now() + 600, now() + 600))).await);
    assert!(!lets_in(&world, &bent(|c| c.exp = now() - 600)).await);
    assert_eq!((refused("not_yet"), refused("expired")), (2.0, 2.0), "each once by either mode");
    // A hub that is ten minutes ahead makes bundles from the future, and they are good.
    let mut ahead = bundle(2);
    (ahead.issued, ahead.expires) = (now() + 600, now() + 4200);
    world.next(&ahead).await;
    assert!(lets_in(&world, &token("anna")).await && world.live.is_current());
}

/// F44: a cluster's bundle that is poison stops nobody: the last good one stays, and the next good one is taken.
#[tokio::test(flavor = "multi_thread")]
async fn f44_a_poisoned_bundle_is_stepped_over() {
    let world = World::new().await;
    let refused = |label: &str| world.metric(&format!("moorline_endpoint_bundles_total{{result=\"{label}\"}}"));
    let poison = world.hub.seal_text(r#"{"cluster":"edge1","serial":"#);
    std::fs::write(world.shelf.file(), &poison).unwrap();
    eventually(|| refused("malformed") >= 1.0).await;
    assert!(lets_in(&world, &token("anna")).await, "the last good one");
    world.next(&bundle(7)).await;
    assert!(lets_in(&world, &token("anna")).await);
    assert_eq!(world.metric("moorline_endpoint_bundle_serial"), 7.0);
}

/// A hub two versions ahead, unseen for thirty days: its words that are not known are left, its times are kept.
#[tokio::test(flavor = "multi_thread")]
async fn u08_thirty_days_without_a_hub_that_was_newer() {
    const DAY: u64 = 86_400;
    let world = World::with("", vec!["ci".to_owned()]).await;
    let (key, secret) = api_key("ci", None);
    let mut old = bundle(2);
    (old.issued, old.expires) = (now() - 30 * DAY, now() + 8);
    old.api_keys.push(key);
    let mut value = serde_json::to_value(&old).unwrap();
    value["lanes"] = serde_json::json!([{ "newer": 1 }]);
    value["users"][0]["mfa"] = serde_json::json!({ "needed": false });
    value["apiKeys"][0]["scopes"] = serde_json::json!(["all"]);
    world.shelf.put(&world.hub.seal_text(&value.to_string())).unwrap();
    eventually(|| world.live.standing().is_some_and(|standing| standing.serial() == 2)).await;
    assert!(lets_in(&world, &secret).await, "a key that lasts");
    assert!(
        !lets_in(&world, &bent(|c| (c.iat, c.nbf, c.exp) = (now() - 30 * DAY, now() - 30 * DAY, now() - 29 * DAY)))
            .await
    );
    assert!(
        !lets_in(&world, &bent(|c| (c.exp, c.sid_exp) = (now() + 60, now() - DAY))).await,
        "a login of then is over"
    );
    assert!(lets_in(&world, &token("anna")).await);
    eventually(|| old.expires <= now()).await;
    assert!(!lets_in(&world, &token("anna")).await, "and so is the bundle, to the second");
    assert!(lets_in(&world, &secret).await, "but for whom the owner named");
    eventually(|| (-60.0..=0.0).contains(&world.metric("moorline_endpoint_bundle_left_seconds"))).await;
}

/// Whatever bytes stand where a token should: an answer, and nobody gets in.
#[tokio::test(flavor = "multi_thread")]
async fn z08_z09_no_bytes_are_a_token_by_chance() {
    let world = World::new().await;
    let good = token("anna");
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for round in 0..120 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=round % 4 {
            let at = next() % bytes.len();
            match next() % 3 {
                0 => bytes[at] = b'!' + (next() % 90) as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        if text != good {
            assert!(!lets_in(&world, &text).await, "{text}");
        }
    }
    // The whole of Unicode fits into a review, and none of it is a token; nor is what goes on for ever.
    for odd in ["\u{0}", "\u{202e}", "\u{fffd}", "ey\u{10ffff}", &"ey.".repeat(9000)] {
        assert_eq!(world.review(odd), None, "{odd:?}");
    }
    assert!(lets_in(&world, &good).await);
}
