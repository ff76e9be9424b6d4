//! The store's real file under a real hub, on a disk that does less than it was asked: an interrupted call, half a write,
//! no more space. `disk.c` stands between the hub and its system's library; cc, which links Rust's programs, builds it.

use super::{
    real::{Hub, login, ok},
    run, stderr,
};
use std::{
    fs::File,
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
}

/// As in `disk.c`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Write,
    Sync,
    Resize,
    Read,
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
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, 12).unwrap();
        i32::from_ne_bytes(bytes)
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
