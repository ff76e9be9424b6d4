//! What a cluster's nodes use, as its metrics API tells: measured by the cluster, summed up here.
//!
//! What pods ask for (`requests`) is not counted: no API tells it without reading each pod, and a fleet has 150,000.

use crate::{ask::ask, kinds::Usage, look::amount};
use serde::Deserialize;
use std::collections::BTreeMap;
use tokio::sync::Semaphore;

/// Where metrics-server, and what stands in for it, serves.
const PATH: &str = "/apis/metrics.k8s.io/v1beta1/nodes";
/// Largest answer that is read, in bytes: what five thousand nodes with all their labels take, and half as much again.
const LARGEST: usize = 12 << 20;
/// Such answers that are held at a time: with [`LARGEST`] this bounds what hostile clusters can make of them.
const AT_ONCE: usize = 4;

/// Asks for usage, of a few clusters at a time.
#[derive(Debug)]
pub(crate) struct Meter(Semaphore);

impl Default for Meter {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Meter {
    /// What is used, in thousandths; or that nobody knows, and why.
    pub async fn read(&self, cluster: &kube::Client) -> (BTreeMap<String, i128>, Usage) {
        match ask(cluster, PATH, LARGEST, Some(&self.0)).await {
            Some((200, text)) => measured(&text),
            // The API server has no such API, or nobody who serves it now.
            Some((404 | 503, _)) => (BTreeMap::new(), Usage::NotServed),
            Some((401 | 403, _)) => (BTreeMap::new(), Usage::NotAllowed),
            _ => (BTreeMap::new(), Usage::NoAnswer),
        }
    }
}

#[derive(Deserialize)]
struct List {
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    usage: Amounts,
}

#[derive(Deserialize)]
struct Amounts {
    cpu: String,
    memory: String,
}

fn measured(text: &[u8]) -> (BTreeMap<String, i128>, Usage) {
    let Ok(list) = serde_json::from_slice::<List>(text) else { return (BTreeMap::new(), Usage::NoAnswer) };
    let sum = |of: fn(&Amounts) -> &String| list.items.iter().filter_map(|node| amount(of(&node.usage))).sum();
    let (cpu, memory): (i128, i128) = (sum(|amounts| &amounts.cpu), sum(|amounts| &amounts.memory));
    // A metrics API that has just begun knows of no node: that is not a cluster that does nothing.
    if list.items.is_empty() {
        return (BTreeMap::new(), Usage::NotServed);
    }
    (BTreeMap::from([("cpu".to_owned(), cpu), ("memory".to_owned(), memory)]), Usage::Measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_summed_up_as_it_is_measured() {
        let node =
            |cpu: &str, memory: &str| format!(r#"{{"metadata":{{}},"usage":{{"cpu":"{cpu}","memory":"{memory}"}}}}"#);
        let list = |items: &[String]| measured(format!(r#"{{"items":[{}]}}"#, items.join(",")).as_bytes());
        let (used, how) = list(&[node("156340625n", "1Ki"), node("250m", "2Ki"), node("junk", "-1")]);
        assert_eq!((used["cpu"], used["memory"], how), (157 + 250, 3 * 1_024_000, Usage::Measured));
        assert_eq!(list(&[]), (BTreeMap::new(), Usage::NotServed));
        for bad in ["", "{}", r#"{"items":[{}]}"#, r#"{"items":7}"#] {
            assert_eq!(measured(bad.as_bytes()), (BTreeMap::new(), Usage::NoAnswer), "{bad}");
        }
    }
}
