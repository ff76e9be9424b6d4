//! Which agents were handed which plans: what has to be told when a plan is deleted, and how often that is tried.

use super::{NodePlanSpec, NodeProgress};
use crate::standby::{self, CALLED};
use moorline_apiserver::Object;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// How long it is tried to tell an agent that a plan is gone. One that hears of nothing for a day may be gone as well; and
/// none begins a plan this old.
const TELLING: Duration = Duration::from_secs(24 * 3600);
/// Shortest pause before the same agent is tried again; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(30);
/// Longest.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Agents that are called for this within [`CALLED`]: the other places are for those whom somebody waits for.
const CALLS: usize = standby::CALLS / 4;

/// Agents by the plans that they were handed, in the memory of one hub: whoever took over from it knows of those plans
/// that are still there.
#[derive(Default)]
pub(super) struct Holders {
    plans: HashMap<String, Held>,
    /// Agents that were tried, and have not heard of everything yet.
    tries: HashMap<String, Tries>,
    /// When agents were called, within the last [`CALLED`].
    calls: VecDeque<Instant>,
}

#[derive(Default)]
struct Held {
    agents: BTreeSet<String>,
    /// Since when the plan is gone.
    gone: Option<Instant>,
}

#[derive(Default)]
struct Tries {
    count: u32,
    /// When it may be tried again; nothing: it was not tried yet.
    next: Option<Instant>,
    /// The last try was a call.
    called: bool,
}

impl Tries {
    fn again(&mut self, now: Instant, called: bool) {
        let pause = PAUSE.saturating_mul(1 << self.count.min(10)).min(PAUSE_MAX);
        // A call is good for a while by itself.
        let pause = if called { pause.max(CALLED) } else { pause };
        *self = Self { count: self.count.saturating_add(1), next: Some(now + pause), called };
    }
}

/// Whom to tell that plans are gone, and whom to call for it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Agents that have a session, each with the plans, by their uids.
    pub tell: Vec<(String, Vec<String>)>,
    /// Agents that have none.
    pub call: Vec<String>,
}

impl Holders {
    /// These nodes have the plan, those that it was sent to.
    pub fn note(&mut self, plan: &Object<NodePlanSpec>, nodes: &[NodeProgress]) {
        let agents = nodes.iter().filter(|node| node.sent).map(|n| format!("{}.{}", plan.spec.cluster, n.agent));
        self.add(&plan.metadata.uid, agents);
    }

    /// These agents may have the plan.
    pub fn add(&mut self, uid: &str, agents: impl IntoIterator<Item = String>) {
        self.plans.entry(uid.to_owned()).or_default().agents.extend(agents);
    }

    /// Whom to try now, at most `room` of them to be told. Whoever is named counts as tried: it is named again after a
    /// pause, or once it has a session because it was called, until it was [`Self::told`]. Agents that do not exist any
    /// more are dropped.
    pub fn due(
        &mut self,
        lives: impl Fn(&String) -> bool,
        (has_session, exists): (impl Fn(&str) -> bool, impl Fn(&str) -> bool),
        room: usize,
        now: Instant,
    ) -> Due {
        let untold = self.untold(lives, now);
        self.tries.retain(|agent, _| untold.contains_key(agent));
        self.calls.retain(|at| now.duration_since(*at) < CALLED);
        let (mut due, mut away) = (Due::default(), Vec::new());
        for (agent, uids) in untold {
            let tries = self.tries.entry(agent.clone()).or_default();
            let rested = tries.next.is_none_or(|next| next <= now);
            if !has_session(&agent) {
                away.extend(rested.then_some((tries.next, agent)));
            } else if (rested || tries.called) && due.tell.len() < room {
                tries.again(now, false);
                due.tell.push((agent, uids));
            }
        }
        away.sort(); // who has waited longest is first: the dead do not stand before the others
        for (_, agent) in away {
            if CALLS <= self.calls.len() {
                break;
            }
            if !exists(&agent) {
                for held in self.plans.values_mut() {
                    held.agents.remove(&agent);
                }
                continue;
            }
            self.calls.push_back(now);
            self.tries.entry(agent.clone()).or_default().again(now, true);
            due.call.push(agent);
        }
        due
    }

    /// The agents that have plans that are gone, with these plans. What nobody has, or was tried for long enough, is
    /// dropped.
    fn untold(&mut self, lives: impl Fn(&String) -> bool, now: Instant) -> BTreeMap<String, Vec<String>> {
        let mut untold: BTreeMap<String, Vec<String>> = BTreeMap::new();
        self.plans.retain(|uid, held| {
            if lives(uid) {
                return true;
            }
            let since = *held.gone.get_or_insert(now);
            if held.agents.is_empty() || TELLING <= now.duration_since(since) {
                return false;
            }
            for agent in &held.agents {
                untold.entry(agent.clone()).or_default().push(uid.clone());
            }
            true
        });
        untold
    }

    /// This agent knows that the plan is gone.
    pub fn told(&mut self, uid: &str, agent: &str) {
        if let Some(held) = self.plans.get_mut(uid) {
            held.agents.remove(agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    impl Holders {
        /// Of these plans, "p" is gone, and everybody has a session, or nobody.
        fn of_p(&mut self, sessions: bool, now: Instant) -> Due {
            self.due(|uid| uid != "p", (|_: &str| sessions, |_: &str| true), usize::MAX, now)
        }
    }

    fn tell(agents: &[&str]) -> Due {
        let tell = agents.iter().map(|agent| ((*agent).to_owned(), vec!["p".to_owned()])).collect();
        Due { tell, call: Vec::new() }
    }

    #[test]
    fn who_has_a_plan_that_is_gone_is_named_until_told_and_not_for_ever() {
        let mut holders = Holders::default();
        let begin = Instant::now();
        holders.add("p", ["e.n0", "e.n1"].map(str::to_owned));
        holders.add("p", ["e.n1", "e.n2"].map(str::to_owned));
        holders.add("q", ["e.n0"].map(str::to_owned));
        let nobody = holders.due(|_| true, (|_: &str| true, |_: &str| true), 9, begin);
        assert_eq!(nobody, Due::default());
        assert_eq!(holders.of_p(true, begin), tell(&["e.n0", "e.n1", "e.n2"]));
        holders.told("p", "e.n1");
        assert_eq!(holders.of_p(true, begin + TELLING / 2), tell(&["e.n0", "e.n2"]));
        assert_eq!(holders.of_p(true, begin + TELLING), Due::default());
        assert_eq!((holders.plans.len(), holders.tries.len()), (1, 0), "nothing is kept of it");
    }

    #[test]
    fn the_dead_are_tried_in_growing_pauses_and_who_comes_is_told_at_once() {
        let mut holders = Holders::default();
        let begin = Instant::now();
        holders.add("p", ["e.n0".to_owned()]);
        let tried = |holders: &mut Holders, sessions, seconds: u32| -> Vec<u32> {
            (0..seconds).filter(|n| holders.of_p(sessions, begin + SECOND * *n) != Due::default()).collect()
        };
        let calls = tried(&mut holders, false, 24 * 3600);
        assert_eq!(calls.get(..6), Some(&[0, 120, 240, 360, 600, 1080][..]), "a call is good for two minutes");
        assert!(calls.windows(2).all(|two| two[1] - two[0] <= 3600) && calls.len() < 32, "{calls:?}");
        let day = begin + TELLING - SECOND;
        assert_eq!(holders.of_p(true, day), tell(&["e.n0"]), "it came");
        assert_eq!(holders.of_p(true, day), Due::default(), "it is being told");

        // A session that does not answer.
        let mut holders = Holders::default();
        holders.add("p", ["e.n0".to_owned()]);
        let asked = tried(&mut holders, true, 24 * 3600);
        assert_eq!(asked.get(..5), Some(&[0, 30, 90, 210, 450][..]));
        assert!(asked.len() < 32, "{asked:?}");
    }

    #[test]
    fn calls_leave_places_to_others_and_reach_everybody_in_turn() {
        let mut holders = Holders::default();
        let begin = Instant::now();
        let names: BTreeSet<String> = (0..4 * CALLS).map(|n| format!("e.n{n}")).collect();
        holders.add("p", names.clone());
        holders.add("p", (0..4 * CALLS).map(|n| format!("deleted.n{n}")));
        let mut called = BTreeSet::new();
        for n in 0..4 {
            let now = begin + CALLED * n;
            let exists = |agent: &str| agent.starts_with("e.");
            let due = holders.due(|_| false, (|_: &str| false, exists), 9, now);
            assert_eq!((due.call.len(), due.tell.len()), (CALLS, 0));
            called.extend(due.call);
            assert_eq!(holders.of_p(false, now + CALLED - SECOND), Due::default(), "no more while these are called");
        }
        assert!(called == names, "everybody once before anybody twice, and no agent that is deleted");
        let held = holders.plans.get("p").map(|held| held.agents.len());
        assert_eq!(held, Some(names.len()), "who is deleted is dropped");
        assert_eq!(holders.due(|_| false, (|_: &str| true, |_: &str| true), 9, begin + CALLED * 4).tell.len(), 9);
    }
}
