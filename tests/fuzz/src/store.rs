//! A store's file that was changed while nobody looked: nothing is opened, or what is opened is what was there.

use bytes::Bytes;
use moorline_apiserver::{Batch, Disk, Expect, Limits, StorageBackend, Store};
use serde_json::json;
use std::{
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// A disk in memory. What is not there reads as zeros.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn bytes<T>(&self, look: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn beyond() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes(|bytes| bytes.len() as u64))
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(|_| beyond())?;
        self.bytes(|bytes| {
            let there = from.checked_add(out.len()).and_then(|to| bytes.get(from..to)).ok_or_else(beyond)?;
            out.copy_from_slice(there);
            Ok(())
        })
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        // As a file of this size would be sparse: what a bent header asks for is not made.
        let len = usize::try_from(len).ok().filter(|len| *len <= LARGEST).ok_or(io::ErrorKind::StorageFull)?;
        self.bytes(|bytes| bytes.resize(len, 0));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(|_| beyond())?;
        self.bytes(|bytes| {
            let to = from.checked_add(data.len()).ok_or_else(beyond)?;
            bytes.get_mut(from..to).ok_or_else(beyond)?.copy_from_slice(data);
            Ok(())
        })
    }
}

impl Disk for Memory {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }
    fn name(&self) -> String {
        "memory".to_owned()
    }
}

/// Largest that a disk grows, in bytes.
const LARGEST: usize = 64 << 20;
/// The store's own thread.
const READER: &str = "store";
/// Objects that the store has.
const OBJECTS: usize = 12;
/// Bytes that say where one wound is and what it does: three of a place, two of what becomes of it.
const WOUND: usize = 5;

fn content(store: &Store) -> Vec<String> {
    let objects =
        store.list("t/").1.into_iter().map(|(key, entry)| format!("{key} {} {}", entry.revision, entry.value));
    let records = (0..OBJECTS).map(|i| format!("{:?}", store.private(&format!("t/things/{i}/hash"))));
    objects.chain(records).chain([store.revision().to_string()]).collect()
}

/// What is there: some objects with records, some that were changed, one that was deleted; and where its file is not empty.
static WHOLE: LazyLock<(Vec<u8>, Vec<usize>, Vec<String>)> = LazyLock::new(|| {
    // What reads a file may fall over a page that is damaged, in a thread of its own: the store says that it cannot be opened.
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(READER) {
            told(panic);
        }
    }));
    let disk = Memory::default();
    let store = Store::open_on(disk.clone(), &Limits::default()).unwrap();
    let waits = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let commit = |batch| waits.block_on(store.commit(batch)).unwrap();
    for i in 0..OBJECTS {
        let object = json!({ "metadata": {}, "spec": "s".repeat(50 + i * 40) });
        let private = vec![(format!("t/things/{i}/hash"), Some(Bytes::from(vec![b'h'; 40])))];
        let made = commit(Batch { object: Some((format!("t/things/{i}"), Expect::Absent, Some(object))), private });
        let changed = if i == 0 { None } else { Some(json!({ "metadata": {}, "spec": i })) };
        if i % 3 == 0 {
            let object = Some((format!("t/things/{i}"), Expect::Revision(made), changed));
            commit(Batch { object, private: Vec::new() });
        }
    }
    let content = content(&store);
    store.close();
    let bytes = disk.bytes(|bytes| bytes.clone());
    let used = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    (bytes, used, content)
});

/// A list of wounds; a first byte of 255: all else is a file of its own.
pub fn run(data: &[u8]) {
    let (whole, used, content_before) = &*WHOLE;
    let mut bytes = whole.clone();
    let (kind, data) = crate::split(data);
    if kind == u8::MAX {
        let opened = Store::open_on(Memory(Arc::new(Mutex::new(data.to_vec()))), &Limits::default());
        assert!(opened.is_err() || data.is_empty(), "a file that is no store was opened");
        return;
    }
    let mut harmed = false;
    for wound in data.chunks_exact(WOUND).take(64) {
        let place = usize::from(wound[0]) << 16 | usize::from(wound[1]) << 8 | usize::from(wound[2]);
        // Most of a file is empty: what is not is hit more often than its share.
        let at = if wound[3] & 0x80 == 0 { used[place % used.len()] } else { place % bytes.len().max(1) };
        match wound[3] & 0x7f {
            // A byte, a sector of noise, a lost end, a page that came twice.
            0..=63 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= wound[4]),
            64..=95 => bytes.iter_mut().skip(at).take(512).for_each(|byte| *byte = byte.wrapping_add(wound[4])),
            96..=111 => bytes.truncate(at),
            _ => {
                let page = at / 4096 * 4096;
                let to = page + usize::from(wound[4]) * 4096;
                if to + 4096 <= bytes.len() {
                    bytes.copy_within(page..page + 4096, to);
                }
            }
        }
        harmed = true;
    }
    let open = |bytes: Vec<u8>| {
        let disk = Memory(Arc::new(Mutex::new(bytes)));
        (Store::open_on(disk.clone(), &Limits::default()), disk)
    };
    let empty = bytes.is_empty();
    match open(bytes) {
        (Ok(store), _) => {
            let now = content(&store);
            store.close();
            assert!(empty || now == *content_before, "it reads as another");
        }
        (Err(_), disk) => {
            assert!(harmed, "what nobody changed is opened");
            let left = disk.bytes(|bytes| bytes.clone());
            assert!(open(left).0.is_err(), "refused once, and opened then");
        }
    }
}
