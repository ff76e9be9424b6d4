//! How slowly the body of a request may come. Who sends a byte now and then holds a stream, a buffer and a request at the API
//! server for as long as they like.

use crate::{Body, BodyError};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use prometheus::IntCounter;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// The least of a body that has to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// So many bytes, at least,
    pub bytes: u64,
    /// in each such time in which nobody but the client was waited for.
    pub over: Duration,
}

impl Default for Pace {
    /// 100 bytes a second, over 30 s: the slowest modem was three times as fast.
    fn default() -> Self {
        Self { bytes: 3_000, over: Duration::from_secs(30) }
    }
}

/// So late something that has come may be looked at, and its time still counts: later than that nobody knows when it came.
const LATE: Duration = Duration::from_secs(1);

/// A client was slower than that.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the client sent fewer than {} bytes of a body in {:?}", .0.bytes, .0.over)]
pub(crate) struct TooSlow(Pace);

impl TooSlow {
    /// Whether this is why a body failed.
    pub(crate) fn is(error: &BodyError) -> bool {
        matches!(error, BodyError::Source(source) if source.is::<Self>())
    }
}

/// A body that fails with [`TooSlow`] once it does not keep its pace.
///
/// Time counts from when there was nothing at hand for who asked until there is something. While nobody asks, as the cluster
/// takes no more, none passes.
pub(crate) struct Paced {
    body: Body,
    pace: Pace,
    slow: IntCounter,
    /// Since the last look at it: bytes that came, and time that was waited for them,
    bytes: u64,
    waited: Duration,
    /// without that since this moment.
    since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
    failed: bool,
}

impl Paced {
    pub(crate) fn wrap(body: Body, pace: Pace, slow: IntCounter) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let (bytes, waited) = (0, Duration::ZERO);
        Body::new(Self { body, pace, slow, bytes, waited, since: None, alarm: None, failed: false })
    }

    fn came(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        if self.pace.over + LATE < self.waited {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
    }

    /// There is nothing at hand: ready once that is the client's fault for too long.
    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let since = *self.since.get_or_insert_with(Instant::now);
            let due = since + self.pace.over.saturating_sub(self.waited);
            if Instant::now() < due {
                let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
                // It may be set for sooner, from before a pause of the cluster's: then it is set anew when it has rung.
                std::task::ready!(alarm.as_mut().poll(cx));
                alarm.as_mut().reset(due);
                continue;
            }
            // Nobody looked for a while, as after a machine was suspended: what has come meanwhile may not be at hand yet.
            let late = due + LATE < Instant::now();
            if !late && self.bytes < self.pace.bytes {
                return Poll::Ready(());
            }
            (self.bytes, self.waited, self.since) = (0, Duration::ZERO, None);
        }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if !this.failed {
            if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
                let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
                this.came(data.map_or(0, Bytes::len));
                return Poll::Ready(frame);
            }
            std::task::ready!(this.poll_slow(cx));
            this.slow.inc();
            this.failed = true;
        }
        Poll::Ready(Some(Err(BodyError::Source(TooSlow(this.pace).into()))))
    }
    fn is_end_stream(&self) -> bool {
        !self.failed && self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body;
    use futures_util::{FutureExt, stream};
    use http_body_util::{BodyExt, StreamBody};

    const PACE: Pace = Pace { bytes: 100, over: Duration::from_secs(10) };

    /// Each piece that long after it is asked for.
    fn paced(pieces: impl IntoIterator<Item = (u64, usize), IntoIter: Send + 'static>) -> (Body, IntCounter) {
        let slow = IntCounter::new("slow", "slow").unwrap();
        let pieces = stream::unfold(pieces.into_iter(), |mut pieces| async move {
            let (after, len) = pieces.next()?;
            if 0 < after {
                tokio::time::sleep(Duration::from_millis(after)).await;
            }
            Some((Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; len]))), pieces))
        });
        (Paced::wrap(body::from(StreamBody::new(pieces)), PACE, slow.clone()), slow)
    }

    /// Reads on, with a pause after each piece; how much there was, and whether it ended as it should.
    async fn read(mut body: Body, pause: Duration) -> (usize, bool) {
        let mut sum = 0;
        loop {
            match body.frame().await {
                None => return (sum, true),
                Some(Ok(frame)) => sum += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(error)) => {
                    assert!(TooSlow::is(&error), "{error}");
                    let again = body.frame().await.unwrap().unwrap_err();
                    assert!(TooSlow::is(&again), "what was cut short never looks whole");
                    return (sum, false);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_or_trickles_is_cut_off_and_who_is_slow_is_not() {
        let none = Duration::ZERO;
        for (pieces, want) in [
            (vec![(1_000_000, 1)], (0, false)),
            (vec![(7, 5_000), (1_000_000, 1)], (5_000, false)), // a good start buys nothing for later
            (vec![(1_000, 9); 100], (90, false)),
            (vec![(1_000, 11); 100], (1_100, true)),
            (vec![(9_999, 100); 9], (900, true)),
            (vec![(101, 1); 1_000], (99, false)),
        ] {
            let began = Instant::now();
            let (body, slow) = paced(pieces.clone());
            assert_eq!(read(body, none).await, want, "{pieces:?}");
            assert_eq!(slow.get(), u64::from(!want.1));
            assert!(want.1 || began.elapsed() < 2 * PACE.over + Duration::from_secs(1), "{:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_asks_no_time_passes() {
        let minute = Duration::from_secs(60);
        // At hand at once, and taken slowly.
        let (body, _) = paced(vec![(0, 1); 50]);
        assert_eq!(read(body, minute).await, (50, true));
        // Waited for a little, and taken slowly: only the waiting counts.
        let (body, _) = paced(vec![(900, 10); 50]);
        assert_eq!(read(body, minute).await, (500, true));
        let (body, _) = paced(vec![(1_100, 10); 50]);
        assert_eq!(read(body, minute).await, (90, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_at_hand_when_somebody_comes_late_to_look_is_no_fault() {
        let (mut body, slow) = paced(vec![(5_000, 1), (5_000, 200), (0, 0)]);
        for _ in 0..2 {
            // Asked for once, and then left alone for longer than it may take.
            assert!(body.frame().now_or_never().is_none());
            tokio::time::sleep(6 * PACE.over).await;
            assert!(matches!(body.frame().now_or_never(), Some(Some(Ok(_)))));
        }
        assert_eq!(slow.get(), 0);
    }
}
