//! A mirror against clusters that answer in one way each.

use super::*;
use crate::{
    Backend, ClusterFacts,
    metrics::Metrics,
    testing::{self, answer, clusters_that, edge1, failure, is_watch, listed, watch_of},
};
use bytes::Bytes;
use futures_util::future;
use http::{Method, StatusCode};
use serde_json::json;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A cluster with these objects, of which nothing ever changes.
fn fixed(items: Value) -> Arc<dyn Backend> {
    clusters_that(move |request| listed(&request, &items))
}

/// A mirror of these kinds in a cluster.
fn mirror(backend: &Arc<dyn Backend>, kinds: &'static [Kept]) -> Mirror {
    let ClusterFacts { name, uid, .. } = edge1();
    let cluster = ClusterView { name, uid, client: testing::client(backend), stop: CancellationToken::new() };
    Mirror::new("test", &cluster, kinds, Metrics::new(&prometheus::Registry::new()).unwrap().of("test"))
}

const PAIR: &[Kept] = &[Kept::core("ConfigMap", "configmaps"), Kept::core("Secret", "secrets")];

fn pair(backend: &Arc<dyn Backend>) -> Mirror {
    mirror(backend, PAIR)
}

/// Nothing else is wanted under way, and nobody objects to what is made.
async fn reconcile(mirror: &mut Mirror, wanted: &Objects, unlisted: &[&'static str]) -> Option<Instant> {
    let outside = Outside { tell: &mut |_| (), may_make: &mut always(), newer: &mut |_| false };
    mirror.reconcile(wanted, unlisted, outside).await
}

#[tokio::test]
async fn what_is_named_as_no_cluster_names_is_left_out_and_told() {
    let secret = |name: &str| json!({ "metadata": { "name": name, "namespace": "team" } });
    let backend = fixed(json!([secret("short"), secret(&"n".repeat(limits::NAME + 1))]));
    let key = Key { kind: "Secret", namespace: "team".to_owned(), name: "short".to_owned() };
    let wish = Objects::from([(key, secret("short"))]);
    let (_wish, wanted) = watch::channel(Arc::new(wish));
    let (tell, mut told) = watch::channel(Report::default());
    let mirror = mirror(&backend, const { &[Kept::core("Secret", "secrets")] });
    let looked = |report: &Report| report.of.is_some();
    tokio::select! {
        ended = mirror.run((wanted, always()), |report| drop(tell.send_replace(report.clone()))) => panic!("{ended:?}"),
        report = told.wait_for(looked) => {
            let trouble = report.unwrap().trouble.clone().unwrap_or_default();
            assert!(trouble.contains("cannot watch secrets") && trouble.contains("1024 letters"), "{trouble}");
        }
    }
}

/// Whoever hears of what is made has no objection.
fn always() -> watch::Receiver<bool> {
    watch::channel(true).1
}

/// When something of the other kind changes, and when the broken one can be listed again.
const OTHER: Duration = Duration::from_secs(10);
const HEALED: Duration = Duration::from_secs(300);

/// A cluster of which a line of the first watch of secrets is too long, and that does not list them then for a while.
fn broken(since: Instant, lists: &Arc<AtomicUsize>) -> Arc<dyn Backend> {
    let lists = Arc::clone(lists);
    clusters_that(move |request| {
        let (secrets, healed) = (request.uri().path().ends_with("/secrets"), HEALED <= since.elapsed());
        match (is_watch(&request), secrets) {
            (false, false) => listed(&request, &json!([])),
            (false, true) => match 0 < lists.fetch_add(1, Ordering::Relaxed) && !healed {
                true => failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
                false => listed(&request, &json!([])),
            },
            (true, true) if healed => watch_of(future::pending()),
            (true, true) => watch_of(future::ready(Bytes::from("x".repeat(limits::WATCH_LINE + 1)))),
            (true, false) => watch_of(async {
                tokio::time::sleep(OTHER).await;
                let object = json!({ "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": { "name": "c", "namespace": "team", "resourceVersion": "8" } });
                Bytes::from(json!({ "type": "DELETED", "object": object }).to_string() + "\n")
            }),
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_kind_whose_watch_is_down_is_told_until_it_is_listed_anew_whatever_is_heard_of_others() {
    let (since, lists) = (Instant::now(), Arc::<AtomicUsize>::default());
    let backend = broken(since, &lists);
    let (_wish, wanted) = watch::channel(Arc::default());
    let (tell, mut told) = mpsc::unbounded_channel();
    let run = pair(&backend).run((wanted, always()), |report| drop(tell.send(report.trouble.clone())));
    let look = async {
        let mut all = Vec::new();
        while since.elapsed() < HEALED {
            all.push((told.recv().await.unwrap(), since.elapsed()));
        }
        all
    };
    let all = tokio::select! {
        ended = run => panic!("{ended:?}"),
        all = look => all,
    };
    let long = |trouble: &Option<String>| trouble.as_ref().is_some_and(|why| why.contains("longer than 4 MiB"));
    let down = all.iter().position(|(trouble, _)| long(trouble)).unwrap();
    let up = all.iter().skip(down).find(|(trouble, _)| trouble.is_none());
    assert!(up.is_some_and(|(_, at)| HEALED <= *at), "{all:?}");
    // The first pauses together have half a minute, and each after them has half of the longest at least.
    let most = 8 + 2 * usize::try_from(HEALED.as_secs() / limits::RESTART_LONGEST.as_secs()).unwrap();
    let lists = lists.load(Ordering::Relaxed);
    assert!((5..=most).contains(&lists), "{lists} listings of secrets, and {most} at most");
}

/// A cluster that lists no secrets, and has a config map. It tells of what it is asked for besides.
fn half() -> (Arc<dyn Backend>, mpsc::UnboundedReceiver<String>) {
    let (ask, asked) = mpsc::unbounded_channel();
    let backend = clusters_that(move |request| {
        let path = request.uri().path();
        if path.ends_with("/configmaps") {
            let there = json!({ "metadata": { "name": "c", "namespace": "team", "resourceVersion": "1" } });
            return listed(&request, &json!([there]));
        }
        if path.ends_with("/secrets") {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
        }
        drop(ask.send(format!("{} {path}", request.method())));
        answer(StatusCode::OK, &json!({ "kind": "Status", "status": "Success" }))
    });
    (backend, asked)
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_cannot_be_listed_is_left_as_it_is_and_stops_no_other() {
    let (backend, mut asked) = half();
    let key = Key { kind: "Secret", namespace: "team".to_owned(), name: "s".to_owned() };
    let wish = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "team" } });
    let wish = Objects::from([(key, wish)]);
    let (_wish, wanted) = watch::channel(Arc::new(wish));
    let mut last = Report::default();
    let run = pair(&backend).run((wanted, always()), |report| last = report.clone());
    assert!(tokio::time::timeout(HEALED, run).await.is_err());
    assert_eq!(asked.try_recv().unwrap(), "DELETE /api/v1/namespaces/team/configmaps/c", "nobody wants it any more");
    assert!(asked.try_recv().is_err(), "whether the secret is there is not known");
    assert!(last.trouble.as_ref().is_some_and(|why| why.contains("cannot watch secrets")), "{last:?}");
    assert_eq!((last.in_sync(), last.of), (false, None));
}

#[tokio::test]
async fn what_is_in_a_namespace_of_which_nobody_knows_whose_it_is_is_put_right_and_nothing_is_added() {
    let (backend, mut asked) = half();
    let mut mirror = pair(&backend);
    let key = |name: &str| Key { kind: "ConfigMap", namespace: "team".to_owned(), name: name.to_owned() };
    let (there, new) = (key("there"), key("new"));
    mirror.actual.insert(there.clone(), json!({}));
    let wish = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "b" } });
    let wanted = Objects::from([(home(&new), json!({})), (there.clone(), wish.clone()), (new.clone(), wish)]);
    // What it is asked for is told, and answered with what is no config map.
    reconcile(&mut mirror, &wanted, &["Namespace"]).await;
    assert_eq!(asked.try_recv().unwrap(), "PATCH /api/v1/namespaces/team/configmaps/there");
    assert!(asked.try_recv().is_err(), "nothing is laid where it may be somebody else's");
    assert_eq!(mirror.report.failed.keys().collect::<Vec<_>>(), [&there]);
    reconcile(&mut mirror, &wanted, &[]).await;
    assert!(mirror.report.failed.contains_key(&new), "it is somebody else's");
}

#[tokio::test]
async fn of_what_nobody_knows_whether_it_is_wanted_nothing_is_taken_away_and_that_is_told() {
    let (backend, mut asked) = half();
    let mut mirror = pair(&backend);
    let key = |namespace: &str| Key { kind: "ConfigMap", namespace: namespace.to_owned(), name: "c".to_owned() };
    mirror.actual.insert(key("team"), json!({}));
    let unsure = Objects::from([(key(ANYWHERE), unknown("nobody tells"))]);
    reconcile(&mut mirror, &unsure, &[]).await;
    assert!(asked.try_recv().is_err(), "it is left as it is");
    assert_eq!((mirror.report.synced, mirror.report.there), (0, 1), "it would be left behind");
    assert_eq!(mirror.report.failed, [(key(ANYWHERE), "nobody tells; 1 are left as they are".to_owned())].into());
    // It is known now: not wanted.
    reconcile(&mut mirror, &Objects::new(), &[]).await;
    assert_eq!(asked.try_recv().unwrap(), "DELETE /api/v1/namespaces/team/configmaps/c");
    assert!(mirror.report.failed.is_empty());
}

#[tokio::test]
async fn what_nothing_is_to_be_done_about_any_more_is_not_looked_at_again() {
    let (backend, _asked) = half();
    let mut mirror = pair(&backend);
    let key = |kind| Key { kind, namespace: "team".to_owned(), name: "c".to_owned() };
    let laid = key("ConfigMap");
    let wish = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "b" } });
    let wanted = Objects::from([(laid.clone(), wish.clone())]);
    // The cluster answers with what is no config map.
    assert!(reconcile(&mut mirror, &wanted, &[]).await.is_some(), "it is tried again");
    mirror.actual.insert(laid.clone(), mirror.labelled(&wish));
    assert_eq!(reconcile(&mut mirror, &wanted, &[]).await, None, "it was written all the same");

    mirror.actual.clear();
    let mut owned = wanted.clone();
    owned.insert(home(&laid), ABSENT);
    for unlisted in [&["Namespace"][..], &[]] {
        mirror.resting.insert(laid.clone(), (Instant::now(), 1));
        assert_eq!(reconcile(&mut mirror, &owned, unlisted).await, None, "its namespace is not known to be the hub's");
    }

    // A kind that this mirror does not keep: taking it away fails.
    let other = key("Other");
    mirror.actual = Objects::from([(other.clone(), json!({}))]);
    assert!(reconcile(&mut mirror, &Objects::new(), &[]).await.is_some());
    let anywhere = Key { namespace: ANYWHERE.to_owned(), ..other };
    let unsure = Objects::from([(anywhere.clone(), unknown("nobody tells"))]);
    assert_eq!(reconcile(&mut mirror, &unsure, &[]).await, None, "it may be wanted");
    assert_eq!(mirror.report.failed.keys().collect::<Vec<_>>(), [&anywhere]);
}

/// A cluster that answers what changes an object with what it is told to, and has nothing.
fn answers(patch: &Arc<AtomicU16>, delete: &Value) -> (Arc<dyn Backend>, mpsc::UnboundedReceiver<String>) {
    let (ask, asked) = mpsc::unbounded_channel();
    let (patch, delete) = (Arc::clone(patch), delete.clone());
    let backend = clusters_that(move |request| {
        drop(ask.send(request.method().to_string()));
        match *request.method() {
            Method::PATCH => {
                let code = StatusCode::from_u16(patch.load(Ordering::Relaxed)).unwrap();
                failure(code, "No")
            }
            Method::DELETE => answer(StatusCode::OK, &delete),
            _ => failure(StatusCode::NOT_FOUND, "NotFound"),
        }
    });
    (backend, asked)
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_and_not_answered_counts_until_it_cannot_come_any_more() {
    // Each is asked for as often as there are answers, and then wanted no more.
    for (said, seen, there) in
        [(&[504][..], 1, 1), (&[504, 200], 1, 1), (&[504, 403], 1, 1), (&[403], 0, 0), (&[200], 1, 0)]
    {
        let patch = Arc::<AtomicU16>::default();
        let (backend, mut ask) = answers(&patch, &json!({}));
        let mut mirror = pair(&backend);
        let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
        let wish = Objects::from([(key, json!({ "apiVersion": "v1", "kind": "ConfigMap" }))]);
        let mut look = async |wanted: &Objects| {
            let next = reconcile(&mut mirror, wanted, &[]).await;
            mirror.resting.clear();
            (mirror.report.there, next)
        };
        for code in said {
            patch.store(*code, Ordering::Relaxed);
            look(&wish).await;
        }
        assert_eq!(look(&wish).await.0, seen, "{said:?}");
        let (left, next) = look(&Objects::new()).await;
        assert_eq!((left, next.is_some()), (there, 0 < there), "{said:?}: it may still come");
        while ask.try_recv().is_ok() {}
        tokio::time::advance(limits::LANDING).await;
        assert_eq!(look(&Objects::new()).await, (0, None), "{said:?}");
        assert_eq!(ask.try_recv().is_ok(), 0 < there, "{said:?}: it is asked whether it is there");
    }
}

#[tokio::test]
async fn what_is_wanted_in_another_way_by_now_is_left_and_the_others_are_made() {
    let (backend, mut asked) = answers(&Arc::new(200.into()), &json!({}));
    let mut mirror = pair(&backend);
    let key = |name: &str| Key { kind: "ConfigMap", namespace: "team".to_owned(), name: name.to_owned() };
    let wish = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "b" } });
    let wanted = Objects::from([(key("a"), wish.clone()), (key("b"), wish.clone()), (key("c"), wish)]);
    let mut newer = |of: &Key| of.name == "b";
    let outside = Outside { tell: &mut |_| (), may_make: &mut always(), newer: &mut newer };
    mirror.reconcile(&wanted, &[], outside).await;
    let asked = std::iter::from_fn(|| asked.try_recv().ok());
    let made: Vec<_> = asked.filter(|what| what == "PATCH").collect();
    assert_eq!(made.len(), 2, "{made:?}");
    assert!(mirror.report.there == 2 && !mirror.unsure.contains(&key("b")));
}

#[test]
fn what_is_wanted_of_a_whole_kind_is_wanted_of_each() {
    let key = Key { kind: "Secret", namespace: "team".to_owned(), name: "s".to_owned() };
    let anywhere = Key { namespace: ANYWHERE.to_owned(), ..key.clone() };
    let other = Key { name: "other".to_owned(), ..key.clone() };
    let of = |key: &Key| Objects::from([(key.clone(), unknown("nobody tells"))]);
    assert!(is_other(&Objects::new(), &of(&key), &key) && is_other(&Objects::new(), &of(&anywhere), &key));
    assert!(!is_other(&Objects::new(), &of(&other), &key) && !is_other(&of(&key), &of(&key), &key));
}

/// Who reads that all is as wanted reads of what is wanted now, or was when all of it was looked at.
#[tokio::test(start_paused = true)]
async fn what_was_left_for_something_newer_is_not_told_as_looked_at() {
    let wish = |names: &[&str]| {
        let object = |name: &&str| {
            let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: (*name).to_owned() };
            (key, json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "team" } }))
        };
        Arc::new(names.iter().map(object).collect::<Objects>())
    };
    let (before, long, newest) = (wish(&["a"]), wish(&["a", "b", "c"]), wish(&["a", "b"]));
    let (wishes, wanted) = watch::channel(Arc::clone(&before));
    let (change, next) = (wishes.clone(), Arc::clone(&newest));
    let backend = clusters_that(move |request| match *request.method() {
        Method::PATCH => {
            if request.uri().path().ends_with("/b") {
                change.send_replace(Arc::clone(&next));
            }
            answer(StatusCode::OK, &serde_json::from_slice(request.body()).unwrap())
        }
        _ if request.uri().query().is_some() => listed(&request, &json!([])),
        _ => failure(StatusCode::NOT_FOUND, "NotFound"),
    });
    let (tell, mut told) = mpsc::unbounded_channel();
    let run = pair(&backend).run((wanted, always()), |report| drop(tell.send((report.making, report.of.clone()))));
    let look = async {
        let mut until = async |of: &Arc<Objects>| {
            let mut all = Vec::new();
            while all.last() != Some(&(false, Some(Arc::clone(of)))) {
                all.push(told.recv().await.unwrap());
            }
            all
        };
        until(&before).await;
        wishes.send_replace(Arc::clone(&long));
        let all = until(&newest).await;
        assert!(all.contains(&(false, None)) && !all.contains(&(false, Some(before.clone()))), "{all:?}");
    };
    tokio::select! {
        ended = run => panic!("{ended:?}"),
        () = look => {}
    }
}

/// A field that never changes has the object deleted and made anew: what of that was asked for and not answered counts.
#[tokio::test]
async fn what_is_made_anew_counts_as_asked_for_only_once_it_is() {
    let forbidden = StatusCode::FORBIDDEN;
    for (delete, then, before, unsure) in [
        (forbidden, StatusCode::OK, false, false),
        (forbidden, StatusCode::OK, true, true),
        (StatusCode::OK, StatusCode::GATEWAY_TIMEOUT, false, true),
        (StatusCode::OK, forbidden, false, false),
    ] {
        let patches = AtomicUsize::default();
        let backend = clusters_that(move |request| match *request.method() {
            Method::PATCH if patches.fetch_add(1, Ordering::Relaxed) == 0 => {
                failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid")
            }
            Method::PATCH => failure(then, "No"),
            _ => failure(delete, "No"),
        });
        let mut mirror = pair(&backend);
        let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
        mirror.actual.insert(key.clone(), json!({}));
        if before {
            mirror.unsure.asking(&key);
        }
        let wish = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "b" } });
        reconcile(&mut mirror, &Objects::from([(key.clone(), wish)]), &[]).await;
        assert!(mirror.report.failed.contains_key(&key));
        assert_eq!(mirror.unsure.contains(&key), unsure, "{delete} {then} {before}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_answered_and_is_seen_as_wanted_is_not_looked_at_again() {
    let (backend, _asked) = answers(&Arc::new(504.into()), &json!({}));
    let mut mirror = pair(&backend);
    let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
    let wish = json!({ "apiVersion": "v1", "kind": "ConfigMap" });
    let wanted = Objects::from([(key.clone(), wish.clone())]);
    assert!(reconcile(&mut mirror, &wanted, &[]).await.is_some(), "it is tried again");
    mirror.actual.insert(key, mirror.labelled(&wish));
    tokio::time::advance(limits::RETRY_LONGEST).await;
    assert_eq!(reconcile(&mut mirror, &wanted, &[]).await, None);
}

/// Whoever refuses now may have let it in before.
#[tokio::test(start_paused = true)]
async fn a_refusal_says_nothing_of_what_was_not_answered_long_ago() {
    let patch = Arc::new(AtomicU16::new(504));
    let (backend, _asked) = answers(&patch, &json!({}));
    let mut mirror = pair(&backend);
    let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
    let wish = Objects::from([(key, json!({ "apiVersion": "v1", "kind": "ConfigMap" }))]);
    reconcile(&mut mirror, &wish, &[]).await;
    patch.store(403, Ordering::Relaxed);
    tokio::time::advance(limits::LANDING).await;
    reconcile(&mut mirror, &wish, &[]).await;
    assert_eq!(mirror.report.there, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_after_and_cannot_be_taken_away_yet_does_not_spin() {
    let meta = json!({ "name": "c", "labels": { PLUGIN_LABEL: "test", CLUSTER_LABEL: "1" } });
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta });
    // It has the mirror's object, whichever is asked after.
    let backend = clusters_that(move |_| answer(StatusCode::OK, &object));
    let mut mirror = pair(&backend);
    let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
    mirror.unsure.missing(key.clone());
    // It was asked after before, in vain.
    mirror.resting.insert(key, (Instant::now(), 1));
    let next = reconcile(&mut mirror, &Objects::new(), &["ConfigMap"]).await;
    assert_eq!((next, mirror.there()), (None, 1), "nothing is taken away of a kind that is not listed");
}

/// A session that is lost takes the answers with it, and not what was asked for.
#[tokio::test(start_paused = true)]
async fn what_the_one_before_had_on_its_way_counts_for_the_next_one() {
    let (backend, _asked) = answers(&Arc::new(504.into()), &json!({}));
    let board = Board::default();
    let mut mirror = pair(&backend).after(board.unsure("1"));
    let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
    let wish = Objects::from([(key, json!({ "apiVersion": "v1", "kind": "ConfigMap" }))]);
    reconcile(&mut mirror, &wish, &[]).await;
    drop(mirror);
    let mut next = pair(&backend).after(board.unsure("1"));
    let at = reconcile(&mut next, &Objects::new(), &[]).await;
    assert_eq!((next.report.there, at.is_some()), (1, true));
    assert_eq!(pair(&backend).after(board.unsure("2")).there(), 0, "that is another cluster");
    drop(next);
    tokio::time::advance(limits::LANDING).await;
    assert_eq!(pair(&backend).after(board.unsure("1")).there(), 0, "it cannot come any more");
}

#[tokio::test]
async fn what_must_not_be_there_is_asked_after_when_nobody_saw_it_go() {
    let (backend, _asked) = answers(&Arc::new(504.into()), &json!({}));
    let (mut mirror, kind) = (pair(&backend), &PAIR[0]);
    let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
    mirror.actual.insert(key.clone(), json!({}));
    mirror.resting.insert(key.clone(), (Instant::now(), 1));
    mirror.heard(kind, watcher::Event::InitDone, &mut HashMap::new(), &mut Vec::new());
    let wanted = Objects::from([(key.clone(), ABSENT)]);
    let next = reconcile(&mut mirror, &wanted, &[]).await;
    assert_eq!(
        (next, mirror.there(), mirror.unsure.keys()),
        (None, 0, [].into()),
        "it is not there, and nothing rests"
    );
    // More than are asked after at once are asked after in a moment.
    let name = |n| Key { name: format!("c{n}"), ..key.clone() };
    (0..100).for_each(|n| mirror.unsure.missing(name(n)));
    assert!(reconcile(&mut mirror, &wanted, &[]).await.is_some());
    assert!((1..100).contains(&mirror.there()), "{}", mirror.there());
}

/// Over a session that was lost too: who reads that it is gone lets go of it.
#[tokio::test(start_paused = true)]
async fn what_must_not_be_there_is_not_gone_while_it_may_still_come() {
    let (backend, _asked) = answers(&Arc::new(504.into()), &json!({}));
    let board = Board::default();
    let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
    let wish = Objects::from([(key.clone(), json!({ "apiVersion": "v1", "kind": "ConfigMap" }))]);
    reconcile(&mut pair(&backend).after(board.unsure("1")), &wish, &[]).await;
    let mut next = pair(&backend).after(board.unsure("1"));
    let gone = Objects::from([(key.clone(), ABSENT)]);
    let at = reconcile(&mut next, &gone, &[]).await;
    assert!(next.report.failed.contains_key(&key) && at.is_some(), "{:?}", next.report);
    tokio::time::advance(limits::LANDING).await;
    reconcile(&mut next, &gone, &[]).await;
    assert!(next.report.failed.is_empty(), "{:?}", next.report);
}

#[tokio::test]
async fn what_is_being_deleted_is_there_until_it_is_gone() {
    let meta = json!({ "name": "c", "namespace": "team", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z" });
    let delete = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta });
    let (backend, _asked) = answers(&Arc::new(200.into()), &delete);
    let (mut mirror, kind) = (pair(&backend), &PAIR[0]);
    let key = Key { kind: "ConfigMap", namespace: "team".to_owned(), name: "c".to_owned() };
    mirror.actual.insert(key.clone(), delete.clone());
    reconcile(&mut mirror, &Objects::new(), &[]).await;
    assert_eq!((mirror.report.there, mirror.report.failed.len()), (1, 1), "somebody's finalizer holds it");
    let mut gone: DynamicObject = serde_json::from_value(delete).unwrap();
    for (uid, there) in [("0", 1), ("1", 0)] {
        gone.metadata.uid = Some(uid.to_owned());
        mirror.heard(kind, watcher::Event::Delete(gone.clone()), &mut HashMap::new(), &mut Vec::new());
        assert_eq!(mirror.there(), there, "{uid} is gone");
    }
}

#[tokio::test]
async fn what_was_made_since_a_listing_was_written_counts_though_it_is_not_in_it() {
    let backend = fixed(json!([]));
    let (mut mirror, kind) = (pair(&backend), &PAIR[0]);
    let key = |kind| Key { kind, namespace: "team".to_owned(), name: "c".to_owned() };
    mirror.actual = Objects::from([(key("ConfigMap"), json!({})), (key("Secret"), json!({}))]);
    mirror.heard(kind, watcher::Event::InitDone, &mut HashMap::new(), &mut Vec::new());
    assert_eq!((mirror.actual.len(), mirror.there()), (1, 2));
}

#[tokio::test]
async fn what_is_left_out_is_told_until_the_last_of_its_kind_is_gone() {
    let backend = fixed(json!([]));
    let (mut mirror, kind) = (pair(&backend), &PAIR[0]);
    let object = |name: &str, letters| DynamicObject::new(&name.repeat(letters), &kind.resource()).within("team");
    let (a, b, short) = (object("a", limits::NAME + 1), object("b", limits::NAME + 1), object("c", 1));
    let (mut listing, mut unlisted) = (HashMap::new(), Vec::new());
    let mut told = |event| {
        mirror.heard(kind, event, &mut listing, &mut unlisted);
        mirror.trouble().is_some()
    };
    assert!(told(watcher::Event::Apply(a.clone())));
    assert!(told(watcher::Event::Apply(a.clone())), "it is the same one");
    assert!(told(watcher::Event::Apply(b.clone())));
    assert!(told(watcher::Event::Delete(a.clone())), "there is another one");
    assert!(told(watcher::Event::Delete(short)), "that was none of them");
    assert!(!told(watcher::Event::Delete(b)));
    assert!(told(watcher::Event::InitApply(a)));
    assert!(!told(watcher::Event::Init), "all is told anew");
}
