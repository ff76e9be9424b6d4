//! Backups of a store in an etcd.

use super::*;
use crate::model::backups;

/// At the hub that makes the backups, and at another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn p10_a_backup_under_writes_is_of_one_revision() {
    let etcds = Etcds::start(1);
    let store = etcds.open("backup");
    for writer in [store.clone(), etcds.open("backup")] {
        let dir = tempfile::tempdir().unwrap();
        backups::are_of_one_revision(&store, writer, dir.path()).await;
    }
}
