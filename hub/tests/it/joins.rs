//! Join tokens, and what they let in.

use crate::world::{API, Member, REVOKED, World, eventually};
use moorline_link::{Carrier, DialError};
use moorline_proto::code::CloseCode;

const FAR: &str = "2999-01-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn s16_of_fifty_that_join_at_once_with_one_use_one_succeeds() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, FAR).await;
    let names: Vec<String> = (0..50).map(|i| format!("a{i}")).collect();
    let joins = names.iter().map(|name| world.join(&token, name, None));
    let results = futures_util::future::join_all(joins).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    let codes: Vec<u16> = results.iter().filter_map(|r| r.as_ref().err().map(|a| a.code)).collect();
    assert!(codes.iter().all(|&code| code == 401), "{codes:?}");
    let agents = world.get(&world.admin, &format!("{API}/agents")).await.json();
    assert_eq!(agents["items"].as_array().unwrap().len(), 1);
    world.hub.shutdown().await;
    let audit = std::fs::read_to_string(world.dir.path().join("hub/audit.log")).unwrap();
    assert_eq!(audit.lines().filter(|line| line.contains("/agent/join")).count(), 50);
    assert!(!audit.contains(&token), "no secret in the audit log");
}

#[tokio::test(flavor = "multi_thread")]
async fn s16_unknown_used_and_revoked_tokens_get_one_answer() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, FAR).await;
    assert!(world.join(&token, "a1", None).await.is_ok());
    let used = world.join(&token, "a2", None).await.err().unwrap();
    let other = world.join_token("edge1", 1, FAR).await;
    let id = other.strip_prefix("mlj_").unwrap().split('.').next().unwrap();
    assert_eq!(
        world.call(&world.admin, "DELETE", &format!("{API}/jointokens/{id}"), &serde_json::Value::Null).await.code,
        200
    );
    let revoked = world.join(&other, "a2", None).await.err().unwrap();
    let nonsense = world.join("mlj_x", "a2", None).await.err().unwrap();
    let mut parts: Vec<&str> = token.split('.').collect();
    let secret = "A".repeat(43);
    parts[1] = &secret;
    let guessed = world.join(&parts.join("."), "a2", None).await.err().unwrap();
    for answer in [&used, &revoked, &nonsense, &guessed] {
        assert_eq!((answer.code, &answer.body), (401, &used.body));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s16_a_token_that_has_expired_joins_nobody_and_the_try_is_on_record() {
    let world = World::with(|config| config.limits.join_burst = 10_000).await;
    world.cluster("edge1").await;
    let expires = jiff::Timestamp::now() + std::time::Duration::from_secs(3);
    let (short, long) =
        (world.join_token("edge1", 9, &expires.to_string()).await, world.join_token("edge1", 9, FAR).await);
    let used = world.join("mlj_x", "a1", None).await.err().unwrap();
    // Asked for another cluster, a token that is good says so and loses no use: that ends when its time is up.
    eventually("its end", async || world.join(&short, "other", Some("edge2")).await.err().unwrap().code == 401).await;
    assert!(expires <= jiff::Timestamp::now(), "not before its time");
    let late = world.join(&short, "late", None).await.err().unwrap();
    assert_eq!((late.code, &late.body), (401, &used.body), "one answer for all that is not valid");
    assert!(world.join(&long, "good", None).await.is_ok(), "another token of the same cluster stays good");
    let agents = world.get(&world.admin, &format!("{API}/agents")).await.json();
    assert_eq!(agents["items"].as_array().unwrap().len(), 1, "{agents}");
    let log = world.audit_at_end().await;
    let refused = |line: &&str| line.contains("/agent/join") && line.contains("\"code\":401") && line.contains("late");
    assert_eq!(log.lines().filter(refused).count(), 1, "{log}");
    assert!(!log.contains(&short), "no secret in the audit log");
}

#[tokio::test(flavor = "multi_thread")]
async fn s17_a_token_of_one_cluster_joins_no_other() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let edge2 = world.connected("edge2", Carrier::Tls).await;
    let token = world.join_token("edge1", 1, FAR).await;
    assert_eq!(world.join(&token, "a1", Some("edge2")).await.err().unwrap().code, 403);
    let member = world.join(&token, "a1", Some("edge1")).await.expect("a wrong guess costs no use");
    let _own = world.dial(&member, Carrier::Tls, 1).await.unwrap();
    // It serves its own cluster and no other, whose session is unhurt.
    assert!(edge2.session.ping().await.is_ok());
    assert_eq!(world.get(&world.admin, "/k8s/clusters/edge2/api/v1/of-edge2").await.code, 200);
    assert!(edge2.lines().iter().any(|line| line.ends_with("/of-edge2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn s68_an_agent_whose_object_is_gone_is_closed_and_refused() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, FAR).await;
    let member = world.join(&token, "a1", None).await.unwrap();
    let agent = world.dial(&member, Carrier::Tls, 1).await.unwrap();
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/agents/edge1.a1"), &serde_json::Value::Null).await;
    assert_eq!(gone.code, 200, "{gone:?}");
    let reason = tokio::time::timeout(REVOKED, agent.session.closed()).await.unwrap();
    assert_eq!((reason.code, reason.by_peer), (CloseCode::CredentialGone, true));
    let refused = world.dial(&member, Carrier::Tls, 1).await.err().unwrap();
    assert!(refused.to_string().contains("join again"), "{refused}");
    eventually("no session", async || world.metric("moorline_hub_sessions_open{carrier=\"tls\"") == 0.0).await;
}

/// A certificate of the hub's own authority, as the hub would have made it in the past.
fn expired(world: &World, member: &Member) -> Member {
    world.until(member, std::time::SystemTime::now() - std::time::Duration::from_secs(86_400))
}

#[tokio::test(flavor = "multi_thread")]
async fn s68_an_expired_certificate_is_refused_in_the_handshake() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, FAR).await;
    let member = world.join(&token, "a1", None).await.unwrap();
    for carrier in [Carrier::Tls, Carrier::Quic] {
        let refused = world.dial(&expired(&world, &member), carrier, 1).await.err().unwrap();
        assert!(refused.to_string().to_lowercase().contains("expired"), "{carrier}: {refused}");
        let valid = world.dial(&member, carrier, 1).await.unwrap();
        valid.session.close(CloseCode::Normal, "seen");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_held_is_not_taken_over() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 9, FAR).await;
    let first = world.join(&token, "a1", None).await.unwrap();
    let object = async || world.get(&world.admin, &format!("{API}/agents/edge1.a1")).await.json();
    let before = object().await;
    let key = before["spec"]["publicKeySha256"].clone();
    let until = before["status"]["certificateExpires"].as_str().expect("known from the start").to_owned();
    // Not while it is away, not while it is there.
    let away = world.join(&token, "a1", None).await.err().unwrap();
    assert_eq!(away.code, 409, "{away:?}");
    let words = away.json()["message"].as_str().unwrap().to_owned();
    for part in [until.as_str(), "--name", "delete agents.moorline.dev edge1.a1"] {
        assert!(words.contains(part), "{part} is not in {words}");
    }
    let agent = world.dial(&first, Carrier::Tls, 1).await.unwrap();
    world.has_sessions("agent", 1.0).await;
    let there = world.join(&token, "a1", None).await.err().unwrap();
    assert_eq!((there.code, there.body.contains("it is connected")), (409, true), "{there:?}");
    assert_eq!(object().await["spec"]["publicKeySha256"], key);
    assert!(agent.session.ping().await.is_ok(), "the holder notices nothing");
    // The holder itself may ask again, and a refusal has cost no use.
    assert!(world.join_with(&token, "a1", None, &first.key_pair()).await.is_ok());
    let uses = world.get(&world.admin, &format!("{API}/jointokens")).await.json();
    assert_eq!(uses["items"][0]["status"]["uses"], 2);
    // Deleted by an administrator the name is free.
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/agents/edge1.a1"), &serde_json::Value::Null).await;
    assert_eq!(gone.code, 200);
    assert!(world.join(&token, "a1", None).await.is_ok());
    assert_ne!(object().await["spec"]["publicKeySha256"], key);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_whose_certificate_has_expired_is_free() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 9, FAR).await;
    assert!(world.join(&token, "a1", None).await.is_ok());
    assert_eq!(world.join(&token, "a1", None).await.err().unwrap().code, 409);
    let ended = serde_json::json!({ "status": { "certificateExpires": "2020-01-01T00:00:00Z" } });
    world.patch(&format!("{API}/agents/edge1.a1/status"), &ended).await;
    assert!(world.join(&token, "a1", None).await.is_ok());
}

/// S67: the agent trusts its own hub's authority alone, whatever answers at the address.
#[tokio::test(flavor = "multi_thread")]
async fn s67_a_hub_with_another_authority_hears_nothing_from_an_agent() {
    let (own, other) = (World::new().await, World::new().await);
    own.cluster("edge1").await;
    let token = own.join_token("edge1", 1, FAR).await;
    let member = own.join(&token, "a1", None).await.unwrap();
    for carrier in [Carrier::Tls, Carrier::Quic] {
        let refused = other.dial(&member, carrier, 1).await.err().unwrap();
        assert!(matches!(refused, DialError::Tls { .. }), "{carrier}: {refused}");
    }
    // Nor does one that joins: the token goes to whoever proves the pin that stands in it.
    let pin = |world: &World| moorline_link::tls::spki_sha256(&world.ca()).unwrap();
    let shake = async |world: &World, pin: [u8; 32]| {
        let config = moorline_link::tls::pinned_client_config(pin, &[b"http/1.1"]).unwrap();
        let socket = tokio::net::TcpStream::connect(world.hub.addr()).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(config).connect(name, socket).await
    };
    assert!(shake(&own, pin(&own)).await.is_ok());
    assert!(shake(&other, pin(&own)).await.is_err());
    assert_eq!(other.metric("moorline_hub_greetings_total"), 0.0);
    assert_eq!(other.metric("moorline_hub_joins_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_hub_is_refused() {
    let (world, other) = (World::new().await, World::new().await);
    other.cluster("edge1").await;
    world.cluster("edge1").await;
    let token = other.join_token("edge1", 1, FAR).await;
    let mut member = other.join(&token, "a1", None).await.unwrap();
    member.trust.roots = vec![world.ca()];
    for carrier in [Carrier::Tls, Carrier::Quic] {
        assert!(world.dial(&member, carrier, 1).await.is_err());
    }
    eventually("counted", async || world.metric("moorline_hub_handshake_failures_total") > 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s17_a_node_joins_by_its_service_account_as_itself_and_as_nobody_else() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let _other = world.connected("edge2", Carrier::Tls).await;
    let refused = async |account: &str, name: &str, cluster: &str, role: &str| {
        let answer = world.join_account(account, name, cluster, role).await.err().expect("refused");
        (answer.code, answer.body)
    };
    let first = world.join_account("of node-1.example", "node-1-example", "edge1", "node").await.unwrap();
    assert_eq!((agent.last().line.as_str(), agent.last().body.as_str()), ("POST /vouch", "of node-1.example"));
    assert_eq!(agent.last().principal, Default::default(), "the hub asks for itself");

    let (code, words) = refused("of node-2", "node-1-example", "edge1", "node").await;
    assert_eq!((code, words.contains("node-2")), (403, true), "{words}");
    let (code, _) = refused("of a1", "a1", "edge1", "agent").await;
    assert_eq!(code, 400, "a pod is no cluster agent");
    let (code, _) = refused(&"x".repeat(9000), "n", "edge1", "node").await;
    assert_eq!(code, 400);
    let (unknown, silent) = (refused("of n", "n", "edge9", "node").await, {
        world.cluster("edge3").await;
        refused("of n", "n", "edge3", "node").await
    });
    assert_eq!((unknown.0, unknown.1.clone()), (503, silent.1), "strangers learn no cluster's name");
    let forged = refused("forged", "node-1-example", "edge1", "node").await;
    assert_eq!(forged, unknown, "nor that of one that is connected");

    // While it is connected its name is its own; afterwards a node that has lost its key gets it back.
    let node = world.dial(&first, Carrier::Tls, 1).await.unwrap();
    world.has_sessions("node", 1.0).await;
    let (code, words) = refused("of node-1.example", "node-1-example", "edge1", "node").await;
    assert_eq!((code, words.contains("is connected")), (409, true), "{words}");
    node.session.close(CloseCode::Normal, "gone");
    world.has_sessions("node", 0.0).await;
    let again = world.join_account("of node-1.example", "node-1-example", "edge1", "node").await.unwrap();
    assert!(
        matches!(world.dial(&first, Carrier::Tls, 2).await, Err(DialError::Refused(_))),
        "the lost key is worthless"
    );
    world.dial(&again, Carrier::Tls, 3).await.unwrap();
    // A name of a cluster agent is never a node's.
    let (code, _) = refused("of a1", "a1", "edge1", "node").await;
    assert_eq!(code, 409);
}

/// Kubernetes has nodes `a.b` and `a-b`; as agents both are `a-b`.
#[tokio::test(flavor = "multi_thread")]
async fn s17_a_node_whose_name_differs_in_dots_alone_does_not_get_the_others_name() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let join = async |node: &str| world.join_account(&format!("of {node}"), "a-b", "edge1", "node").await;
    let first = join("a.b").await.unwrap();
    let object = async || world.get(&world.admin, &format!("{API}/agents/edge1.a-b")).await.json();
    assert_eq!(object().await["spec"]["node"], "a.b");
    let other = join("a-b").await.err().expect("refused");
    assert_eq!((other.code, other.body.contains("of node a.b")), (409, true), "{other:?}");
    let node = world.dial(&first, Carrier::Tls, 1).await.expect("the holder notices nothing");
    node.session.close(CloseCode::Normal, "gone");
    let open = "moorline_hub_sessions_open{carrier=\"tls\",role=\"node\"}";
    eventually("gone", async || world.metric(open) == 0.0).await;
    join("a.b").await.expect("its own node gets it back");
    // One that is gone for good holds no name.
    let ended = serde_json::json!({ "status": { "certificateExpires": "2020-01-01T00:00:00Z" } });
    world.patch(&format!("{API}/agents/edge1.a-b/status"), &ended).await;
    join("a-b").await.expect("free by now");
    assert_eq!(object().await["spec"]["node"], "a-b");
    // Of one that an older hub wrote down nobody knows whose it is: as before, whoever is vouched for gets it back.
    world.patch(&format!("{API}/agents/edge1.a-b"), &serde_json::json!({ "spec": { "node": null } })).await;
    join("a.b").await.unwrap();
}

/// A cluster whose agent is slow, or whom somebody asks about all the time, holds up nobody else's nodes.
#[tokio::test(flavor = "multi_thread")]
async fn s17_one_cluster_that_does_not_answer_leaves_the_others_room_to_join() {
    const ALL: usize = 80;
    let world = World::with(|config| config.limits.join_burst = 1000).await;
    let _good = world.connected("edge2", Carrier::Tls).await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, FAR).await;
    let member = world.join(&token, "a1", None).await.unwrap();
    let silent = world.dial_silent(&member, &[]).await;
    eventually("there", async || world.metric("moorline_hub_sessions_open{carrier=\"tls\",role=\"agent\"}") == 2.0)
        .await;
    let answered = std::sync::atomic::AtomicUsize::new(0);
    let asks = (0..ALL).map(|i| {
        let (world, answered) = (&world, &answered);
        async move {
            let refused = world.join_account("of n", &format!("n{i}"), "edge1", "node").await.err().map(|a| a.code);
            answered.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(refused, Some(503));
        }
    });
    let settled = async {
        let count = || answered.load(std::sync::atomic::Ordering::SeqCst) + silent.open_streams();
        eventually("all were asked or refused", async || count() == ALL).await;
        assert_eq!(silent.open_streams(), 8, "so many wait for the agent");
        world.join_account("of n1", "n1", "edge2", "node").await.expect("there is room");
    };
    tokio::select! {
        _ = futures_util::future::join_all(asks) => panic!("the silent agent has answered"),
        () = settled => {}
    }
}
