//! Follows the store: what changes there takes effect in memory at once.

use crate::{
    alive::{Alive, Part},
    directory::Directory,
    kinds::{
        AccessRequestSpec, AgentSpec, ClusterGrantSpec, ClusterSpec, GroupSpec, ServiceExportSpec, ServiceGrantSpec,
        ServiceImportSpec, TokenSpec, UserSpec,
    },
    records::{Change, Changes, Records},
    sessions::Sessions,
    shares::Shares,
};
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Begins all watches. Each tells of everything that is there first.
pub(crate) fn start(
    tasks: &mut JoinSet<()>,
    directory: &Arc<Directory>,
    sessions: &Arc<Sessions>,
    shares: &Arc<Shares>,
    records: &Records,
    stop: &CancellationToken,
    alive: &Arc<Alive>,
) {
    let d = Arc::clone(directory);
    spawn(tasks, stop, alive, records.watch::<UserSpec>(), move |change| d.user_changed(&change));
    let d = Arc::clone(directory);
    spawn(tasks, stop, alive, records.watch::<GroupSpec>(), move |change| d.group_changed(&change));
    let d = Arc::clone(directory);
    spawn(tasks, stop, alive, records.watch::<AccessRequestSpec>(), move |change| d.access_changed(&change));
    let d = Arc::clone(directory);
    spawn(tasks, stop, alive, records.watch::<TokenSpec>(), move |change| d.token_changed(&change));
    let d = Arc::clone(directory);
    spawn(tasks, stop, alive, records.watch::<ClusterGrantSpec>(), move |change| d.grant_changed(&change));
    let d = Arc::clone(directory);
    spawn(tasks, stop, alive, records.watch::<ServiceGrantSpec>(), move |change| d.service_grant_changed(&change));
    let s = Arc::clone(shares);
    spawn(tasks, stop, alive, records.watch::<ServiceExportSpec>(), move |change| s.export_changed(&change));
    let s = Arc::clone(shares);
    spawn(tasks, stop, alive, records.watch::<ServiceImportSpec>(), move |change| s.import_changed(&change));
    let (s, imports) = (Arc::clone(sessions), Arc::clone(shares));
    spawn(tasks, stop, alive, records.watch::<AgentSpec>(), move |change| {
        if let Change::Gone(name) = &change {
            s.agent_deleted(name);
            imports.agent_deleted();
        }
    });
    let (s, d) = (Arc::clone(sessions), Arc::clone(directory));
    spawn(tasks, stop, alive, records.watch::<ClusterSpec>(), move |change| {
        d.cluster_changed(&change);
        if let Change::Gone(name) = &change {
            s.cluster_deleted(name);
        }
    });
}

fn spawn<S: moorline_apiserver::Spec>(
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
    alive: &Arc<Alive>,
    mut changes: Changes<S>,
    mut apply: impl FnMut(Change<S>) + Send + 'static,
) {
    let stop = stop.clone();
    tasks.spawn(alive.while_running(Part::Changes, async move {
        while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
            apply(change);
        }
    }));
}
