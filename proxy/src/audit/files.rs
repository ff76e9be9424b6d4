//! The log on disk: one file that is written, and older ones beside it.

use super::chain::{Chain, Flaw};
use std::{
    fs, io,
    io::{BufRead, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Longest line that is read back, in bytes. The proxy's records are far shorter.
pub const MAX_LINE: u64 = 1 << 20;

/// Room that a log keeps for itself on its disk beyond its end, in bytes: some eight thousand records, so that what else fills
/// the disk stops no call before somebody can look after it.
const AHEAD: u64 = 8 << 20;
/// Least room that is asked for, in bytes, and how much is written before it is asked for again.
const LEAST: u64 = 64 << 10;

/// Where sealed records go.
pub trait Output: Write + Send + 'static {
    /// Everything that was sealed so far is written: `chain` is where the log is.
    ///
    /// # Errors
    /// No new file could be begun. What comes goes into the old one.
    fn settled(&mut self, _chain: &Chain) -> io::Result<()> {
        Ok(())
    }
}

/// How a log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// A file that is longer than this is set aside, in bytes.
    pub max_bytes: u64,
    /// How many of these are kept; the oldest is removed.
    pub keep: usize,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_bytes: 100 << 20, keep: 50 }
    }
}

/// The file that is written, with those beside it. Beside it stands `<name>.head`: number and hash of the last record,
/// so that a log that was cut at its end is told from one that ends there.
pub struct LogFile {
    path: PathBuf,
    file: fs::File,
    head: fs::File,
    bytes: u64,
    /// Up to where the disk has given room.
    room: u64,
    /// From which length on it is asked for more.
    ask: u64,
    /// A pipe has no past and is not set aside.
    regular: bool,
    rotation: Rotation,
}

/// How a log was found when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it goes on.
    pub chain: Chain,
    /// Bytes of a record that was cut short by a crash. They stay, on a line of their own.
    pub torn: u64,
    /// The last record is not the one that was written last: somebody has cut the log.
    pub cut: bool,
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn head_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

impl LogFile {
    /// Opens a log (mode 0600), or begins one.
    ///
    /// # Errors
    /// A file cannot be opened, or its end not be read.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<(Self, Found)> {
        // Not for reading: to a pipe that this process could read itself, writing would never fail.
        let mut file = options().append(true).open(path)?;
        let regular = file.metadata()?.is_file();
        let mut head = options().read(true).write(true).truncate(false).open(head_of(path))?;
        let mut said = String::new();
        Read::by_ref(&mut head).take(256).read_to_string(&mut said)?;
        let said = read_head(&said);
        let (last, torn) = if regular { last_line(&mut fs::File::open(path)?)? } else { (None, 0) };
        let mut chain = match last {
            Some(line) => Chain::after(&line).ok(),
            None => newest_rotated(path).and_then(|old| {
                let (line, _) = last_line(&mut fs::File::open(old).ok()?).ok()?;
                Chain::after(&line?).ok()
            }),
        };
        // A crash may come between a record and its head, never the other way round.
        let cut = match (&chain, &said) {
            _ if !regular => false,
            (Some(chain), Some(said)) => chain.next < said.next || (chain.next == said.next && chain.last != said.last),
            (None, said) => said.is_some(),
            (Some(_), None) => false,
        };
        if cut || !regular {
            chain = said;
        }
        if torn > 0 {
            file.write_all(b"\n")?;
        }
        let bytes = file.metadata()?.len();
        let found = Found { chain: chain.unwrap_or_default(), torn, cut };
        let mut log = Self { path: path.to_owned(), file, head, bytes, room: 0, ask: 0, regular, rotation };
        log.reserve();
        Ok((log, found))
    }

    /// Takes room for what comes, or as much of it as the disk has. Where its file system cannot, records are written for as
    /// long as there is some.
    fn reserve(&mut self) {
        if !self.regular || self.bytes < self.ask || self.bytes + AHEAD / 2 <= self.room {
            return;
        }
        let from = self.room.max(self.bytes);
        if let Some(given) = most(self.bytes + AHEAD - from, |length| ahead(&self.file, from, length)) {
            self.room = from + given;
        }
        // On a full disk each answer takes its time.
        self.ask = self.bytes + LEAST;
    }

    /// Sets the file aside as `<stem>-<number of its first record>.log` and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let first = first_record(&self.path)?;
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let aside = self.path.with_file_name(format!("{stem}-{first:020}.log"));
        if aside.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, aside.display().to_string()));
        }
        give_back(&self.file);
        self.file.sync_all()?;
        fs::rename(&self.path, &aside)?;
        self.file = options().append(true).open(&self.path)?;
        (self.bytes, self.room, self.ask) = (0, 0, 0);
        let old = rotated(&self.path);
        for gone in old.iter().take(old.len().saturating_sub(self.rotation.keep)) {
            tracing::info!(file = %gone.display(), "the oldest audit file is removed, as so many are kept as was said");
            fs::remove_file(gone)?;
        }
        // On a full disk the oldest's room is all there is.
        self.reserve();
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Output for LogFile {
    fn settled(&mut self, chain: &Chain) -> io::Result<()> {
        self.head.seek(SeekFrom::Start(0))?;
        self.head.write_all(format!("{:020} {}\n", chain.next, chain.last).as_bytes())?;
        self.reserve();
        if self.regular && self.bytes > self.rotation.max_bytes { self.rotate() } else { Ok(()) }
    }
}

/// The most that is given of `wanted` bytes, by halves.
fn most(wanted: u64, given: impl Fn(u64) -> bool) -> Option<u64> {
    let halves = std::iter::successors(Some(wanted), |length| Some(length / 2));
    halves.take_while(|length| LEAST <= *length).find(|length| given(*length))
}

/// Whether the disk keeps `length` bytes at `from` for this file, whose own length stays.
#[cfg(target_os = "linux")]
fn ahead(file: &fs::File, from: u64, length: u64) -> bool {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, from, length).is_ok()
}
#[cfg(not(target_os = "linux"))]
fn ahead(_: &fs::File, _: u64, _: u64) -> bool {
    false
}

/// What the disk keeps beyond a file's end is the next one's. The length is the file's own: another may have cut it.
#[cfg(target_os = "linux")]
fn give_back(file: &fs::File) {
    if let Err(error) = file.metadata().and_then(|metadata| file.set_len(metadata.len())) {
        tracing::debug!("an audit file that was set aside keeps the room beyond its end: {error}");
    }
}
#[cfg(not(target_os = "linux"))]
fn give_back(_: &fs::File) {}

fn read_head(text: &str) -> Option<Chain> {
    let (next, last) = text.trim_end().split_once(' ')?;
    Some(Chain { next: next.parse().ok()?, last: last.to_owned() })
}

/// The last whole line, and how many bytes without a line's end come after it.
fn last_line(file: &mut fs::File) -> io::Result<(Option<Vec<u8>>, u64)> {
    let len = file.metadata()?.len();
    let from = len.saturating_sub(MAX_LINE);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    Read::by_ref(file).take(MAX_LINE).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let torn = (tail.len() - whole) as u64;
    let lines = tail.get(..whole).unwrap_or_default();
    // Lines that a crash has torn earlier are no records.
    let last = lines.rsplit(|b| *b == b'\n').find(|line| Chain::after(line).is_ok());
    Ok((last.map(<[u8]>::to_vec), torn))
}

/// Number of a file's first record; 0 if it has none. A file may begin with a line that a crash has torn.
fn first_record(path: &Path) -> io::Result<u64> {
    let mut reader = io::BufReader::new(fs::File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(0);
        }
        if let Ok(chain) = Chain::before(line.trim_ascii_end()) {
            return Ok(chain.next);
        }
    }
}

/// The files that were set aside, oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let stem = format!("{}-", path.file_stem().unwrap_or_default().to_string_lossy());
    let Some(Ok(entries)) = path.parent().map(fs::read_dir) else { return Vec::new() };
    let number = |name: &str| {
        name.strip_prefix(&stem)
            .and_then(|rest| rest.strip_suffix(".log"))
            .is_some_and(|n| n.len() == 20 && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let names = entries.flatten().filter(|entry| number(&entry.file_name().to_string_lossy()));
    let mut all: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
    all.sort();
    all
}

fn newest_rotated(path: &Path) -> Option<PathBuf> {
    rotated(path).pop()
}

/// All files of a log, oldest first, the one that is written last.
pub fn all(path: &Path) -> Vec<PathBuf> {
    let mut all = rotated(path);
    all.extend(path.exists().then(|| path.to_owned()));
    all
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Records of the chain.
    pub records: u64,
    /// Number of the first one; more than 1 where older files were removed.
    pub first: u64,
    /// Where the chain is.
    pub end: Chain,
    /// Every flaw: file, line, what.
    pub flaws: Vec<(PathBuf, u64, String)>,
    /// Lines that a crash has cut short, told by the record after them: file and line.
    pub torn: Vec<(PathBuf, u64)>,
}

/// Reads a whole log and follows its chain. A flaw does not end it: the chain is taken up after it.
///
/// # Errors
/// A file cannot be read.
pub fn verify(path: &Path, most_flaws: usize) -> io::Result<Report> {
    let mut report = Report::default();
    let mut chain: Option<Chain> = None;
    for file in all(path) {
        let mut reader = io::BufReader::new(fs::File::open(&file)?);
        let (mut line, mut number) = (Vec::new(), 0);
        loop {
            line.clear();
            if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            number += 1;
            let text = line.trim_ascii_end();
            let Some(known) = &mut chain else {
                match Chain::before(text) {
                    Ok(before) => {
                        report.first = before.next;
                        chain = Some(Chain::after(text).unwrap_or_default());
                        report.records += 1;
                    }
                    // What was removed with the oldest files is told by the first number, here as elsewhere.
                    Err(Flaw::Unreadable) => report.torn.push((file.clone(), number)),
                    Err(flaw) => report.flaws.push((file.clone(), number, flaw.to_string())),
                }
                continue;
            };
            match known.follow(text) {
                Ok(()) => report.records += 1,
                Err(Flaw::Unreadable) => report.torn.push((file.clone(), number)),
                Err(flaw) => {
                    report.flaws.push((file.clone(), number, flaw.to_string()));
                    if let Ok(after) = Chain::after(text) {
                        *known = after;
                    }
                }
            }
            if report.flaws.len() >= most_flaws {
                return Ok(report);
            }
        }
    }
    report.end = chain.unwrap_or_default();
    let head = fs::read_to_string(head_of(path)).ok().and_then(|text| read_head(&text));
    if let Some(head) = head.filter(|head| *head != report.end && report.end.next <= head.next) {
        let what = format!("the log ends before record {}, which was its last", head.next.saturating_sub(1));
        report.flaws.push((path.to_owned(), 0, what));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(log: &mut LogFile, chain: &mut Chain, names: &[&str]) {
        for name in names {
            let mut line = Vec::new();
            chain.seal(format!("{{\"user\":\"{name}\"}}").as_bytes(), &mut line);
            log.write_all(&line).unwrap();
            log.settled(chain).unwrap();
        }
    }

    #[test]
    fn a_log_goes_on_over_files_restarts_and_crashes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let rotation = Rotation { max_bytes: 300, keep: 2 };
        let open = || LogFile::open(&path, rotation.clone()).unwrap();
        let (mut log, Found { mut chain, .. }) = open();
        write(&mut log, &mut chain, &["a", "b", "c", "d", "e"]);
        drop(log);
        let (mut log, found) = open();
        assert_eq!((&found.chain, found.cut), (&chain, false), "goes on where it was");
        write(&mut log, &mut chain, &["f"]);
        let report = verify(&path, 10).unwrap();
        assert_eq!((report.records, report.first, report.flaws.len()), (6, 1, 0), "{report:?}");
        assert!(all(&path).len() > 1);
        log.write_all(b"{\"half a rec").unwrap();
        drop(log);
        let (mut log, found) = open();
        assert_eq!((found.torn, found.cut), (12, false));
        write(&mut log, &mut chain, &["g", "h", "i", "j", "k", "l"]);
        let report = verify(&path, 10).unwrap();
        assert_eq!((report.flaws.len(), report.end == chain), (0, true), "{report:?}");
        assert!(report.first > 1 && all(&path).len() <= 3, "the oldest is gone: {report:?}");
    }

    #[test]
    fn s70_a_log_that_was_cut_at_its_end_is_seen_at_the_next_start_and_by_a_verification() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (mut log, Found { mut chain, .. }) = LogFile::open(&path, Rotation::default()).unwrap();
        write(&mut log, &mut chain, &["a", "b", "c"]);
        drop(log);
        let text = fs::read_to_string(&path).unwrap();
        let two: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
        fs::write(&path, two).unwrap();
        assert!(verify(&path, 10).unwrap().flaws[0].2.contains("ends before record 3"));
        let (mut log, found) = LogFile::open(&path, Rotation::default()).unwrap();
        assert!(found.cut);
        chain = found.chain;
        write(&mut log, &mut chain, &["d"]);
        let report = verify(&path, 10).unwrap();
        assert!(report.flaws[0].2.contains("record 4 stands where 3 belongs"), "it stays visible: {report:?}");
        fs::remove_file(&path).unwrap();
        assert!(LogFile::open(&path, Rotation::default()).unwrap().1.cut, "all of it");
    }

    #[test]
    fn as_much_room_is_taken_as_there_is() {
        assert_eq!(most(AHEAD, |_| true), Some(AHEAD));
        assert_eq!(most(AHEAD, |length| length < AHEAD / 8), Some(AHEAD / 16));
        assert_eq!(most(AHEAD, |length| length <= LEAST), Some(LEAST));
        assert_eq!(most(AHEAD, |length| length < LEAST), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn room_is_kept_ahead_of_the_end_and_given_back_with_the_file() {
        let on_disk = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap()) * 512;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (mut log, Found { mut chain, .. }) = LogFile::open(&path, Rotation { max_bytes: AHEAD, keep: 1 }).unwrap();
        if on_disk(&path) == 0 {
            return; // A file system that keeps nothing.
        }
        let torn = [vec![b'x'; 5 << 20], vec![b'\n']].concat();
        log.write_all(&torn).unwrap();
        write(&mut log, &mut chain, &["a"]);
        assert_eq!(log.room, log.bytes + AHEAD);
        let taken = on_disk(&path);
        assert!(log.room <= taken, "without a gap: {taken}, {}", log.room);
        let (room, ask) = (log.room, log.ask);
        write(&mut log, &mut chain, &["b"]);
        assert_eq!((log.room, log.ask), (room, ask), "there is enough");
        log.write_all(&torn).unwrap();
        write(&mut log, &mut chain, &["c", "d"]);
        let [aside, now] = &*all(&path) else { panic!("it was set aside once") };
        assert!(on_disk(aside) < room, "what it did not need is given back: {}", on_disk(aside));
        assert!(AHEAD <= on_disk(now), "and the next one has its own: {}", on_disk(now));
    }

    #[test]
    fn a_log_that_another_cut_is_set_aside_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let rotation = Rotation { max_bytes: 400, keep: 2 };
        let (mut log, Found { mut chain, .. }) = LogFile::open(&path, rotation).unwrap();
        write(&mut log, &mut chain, &["a", "b"]);
        options().write(true).open(&path).unwrap().set_len(0).unwrap();
        write(&mut log, &mut chain, &["c", "d", "e", "f"]);
        let files = all(&path);
        assert!(files.len() > 1);
        for file in files {
            assert!(!fs::read(&file).unwrap().contains(&0), "{}", file.display());
        }
        assert_eq!(verify(&path, 10).unwrap().end, chain);
    }
}
