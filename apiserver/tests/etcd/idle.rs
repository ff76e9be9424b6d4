//! Stores that nobody writes to: what is asked of etcd then is whether it lives.

use super::*;
use crate::world::PATIENCE;
use moorline_apiserver::ApiServer;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// etcd ends a connection at the fourth question that comes too early, and they come every six seconds.
const IDLE: Duration = Duration::from_secs(4 * 6 + 3);
/// When a silent etcd is noticed: what is left of the half minute after which rights may have been taken away (F35), once the
/// hub has counted on what it knows for its 21 s.
const NOTICED: Duration = Duration::from_secs(9);
/// What a busy machine may add to it.
const BUSY: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn f35_a_store_that_nobody_writes_to_stays_well() {
    let etcds = Etcds::start(1);
    let (store, other) = (etcds.open("idle"), etcds.open("idle"));
    let registry = prometheus::Registry::new();
    let _server = ApiServer::new(store.clone(), vec![], limits(), &registry, CancellationToken::new()).unwrap();
    let mut watcher = store.watch("g/", 1).unwrap();
    let until = Instant::now() + IDLE;
    while Instant::now() < until {
        assert_eq!(store.healthy(), Ok(()), "{:?} before the end", until - Instant::now());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all = registry.gather();
    let errors = all.iter().find(|family| family.name() == "moorline_apiserver_store_errors_total").unwrap();
    assert_eq!(errors.get_metric()[0].get_counter().get_value(), 0.0);
    assert_eq!(other.commit(put("g/k/1", Expect::Absent, 1)).await, Ok(2));
    let event = timeout(PATIENCE, watcher.next()).await.expect("it is told").unwrap().unwrap();
    assert_eq!((event.revision, store.healthy()), (2, Ok(())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn f35_a_silent_etcd_is_noticed_in_time_by_a_store_that_nobody_writes_to() {
    let etcds = Etcds::start(1);
    let store = etcds.open("silent");
    assert_eq!(store.commit(put("g/k/1", Expect::Absent, 1)).await, Ok(2));
    etcds.freeze(0);
    let begun = Instant::now();
    let noticed = async {
        while store.healthy().is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, noticed).await.expect("it is noticed");
    assert!(begun.elapsed() < NOTICED + BUSY, "{:?}", begun.elapsed());
    etcds.thaw(0);
}
