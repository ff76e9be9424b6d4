//! A watch of a cluster's objects: no more of them is taken than is named, and after an error they are listed anew.

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
/// A watch that kube-rs goes on with by itself is silent until something changes, and one of which a part was not taken
/// goes on before that part, again and again. So each that fails begins anew after a pause, with all that is there.
pub fn watching<K>(api: Api<K>, config: watcher::Config) -> BoxStream<'static, Event<K>>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug + Send + 'static,
{
    let watch = Watch { api, config, events: None, begun: Instant::now(), failures: 0, held: Held::default() };
    unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((event, watch))
    })
    .boxed()
}

struct Watch<K: 'static> {
    api: Api<K>,
    config: watcher::Config,
    /// `None`: it begins anew.
    events: Option<BoxStream<'static, Event<K>>>,
    begun: Instant,
    /// In a row.
    failures: u32,
    held: Held,
}

impl<K> Watch<K>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug + Send + 'static,
{
    async fn next(&mut self) -> Option<Event<K>> {
        let events = match &mut self.events {
            Some(events) => events,
            None => {
                if let Some(before) = self.failures.checked_sub(1) {
                    sleep(pause(before)).await;
                }
                self.begun = Instant::now();
                self.events.insert(watcher(self.api.clone(), self.config.clone()).default_backoff().boxed())
            }
        };
        let event = events.next().await?.and_then(|event| match self.held.take(&event) {
            Ok(()) => Ok(event),
            Err(many) => Err(watcher::Error::WatchFailed(kube::Error::Service(Box::new(many)))),
        });
        // After a listing that failed kube-rs pauses and lists by itself.
        if matches!(&event, Err(error) if !matches!(error, watcher::Error::InitialListFailed(_))) {
            self.failures = if limits::RECOVERED < self.begun.elapsed() { 1 } else { self.failures.saturating_add(1) };
            (self.events, self.held) = (None, Held::default());
        }
        Some(event)
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
    fn take<K: Resource + Serialize>(&mut self, event: &watcher::Event<K>) -> Result<(), TooMuch> {
        let of = |object: &K| self.names.hash_one((object.namespace(), object.name_any()));
        match event {
            watcher::Event::Init => {
                self.sizes.clear();
                self.bytes = 0;
            }
            watcher::Event::InitDone => {}
            watcher::Event::Delete(object) => self.bytes -= self.sizes.remove(&of(object)).unwrap_or(0),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                let size = serde_json::to_vec(object).map_or(0, |text| text.len());
                let before = self.sizes.insert(of(object), size).unwrap_or(0);
                self.bytes = self.bytes - before + size;
            }
        }
        if limits::OBJECTS < self.sizes.len() || limits::HELD < self.bytes { Err(TooMuch::Many) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Backend, Body, BoxError,
        client::{Target, Wire},
    };
    use bytes::Bytes;
    use futures_util::{FutureExt, future::BoxFuture};
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
    use serde_json::json;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    /// A cluster whose nodes have no end, page by page.
    #[derive(Default)]
    struct Pages(AtomicUsize);
    impl Backend for Pages {
        fn hub(&self, _: &'static str, _: Request<Bytes>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            async { Err("nobody asks".into()) }.boxed()
        }
        fn cluster(
            &self,
            _: &'static str,
            _: &str,
            _: Request<Bytes>,
        ) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let page = self.0.fetch_add(1, Ordering::Relaxed);
            let items: Vec<_> = (0..500).map(|n| json!({ "metadata": { "name": format!("{page}-{n}") } })).collect();
            let list = json!({ "apiVersion": "v1", "kind": "NodeList", "items": items,
                "metadata": { "resourceVersion": "1", "continue": "more" } });
            let body = Full::new(Bytes::from(list.to_string())).map_err(BoxError::from).boxed_unsync();
            async { Ok(Response::new(body)) }.boxed()
        }
    }

    fn kind() -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Node"), "nodes")
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_without_end_is_taken_to_its_bound_and_begun_anew_after_a_pause() {
        let backend: Arc<dyn Backend> = Arc::new(Pages::default());
        let wire =
            Wire { backend: Arc::downgrade(&backend), plugin: "test", target: Target::Cluster("edge1".to_owned()) };
        let api: Api<DynamicObject> = Api::all_with(wire.client(), &kind());
        let mut events = watching(api, watcher::Config::default());
        let mut begun = Instant::now();
        for longest in [0, 1] {
            assert!(matches!(events.next().await, Some(Ok(watcher::Event::Init))));
            let most = limits::RESTART_FIRST * longest;
            assert!((most / 2..=most + most / 10).contains(&begun.elapsed()), "{:?} of {most:?}", begun.elapsed());
            let mut taken = 0;
            let error = loop {
                match events.next().await.unwrap() {
                    Ok(event) => taken += usize::from(matches!(event, watcher::Event::InitApply(_))),
                    Err(error) => break error,
                }
            };
            assert_eq!((taken, TooMuch::within(&error)), (limits::OBJECTS, Some(TooMuch::Many)));
            assert!(error.to_string().contains("more than 50000 objects of a kind, or 128 MiB"), "{error}");
            begun = Instant::now();
        }
    }

    #[test]
    fn what_is_there_is_counted_and_what_is_gone_is_not() {
        let object = |name: &str, size: usize| {
            let mut object = DynamicObject::new(name, &kind());
            object.data = json!({ "x": "x".repeat(size) });
            object
        };
        let (mut held, half) = (Held::default(), limits::HELD / 2);
        assert_eq!(held.take(&watcher::Event::Apply(object("a", half))), Ok(()));
        assert_eq!(held.take(&watcher::Event::Apply(object("a", half))), Ok(()), "it is the same one");
        assert_eq!(held.take(&watcher::Event::Delete(object("b", 0))), Ok(()), "nobody knew it");
        assert_eq!(held.take(&watcher::Event::Delete(object("a", 0))), Ok(()));
        assert_eq!((held.bytes, held.sizes.len()), (0, 0));
        assert_eq!(held.take(&watcher::Event::InitApply(object("a", half))), Ok(()));
        assert_eq!(held.take(&watcher::Event::InitApply(object("b", half))), Err(TooMuch::Many));
        assert_eq!(held.take::<DynamicObject>(&watcher::Event::Init), Ok(()));
        assert_eq!((held.bytes, held.sizes.len()), (0, 0));
    }
}
