//! The store's file: tables of redb, and what can go wrong with the disk under them.

use crate::{
    backend::{Backend, Bounds, Group, Landed, Landing, News, WriteError},
    seal::{self, Part, Seal, SealError, StoreKey},
    store::{CommitError, Kept, OpenError, State, StoreEvent},
    stored::Stored,
    witness::Witness,
};
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend, TableDefinition};
use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const PRIVATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("private");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Of a sealed store: its own key, encrypted.
const SEAL: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("seal");
const WRAPPED: &str = "key";

/// Bytes of the file's pages that are held in memory: those that writes go through.
const PAGES: usize = 4 << 20;

/// Of a file that was found to be damaged.
const DAMAGED: &str = "damaged";

/// The format of the file. A higher number was written by a newer version and is refused untouched.
pub(crate) const FORMAT: u64 = 2;
/// The format of one that is not sealed, which older versions know too.
const PLAIN: u64 = 1;

/// Where a store's bytes are kept.
pub trait Disk: Send + 'static {
    /// Opens it, or makes it. Called again after the disk was full.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>>;
    /// Its name, in errors.
    fn name(&self) -> String;
}

/// A file.
pub(crate) struct File(pub(crate) PathBuf);

impl Disk for File {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // Hashes of secrets are in it.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&self.0)?;
        Ok(Box::new(redb::backends::FileBackend::new(file).map_err(io::Error::other)?))
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

/// Why a file could not be opened or read.
pub(crate) enum LoadError {
    Newer(u64),
    Seal(SealError),
    Disk(redb::Error),
}

impl LoadError {
    pub(crate) fn named(self, path: &str) -> OpenError {
        let path = path.to_owned();
        match self {
            Self::Newer(found) => OpenError::Newer { path, found },
            Self::Seal(source) => OpenError::Sealed { place: path, source },
            Self::Disk(error) => OpenError::Database { path, why: error.to_string() },
        }
    }
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Disk(error.into())
    }
}

/// The open file.
pub(crate) struct Redb {
    database: Database,
    witness: Witness,
    pub(crate) seal: Option<Arc<Seal>>,
}

/// What a file is opened with.
#[derive(Clone, Default)]
pub(crate) enum With {
    /// Nothing: it is not sealed.
    #[default]
    Nothing,
    /// A key: it is sealed, or new.
    Key(StoreKey),
    /// What another store is sealed with: it is new.
    Seal(Arc<Seal>),
}

impl From<Option<StoreKey>> for With {
    fn from(key: Option<StoreKey>) -> Self {
        key.map_or(Self::Nothing, Self::Key)
    }
}

impl From<Option<Arc<Seal>>> for With {
    fn from(seal: Option<Arc<Seal>>) -> Self {
        seal.map_or(Self::Nothing, Self::Seal)
    }
}

impl Redb {
    /// Opens the file and reads all of it.
    pub(crate) fn open(disk: &dyn Disk, with: &With) -> Result<(Self, State), LoadError> {
        let witness = Witness::holding(disk.open().map_err(redb::Error::Io)?);
        let repaired = Arc::new(AtomicBool::new(false));
        let noted = Arc::clone(&repaired);
        // Everything is held in memory once; the file's pages need not be there a second time.
        let mut database = Database::builder()
            .set_cache_size(PAGES)
            .set_repair_callback(move |_| noted.store(true, Ordering::Relaxed))
            .create_with_backend(witness.clone())?;
        // Opening alone marks a file, and puts right what a kill left: not one that is another version's.
        if let Some(found) = Begun::look(&database)?.format.filter(|found| FORMAT < *found) {
            return Err(LoadError::Newer(found));
        }
        witness.release().map_err(redb::Error::Io)?;
        verify(&mut database, repaired.load(Ordering::Relaxed))?;
        let (state, seal) = load(&database, with)?;
        Ok((Self { database, witness, seal }, state))
    }

    /// What an error of a write means for the ones to come.
    pub(crate) fn trouble(&self, error: &redb::Error) -> CommitError {
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match error {
            redb::Error::Io(e) if full(e) && !self.witness.lost() => CommitError::Full(e.to_string()),
            other => CommitError::Failed(other.to_string()),
        }
    }

    /// Makes the changes in one transaction, after which the store is at `revision`; returns once it is on disk.
    pub(crate) fn write(
        &self,
        events: &[StoreEvent],
        records: &[(String, Option<Bytes>)],
        revision: Option<u64>,
    ) -> Result<(), redb::Error> {
        let seal = self.seal.as_deref();
        let failed = |e: SealError| redb::Error::Io(io::Error::other(e));
        let write = self.database.begin_write()?;
        {
            let mut objects = write.open_table(OBJECTS)?;
            for event in events {
                match &event.after {
                    Some(_) => {
                        let value = seal::kept(seal, Part::Objects, &event.key, event.text().as_bytes());
                        objects.insert(&*event.key, &*value.map_err(failed)?)?;
                    }
                    None => {
                        objects.remove(&*event.key)?;
                    }
                }
            }
            let mut private = write.open_table(PRIVATE)?;
            for (key, value) in records {
                match value {
                    Some(value) => {
                        let value = seal::kept(seal, Part::Private, key, value).map_err(failed)?;
                        private.insert(key.as_str(), &*value)?
                    }
                    None => private.remove(key.as_str())?,
                };
            }
            if let Some(revision) = revision {
                write.open_table(META)?.insert("revision", revision)?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

/// A store's file, open or to be opened again.
pub(crate) struct OnDisk {
    disk: Box<dyn Disk>,
    with: With,
    redb: Option<Redb>,
}

impl OnDisk {
    pub(crate) fn open(disk: Box<dyn Disk>, with: With) -> Result<(Self, State), OpenError> {
        let (redb, state) = Redb::open(&*disk, &with).map_err(|error| error.named(&disk.name()))?;
        Ok((Self { disk, with, redb: Some(redb) }, state))
    }
}

impl Backend for OnDisk {
    fn seal(&self) -> Option<Arc<Seal>> {
        self.redb.as_ref().and_then(|redb| redb.seal.clone())
    }

    fn bounds(&self) -> Bounds {
        Bounds { keys: usize::MAX, bytes: usize::MAX, once: false }
    }

    /// Reading the whole file each second is too much for a disk in trouble: whoever wants it back asks.
    fn is_shared(&self) -> bool {
        false
    }

    async fn write(&mut self, group: &Group) -> Result<(), WriteError> {
        let Some(redb) = &self.redb else {
            return Err(WriteError::Stopped(CommitError::Failed("its file is closed".into())));
        };
        let Err(error) = redb.write(&group.events, &group.private, group.events.last().map(|e| e.revision)) else {
            return Ok(());
        };
        let trouble = redb.trouble(&error);
        // After any error this file answers nothing but that there was one.
        self.redb = None;
        Err(match trouble {
            CommitError::Full(_) => WriteError::Doubtful(trouble),
            _ => WriteError::Stopped(trouble),
        })
    }

    async fn recover(&mut self, doubtful: &Group, known: u64) -> Result<News, WriteError> {
        let (redb, found) = Redb::open(&*self.disk, &self.with)
            .map_err(|error| WriteError::Doubtful(CommitError::Full(error.named(&self.disk.name()).to_string())))?;
        let written = doubtful.events.last().is_some_and(|event| event.revision == found.revision);
        if !written && found.revision != known {
            let why = format!("the file is at revision {}, and {known} was acknowledged", found.revision);
            return Err(WriteError::Stopped(CommitError::Failed(why)));
        }
        self.redb = Some(redb);
        let landed = |e: &StoreEvent| Landed { revision: e.revision, key: Arc::clone(&e.key), after: e.after.clone() };
        let events = if written { doubtful.events.iter().map(landed).collect() } else { Vec::new() };
        // Records move no revision, so they are taken as they are found.
        let private = doubtful.private.iter().map(|(key, _)| (key.clone(), found.private.get(key).cloned())).collect();
        Ok(News::Landings(vec![Landing { events, private }]))
    }

    /// The file has one owner.
    async fn news(&mut self) -> Result<News, WriteError> {
        std::future::pending().await
    }
}

/// Holds every page that is in use to its checksum: a bit that was flipped on the disk must not become a right.
///
/// What cannot be read is put right by going back to the state before, which is not the one that was acknowledged: such a
/// file is marked, and never opened again. `repaired`: opening has just held them all to theirs, for nobody had closed it.
fn verify(database: &mut Database, repaired: bool) -> Result<(), LoadError> {
    let damaged = || {
        let why = "it was damaged, and its newest state cannot be read: put a backup back";
        LoadError::Disk(redb::Error::Corrupted(why.to_owned()))
    };
    if !repaired && !database.check_integrity()? {
        let write = database.begin_write()?;
        write.open_table(META)?.insert(DAMAGED, 1)?;
        write.commit()?;
        return Err(damaged());
    }
    match database.begin_read()?.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(meta) if meta.get(DAMAGED)?.is_some() => Err(damaged()),
        Ok(_) => Ok(()),
    }
}

/// Objects that are handed on together, and how many such portions wait.
const PORTION: usize = 128;
const PORTIONS: usize = 8;

/// Keys and texts, in order.
type Portion = Vec<(Arc<str>, Vec<u8>)>;

fn take(portions: mpsc::Receiver<Portion>) -> Result<BTreeMap<Arc<str>, Kept>, LoadError> {
    let mut all = Vec::new();
    for (key, text) in portions.into_iter().flatten() {
        let (stored, revision) =
            Stored::read(text).map_err(|e| redb::Error::Corrupted(format!("object {key}: {e}")))?;
        all.push((key, Kept { revision, stored }));
    }
    // They come in order: a tree of them is made at once.
    Ok(all.into_iter().collect())
}

/// Reads the whole file.
fn load(database: &Database, with: &With) -> Result<(State, Option<Arc<Seal>>), LoadError> {
    let seal = begin(database, with)?;
    let sealed = |error: SealError| match error {
        SealError::Damaged(_) => LoadError::Disk(redb::Error::Corrupted(error.to_string())),
        other => LoadError::Seal(other),
    };
    let read = database.begin_read()?;
    // Not 0, which means "any" in requests: an empty store has been at 1.
    let revision = read.open_table(META)?.get("revision")?.map_or(1, |v| v.value());
    let mut state = State { revision, compacted: revision, ..State::default() };
    state.objects = thread::scope(|scope| {
        // Reading the texts takes as long as reading the file, and is done beside it.
        let (give, portions) = mpsc::sync_channel::<Portion>(PORTIONS);
        let objects = scope.spawn(move || take(portions));
        let mut portion = Portion::with_capacity(PORTION);
        for row in read.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let text = seal::read(seal.as_deref(), Part::Objects, key.value(), value.value()).map_err(sealed)?;
            portion.push((key.value().into(), text.into_owned()));
            // Nobody takes it once one could not be read: that is told below.
            if portion.len() == PORTION && give.send(std::mem::take(&mut portion)).is_err() {
                break;
            }
        }
        let _ = give.send(portion);
        drop(give);
        objects.join().map_err(|_| redb::Error::Corrupted("its objects could not be read".to_owned()))?
    })?;
    for row in read.open_table(PRIVATE)?.iter()? {
        let (key, value) = row?;
        let record = seal::read(seal.as_deref(), Part::Private, key.value(), value.value()).map_err(sealed)?;
        state.private.insert(key.value().to_owned(), Bytes::copy_from_slice(&record));
    }
    Ok((state, seal))
}

/// What there is of a file's beginning.
#[derive(Default)]
struct Begun {
    format: Option<u64>,
    wrapped: Option<Vec<u8>>,
    /// All tables are there.
    whole: bool,
    /// Nothing was ever written into them.
    empty: bool,
}

fn there<T>(table: Result<T, redb::TableError>) -> Result<Option<T>, redb::TableError> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Begun {
    fn look(database: &Database) -> Result<Self, LoadError> {
        let read = database.begin_read()?;
        let meta = there(read.open_table(META))?;
        let (objects, private) = (there(read.open_table(OBJECTS))?, there(read.open_table(PRIVATE))?);
        let number = |name| match &meta {
            Some(meta) => Ok::<_, redb::Error>(meta.get(name)?.map(|v| v.value())),
            None => Ok(None),
        };
        let (format, revision) = (number("format")?, number("revision")?);
        let wrapped = match format {
            Some(FORMAT) => read.open_table(SEAL)?.get(WRAPPED)?.map(|v| v.value().to_vec()),
            _ => None,
        };
        let mut empty = revision.is_none();
        for table in [&objects, &private].into_iter().flatten() {
            empty &= table.is_empty()?;
        }
        Ok(Self { format, wrapped, whole: meta.is_some() && objects.is_some() && private.is_some(), empty })
    }
}

/// Finds out what a file is sealed with, and makes what a new one begins with. One that has begun is not written to.
fn begin(database: &Database, with: &With) -> Result<Option<Arc<Seal>>, LoadError> {
    let Begun { format, wrapped, whole, empty } = Begun::look(database)?;
    let seal = match with {
        With::Nothing => Seal::of(wrapped.as_deref(), None, empty),
        With::Key(key) => Seal::of(wrapped.as_deref(), Some(key), empty),
        With::Seal(seal) if empty && wrapped.is_none() => Ok(Some(Arc::clone(seal))),
        With::Seal(_) => Err(SealError::NotSealed),
    };
    let seal = seal.map_err(LoadError::Seal)?;
    let wrap = seal.as_ref().filter(|_| wrapped.is_none());
    if whole && format.is_some() && wrap.is_none() {
        return Ok(seal);
    }
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        write.open_table(OBJECTS)?;
        write.open_table(PRIVATE)?;
        match wrap {
            Some(new) => {
                write.open_table(SEAL)?.insert(WRAPPED, new.wrapped())?;
                meta.insert("format", FORMAT)?;
            }
            None if format.is_none() => drop(meta.insert("format", PLAIN)?),
            None => {}
        }
    }
    write.commit()?;
    Ok(seal)
}
