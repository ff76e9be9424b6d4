//! The one thread that writes: takes what waits, checks it against the newest state, commits it as one transaction, and
//! only then shows and acknowledges it.

use crate::{
    Limits,
    disk::{Disk, Redb},
    store::{CommitError, Entry, Expect, Order, Shared, State, StoreEvent},
};
use bytes::Bytes;
use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

pub(crate) struct Writer {
    disk: Box<dyn Disk>,
    shared: Arc<Shared>,
    group: usize,
    history: usize,
    history_bytes: usize,
    retry: Duration,
    health: Health,
}

/// Whether there is a file to write to.
enum Health {
    Well(Redb),
    /// The disk was full. What was being written may be there or not, as a whole.
    Full {
        doubtful: Vec<StoreEvent>,
        retry_at: Instant,
    },
    Stopped,
}

/// What a group of orders comes to, before it is on disk.
#[derive(Default)]
struct Group {
    events: Vec<StoreEvent>,
    private: Vec<(String, Option<Bytes>)>,
    acknowledge: Vec<(oneshot::Sender<Result<u64, CommitError>>, u64)>,
}

impl Writer {
    pub(crate) fn new(disk: Box<dyn Disk>, redb: Redb, shared: Arc<Shared>, limits: &Limits) -> Self {
        let Limits { group, history, history_bytes, full_retry, .. } = *limits;
        Self { disk, shared, group, history, history_bytes, retry: full_retry, health: Health::Well(redb) }
    }

    pub(crate) fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        let mut waiting = Vec::new();
        while inbox.blocking_recv_many(&mut waiting, self.group) > 0 {
            self.reopen();
            let Health::Well(redb) = &self.health else {
                self.refuse(waiting.drain(..).map(|order| order.done));
                continue;
            };
            let group = self.check(waiting.drain(..));
            if group.acknowledge.is_empty() {
                continue;
            }
            let began = Instant::now();
            let written = redb.write(&group.events, &group.private, group.events.last().map(|e| e.revision));
            if let Some(metrics) = self.shared.metrics.get() {
                metrics.commits.observe(began.elapsed().as_secs_f64());
            }
            match written {
                Ok(()) => self.show(group),
                Err(error) => {
                    let trouble = redb.trouble(&error);
                    tracing::error!(%error, %trouble, "the store cannot write");
                    self.health = match trouble {
                        CommitError::Full(_) => {
                            Health::Full { doubtful: group.events, retry_at: Instant::now() + self.retry }
                        }
                        _ => Health::Stopped,
                    };
                    self.tell(Some(trouble));
                    self.refuse(group.acknowledge.into_iter().map(|(done, _)| done));
                }
            }
        }
    }

    fn tell(&self, trouble: Option<CommitError>) {
        if let (Some(_), Some(metrics)) = (&trouble, self.shared.metrics.get()) {
            metrics.store_errors.inc();
        }
        *self.shared.trouble.write().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn refuse(&self, orders: impl Iterator<Item = oneshot::Sender<Result<u64, CommitError>>>) {
        let trouble = self.shared.trouble.read().unwrap_or_else(PoisonError::into_inner).clone();
        let trouble = trouble.unwrap_or_else(|| CommitError::Failed("it is closed".into()));
        for done in orders {
            let _ = done.send(Err(trouble.clone()));
        }
    }

    /// Opens the file again once there may be space, and learns which side of the last write it is on.
    fn reopen(&mut self) {
        let Health::Full { doubtful, retry_at } = &mut self.health else { return };
        if Instant::now() < *retry_at {
            return;
        }
        *retry_at = Instant::now() + self.retry;
        let Ok((redb, found)) = Redb::open(&*self.disk) else { return };
        let known = self.shared.state.read().unwrap_or_else(PoisonError::into_inner).revision;
        let doubtful = std::mem::take(doubtful);
        let written = doubtful.last().is_some_and(|event| event.revision == found.revision);
        if !written && found.revision != known {
            let why = format!("the file is at revision {}, and {known} was acknowledged", found.revision);
            tracing::error!(why, "the store cannot go on");
            self.health = Health::Stopped;
            self.tell(Some(CommitError::Failed(why)));
            return;
        }
        let State { private, .. } = found;
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner).private = private;
        self.show(Group { events: if written { doubtful } else { Vec::new() }, ..Group::default() });
        tracing::info!("the store takes writes again");
        self.health = Health::Well(redb);
        self.tell(None);
    }

    /// Checks each order against the state as the ones before it leave it.
    fn check(&self, orders: impl Iterator<Item = Order>) -> Group {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut group = Group::default();
        let mut revision = state.revision;
        for Order { batch, done } in orders {
            if let Some((key, expect, value)) = batch.object {
                let newest = group.events.iter().rev().find(|e| *e.key == *key);
                let current = match newest {
                    Some(e) => e.value.clone().map(|value| Entry { revision: e.revision, value, size: e.text().len() }),
                    None => state.objects.get(key.as_str()).cloned(),
                };
                let at = current.as_ref().map(|e| e.revision);
                if at
                    != (match expect {
                        Expect::Absent => None,
                        Expect::Revision(r) => Some(r),
                    })
                {
                    let _ = done.send(Err(CommitError::Conflict(at)));
                    continue;
                }
                revision += 1;
                let (made, deleted) = (at.is_none(), value.is_none());
                let value = value.map(|mut value| {
                    value["metadata"]["resourceVersion"] = revision.to_string().into();
                    Arc::new(value)
                });
                if made || deleted {
                    // An object's private records go with it, those of this same group too; one that was set after it
                    // had gone is not for a namesake.
                    let prefix = format!("{key}/");
                    let stored = state.private.range(prefix.clone()..).take_while(|(k, _)| k.starts_with(&prefix));
                    let stored = stored.map(|(k, _)| k.clone());
                    let pending = group.private.iter().filter(|(k, v)| v.is_some() && k.starts_with(&prefix));
                    let own: Vec<_> = stored.chain(pending.map(|(k, _)| k.clone())).map(|k| (k, None)).collect();
                    group.private.extend(own);
                }
                group.events.push(StoreEvent {
                    revision,
                    key: key.into(),
                    value,
                    previous: current,
                    text: Arc::default(),
                });
            }
            group.private.extend(batch.private);
            group.acknowledge.push((done, revision));
        }
        group
    }

    fn show(&self, group: Group) {
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in group.private {
            match value {
                Some(value) => state.private.insert(key, value),
                None => state.private.remove(&key),
            };
        }
        for event in group.events {
            state.revision = event.revision;
            match &event.value {
                Some(value) => {
                    let size = event.text().len();
                    let entry = Entry { revision: event.revision, value: Arc::clone(value), size };
                    state.objects.insert(Arc::clone(&event.key), entry)
                }
                None => state.objects.remove(&event.key),
            };
            state.history_bytes += event.size();
            state.history.push_back(event);
            while self.history < state.history.len() || self.history_bytes < state.history_bytes {
                let Some(oldest) = state.history.pop_front() else { break };
                state.history_bytes -= oldest.size();
                state.compacted = oldest.revision;
            }
        }
        let revision = state.revision;
        drop(state);
        self.shared.revision.send_replace(revision);
        for (done, revision) in group.acknowledge {
            let _ = done.send(Ok(revision));
        }
    }
}
