//! All objects of one kind of the hub's API, as they are now.

use crate::{HubObject, PluginError};
use futures_util::StreamExt;
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use moorline_apiserver::Spec;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// Objects of a kind, by name.
pub type All<S> = BTreeMap<String, Arc<HubObject<S>>>;

/// All objects of a kind as they are now; `None` until they were listed.
pub type Known<S> = watch::Receiver<Option<Arc<All<S>>>>;
/// The other end of that: the hub-wide half of a plugin feeds it, and those of clusters subscribe.
pub type Feed<S> = watch::Sender<Option<Arc<All<S>>>>;

/// Follows a kind and passes on what there is, for ever.
///
/// # Errors
/// Never by itself: what fails is tried again.
pub async fn follow_into<S: Spec>(client: kube::Client, feed: &Feed<S>) -> Result<(), PluginError> {
    let (mut known, following) = follow::<S>(client);
    let spread = async {
        while known.changed().await.is_ok() {
            feed.send_replace(known.borrow_and_update().clone());
        }
        Ok(())
    };
    tokio::select! {
        ended = following => ended,
        ended = spread => ended,
    }
}

/// Follows a kind. The receiver has `None` until everything was listed once; the future has to be driven, and ends with
/// the receiver.
pub fn follow<S: Spec>(client: kube::Client) -> (Known<S>, impl Future<Output = Result<(), PluginError>> + Send) {
    let (tell, seen) = watch::channel(None);
    let work = async move {
        let api: Api<HubObject<S>> = Api::all(client);
        let mut changes = Box::pin(watcher(api, watcher::Config::default()).default_backoff());
        let (mut all, mut listing) = (Arc::<All<S>>::default(), All::<S>::new());
        while let Some(event) = changes.next().await {
            let named = |object: HubObject<S>| (object.name().to_owned(), Arc::new(object));
            match event {
                Ok(watcher::Event::Init) => {
                    listing.clear();
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listing.extend([named(object)]);
                    continue;
                }
                Ok(watcher::Event::InitDone) => all = Arc::new(std::mem::take(&mut listing)),
                Ok(watcher::Event::Apply(object)) => Arc::make_mut(&mut all).extend([named(object)]),
                Ok(watcher::Event::Delete(object)) => drop(Arc::make_mut(&mut all).remove(object.name())),
                Err(error) => {
                    tracing::warn!(kind = S::KIND, "watching goes on after: {error}");
                    continue;
                }
            }
            if tell.send(Some(Arc::clone(&all))).is_err() {
                break;
            }
        }
        Ok(())
    };
    (seen, work)
}
