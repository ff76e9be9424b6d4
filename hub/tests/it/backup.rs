//! A hub's whole state in a folder, taken while it serves, and a hub made of it.

use crate::world::{API, World, config, eventually};
use moorline_hub::{Hub, StorePlace, backup};
use moorline_link::Carrier;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn p10_a_hub_is_backed_up_while_it_serves_and_comes_back_from_it() {
    let world = World::new().await;
    let (data, to) = (world.dir.path().join("hub"), world.dir.path().join("backup"));
    let _agent = world.connected("edge1", Carrier::Tls).await;
    let anna = world.user("anna", &["edge1"]).await;
    let (from, place) = (data.clone(), to.clone());
    let taking = tokio::task::spawn_blocking(move || backup::backup(&from, (&StorePlace::File, None), &place));
    for n in 0..20 {
        world.create("users", "User", &format!("later-{n}"), json!({})).await;
    }
    let info = taking.await.unwrap().unwrap();
    assert!(info.objects >= 5 && info.revision > 0, "{info:?}");
    assert!(
        matches!(backup::backup(&data, (&StorePlace::File, None), &to), Err(backup::BackupError::Hub(why)) if why.contains("there already"))
    );
    assert!(matches!(backup::restore(&to, &data, None), Err(backup::BackupError::Exists(_))), "no hub is overwritten");
    assert!(matches!(backup::restore(world.dir.path(), &data.join("x"), None), Err(backup::BackupError::NotWhole(_))));
    let (admin, ca) = (world.admin.clone(), world.get(&world.admin, "/auth/ca").await.body);
    world.hub.shutdown().await;

    // From the files of a hub that does not run, too.
    let idle = world.dir.path().join("idle");
    let mut all = backup::backup(&data, (&StorePlace::File, None), &idle);
    // The last handles of a hub in this process may outlive its shutdown by a moment.
    eventually("the store is closed", async || {
        if matches!(all, Err(backup::BackupError::Open(_))) {
            all = backup::backup(&data, (&StorePlace::File, None), &idle);
        }
        all.is_ok()
    })
    .await;
    let all = all.unwrap();
    assert!(all.revision > info.revision);

    let dir = tempfile::tempdir().unwrap();
    backup::restore(&to, &dir.path().join("hub"), None).unwrap();
    let registry = prometheus::Registry::new();
    let again = World { hub: Hub::start(config(&dir), &registry).await.unwrap(), dir, admin, registry };
    assert_eq!(
        again.get(&again.admin, "/auth/ca").await.body,
        ca,
        "the same authority: agents come back by themselves"
    );
    let cluster: Value = again.get(&anna, &format!("{API}/clusters/edge1")).await.json();
    assert_eq!(cluster["metadata"]["name"], "edge1", "who could log in still can");
    let users = again.get(&again.admin, &format!("{API}/users")).await.json();
    let revision: u64 = users["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(revision > all.revision, "what clients saw after the backup does not come again with other content");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(again.dir.path().join("hub/ca.key")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}
