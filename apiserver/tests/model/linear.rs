//! Many who read and write at once, and whether what they were told can be put in one order (P13).
//!
//! Every change has a revision, and revisions are that order; so a history is linearizable if no two changes have the same
//! one, if each change was made of the state right before it, if what was over before something began comes before it, and
//! if every read shows the state as it was at a moment between its begin and its end.

use bytes::Bytes;
use moorline_apiserver::{Batch, CommitError, Expect, Store, Watcher};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Objects that they work at.
const KEYS: u64 = 5;
/// How long who was refused waits, as a client does that is told when to come back.
const PAUSE: Duration = Duration::from_millis(30);

/// One thing that somebody asked for, and what they were told. Moments are numbers that only grow.
#[derive(Debug, Clone)]
pub struct Done {
    began: u64,
    ended: u64,
    key: u64,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    /// Of the object at that revision (0: of none) one with this value, and at which revision that is; `None`: whether it
    /// was made is not known.
    Changed { of: u64, value: u64, at: Option<u64> },
    /// Refused, for it is at this revision, or not there.
    Lost { found: Option<u64> },
    /// Read: revision and value.
    Read { seen: Option<(u64, u64)> },
}

/// What all of them share: the clock, and how much was done.
#[derive(Debug, Clone, Default)]
pub struct Course {
    clock: Arc<AtomicU64>,
    values: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
}

impl Course {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Operations that were answered so far.
    pub fn count(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn read(&self, store: &Store, key: u64) -> Done {
        let began = self.now();
        let entry = store.get(&name(key));
        let seen = entry.map(|e| (e.revision, e.value["spec"].as_u64().unwrap()));
        Done { began, ended: self.now(), key, what: What::Read { seen } }
    }

    async fn change(&self, store: &Store, key: u64, of: u64) -> (Done, bool) {
        let value = self.values.fetch_add(1, Ordering::SeqCst) + 1;
        let expect = if of == 0 { Expect::Absent } else { Expect::Revision(of) };
        let object = Some((name(key), expect, Some(json!({ "metadata": { "name": name(key) }, "spec": value }))));
        let private = vec![(format!("{}/n", name(key)), Some(Bytes::from(value.to_string())))];
        let began = self.now();
        let told = store.commit(Batch { object, private }).await;
        let refused = matches!(told, Err(CommitError::Unavailable(_) | CommitError::Overloaded));
        let what = match told {
            Ok(at) => What::Changed { of, value, at: Some(at) },
            Err(CommitError::Conflict(found)) => What::Lost { found },
            Err(_) if refused => What::Changed { of, value, at: None },
            Err(other) => panic!("{other}"),
        };
        (Done { began, ended: self.now(), key, what }, refused)
    }

    /// Reads and changes until there were `operations` of all of them.
    pub async fn work(self, store: Store, who: u64, operations: u64) -> Vec<Done> {
        let mut all = Vec::new();
        let mut dice = who.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        while self.done.fetch_add(1, Ordering::SeqCst) < operations {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let key = dice % KEYS;
            let read = self.read(&store, key);
            let of = match read.what {
                What::Read { seen } => seen.map_or(0, |(at, _)| at),
                _ => 0,
            };
            all.push(read);
            if dice.is_multiple_of(3) {
                tokio::task::yield_now().await;
                continue;
            }
            let (done, refused) = self.change(&store, key, of).await;
            all.push(done);
            if refused {
                tokio::time::sleep(PAUSE).await;
            }
        }
        all
    }
}

pub fn name(key: u64) -> String {
    format!("g/n/{key}")
}

/// How many runs of how many operations each: the environment's word, or a few that show whether it works at all.
pub fn runs() -> (u64, u64) {
    let of = |name: &str, usual| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    (of("MOORLINE_P13_RUNS", 3), of("MOORLINE_P13_OPERATIONS", 600))
}

/// What a watch that began at the beginning sees, until all that anybody was told of is among it.
pub async fn history(watcher: &mut Watcher, told: &[Vec<Done>]) -> BTreeMap<u64, (String, u64)> {
    let at = |done: &Done| match done.what {
        What::Changed { at, .. } => at.unwrap_or(0),
        What::Lost { found } => found.unwrap_or(0),
        What::Read { seen } => seen.map_or(0, |seen| seen.0),
    };
    let newest = told.iter().flatten().map(at).max().unwrap();
    let mut seen = BTreeMap::new();
    while seen.keys().last().copied().unwrap_or(0) < newest {
        let event = watcher.next().await.unwrap().unwrap();
        let value = event.value().unwrap()["spec"].as_u64().unwrap();
        assert_eq!(seen.insert(event.revision, (event.key.to_string(), value)), None, "a change came twice");
    }
    seen
}

/// Changes that were acknowledged.
pub fn acknowledged(told: &[Vec<Done>]) -> usize {
    told.iter().flatten().filter(|done| matches!(done.what, What::Changed { at: Some(_), .. })).count()
}

/// Holds what everybody was told to the history that a watch saw: revision, key and value of each change, in order.
/// `everywhere`: a read shows the newest state of all; otherwise that of its own process, which may be behind others'.
pub fn judge(history: &BTreeMap<u64, (String, u64)>, told: &[Vec<Done>], everywhere: bool) {
    let all = || told.iter().flatten();
    assert!(history.keys().zip(history.keys().skip(1)).all(|(a, b)| a + 1 == *b), "a gap in the history");
    let mut made: BTreeMap<u64, &Done> = BTreeMap::new();
    // For each change that was acknowledged: it is in the history, once, as it was asked for.
    for done in all() {
        let What::Changed { value, at: Some(at), .. } = done.what else { continue };
        assert_eq!(history.get(&at), Some(&(name(done.key), value)), "{done:?} was acknowledged");
        assert!(made.insert(at, done).is_none(), "one revision was given to two: {done:?}");
    }
    // Each was made of the state right before it.
    let mut newest: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let asked: BTreeMap<u64, u64> = all()
        .filter_map(|done| match done.what {
            What::Changed { of, value, .. } => Some((value, of)),
            _ => None,
        })
        .collect();
    for (at, (key, value)) in history {
        let before = newest.insert(key, (*at, *value)).map_or(0, |(before, _)| before);
        assert_eq!(asked.get(value), Some(&before), "revision {at} was made of another state than was asked for");
    }
    // What was over before something began comes before it.
    let mut order: Vec<&Done> = made.values().copied().collect();
    order.sort_by_key(|done| done.began);
    let mut over: Vec<(u64, u64)> = made.iter().map(|(at, done)| (done.ended, *at)).collect();
    over.sort_unstable();
    let at_of = |done: &Done| match done.what {
        What::Changed { at: Some(at), .. } => at,
        _ => 0,
    };
    let (mut next, mut floor) = (0, 0);
    for done in &order {
        while let Some((_, at)) = over.get(next).filter(|(ended, _)| *ended < done.began) {
            floor = floor.max(*at);
            next += 1;
        }
        assert!(floor < at_of(done), "{done:?} came before {floor}, which was over when it began");
    }
    // Reads, and what writers lost against.
    let states = states(history);
    for mine in told {
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for done in mine {
            let (at, value) = match &done.what {
                What::Read { seen } => seen.map_or((0, None), |(at, value)| (at, Some(value))),
                What::Lost { found } => (found.unwrap_or(0), None),
                What::Changed { at: Some(at), value, .. } => (*at, Some(*value)),
                What::Changed { .. } => continue,
            };
            if let Some(value) = value {
                assert_eq!(history.get(&at), Some(&(name(done.key), value)), "{done:?} was never so");
            }
            let before = last.entry(done.key).or_default();
            assert!(*before <= at, "{done:?} after {before}: back in time");
            *before = at;
            if everywhere && matches!(done.what, What::Read { .. }) {
                is_of_its_time(done, at, &states, &made);
            }
        }
    }
}

/// Of each key, the revisions that it had.
fn states(history: &BTreeMap<u64, (String, u64)>) -> BTreeMap<String, Vec<u64>> {
    let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (at, (key, _)) in history {
        all.entry(key.clone()).or_default().push(*at);
    }
    all
}

/// What was read had not been replaced by a change that was over before, and had been begun by the read's end.
fn is_of_its_time(read: &Done, at: u64, states: &BTreeMap<String, Vec<u64>>, made: &BTreeMap<u64, &Done>) {
    let revisions = states.get(&name(read.key)).map_or(&[][..], Vec::as_slice);
    let newer = revisions.iter().find(|revision| at < **revision);
    if let Some(change) = newer.and_then(|revision| made.get(revision)) {
        assert!(read.began < change.ended, "{read:?} is older than {change:?}, which was over before");
    }
    if let Some(change) = made.get(&at) {
        assert!(change.began < read.ended, "{read:?} is of the future: {change:?}");
    }
}
