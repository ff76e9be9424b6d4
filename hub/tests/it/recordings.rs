//! Sessions in terminals on record: who reads them, and whether they are what the audit log says.

use crate::world::{API, World, eventually};
use moorline_authz::{
    bundle::{self, Known, Standing},
    identity::Identity,
};
use moorline_hub::Recording;
use serde_json::json;

const NAME: &str = "20261121101500-00c0ffee";
const CAST: &str = r#"{"version":2,"width":80,"height":24,"timestamp":1,"title":"t","moorline":{"auditID":"c0ffee","user":"ann","cluster":"edge1","requestURI":"/shell","started":"2026-11-21T10:15:00Z","input":false}}
[0.1, "o", "$ "]
"#;

/// A hub whose predecessor was killed while it recorded.
async fn world() -> World {
    World::with(|config| {
        config.recordings.sessions = Recording::Always;
        let dir = config.data_dir.join("recordings");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{NAME}.part")), CAST).unwrap();
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_are_for_auditors_and_who_replays_is_on_record() {
    let world = world().await;
    let one = format!("/auth/recordings/{NAME}");
    let ann = world.user("ann", &[]).await;
    for path in ["/auth/recordings", &one, "/auth/audit"] {
        assert_eq!(world.get(&ann, path).await.code, 403, "{path}: not one's own either");
    }
    let key = json!({ "user": "admin", "expires": "2999-01-01T00:00:00Z", "clusters": ["edge1"] });
    let key = world.create("tokens", "Token", "", key).await["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(world.get(&key, &one).await.code, 403, "nor with a token that is for a cluster");
    world.create("groups", "Group", "moorline:auditors", json!({ "users": ["ann"] })).await;
    eventually("ann is an auditor", async || world.get(&ann, "/auth/audit").await.code == 200).await;

    let listed = world.get(&ann, "/auth/recordings?user=ann&cluster=edge1").await.json();
    assert_eq!((listed["items"][0]["name"].as_str(), &listed["items"][0]["open"]), (Some(NAME), &json!(false)));
    assert_eq!(world.get(&ann, "/auth/recordings?user=bob").await.json()["items"], json!([]));
    assert_eq!(world.get(&ann, "/auth/recordings?colour=red").await.code, 400);
    let replayed = world.get(&ann, &one).await;
    assert_eq!((replayed.code, replayed.body.as_str()), (200, CAST));
    assert_eq!(replayed.header("moorline-seal"), Some("sealed"), "what was cut short is sealed at the next start");
    for name in ["20261121101500-1", "..%2faudit.log", "%2e%2e/audit", "x"] {
        assert!([400, 404].contains(&world.get(&ann, &format!("/auth/recordings/{name}")).await.code), "{name}");
    }

    let file = world.dir.path().join(format!("hub/recordings/{NAME}.cast"));
    std::fs::write(&file, CAST.replace("$ ", "# ")).unwrap();
    assert_eq!(world.get(&ann, &one).await.header("moorline-seal"), Some("altered"));
    // One that the log does not know: nobody says that it is still going on, however often it was replayed.
    let dir = world.dir.path().join("hub/recordings");
    std::fs::write(dir.join("20261121101501-01.cast"), CAST).unwrap();
    std::fs::write(dir.join("20261121101502-02.part"), CAST).unwrap();
    for (name, seal) in [("20261121101501-01", "unknown"), ("20261121101502-02", "open")] {
        for _ in 0..2 {
            let said = world.get(&world.admin, &format!("/auth/recordings/{name}")).await;
            assert_eq!((said.header("moorline-seal"), said.body.as_str()), (Some(seal), CAST));
        }
    }
    let log = world.audit_at_end().await;
    let replays = log.lines().filter(|line| line.contains("\"verb\":\"replay\"") && line.contains("\"ann\""));
    let codes: Vec<bool> = replays.map(|line| line.contains("\"code\":200")).collect();
    assert_eq!(codes.iter().filter(|good| **good).count(), 2, "{log}");
    assert!(codes.contains(&false), "who tried in vain, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clusters_and_grants_say_of_recording_is_explained() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let ann = world.user("ann", &["edge1"]).await;
    let said = async || {
        let question = json!({ "cluster": "edge1", "verb": "create" });
        world.call(&ann, "POST", "/auth/can-i", &question).await.json()["record"].as_str().unwrap().to_owned()
    };
    // The cluster's own endpoint decides the same, by the bundle that says it.
    let direct = async || {
        let bytes = world.get(&world.admin, "/auth/bundles/edge1").await.body;
        let standing = Standing::new(bundle::open(bytes.as_bytes(), |_, _| true, "edge1", None).unwrap());
        let of = |identity| {
            let known = Known { identity, session: String::new(), ends: u64::MAX, verbs: None };
            let record = standing.permit(&known, None).unwrap().record();
            serde_json::to_value(record).unwrap().as_str().unwrap().to_owned()
        };
        [of(Identity::new("ann", ["dev"])), of(Identity::new("admin", ["moorline:admins"]))]
    };
    assert_eq!((said().await.as_str(), direct().await), ("never", ["never", "never"].map(str::to_owned)));
    world.patch(&format!("{API}/clusters/edge1"), &json!({ "spec": { "record": "always" } })).await;
    eventually("by the cluster", async || said().await == "always").await;
    assert_eq!(direct().await, ["always", "always"]);
    world.patch(&format!("{API}/clustergrants/grant-ann"), &json!({ "spec": { "record": "withInput" } })).await;
    eventually("by the grant", async || said().await == "withInput").await;
    assert_eq!(direct().await, ["withInput", "always"]);
    world.patch(&format!("{API}/clustergrants/grant-ann"), &json!({ "spec": { "record": "never" } })).await;
    eventually("taken out", async || said().await == "never").await;
    assert_eq!(direct().await, ["never", "always"], "who administers the hub is not taken out");
    let bad = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": "x" },
                      "spec": { "record": "sometimes" } });
    assert_eq!(world.call(&world.admin, "POST", &format!("{API}/clusters"), &bad).await.code, 422);
}
