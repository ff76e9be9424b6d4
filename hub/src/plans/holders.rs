//! Which agents were handed which plans: what has to be told when a plan is deleted.

use super::{NodePlanSpec, NodeProgress};
use moorline_apiserver::Object;
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};
use tokio::time::Instant;

/// How long it is tried to tell an agent that a plan is gone. One that hears of nothing for a day may be gone as well; and
/// none begins a plan this old.
const TELLING: Duration = Duration::from_secs(24 * 3600);

/// Agents by the plans that they were handed, in the memory of one hub: whoever took over from it knows of those plans
/// that are still there.
#[derive(Default)]
pub(super) struct Holders(HashMap<String, Held>);

#[derive(Default)]
struct Held {
    agents: BTreeSet<String>,
    /// Since when the plan is gone.
    gone: Option<Instant>,
}

impl Holders {
    /// These nodes have the plan, those that it was sent to.
    pub fn note(&mut self, plan: &Object<NodePlanSpec>, nodes: &[NodeProgress]) {
        let agents = nodes.iter().filter(|node| node.sent).map(|n| format!("{}.{}", plan.spec.cluster, n.agent));
        self.add(&plan.metadata.uid, agents);
    }

    fn add(&mut self, uid: &str, agents: impl Iterator<Item = String>) {
        self.0.entry(uid.to_owned()).or_default().agents.extend(agents);
    }

    /// Whom to tell of which plans' end, by the plan's uid. Whoever cannot be told is named again.
    pub fn untold(&mut self, lives: impl Fn(&String) -> bool, now: Instant) -> Vec<(String, String)> {
        let mut untold = Vec::new();
        self.0.retain(|uid, held| {
            if lives(uid) {
                return true;
            }
            let since = *held.gone.get_or_insert(now);
            if held.agents.is_empty() || TELLING <= now.duration_since(since) {
                return false;
            }
            untold.extend(held.agents.iter().map(|agent| (uid.clone(), agent.clone())));
            true
        });
        untold
    }

    /// This agent knows that the plan is gone.
    pub fn told(&mut self, uid: &str, agent: &str) {
        if let Some(held) = self.0.get_mut(uid) {
            held.agents.remove(agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_plan_that_is_gone_is_named_until_told_and_not_for_ever() {
        let mut holders = Holders::default();
        let begin = Instant::now();
        let named =
            |agents: &[&str]| agents.iter().map(|agent| ("p".to_owned(), (*agent).to_owned())).collect::<Vec<_>>();
        holders.add("p", ["e.n0", "e.n1"].map(str::to_owned).into_iter());
        holders.add("p", ["e.n1", "e.n2"].map(str::to_owned).into_iter());
        holders.add("q", ["e.n0"].map(str::to_owned).into_iter());
        assert_eq!(holders.untold(|_| true, begin), []);
        assert_eq!(holders.untold(|uid| uid == "q", begin), named(&["e.n0", "e.n1", "e.n2"]));
        holders.told("p", "e.n1");
        assert_eq!(holders.untold(|uid| uid == "q", begin + TELLING / 2), named(&["e.n0", "e.n2"]));
        assert_eq!(holders.untold(|uid| uid == "q", begin + TELLING), []);
        assert_eq!(holders.0.len(), 1, "nothing is kept of it");
    }
}
