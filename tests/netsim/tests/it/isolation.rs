//! What one stream may cost another: next to nothing, whoever is slow, stands still or takes all there is.

use crate::faults::{CARRIERS, each, ms, secs};
use moorline_netsim::{across::Across, client::Admin, emulator::Road};
use std::time::{Duration, Instant};
use tokio::{task::JoinSet, time::sleep};

/// Small requests, one after the other; how long each took, shortest first.
async fn requests(scene: &Across, count: usize) -> Vec<Duration> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(scene.request().await.unwrap());
        sleep(ms(20)).await;
    }
    all.sort();
    all
}

fn share(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Readers of large answers that never read. They are held until the set is dropped.
async fn stall(admin: &Admin, count: usize) -> JoinSet<()> {
    let mut stalled = JoinSet::new();
    for _ in 0..count {
        let admin = admin.with_little_room();
        stalled.spawn(async move {
            let _held = admin.begin(&format!("/bytes/{}", 64 << 20)).await;
            std::future::pending::<()>().await;
        });
    }
    sleep(secs(3)).await; // until all that can be taken is taken
    stalled
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_a_thin_link_leaves_small_requests_alone() {
    each(|carrier| async move {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(Road::clear().delay(ms(40)).rate(5_000_000, 64 << 10));
        let idle = requests(&scene, 20).await;
        let admin = scene.admin.clone();
        let copy = tokio::spawn(async move { admin.rate(1 << 30).await });
        sleep(secs(3)).await;
        // What stands in the path's own queue (64 KiB: 105 ms) nobody can overtake, nor what TCP has taken.
        let (idle, queues) = (share(&idle, 90), ms(if carrier == "quic" { 60 } else { 1500 }));
        // A queue that is ours shows each time; a busy moment of the machine does not.
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let beside = requests(&scene, 40).await;
            let (half, most) = (share(&beside, 50), share(&beside, 97));
            println!("{carrier}: idle {idle:?}, beside a copy p50 {half:?}, p97 {most:?}");
            best = best.min(most);
            if best < idle * 2 + queues {
                break;
            }
        }
        assert!(!copy.is_finished(), "{:?}", copy.await);
        copy.abort();
        assert!(best < idle * 2 + queues, "{carrier}: {best:?}, idle {idle:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stand_still_stop_nobody_else() {
    for carrier in CARRIERS {
        let scene = Across::on(carrier).await.unwrap();
        scene.link.becomes(Road::clear().delay(ms(5)));
        let idle = requests(&scene, 20).await;
        for count in [4, 60] {
            let stalled = stall(&scene.admin, count).await;
            let begin = Instant::now();
            let (idle, mut best) = (share(&idle, 50), Duration::MAX);
            // Waiting for who stands still shows each time; a busy moment of the machine does not.
            for _ in 0..3 {
                best = best.min(share(&requests(&scene, 30).await, 50));
                if best < idle * 2 + ms(300) {
                    break;
                }
            }
            scene.admin.fetch(4 << 20).await.unwrap();
            println!("{carrier}: {count} stalled, idle {idle:?}, beside them {best:?}, all in {:?}", begin.elapsed());
            assert!(best < idle * 2 + ms(300), "{carrier}: {best:?} beside {count}, idle {idle:?}");
            drop(stalled);
        }
    }
}
