//! What keeps a store's changes: a file of redb's, or an etcd.
//!
//! A backend knows nothing of kinds, watchers and conditions. It takes a group of changes that were checked against the
//! newest state, makes all of them or none, and says which; it finds out after trouble what is there; and where several
//! hubs write, it says what the others wrote. Everything else is the same for all of them: [`crate::writer`].

use crate::{
    seal::Seal,
    store::{CommitError, Expect, Order, State, StoreEvent},
    stored::Stored,
};
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What one transaction may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Objects and private records, together.
    pub(crate) keys: usize,
    /// Bytes of them. A single change may be larger.
    pub(crate) bytes: usize,
    /// Whether a key may be there only once.
    pub(crate) once: bool,
}

/// One change of the order that a group answers.
pub(crate) struct Taken {
    pub(crate) done: oneshot::Sender<Result<u64, CommitError>>,
    pub(crate) revision: u64,
    /// Which of the group's events, and on what condition: what it takes to check it again.
    object: Option<(usize, Expect)>,
    found: Option<(String, Option<Bytes>)>,
    private: Vec<(String, Option<Bytes>)>,
}

/// What a group of orders comes to, before it is kept.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) events: Vec<StoreEvent>,
    pub(crate) private: Vec<(String, Option<Bytes>)>,
    /// The trees of what is new, until it is shown and after.
    pub(crate) fresh: Vec<Arc<Value>>,
    pub(crate) taken: Vec<Taken>,
    /// Orders whose condition does not hold, and where their objects are then. They are told once that can be read, so
    /// that who reads and tries again does not lose again; or with the group, if what they lost against is not kept.
    pub(crate) lost: Vec<(Order, Option<u64>)>,
    /// Bytes of all that.
    pub(crate) bytes: usize,
}

impl Group {
    /// How many keys it writes, at most.
    pub(crate) fn keys(&self) -> usize {
        self.events.len() + self.private.len()
    }

    /// A new object, to be looked at soon.
    pub(crate) fn fresh(&mut self, value: Arc<Value>) -> Stored {
        self.fresh.push(Arc::clone(&value));
        Stored::new(value)
    }

    /// Notes what an order came to; its event, if it has one, is the newest.
    pub(crate) fn take(
        &mut self,
        done: oneshot::Sender<Result<u64, CommitError>>,
        revision: u64,
        expect: Option<Expect>,
        private: Vec<(String, Option<Bytes>)>,
        found: Option<(String, Option<Bytes>)>,
    ) {
        let object = expect.map(|expect| (self.events.len().saturating_sub(1), expect));
        self.private.extend(private.iter().cloned());
        self.bytes +=
            private.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len)).sum::<usize>();
        self.taken.push(Taken { done, revision, object, found, private });
    }

    /// The orders as they came, for another try.
    pub(crate) fn into_orders(self) -> Vec<Order> {
        let Self { events, taken, lost, .. } = self;
        let order = |one: Taken| {
            let object = one.object.and_then(|(at, expect)| {
                let event = events.get(at)?;
                let value = event.value().map(|value| Value::clone(&value));
                Some((event.key.to_string(), expect, value))
            });
            Order { batch: crate::Batch { object, private: one.private }, found: one.found, done: one.done }
        };
        taken.into_iter().map(order).chain(lost.into_iter().map(|(order, _)| order)).collect()
    }

    /// Tells all who wait for it that it is not kept, or not known to be.
    pub(crate) fn refuse(&mut self, why: &CommitError) {
        for one in self.taken.drain(..) {
            let _ = one.done.send(Err(why.clone()));
        }
        for (order, _) in self.lost.drain(..) {
            let _ = order.done.send(Err(why.clone()));
        }
    }
}

/// Why a group was not written.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// It was not: somebody else wrote first.
    Behind,
    /// It was not, and never will be.
    Refused(CommitError),
    /// Whether it was is not known. [`Backend::recover`] finds out.
    Doubtful(CommitError),
    /// Whether it was is not known, and nothing more can be written before a restart.
    Stopped(CommitError),
}

/// A change that this process did not make, or did not know that it had made.
pub(crate) struct Landed {
    pub(crate) revision: u64,
    pub(crate) key: Arc<str>,
    pub(crate) after: Option<Stored>,
}

/// What one transaction brought.
#[derive(Default)]
pub(crate) struct Landing {
    pub(crate) events: Vec<Landed>,
    pub(crate) private: Vec<(String, Option<Bytes>)>,
}

/// What is there that this process does not know of.
pub(crate) enum News {
    /// Transactions, in order, without a gap.
    Landings(Vec<Landing>),
    /// Everything: what lies between is not known any more.
    Everything(Box<State>),
}

/// See the module.
pub(crate) trait Backend: Send + 'static {
    /// What its values are sealed with.
    fn seal(&self) -> Option<Arc<Seal>>;

    /// What one transaction may hold.
    fn bounds(&self) -> Bounds;

    /// Whether others write to it too. Such a one is looked after without being asked to once it did not answer.
    fn is_shared(&self) -> bool;

    /// Makes all changes of a group, or none; returns once they are kept for good.
    fn write(&mut self, group: &Group) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Looks what is there, after a group about which nobody knows, or after [`WriteError::Behind`]. `known` is the
    /// revision up to which everything is known. Called again until it succeeds.
    fn recover(&mut self, doubtful: &Group, known: u64) -> impl Future<Output = Result<News, WriteError>> + Send;

    /// What others wrote, once they do.
    ///
    /// # Cancel safety
    /// Safe.
    fn news(&mut self) -> impl Future<Output = Result<News, WriteError>> + Send;
}
