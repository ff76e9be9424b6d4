//! Whose turn it is: many visits to agents at once, none of which waits for an agent that does not answer.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

/// Visits under way that are younger than [`QUICK`]: what they make and send is bounded by it.
const AT_ONCE: usize = 64;
/// From then on a visit is a slow one, and its place is another's.
const QUICK: Duration = Duration::from_secs(1);
/// Visits under way in all. So many agents have to fall silent at once before another cluster waits for them.
const IN_ALL: usize = 512;
/// Those of one cluster: all of its agents together hold up nobody else. Doubtful ones are counted apart: they hold up none
/// of the cluster's others either.
const OF_ONE: usize = 4;
/// Those to agents that did not answer the last time: they have places of their own.
const DOUBTFUL: usize = 16;

/// A visit that waits or is under way. Keys tell sessions from one another.
struct Visit {
    cluster: String,
    begun: Instant,
    doubtful: bool,
}

/// Something that is to be done at an agent, and where it stands in the line.
pub(super) struct Wish<T> {
    /// The session.
    pub key: String,
    /// Its cluster.
    pub cluster: String,
    /// It did not answer the last time.
    pub doubtful: bool,
    /// Before all that is not.
    pub urgent: bool,
    /// What is needed to do it.
    pub what: T,
}

/// The line, and who is being visited. A session stands in it once, and keeps its place until its turn comes.
pub(super) struct Turns<T> {
    /// What is urgent, and the rest.
    lines: [VecDeque<Wish<T>>; 2],
    /// And whether it is urgent.
    waiting: HashMap<String, bool>,
    under_way: HashMap<String, Visit>,
}

impl<T> Turns<T> {
    pub fn new() -> Self {
        Self { lines: Default::default(), waiting: HashMap::new(), under_way: HashMap::new() }
    }

    /// Whether a session is being visited.
    pub fn visits(&self, key: &str) -> bool {
        self.under_way.contains_key(key)
    }

    /// The lines together are at most as long as there are sessions.
    pub fn wait(&mut self, wish: Wish<T>) {
        match self.waiting.get(&wish.key) {
            _ if self.visits(&wish.key) => return,
            Some(urgent) if *urgent || !wish.urgent => return,
            Some(_) => self.lines[1].retain(|other| other.key != wish.key),
            None => {}
        }
        self.waiting.insert(wish.key.clone(), wish.urgent);
        self.lines[usize::from(!wish.urgent)].push_back(wish);
    }

    /// Sessions that are gone wait no more.
    pub fn retain(&mut self, alive: &HashSet<String>) {
        self.lines.iter_mut().for_each(|line| line.retain(|wish| alive.contains(&wish.key)));
        self.waiting.retain(|key, _| alive.contains(key));
    }

    /// A visit is over.
    pub fn over(&mut self, key: &str) {
        self.under_way.remove(key);
    }

    /// The first in the line for whom there is a place; it is under way from now on.
    pub fn next(&mut self, now: Instant) -> Option<Wish<T>> {
        let under_way = self.under_way.values();
        let quick = under_way.clone().filter(|v| now.saturating_duration_since(v.begun) < QUICK).count();
        if AT_ONCE <= quick || IN_ALL <= self.under_way.len() {
            return None;
        }
        let doubtful = under_way.filter(|v| v.doubtful).count();
        let has_place = |wish: &Wish<T>| {
            let of_one = |v: &&Visit| v.doubtful == wish.doubtful && v.cluster == wish.cluster;
            // The line may be long: what costs nothing first.
            (!wish.doubtful || doubtful < DOUBTFUL) && self.under_way.values().filter(of_one).count() < OF_ONE
        };
        let mut lines = self.lines.iter().enumerate();
        let (line, at) = lines.find_map(|(n, line)| Some((n, line.iter().position(has_place)?)))?;
        let wish = self.lines.get_mut(line)?.remove(at)?;
        self.waiting.remove(&wish.key);
        let visit = Visit { cluster: wish.cluster.clone(), begun: now, doubtful: wish.doubtful };
        self.under_way.insert(wish.key.clone(), visit);
        Some(wish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(n: usize, cluster: &str, doubtful: bool) -> Wish<usize> {
        Wish { key: format!("{cluster}/{n}"), cluster: cluster.to_owned(), doubtful, urgent: true, what: n }
    }

    fn all(turns: &mut Turns<usize>, now: Instant) -> Vec<usize> {
        std::iter::from_fn(|| turns.next(now)).map(|wish| wish.what).collect()
    }

    #[test]
    fn f44_agents_that_do_not_answer_keep_no_place_that_another_needs() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        (0..AT_ONCE).for_each(|n| turns.wait(wish(n, &format!("stuck{n}"), false)));
        turns.wait(wish(AT_ONCE, "well", false));
        assert_eq!(all(&mut turns, now), (0..AT_ONCE).collect::<Vec<_>>(), "in their order");
        assert_eq!(all(&mut turns, now + QUICK), [AT_ONCE], "none of them ended, and its turn came");
        // From then on they stand elsewhere.
        (0..AT_ONCE).for_each(|n| turns.over(&format!("stuck{n}/{n}")));
        turns.over(&format!("well/{AT_ONCE}"));
        (0..AT_ONCE).for_each(|n| turns.wait(wish(n, &format!("stuck{n}"), true)));
        turns.wait(wish(AT_ONCE, "well", false));
        let now = now + QUICK * 2;
        assert_eq!(all(&mut turns, now), (0..DOUBTFUL).chain([AT_ONCE]).collect::<Vec<_>>());
    }

    #[test]
    fn f44_a_cluster_of_many_agents_takes_no_more_places_than_another() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        (0..IN_ALL).for_each(|n| turns.wait(wish(n, "many", false)));
        turns.wait(wish(IN_ALL, "well", false));
        assert_eq!(all(&mut turns, now), (0..OF_ONE).chain([IN_ALL]).collect::<Vec<_>>());
        assert_eq!(all(&mut turns, now + QUICK * 100), [] as [usize; 0]);
        turns.over("many/1");
        assert_eq!(all(&mut turns, now), [OF_ONE]);
    }

    #[test]
    fn f44_a_clusters_agents_that_do_not_answer_leave_its_others_their_places() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        (0..OF_ONE * 2).for_each(|n| turns.wait(wish(n, "edge1", true)));
        turns.wait(wish(OF_ONE * 2, "edge1", false));
        assert_eq!(all(&mut turns, now), (0..OF_ONE).chain([OF_ONE * 2]).collect::<Vec<_>>());
    }

    #[test]
    fn a_session_waits_once_and_no_longer_than_it_is_there() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        (0..3).for_each(|n| turns.wait(wish(n, "a", false)));
        turns.wait(wish(1, "a", false));
        turns.retain(&HashSet::from(["a/0".to_owned(), "a/2".to_owned()]));
        assert_eq!(all(&mut turns, now), [0, 2]);
        assert!(turns.visits("a/0") && !turns.visits("a/1"));
        turns.wait(wish(0, "a", false));
        assert_eq!(all(&mut turns, now), [] as [usize; 0], "it is being visited");
        for n in 0..AT_ONCE * 2 {
            turns.wait(wish(n, &format!("c{n}"), false));
        }
        assert_eq!(all(&mut turns, now).len(), AT_ONCE - 2);
    }

    #[test]
    fn what_is_urgent_goes_before_what_is_not() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        let usual = |n| Wish { urgent: false, ..wish(n, &format!("c{n}"), false) };
        (0..4).for_each(|n| turns.wait(usual(n)));
        turns.wait(wish(2, "c2", false));
        turns.wait(usual(2));
        turns.wait(wish(9, "c9", false));
        assert_eq!(all(&mut turns, now), [2, 9, 0, 1, 3]);
    }

    #[test]
    fn so_many_at_once_and_no_more() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        (0..IN_ALL * 2).for_each(|n| turns.wait(wish(n, &format!("c{n}"), false)));
        let rounds = (0..20).map(|n| all(&mut turns, now + QUICK * n).len());
        assert_eq!(rounds.sum::<usize>(), IN_ALL);
    }
}
