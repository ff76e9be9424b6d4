//! How far a shell and its client are: what was typed is kept until the shell has taken it, what was shown is counted.

use bytes::Bytes;
use moorline_shell::{
    frames::{Input, Place},
    limits,
};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Both halves of a connection work on it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    /// The shell is further.
    turned: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Typed and, as far as is known, not taken yet.
    kept: VecDeque<u8>,
    /// Bytes that the shell has taken.
    taken: u64,
    /// Bytes typed when the shell was last asked.
    asked: u64,
    /// Bytes that were shown.
    shown: u64,
    /// Nothing more is typed.
    over: bool,
    /// The shell has said where it is since the connection was lost.
    met: bool,
    /// Another process was its client before: where that one was is not known here.
    joins: bool,
}

impl State {
    fn typed(&self) -> u64 {
        self.taken + self.kept.len() as u64
    }
}

impl Progress {
    /// Of a shell that another process has begun: what the shell says first is where this one begins.
    pub fn of_a_shell_that_runs() -> Self {
        let state = State { joins: true, ..State::default() };
        Self { state: Mutex::new(state), turned: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that were shown.
    pub fn shown(&self) -> u64 {
        self.lock().shown
    }

    /// So many more were.
    pub fn was_shown(&self, count: usize) {
        self.lock().shown += count as u64;
    }

    /// Whether nothing more is typed.
    pub fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Notes what is about to be sent.
    pub fn was_typed(&self, input: &Input) {
        let mut state = self.lock();
        match input {
            Input::Typed(bytes) => state.kept.extend(bytes),
            Input::End => state.over = true,
            Input::Resize(_) => {}
        }
    }

    /// Whether so much was typed since that it is time to ask what of it was taken.
    pub fn has_to_ask(&self) -> bool {
        let state = self.lock();
        limits::ASK as u64 <= state.typed() - state.asked
    }

    /// What a ping asks with.
    pub fn place(&self) -> Bytes {
        let mut state = self.lock();
        state.asked = state.typed();
        Place { typed: state.asked, shown: state.shown }.write()
    }

    /// The connection is lost: how far the shell is has to be heard anew.
    pub fn is_cut(&self) {
        self.lock().met = false;
    }

    /// The shell has taken so much of what was typed; and where it is met again it goes on showing from there. Returns how
    /// much of what it has shown is lost.
    pub fn reaches(&self, place: Place) -> u64 {
        let mut state = self.lock();
        if std::mem::take(&mut state.joins) {
            (state.taken, state.asked, state.shown) = (place.typed, place.typed, place.shown);
        }
        let taken = usize::try_from(place.typed.saturating_sub(state.taken)).unwrap_or(usize::MAX);
        let taken = taken.min(state.kept.len());
        state.kept.drain(..taken);
        state.taken += taken as u64;
        let mut missed = 0;
        if !state.met {
            missed = place.shown.saturating_sub(state.shown);
            (state.met, state.shown) = (true, place.shown.max(state.shown));
        }
        drop(state);
        self.turned.notify_one();
        missed
    }

    /// What has to be typed again, once the shell has said what it has taken.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn to_send_again(&self) -> Vec<Bytes> {
        loop {
            {
                let mut state = self.lock();
                if state.met {
                    state.asked = state.taken;
                    return state.kept.make_contiguous().chunks(super::CHUNK).map(Bytes::copy_from_slice).collect();
                }
            }
            self.turned.notified().await;
        }
    }

    /// Waits for `next` unless too much waits for the shell; then for the shell first.
    ///
    /// # Cancel safety
    /// That of `next`.
    pub async fn when_there_is_room<T>(&self, next: impl Future<Output = T>) -> T {
        while limits::TYPED <= self.lock().kept.len() {
            self.turned.notified().await;
        }
        next.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn typed(progress: &Progress, text: &'static str) {
        progress.was_typed(&Input::Typed(Bytes::from_static(text.as_bytes())));
    }

    #[test]
    fn what_was_not_taken_is_sent_again_once_it_is_known() {
        let progress = Progress::default();
        typed(&progress, "one two three");
        progress.was_shown(10);
        assert_eq!(progress.reaches(Place { typed: 4, shown: 0 }), 0);
        progress.is_cut();
        assert_eq!(progress.to_send_again().now_or_never(), None, "it waits for the shell");
        assert_eq!(progress.reaches(Place { typed: 8, shown: 10 }), 0);
        assert_eq!(progress.to_send_again().now_or_never(), Some(vec![Bytes::from_static(b"three")]));
        // A pong that was under way says what is known already.
        progress.reaches(Place { typed: 4, shown: 0 });
        assert_eq!(progress.to_send_again().now_or_never(), Some(vec![Bytes::from_static(b"three")]));
        assert_eq!(progress.shown(), 10);
    }

    #[test]
    fn who_comes_to_a_shell_of_another_process_begins_where_it_is() {
        let progress = Progress::of_a_shell_that_runs();
        assert_eq!(progress.to_send_again().now_or_never(), None, "it waits for the shell");
        assert_eq!(progress.reaches(Place { typed: 100, shown: 40 }), 0, "what it never showed here is not missed");
        assert_eq!(progress.to_send_again().now_or_never(), Some(vec![]));
        typed(&progress, "one two");
        assert_eq!(Place::read(&progress.place()), Some(Place { typed: 107, shown: 40 }));
        progress.was_shown(5);
        progress.is_cut();
        // It took "one ", and no more than that.
        assert_eq!(progress.reaches(Place { typed: 104, shown: 45 }), 0);
        assert_eq!(progress.to_send_again().now_or_never(), Some(vec![Bytes::from_static(b"two")]));
    }

    #[test]
    fn what_the_shell_does_not_keep_is_told_and_counted() {
        let progress = Progress::default();
        progress.was_shown(10);
        progress.is_cut();
        assert_eq!(progress.reaches(Place { typed: 0, shown: 25 }), 15);
        assert_eq!(progress.shown(), 25);
        assert_eq!(progress.reaches(Place { typed: 0, shown: 99 }), 0, "an answer to a ping is no place to begin at");
        assert_eq!(progress.shown(), 25);
    }

    #[test]
    fn no_more_is_typed_than_can_be_typed_again() {
        let progress = Progress::default();
        let chunk = Bytes::from(vec![b'x'; limits::ASK]);
        for _ in 0..limits::TYPED / limits::ASK {
            assert_eq!(progress.when_there_is_room(async { 1 }).now_or_never(), Some(1));
            progress.was_typed(&Input::Typed(chunk.clone()));
            assert!(progress.has_to_ask());
            progress.place();
            assert!(!progress.has_to_ask());
        }
        assert_eq!(progress.when_there_is_room(async { 1 }).now_or_never(), None);
        progress.reaches(Place { typed: 1, shown: 0 });
        assert_eq!(progress.when_there_is_room(async { 1 }).now_or_never(), Some(1));
    }
}
