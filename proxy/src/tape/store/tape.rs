//! One recording: what waits to be written, and whether it still can be.

use super::{Job, NoTape, PATIENCE, Seal, Slot, keeper::Out, lock};
use crate::{
    audit::OnFailure,
    tape::cast::{Text, event},
};
use std::{
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, Waker},
    time::Instant,
};
use tokio::sync::oneshot;

/// What one of them may have waiting for the disk, in bytes: with [`OPEN`](super::OPEN) it bounds what all hold.
pub(super) const QUEUE: usize = 256 << 10;

/// One recording. What is pushed is written soon, in order.
pub struct Tape {
    pub(super) name: String,
    pub(super) begun: Instant,
    pub(super) input: bool,
    pub(super) policy: OnFailure,
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) state: Mutex<State>,
    /// Of the thread alone.
    pub(super) out: Mutex<Option<Out>>,
    pub(super) _slot: Slot,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) waiting: Vec<u8>,
    /// The thread knows that something waits.
    pub(super) told: bool,
    pub(super) failed: Option<NoTape>,
    pub(super) lost: u64,
    /// Bytes that were left out since the last one that was not.
    pub(super) gap: u64,
    pub(super) waker: Option<Waker>,
    pub(super) shown: Text,
    pub(super) typed: Text,
}

impl Tape {
    /// What it is asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ready once there is room for more, and at once where sessions go on without.
    ///
    /// # Errors
    /// It has failed, and its session must end.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), NoTape>> {
        let mut state = lock(&self.state);
        match state.failed {
            Some(failed @ NoTape::Unreadable(_)) => Poll::Ready(Err(failed)),
            Some(failed) if self.policy == OnFailure::Refuse => Poll::Ready(Err(failed)),
            _ if self.policy == OnFailure::Continue || state.waiting.len() < QUEUE => Poll::Ready(Ok(())),
            _ => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Nothing more is recorded, and why: the first reason stays.
    pub fn fail(&self, why: NoTape) -> NoTape {
        let mut state = lock(&self.state);
        let why = *state.failed.get_or_insert(why);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        why
    }

    /// Why nothing more is recorded.
    pub fn failed(&self) -> Option<NoTape> {
        lock(&self.state).failed
    }

    /// The terminal shows this.
    pub fn shown(self: &Arc<Self>, bytes: &[u8]) {
        self.push(bytes.len(), |state, at| {
            let text = state.shown.read(bytes);
            if !text.is_empty() {
                event(&mut state.waiting, at, 'o', &text);
            }
        });
    }

    /// This is typed. Kept where the policy wants it.
    pub fn typed(self: &Arc<Self>, bytes: &[u8]) {
        if self.input {
            self.push(bytes.len(), |state, at| {
                let text = state.typed.read(bytes);
                if !text.is_empty() {
                    event(&mut state.waiting, at, 'i', &text);
                }
            });
        }
    }

    /// The window has this size now.
    pub fn resized(self: &Arc<Self>, columns: u16, rows: u16) {
        self.push(0, |state, at| event(&mut state.waiting, at, 'r', &format!("{columns}x{rows}")));
    }

    fn push(self: &Arc<Self>, bytes: usize, write: impl FnOnce(&mut State, f64)) {
        let mut state = lock(&self.state);
        if state.failed.is_some() || (self.policy == OnFailure::Continue && QUEUE <= state.waiting.len()) {
            state.lost += bytes as u64;
            state.gap += bytes as u64;
            return;
        }
        let at = self.begun.elapsed().as_secs_f64();
        let gap = std::mem::take(&mut state.gap);
        if gap != 0 {
            event(&mut state.waiting, at, 'm', &format!("{gap} bytes are missing here"));
        }
        write(&mut state, at);
        self.tell(&mut state);
    }

    fn tell(self: &Arc<Self>, state: &mut State) {
        if !state.told && !state.waiting.is_empty() {
            // The thread lives as long as somebody can ask it.
            state.told = self.jobs.send(Job::Write(Arc::clone(self))).is_ok();
        }
    }

    /// Its session is over: what waits is written, and the file sealed. `None`: that was not done in time, and is done
    /// later, or at the next start; whoever opened the store is told.
    pub async fn finish(self: &Arc<Self>, ended: &str) -> Option<Seal> {
        {
            let mut state = lock(&self.state);
            let at = self.begun.elapsed().as_secs_f64();
            event(&mut state.waiting, at, 'm', &format!("ended: {ended}"));
        }
        let (done, mut sealed) = oneshot::channel();
        self.jobs.send(Job::End(Arc::clone(self), true, done)).ok()?;
        match tokio::time::timeout(PATIENCE, &mut sealed).await {
            Ok(seal) => seal.ok(),
            Err(_) => {
                sealed.close(); // from here on somebody else is told
                sealed.try_recv().ok()
            }
        }
    }

    /// There was no session: nothing of it stays.
    pub fn discard(self: &Arc<Self>) {
        let (done, _) = oneshot::channel();
        let _ = self.jobs.send(Job::End(Arc::clone(self), false, done));
    }
}
