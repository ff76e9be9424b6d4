//! What is done for the newest wish alone, by a thread that may be kept waiting.

use tokio::{runtime::Handle, sync::watch};

/// Does `it` for what is wished, again when that has changed, until nobody can wish any more. What was wished while `it`
/// was being done counts once, as it is by then.
pub(super) fn each<T: Copy>(runtime: &Handle, mut wishes: watch::Receiver<T>, mut it: impl FnMut(T)) {
    while runtime.block_on(wishes.changed()).is_ok() {
        let wish = *wishes.borrow_and_update();
        it(wish);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread, time::Duration};

    #[tokio::test]
    async fn who_wishes_never_waits_and_the_newest_wish_is_done() {
        let (wish, wishes) = watch::channel(0);
        let (begin, begun) = mpsc::channel();
        let (go_on, waits) = mpsc::channel::<()>();
        let runtime = Handle::current();
        let doing = thread::spawn(move || {
            each(&runtime, wishes, |wish| {
                begin.send(wish).unwrap();
                let _ = waits.recv(); // until it may go on
            });
        });
        let begun = || begun.recv_timeout(Duration::from_secs(20)).unwrap();
        wish.send_replace(1);
        assert_eq!(begun(), 1);
        for n in 2..=1000 {
            wish.send_replace(n); // it still does the first
        }
        go_on.send(()).unwrap();
        assert_eq!(begun(), 1000);
        drop((wish, go_on));
        doing.join().unwrap();
    }
}
