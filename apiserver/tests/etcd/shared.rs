//! Two stores on one etcd: one history.

use super::*;
use crate::world::{Link, PATIENCE};
use bytes::Bytes;
use moorline_apiserver::{Compacted, StoreEvent, Watcher};
use std::time::{Duration, Instant};
use tokio::time::timeout;

async fn next(watcher: &mut Watcher) -> Result<StoreEvent, Compacted> {
    timeout(PATIENCE, watcher.next()).await.expect("it comes").map(Option::unwrap)
}

/// Reads until `count` changes were seen: their revisions, keys, and whether there is an object after them.
async fn changes(watcher: &mut Watcher, count: usize) -> Vec<(u64, String, bool)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let event = next(watcher).await.unwrap();
        seen.push((event.revision, event.key.to_string(), event.value().is_some()));
    }
    seen
}

fn connect(port: u16, root: &str) -> Store {
    let place = EtcdPlace::parse(&format!("etcd://127.0.0.1:{port}/{root}"), None).unwrap();
    Store::connect(place, None, &limits()).unwrap()
}

/// What became of a write, and whether that was ever in doubt: a busy etcd may answer too late, and then it is tried again
/// and may lose against itself.
async fn insist(store: &Store, batch: impl Fn() -> Batch) -> (Result<u64, Option<u64>>, bool) {
    let mut doubted = false;
    let settled = async {
        loop {
            match store.commit(batch()).await {
                Ok(revision) => return (Ok(revision), doubted),
                Err(CommitError::Conflict(at)) => return (Err(at), doubted),
                Err(CommitError::Unavailable(_) | CommitError::Overloaded) => doubted = true,
                Err(other) => panic!("{other}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, settled).await.expect("etcd answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn p14_two_hubs_on_one_etcd_see_one_history() {
    let etcds = Etcds::start(1);
    let stores = [etcds.open("two"), etcds.open("two")];
    let mut watchers = stores.each_ref().map(|store| store.watch("g/", 1).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for (who, store) in stores.iter().enumerate() {
        let store = store.clone();
        tasks.spawn(async move {
            let mut mine = Vec::new();
            for i in 0..15 {
                let key = format!("g/k/{who}-{i}");
                let (made, doubted) = insist(&store, || put(&key, Expect::Absent, i)).await;
                // Nobody else makes it: what it lost against in doubt is itself.
                let revision = made.or_else(|at| at.filter(|_| doubted).ok_or("lost")).unwrap();
                mine.push((Some(revision), key.clone(), true));
                if i % 5 == 4 {
                    let gone =
                        || Batch { object: Some((key.clone(), Expect::Revision(revision), None)), private: vec![] };
                    let (gone, doubted) = insist(&store, gone).await;
                    assert!(gone.is_ok() || (doubted && gone == Err(None)), "{gone:?}");
                    mine.push((gone.ok(), key, false));
                }
            }
            mine
        });
    }
    let acknowledged: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let seen = changes(&mut watchers[0], acknowledged.len()).await;
    assert_eq!(seen.iter().map(|c| c.0).collect::<Vec<_>>(), (2..=37).collect::<Vec<_>>(), "no gap, no double");
    assert_eq!(changes(&mut watchers[1], acknowledged.len()).await, seen);
    for (revision, key, there) in acknowledged {
        let found = seen.iter().find(|(_, k, t)| (k, t) == (&key, &there)).expect("it was made");
        assert!(revision.is_none_or(|revision| revision == found.0), "{key}: {revision:?}, {found:?}");
    }
    // One object, two writers: one wins, and the other is told so, by what it can read then.
    let [left, right] = &stores;
    let both = tokio::join!(
        insist(left, || put("g/one", Expect::Absent, 1)),
        insist(right, || put("g/one", Expect::Absent, 2))
    );
    let ((left_told, left_doubted), (right_told, right_doubted)) = both;
    let at = match (left_told, right_told) {
        (Ok(won), Err(Some(at))) | (Err(Some(at)), Ok(won)) if won == at => at,
        (Err(Some(at)), Err(Some(other))) if at == other && (left_doubted || right_doubted) => at,
        other => panic!("{other:?}"),
    };
    for (store, told) in [(left, left_told), (right, right_told)] {
        assert!(told.is_ok() || store.get("g/one").unwrap().revision == at);
    }
    // Private records are there too by the time that a later change is.
    let batch = || Batch { private: vec![("g/one/hash".into(), Some(Bytes::from_static(b"h")))], ..Batch::default() };
    insist(left, batch).await.0.unwrap();
    let (Ok(at) | Err(Some(at))) = insist(left, || put("g/two", Expect::Absent, 1)).await.0 else {
        panic!("it is there")
    };
    while next(&mut watchers[1]).await.unwrap().revision < at {}
    assert_eq!(right.private("g/one/hash").unwrap(), "h");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn p14_a_watch_goes_on_without_a_gap_when_etcd_is_back() {
    let etcds = Etcds::start(1);
    let other = etcds.open("link");
    let mut link = Link::to(etcds.port(0)).await;
    let store = connect(link.port, "link");
    let mut watcher = store.watch("g/", 1).unwrap();
    other.commit(put("g/k/0", Expect::Absent, 0)).await.unwrap();
    assert_eq!(changes(&mut watcher, 1).await, [(2, "g/k/0".to_owned(), true)]);
    link.cut().await;
    let mut made = Vec::new();
    for i in 1..20 {
        let key = format!("g/k/{i}");
        made.push((other.commit(put(&key, Expect::Absent, i)).await.unwrap(), key, true));
    }
    assert!(store.get("g/k/1").is_none(), "it cannot know");
    assert!(store.get("g/k/0").is_some(), "and what it knows is there to read");
    link.join().await;
    assert_eq!(changes(&mut watcher, made.len()).await, made);
    assert_eq!(store.commit(put("g/k/20", Expect::Absent, 20)).await, Ok(22));
    assert_eq!(changes(&mut watcher, 1).await, [(22, "g/k/20".to_owned(), true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn p14_what_etcd_has_forgotten_in_between_is_said() {
    let etcds = Etcds::start(1);
    let other = etcds.open("forgotten");
    let mut link = Link::to(etcds.port(0)).await;
    let store = connect(link.port, "forgotten");
    let mut watcher = store.watch("g/", 1).unwrap();
    other.commit(put("g/k/0", Expect::Absent, 0)).await.unwrap();
    next(&mut watcher).await.unwrap();
    link.cut().await;
    for i in 1..10 {
        other.commit(put(&format!("g/k/{i}"), Expect::Absent, i)).await.unwrap();
    }
    etcds.compact();
    link.join().await;
    assert_eq!(next(&mut watcher).await.unwrap_err(), Compacted, "410 for who watches");
    assert_eq!(store.watch("g/", 5).unwrap_err(), Compacted, "and for who comes with an old revision");
    let keys = |store: &Store| store.list("g/").1.into_iter().map(|(k, e)| (k, e.revision)).collect::<Vec<_>>();
    assert_eq!((store.revision(), keys(&store)), (other.revision(), keys(&other)));
    let mut again = store.watch("g/", store.revision()).unwrap();
    other.commit(put("g/k/10", Expect::Absent, 10)).await.unwrap();
    assert_eq!(next(&mut again).await.unwrap().key.as_ref(), "g/k/10");
}

/// A store that nobody writes to is as far as etcd all the same: others' changes, and what they have made it forget, cost no
/// reading of all of it when its watch breaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn p14_a_watch_goes_on_though_etcd_has_forgotten_what_others_wrote_beside_an_idle_store() {
    let etcds = Etcds::start(1);
    let other = etcds.open("beside");
    let mut link = Link::to(etcds.port(0)).await;
    let store = connect(link.port, "beside");
    let mut watcher = store.watch("g/", 1).unwrap();
    let until = Instant::now() + PATIENCE;
    // etcd says each second how far it is: sooner or later between what others write and what they make it forget.
    for round in 1.. {
        for _ in 0..3 {
            etcds.put("/another/key", "");
        }
        tokio::time::sleep(Duration::from_millis(500) * round).await;
        link.cut().await;
        etcds.compact();
        link.join().await;
        other.commit(put(&format!("g/k/{round}"), Expect::Absent, round)).await.unwrap();
        match next(&mut watcher).await {
            Ok(event) => {
                assert_eq!(&*event.key, format!("g/k/{round}"));
                break;
            }
            Err(Compacted) => {
                assert!(Instant::now() < until, "all of it is read again each time");
                while store.revision() < other.revision() {
                    assert!(Instant::now() < until, "it does not get there");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                watcher = store.watch("g/", store.revision()).unwrap();
            }
        }
    }
}
