//! Many who read and write at once, and whether what they were told can be put in one order (P13).
//!
//! Every change has a revision, and revisions are that order; so a history is linearizable if no two changes have the same
//! one, if each change was made of the state right before it, if what was over before something began comes before it, and
//! if every read shows the state as it was at a moment between its begin and its end.

use bytes::Bytes;
use moorline_apiserver::{Batch, CommitError, Expect, Store, Watcher};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Objects that they work at.
const KEYS: u64 = 5;
/// One in so many changes of an object deletes it.
const DELETED: u64 = 4;
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
    /// Of the object at that revision (0: of none) one with this value (`None`: no object), and at which revision that is;
    /// `None`: whether it was made is not known.
    Changed { of: u64, value: Option<u64>, at: Option<u64> },
    /// Refused, for it is at this revision, or not there.
    Lost { found: Option<u64> },
    /// Read: revision and value.
    Read { seen: Option<(u64, u64)> },
}

/// Of each revision the key and its value after it; `None`: it was deleted.
pub type History = BTreeMap<u64, (String, Option<u64>)>;

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

    async fn change(&self, store: &Store, key: u64, of: u64, delete: bool) -> (Done, bool) {
        let value = (!delete).then(|| self.values.fetch_add(1, Ordering::SeqCst) + 1);
        let expect = if of == 0 { Expect::Absent } else { Expect::Revision(of) };
        let after = value.map(|value| json!({ "metadata": { "name": name(key) }, "spec": value }));
        let object = Some((name(key), expect, after));
        let record = |value: u64| (format!("{}/n", name(key)), Some(Bytes::from(value.to_string())));
        let private = value.map(record).into_iter().collect();
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
            let delete = of != 0 && (dice >> 32).is_multiple_of(DELETED);
            let (done, refused) = self.change(&store, key, of, delete).await;
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
pub async fn history(watcher: &mut Watcher, told: &[Vec<Done>]) -> History {
    let at = |done: &Done| match done.what {
        What::Changed { at, .. } => at.unwrap_or(0),
        What::Lost { found } => found.unwrap_or(0),
        What::Read { seen } => seen.map_or(0, |seen| seen.0),
    };
    let newest = told.iter().flatten().map(at).max().unwrap();
    let mut seen = BTreeMap::new();
    while seen.keys().last().copied().unwrap_or(0) < newest {
        let event = watcher.next().await.unwrap().unwrap();
        let value = event.value().map(|object| object["spec"].as_u64().unwrap());
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
pub fn judge(history: &History, told: &[Vec<Done>], everywhere: bool) {
    let all = || told.iter().flatten();
    assert!(history.keys().zip(history.keys().skip(1)).all(|(a, b)| a + 1 == *b), "a gap in the history");
    let mut made: BTreeMap<u64, &Done> = BTreeMap::new();
    // For each change that was acknowledged: it is in the history, once, as it was asked for.
    for done in all() {
        let What::Changed { value, at: Some(at), .. } = done.what else { continue };
        assert_eq!(history.get(&at), Some(&(name(done.key), value)), "{done:?} was acknowledged");
        assert!(made.insert(at, done).is_none(), "one revision was given to two: {done:?}");
    }
    // Each was made of the state right before it. Values are given once, and a state is deleted once.
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let asked: BTreeSet<(String, u64, Option<u64>)> = all()
        .filter_map(|done| match done.what {
            What::Changed { of, value, .. } => Some((name(done.key), of, value)),
            _ => None,
        })
        .collect();
    for (at, (key, value)) in history {
        let before = newest.remove(&**key).unwrap_or(0);
        assert!(asked.contains(&(key.clone(), before, *value)), "nobody asked for revision {at} of the state {before}");
        if value.is_some() {
            newest.insert(key, *at);
        }
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
                What::Read { seen } => (seen.map(|seen| seen.0), seen.map(|seen| seen.1)),
                What::Lost { found } => (*found, None),
                What::Changed { at: Some(at), value, .. } => (Some(*at), *value),
                What::Changed { .. } => continue,
            };
            if let (Some(at), Some(value)) = (at, value) {
                assert_eq!(history.get(&at), Some(&(name(done.key), Some(value))), "{done:?} was never so");
            }
            let before = last.entry(done.key).or_default();
            let of_its_time = |at: u64| {
                !everywhere || !matches!(done.what, What::Read { .. }) || is_of_its_time(done, at, &states, &made)
            };
            // Where nothing was found, that is since any of its ends; which of them is not told.
            let now = match at {
                Some(at) => (*before <= at && of_its_time(at)).then_some(at),
                None => absent(done.key, history, &states).find(|at| *before <= *at && of_its_time(*at)),
            };
            *before = now.unwrap_or_else(|| panic!("{done:?}: back in time, after {before}, or not of its time"));
        }
    }
}

/// The revisions since which there was none of a key, from the beginning on.
fn absent<'a>(
    key: u64,
    history: &'a History,
    states: &'a BTreeMap<String, Vec<u64>>,
) -> impl Iterator<Item = u64> + 'a {
    let revisions = states.get(&name(key)).map_or(&[][..], Vec::as_slice);
    let ends = revisions.iter().copied().filter(|at| history.get(at).is_some_and(|(_, value)| value.is_none()));
    [0].into_iter().chain(ends)
}

/// Of each key, the revisions that it had.
fn states(history: &History) -> BTreeMap<String, Vec<u64>> {
    let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (at, (key, _)) in history {
        all.entry(key.clone()).or_default().push(*at);
    }
    all
}

/// Whether what was read had not been replaced by a change that was over before, and had been begun by the read's end.
fn is_of_its_time(read: &Done, at: u64, states: &BTreeMap<String, Vec<u64>>, made: &BTreeMap<u64, &Done>) -> bool {
    let revisions = states.get(&name(read.key)).map_or(&[][..], Vec::as_slice);
    let newer = revisions.iter().find(|revision| at < **revision);
    let replaced = newer.and_then(|revision| made.get(revision)).is_some_and(|change| change.ended <= read.began);
    let to_come = made.get(&at).is_some_and(|change| read.ended <= change.began);
    !replaced && !to_come
}

/// Histories by hand, right and wrong.
#[cfg(test)]
mod tests {
    use super::*;

    fn done(began: u64, what: What) -> Done {
        Done { began, ended: began + 1, key: 0, what }
    }

    fn changed(of: u64, value: Option<u64>, at: u64) -> What {
        What::Changed { of, value, at: Some(at) }
    }

    /// Made, deleted, and made again.
    fn thrice() -> (History, Vec<Done>) {
        let history = [(2, Some(1)), (3, None), (4, Some(2))].map(|(at, value)| (at, (name(0), value)));
        let writer =
            vec![done(10, changed(0, Some(1), 2)), done(20, changed(2, None, 3)), done(30, changed(0, Some(2), 4))];
        (history.into(), writer)
    }

    fn holds(reads: Vec<Done>) -> bool {
        let (history, writer) = thrice();
        std::panic::catch_unwind(|| judge(&history, &[writer, reads], true)).is_ok()
    }

    #[test]
    fn reads_of_what_is_deleted_are_held_to_their_time() {
        let nothing = || What::Read { seen: None };
        let first = || What::Read { seen: Some((2, 1)) };
        assert!(holds(vec![done(5, nothing()), done(15, first()), done(25, nothing())]));
        assert!(holds(vec![
            done(15, first()),
            done(25, What::Lost { found: None }),
            done(35, What::Lost { found: Some(4) })
        ]));
        assert!(!holds(vec![done(15, nothing())]), "it was there");
        assert!(!holds(vec![done(35, nothing())]), "it was there again");
        assert!(!holds(vec![done(25, first())]), "it was deleted");
        assert!(
            !holds(vec![done(35, What::Lost { found: Some(4) }), done(37, What::Lost { found: None })]),
            "back in time"
        );
    }

    #[test]
    fn what_nobody_asked_for_is_not_in_a_history() {
        let (mut history, writer) = thrice();
        judge(&history, std::slice::from_ref(&writer), true);
        history.insert(5, (name(0), None));
        assert!(std::panic::catch_unwind(|| judge(&history, &[writer], true)).is_err());
    }
}
