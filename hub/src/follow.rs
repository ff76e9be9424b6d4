//! Follows the store: what changes there takes effect in memory at once.

use crate::{
    alive::{Alive, Part},
    directory::Directory,
    kinds::{
        AccessRequestSpec, AgentSpec, ClusterGrantSpec, ClusterSpec, GroupSpec, ServiceExportSpec, ServiceGrantSpec,
        ServiceImportSpec, TokenSpec, UserSpec,
    },
    records::{Change, Changes, RecordError, Records},
    sessions::Sessions,
    shares::Shares,
};
use moorline_apiserver::Spec;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Everything that is followed, listed once: what is there is told first, and every change after it.
pub(crate) struct Followed {
    users: Changes<UserSpec>,
    groups: Changes<GroupSpec>,
    requests: Changes<AccessRequestSpec>,
    tokens: Changes<TokenSpec>,
    grants: Changes<ClusterGrantSpec>,
    service_grants: Changes<ServiceGrantSpec>,
    exports: Changes<ServiceExportSpec>,
    imports: Changes<ServiceImportSpec>,
    agents: Changes<AgentSpec>,
    clusters: Changes<ClusterSpec>,
}

impl Followed {
    pub fn list(records: &Records) -> Self {
        Self {
            users: records.watch(),
            groups: records.watch(),
            requests: records.watch(),
            tokens: records.watch(),
            grants: records.watch(),
            service_grants: records.watch(),
            exports: records.watch(),
            imports: records.watch(),
            agents: records.watch(),
            clusters: records.watch(),
        }
    }

    /// Tells the directory of everything that is there. Run before anybody is served.
    ///
    /// # Errors
    /// Something is stored that cannot be read.
    pub fn load(&mut self, directory: &Directory) -> Result<(), RecordError> {
        directory.at_once(|| {
            // Whom users lie in is known before them.
            self.groups.tell_there(|change| directory.group_changed(change))?;
            self.users.tell_there(|change| directory.user_changed(change))?;
            self.tokens.tell_there(|change| directory.token_changed(change))?;
            self.grants.tell_there(|change| directory.grant_changed(change))?;
            self.clusters.tell_there(|change| directory.cluster_changed(change))?;
            self.service_grants.tell_there(|change| directory.service_grant_changed(change))?;
            self.requests.tell_there(|change| directory.access_changed(change))
        })
    }

    /// Begins to follow.
    pub fn start(
        self,
        tasks: &mut JoinSet<()>,
        directory: &Arc<Directory>,
        sessions: &Arc<Sessions>,
        shares: &Arc<Shares>,
        stop: &CancellationToken,
        alive: &Arc<Alive>,
    ) {
        let d = Arc::clone(directory);
        spawn(tasks, stop, alive, self.users, move |change| d.user_changed(&change));
        let d = Arc::clone(directory);
        spawn(tasks, stop, alive, self.groups, move |change| d.group_changed(&change));
        let d = Arc::clone(directory);
        spawn(tasks, stop, alive, self.requests, move |change| d.access_changed(&change));
        let d = Arc::clone(directory);
        spawn(tasks, stop, alive, self.tokens, move |change| d.token_changed(&change));
        let d = Arc::clone(directory);
        spawn(tasks, stop, alive, self.grants, move |change| d.grant_changed(&change));
        let d = Arc::clone(directory);
        spawn(tasks, stop, alive, self.service_grants, move |change| d.service_grant_changed(&change));
        let s = Arc::clone(shares);
        spawn(tasks, stop, alive, self.exports, move |change| s.export_changed(&change));
        let s = Arc::clone(shares);
        spawn(tasks, stop, alive, self.imports, move |change| s.import_changed(&change));
        let (s, imports) = (Arc::clone(sessions), Arc::clone(shares));
        spawn(tasks, stop, alive, self.agents, move |change| {
            if let Change::Gone(name) = &change {
                s.agent_deleted(name);
                imports.agent_deleted();
            }
        });
        let (s, d) = (Arc::clone(sessions), Arc::clone(directory));
        spawn(tasks, stop, alive, self.clusters, move |change| {
            d.cluster_changed(&change);
            if let Change::Gone(name) = &change {
                s.cluster_deleted(name);
            }
        });
    }
}

fn spawn<S: Spec>(
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
