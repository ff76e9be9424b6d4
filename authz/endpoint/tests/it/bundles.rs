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
    short.expires = now() + 8;
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
    let anchors = Anchors::from_pem(&hub.pem).unwrap();
    let shelf = Shelf::open(&dir.path().join("a/b"), "edge1", anchors, None).unwrap();
    shelf.put(&hub.seal(&bundle(1))).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir.path().join("a/b")), mode(&shelf.file())), (0o700, 0o600));
    assert!(matches!(shelf.put(b""), Err(ShelfError::Refused(BundleError::Malformed))));
    assert_eq!(mode(&dir.path().join("a/b/seal.key")), 0o600);
    assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), 2, "nothing is left behind");
}

/// Two replicas and a restart, with no hub anywhere: whoever has the key reads what the first one kept, and nobody else does.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_at_rest_is_sealed_and_another_replica_or_a_restart_has_it() {
    let (keys, hub) = (tempfile::tempdir().unwrap(), Hub::new());
    let (key, other) = (keys.path().join("key"), keys.path().join("other"));
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::write(&other, "another key of thirty-two letters").unwrap();
    let open = |dir: &tempfile::TempDir, key: &std::path::Path| {
        Shelf::open(dir.path(), "edge1", Anchors::from_pem(&hub.pem).unwrap(), Some(key)).unwrap()
    };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = open(&one, &key);
    first.put(&hub.seal(&bundle(5))).unwrap();
    let at_rest = std::fs::read(first.file()).unwrap();
    for word in ["anna", "moorline.local", "u-ci", "ops"] {
        assert!(!at_rest.windows(word.len()).any(|part| part == word.as_bytes()), "{word} can be read");
    }
    let (serial, kept) = first.sealed().unwrap().unwrap();
    assert_eq!(serial, 5);

    // Another replica, which no hub ever spoke to.
    let second = open(&two, &key);
    assert_eq!(second.put_sealed(kept.clone()).unwrap().serial, 5);
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let live = Live::open(second.clone(), Vec::new(), metrics).unwrap();
    assert!(live.is_current() && live.who(&token("anna")).is_ok());
    // It is taken like any other: never an older one, and never a bent one.
    second.put(&hub.seal(&bundle(6))).unwrap();
    assert_eq!(refused(second.put_sealed(kept.clone())), "older");
    let mut bent = kept.clone();
    *bent.last_mut().unwrap() ^= 1;
    assert!(matches!(second.put_sealed(bent), Err(ShelfError::NotOpened(_))));
    // Nobody without the key reads it, or starts on it.
    std::fs::write(second.file(), &at_rest).unwrap();
    let stranger = open(&two, &other);
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    assert!(matches!(Live::open(stranger, Vec::new(), metrics), Err(ShelfError::NotOpened(_))));
    let anchors = Anchors::from_pem(&hub.pem).unwrap();
    assert!(
        Shelf::open(two.path(), "edge1", anchors, Some(&keys.path().join("none"))).is_err(),
        "a key that is named is there"
    );
}

#[test]
fn a_delta_is_checked_as_if_it_had_come_whole() {
    use moorline_authz::bundle::delta;
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::new());
    let shelf = Shelf::open(dir.path(), "edge1", Anchors::from_pem(&hub.pem).unwrap(), None).unwrap();
    let many = |serial: u64| {
        let mut many = bundle(serial);
        let template = many.users[0].clone();
        many.users.extend((0..2000).map(|n| {
            let (name, uid) = (format!("user{n:04}"), format!("{:08x}", n * 2_654_435_761_u64));
            moorline_authz::bundle::BundleUser { name, uid, ..template.clone() }
        }));
        many
    };
    let (base, mut next) = (hub.seal(&many(5)), many(6));
    next.users.retain(|user| user.name != "anna");
    let whole = hub.seal(&next);
    let change = delta::make(&base, &whole).unwrap();
    assert!(change.len() < whole.len() / 10, "{} bytes for {}", change.len(), whole.len());
    assert!(matches!(shelf.put_delta(&change), Err(ShelfError::Delta(delta::DeltaError::Base))), "nothing is here yet");
    shelf.put(&base).unwrap();
    // Somebody else's signature, another cluster, an older one, a time that is over: a delta makes none of it good.
    let mut foreign = next.clone();
    foreign.cluster = "edge2".to_owned();
    let mut over = next.clone();
    over.expires = now();
    let mut older = many(4);
    older.users.clear();
    older.users = many(5).users;
    for (bytes, label) in [
        (Hub::new().seal(&next), "signature"),
        (hub.seal(&foreign), "cluster"),
        (hub.seal(&older), "older"),
        (hub.seal(&over), "expired"),
    ] {
        assert_eq!(refused(shelf.put_delta(&delta::make(&base, &bytes).unwrap())), label);
    }
    let mut bent = change.clone();
    *bent.last_mut().unwrap() ^= 1;
    assert!(shelf.put_delta(&bent).is_err());
    assert!(shelf.put_delta(&change[..change.len() - 1]).is_err());
    assert_eq!(shelf.read(None).unwrap().unwrap().serial, 5, "and what was there is there");
    assert_eq!(shelf.put_delta(&change).unwrap(), next);
    assert!(matches!(shelf.put_delta(&change), Err(ShelfError::Delta(delta::DeltaError::Base))), "a replayed one");
}

/// While the hub replaces its authority both are believed, and whoever is dropped in the file is believed no more, though
/// nothing else called for a look.
#[test]
fn f26_authorities_that_are_followed_are_those_of_the_file() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), Hub::new(), Hub::new());
    let file = dir.path().join("hub-ca.pem");
    std::fs::write(&file, format!("{}{}", new.pem, old.pem)).unwrap();
    let shelf = Shelf::open(&dir.path().join("a"), "edge1", Anchors::follow(&file).unwrap(), None).unwrap();
    shelf.put(&old.seal(&bundle(1))).unwrap();
    shelf.put(&new.seal(&bundle(2))).unwrap();
    std::fs::write(&file, &new.pem).unwrap();
    let signature = |put| matches!(put, Err(ShelfError::Refused(BundleError::Signature)));
    assert!(signature(shelf.put(&old.seal(&bundle(3))).map(drop)));
    std::fs::write(&file, "half").unwrap();
    shelf.put(&new.seal(&bundle(4))).unwrap();
    assert!(signature(shelf.put(&Hub::new().seal(&bundle(5))).map(drop)), "a broken file changes nothing");
}
