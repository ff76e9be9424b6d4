//! Join tokens, and what they let in.

use crate::world::{API, World, eventually};
use moorline_link::Carrier;
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
    let audit = std::fs::read_to_string(world.dir.path().join("hub/audit.log"));
    world.hub.shutdown().await;
    drop(audit);
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
async fn s17_a_token_of_one_cluster_joins_no_other() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let _edge2 = world.connected("edge2", Carrier::Tls).await;
    let token = world.join_token("edge1", 1, FAR).await;
    assert_eq!(world.join(&token, "a1", Some("edge2")).await.err().unwrap().code, 403);
    assert!(world.join(&token, "a1", Some("edge1")).await.is_ok(), "a wrong guess costs no use");
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
    let reason = tokio::time::timeout(std::time::Duration::from_secs(5), agent.session.closed()).await.unwrap();
    assert_eq!((reason.code, reason.by_peer), (CloseCode::CredentialGone, true));
    let refused = world.dial(&member, Carrier::Tls, 1).await.err().unwrap();
    assert!(refused.to_string().contains("join again"), "{refused}");
    eventually("no session", async || world.metric("moorline_hub_sessions_open{carrier=\"tls\"") == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s68_an_expired_certificate_is_refused_in_the_handshake() {
    let world = World::with(|config| config.agent_certificate_life = std::time::Duration::from_secs(2)).await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, FAR).await;
    let member = world.join(&token, "a1", None).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(3100)).await; // real time: certificates know no other
    for carrier in [Carrier::Tls, Carrier::Quic] {
        let refused = world.dial(&member, carrier, 1).await.err().unwrap();
        assert!(refused.to_string().to_lowercase().contains("expired"), "{carrier}: {refused}");
    }
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
