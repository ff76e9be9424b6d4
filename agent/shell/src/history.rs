//! What a shell has shown, as far back as a client that comes back may have missed it.

use crate::limits;
use std::collections::VecDeque;

/// The end of what was shown, and how much of it was sent.
#[derive(Debug, Default)]
pub(crate) struct History {
    kept: VecDeque<u8>,
    /// Bytes shown since the shell began, kept or not.
    shown: u64,
    /// As many of them were handed to a client's connection.
    sent: u64,
}

impl History {
    /// The terminal showed these.
    pub fn push(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let surplus = self.kept.len().saturating_sub(limits::HISTORY);
        self.kept.drain(..surplus);
        self.shown += bytes.len() as u64;
    }

    /// Everything shown so far is on its way to a client.
    pub fn was_sent(&mut self) {
        self.sent = self.shown;
    }

    /// Whether so much waits for a client that the shell has to wait too. The other half of what is kept is for what was on
    /// its way when the connection broke.
    pub fn is_full(&self) -> bool {
        limits::HISTORY as u64 / 2 <= self.shown - self.sent
    }

    /// What a client that was shown the first `seen` bytes is to be shown next, and the place where that begins: later than
    /// `seen` where so much is not kept any more. `None`: it does not say how much it was shown.
    pub fn after(&self, seen: Option<u64>) -> (u64, Vec<u8>) {
        let first = self.shown - self.kept.len() as u64;
        let from = seen.unwrap_or(self.sent).clamp(first, self.shown);
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        (from, self.kept.iter().skip(skip).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_has_not_seen_is_shown_again_and_nothing_else() {
        let mut history = History::default();
        assert_eq!(history.after(Some(0)), (0, vec![]));
        history.push(b"hello ");
        history.was_sent();
        history.push(b"world");
        assert_eq!(history.after(Some(3)), (3, b"lo world".to_vec()), "what was on its way is sent again");
        assert_eq!(history.after(Some(11)), (11, vec![]));
        assert_eq!(history.after(None), (6, b"world".to_vec()));
        assert_eq!(history.after(Some(99)), (11, vec![]), "nobody has seen what was not shown");
    }

    #[test]
    fn what_is_kept_has_a_bound_and_what_is_lost_is_told() {
        let mut history = History::default();
        let more = vec![b'x'; limits::HISTORY];
        history.push(b"first");
        history.was_sent();
        assert!(!history.is_full());
        history.push(&more[..limits::HISTORY / 2]);
        assert!(history.is_full());
        assert_eq!(history.after(Some(0)).0, 0);
        history.push(&more);
        let (from, bytes) = history.after(Some(0));
        assert_eq!((from, bytes.len()), (5 + limits::HISTORY as u64 / 2, limits::HISTORY));
        history.was_sent();
        assert!(!history.is_full());
    }
}
