//! What becomes of a store when its etcd is put back, and when orders come in the middle of a reading.

use super::{
    fake::{Fake, PATIENCE},
    *,
};
use crate::store::StoreEvent;
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;
use tokio::time::timeout;

/// Who wrote the head that a store is at.
const BEFORE: &str = "w";
/// How often a store in doubt asks again here before it counts as stuck.
const TRIES: usize = 10;

/// A group that makes one object.
fn group(etcd: &Etcd, key: &str) -> Group {
    let revision = etcd.revision + 1;
    let value = json!({ "metadata": { "name": key, "resourceVersion": revision.to_string() } });
    let mut group = Group::default();
    let after = Some(group.fresh(Arc::new(value)));
    group.events.push(StoreEvent { revision, key: key.into(), after, before: None });
    group
}

async fn two(fake: &Fake) -> [Etcd; 2] {
    let one = Etcd::open(&fake.place(), None).await.unwrap().0;
    [one, Etcd::open(&fake.place(), None).await.unwrap().0]
}

/// What a store is told until it is well, and whether that was all of the store.
async fn recovers(etcd: &mut Etcd) -> News {
    for _ in 0..TRIES {
        match timeout(PATIENCE, etcd.recover(&Group::default(), 0)).await.expect("it is answered") {
            Ok(news) => return news,
            Err(WriteError::Doubtful(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("it waits for what never comes");
}

/// It hears of what it cannot go on from.
async fn doubted(etcd: &mut Etcd) {
    let told = timeout(PATIENCE, etcd.news()).await.expect("the gap is seen");
    assert!(matches!(told, Err(WriteError::Doubtful(CommitError::Unavailable(_)))));
}

/// All of the store, as it is read anew.
fn everything(news: News) -> State {
    match news {
        News::Everything(state) => *state,
        News::Landings(landings) => panic!("{} transactions", landings.len()),
    }
}

#[tokio::test]
async fn a_store_that_lost_against_what_a_backup_does_not_have_is_well_again() {
    let fake = Fake::start().await;
    let [mut mine, mut other] = two(&fake).await;
    mine.write(&group(&mine, "g/1")).await.unwrap();
    let backup = fake.content();
    mine.listen().await.unwrap_or_else(|_| panic!("it listens"));
    recovers(&mut other).await;
    // It has not heard yet what it loses against.
    fake.turn(|course| course.silent = true);
    for key in ["g/2", "g/3"] {
        other.write(&group(&other, key)).await.unwrap();
    }
    assert!(matches!(mine.write(&group(&mine, "g/4")).await, Err(WriteError::Behind)));
    fake.put_back(backup);
    // The others have lost what they had written: all of it is read anew.
    let _ = recovers(&mut mine).await;
    // It writes as much as the other had, so that etcd's numbers are the same: it is another history all the same.
    for key in ["g/4", "g/5"] {
        mine.write(&group(&mine, key)).await.unwrap();
    }
    assert_eq!((mine.head, mine.revision), (other.head, other.revision));
    assert!(everything(recovers(&mut other).await).objects.contains_key("g/5"));
}

#[tokio::test]
async fn another_history_of_the_same_length_is_read_anew() {
    let fake = Fake::start().await;
    let [mut mine, mut other] = two(&fake).await;
    mine.write(&group(&mine, "g/1")).await.unwrap();
    recovers(&mut other).await;
    let backup = fake.content();
    for key in ["g/2", "g/3"] {
        mine.write(&group(&mine, key)).await.unwrap();
    }
    fake.put_back(backup);
    // One more than was lost: the third goes on at the revision that `mine` is at.
    for key in ["g/4", "g/5", "g/6"] {
        other.write(&group(&other, key)).await.unwrap();
    }
    assert_eq!((other.head, other.revision), (mine.head + 1, mine.revision + 1));
    let state = everything(recovers(&mut mine).await);
    assert_eq!(state.objects.keys().map(|key| &**key).collect::<Vec<_>>(), ["g/1", "g/4", "g/5", "g/6"]);
}

#[tokio::test]
async fn nothing_is_written_onto_another_history_of_the_same_length() {
    let fake = Fake::start().await;
    let [mut mine, mut other] = two(&fake).await;
    let backup = fake.content();
    mine.write(&group(&mine, "g/1")).await.unwrap();
    fake.put_back(backup);
    other.write(&group(&other, "g/2")).await.unwrap();
    assert_eq!((mine.head, mine.revision), (other.head, other.revision));
    // An order that is there before it is noticed that the watch has ended.
    assert!(matches!(mine.write(&group(&mine, "g/3")).await, Err(WriteError::Behind)));
    let state = everything(recovers(&mut mine).await);
    assert_eq!(state.objects.keys().map(|key| &**key).collect::<Vec<_>>(), ["g/2"]);
}

#[tokio::test]
async fn a_head_that_is_told_where_this_ones_own_was_is_read_anew() {
    let fake = Fake::start().await;
    let [mut mine, mut other] = two(&fake).await;
    let backup = fake.content();
    mine.write(&group(&mine, "g/1")).await.unwrap();
    fake.put_back(backup);
    other.write(&group(&other, "g/2")).await.unwrap();
    assert_eq!((mine.head, mine.revision), (other.head, other.revision));
    // Its first watch: it has not been told of what it wrote itself.
    doubted(&mut mine).await;
    assert!(everything(recovers(&mut mine).await).objects.contains_key("g/2"));
}

#[tokio::test]
async fn a_head_that_is_new_at_a_revision_that_was_known_is_read_anew() {
    let fake = Fake::start().await;
    let [mut mine, mut other] = two(&fake).await;
    mine.write(&group(&mine, "g/1")).await.unwrap();
    recovers(&mut other).await;
    let backup = fake.content();
    let beside = || (0..5).for_each(|_| fake.put("/another/key", ""));
    beside();
    recovers(&mut mine).await;
    fake.put_back(backup);
    other.write(&group(&other, "g/2")).await.unwrap();
    // And etcd is as far as it was.
    beside();
    assert!(mine.head < other.head && other.head <= mine.reached);
    assert!(everything(recovers(&mut mine).await).objects.contains_key("g/2"));
}

#[tokio::test]
async fn a_backup_that_has_the_newest_head_and_not_what_was_there_beside_it_is_read_anew() {
    let fake = Fake::start().await;
    let [mut mine, mut other] = two(&fake).await;
    mine.write(&group(&mine, "g/1")).await.unwrap();
    recovers(&mut other).await;
    let backup = fake.content();
    // etcd counts what is no store's too: `mine` knows of all of it.
    for _ in 0..5 {
        fake.put("/another/key", "");
    }
    recovers(&mut mine).await;
    fake.put_back(backup);
    other.write(&group(&other, "g/2")).await.unwrap();
    // A watch from what is known would skip this.
    assert!(everything(recovers(&mut mine).await).objects.contains_key("g/2"));
    other.write(&group(&other, "g/3")).await.unwrap();
    let News::Landings(landings) = timeout(PATIENCE, mine.news()).await.expect("it is told").unwrap() else {
        panic!("it comes as a change")
    };
    assert_eq!(&*landings[0].events[0].key, "g/3");
}

#[tokio::test]
async fn a_gap_is_a_doubt_at_once_and_nothing_is_written_before_it_is_read_over() {
    let fake = Fake::start().await;
    let mut etcd = Etcd::open(&fake.place(), None).await.unwrap().0;
    etcd.listen().await.unwrap_or_else(|_| panic!("it listens"));
    // Somebody with etcdctl, whose change has no head; the reading of all of it takes a while.
    fake.turn(|course| course.still = true);
    fake.put("/fake/objects/g/odd", r#"{"metadata":{"resourceVersion":"1"}}"#);
    let before = fake.course().readings;
    for _ in 0..2 {
        doubted(&mut etcd).await;
    }
    assert_eq!(fake.course().readings, before, "that is not waited for here");
    fake.turn(|course| course.still = false);
    assert!(matches!(etcd.write(&group(&etcd, "g/1")).await, Err(WriteError::Behind)));
    assert!(everything(recovers(&mut etcd).await).objects.contains_key("g/odd"));
    etcd.write(&group(&etcd, "g/1")).await.unwrap();
}

#[tokio::test]
async fn a_gap_that_came_while_nobody_watched_is_read_over() {
    let fake = Fake::start().await;
    let mut etcd = Etcd::open(&fake.place(), None).await.unwrap().0;
    fake.put("/fake/objects/g/odd", r#"{"metadata":{"resourceVersion":"1"}}"#);
    // The head is the one that is known: this alone tells nothing.
    assert!(matches!(recovers(&mut etcd).await, News::Landings(landings) if landings.is_empty()));
    doubted(&mut etcd).await;
    assert!(everything(recovers(&mut etcd).await).objects.contains_key("g/odd"));
}

#[tokio::test]
async fn nothing_counts_as_heard_while_a_gap_is_read_over() {
    let fake = Fake::start().await;
    let place = fake.place();
    let open = move || crate::Store::connect(place, None, &crate::Limits::default());
    let store = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
    assert_eq!(store.unheard(), Duration::ZERO);
    let before = fake.course().readings;
    fake.turn(|course| course.still = true);
    fake.put("/fake/objects/g/odd", r#"{"metadata":{"resourceVersion":"1"}}"#);
    fake.until(|course| before < course.readings).await;
    assert_ne!(store.unheard(), Duration::ZERO);
    fake.turn(|course| course.still = false);
    let record = vec![("record".to_owned(), Some(Bytes::from_static(b"1")))];
    let batch = || crate::Batch { object: None, private: record.clone() };
    // Who comes meanwhile is told to come again, or waits for it.
    while timeout(PATIENCE, store.commit(batch())).await.expect("it is read").is_err() {}
    assert!(store.has("g/odd"));
    assert_eq!(store.unheard(), Duration::ZERO);
    tokio::task::spawn_blocking(move || store.close()).await.unwrap();
}

#[tokio::test]
async fn a_gap_that_is_told_only_after_something_was_written_is_read_over() {
    let fake = Fake::start().await;
    let mut etcd = Etcd::open(&fake.place(), None).await.unwrap().0;
    etcd.listen().await.unwrap_or_else(|_| panic!("it listens"));
    fake.turn(|course| course.silent = true);
    fake.put("/fake/objects/g/odd", r#"{"metadata":{"resourceVersion":"1"}}"#);
    etcd.write(&group(&etcd, "g/1")).await.unwrap();
    fake.turn(|course| course.silent = false);
    doubted(&mut etcd).await;
    let state = everything(recovers(&mut etcd).await);
    assert!(state.objects.contains_key("g/odd") && state.objects.contains_key("g/1"));
    // What it wrote itself it is not told of.
    etcd.write(&group(&etcd, "g/2")).await.unwrap();
    etcd.listen().await.unwrap_or_else(|_| panic!("it listens"));
    etcd.listen().await.unwrap_or_else(|_| panic!("its own is there"));
    assert!(etcd.ready.is_empty());
    assert_eq!((etcd.seen, etcd.revision), (etcd.head, 3));
}

#[tokio::test]
async fn a_store_that_nobody_writes_to_is_as_far_as_its_watch_and_no_further() {
    let fake = Fake::start().await;
    let [mut mine, mut other] = two(&fake).await;
    // What is not told yet is not known, however far etcd is.
    fake.turn(|course| course.silent = true);
    other.write(&group(&other, "g/1")).await.unwrap();
    let before = mine.seen;
    mine.listen().await.unwrap_or_else(|_| panic!("it begins to listen"));
    assert_eq!((mine.seen, mine.ready.len()), (before, 0));
    fake.turn(|course| course.silent = false);
    mine.listen().await.unwrap_or_else(|_| panic!("it is told"));
    assert_eq!((mine.seen, mine.ready.len()), (other.head, 1));
    // Others write, and it is none of this store's business.
    (0..5).for_each(|_| fake.put("/another/key", ""));
    fake.turn(|course| course.told += 1);
    mine.listen().await.unwrap_or_else(|_| panic!("it is told how far it is"));
    assert_eq!((mine.seen, mine.head), (other.head + 5, other.head));
    // It goes on from there: what is read next is a change after that.
    other.write(&group(&other, "g/2")).await.unwrap();
    mine.listen().await.unwrap_or_else(|_| panic!("it is told"));
    assert_eq!((mine.seen, mine.revision), (other.head, 3));
}

/// One that watches, and lost against another's write that it is not told of; and etcd's revision before that.
async fn behind(fake: &Fake) -> (Etcd, i64) {
    let [mut mine, mut other] = two(fake).await;
    mine.listen().await.unwrap_or_else(|_| panic!("it listens"));
    let before = mine.seen;
    fake.turn(|course| course.silent = true);
    other.write(&group(&other, "g/1")).await.unwrap();
    assert!(matches!(mine.write(&group(&mine, "g/2")).await, Err(WriteError::Behind)));
    assert!(mine.watch.is_some() && before < mine.overtaken);
    (mine, before)
}

#[tokio::test]
async fn a_member_that_lags_and_says_so_all_the_time_is_not_waited_for_without_end() {
    let fake = Fake::start().await;
    let (mut mine, before) = behind(&fake).await;
    let mut often = tokio::time::interval(PAUSE);
    let says = async {
        loop {
            often.tick().await;
            fake.turn(|course| (course.lags, course.told) = (Some(before), course.told + 1));
        }
    };
    tokio::select! {
        heard = timeout(PATIENCE, mine.catch_up()) => {
            assert!(matches!(heard.expect("it is given up"), Err(ReadError::Status(_))));
        }
        () = says => {}
    }
    assert_eq!((mine.seen, mine.ready.len()), (before, 0));
    // Told of it after all, it is well.
    fake.turn(|course| course.silent = false);
    assert!(matches!(recovers(&mut mine).await, News::Landings(landings) if landings.len() == 1));
}

#[tokio::test]
async fn a_head_that_was_not_told_although_all_was_up_to_there_is_read_anew() {
    let fake = Fake::start().await;
    let (mut mine, _) = behind(&fake).await;
    let there = mine.overtaken;
    fake.turn(|course| (course.lags, course.told) = (Some(there), course.told + 1));
    let heard = timeout(PATIENCE, mine.catch_up()).await.expect("it is told how far it is");
    assert!(matches!(heard, Err(ReadError::Lost)));
    assert!(everything(recovers(&mut mine).await).objects.contains_key("g/1"));
}

#[tokio::test]
async fn a_gap_is_read_over_from_another_member_where_the_one_that_was_asked_is_gone() {
    let (gone, serves) = (Fake::start().await, Fake::start().await);
    let both = EtcdPlace { members: [gone.place().members, serves.place().members].concat(), ..gone.place() };
    let mut etcd = Etcd::open(&both, None).await.unwrap().0;
    // Both have the same, as members have.
    serves.put_back(gone.content());
    serves.put("/fake/objects/g/odd", r#"{"metadata":{"resourceVersion":"1"}}"#);
    drop(gone);
    etcd.lost = true;
    assert!(everything(recovers(&mut etcd).await).objects.contains_key("g/odd"));
}

#[tokio::test]
async fn etcd_is_told_to_forget_although_orders_come_all_the_time() {
    let fake = Fake::start().await;
    let mut etcd = Etcd::open(&fake.place(), None).await.unwrap().0;
    etcd.listen().await.unwrap_or_else(|_| panic!("it listens"));
    etcd.forget = (Instant::now(), 1);
    told_to_forget(&mut etcd).await;
    fake.until(|course| course.compactions == [1]).await;
}

/// It is time for that, and orders come all the time.
async fn told_to_forget(etcd: &mut Etcd) {
    while etcd.forget.0 <= Instant::now() {
        tokio::select! {
            biased;
            _ = etcd.news() => panic!("there are none"),
            // An order that is there already.
            () = std::future::ready(()) => {}
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn etcd_is_told_to_forget_what_is_older_than_a_head_and_nothing_that_others_wrote_since() {
    let fake = Fake::start().await;
    let mut etcd = Etcd::open(&fake.place(), None).await.unwrap().0;
    etcd.write(&group(&etcd, "g/1")).await.unwrap();
    let head = etcd.head;
    (0..5).for_each(|_| fake.put("/another/key", ""));
    fake.turn(|course| course.told += 1);
    while etcd.seen < head + 5 {
        timeout(PATIENCE, etcd.listen()).await.expect("it is told").unwrap_or_else(|_| panic!("it listens"));
        fake.turn(|course| course.told += 1);
    }
    for _ in 0..2 {
        etcd.forget.0 = Instant::now();
        told_to_forget(&mut etcd).await;
    }
    fake.until(|course| course.compactions == [head]).await;
}

/// A store's keys and values, right and nearly right, so that more than the first check is met. It is at `known`.
fn change(known: u64) -> impl Strategy<Value = (pb::KeyValue, bool)> {
    let object = (0u64..4).prop_map(|at| format!(r#"{{"metadata":{{"resourceVersion":"{at}"}}}}"#).into_bytes());
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let named = |part: &'static str, name: Vec<u8>| [format!("/fake/{part}").as_bytes(), &name].concat();
    let pair = prop_oneof![
        4 => head(known).prop_map(move |value| (named("head", vec![]), value)),
        4 => ("[abc]", object).prop_map(move |(name, value)| (named("objects/", name.into()), value)),
        1 => (bytes(4), bytes(40)).prop_map(move |(name, value)| (named("objects/", name), value)),
        1 => (bytes(4), bytes(40)).prop_map(move |(name, value)| (named("private/", name), value)),
        1 => (bytes(20), bytes(40)),
    ];
    (pair, prop::bool::weighted(0.8))
        .prop_map(|((key, value), put)| (pb::KeyValue { key: key.into(), mod_revision: 0, value: value.into() }, put))
}

/// A head, mostly a sound one.
fn head(known: u64) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec("[abc]", 0..3);
    let after = prop_oneof![3 => Just(Some(BEFORE.to_owned())), 1 => Just(None), 1 => Just(Some("y".to_owned()))];
    let bent = prop::option::weighted(0.2, any::<(prop::sample::Index, u8)>());
    (changes, after, prop::option::weighted(0.2, any::<u64>()), bent).prop_map(move |(changes, after, other, bent)| {
        let revision = other.unwrap_or(known.saturating_add(changes.len() as u64));
        let head = Head { format: PLAIN, revision, by: "x".to_owned(), after, changes };
        let mut bytes = serde_json::to_vec(&head).unwrap();
        if let Some((at, byte)) = bent {
            *at.get_mut(&mut bytes) = byte;
        }
        bytes
    })
}

/// What a store is at, and what comes then.
fn next() -> impl Strategy<Value = (u64, Vec<(pb::KeyValue, bool)>)> {
    let known = prop_oneof![0u64..4, (u64::MAX - 2)..=u64::MAX];
    known.prop_flat_map(|known| (Just(known), prop::collection::vec(change(known), 0..6)))
}

proptest! {
    /// Z10: whatever stands in etcd is a transaction that goes on where the one before it ended, or is refused with nothing
    /// of it taken over.
    #[test]
    fn z10_any_bytes_in_etcd_are_the_next_transaction_or_none(
        (known, changes) in next(),
        loose in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        let _ = read_head(&loose);
        let place = EtcdPlace::parse("etcd://127.0.0.1:1/fake", None).unwrap();
        let mut etcd = Etcd::new(&place).unwrap();
        (etcd.head, etcd.seen, etcd.revision, etcd.by) = (7, 8, known, BEFORE.to_owned());
        match etcd.landing(9, changes) {
            Ok(landing) => {
                let revisions: Vec<u64> = landing.events.iter().map(|event| event.revision).collect();
                prop_assert_eq!(etcd.revision - known, revisions.len() as u64);
                prop_assert!(revisions.iter().copied().eq((known..etcd.revision).map(|before| before + 1)));
                prop_assert_eq!((etcd.head, etcd.seen), (9, 9));
                prop_assert!(read_head(&etcd.text).is_ok_and(|head| head.after.is_none_or(|after| after == BEFORE)));
            }
            Err(_) => prop_assert_eq!((etcd.head, etcd.seen, etcd.revision), (7, 8, known)),
        }
    }
}
