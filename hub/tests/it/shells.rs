//! Shells: on node agents and nowhere else, and back to the one that has it.

use crate::{
    rights::{UPGRADE, ended, open},
    world::{API, World, eventually},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Response;
use moorline_link::{Carrier, DialError, Session};
use moorline_proto::{code::CloseCode, header::Target};
use moorline_proxy::upgrade::UpgradedIo;
use moorline_proxy::{body, wire};
use serde_json::json;
use std::collections::BTreeSet;
use tokio::io::{AsyncWriteExt, copy, duplex, split};

const LATE: &str = "2999-01-01T00:00:00Z";
const SHELL: &str = "/k8s/clusters/edge1/shell";

/// A node agent that answers whoever asks it for a shell with its name and theirs.
fn serve(session: Session, name: &'static str) {
    tokio::spawn(async move {
        while let Some(incoming) = session.accept().await {
            assert_eq!(incoming.header.target, Target::Shell);
            let user = incoming.header.principal.clone().unwrap_or_default().user;
            let answer = format!("{name} for {user}");
            let serve = wire::serve(incoming.accept(), async move |_| Response::new(body::full(answer.clone())));
            let _ = serve.await; // the hub may have gone
        }
    });
}

impl World {
    async fn shell(&self, token: &str, query: &str) -> (u16, String) {
        let answer = self.get(token, &format!("{SHELL}{query}")).await;
        // A node agent's words come in one chunk: its length, the words, and the end.
        let chunked = answer.header("transfer-encoding") == Some("chunked");
        let said = if chunked { answer.body.split("\r\n").nth(1).unwrap_or_default() } else { &answer.body };
        (answer.code, said.to_owned())
    }

    fn standing_by(&self) -> f64 {
        self.metric("moorline_hub_sessions_open{carrier=\"tls\",role=\"node\"}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_is_a_node_agents_and_its_client_is_led_back_to_the_same() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let (ana, eve) = (world.user("ana", &["edge1"]).await, world.user("eve", &[]).await);
    let (code, words) = world.shell(&ana, "").await;
    assert_eq!((code, words.contains("no node agent")), (503, true), "{words}");
    let token = world.join_token("edge1", 3, LATE).await;
    for name in ["n0", "n1", "n2"] {
        let member = world.join_node(&token, name).await;
        serve(world.session(&member).await, name);
    }
    eventually("standing by", async || world.standing_by() == 3.0).await;

    // One id leads to one node, however often; other ids lead to others too.
    let mut found = BTreeSet::new();
    for n in 0..16 {
        let query = format!("?session={n:032}");
        let (code, first) = world.shell(&ana, &query).await;
        assert_eq!(code, 200, "{first}");
        for _ in 0..4 {
            assert_eq!(world.shell(&ana, &format!("{query}&attach=1")).await.1, first);
        }
        found.insert(first);
    }
    assert!(found.len() > 1 && found.iter().all(|who| who.ends_with(" for ana")), "{found:?}");
    assert_eq!(world.shell(&ana, "?node=n1").await.1, "n1 for ana");
    assert_eq!(world.shell(&ana, "?node=n9").await.0, 404);
    assert_eq!(world.shell(&ana, "?node=../n1").await.0, 400);
    assert_eq!(world.shell(&eve, "?node=n1").await.0, 403, "the right to the cluster is the right to its shells");
    assert_eq!(agent.lines(), ["GET /api"], "the cluster agent has heard of her grant, and of no shell");
}

/// A node agent that answers with what came of the headers that hold tokens.
fn tell_headers(session: Session) {
    tokio::spawn(async move {
        while let Some(incoming) = session.accept().await {
            let serve = wire::serve(incoming.accept(), async |request| {
                let said = |name: &str| format!("{:?}", request.headers().get_all(name).iter().collect::<Vec<_>>());
                let answer = format!("{} {}", said("sec-websocket-protocol"), said("authorization"));
                Response::new(body::full(answer))
            });
            let _ = serve.await; // the hub may have gone
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn s09_s13_a_browsers_token_among_a_shells_protocols_lets_it_in_and_goes_no_further() {
    const CHANNELS: &str = "v5.channel.k8s.io";
    const OPENS: &str = "Upgrade: websocket";
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let (ana, eve) = (world.user("ana", &["edge1"]).await, world.user("eve", &[]).await);
    let member = world.join_node(&world.join_token("edge1", 1, LATE).await, "n1").await;
    tell_headers(world.session(&member).await);
    eventually("standing by", async || world.standing_by() == 1.0).await;

    let bearer = |token: &str| format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(token));
    let of_ana = bearer(&ana);
    let ask = async |path: &str, protocols: &str, more: &[&str]| {
        let protocols = format!("Sec-WebSocket-Protocol: {protocols}");
        let mut headers = vec!["Connection: Upgrade", "Sec-WebSocket-Version: 13", protocols.as_str()];
        headers.extend(["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Origin: https://console.example"]);
        headers.extend(more);
        world.send("GET", path, &headers, "").await
    };
    for offered in [format!("{of_ana}, {CHANNELS}"), format!("{CHANNELS},{of_ana}")] {
        let answer = ask(&format!("{SHELL}?node=n1"), &offered, &[OPENS]).await;
        assert!(answer.code == 200 && answer.body.contains(r#"["v5.channel.k8s.io"] []"#), "{answer:?}");
    }
    assert_eq!(ask(SHELL, &format!("{}, {CHANNELS}", bearer(&eve)), &[OPENS]).await.code, 403, "known, and no more");

    // Anything else lets nobody in; nor does it anywhere but here.
    let authorized = format!("Authorization: Bearer {ana}");
    let wrong: [(&str, String, &[&str]); 7] = [
        (SHELL, of_ana.clone(), &[OPENS]),
        (SHELL, format!("{of_ana}, {of_ana}, {CHANNELS}"), &[OPENS]),
        (SHELL, format!("{of_ana}=, {CHANNELS}"), &[OPENS]),
        (SHELL, format!("{}, {CHANNELS}", bearer("somebody")), &[OPENS]),
        (SHELL, format!("{of_ana}, {CHANNELS}"), &[OPENS, &authorized]),
        (SHELL, format!("{of_ana}, {CHANNELS}"), &[]),
        ("/k8s/clusters/edge1/api/v1/pods?watch=1", format!("{of_ana}, {CHANNELS}"), &[OPENS]),
    ];
    for (path, protocols, more) in wrong {
        let answer = ask(path, &protocols, more).await;
        assert!(answer.code == 401 && !answer.body.contains(&ana), "{path} {protocols} {more:?}: {answer:?}");
    }
    assert_eq!(agent.lines(), ["GET /api"], "of her grant, and of nothing that was refused");
    let audit = world.audit_at_end().await;
    assert!(audit.contains("/shell") && !audit.contains(&ana) && !audit.contains(&of_ana), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_node_that_somebody_wants_is_called() {
    let world = World::with(|config| config.limits.standby_nodes = 1).await;
    world.cluster("edge1").await;
    let ana = world.user("ana", &["edge1"]).await;
    let token = world.join_token("edge1", 2, LATE).await;
    let (first, second) = (world.join_node(&token, "n0").await, world.join_node(&token, "n1").await);
    serve(world.session(&first).await, "n0");
    eventually("standing by", async || world.standing_by() == 1.0).await;
    let dial = async || world.dial(&second, Carrier::Tls, 1).await;
    assert!(matches!(dial().await, Err(DialError::Refused(goodbye)) if goodbye.code == CloseCode::Parked));

    let answer = world.get(&ana, &format!("{SHELL}?node=n1")).await;
    assert!(answer.code == 503 && answer.body.contains("is being called"), "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    serve(world.session(&second).await, "n1");
    assert_eq!(world.shell(&ana, "?node=n1").await, (200, "n1 for ana".to_owned()));
    assert_eq!(world.shell(&ana, "?node=n0").await.1, "n0 for ana", "it took nobody's place");
}

/// A node agent whose shell says back what it is told, for as long as somebody is there.
fn serve_echo(session: Session) {
    tokio::spawn(async move {
        while let Some(incoming) = session.accept().await {
            tokio::spawn(wire::serve(incoming.accept(), async |_| {
                let (near, far) = duplex(1024);
                tokio::spawn(async move {
                    let (mut read, mut write) = split(far);
                    let _ = copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
                let mut answer = Response::builder().status(101).header("connection", "upgrade");
                answer = answer.header("upgrade", "websocket").extension(UpgradedIo::new(near));
                answer.body(body::empty()).unwrap()
            }));
        }
    });
}

/// S51: a shell on a node ends with the right to it, whichever way that goes, and another user's beside it does not.
#[tokio::test(flavor = "multi_thread")]
async fn s51_a_nodes_shell_is_cut_with_the_right_to_it() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, LATE).await;
    let member = world.join_node(&token, "n0").await;
    serve_echo(world.session(&member).await);
    eventually("standing by", async || world.standing_by() == 1.0).await;
    let ben = world.user("ben", &["edge1"]).await;
    let mut of_ben = open(&world, &ben, "/shell?node=n0", UPGRADE).await;
    for (user, what, change) in [
        ("ana", "users/ana", json!({ "spec": { "disabled": true } })),
        ("eve", "clustergrants/grant-eve", json!({ "spec": { "clusters": [] } })),
    ] {
        let token = world.user(user, &["edge1"]).await;
        let shell = open(&world, &token, "/shell?node=n0", UPGRADE).await;
        world.patch(&format!("{API}/{what}"), &change).await;
        ended(shell, what).await;
        assert!(matches!(world.shell(&token, "?node=n0").await.0, 401 | 403), "{what}");
    }
    crate::rights::echoes(&mut of_ben).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_limit_counts_its_shells_too() {
    let rate = moorline_hub::Rate { per_second: 1, burst: 4 };
    let world = World::with(|config| config.rate_limits.per_cluster = Some(rate)).await;
    world.cluster("edge1").await;
    let ana = world.user("ana", &["edge1"]).await;
    let mut codes = Vec::new();
    // Nobody gives a shell there, and who asks is counted.
    eventually("over the limit", async || {
        codes.push(world.shell(&ana, "").await.0);
        codes.last() == Some(&429)
    })
    .await;
    assert!(2 < codes.len() && codes.iter().rev().skip(1).all(|code| *code == 503), "{codes:?}");
}
