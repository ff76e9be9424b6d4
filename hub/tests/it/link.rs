//! The tunnel to a cluster as it is now, and what it can carry: who is told, and what.

use crate::world::{API, World, eventually};
use moorline_link::Carrier;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_shows_its_sessions_as_they_are() {
    let world = World::new().await;
    let quic = world.connected("edge1", Carrier::Quic).await;
    let _tls = world.connected("edge2", Carrier::Tls).await;
    let facts = vec![("carrierReason".to_owned(), "quic: no answer".to_owned())];
    quic.session.send(moorline_proto::control::Control::Facts(facts)).await.unwrap();
    let link = async |cluster: &str| world.get(&world.admin, &format!("{API}/clusters/{cluster}/link")).await.json();
    eventually("told why", async || link("edge1").await["sessions"][0]["why"] == "quic: no answer").await;
    let of = &link("edge1").await["sessions"][0];
    assert_eq!((&of["agent"], &of["role"], &of["carrier"]), (&json!("edge1.a1"), &json!("cluster"), &json!("quic")));
    assert!(of["packets"]["sent"].as_u64().unwrap() > 0 && of["rttMs"].as_f64().unwrap() > 0.0, "{of}");
    assert_eq!((&of["draining"], &of["inDoubt"]), (&json!(false), &json!(false)));
    assert_eq!(link("edge2").await["sessions"][0]["packets"], Value::Null, "TCP does not tell what it lost");
    let series = "moorline_hub_session_rtt_seconds{agent=\"edge1.a1\",carrier=\"quic\",cluster=\"edge1\"}";
    let rtt = || world.metric(series);
    assert!(rtt() > 0.0);
    // Who may know of a cluster may know of its tunnel, and nobody else.
    let anna = world.user("anna", &["edge1"]).await;
    eventually("grant", async || world.get(&anna, &format!("{API}/clusters/edge1/link")).await.code == 200).await;
    assert_eq!(world.get(&anna, &format!("{API}/clusters/edge2/link")).await.code, 403);
    assert_eq!(world.get(&world.admin, &format!("{API}/clusters/edge9/link")).await.code, 404);
    assert_eq!(world.call(&world.admin, "DELETE", &format!("{API}/clusters/edge1/link"), &Value::Null).await.code, 405);
    quic.session.close(moorline_proto::code::CloseCode::Normal, "over");
    eventually("gone", async || link("edge1").await["sessions"] == json!([])).await;
    assert_eq!(rtt(), 0.0, "a session that is gone has no series");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_measures_what_a_tunnel_can_carry() {
    let world = World::new().await;
    let _agent = world.connected("edge1", Carrier::Quic).await;
    let path = format!("{API}/clusters/edge1/bench");
    let ask = async |token: &str, plan: Value| world.call(token, "POST", &path, &plan).await;
    let (first, second) = tokio::join!(
        ask(&world.admin, json!({ "seconds": 1, "streams": 4 })),
        ask(&world.admin, json!({ "seconds": 1, "streams": 4 })),
    );
    let (report, refused) = if first.code == 200 { (first, second) } else { (second, first) };
    assert_eq!((report.code, refused.code), (200, 429), "{report:?} {refused:?}");
    let report = report.json();
    assert_eq!((&report["agent"], &report["carrier"]), (&json!("edge1.a1"), &json!("quic")));
    let phases = report["phases"].as_array().unwrap();
    assert_eq!(phases.iter().map(|phase| phase["streams"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 4]);
    for phase in phases {
        let full = phase["streams"] != 0;
        assert_eq!(phase["mbitsEachWay"].as_f64().unwrap() > 0.0, full, "{phase}");
        let trip = |key: &str| phase["small"][key].as_f64().unwrap();
        assert!(trip("count") > 0.0 && trip("p50Ms") <= trip("p99Ms") && trip("p99Ms") <= trip("maxMs"), "{phase}");
    }
    assert!(report["packets"]["sent"].as_u64().unwrap() > 100, "{report}");
    for bad in [json!({ "seconds": 31 }), json!({ "streams": 0 }), json!({ "secs": 1 }), json!("x")] {
        assert_eq!(ask(&world.admin, bad.clone()).await.code, 400, "{bad}");
    }
    let anna = world.user("anna", &["edge1"]).await;
    eventually("grant", async || world.get(&anna, &format!("{API}/clusters/edge1")).await.code == 200).await;
    assert_eq!(ask(&anna, json!({})).await.code, 403);
    world.cluster("edge2").await;
    let nobody = world.call(&world.admin, "POST", &format!("{API}/clusters/edge2/bench"), &json!({})).await;
    assert_eq!((nobody.code, nobody.header("retry-after").is_some()), (503, true), "{nobody:?}");
    assert!(world.audit_at_end().await.contains("/clusters/edge1/bench"));
}
