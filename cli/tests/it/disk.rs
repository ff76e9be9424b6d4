//! The store's real file under a real hub, on a disk that does less than it was asked: an interrupted call, half a write,
//! no more space, nothing written any more; and on a machine whose power goes. `disk.c` stands between the hub and its system's library; cc, which links Rust's programs, builds it.

use super::{
    real::{Hub, free, login, ok},
    run, stderr,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// As in `disk.c`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Interrupted = 1,
    Short = 2,
    Full = 3,
    ReadOnly = 4,
    /// The hub is killed before the call.
    Killed = 5,
    /// It is killed after the first sectors of a write.
    Torn = 6,
    /// It is killed, and all that was not synced is lost.
    Lost = 7,
    /// The disk fails, this once.
    Broken = 8,
}

/// As in `disk.c`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Write,
    Sync,
    Resize,
    Read,
    Any,
}

/// F32: how soon writes are taken after there is space.
const BACK: Duration = Duration::from_secs(5);
/// Writes until so many calls have happened.
const TRIES: usize = 20;

/// What the hub's disk is told.
struct Disk {
    library: PathBuf,
    orders: PathBuf,
    file: File,
}

impl Disk {
    fn make(home: &Path) -> Self {
        let (library, orders) = (home.join("disk.so"), home.join("orders"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/disk.c");
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(&library).arg(source).output();
        let built = built.unwrap(); // cc is there: Rust links with it
        assert!(built.status.success(), "{}", stderr(&built));
        let file = File::options().read(true).write(true).create_new(true).open(&orders).unwrap();
        file.set_len(16).unwrap();
        Self { library, orders, file }
    }

    fn under(&self, hub: &mut Command) {
        hub.env("LD_PRELOAD", &self.library).env("MOORLINE_DISK_ORDERS", &self.orders);
    }

    fn write(&self, at: u64, value: usize) {
        self.file.write_all_at(&i32::try_from(value).unwrap().to_ne_bytes(), at).unwrap();
    }

    /// From now on `fault` befalls the `after`th such call, from 0; a full disk all that come later as well.
    fn set(&self, fault: Fault, call: Call, after: usize) {
        self.clear();
        self.write(12, 0);
        self.write(8, after);
        self.write(4, call as usize);
        self.write(0, fault as usize);
    }

    fn clear(&self) {
        self.write(0, 0);
    }

    fn struck(&self) -> i32 {
        self.read(12)
    }

    fn read(&self, at: u64) -> i32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        i32::from_ne_bytes(bytes)
    }

    /// How many such calls `what` takes.
    fn count(&self, call: Call, what: impl FnOnce()) -> usize {
        let many = i32::MAX;
        self.set(Fault::Killed, call, usize::try_from(many).unwrap());
        what();
        let left = self.read(8);
        self.clear();
        usize::try_from(many - left).unwrap()
    }
}

/// The users that were made, and how many were not.
#[derive(Default)]
struct Users {
    made: Vec<String>,
    refused: usize,
}

impl Users {
    /// What the hub says to one more, if it does not make them.
    fn make(&mut self, home: &Path) -> Result<(), String> {
        let name = format!("u{}", self.made.len() + self.refused);
        let output = run(home, &["user", "create", &name, "--no-password"]);
        if !output.status.success() {
            self.refused += 1;
            return Err(stderr(&output));
        }
        self.made.push(name);
        Ok(())
    }

    fn are_in(&self, home: &Path) {
        let all = ok(home, &["get", "users", "-o", "name"]);
        for name in &self.made {
            let line = format!("user.moorline.dev/{name}");
            assert!(all.lines().any(|l| l == line), "{name} was acknowledged and is not there: {all}");
        }
    }
}

#[test]
fn p06_f32_a_disk_that_does_half_of_what_it_is_asked_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let disk = Disk::make(home);
    // A new file is made long, and later again seldom.
    disk.set(Fault::Interrupted, Call::Resize, 0);
    let hub = Hub::start_with(home, |command| disk.under(command));
    assert_eq!(disk.struck(), 1);
    let password = std::fs::read_to_string(home.join("hub/admin.password")).unwrap();
    login(home, &hub, "admin", &password);
    let mut users = Users::default();

    // Nothing of this is an error: the rest is done by a second call.
    let calls =
        [(Fault::Interrupted, Call::Write, 10), (Fault::Short, Call::Write, 10), (Fault::Interrupted, Call::Sync, 2)];
    for (fault, call, count) in calls {
        for after in 0..count {
            disk.set(fault, call, after);
            let mut tries = 0;
            while disk.struck() == 0 && tries < TRIES {
                tries += 1;
                users.make(home).unwrap_or_else(|why| panic!("{fault:?} in {call:?} {after}: {why}"));
            }
            assert_eq!(disk.struck(), 1, "{fault:?} never befell {call:?} {after}");
        }
    }
    disk.clear();
    users.make(home).unwrap();

    // The disk is full in the middle of the n-th write: it is said, everybody reads, and goes on once there is space.
    for after in [0, 1, 2, 4] {
        disk.set(Fault::Full, Call::Write, after);
        let why = (0..TRIES).find_map(|_| users.make(home).err()).expect("it is noticed");
        assert!(why.contains("until there is space"), "{why}");
        assert!(disk.struck() >= 2, "half a write, and then none");
        users.are_in(home);
        let again = users.make(home).unwrap_err();
        assert!(again.contains("until there is space"), "{again}");
        disk.clear();
        let begun = Instant::now();
        while let Err(why) = users.make(home) {
            assert!(begun.elapsed() < BACK, "{why}");
        }
        users.are_in(home);
    }
    eprintln!("{} were made, {} refused", users.made.len(), users.refused);

    // A kill: the file is whole, and read to its end by a start whose reads bring less than they should.
    drop(hub);
    for (fault, after) in [(Fault::Short, 0), (Fault::Interrupted, 1), (Fault::Short, 5)] {
        disk.set(fault, Call::Read, after);
        let hub = Hub::start_with(home, |command| disk.under(command));
        assert_eq!(disk.struck(), 1, "{fault:?} never befell read {after}");
        login(home, &hub, "admin", &password);
        users.are_in(home);
        users.make(home).unwrap();
    }
}

/// Makes users, changes them and takes every other one away, each of it by one command. A user's number of groups is what it is at.
struct Script {
    /// What was acknowledged.
    known: BTreeMap<String, usize>,
    step: usize,
}

impl Script {
    /// Steps after which it does the same to the next user.
    const ROUND: usize = 3;

    /// What comes next: the words that ask for it, and what it makes of what is known.
    fn next(&self) -> (Vec<String>, BTreeMap<String, usize>) {
        let round = self.step / Self::ROUND;
        let (user, mut asked) = (format!("u{round}"), self.known.clone());
        let words = match self.step % Self::ROUND {
            0 => {
                asked.insert(user.clone(), 0);
                ["user", "create", &user, "--no-password"].map(str::to_owned).to_vec()
            }
            1 => {
                asked.insert(user.clone(), 1);
                ["user", "groups", &user, "--add", "crew"].map(str::to_owned).to_vec()
            }
            _ if round.is_multiple_of(2) => {
                asked.remove(&user);
                ["user", "delete", &user].map(str::to_owned).to_vec()
            }
            _ => {
                asked.insert(user.clone(), 2);
                ["user", "groups", &user, "--add", "mates"].map(str::to_owned).to_vec()
            }
        };
        (words, asked)
    }

    /// One step; `Err`: what it would have come to, which the hub did not acknowledge.
    fn go(&mut self, home: &Path) -> Result<(), (BTreeMap<String, usize>, String)> {
        let (words, asked) = self.next();
        let output = run(home, &words.iter().map(String::as_str).collect::<Vec<_>>());
        if !output.status.success() {
            return Err((asked, stderr(&output)));
        }
        self.known = asked;
        self.step += 1;
        Ok(())
    }

    fn round(&mut self, home: &Path) {
        (0..Self::ROUND).for_each(|_| self.go(home).unwrap_or_else(|(_, why)| panic!("{why}")));
    }

    /// What the hub has of it, every object of which can be read.
    fn found(home: &Path) -> BTreeMap<String, usize> {
        let all: Value = serde_json::from_str(&ok(home, &["get", "users", "-o", "json"])).unwrap();
        let user = |user: &Value| {
            let name = user["metadata"]["name"].as_str().unwrap().to_owned();
            (name.starts_with('u')).then(|| (name, user["spec"]["groups"].as_array().map_or(0, Vec::len)))
        };
        all["items"].as_array().unwrap().iter().filter_map(user).collect()
    }
}

/// A hub that is begun again where it was.
struct Again<'a> {
    home: &'a Path,
    disk: &'a Disk,
    at: [SocketAddr; 2],
}

impl Again<'_> {
    fn begin(&self) -> Hub {
        Hub::begin(self.home, self.at, |command| self.disk.under(command))
    }

    fn start(&self) -> Hub {
        let mut hub = self.begin();
        hub.wait(self.home);
        hub
    }
}

/// Which calls in a row are one kill each: a few of all. `MOORLINE_P01=all`: every one, in each way.
const STRIDE: usize = 4;

/// The power goes at a hub's n-th write, before it, in the middle of it, or with all that was not synced; and now and then
/// once more while it starts after that.
#[test]
fn p01_p02_p03_a_hub_that_is_killed_at_any_write_has_what_it_acknowledged_and_nothing_half() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let disk = Disk::make(home);
    let again = Again { home, disk: &disk, at: [free(), free()] };
    let mut hub = again.start();
    let password = std::fs::read_to_string(home.join("hub/admin.password")).unwrap();
    login(home, &hub, "admin", &password);
    let mut script = Script { known: BTreeMap::new(), step: 0 };
    script.round(home);
    let all = std::env::var("MOORLINE_P01").is_ok();
    let ways: [(Call, &[Fault]); 3] = [
        (Call::Write, &[Fault::Killed, Fault::Torn, Fault::Lost]),
        (Call::Sync, &[Fault::Killed, Fault::Lost]),
        (Call::Resize, &[Fault::Killed, Fault::Lost]),
    ];
    let (mut kills, mut kept) = (0, 0);
    for (call, faults) in ways {
        let count = disk.count(call, || script.round(home));
        let points = (0..count).flat_map(|n| faults.iter().enumerate().map(move |(way, fault)| (n, way, *fault)));
        for (n, _, fault) in points.filter(|(n, way, _)| all || (n % STRIDE == 0 && n / STRIDE % faults.len() == *way))
        {
            disk.set(fault, call, n);
            let asked = loop {
                match script.go(home) {
                    Ok(()) if !hub.has_ended() => {}
                    // It was acknowledged, and the hub fell in what it wrote after it.
                    Ok(()) => break script.known.clone(),
                    Err((asked, _)) => break asked,
                }
            };
            assert_eq!(hub.ended(), None, "it was killed");
            assert_eq!(disk.struck(), 1);
            if kills % STRIDE == 0 {
                // What repairs the file may be killed as well.
                disk.set(fault, Call::Write, kills / STRIDE % 3);
                hub = again.begin();
                while disk.struck() == 0 && !hub.has_ended() && !hub.is_ready() {
                    std::thread::sleep(Duration::from_millis(20));
                }
                disk.clear();
            }
            drop(hub);
            hub = again.start();
            let found = Script::found(home);
            let known = &script.known;
            assert!(found == *known || found == asked, "{fault:?} at {call:?} {n}: {found:?}, {known:?} or {asked:?}");
            kept += usize::from(found != *known);
            kills += 1;
            // As a client does that does not know: it goes on from what there is.
            script.step += usize::from(found == asked && asked != *known);
            script.known = found;
        }
    }
    eprintln!("{kills} kills, after {kept} of which what was not acknowledged is there");
    assert!(kills > 4, "{kills}");
    script.round(home);
}

/// What a sync that failed has left is not known, so the next one that succeeds says nothing.
#[test]
fn f33_a_hub_whose_disk_fails_to_sync_writes_nothing_more_until_it_is_started_again() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let disk = Disk::make(home);
    let again = Again { home, disk: &disk, at: [free(), free()] };
    let hub = again.start();
    let password = std::fs::read_to_string(home.join("hub/admin.password")).unwrap();
    login(home, &hub, "admin", &password);
    let mut users = Users::default();
    users.make(home).unwrap();
    disk.set(Fault::Broken, Call::Sync, 0);
    for _ in 0..2 {
        let why = users.make(home).unwrap_err();
        assert!(why.contains("until it is started again"), "{why}");
        assert_eq!(disk.struck(), 1, "the disk does not fail again");
        users.are_in(home);
    }
    assert!(!hub.is_ready(), "it says so");
    drop(hub);
    let _hub = again.start();
    users.are_in(home);
    users.make(home).unwrap();
    users.are_in(home);
}

#[test]
fn p16_a_disk_that_only_reads_any_more_is_said_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let disk = Disk::make(home);
    let again = Again { home, disk: &disk, at: [free(), free()] };
    let hub = again.start();
    let password = std::fs::read_to_string(home.join("hub/admin.password")).unwrap();
    login(home, &hub, "admin", &password);
    let mut users = Users::default();
    users.make(home).unwrap();
    // As a system does with a disk that has failed.
    disk.set(Fault::ReadOnly, Call::Any, 0);
    for _ in 0..2 {
        let why = users.make(home).unwrap_err();
        assert!(why.contains("Read-only file system") && why.contains("until it is started again"), "{why}");
        users.are_in(home);
    }
    assert!(!hub.is_ready(), "it says so");
    drop(hub);
    let mut hub = again.begin();
    assert_eq!(hub.ended(), Some(1));
    let log = std::fs::read_to_string(home.join("hub.log")).unwrap();
    assert!(log.contains("hub.redb") && log.contains("Read-only file system"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    disk.clear();
    let _hub = again.start();
    users.are_in(home);
    users.make(home).unwrap();
    users.are_in(home);
}
