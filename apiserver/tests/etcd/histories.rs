//! Three hubs' stores on three etcds that fail in turn: what everybody was told is one history.

use super::*;
use crate::{
    model::linear::{self, Course, Done},
    world::{Link, PATIENCE},
};
use std::time::{Duration, Instant};
use tokio::{task::JoinHandle, time::timeout};

/// Those who work, and what they were told.
type Work = [JoinHandle<Vec<Done>>];

/// Until so many operations were answered, however long that takes as long as they go on.
async fn until(course: &Course, work: &Work, count: u64) {
    let (mut done, mut moved) = (course.count(), Instant::now());
    while done < count {
        // Who has come to an end before all was done has failed: its own words are told when it is joined.
        assert!(!work.iter().any(JoinHandle::is_finished) || count <= course.count(), "one of them ended at {done}");
        assert!(moved.elapsed() < PATIENCE, "they stand still at {done} of {count}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        if course.count() != done {
            (done, moved) = (course.count(), Instant::now());
        }
    }
}

/// What fails in the middle of a run.
async fn fail(run: u64, etcds: &Etcds, link: &mut Link, store: &Store, course: &Course, work: &Work, all: u64) {
    // A busy machine may be nearly through before this.
    let step = (course.count() + all / 4).min(all);
    match run % 4 {
        // F34: a leader that freezes, and comes back not knowing that it is none.
        0 => {
            let leader = etcds.leader();
            etcds.freeze(leader);
            until(course, work, step).await;
            etcds.thaw(leader);
        }
        // F34: a leader that is killed, and starts anew from its disk.
        1 => {
            let leader = etcds.leader();
            etcds.kill(leader);
            until(course, work, step).await;
            etcds.revive(leader);
        }
        // F35: no majority, until it is noticed.
        2 => {
            let leader = etcds.leader();
            let others = [leader, (leader + 1) % etcds.count()];
            others.iter().for_each(|member| etcds.freeze(*member));
            let noticed = async {
                while store.healthy().is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENCE, noticed).await.expect("it is noticed");
            others.iter().for_each(|member| etcds.thaw(*member));
        }
        // One of the three hubs is cut from its etcd, the others go on.
        _ => {
            link.cut().await;
            until(course, work, step).await;
            link.join().await;
        }
    }
}

/// `MOORLINE_P13_RUNS=100 MOORLINE_P13_OPERATIONS=2000` does it at length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn p13_three_hubs_on_failing_etcds_have_one_history() {
    let (runs, operations) = linear::runs();
    let etcds = Etcds::start(3);
    let wide = moorline_apiserver::Limits { history: 100_000, ..limits() };
    // A fault of each kind.
    for run in 0..runs.max(4) {
        let root = format!("history/{run}");
        let mut link = Link::to(etcds.port(0)).await;
        let cut = EtcdPlace::parse(&format!("etcd://127.0.0.1:{}/{root}", link.port), None).unwrap();
        let place = || etcds.place(&root);
        let connect = |place| Store::connect(place, None, &wide).unwrap();
        let stores = [connect(place()), connect(place()), connect(if run % 4 == 3 { cut } else { place() })];
        let (mut watcher, course) = (stores[0].watch("g/", 1).unwrap(), Course::default());
        let work: Vec<_> = (0..6)
            .map(|who| tokio::spawn(course.clone().work(stores[who % 3].clone(), who as u64 + run * 10, operations)))
            .collect();
        until(&course, &work, operations / 4).await;
        fail(run, &etcds, &mut link, &stores[0], &course, &work, operations).await;
        until(&course, &work, operations).await;
        // What was begun comes to an end by itself.
        let mut told = Vec::new();
        for one in work {
            told.push(timeout(PATIENCE, one).await.expect("it ends").unwrap());
        }
        let history = timeout(PATIENCE, linear::history(&mut watcher, &told)).await.expect("all of it comes");
        eprintln!("run {run}: {} changes acknowledged, {} made", linear::acknowledged(&told), history.len());
        assert!(linear::acknowledged(&told) as u64 > operations / 10, "{}", linear::acknowledged(&told));
        linear::judge(&history, &told, false);
    }
}
