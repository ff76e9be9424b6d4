//! What a store says of a backend that others write to, which answers as the test says.

use super::*;
use crate::{
    Batch,
    backend::{Bounds, Group, News, WriteError},
};
use serde_json::json;
use std::future::pending;

/// What it is asked.
#[derive(Debug, PartialEq)]
enum Asked {
    Write,
    Recover,
}

/// See the module.
struct Told {
    asked: mpsc::UnboundedSender<Asked>,
    answers: mpsc::UnboundedReceiver<Result<(), WriteError>>,
    news: mpsc::UnboundedReceiver<News>,
}

/// The test's side of it.
struct World {
    store: Store,
    asked: mpsc::UnboundedReceiver<Asked>,
    answers: mpsc::UnboundedSender<Result<(), WriteError>>,
    news: mpsc::UnboundedSender<News>,
}

impl Told {
    async fn answer(&mut self, what: Asked) -> Result<(), WriteError> {
        let _ = self.asked.send(what);
        match self.answers.recv().await {
            Some(answer) => answer,
            None => pending().await,
        }
    }
}

impl Backend for Told {
    fn seal(&self) -> Option<Arc<Seal>> {
        None
    }
    fn bounds(&self) -> Bounds {
        Bounds { keys: 10, bytes: 10_000, once: true }
    }
    fn is_shared(&self) -> bool {
        true
    }
    async fn write(&mut self, _: &Group) -> Result<(), WriteError> {
        self.answer(Asked::Write).await
    }
    async fn recover(&mut self, _: &Group, _: u64) -> Result<News, WriteError> {
        self.answer(Asked::Recover).await.map(|()| News::Landings(Vec::new()))
    }
    async fn news(&mut self) -> Result<News, WriteError> {
        match self.news.recv().await {
            Some(news) => Ok(news),
            None => pending().await,
        }
    }
}

fn world() -> World {
    let ((told, asked), (answers, answered), (news, heard)) =
        (mpsc::unbounded_channel(), mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let backend = Told { asked: told, answers: answered, news: heard };
    let state = State { revision: 1, compacted: 1, ..State::default() };
    let limits = Limits { full_retry: Duration::ZERO, ..Limits::default() };
    let store = Store::start(async { Ok((backend, state)) }, "told".to_owned(), &limits).unwrap();
    World { store, asked, answers, news }
}

fn thing() -> Batch {
    Batch { object: Some(("t/things/1".to_owned(), Expect::Absent, Some(json!({ "metadata": {} })))), private: vec![] }
}

fn unavailable() -> WriteError {
    WriteError::Doubtful(CommitError::Unavailable("no answer in time".to_owned()))
}

#[tokio::test]
async fn f35_silence_begins_with_the_question_that_got_no_answer() {
    let World { store, mut asked, answers, .. } = world();
    assert_eq!(store.unheard(), Duration::ZERO);
    let writer = store.clone();
    let write = tokio::spawn(async move { writer.commit(thing()).await });
    assert_eq!(asked.recv().await, Some(Asked::Write));
    let begun = Instant::now();
    assert!(begun.elapsed() <= store.unheard(), "while it is not known to fail");
    // Somebody else was first, and what that was does not come.
    answers.send(Err(WriteError::Behind)).unwrap();
    assert_eq!(asked.recv().await, Some(Asked::Recover));
    assert!(begun.elapsed() <= store.unheard());
    answers.send(Err(unavailable())).unwrap();
    assert_eq!(asked.recv().await, Some(Asked::Recover), "once more for who waits");
    answers.send(Err(unavailable())).unwrap();
    assert!(matches!(write.await.unwrap(), Err(CommitError::Unavailable(_))));
    assert!(begun.elapsed() <= store.unheard(), "once it has failed");
    assert_eq!(asked.recv().await, Some(Asked::Recover));
    answers.send(Err(unavailable())).unwrap();
    assert_eq!(asked.recv().await, Some(Asked::Recover));
    assert!(begun.elapsed() <= store.unheard(), "each time that it is asked in vain");
    answers.send(Ok(())).unwrap();
    while store.healthy().is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.unheard(), Duration::ZERO);
    answers.send(Ok(())).unwrap();
    assert_eq!(store.commit(thing()).await, Ok(2));
    assert_eq!(store.unheard(), Duration::ZERO, "an answer is one");
}

#[tokio::test]
async fn p14_who_watches_is_told_that_it_is_another_history_of_the_same_length() {
    let World { store, news, answers, .. } = world();
    answers.send(Ok(())).unwrap();
    assert_eq!(store.commit(thing()).await, Ok(2));
    let mut watcher = store.watch("t/", 2).unwrap();
    let another = State { revision: 2, ..State::default() };
    news.send(News::Everything(Box::new(another))).unwrap();
    let told = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.expect("it is told");
    assert!(matches!(told, Err(Compacted)));
    assert!(store.watch("t/", 2).is_ok(), "who lists it first");
}

#[tokio::test]
async fn who_follows_is_told_each_time_that_the_store_is_another() {
    let World { store, news, answers, .. } = world();
    let told = async |mut watcher: Watcher| {
        tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.expect("it is told")
    };
    // Each as far as the one before, or less: where a watch began at the revision of a listing, none would begin.
    for revision in [5, 5, 3, 1] {
        let (all, watcher) = store.follow("t/");
        assert!(all.is_empty());
        news.send(News::Everything(Box::new(State { revision, ..State::default() }))).unwrap();
        assert!(matches!(told(watcher).await, Err(Compacted)), "{revision}");
    }
    let (_, watcher) = store.follow("t/");
    answers.send(Ok(())).unwrap();
    assert_eq!(store.commit(thing()).await, Ok(2));
    assert_eq!(told(watcher).await.unwrap().unwrap().revision, 2);
    assert_eq!(store.follow("t/").0.len(), 1);
}

#[tokio::test]
async fn a_private_record_is_replaced_only_as_it_was_found() {
    let World { store, mut asked, answers, .. } = world();
    let key = || "record".to_owned();
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    answers.send(Ok(())).unwrap();
    assert_eq!(store.replace_private(key(), None, bytes("1")).await, Ok(()));
    for found in [None, Some(bytes("0"))] {
        assert_eq!(store.replace_private(key(), found, bytes("2")).await, Err(CommitError::Conflict(None)));
    }
    assert_eq!(store.private("record"), Some(bytes("1")));
    // Nobody else was first in what they changed: it is checked again all the same, and written.
    for answer in [Err(WriteError::Behind), Ok(()), Ok(())] {
        answers.send(answer).unwrap();
    }
    assert_eq!(store.replace_private(key(), Some(bytes("1")), bytes("2")).await, Ok(()));
    let mut all = Vec::new();
    while let Ok(one) = asked.try_recv() {
        all.push(one);
    }
    assert_eq!(all, [Asked::Write, Asked::Write, Asked::Recover, Asked::Write]);
    assert_eq!(store.private("record"), Some(bytes("2")));
}
