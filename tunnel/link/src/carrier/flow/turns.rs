//! Whose turn it is among the streams of a connection that send much.

use super::locked;
use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
    task::{Context, Waker},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

/// How long a turn may lie unused while somebody waits for it. Whoever wrote a part of what it has comes again at once,
/// unless it waits for something else by now: a slow disk, a peer of its own. Nobody would ever wake it for its turn.
const IDLE: Duration = Duration::from_millis(20);

/// Who waits, and for whom.
#[derive(Debug, Default)]
pub(super) struct Turns {
    line: Mutex<Line>,
    /// Somebody waits where nobody did.
    contended: Notify,
}

#[derive(Debug, Default)]
struct Line {
    holder: Option<u64>,
    /// The holder waits for the connection, which wakes it.
    asleep: bool,
    /// Turns taken so far, a stream's second look in one turn counted too.
    taken: u64,
    waiting: VecDeque<u64>,
    wakers: HashMap<u64, Waker>,
}

impl Line {
    fn hold(&mut self, id: u64) {
        (self.holder, self.asleep, self.taken) = (Some(id), false, self.taken + 1);
    }

    /// Leaves the line, or gives the turn to the next in it.
    fn give(&mut self, id: u64) {
        if self.wakers.remove(&id).is_some() {
            self.waiting.retain(|other| *other != id);
        }
        if self.holder == Some(id) {
            self.holder = None;
            if let Some(next) = self.waiting.pop_front() {
                self.hold(next);
                if let Some(waker) = self.wakers.remove(&next) {
                    waker.wake();
                }
            }
        }
    }
}

impl Turns {
    /// Whether it is this one's turn; if not, it is woken when it is.
    pub fn take(&self, id: u64, cx: &Context<'_>) -> bool {
        let mut line = locked(&self.line);
        if line.holder.is_none() || line.holder == Some(id) {
            line.hold(id);
            return true;
        }
        if line.wakers.insert(id, cx.waker().clone()).is_none() {
            line.waiting.push_back(id);
            if line.waiting.len() == 1 {
                self.contended.notify_one();
            }
        }
        false
    }

    /// The connection has no room for whose turn it is, and wakes it when it has.
    pub fn sleeps(&self, id: u64) {
        let mut line = locked(&self.line);
        if line.holder == Some(id) {
            line.asleep = true;
        }
    }

    /// Leaves the line, or gives the turn to the next in it.
    pub fn give(&self, id: u64) {
        locked(&self.line).give(id);
    }

    /// For as long as `tick`, takes turns from who does not use them; at its end also from one that waits for the
    /// connection since before: it may have come to the end of what its own reader lets come.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn tend(&self, tick: Duration) {
        let (end, before) = (Instant::now() + tick, locked(&self.line).taken);
        while Instant::now() < end {
            tokio::select! {
                () = sleep_until(end) => break,
                () = self.contended.notified() => {}
            }
            // Nothing is counted or timed while streams write: only who waits has this look, and as long as it waits.
            let mut seen = locked(&self.line).taken;
            loop {
                sleep(IDLE).await;
                let mut line = locked(&self.line);
                if line.waiting.is_empty() {
                    break;
                }
                if seen == line.taken
                    && !line.asleep
                    && let Some(holder) = line.holder
                {
                    line.give(holder);
                }
                seen = line.taken;
                if end <= Instant::now() {
                    self.contended.notify_one(); // somebody waits still
                    break;
                }
            }
        }
        let mut line = locked(&self.line);
        if let Some(holder) = line.holder.filter(|_| before == line.taken) {
            line.give(holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    const TICK: Duration = Duration::from_secs(1);

    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Takes for one whose wake-ups are counted.
    fn take(turns: &Turns, id: u64) -> (bool, Arc<Woken>) {
        let woken = Arc::<Woken>::default();
        (turns.take(id, &Context::from_waker(&Waker::from(woken.clone()))), woken)
    }

    fn holder(turns: &Turns) -> Option<u64> {
        locked(&turns.line).holder
    }

    /// How long it takes, in virtual time, until the turn is another's.
    async fn passed_on(turns: &Turns, from: u64) -> Duration {
        let begin = Instant::now();
        let look = async {
            while holder(turns) == Some(from) {
                sleep(Duration::from_millis(1)).await;
            }
            begin.elapsed()
        };
        let tend = async {
            loop {
                turns.tend(TICK).await;
            }
        };
        tokio::select! { after = look => after, () = tend => unreachable!("it never ends") }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_lies_unused_is_given_to_who_waits() {
        let turns = Turns::default();
        assert!(take(&turns, 1).0, "nobody has it");
        let (got, woken) = take(&turns, 2);
        assert!(!got);
        let after = passed_on(&turns, 1).await;
        assert!(after <= 3 * IDLE, "{after:?}");
        assert_eq!((holder(&turns), woken.0.load(Ordering::SeqCst)), (Some(2), 1));
        // Nor does one keep it who was woken for it and does something else by now.
        let (_, woken) = take(&turns, 1);
        let after = passed_on(&turns, 2).await;
        assert!(after <= 3 * IDLE, "{after:?}");
        assert_eq!((holder(&turns), woken.0.load(Ordering::SeqCst)), (Some(1), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_connection_keeps_its_turn_for_a_tick() {
        let turns = Turns::default();
        take(&turns, 1);
        turns.sleeps(1);
        take(&turns, 2);
        let after = passed_on(&turns, 1).await;
        assert!((TICK..=2 * TICK + 2 * IDLE).contains(&after), "{after:?}");
        // Whoever is not the holder sleeps for nobody.
        turns.sleeps(1);
        take(&turns, 1);
        let after = passed_on(&turns, 2).await;
        assert!(after <= 3 * IDLE, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_on_writing_keeps_its_turn() {
        let turns = Turns::default();
        take(&turns, 1);
        take(&turns, 2);
        let writes = async {
            for _ in 0..500 {
                assert!(take(&turns, 1).0, "it is still its turn");
                sleep(IDLE / 4).await;
            }
        };
        let tend = async {
            loop {
                turns.tend(TICK).await;
            }
        };
        tokio::select! { () = writes => {}, () = tend => unreachable!("it never ends") }
        turns.give(1);
        assert_eq!(holder(&turns), Some(2));
        turns.give(2);
        assert_eq!(holder(&turns), None);
        assert!(turns.take(3, &Context::from_waker(Waker::noop())));
    }
}
