//! A hub whose disk has no space left.

use crate::faults::{follow, secs};
use moorline_hub::audit_files::verify;
use moorline_netsim::{across::Across, client::CLUSTER};
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

/// Longest target of a call, near enough: a record of it takes as much of the log.
const TARGET: usize = 24 << 10;
/// Calls until what the log has taken ahead of its end is used up, and far more: it takes 8 MiB.
const CALLS: usize = 2_000;

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

/// One call that is found again by its number.
async fn call(scene: &Across, n: usize) -> u16 {
    let path = format!("/k8s/clusters/{CLUSTER}/version?call={n}.&pad={}", "p".repeat(TARGET));
    scene.admin.ask("GET", &path, "").await.unwrap().0
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

/// F49 and S70 on a disk: the log uses up what it has taken ahead, then nothing passes unrecorded, and all is well again by
/// itself once there is space.
#[tokio::test(flavor = "multi_thread")]
async fn f49_s70_calls_pass_on_a_full_disk_until_the_logs_own_room_is_used_up_and_again_once_there_is_space() {
    let scene = Across::on_a_disk_of(DISK, "quic").await.unwrap();
    let (mut watch, mut next) = (scene.admin.watch("/ticks").await.unwrap(), 0);
    let filler = scene.data().join("filler");
    fill(&filler);
    let (mut passed, mut n) = (Vec::new(), 0);
    let refused = loop {
        assert!(n < CALLS, "the log finds room on a full disk for ever");
        n += 1;
        match call(&scene, n).await {
            200 => passed.push(n),
            code => break code,
        }
    };
    assert_eq!(refused, 503);
    // About eight thousand usual records are promised; these are as large as twenty-four of them.
    assert!(4 << 20 < passed.len() * TARGET, "refused after {} calls", passed.len());
    for _ in 0..5 {
        n += 1;
        assert_eq!(call(&scene, n).await, 503, "each call, not only the first");
        assert!(matches!(write(&scene, 0).await.0, 503 | 507));
    }
    // What is open goes on.
    assert!(follow(&mut watch, &mut next, secs(1)).await < secs(5));

    fs::remove_file(&filler).unwrap();
    let begun = Instant::now();
    loop {
        n += 1;
        if call(&scene, n).await == 200 {
            passed.push(n);
            break;
        }
        assert!(begun.elapsed() < BACK, "calls are refused {BACK:?} after there is space");
    }
    println!("{} calls passed on a full disk; they pass again after {:?}", passed.len() - 1, begun.elapsed());
    let log = scene.data().join("audit.log");
    let last = format!("call={n}.");
    let begun = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains(&last) {
        assert!(begun.elapsed() < BACK, "a call is on no record");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (all, report) = (fs::read_to_string(&log).unwrap(), verify(&log, 10).unwrap());
    assert_eq!((report.flaws.len(), report.torn.len()), (0, 0), "{report:?}");
    for n in passed {
        assert!(all.contains(&format!("call={n}.")), "call {n} passed, and is on no record");
    }
}
