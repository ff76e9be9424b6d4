//! The one thread that writes: takes what waits, checks it against the newest state, has it kept as one transaction, and
//! only then shows and acknowledges it.

use crate::{
    Batch, Limits,
    backend::{Backend, Group, Landed, Landing, News, WriteError},
    store::{CommitError, Expect, Kept, Order, Shared, State, StoreEvent},
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

pub(crate) struct Writer<B> {
    backend: B,
    shared: Arc<Shared>,
    group: usize,
    history: usize,
    history_bytes: usize,
    fresh: usize,
    retry: Duration,
    write_time: Duration,
    health: Health,
}

/// Whether writes are taken.
enum Health {
    Well,
    /// What was being written may be there or not, as a whole.
    Doubtful {
        group: Group,
        retry_at: Instant,
    },
    Stopped,
}

impl<B: Backend> Writer<B> {
    pub(crate) fn new(backend: B, shared: Arc<Shared>, limits: &Limits) -> Self {
        let Limits { group, history, history_bytes, fresh, full_retry, write_time, .. } = *limits;
        Self {
            backend,
            shared,
            group,
            history,
            history_bytes,
            fresh,
            retry: full_retry,
            write_time,
            health: Health::Well,
        }
    }

    /// Ends when no store's handle is left.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        let (mut fresh, mut waiting) = (Vec::new(), VecDeque::new());
        loop {
            let well = matches!(self.health, Health::Well);
            let retry_at = match self.health {
                Health::Doubtful { retry_at, .. } if self.backend.is_shared() => Some(retry_at),
                _ => None,
            };
            tokio::select! {
                taken = inbox.recv_many(&mut fresh, self.group) => {
                    if taken == 0 {
                        return;
                    }
                    waiting.extend(fresh.drain(..));
                    while !waiting.is_empty() {
                        self.step(&mut waiting).await;
                    }
                }
                news = self.backend.news(), if well => self.hear(news),
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => self.recover().await,
            }
        }
    }

    /// Serves orders off the front.
    async fn step(&mut self, waiting: &mut VecDeque<Order>) {
        let until = Instant::now() + self.write_time;
        while Instant::now() < until {
            self.recover().await;
            if !matches!(self.health, Health::Well) {
                return self.refuse(waiting.drain(..));
            }
            if self.shared.frozen.load(Ordering::SeqCst) {
                return waiting.drain(..).for_each(|order| drop(order.done.send(Err(CommitError::Moving))));
            }
            let mut group = self.check(waiting);
            if group.taken.is_empty() {
                return tell_lost(group.lost);
            }
            let began = Instant::now();
            self.ask();
            let written = self.backend.write(&group).await;
            if let Some(metrics) = self.shared.metrics.get() {
                metrics.commits.observe(began.elapsed().as_secs_f64());
            }
            match written {
                Ok(()) => {
                    self.answered();
                    return self.show(group);
                }
                Err(WriteError::Behind) => {
                    for order in group.into_orders().into_iter().rev() {
                        waiting.push_front(order);
                    }
                    let known = self.known();
                    let news = self.backend.recover(&Group::default(), known).await;
                    self.hear(news);
                }
                Err(WriteError::Refused(why)) => {
                    self.answered();
                    return group.refuse(&why);
                }
                Err(WriteError::Doubtful(trouble)) => return self.doubt(trouble, group),
                Err(WriteError::Stopped(trouble)) => {
                    self.stop(trouble.clone());
                    return group.refuse(&trouble);
                }
            }
        }
        // Others write faster than this one: its clients come back.
        for order in waiting.drain(..) {
            let _ = order.done.send(Err(CommitError::Overloaded));
        }
    }

    fn known(&self) -> u64 {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner).revision
    }

    /// Others may write what is not known here: from now on, unless they may already, and until there is an answer. What
    /// waits for one is not said to have failed for seconds, and nobody listens meanwhile.
    fn ask(&self) {
        if self.backend.is_shared() {
            let mut silent = self.shared.silent.lock().unwrap_or_else(PoisonError::into_inner);
            silent.get_or_insert_with(std::time::Instant::now);
        }
    }

    /// All is known that others wrote.
    fn answered(&self) {
        *self.shared.silent.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn tell(&self, trouble: Option<CommitError>) {
        if let (Some(_), Some(metrics)) = (&trouble, self.shared.metrics.get()) {
            metrics.store_errors.inc();
        }
        match &trouble {
            Some(_) => self.ask(),
            None => self.answered(),
        }
        *self.shared.trouble.write().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn stop(&mut self, trouble: CommitError) {
        tracing::error!(%trouble, "the store cannot go on");
        self.health = Health::Stopped;
        self.tell(Some(trouble));
    }

    /// Nobody knows whether this group is kept; those who wait are told so.
    fn doubt(&mut self, trouble: CommitError, mut group: Group) {
        tracing::error!(%trouble, "the store cannot write");
        // Said before anybody is answered: who asks then how the store is must hear it.
        self.tell(Some(trouble.clone()));
        group.refuse(&trouble);
        // Where asking costs little, the first try is now.
        let pause = if self.backend.is_shared() { Duration::ZERO } else { self.retry };
        self.health = Health::Doubtful { group, retry_at: Instant::now() + pause };
    }

    fn refuse(&self, orders: impl Iterator<Item = Order>) {
        let trouble = self.shared.trouble.read().unwrap_or_else(PoisonError::into_inner).clone();
        let trouble = trouble.unwrap_or_else(|| CommitError::Failed("it is closed".into()));
        for order in orders {
            let _ = order.done.send(Err(trouble.clone()));
        }
    }

    /// What others wrote, or why nobody knows.
    fn hear(&mut self, news: Result<News, WriteError>) {
        match news {
            Ok(news) => {
                match news {
                    News::Landings(landings) => landings.into_iter().for_each(|landing| self.land(landing)),
                    News::Everything(state) => self.replace(*state),
                }
                self.answered();
            }
            Err(WriteError::Stopped(trouble)) => self.stop(trouble),
            Err(WriteError::Doubtful(trouble) | WriteError::Refused(trouble)) => self.doubt(trouble, Group::default()),
            Err(WriteError::Behind) => {}
        }
    }

    /// Tries again once it is time, and learns which side of the last write the store is on.
    async fn recover(&mut self) {
        let Health::Doubtful { group, retry_at } = &mut self.health else { return };
        if Instant::now() < *retry_at {
            return;
        }
        *retry_at = Instant::now() + self.retry;
        let group = std::mem::take(group);
        let known = self.known();
        match self.backend.recover(&group, known).await {
            Err(WriteError::Stopped(trouble)) => self.stop(trouble),
            Err(_) => self.health = Health::Doubtful { group, retry_at: Instant::now() + self.retry },
            news => {
                self.health = Health::Well;
                self.hear(news);
                self.tell(None);
                tracing::info!("the store takes writes again");
            }
        }
    }

    /// Checks orders off the front against the state as the ones before them leave it, as many as one transaction holds.
    fn check(&self, orders: &mut VecDeque<Order>) -> Group {
        let bounds = self.backend.bounds();
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut group = Group::default();
        let mut revision = state.revision;
        while let Some(Order { batch, found, done }) = orders.pop_front() {
            if done.is_closed() {
                // Nobody waits for it any more: who was told that it took too long may have asked for something else.
                continue;
            }
            let full = bounds.keys <= group.keys() + batch.private.len() || bounds.bytes <= group.bytes;
            let again = bounds.once
                && batch.object.as_ref().is_some_and(|(key, ..)| group.events.iter().any(|e| *e.key == **key));
            if !group.taken.is_empty() && (full || again) {
                orders.push_front(Order { batch, found, done });
                break;
            }
            if found.as_ref().is_some_and(|(key, found)| record(&group, &state, key) != found.as_ref()) {
                group.lost.push((Order { batch, found, done }, None));
                continue;
            }
            let mut condition = None;
            if let Some((key, expect, value)) = batch.object {
                let current = current(&group, &state, &key);
                let at = current.as_ref().map(|e| e.revision);
                if at
                    != (match expect {
                        Expect::Absent => None,
                        Expect::Revision(r) => Some(r),
                    })
                {
                    let batch = Batch { object: Some((key, expect, value)), private: batch.private };
                    group.lost.push((Order { batch, found, done }, at));
                    continue;
                }
                condition = Some(expect);
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
                let key = key.into();
                let after = value.map(|value| group.fresh(value));
                let event = StoreEvent { revision, key, after, before: current };
                group.bytes += event.key.len() + event.text().len();
                group.events.push(event);
            }
            group.take(done, revision, condition, batch.private, found);
        }
        group
    }

    /// Shows what another process wrote, as if it had been written here.
    fn land(&self, landing: Landing) {
        let mut group = Group { private: landing.private, ..Group::default() };
        {
            let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
            for one in landing.events {
                let before = current(&group, &state, &one.key);
                let Landed { revision, key, after } = one;
                group.events.push(StoreEvent { revision, key, after, before });
            }
        }
        self.show(group);
    }

    /// Takes a state over whose way here is not known: all that watch are told to list again.
    fn replace(&self, mut new: State) {
        new.compacted = new.revision;
        let revision = new.revision;
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        new.age = state.age + 1;
        *state = new;
        drop(state);
        self.shared.revision.send_replace(revision);
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
            match &event.after {
                Some(stored) => {
                    let kept = Kept { revision: event.revision, stored: stored.clone() };
                    state.objects.insert(Arc::clone(&event.key), kept)
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
        state.fresh.extend(group.fresh);
        let old = state.fresh.len().saturating_sub(self.fresh);
        state.fresh.drain(..old);
        let revision = state.revision;
        drop(state);
        self.shared.revision.send_replace(revision);
        for one in group.taken {
            let _ = one.done.send(Ok(one.revision));
        }
        tell_lost(group.lost);
    }
}

fn tell_lost(lost: Vec<(Order, Option<u64>)>) {
    for (order, at) in lost {
        let _ = order.done.send(Err(CommitError::Conflict(at)));
    }
}

/// A private record as a group leaves it.
fn record<'a>(group: &'a Group, state: &'a State, key: &str) -> Option<&'a Bytes> {
    match group.private.iter().rev().find(|(k, _)| k == key) {
        Some((_, value)) => value.as_ref(),
        None => state.private.get(key),
    }
}

/// An object as a group leaves it.
fn current(group: &Group, state: &State, key: &str) -> Option<Kept> {
    match group.events.iter().rev().find(|e| *e.key == *key) {
        Some(e) => e.after.clone().map(|stored| Kept { revision: e.revision, stored }),
        None => state.objects.get(key).cloned(),
    }
}
