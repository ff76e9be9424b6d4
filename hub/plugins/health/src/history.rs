//! What it was like: a few numbers for each look, in memory, for plots.

use crate::look::Numbers;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Points that are kept of each cluster, and of the fleet: six hours, a minute each.
pub(crate) const POINTS: usize = 360;
/// What stands in a point, in this order. Usage is null where nobody measures it.
const COLUMNS: [&str; 9] =
    ["time", "nodes", "nodesReady", "pods", "podsInTrouble", "cpuMilli", "cpuUsedMilli", "memoryMi", "memoryUsedMi"];

/// One moment. Small, for there are [`POINTS`] of each cluster: what is more than fits is as much as fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    /// Unix time, in seconds.
    at: u32,
    nodes: u32,
    ready: u32,
    pods: u32,
    trouble: u32,
    /// What nodes have for pods: thousandths of a core, and MiB.
    cpu: u32,
    memory: u32,
    cpu_used: Option<u32>,
    memory_used: Option<u32>,
}

/// The last [`POINTS`] moments.
#[derive(Debug, Default)]
pub(crate) struct History(VecDeque<Point>);

fn fits(amount: impl TryInto<u32>) -> u32 {
    amount.try_into().unwrap_or(u32::MAX)
}

/// Thousandths of a byte as MiB.
fn mebi(thousandths: i128) -> u32 {
    fits(thousandths / (1000 << 20))
}

impl History {
    pub fn remember(&mut self, at: jiff::Timestamp, numbers: &Numbers) {
        if self.0.capacity() < POINTS {
            self.0.reserve_exact(POINTS);
        }
        if self.0.len() == POINTS {
            self.0.pop_front();
        }
        let measured = numbers.measured > 0;
        let of = |amounts: &std::collections::BTreeMap<String, i128>, name| amounts.get(name).copied().unwrap_or(0);
        self.0.push_back(Point {
            at: fits(at.as_second()),
            nodes: fits(numbers.nodes),
            ready: fits(numbers.nodes_ready),
            pods: fits(numbers.pods),
            trouble: fits(numbers.pods_in_trouble),
            cpu: fits(of(&numbers.allocatable, "cpu")),
            memory: mebi(of(&numbers.allocatable, "memory")),
            cpu_used: measured.then(|| fits(of(&numbers.used, "cpu"))),
            memory_used: measured.then(|| mebi(of(&numbers.used, "memory"))),
        });
    }

    /// `{"columns": […], "points": [[…], …]}`
    pub fn plot(&self) -> Value {
        let row =
            |p: &Point| json!([p.at, p.nodes, p.ready, p.pods, p.trouble, p.cpu, p.cpu_used, p.memory, p.memory_used]);
        json!({ "columns": COLUMNS, "points": self.0.iter().map(row).collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_history_is_bounded_and_says_what_nobody_measured() {
        let mut history = History::default();
        let amounts = |cpu, memory| BTreeMap::from([("cpu".to_owned(), cpu), ("memory".to_owned(), memory)]);
        for pods in 0..1000 {
            let numbers = Numbers { pods, allocatable: amounts(4000, 1000 << 30), ..Numbers::default() };
            history.remember(jiff::Timestamp::UNIX_EPOCH, &numbers);
        }
        let used = amounts(1500, i128::MAX);
        let numbers = Numbers { measured: 1, pods: u64::MAX, used, ..Numbers::default() };
        history.remember("2030-01-01T00:00:00Z".parse().unwrap(), &numbers);
        let plot = history.plot();
        let points = plot["points"].as_array().unwrap();
        assert_eq!((points.len(), history.0.capacity()), (POINTS, POINTS), "as much as is said, and no more");
        assert_eq!(points[358], json!([0, 0, 0, 999, 0, 4000, null, 1024, null]));
        assert_eq!(points[359], json!([1_893_456_000, 0, 0, u32::MAX, 0, 0, 1500, 0, u32::MAX]));
        assert_eq!(plot["columns"].as_array().unwrap().len(), points[0].as_array().unwrap().len());
    }
}
