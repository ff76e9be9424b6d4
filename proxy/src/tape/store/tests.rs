mod fetched;

use super::{
    folder::path,
    keeper::{Disk, hex},
    tape::QUEUE,
    *,
};
use sha2::{Digest, Sha256};
use std::{
    future::{Future, poll_fn},
    io::Write,
    path::Path,
    task::{Context, Waker},
};

fn settings(dir: &Path) -> Settings {
    Settings {
        dir: dir.join("recordings"),
        max_file: 1 << 20,
        max_total: 1 << 30,
        keep: Duration::from_secs(3600),
        policy: OnFailure::Refuse,
        over: Over::Kept,
    }
}

fn about(id: &str) -> About {
    About {
        audit_id: id.to_owned(),
        user: "ann".to_owned(),
        cluster: "a".to_owned(),
        started: crate::audit::now(),
        ..About::default()
    }
}

fn open(settings: Settings) -> (Arc<Store>, Arc<Mutex<Vec<Lost>>>) {
    let lost = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&lost);
    (Store::open(settings, move |one| lock(&told).push(one)).unwrap(), lost)
}

/// What the terminal showed, as a player shows it.
fn played(file: &[u8], wanted: &str) -> String {
    let text = String::from_utf8(file.to_vec()).unwrap();
    let events = text.lines().skip(1).map(|line| serde_json::from_str::<(f64, String, String)>(line).unwrap());
    events.filter(|(_, code, _)| code == wanted).map(|(_, _, text)| text).collect()
}

async fn room(tape: &Tape) -> Result<(), NoTape> {
    tokio::time::timeout(Duration::from_secs(30), poll_fn(|cx| tape.poll_room(cx))).await.unwrap()
}

#[tokio::test]
async fn what_is_shown_is_played_and_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(settings(dir.path()));
    let tape = store.begin(&About { input: true, ..about("ab-12") }).await.unwrap();
    let listed = store.list(9, |_| true).unwrap();
    assert!(listed[0].open && listed[0].about.user == "ann", "{listed:?}");
    for part in ["$ ", "l", "s\r\n", "gr\u{fc}n"] {
        tape.shown(part.as_bytes());
    }
    tape.typed(b"ls\r");
    tape.resized(100, 30);
    let seal = tape.finish("complete").await.unwrap();
    let file = store.read(tape.name()).unwrap().unwrap();
    assert_eq!((played(&file, "o").as_str(), played(&file, "i").as_str()), ("$ ls\r\ngr\u{fc}n", "ls\r"));
    assert_eq!((played(&file, "r").as_str(), played(&file, "m").as_str()), ("100x30", "ended: complete"));
    assert_eq!(seal, Seal { sha256: hex(&Sha256::digest(&file)), bytes: file.len() as u64, lost: 0 });
    assert!(!store.list(9, |_| true).unwrap()[0].open);
    assert!(store.list(9, |one| one.about.user == "bob").unwrap().is_empty());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let dir = settings(dir.path()).dir;
        assert_eq!((mode(&dir), mode(&path(&dir, tape.name(), false))), (0o700, 0o600));
    }
}

#[tokio::test]
async fn no_input_is_kept_that_nobody_wants_and_nothing_of_no_session() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(settings(dir.path()));
    let tape = store.begin(&about("1")).await.unwrap();
    tape.typed(b"hunter2");
    tape.shown(b"x");
    tape.finish("complete").await.unwrap();
    assert!(!String::from_utf8(store.read(tape.name()).unwrap().unwrap()).unwrap().contains("hunter2"));
    let none = store.begin(&about("2")).await.unwrap();
    none.discard();
    // Jobs are done in turn: after one more there is nothing left of it.
    store.begin(&about("3")).await.unwrap().finish("complete").await.unwrap();
    assert_eq!(store.read(none.name()).unwrap(), None);
    for name in ["../audit", "x/y", "", ".", "a.cast", "/etc/passwd"] {
        assert_eq!(store.read(name).unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn one_that_is_too_long_ends_its_session_or_goes_on_without() {
    let dir = tempfile::tempdir().unwrap();
    for policy in [OnFailure::Refuse, OnFailure::Continue] {
        let of = settings(&dir.path().join(format!("{policy:?}")));
        let (store, _) = open(Settings { max_file: 2000, policy, ..of });
        let tape = store.begin(&about("1")).await.unwrap();
        tape.shown(&[b'x'; 3000]);
        store.begin(&about("2")).await.unwrap(); // after this the first is written
        assert_eq!(tape.failed(), Some(NoTape::Long));
        let expected = if policy == OnFailure::Refuse { Err(NoTape::Long) } else { Ok(()) };
        assert_eq!(room(&tape).await, expected);
        tape.shown(b"unseen");
        assert_eq!(tape.finish("complete").await.unwrap().lost, 6);
    }
}

#[tokio::test]
async fn f32_a_folder_that_is_gone_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(settings(dir.path()));
    let before = store.begin(&about("1")).await.unwrap();
    fs::remove_dir_all(settings(dir.path()).dir).unwrap();
    assert_eq!(store.begin(&about("2")).await.err(), Some(NoTape::Failed));
    assert_eq!(before.finish("complete").await, None, "nothing is said to be sealed that is not there");
}

#[tokio::test]
async fn what_does_not_keep_up_is_waited_for_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(Settings { max_file: 1 << 30, ..settings(dir.path()) });
    let tape = store.begin(&about("1")).await.unwrap();
    let mut all = 0;
    for _ in 0..200 {
        room(&tape).await.unwrap();
        tape.shown(&[b'y'; 16 << 10]);
        all += 16 << 10;
        assert!(lock(&tape.state).waiting.len() < QUEUE + (20 << 10));
    }
    let seal = tape.finish("complete").await.unwrap();
    assert_eq!((played(&store.read(tape.name()).unwrap().unwrap(), "o").len(), seal.lost), (all, 0));

    // Where sessions go on without, what does not fit is left out and counted, and the recording says where.
    let (store, _) = open(Settings { policy: OnFailure::Continue, ..settings(&dir.path().join("other")) });
    let tape = store.begin(&about("1")).await.unwrap();
    let held = lock(&tape.out); // the disk stands still
    for _ in 0..40 {
        tape.shown(&[b'y'; 16 << 10]);
    }
    assert!(lock(&tape.state).waiting.len() < QUEUE + (20 << 10));
    drop(held);
    let seal = tape.finish("complete").await.unwrap();
    assert!(seal.lost > 0, "{seal:?}");
}

/// A file that takes so many bytes more, cannot be made shorter, or stands still until it is told, as the test says.
struct Narrow {
    file: fs::File,
    room: usize,
    stays: bool,
    gate: Option<mpsc::Receiver<()>>,
}

impl Narrow {
    fn under(tape: &Tape, of: &Settings, room: usize) -> Self {
        let file = fs::OpenOptions::new().append(true).open(path(&of.dir, tape.name(), true)).unwrap();
        Self { file, room, stays: false, gate: None }
    }
}

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.room);
        if n == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= n;
        self.file.write(&bytes[..n])
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for Narrow {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        if self.stays { Err(io::ErrorKind::Unsupported.into()) } else { self.file.cut(length) }
    }
    fn settle(&mut self) -> io::Result<()> {
        if let Some(gate) = self.gate.take() {
            let _ = gate.recv();
        }
        self.file.settle()
    }
}

#[tokio::test]
async fn f32_what_a_full_disk_took_in_part_is_sealed_as_it_is() {
    for stays in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let of = settings(dir.path());
        let (store, _) = open(of.clone());
        let tape = store.begin(&about("1")).await.unwrap();
        lock(&tape.out).as_mut().unwrap().file = Box::new(Narrow { stays, ..Narrow::under(&tape, &of, 10) });
        tape.shown(b"more than there is room for");
        let seal = tape.finish("recording_failed").await.unwrap();
        assert_eq!(tape.failed(), Some(NoTape::Failed));
        let file = store.read(tape.name()).unwrap().unwrap();
        let expected = Seal { sha256: hex(&Sha256::digest(&file)), bytes: file.len() as u64, lost: 0 };
        assert_eq!((seal, file.ends_with(b"\n")), (expected, !stays), "a line is there, or it is not");
    }
}

#[tokio::test]
async fn f32_what_is_sealed_too_late_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (of, (tell, told)) = (settings(dir.path()), mpsc::channel());
    let store = Store::open(of.clone(), move |one| tell.send(one).unwrap()).unwrap();
    let tape = store.begin(&about("1")).await.unwrap();
    let (go, gate) = mpsc::channel();
    let standing = Narrow { gate: Some(gate), ..Narrow::under(&tape, &of, usize::MAX) };
    lock(&tape.out).as_mut().unwrap().file = Box::new(standing);
    tokio::time::pause(); // patience is over at once
    assert_eq!(tape.finish("complete").await, None);
    go.send(()).unwrap();
    let lost = told.recv_timeout(Duration::from_secs(30)).unwrap();
    let sha256 = hex(&Sha256::digest(store.read(tape.name()).unwrap().unwrap()));
    assert_eq!(lost, Lost { name: tape.name().to_owned(), sha256 });
}

#[tokio::test]
async fn who_goes_while_it_is_begun_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(settings(dir.path()));
    let other = store.begin(&about("1")).await.unwrap();
    let what = about("2");
    let mut gone = Box::pin(store.begin(&what));
    {
        let _held = lock(&other.out); // the disk stands still, so that it is not there at once
        other.shown(b"x");
        assert!(gone.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    // Jobs are done in turn: by now its file is there, and it was told so.
    store.begin(&about("3")).await.unwrap();
    assert_eq!(store.list(9, |_| true).unwrap().len(), 3);
    drop(gone);
    store.begin(&about("4")).await.unwrap();
    let names: Vec<String> = store.list(9, |_| true).unwrap().into_iter().map(|kept| kept.about.audit_id).collect();
    assert!(names.len() == 3 && !names.contains(&"2".to_owned()), "{names:?}");
}

#[tokio::test]
async fn none_is_begun_while_there_is_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(Settings { max_total: 4000, ..settings(dir.path()) });
    let tape = store.begin(&about("1")).await.unwrap();
    tape.shown(&[b'x'; 5000]);
    assert_eq!(store.begin(&about("2")).await.err(), Some(NoTape::Full), "those that are open are not removed");
    tape.finish("complete").await.unwrap();
    store.begin(&about("3")).await.unwrap();
}

#[tokio::test]
async fn many_at_a_time_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(settings(dir.path()));
    let mut all = Vec::new();
    for n in 0..OPEN {
        all.push(store.begin(&about(&format!("{n:x}"))).await.unwrap());
    }
    assert_eq!(store.begin(&about("ffff")).await.err(), Some(NoTape::TooMany));
    all[0].finish("complete").await.unwrap();
    all.remove(0);
    // The thread lets go of it right after it has told us.
    let again = async {
        while store.begin(&about("fffe")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.unwrap();
}

#[tokio::test]
async fn the_oldest_go_and_what_a_crash_left_open_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let of = settings(dir.path());
    let (store, _) = open(of.clone());
    let first = store.begin(&About { started: "2026-01-01T00:00:00.000000Z".into(), ..about("1") }).await.unwrap();
    first.shown(&[b'x'; 5000]);
    first.finish("complete").await.unwrap();
    let cut = store.begin(&About { started: "2026-01-02T00:00:00.000000Z".into(), ..about("2") }).await.unwrap();
    cut.shown(b"half");
    store.begin(&about("3")).await.unwrap().finish("complete").await.unwrap(); // by now what was shown is written
    let (first, cut) = (first.name().to_owned(), cut.name().to_owned());
    drop(store);
    let (store, lost) = open(Settings { max_total: 4000, ..of });
    let sealed = store.read(&cut).unwrap().unwrap();
    let expected = [
        Lost { name: cut, sha256: hex(&Sha256::digest(&sealed)) },
        Lost { name: first.clone(), sha256: String::new() },
    ];
    assert_eq!(*lock(&lost), expected);
    assert_eq!((played(&sealed, "o").as_str(), store.read(&first).unwrap()), ("half", None));
}
