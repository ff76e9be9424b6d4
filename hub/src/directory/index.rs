//! All grants as one index. With a million of them it takes seconds to make: it is made on a thread of its own, of all changes
//! that have come by then, and nobody who asks for rights waits for it.

use moorline_authz::access::{Grant, Grants, Recording, ServiceGrant};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};
use tokio::sync::watch;

/// A change: what is there by a name now, if anything.
#[derive(Debug)]
pub(super) enum Edit {
    Grant(String, Option<Grant>),
    /// What a request for access grants.
    Access(String, Option<Grant>),
    Service(String, Option<ServiceGrant>),
    /// What a cluster says of recordings.
    Recorded(String, Option<Recording>),
}

/// What the index is made of.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub grants: BTreeMap<String, Grant>,
    access: BTreeMap<String, Grant>,
    services: BTreeMap<String, ServiceGrant>,
    pub recorded: HashMap<String, Recording>,
}

impl Entries {
    /// Whether it changes anything.
    fn apply(&mut self, edit: Edit) -> bool {
        match edit {
            Edit::Grant(name, Some(grant)) => drop(self.grants.insert(name, grant)),
            Edit::Grant(name, None) => return self.grants.remove(&name).is_some(),
            Edit::Access(name, Some(grant)) => drop(self.access.insert(name, grant)),
            Edit::Access(name, None) => return self.access.remove(&name).is_some(),
            Edit::Service(name, Some(grant)) => drop(self.services.insert(name, grant)),
            Edit::Service(name, None) => return self.services.remove(&name).is_some(),
            // Clusters change more often than what they say of this.
            Edit::Recorded(name, Some(said)) => return self.recorded.insert(name, said) != Some(said),
            Edit::Recorded(name, None) => return self.recorded.remove(&name).is_some(),
        }
        true
    }

    fn index(&self, usual: Recording) -> Grants {
        let grants = Grants::new(self.grants.values().chain(self.access.values()).cloned());
        grants.with_recording(usual, self.recorded.clone()).with_services(self.services.values().cloned())
    }
}

/// What is to be done.
#[derive(Debug, Default)]
struct Work {
    /// Changes so far.
    changes: u64,
    /// Those that are not in the entries yet.
    waiting: Vec<Edit>,
    /// Somebody makes the index, and looks again before they end.
    busy: bool,
    /// Many changes come at once: the index is made after them.
    at_once: bool,
}

/// The index.
#[derive(Debug)]
pub(super) struct Index(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What is recorded where nothing is said.
    usual: Recording,
    work: Mutex<Work>,
    /// Changed by who makes the index alone, and then for a moment.
    entries: RwLock<Entries>,
    /// Open streams follow it.
    made: watch::Sender<Arc<Grants>>,
    /// As many changes are in it.
    holds: watch::Sender<u64>,
}

impl Index {
    /// `usual`: what is recorded of sessions where neither cluster nor grants say anything.
    pub fn new(usual: Recording) -> Self {
        Self(Arc::new(Inner {
            usual,
            work: Mutex::default(),
            entries: RwLock::default(),
            made: watch::Sender::default(),
            holds: watch::Sender::default(),
        }))
    }

    pub fn grants(&self) -> Arc<Grants> {
        Arc::clone(&self.0.made.borrow())
    }

    pub fn watch(&self) -> watch::Receiver<Arc<Grants>> {
        self.0.made.subscribe()
    }

    pub fn usual(&self) -> Recording {
        self.0.usual
    }

    /// What the index is made of.
    pub fn read<T>(&self, look: impl FnOnce(&Entries) -> T) -> T {
        look(&self.0.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in a change. It never waits for the index: see [`Index::settled`].
    pub fn edit(&self, edit: Edit) {
        let mut work = self.0.work();
        work.changes += 1;
        if work.at_once {
            // Nobody is served yet, and what is there is not held twice.
            self.0.entries.write().unwrap_or_else(PoisonError::into_inner).apply(edit);
            return;
        }
        work.waiting.push(edit);
        if !std::mem::replace(&mut work.busy, true) {
            drop(work);
            self.begin();
        }
    }

    /// Has it made. Not where other work stands in line: rights that are gone count until it is made.
    fn begin(&self) {
        let inner = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("grants".to_owned()).spawn(move || inner.make());
        if let Err(error) = thread {
            tracing::warn!("no thread for the index of grants, which is made here: {error}");
            self.0.make();
        }
    }

    /// Takes in many changes; the index is made once, after them, before this returns.
    pub fn at_once<T>(&self, changes: impl FnOnce() -> T) -> T {
        self.0.work().at_once = true;
        let done = changes();
        let upto = {
            let mut work = self.0.work();
            work.at_once = false;
            work.changes
        };
        self.0.put(upto);
        done
    }

    /// Waits until every change that was taken in before is in the index.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn settled(&self) {
        let upto = self.0.work().changes;
        // It cannot fail: the sender is held here.
        let _ = self.0.holds.subscribe().wait_for(|holds| upto <= *holds).await;
    }
}

impl Inner {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it until nothing has changed meanwhile.
    fn make(&self) {
        let _idle = Idle(self);
        while let Some((edits, upto)) = self.next() {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            let mut changed = false;
            for edit in edits {
                changed |= entries.apply(edit);
            }
            drop(entries);
            if changed {
                self.put(upto);
            } else {
                self.holds.send_replace(upto);
            }
        }
    }

    /// All changes that wait, and how many there are with them; `None`: there are none, and whoever asked is idle.
    fn next(&self) -> Option<(Vec<Edit>, u64)> {
        let mut work = self.work();
        work.busy = !work.waiting.is_empty();
        work.busy.then(|| (std::mem::take(&mut work.waiting), work.changes))
    }

    fn put(&self, upto: u64) {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let index = entries.index(self.usual);
        drop(entries);
        self.made.send_replace(Arc::new(index));
        self.holds.send_replace(upto);
    }
}

/// Whatever ends the making of an index, the next change begins it anew.
struct Idle<'a>(&'a Inner);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.work().busy = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::Directory,
        kinds::{ClusterGrantSpec, TokenSpec, UserSpec},
        metrics::Metrics,
        records::{Change, tests::records},
    };
    use moorline_apiserver::Object;
    use moorline_authz::{
        access::Facts,
        access_token::{KeySet, Verifier},
        identity::Identity,
    };
    use std::{sync::mpsc, time::Duration};

    /// Longer than anything here takes; nothing is found out by it.
    const LONG: Duration = Duration::from_secs(60);

    fn grant(n: usize) -> Change<ClusterGrantSpec> {
        let spec = ClusterGrantSpec {
            users: vec!["ann".to_owned()],
            clusters: vec![format!("edge{n}")],
            ..ClusterGrantSpec::default()
        };
        Change::Put(Box::new(Object::new(format!("grant{n}"), spec)))
    }

    fn reached(directory: &Directory) -> usize {
        let (grants, identity) = (directory.grants(), Identity::new("ann", [""; 0].map(str::to_owned)));
        let facts = Facts { identity: &identity, token_clusters: None, grants: &grants };
        (0..9).filter(|n| facts.reaches(&format!("edge{n}"))).count()
    }

    async fn directory(dir: &std::path::Path) -> (Arc<Directory>, String) {
        let (records, registry) = (records(dir).await, prometheus::Registry::new());
        records.create(&Object::new("ann", UserSpec::default())).await.unwrap();
        let expires = "2999-01-01T00:00:00Z".to_owned();
        let spec = TokenSpec { user: "ann".to_owned(), expires, ..TokenSpec::default() };
        let made = records.create(&Object::new("", spec)).await.unwrap();
        let verifier = Arc::new(Verifier::new("spiffe://moorline.local", KeySet::default()));
        let directory = Directory::new(records, Metrics::new(&registry).unwrap(), verifier, Vec::new());
        (Arc::new(directory), made.status.unwrap().token.unwrap())
    }

    #[test]
    fn callers_are_answered_and_changes_taken_in_while_an_index_is_made() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (directory, token) = runtime.block_on(directory(dir.path()));
        let shared = Arc::clone(&directory);
        // As who makes the index holds them: nobody else comes to an end with one until this is let go.
        let making = shared.index.0.entries.read().unwrap();
        let (told, heard) = mpsc::channel();
        let asked = Arc::clone(&directory);
        runtime.spawn(async move {
            (0..3).for_each(|n| asked.grant_changed(&grant(n)));
            let known = asked.authenticate(&token).map(|who| who.identity.user.clone());
            let _ = told.send((known, reached(&asked)));
        });
        let answered = heard.recv_timeout(LONG).expect("nobody waits for the index");
        assert_eq!(answered, (Some("ann".to_owned()), 0), "and the one before counts");
        drop(making);
        runtime.block_on(async { tokio::time::timeout(LONG, directory.settled()).await.unwrap() });
        assert_eq!(reached(&directory), 3, "who waited for their change sees it");
    }

    #[tokio::test]
    async fn what_changes_meanwhile_is_in_the_next_index_all_at_once() {
        let index = Index::new(Recording::Never);
        index.0.work().busy = true;
        let edit = |name: &str, said| index.edit(Edit::Recorded(name.to_owned(), said));
        (0..3).for_each(|n| edit(&format!("edge{n}"), Some(Recording::Always)));
        let (edits, upto) = index.0.next().unwrap();
        assert_eq!((edits.len(), upto, index.0.next().is_none()), (3, 3, true));
        // It is not made where nothing has changed.
        let before = index.grants();
        edit("edge1", None);
        index.settled().await;
        assert!(Arc::ptr_eq(&before, &index.grants()) && *index.0.holds.borrow() == 4);
        edit("edge1", Some(Recording::Always));
        index.settled().await;
        assert!(!Arc::ptr_eq(&before, &index.grants()) && index.read(|all| all.recorded.len()) == 1);
    }
}
