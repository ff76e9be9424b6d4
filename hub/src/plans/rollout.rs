//! Which nodes are next: a pure function of what is known of all of them.

use super::{NodePlanSpec, NodeProgress};
use moorline_authz::plan::Phase;

/// What is to be done next, and what a plan as a whole is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// Nodes to begin on, by their places.
    pub begin: Vec<usize>,
    pub phase: &'static str,
    pub message: String,
}

/// Decides over nodes in the order in which they are to be taken.
pub(super) fn decide(spec: &NodePlanSpec, nodes: &[NodeProgress]) -> Decision {
    let is = |wanted: fn(Phase) -> bool| nodes.iter().filter(move |n| wanted(n.progress.phase));
    let failed: Vec<&str> =
        is(|phase| matches!(phase, Phase::Failed | Phase::Refused)).map(|n| n.agent.as_str()).collect();
    let under_way = nodes.iter().filter(|n| n.sent && !n.progress.phase.is_over()).count();
    let waiting: Vec<usize> =
        (0..nodes.len()).filter(|at| nodes.get(*at).is_some_and(|n| !n.sent && !n.progress.phase.is_over())).collect();
    let says = |phase, message: String| Decision { begin: Vec::new(), phase, message };
    if nodes.is_empty() {
        return says("Waiting", "no node matches".to_owned());
    }
    let first = || {
        let node = is(|phase| matches!(phase, Phase::Failed | Phase::Refused)).next();
        node.map(|n| format!("{}: {}", n.agent, n.progress.message)).unwrap_or_default()
    };
    if waiting.is_empty() && under_way == 0 {
        return if failed.is_empty() { says("Succeeded", String::new()) } else { says("Failed", first()) };
    }
    let stopped = spec.paused || (spec.strategy.pause_on_failure && !failed.is_empty());
    if stopped && under_way == 0 {
        let why = if failed.is_empty() { "spec.paused".to_owned() } else { first() };
        return says("Paused", why);
    }
    let most = usize::try_from(spec.strategy.max_unavailable).unwrap_or(usize::MAX);
    let room = if stopped { 0 } else { most.saturating_sub(under_way + failed.len()) };
    if room == 0 && under_way == 0 {
        return says("Paused", format!("{} nodes have failed, which is as many as may be unavailable", failed.len()));
    }
    let begin: Vec<usize> = waiting.into_iter().take(room).collect();
    let running = nodes.iter().find(|n| n.sent && !n.progress.phase.is_over());
    let message = running.map(|n| format!("{}: {}", n.agent, n.progress.message)).unwrap_or_default();
    let message = message.trim_end_matches([':', ' ']).to_owned();
    let phase = if under_way > 0 || nodes.iter().any(|n| n.progress.phase.is_over()) { "Running" } else { "Waiting" };
    Decision { begin, phase, message }
}

#[cfg(test)]
mod tests {
    use super::{super::Strategy, *};
    use moorline_authz::plan::Progress;

    fn nodes(phases: &[(bool, Phase)]) -> Vec<NodeProgress> {
        let node = |(n, (sent, phase)): (usize, &(bool, Phase))| NodeProgress {
            agent: format!("n{n}"),
            sent: *sent,
            progress: Progress { phase: *phase, message: "why".to_owned(), ..Progress::default() },
        };
        phases.iter().enumerate().map(node).collect()
    }
    fn spec(max_unavailable: u32, pause_on_failure: bool) -> NodePlanSpec {
        NodePlanSpec {
            strategy: Strategy { max_unavailable, drain_seconds: 0, pause_on_failure },
            ..NodePlanSpec::default()
        }
    }
    const NEW: (bool, Phase) = (false, Phase::Waiting);
    const SENT: (bool, Phase) = (true, Phase::Waiting);
    const RUNNING: (bool, Phase) = (true, Phase::Running);
    const DONE: (bool, Phase) = (true, Phase::Succeeded);
    const FAILED: (bool, Phase) = (true, Phase::Failed);
    const REFUSED: (bool, Phase) = (false, Phase::Refused);

    #[test]
    fn no_more_nodes_are_under_way_than_may_be_unavailable() {
        let begins = |most, all: &[_]| decide(&spec(most, true), &nodes(all)).begin;
        assert_eq!(begins(1, &[NEW, NEW, NEW]), [0]);
        assert_eq!(begins(2, &[DONE, RUNNING, NEW, NEW]), [2]);
        assert_eq!(begins(2, &[SENT, RUNNING, NEW]), [0; 0]);
        assert_eq!(begins(9, &[NEW, DONE, NEW]), [0, 2]);
    }

    #[test]
    fn a_failure_pauses_or_counts_as_unavailable() {
        let paused = decide(&spec(5, true), &nodes(&[DONE, FAILED, NEW, NEW]));
        assert_eq!((paused.begin.len(), paused.phase, paused.message.as_str()), (0, "Paused", "n1: why"));
        let running = decide(&spec(5, true), &nodes(&[RUNNING, FAILED, NEW]));
        assert_eq!((running.begin.len(), running.phase), (0, "Running"), "what is under way goes on");
        assert_eq!(decide(&spec(2, false), &nodes(&[FAILED, NEW, NEW])).begin, [1]);
        assert_eq!(decide(&spec(1, false), &nodes(&[REFUSED, NEW])).phase, "Paused");
        let held = NodePlanSpec { paused: true, ..spec(5, true) };
        assert_eq!(decide(&held, &nodes(&[DONE, NEW])).phase, "Paused");
    }

    #[test]
    fn it_is_over_when_every_node_is() {
        assert_eq!(decide(&spec(1, true), &nodes(&[DONE, DONE])).phase, "Succeeded");
        assert_eq!(decide(&spec(1, true), &nodes(&[DONE, FAILED])).phase, "Failed");
        assert_eq!(decide(&spec(1, true), &nodes(&[])).phase, "Waiting");
        assert_eq!(decide(&spec(1, true), &nodes(&[NEW])).phase, "Waiting");
    }
}
