//! How much of a cluster's answers is taken: a cluster may be in other hands, and what a plugin holds is in the hub's memory.

use crate::{Body, BoxError, limits};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use kube::ResourceExt;
use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A cluster says more than is taken of it, and what to do about that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// An answer that is no watch.
    #[error(
        "the cluster's answer is larger than {} MiB: ask for it in pages (`limit`), or see what answers as its API server",
        limits::ANSWER_SIZE >> 20
    )]
    Answer,
    /// An error.
    #[error(
        "the cluster's error is larger than {} KiB, which none is: see what answers as its API server",
        limits::REFUSAL >> 10
    )]
    Refusal,
    /// One event of a watch.
    #[error(
        "a line of the cluster's watch is longer than {} MiB, which no object is: see what answers as its API server",
        limits::WATCH_LINE >> 20
    )]
    Line,
    /// A name of an object, or of its namespace.
    #[error(
        "the cluster names an object in more than {} letters, which is not taken: see who made it, or what answers as its API server",
        limits::NAME
    )]
    Name,
    /// All objects of a kind.
    #[error(
        "the cluster lists more than {} objects of a kind, or {} MiB of them: see who made them, or what answers as its API server",
        limits::OBJECTS,
        limits::HELD >> 20
    )]
    Many,
}

impl TooMuch {
    /// Whether an error came of one, however deep: asking again gets the same answer.
    #[must_use]
    pub fn within(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(*found);
            }
            // `io::Error::source` leaves out what it wraps itself.
            let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            next = match wrapped {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        None
    }
}

/// The name of an object of a cluster's.
///
/// # Errors
/// It is longer than [`limits::NAME`], or its namespace's is.
pub fn name_of(object: &impl ResourceExt) -> Result<String, TooMuch> {
    let name = object.name_any();
    let longest = name.len().max(object.meta().namespace.as_ref().map_or(0, String::len));
    if limits::NAME < longest { Err(TooMuch::Name) } else { Ok(name) }
}

/// What is counted of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// All of it.
    Whole,
    /// All of an error.
    Refusal,
    /// Each line by itself: a watch has no end.
    Lines,
}

impl Counted {
    /// How much is counted after `piece`, and the bound if that broke it.
    fn add(self, before: usize, piece: &[u8]) -> Result<usize, TooMuch> {
        match self {
            Self::Whole if limits::ANSWER_SIZE < before + piece.len() => Err(TooMuch::Answer),
            Self::Refusal if limits::REFUSAL < before + piece.len() => Err(TooMuch::Refusal),
            Self::Whole | Self::Refusal => Ok(before + piece.len()),
            Self::Lines => {
                let (mut now, mut first) = (before, true);
                for line in piece.split(|byte| *byte == b'\n') {
                    now = if first { before + line.len() } else { line.len() };
                    first = false;
                    if limits::WATCH_LINE < now {
                        return Err(TooMuch::Line);
                    }
                }
                Ok(now)
            }
        }
    }
}

/// A body that ends with [`TooMuch`] where its bound is broken.
struct Bounded {
    /// `None`: it has broken its bound, and the connection is let go.
    inner: Option<Body>,
    counted: Counted,
    so_far: usize,
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) else {
            return Poll::Ready(frame);
        };
        match self.counted.add(self.so_far, data.map_or(&[], |data| data)) {
            Ok(so_far) => {
                self.so_far = so_far;
                Poll::Ready(frame)
            }
            Err(broken) => {
                self.inner = None;
                Poll::Ready(Some(Err(broken.into())))
            }
        }
    }
}

/// `body`, of which no more is taken than is counted.
pub(crate) fn bounded(body: Body, counted: Counted) -> Body {
    Bounded { inner: Some(body), counted, so_far: 0 }.boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Backend,
        testing::{self, clusters_that, is_watch, listed},
    };
    use futures_util::{FutureExt, StreamExt, pin_mut, stream};
    use http::Response;
    use http_body_util::StreamBody;
    use kube::{
        Api,
        api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
        runtime::watcher,
    };
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    /// The nodes of a cluster that says of them what it is told to: pieces of `piece`, as many as anybody takes. `code` is what
    /// it says to a watch.
    fn nodes(
        code: u16,
        head: &'static str,
        piece: &'static [u8],
    ) -> (Api<DynamicObject>, Arc<dyn Backend>, Arc<AtomicUsize>) {
        let taken = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&taken);
        let backend = clusters_that(move |request| {
            if !is_watch(&request) && head.is_empty() {
                return listed(&request, &json!([]));
            }
            let counted = Arc::clone(&counted);
            let rest = stream::repeat(Bytes::from_static(piece)).inspect(move |piece| {
                counted.fetch_add(piece.len(), Ordering::Relaxed);
            });
            let pieces = stream::iter([Bytes::from_static(head.as_bytes())]).chain(rest);
            let mut answer = Response::new(StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync());
            if is_watch(&request) {
                *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
            }
            async { Ok(answer) }.boxed()
        });
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Node"), "nodes");
        (Api::all_with(testing::client(&backend), &kind), backend, taken)
    }

    const PIECE: &[u8] = &[b'x'; 1 << 20];

    #[tokio::test]
    async fn an_answer_without_end_is_taken_to_its_bound_and_the_error_says_what_to_do() {
        let (api, _backend, taken) =
            nodes(200, r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"continue":""#, PIECE);
        let error = api.list(&ListParams::default()).await.unwrap_err();
        assert_eq!(TooMuch::within(&error), Some(TooMuch::Answer), "{error}");
        assert!(error.to_string().contains("64 MiB: ask for it in pages"), "{error}");
        let taken = taken.load(Ordering::Relaxed);
        assert!((limits::ANSWER_SIZE..=limits::ANSWER_SIZE + PIECE.len()).contains(&taken), "{taken}");
    }

    #[tokio::test]
    async fn a_line_of_a_watch_without_end_is_taken_to_its_bound_and_the_error_says_what_to_do() {
        let (error, taken) = watched(200).await;
        assert_eq!(TooMuch::within(&error), Some(TooMuch::Line), "{error}");
        assert!(error.to_string().contains("longer than 4 MiB"), "{error}");
        assert!((limits::WATCH_LINE..=limits::WATCH_LINE + PIECE.len()).contains(&taken), "{taken}");
    }

    #[tokio::test]
    async fn a_watch_that_is_refused_without_end_is_taken_to_its_bound_too() {
        for code in [403, 500] {
            let (error, taken) = watched(code).await;
            assert_eq!(TooMuch::within(&error), Some(TooMuch::Refusal), "{error}");
            assert!(error.to_string().contains("larger than 64 KiB"), "{error}");
            assert!(taken <= limits::REFUSAL + PIECE.len(), "{taken}");
        }
    }

    /// The first error of a watch that is answered so, and how much of that was taken.
    async fn watched(code: u16) -> (watcher::Error, usize) {
        let (api, _backend, taken) = nodes(code, "", PIECE);
        let events = watcher(api, watcher::Config::default());
        pin_mut!(events);
        let error = loop {
            match events.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        (error, taken.load(Ordering::Relaxed))
    }

    #[test]
    fn a_watch_may_go_on_for_ever_line_by_line() {
        let line = [vec![b'x'; limits::WATCH_LINE], vec![b'\n']].concat();
        let mut so_far = 0;
        for _ in 0..3 {
            for half in line.chunks(limits::WATCH_LINE / 2) {
                so_far = Counted::Lines.add(so_far, half).unwrap();
            }
        }
        assert_eq!(Counted::Lines.add(1, &line), Err(TooMuch::Line));
        assert_eq!(Counted::Whole.add(limits::ANSWER_SIZE - 1, b"x"), Ok(limits::ANSWER_SIZE));
        assert_eq!(Counted::Whole.add(limits::ANSWER_SIZE, b"x"), Err(TooMuch::Answer));
    }

    proptest! {
        /// However a watch is cut into frames, the same is counted.
        #[test]
        fn a_line_is_as_long_as_it_is_however_it_is_cut(text in "[a\n]{0,40}", cuts in prop::collection::vec(1usize..9, 1..20)) {
            let (mut rest, mut so_far) = (text.as_bytes(), 0);
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                so_far = Counted::Lines.add(so_far, piece).unwrap();
                rest = after;
            }
            so_far = Counted::Lines.add(so_far, rest).unwrap();
            prop_assert_eq!(so_far, text.rsplit('\n').next().unwrap().len());
        }
    }

    #[test]
    fn a_name_is_as_long_as_the_hubs_own_and_no_longer_than_its_bound() {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Node"));
        let named = |letters: usize| DynamicObject::new(&"n".repeat(letters), &kind);
        assert!(name_of(&named("moorline-member:".len() + 253)).is_ok(), "that of a role of the hub's own");
        assert_eq!(name_of(&named(limits::NAME)).map(|name| name.len()), Ok(limits::NAME));
        assert_eq!(name_of(&named(limits::NAME + 1)), Err(TooMuch::Name));
        assert_eq!(name_of(&named(1).within(&"n".repeat(limits::NAME + 1))), Err(TooMuch::Name));
    }
}
