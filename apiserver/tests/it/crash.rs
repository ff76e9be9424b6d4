//! Power that goes at any write: the store against a disk that forgets what was not synced.

use super::*;
use crate::model::cases;
use moorline_apiserver::{Batch, CommitError, Compacted, Disk, Expect, StorageBackend};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard},
};

/// A sector: what a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What a disk is asked to do.
#[derive(Debug, Clone)]
enum Act {
    Write { at: usize, data: Vec<u8> },
    Resize(usize),
}

/// A disk in memory that remembers what it did since the last sync, and so can lose it.
#[derive(Debug, Clone, Default)]
struct Forgetful(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    /// As a reader sees it.
    now: Vec<u8>,
    /// As it is after a loss of power that takes all that was not synced.
    synced: Vec<u8>,
    since: Vec<Act>,
    /// Acts left before the power goes.
    left: Option<usize>,
    /// Everything since the beginning; `None`: a sync.
    all: Vec<Option<Act>>,
}

fn act(bytes: &mut Vec<u8>, act: &Act) {
    match act {
        Act::Resize(len) => bytes.resize(*len, 0),
        Act::Write { at, data } => {
            let end = at + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(data);
        }
    }
}

impl Forgetful {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    fn perform(&self, what: Act) -> io::Result<()> {
        let mut platter = self.platter();
        platter.powered()?;
        act(&mut platter.now, &what);
        platter.all.push(Some(what.clone()));
        platter.since.push(what);
        Ok(())
    }

    /// What is found after the power is back: each sector written since the last sync is there or not, as `keep` says.
    fn after_the_loss(&self, mut keep: impl FnMut() -> bool) -> Self {
        let platter = self.platter();
        let mut found = platter.synced.clone();
        for what in &platter.since {
            match what {
                Act::Resize(_) if keep() => act(&mut found, what),
                Act::Resize(_) => {}
                Act::Write { at, data } => {
                    let mut from = 0;
                    while from < data.len() {
                        let end = data.len().min(from + SECTOR - (at + from) % SECTOR);
                        if keep() {
                            act(&mut found, &Act::Write { at: at + from, data: data[from..end].to_vec() });
                        }
                        from = end;
                    }
                }
            }
        }
        Self(Arc::new(Mutex::new(Platter { now: found.clone(), synced: found, ..Platter::default() })))
    }
}

impl Platter {
    fn powered(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for Forgetful {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().now.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let platter = self.platter();
        let found = platter.now.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.perform(Act::Resize(usize::try_from(len).unwrap()))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.perform(Act::Write { at: usize::try_from(offset).unwrap(), data: data.to_vec() })
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.powered()?;
        platter.synced = platter.now.clone();
        platter.since.clear();
        platter.all.push(None);
        Ok(())
    }
}

impl Disk for Forgetful {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

type Seen = BTreeMap<String, u64>;

fn key(i: u8) -> String {
    format!("t/things/{}", i % 6)
}

/// Writes to six objects in turn: makes, changes and deletes them, each with a private record of the same number.
/// Ends at the first error. Gives every state that was acknowledged, and the one that was asked for last.
async fn script(store: &Store, steps: u8) -> (Vec<Seen>, Seen) {
    let mut seen = Seen::new();
    let mut states = vec![seen.clone()];
    for i in 0..steps {
        match one_step(store, seen, i).await {
            (_, Ok(next)) => seen = next,
            (asked, Err(_)) => return (states, asked),
        }
        states.push(seen.clone());
    }
    (states, seen)
}

/// One of its steps: what was asked for, and that again if it was acknowledged.
async fn one_step(store: &Store, mut next: Seen, i: u8) -> (Seen, Result<Seen, CommitError>) {
    let (key, there) = (key(i), store.get(&key(i)));
    let expect = there.as_ref().map_or(Expect::Absent, |e| Expect::Revision(e.revision));
    let number = u64::from(i);
    let gone = there.is_some() && i % 4 == 3;
    let value = (!gone).then(|| json!({ "metadata": {}, "spec": number, "filler": "x".repeat(usize::from(i) * 40) }));
    let record = (!gone).then(|| Bytes::from(number.to_string()));
    match gone {
        true => drop(next.remove(&key)),
        false => drop(next.insert(key.clone(), number)),
    }
    let private = record.map(|r| (format!("{key}/n"), Some(r))).into_iter().collect();
    let done = store.commit(Batch { object: Some((key, expect, value)), private }).await;
    (next.clone(), done.map(|_| next))
}

/// What is in a store; objects and their private records have to agree.
fn content(store: &Store) -> Result<Seen, TestCaseError> {
    let mut seen = Seen::new();
    for i in 0..6 {
        let key = key(i);
        let object = store.get(&key).and_then(|e| e.value["spec"].as_u64());
        let record = store.private(&format!("{key}/n")).map(|b| String::from_utf8_lossy(&b).parse::<u64>().unwrap());
        prop_assert_eq!(object, record, "half of a batch");
        if let Some(number) = object {
            seen.insert(key, number);
        }
    }
    Ok(seen)
}

proptest! {
    #![proptest_config(cases(64))]
    /// The power goes at any write or sync, and any part of what was not synced is lost: what was acknowledged is there,
    /// and what was not is there whole or not at all.
    #[test]
    fn p01_p02_p03_power_may_go_at_any_write(left in 0usize..400, lost: [u64; 8]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let disk = Forgetful::default();
        let store = Store::open_on(disk.clone(), &limits()).unwrap();
        disk.platter().left = Some(left);
        let (states, asked) = runtime.block_on(script(&store, 40));
        store.close();
        let mut bits = (0..).map(|i: usize| lost[i / 64 % 8] >> (i % 64) & 1 == 1);
        let found = disk.after_the_loss(|| bits.next().unwrap_or(true));
        let store = Store::open_on(found, &limits()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let content = content(&store)?;
        prop_assert!(states.last() == Some(&content) || content == asked, "{content:?} after {} acknowledged", states.len() - 1);
        // It goes on from there.
        let (after, _) = runtime.block_on(script(&store, 8));
        prop_assert_eq!(after.len(), 9);
    }
}

/// Who watches is told of each change once, through a loss of power too: what came since the newest that they saw, or that it
/// is not known any more, as where a change is there that was not acknowledged.
#[tokio::test]
async fn p14_who_watched_before_the_power_went_misses_nothing_after_it() {
    let (mut resumed, mut told) = (0, 0);
    for left in 0..150 {
        let disk = Forgetful::default();
        let store = Store::open_on(disk.clone(), &limits()).unwrap();
        let mut watcher = store.watch("t/", store.revision()).unwrap();
        disk.platter().left = Some(left);
        let (states, _) = script(&store, 20).await;
        let mut seen = store.revision();
        for _ in 1..states.len() {
            seen = watcher.next().await.unwrap().unwrap().revision;
        }
        assert_eq!(seen, store.revision(), "each one that was acknowledged");
        drop(watcher);
        store.close();
        // Nothing of it is lost, or all that was not synced.
        let store = Store::open_on(disk.after_the_loss(|| left % 2 == 0), &limits()).unwrap();
        match store.watch("t/", seen) {
            Ok(mut watcher) => {
                resumed += 1;
                let (after, _) = script(&store, 8).await;
                for next in 1..after.len() as u64 {
                    assert_eq!(watcher.next().await.unwrap().unwrap().revision, seen + next, "after {left} acts");
                }
            }
            Err(Compacted) => {
                told += 1;
                assert!(seen < store.revision(), "after {left} acts nothing came since");
            }
        }
    }
    assert!(resumed > 10 && told > 0, "{resumed} went on, {told} were told");
}

/// Steps of the script whose every write is one at which the power goes.
const STEPS: u8 = 200;

/// What a store has to be after the power went: as it was acknowledged last, or as it was asked for then.
fn judge(found: Vec<u8>, acknowledged: &Seen, asked: &Seen, at: usize, how: &str) {
    let disk = Forgetful::default();
    {
        let mut platter = disk.platter();
        platter.synced = found.clone();
        platter.now = found;
    }
    let store = Store::open_on(disk, &limits()).unwrap_or_else(|e| panic!("write {at}, {how}: {e}"));
    let content = content(&store).unwrap_or_else(|e| panic!("write {at}, {how}: {e}"));
    assert!(content == *acknowledged || content == *asked, "write {at}, {how}: {content:?}");
    store.close();
}

/// The power goes at every single write of a script of two hundred steps: all since the last sync is lost, or nothing of it
/// is, or that write is torn at an edge of a sector, the next one's at the next. `MOORLINE_P03=all` tears each at every edge.
#[test]
fn p01_p02_p03_power_goes_at_every_write_of_a_script() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let disk = Forgetful::default();
    let store = Store::open_on(disk.clone(), &limits()).unwrap();
    // Done once, with a note of where on the disk's way each step was acknowledged.
    let before = disk.platter().all.len();
    let (mut marks, mut seen) = (vec![(before, Seen::new())], Seen::new());
    for i in 0..STEPS {
        seen = runtime.block_on(one_step(&store, seen, i)).1.unwrap();
        marks.push((disk.platter().all.len(), seen.clone()));
    }
    let (acts, all_edges) = (disk.platter().all.clone(), std::env::var("MOORLINE_P03").is_ok());
    let (mut now, mut synced, mut since): (Vec<u8>, Vec<u8>, usize) = Default::default();
    let (mut points, mut torn, mut step) = (0, 0, 0);
    for (at, one) in acts.iter().enumerate() {
        let Some(one) = one else {
            synced.clone_from(&now);
            since = 0;
            continue;
        };
        let whole = now.clone();
        act(&mut now, one);
        since += 1;
        if at < before {
            continue;
        }
        let is_next = marks.get(step + 1).is_some_and(|(done, _)| *done <= at);
        step += usize::from(is_next);
        let acknowledged = &marks[step].1;
        let asked = &marks[(step + 1).min(marks.len() - 1)].1;
        points += 1;
        if since == 1 || is_next {
            judge(synced.clone(), acknowledged, asked, at, "all since the last sync is lost");
        }
        judge(now.clone(), acknowledged, asked, at, "nothing is lost");
        let Act::Write { at: offset, data } = one else { continue };
        let edges: Vec<usize> = (SECTOR - offset % SECTOR..data.len()).step_by(SECTOR).collect();
        for (i, edge) in edges.iter().enumerate() {
            if all_edges || i == points % edges.len() {
                torn += 1;
                let mut found = if points % 2 == 0 { whole.clone() } else { synced.clone() };
                // A disk keeps no order: the end of it may be there alone.
                let part = if points % 4 < 2 { 0..*edge } else { *edge..data.len() };
                act(&mut found, &Act::Write { at: offset + part.start, data: data[part].to_vec() });
                judge(found, acknowledged, asked, at, "torn");
            }
        }
    }
    eprintln!("the power went at {points} writes, of which {torn} were torn");
    assert!(500 < points && 500 < torn, "{points} {torn}");
    store.close();
}
