//! Bundles: what gets onto the shelf, and what an endpoint makes of what it finds there.

use crate::world::{Hub, World, bundle, eventually, token};
use moorline_authz::bundle::BundleError;
use moorline_endpoint::{
    live::Live,
    metrics::Metrics,
    now,
    shelf::{Shelf, ShelfError},
    trust::Anchors,
};

fn refused(result: Result<moorline_authz::bundle::Bundle, ShelfError>) -> &'static str {
    match result {
        Err(ShelfError::Refused(why)) => why.label(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn older_foreign_replayed_truncated_and_strangers_bundles_never_get_onto_the_shelf() {
    let world = World::new().await;
    world.next(&bundle(5)).await;
    let put = |bytes: &[u8]| refused(world.shelf.put(bytes));
    assert_eq!(put(&world.hub.seal(&bundle(4))), "older");
    assert_eq!(put(&world.hub.seal(&bundle(1))), "older", "one that was good once");
    let mut foreign = bundle(9);
    foreign.cluster = "edge2".to_owned();
    assert_eq!(put(&world.hub.seal(&foreign)), "cluster");
    let whole = world.hub.seal(&bundle(9));
    assert_eq!(put(&whole[..whole.len() / 2]), "signature");
    assert_eq!(put(&Hub::new().seal(&bundle(9))), "signature");
    assert_eq!(put(&vec![b'a'; 100 << 20]), "too_large");
    let mut over = bundle(9);
    over.expires = now();
    assert_eq!(put(&world.hub.seal(&over)), "expired");
    assert_eq!(world.shelf.read(None).unwrap().unwrap().serial, 5);
    assert_eq!(world.get(&token("anna"), "/api").await.code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn s66_what_is_put_into_the_folder_by_hand_is_checked_all_the_same() {
    let world = World::new().await;
    world.next(&bundle(5)).await;
    let refused = |label: &str| world.metric(&format!("moorline_endpoint_bundles_total{{result=\"{label}\"}}"));
    let half = &world.hub.seal(&bundle(9))[..100];
    for (bytes, label) in [
        (world.hub.seal(&bundle(4)), "older"),
        (Hub::new().seal(&bundle(8)), "signature"),
        (half.to_vec(), "malformed"),
    ] {
        let before = refused(label);
        std::fs::write(world.shelf.file(), &bytes).unwrap();
        eventually(|| refused(label) > before || (label == "malformed" && refused("signature") > 1.0)).await;
        assert_eq!(world.get(&token("anna"), "/api").await.code, 200, "the last good one stays in use: {label}");
    }
    assert_eq!(world.metric("moorline_endpoint_bundle_serial"), 5.0);
    // But nobody starts on half a truth.
    let metrics = || Metrics::new(&prometheus::Registry::new()).unwrap();
    assert!(Live::open(world.shelf.clone(), Vec::new(), metrics()).is_err());
    std::fs::remove_file(world.shelf.file()).unwrap();
    let empty = Live::open(world.shelf.clone(), Vec::new(), metrics()).unwrap();
    assert!(!empty.is_current() && empty.who(&token("anna")).is_err(), "and without any, nobody gets in");
    for bad in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(Anchors::from_pem(bad).is_err(), "{bad:?}");
    }
    let second_broken = format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", world.hub.pem);
    assert!(Anchors::from_pem(&second_broken).is_err(), "half a file of authorities is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_bundles_time_nobody_gets_in_but_whom_the_owner_named() {
    let world = World::with("", vec!["ci".to_owned()]).await;
    let (key, secret) = crate::world::api_key("ci", None);
    let mut short = bundle(2);
    short.api_keys.push(key);
    short.expires = now() + 3;
    world.next(&short).await;
    assert_eq!(world.get(&token("anna"), "/api").await.code, 200);
    eventually(|| short.expires <= now()).await;
    assert!(!world.live.is_current());
    assert_eq!(world.get(&token("anna"), "/api").await.code, 401);
    assert_eq!(world.review(&token("anna")), None);
    assert_eq!(world.get(&secret, "/api").await.code, 200);
    assert!(world.metric("moorline_endpoint_callers_total{answer=\"stale\"}") >= 1.0);
}

#[test]
fn a_shelf_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::new());
    let shelf = Shelf::open(&dir.path().join("a/b"), "edge1", Anchors::from_pem(&hub.pem).unwrap()).unwrap();
    shelf.put(&hub.seal(&bundle(1))).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir.path().join("a/b")), mode(&shelf.file())), (0o700, 0o600));
    assert!(matches!(shelf.put(b""), Err(ShelfError::Refused(BundleError::Malformed))));
    assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1, "nothing is left behind");
}
