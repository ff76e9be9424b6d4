//! A watch of a cluster's objects: no more of them is taken than is named, and after each error that is told of they are
//! listed anew.

use crate::{TooMuch, keeper::pause, limits};
use futures_util::{
    StreamExt,
    stream::{BoxStream, unfold},
};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt::Debug,
    hash::BuildHasher,
};
use tokio::time::{Instant, sleep};

type Event<K> = Result<watcher::Event<K>, watcher::Error>;

/// Follows the objects of a kind of a cluster's, for ever.
///
/// A watch that kube-rs goes on with by itself is silent until something changes: whoever was told that it failed would
/// not hear that it goes on. So an error is told only where all begins anew after it, and ends with the listing. That is at
/// once where going on is of no use, and at the [`limits::WATCH_ERRORS`]th error in a row of those where it may be.
/// The pauses before listings are those of here: kube-rs begins with its first one again after all that is no error, and
/// the beginning of a listing is none.
///
/// `bytes`: how much JSON the objects may have together, such as [`limits::HELD`]; `None` is for who keeps nothing of an
/// object but a few numbers, and bounds their count.
pub fn watching<K>(api: Api<K>, config: watcher::Config, bytes: Option<usize>) -> BoxStream<'static, Event<K>>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug + Send + 'static,
{
    let held = Held::default();
    let watch = Watch { api, config, bytes, events: None, listed: None, errors: 0, failures: 0, held };
    unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((event, watch))
    })
    .boxed()
}

struct Watch<K: 'static> {
    api: Api<K>,
    config: watcher::Config,
    /// `None`: they are not counted.
    bytes: Option<usize>,
    /// `None`: it begins anew.
    events: Option<BoxStream<'static, Event<K>>>,
    /// When the listing was complete: before that nothing has recovered, however long it takes.
    listed: Option<Instant>,
    /// In a row, and not told.
    errors: u32,
    /// In a row, and told: so often it began anew.
    failures: u32,
    held: Held,
}

/// Whether kube-rs may come further by going on where it was. Not where something was not taken, or not understood: it
/// would be left out, or come again. And what has changed since a revision that is too old, a listing alone says.
fn goes_on(error: &watcher::Error) -> bool {
    let may = match error {
        watcher::Error::WatchStartFailed(_) | watcher::Error::WatchFailed(kube::Error::ReadEvents(_)) => true,
        watcher::Error::WatchError(status) => status.code != 410,
        _ => false,
    };
    may && TooMuch::within(error).is_none()
}

impl<K> Watch<K>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug + Send + 'static,
{
    async fn next(&mut self) -> Option<Event<K>> {
        loop {
            let events = match &mut self.events {
                Some(events) => events,
                None => {
                    if let Some(before) = self.failures.checked_sub(1) {
                        sleep(pause(before)).await;
                    }
                    self.events.insert(watcher(self.api.clone(), self.config.clone()).default_backoff().boxed())
                }
            };
            let event = events.next().await?.and_then(|event| match self.held.take(&event, self.bytes) {
                Ok(()) => Ok(event),
                Err(many) => Err(watcher::Error::WatchFailed(kube::Error::Service(Box::new(many)))),
            });
            match &event {
                Ok(event) => {
                    self.errors = 0;
                    if matches!(event, watcher::Event::InitDone) {
                        self.listed = Some(Instant::now());
                    }
                }
                Err(error) if goes_on(error) && self.errors + 1 < limits::WATCH_ERRORS => {
                    self.errors += 1;
                    tracing::debug!("a watch goes on after: {error}");
                    continue;
                }
                Err(_) => {
                    let recovered = self.listed.is_some_and(|at| limits::RECOVERED < at.elapsed());
                    self.failures = if recovered { 1 } else { self.failures.saturating_add(1) };
                    (self.events, self.listed, self.errors, self.held) = (None, None, 0, Held::default());
                }
            }
            return Some(event);
        }
    }
}

/// How much a watch has told of that is still there.
#[derive(Default)]
struct Held {
    names: RandomState,
    /// By what their names come to: the sizes of all objects.
    sizes: HashMap<u64, usize>,
    bytes: usize,
}

impl Held {
    /// `most`: bytes of all objects; `None`: they are not counted.
    fn take<K: Resource + Serialize>(&mut self, event: &watcher::Event<K>, most: Option<usize>) -> Result<(), TooMuch> {
        let of = |object: &K| self.names.hash_one((object.namespace(), object.name_any()));
        match event {
            watcher::Event::Init => {
                self.sizes.clear();
                self.bytes = 0;
            }
            watcher::Event::InitDone => {}
            watcher::Event::Delete(object) => self.bytes -= self.sizes.remove(&of(object)).unwrap_or(0),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                let size = most.map_or(0, |_| serde_json::to_vec(object).map_or(0, |text| text.len()));
                let before = self.sizes.insert(of(object), size).unwrap_or(0);
                self.bytes = self.bytes - before + size;
            }
        }
        let many = limits::OBJECTS < self.sizes.len() || most.is_some_and(|most| most < self.bytes);
        if many { Err(TooMuch::Many) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Backend, BoxError,
        testing::{self, answer, clusters_that, failure, is_watch, listed},
    };
    use futures_util::FutureExt;
    use http::StatusCode;
    use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
    use serde_json::json;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    /// How long a cluster takes for a page: for all that are taken it takes longer than [`limits::RECOVERED`].
    const SLOW: Duration = Duration::from_secs(2);

    /// A cluster whose nodes have no end, page by page.
    fn endless() -> Arc<dyn Backend> {
        let pages = AtomicUsize::default();
        clusters_that(move |_| {
            let page = pages.fetch_add(1, Ordering::Relaxed);
            let items: Vec<_> = (0..500).map(|n| json!({ "metadata": { "name": format!("{page}-{n}") } })).collect();
            let list = json!({ "apiVersion": "v1", "kind": "NodeList", "items": items,
                "metadata": { "resourceVersion": "1", "continue": "more" } });
            async move {
                sleep(SLOW).await;
                answer(StatusCode::OK, &list).await
            }
            .boxed()
        })
    }

    /// How often a cluster was asked.
    #[derive(Default)]
    struct Asked {
        lists: AtomicUsize,
        watches: AtomicUsize,
    }

    /// A cluster that lists its nodes, of which there are none, and lets nobody watch them.
    fn unwatched(asked: &Arc<Asked>) -> Arc<dyn Backend> {
        let asked = Arc::clone(asked);
        clusters_that(move |request| {
            if is_watch(&request) {
                asked.watches.fetch_add(1, Ordering::Relaxed);
                return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
            }
            asked.lists.fetch_add(1, Ordering::Relaxed);
            listed(&request, &json!([]))
        })
    }

    fn nodes(backend: &Arc<dyn Backend>) -> Api<DynamicObject> {
        Api::all_with(testing::client(backend), &kind())
    }

    /// Whether it has begun anew after as long as after so many failures in a row.
    fn paused(begun: Instant, failures: u32) -> bool {
        let most = failures.checked_sub(1).map_or(Duration::ZERO, |before| limits::RESTART_FIRST * (1_u32 << before));
        (most / 2..=most + most / 10).contains(&begun.elapsed())
    }

    fn kind() -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Node"), "nodes")
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_without_end_is_taken_to_its_bound_and_begun_anew_after_pauses_that_grow_however_long_it_takes() {
        let backend = endless();
        let mut events = watching(nodes(&backend), watcher::Config::default(), Some(limits::HELD));
        let mut begun = Instant::now();
        for failures in 0..3 {
            assert!(matches!(events.next().await, Some(Ok(watcher::Event::Init))));
            assert!(paused(begun, failures), "{:?} after {failures}", begun.elapsed());
            let (mut taken, listing) = (0, Instant::now());
            let error = loop {
                match events.next().await.unwrap() {
                    Ok(event) => taken += usize::from(matches!(event, watcher::Event::InitApply(_))),
                    Err(error) => break error,
                }
            };
            assert_eq!((taken, TooMuch::within(&error)), (limits::OBJECTS, Some(TooMuch::Many)));
            assert!(error.to_string().contains("more than 50000 objects of a kind, or 256 MiB"), "{error}");
            assert!(limits::RECOVERED < listing.elapsed(), "{:?}", listing.elapsed());
            begun = Instant::now();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_goes_on_and_after_some_errors_in_a_row_is_told_and_begun_anew_after_pauses_that_grow() {
        let asked = Arc::<Asked>::default();
        let backend = unwatched(&asked);
        let mut events = watching(nodes(&backend), watcher::Config::default(), None);
        let mut begun = Instant::now();
        for failures in 0..4 {
            assert!(matches!(events.next().await, Some(Ok(watcher::Event::Init))));
            assert!(paused(begun, failures), "{:?} after {failures}", begun.elapsed());
            assert!(matches!(events.next().await, Some(Ok(watcher::Event::InitDone))));
            assert!(matches!(events.next().await, Some(Err(watcher::Error::WatchStartFailed(_)))));
            let (lists, watches) = (asked.lists.load(Ordering::Relaxed), asked.watches.load(Ordering::Relaxed));
            let times = failures as usize + 1;
            assert_eq!((lists, watches), (times, times * limits::WATCH_ERRORS as usize));
            begun = Instant::now();
        }
    }

    #[test]
    fn what_was_not_taken_or_not_understood_or_is_too_old_is_listed_anew_at_once() {
        let status = |code| kube::core::Status::failure("no", "").with_code(code).boxed();
        let read = |error: BoxError| watcher::Error::WatchFailed(kube::Error::ReadEvents(std::io::Error::other(error)));
        assert!(goes_on(&read("cut".into())));
        assert!(goes_on(&watcher::Error::WatchError(status(500))));
        assert!(goes_on(&watcher::Error::WatchStartFailed(kube::Error::Api(status(503)))));
        let broken = serde_json::from_str::<u8>("x").unwrap_err();
        for error in [
            read(TooMuch::Line.into()),
            watcher::Error::WatchStartFailed(kube::Error::Service(TooMuch::Refusal.into())),
            watcher::Error::WatchFailed(kube::Error::SerdeError(broken)),
            watcher::Error::WatchError(status(410)),
            watcher::Error::InitialListFailed(kube::Error::Api(status(503))),
            watcher::Error::NoResourceVersion,
        ] {
            assert!(!goes_on(&error), "{error}");
        }
    }

    #[test]
    fn what_is_there_is_counted_and_what_is_gone_is_not() {
        let object = |name: &str, size: usize| {
            let mut object = DynamicObject::new(name, &kind());
            object.data = json!({ "x": "x".repeat(size) });
            object
        };
        // Small ones do: what is counted is the same.
        let most: usize = 1 << 20;
        let (mut held, half, most) = (Held::default(), most / 2, Some(most));
        assert_eq!(held.take(&watcher::Event::Apply(object("a", half)), most), Ok(()));
        assert_eq!(held.take(&watcher::Event::Apply(object("a", half)), most), Ok(()), "it is the same one");
        assert_eq!(held.take(&watcher::Event::Delete(object("b", 0)), most), Ok(()), "nobody knew it");
        assert_eq!(held.take(&watcher::Event::Delete(object("a", 0)), most), Ok(()));
        assert_eq!((held.bytes, held.sizes.len()), (0, 0));
        assert_eq!(held.take(&watcher::Event::InitApply(object("a", half)), most), Ok(()));
        assert_eq!(held.take(&watcher::Event::InitApply(object("b", half)), most), Err(TooMuch::Many));
        assert_eq!(held.take::<DynamicObject>(&watcher::Event::Init, most), Ok(()));
        assert_eq!((held.bytes, held.sizes.len()), (0, 0));
    }

    #[test]
    fn of_who_keeps_no_objects_their_bytes_are_not_counted_and_they_are() {
        let node = |n: usize| watcher::Event::InitApply(DynamicObject::new(&n.to_string(), &kind()));
        let mut held = Held::default();
        assert!((0..limits::OBJECTS).all(|n| held.take(&node(n), None).is_ok()));
        assert_eq!((held.bytes, held.sizes.len()), (0, limits::OBJECTS));
        assert_eq!(held.take(&node(limits::OBJECTS), None), Err(TooMuch::Many));
    }
}
