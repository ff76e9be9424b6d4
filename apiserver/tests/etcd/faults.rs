//! Three etcds, and what may become of them.

use super::*;
use crate::world::PATIENCE;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::time::timeout;

/// How long a change of leader may cost writes (F34).
const WITHOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// How often that is measured at most, with all that it must not lose: other tests run beside it.
const TRIES: usize = 3;

/// As a client does that is told when to come back.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// What a writer was told of one of its changes.
type Told = (u64, u64);

/// Counts up one object, over conflicts and failures, until it is told to stop: what was acknowledged, as value and revision.
async fn count(store: Store, key: &'static str, stop: Arc<AtomicBool>) -> Vec<Told> {
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let (expect, value) = match store.get(key) {
            Some(entry) => (Expect::Revision(entry.revision), entry.value["spec"].as_u64().unwrap() + 1),
            None => (Expect::Absent, 1),
        };
        match store.commit(put(key, expect, value)).await {
            Ok(revision) => acknowledged.push((revision, value)),
            Err(CommitError::Conflict(_)) => tokio::task::yield_now().await,
            Err(CommitError::Unavailable(_) | CommitError::Overloaded) => tokio::time::sleep(PAUSE).await,
            Err(other) => panic!("{other}"),
        }
    }
    acknowledged
}

/// Writes a record of its own, which nobody else does and which moves no revision, until it is told to stop and one more was
/// kept: the longest time without one.
async fn pulse(store: Store, who: usize, stop: Arc<AtomicBool>) -> std::time::Duration {
    let (mut last, mut longest) = (Instant::now(), std::time::Duration::ZERO);
    loop {
        let private = vec![(format!("pulse/{who}"), Some(bytes::Bytes::from_static(b"x")))];
        let told = store.commit(Batch { object: None, private }).await;
        longest = longest.max(last.elapsed());
        match told {
            Ok(_) if stop.load(Ordering::SeqCst) => return longest,
            Ok(_) => last = Instant::now(),
            Err(CommitError::Unavailable(_) | CommitError::Overloaded) => {}
            Err(other) => panic!("{other}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// All that was acknowledged is in the history, which counts up one by one, and every store and a new one end at it.
async fn judge(etcds: &Etcds, root: &str, stores: Vec<Store>, told: Vec<Told>, watched: BTreeMap<u64, u64>) {
    assert!(told.len() > 20, "too little was written to judge by: {}", told.len());
    let mut unique: Vec<u64> = told.iter().map(|t| t.0).collect();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), told.len(), "one revision was given to two");
    for (revision, value) in &told {
        assert_eq!(watched.get(revision), Some(value), "revision {revision} was acknowledged");
    }
    let revisions: Vec<u64> = watched.keys().copied().collect();
    let newest = *revisions.last().unwrap();
    assert_eq!(revisions, (2..=newest).collect::<Vec<_>>(), "a watch saw a gap");
    assert!(watched.values().copied().eq(1..=watched.len() as u64), "two writers saw the same state: {watched:?}");
    let fresh = etcds.open(root);
    assert!(newest <= fresh.revision());
    for store in stores {
        let same = async {
            while store.revision() < fresh.revision() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, same).await.expect("every store gets there");
        assert_eq!(store.get("g/n").unwrap().value, fresh.get("g/n").unwrap().value);
    }
}

/// Everything that a watch sees, until the writers have stopped and it has seen what they wrote.
async fn follow(store: Store, stop: Arc<AtomicBool>, last: Arc<std::sync::atomic::AtomicU64>) -> BTreeMap<u64, u64> {
    let mut watcher = store.watch("g/", 1).unwrap();
    let mut seen = BTreeMap::new();
    let until = Instant::now() + PATIENCE * 2;
    loop {
        assert!(Instant::now() < until, "the watch does not come to an end: {:?}", seen.keys().last());
        let wait = std::time::Duration::from_millis(100);
        if let Ok(event) = timeout(wait, watcher.next()).await {
            let event = event.expect("no gap").unwrap();
            let value = event.value().unwrap()["spec"].as_u64().unwrap();
            assert_eq!(seen.insert(event.revision, value), None, "a change came twice");
        }
        let newest = seen.keys().last().copied().unwrap_or(0);
        if stop.load(Ordering::SeqCst) && last.load(Ordering::SeqCst) <= newest {
            return seen;
        }
    }
}

fn wide() -> moorline_apiserver::Limits {
    moorline_apiserver::Limits { history: 100_000, ..limits() }
}

/// Runs writers on three stores and a watch, while `faults` goes on. Returns the longest time without a write of each.
async fn under(etcds: &Etcds, root: &str, faults: impl AsyncFnOnce()) -> Vec<std::time::Duration> {
    let stores: Vec<Store> = (0..3).map(|_| Store::connect(etcds.place(root), None, &wide()).unwrap()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let last = Arc::new(std::sync::atomic::AtomicU64::new(u64::MAX));
    let watching = tokio::spawn(follow(stores[0].clone(), Arc::clone(&stop), Arc::clone(&last)));
    let writing: Vec<_> =
        stores.iter().map(|store| tokio::spawn(count(store.clone(), "g/n", Arc::clone(&stop)))).collect();
    let pulses: Vec<_> = stores
        .iter()
        .enumerate()
        .map(|(who, store)| tokio::spawn(pulse(store.clone(), who, Arc::clone(&stop))))
        .collect();
    faults().await;
    stop.store(true, Ordering::SeqCst);
    let (mut told, mut longest) = (Vec::new(), Vec::new());
    for writer in writing {
        told.extend(writer.await.unwrap());
    }
    for pulse in pulses {
        longest.push(timeout(PATIENCE, pulse).await.expect("every store takes writes again").unwrap());
    }
    last.store(told.iter().map(|t| t.0).max().unwrap_or(0), Ordering::SeqCst);
    let watched = watching.await.unwrap();
    judge(etcds, root, stores, told, watched).await;
    longest
}

/// Until this store has made `more` changes since now.
async fn written(store: &Store, more: u64) {
    let until = store.revision() + more;
    let there = async {
        while store.revision() < until {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, there).await.expect("writes go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn f34_p13_a_leader_that_freezes_and_one_that_is_killed_lose_nothing() {
    let etcds = Etcds::start(3);
    let mut all = Vec::new();
    while all.len() < TRIES {
        let root = format!("faults/{}", all.len());
        let look = etcds.open(&root);
        let killed = AtomicUsize::new(0);
        let longest = under(&etcds, &root, async || {
            written(&look, 20).await;
            let frozen = etcds.leader();
            etcds.freeze(frozen);
            written(&look, 20).await;
            etcds.thaw(frozen);
            written(&look, 20).await;
            killed.store(etcds.leader(), Ordering::SeqCst);
            etcds.kill(killed.load(Ordering::SeqCst));
            written(&look, 20).await;
        })
        .await;
        eprintln!("longest without a write, per store: {longest:?}");
        // Of each, for the rule is of every hub; what they lose against each other meanwhile is in it.
        if longest.iter().all(|longest| *longest < WITHOUT) {
            return;
        }
        all.push(longest);
        etcds.revive(killed.load(Ordering::SeqCst));
    }
    panic!("{all:?}");
}

/// A write waits for a silent member no longer than until the next one is asked too, and is made once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn f34_a_member_that_is_silent_costs_a_moment_and_no_write_is_made_twice() {
    let etcds = Etcds::start(3);
    let leader = etcds.leader();
    // Asked first is one that does not lead.
    let members = [leader + 1, leader, leader + 2].map(|m| format!("127.0.0.1:{}", etcds.port(m % 3)));
    let place = EtcdPlace::parse(&format!("etcd://{}/silent", members.join(",")), None).unwrap();
    let store = Store::connect(place, None, &limits()).unwrap();
    assert_eq!(store.commit(put("g/n", Expect::Absent, 1)).await, Ok(2));
    let silent = (leader + 1) % 3;
    etcds.freeze(silent);
    let began = Instant::now();
    let told = store.commit(put("g/n", Expect::Revision(2), 2)).await;
    let took = began.elapsed();
    // Now it does what it was given, and finds that it is done.
    etcds.thaw(silent);
    assert_eq!(told, Ok(3));
    eprintln!("written after {took:?}");
    assert!(took < std::time::Duration::from_millis(1400), "{took:?}: it waited for the silent one");
    for value in 3..10 {
        assert_eq!(store.commit(put("g/n", Expect::Revision(value), value)).await, Ok(value + 1));
    }
    assert_eq!(etcds.open("silent").revision(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn f35_without_a_majority_nothing_is_written_and_all_can_be_read() {
    let etcds = Etcds::start(3);
    let store = etcds.open("majority");
    assert_eq!(store.commit(put("g/n", Expect::Absent, 1)).await, Ok(2));
    assert_eq!(store.unheard(), std::time::Duration::ZERO);
    etcds.freeze(0);
    etcds.freeze(1);
    let began = Instant::now();
    let refused = store.commit(put("g/n", Expect::Revision(2), 2)).await.unwrap_err();
    assert!(matches!(refused, CommitError::Unavailable(_) | CommitError::Overloaded), "{refused}");
    assert!(began.elapsed() < limits().write_time + PATIENCE / 4, "it was told in time");
    assert_eq!(store.get("g/n").unwrap().value["spec"], 1, "what is not known to be written is not shown");
    let told = async {
        while store.healthy().is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("it is said not to be ready");
    let before = store.unheard();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert!(before < store.unheard(), "and it grows");
    etcds.thaw(0);
    etcds.thaw(1);
    let well = async {
        while store.healthy().is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, well).await.expect("it comes back by itself");
    assert_eq!(store.unheard(), std::time::Duration::ZERO);
    // The refused write may have been made after all; what is there then is what the next one finds.
    let at = store.get("g/n").unwrap().revision;
    assert!((2..=3).contains(&at), "{at}");
    let next = store.commit(put("g/n", Expect::Revision(at), 3)).await;
    assert!(matches!(next, Ok(_) | Err(CommitError::Conflict(Some(_)))), "{next:?}");
}
