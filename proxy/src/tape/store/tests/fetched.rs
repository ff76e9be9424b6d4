//! Recordings that are made in one folder and fetched into another.

use super::*;
use crate::tape::store::folder::mark;

fn to_fetch(dir: &Path) -> Settings {
    Settings { over: Over::Fetched, keep: Duration::ZERO, ..settings(&dir.join("cluster")) }
}

/// One of so many bytes and more, that is over.
async fn recorded(store: &Store, id: &str, bytes: usize) -> (String, Seal) {
    let tape = store.begin(&about(id)).await.unwrap();
    tape.shown(&vec![b'x'; bytes]);
    (tape.name().to_owned(), tape.finish("complete").await.unwrap())
}

fn begun(store: &Store, name: &str) -> Taking {
    match store.take(name, "a").unwrap() {
        Take::Begun(taking) => taking,
        Take::Have(_) | Take::Busy => panic!("{name} is not to be fetched"),
    }
}

#[tokio::test]
async fn what_was_made_there_is_here_byte_for_byte_and_then_gone_there() {
    let dir = tempfile::tempdir().unwrap();
    let (there, _) = open(to_fetch(dir.path()));
    let (here, lost) = open(settings(&dir.path().join("hub")));
    let (name, seal) = recorded(&there, "ab-12", 5000).await;
    let going_on = there.begin(&about("ab-13")).await.unwrap();
    assert!(is_of(&name, "a") && !is_of(&name, "b") && !is_of(going_on.name(), "b"), "{name}");
    let (own, _) = recorded(&here, "ab-12", 1).await;
    assert!(!is_of(&own, "a"), "{own}: what is made here is nobody's to speak of");
    let outbox = Outbox::new(to_fetch(dir.path()).dir);
    assert_eq!(outbox.list(9).unwrap(), [name.as_str()], "and none that goes on");

    let mut taking = begun(&here, &name);
    assert!(matches!(here.take(&name, "a").unwrap(), Take::Busy), "one at a time");
    while let Some(piece) = outbox.piece(&name, taking.bytes(), 1000).unwrap().filter(|piece| !piece.is_empty()) {
        taking.push(&piece).unwrap();
    }
    assert_eq!((taking.bytes(), here.read(&name).unwrap()), (seal.bytes, None), "it is there at once, or not at all");
    assert_eq!(taking.keep().unwrap(), seal.sha256);
    assert_eq!(here.read(&name).unwrap(), there.read(&name).unwrap());
    assert!(matches!(here.take(&name, "a").unwrap(), Take::Have(sha) if sha == seal.sha256), "and once");
    assert!(!outbox.forget(&name, &"0".repeat(64)).unwrap(), "what is another one there stays there");
    assert!(outbox.forget(&name, &seal.sha256).unwrap() && outbox.forget(&name, &seal.sha256).unwrap());
    assert_eq!((outbox.list(9).unwrap().len(), there.read(&name).unwrap()), (0, None));
    assert!(outbox.forget("../hub", "").is_ok() && outbox.piece("../x", 0, 9).unwrap().is_none());
    // It counts among the others here.
    drop(here);
    let (here, _) = open(Settings { max_total: 100, ..settings(&dir.path().join("hub")) });
    assert_eq!(here.list(9, |_| true).unwrap(), []);
    assert!(lock(&lost).is_empty());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let (here, _) = open(settings(&dir.path().join("third")));
        begun(&here, &name).keep().unwrap();
        let file = path(&settings(&dir.path().join("third")).dir, &name, false);
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_cluster_brings_nothing_that_is_not_its_own_nor_more_than_one_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let (here, _) = open(settings(dir.path()));
    let own = format!("20261121101500-ab-{}", mark("a"));
    for name in [format!("20261121101500-ab-{}", mark("b")), mark("a"), format!("x-y-{}", mark("a")), "../a".to_owned()]
    {
        assert!(matches!(here.take(&name, "a"), Err(TakeError::Name)), "{name}");
    }
    // Under its own name, but of another cluster by what it says.
    let mut said = serde_json::to_vec(&Head::new(&About { cluster: "b".to_owned(), ..about("ab") })).unwrap();
    said.push(b'\n');
    let mut taking = begun(&here, &own);
    taking.push(&said).unwrap();
    assert!(matches!(taking.keep(), Err(error @ TakeError::Foreign) if error.is_final()));
    let mut taking = begun(&here, &own);
    let piece = vec![0; 1 << 20];
    let refused = (0..).find_map(|n| taking.push(&piece).err().map(|error| (n, error))).unwrap();
    assert!(matches!(refused, (61, TakeError::Long)), "{refused:?}");
    drop(taking);
    assert_eq!(here.list(9, |_| true).unwrap(), []);
    assert_eq!(fs::read_dir(settings(dir.path()).dir).unwrap().count(), 0, "nothing is left of it");
    // Nor is anything left that was on its way when the hub died.
    fs::write(settings(dir.path()).dir.join(format!("{own}.take")), "x").unwrap();
    let (here, _) = open(settings(dir.path()));
    assert_eq!(fs::read_dir(settings(dir.path()).dir).unwrap().count(), 0);
    begun(&here, &own).keep().unwrap();
    assert!(here.find(&own).unwrap().is_some(), "what a crash cut short says nothing of whose it is");
}

#[tokio::test]
async fn f32_what_nobody_fetches_stays_and_none_is_begun_or_goes_on_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let of = Settings { max_file: 2000, max_total: 4000, ..to_fetch(dir.path()) };
    let (there, lost) = open(of.clone());
    let (first, _) = recorded(&there, "ab-1", 1000).await;
    let (second, seal) = recorded(&there, "ab-2", 1500).await;
    assert_eq!(there.begin(&about("ab-3")).await.err(), Some(NoTape::Full), "no room to grow");
    drop(there);
    let (there, _) = open(of.clone());
    assert_eq!(there.begin(&about("ab-4")).await.err(), Some(NoTape::Full), "after a restart too");
    assert!(there.read(&first).unwrap().is_some() && lock(&lost).is_empty(), "nothing was removed for it");
    let outbox = Outbox::new(of.dir);
    assert!(outbox.forget(&second, &seal.sha256).unwrap());
    let going_on = there.begin(&about("ab-5")).await.unwrap();
    let before = outbox.bytes().unwrap();
    going_on.shown(&[b'x'; 3000]);
    going_on.finish("recording_full").await.unwrap();
    // How it ended may still be said.
    let more = outbox.bytes().unwrap() - before;
    assert!(going_on.failed() == Some(NoTape::Full) && more < 100, "it ends, and not too late: {more}");
}

fn bring(here: &Store, name: &str, bytes: usize) {
    let mut taking = begun(here, name);
    taking.push(&vec![b'x'; bytes]).unwrap();
    taking.keep().unwrap();
}

#[tokio::test]
async fn a_cluster_that_brings_much_makes_room_with_its_own_alone() {
    let dir = tempfile::tempdir().unwrap();
    let of = Settings { max_total: 8000, ..settings(dir.path()) };
    let (here, _) = open(of.clone());
    let (own, _) = recorded(&here, "ab", 1000).await;
    let others = format!("20261121101500-ab-{}", mark("b"));
    match here.take(&others, "b").unwrap() {
        Take::Begun(taking) => taking.keep().unwrap(),
        Take::Have(_) | Take::Busy => panic!(),
    };
    let names: Vec<String> = (0..20).map(|n| format!("20261121101500-{n:02}-{}", mark("a"))).collect();
    for name in &names {
        bring(&here, name, 1000);
    }
    let kept = names.iter().filter(|name| here.read(name).unwrap().is_some()).count();
    assert_eq!((kept, here.read(&names[19]).unwrap().is_some()), (2, true), "a quarter of the room, the newest");
    assert!(here.read(&own).unwrap().is_some() && here.read(&others).unwrap().is_some());
    // One for which there is no room stays where it was made.
    let mut taking = begun(&here, &names[0]);
    taking.push(&[b'x'; 8001]).unwrap();
    assert!(matches!(taking.keep(), Err(TakeError::Io(error)) if error.kind() == io::ErrorKind::StorageFull));
    assert!(here.read(&own).unwrap().is_some());
}

#[tokio::test]
async fn what_came_late_keeps_nothing_beyond_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let of = Settings { keep: Duration::from_secs(3600), ..settings(dir.path()) };
    let (here, _) = open(of.clone());
    let (old, _) = recorded(&here, "ab", 1000).await;
    let late = format!("0-0-{}", mark("a"));
    bring(&here, &late, 1000);
    drop(here);
    let file = fs::File::options().write(true).open(path(&of.dir, &old, false)).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).unwrap();
    let (here, _) = open(of);
    assert!(here.read(&old).unwrap().is_none() && here.read(&late).unwrap().is_some());
}
