//! A hub whose disk has no space left.

use crate::faults::{follow, secs};
use moorline_netsim::across::Across;
use serde_json::json;
use std::{
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

/// The disk, in bytes.
const DISK: u64 = 96 << 20;
/// Writes until the store finds no room in its own file any more.
const TRIES: u32 = 400;
/// F32: how soon writes are taken after there is space.
const BACK: Duration = Duration::from_secs(5);

/// Takes all the space there is.
fn fill(path: &Path) {
    let (mut file, block) = (fs::File::create(path).unwrap(), vec![7; 64 << 10]);
    let full = loop {
        if let Err(error) = file.write_all(&block) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
}

/// What the hub answers to one more object of some size.
async fn write(scene: &Across, n: u32) -> (u16, String) {
    let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Group", "spec": {},
        "metadata": { "name": format!("g{n}"), "annotations": { "room": "r".repeat(50_000) } } });
    let path = "/apis/moorline.dev/v1alpha1/groups";
    let (code, body) = scene.admin.ask("POST", path, &object.to_string()).await.unwrap();
    (code, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn f32_a_hub_on_a_full_disk_refuses_writes_and_nothing_else() {
    let scene = Across::on_a_disk_of(DISK, "quic").await.unwrap();
    let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
    assert_eq!(write(&scene, 0).await.0, 201);
    let filler = scene.data().join("filler");
    fill(&filler);
    let (mut made, mut refused) = (1, None);
    while refused.is_none() && made < TRIES {
        match write(&scene, made).await {
            (201, _) => made += 1,
            (code, said) => refused = Some((code, said)),
        }
    }
    let (code, said) = refused.expect("the store found room on a full disk");
    assert!(matches!(code, 503 | 507) && said.contains("until there is space"), "{code} {said}");

    // Calls, long and short, and reads of the hub's own objects.
    let (begun, mut calls) = (Instant::now(), 0);
    while begun.elapsed() < secs(3) {
        scene.request().await.unwrap();
        scene.admin.echo("as ever").await.unwrap();
        assert_eq!(scene.admin.look("groups/g0").await.unwrap()["metadata"]["name"], "g0");
        let (code, said) = write(&scene, made).await;
        assert!(matches!(code, 503 | 507), "{code} {said}");
        calls += 2;
    }
    let stall = follow(&mut watch, &mut next, secs(1)).await;
    assert!(stall < secs(5), "the watch stood still for {stall:?}");

    fs::remove_file(&filler).unwrap();
    let begun = Instant::now();
    // What was refused may have been made after all.
    while !matches!(write(&scene, made).await.0, 201 | 409) {
        assert!(begun.elapsed() < BACK, "writes are refused {BACK:?} after there is space");
    }
    println!("{made} objects were made, {calls} calls passed on a full disk, writes back after {:?}", begun.elapsed());
    for n in 0..=made {
        scene.admin.look(&format!("groups/g{n}")).await.unwrap();
    }
    let stall = follow(&mut watch, &mut next, secs(1)).await;
    assert!(stall < secs(5), "the watch stood still for {stall:?}");
}
