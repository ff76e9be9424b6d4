//! From what an agent says of its node to what stands in the object: cut to size, counted, and made of plain letters.

use super::{NodeCertificate, NodeStatus};
use crate::{kinds::Condition, status::time};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

/// Letters of a version or name.
const WORD: usize = 64;
/// Letters of a cause.
const CAUSE: usize = 256;
/// Certificates that are kept, those that end first.
const CERTIFICATES: usize = 16;
/// A certificate that ends sooner than this is told.
const EXPIRING: Duration = Duration::from_secs(30 * 24 * 3600);
/// A clock that is further away is told: etcd warns at one second, and a greeting's way may take some.
const SKEW_MS: u64 = 5_000;
/// Less than this is pressure, in percent: the kubelet's own default for disks.
const SCARCE: u8 = 10;
/// Last second of the year 9999: no later time can be written.
const LAST: u64 = 253_402_300_799;

/// Facts, key to value.
pub(super) type Facts = [(String, String)];

fn plain(text: &str, most: usize) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(most).collect()
}

fn find<'a>(facts: &'a Facts, key: &str) -> Option<&'a str> {
    facts.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
}

fn word(facts: &Facts, key: &str) -> String {
    find(facts, key).map(|text| plain(text, WORD)).unwrap_or_default()
}

fn percent(facts: &Facts, key: &str) -> Option<u8> {
    find(facts, key)?.parse().ok().filter(|percent| *percent <= 100)
}

/// What the cluster calls the node, if that can be a name.
pub(super) fn node_name(facts: &Facts) -> String {
    let name = word(facts, "node");
    if moorline_apiserver::dns_subdomain(&name).is_ok() { name } else { String::new() }
}

/// Labels to select nodes by. What could be none is left out.
pub(super) fn labels(cluster: &str, facts: &Facts) -> BTreeMap<String, String> {
    let value = |text: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let ends = |b: Option<&u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
        let bytes = text.as_bytes();
        bytes.len() <= 63 && bytes.iter().copied().all(inner) && ends(bytes.first()) && ends(bytes.last())
    };
    let mut labels = BTreeMap::from([(super::CLUSTER_LABEL.to_owned(), cluster.to_owned())]);
    let named = [
        ("kubernetes.io/hostname", "node"),
        ("kubernetes.io/os", "node.os"),
        ("kubernetes.io/arch", "node.arch"),
        ("topology.kubernetes.io/zone", "zone"),
    ];
    for (label, key) in named {
        if let Some(text) = find(facts, key).filter(|text| !text.is_empty() && value(text)) {
            labels.insert(label.to_owned(), text.to_owned());
        }
    }
    for role in find(facts, "node.roles").unwrap_or_default().split(',').take(8) {
        if !role.is_empty() && value(role) {
            labels.insert(format!("node-role.kubernetes.io/{role}"), String::new());
        }
    }
    labels
}

/// The status that these facts make. `skew`: how far the agent's clock was before the hub's when it greeted, in
/// milliseconds. `before` gives the times of conditions that have not turned.
pub(super) fn status(facts: &Facts, skew: Option<i64>, before: &NodeStatus, now: SystemTime) -> NodeStatus {
    let told = find(facts, "node.skewMs").and_then(|text| text.parse().ok());
    let mut status = NodeStatus {
        conditions: before.conditions.clone(),
        os_image: word(facts, "node.osImage"),
        operating_system: word(facts, "node.os"),
        architecture: word(facts, "node.arch"),
        kernel_version: word(facts, "node.kernel"),
        kubelet_version: word(facts, "node.kubelet"),
        container_runtime_version: word(facts, "node.runtime"),
        agent_version: word(facts, "agentVersion"),
        clock_skew_ms: steady(before.clock_skew_ms, skew.or(told)),
        memory_available_percent: percent(facts, "node.memory"),
        disk_available_percent: percent(facts, "node.disk"),
        certificates: certificates(facts),
    };
    let mut all = Conditions { all: &mut status.conditions, now: time(now) };
    all.set(super::REPORTING, "True", "AgentReports", "");
    match find(facts, "node.ready") {
        Some("ok") => all.set("Ready", "True", "KubeletReady", ""),
        Some(cause) => all.set("Ready", "False", "KubeletNotReady", &plain(cause, CAUSE)),
        None => all.set("Ready", "Unknown", "NotTold", "the API server did not tell the agent"),
    }
    for (name, key, percent) in [
        ("MemoryPressure", "node.memoryPressure", status.memory_available_percent),
        ("DiskPressure", "node.diskPressure", status.disk_available_percent),
    ] {
        let scarce = percent.is_some_and(|percent| percent < SCARCE);
        match (find(facts, key) == Some("true"), scarce) {
            (true, _) => all.set(name, "True", "KubeletSays", ""),
            (false, true) => all.set(name, "True", "LittleLeft", &format!("less than {SCARCE} % is available")),
            (false, false) => all.set(name, "False", "EnoughLeft", ""),
        }
    }
    for (name, key) in [("ApiServerReachable", "node.api"), ("EtcdReachable", "node.etcd")] {
        match find(facts, key) {
            Some("ok") => all.set(name, "True", "Answers", ""),
            Some(cause) => all.set(name, "False", "NoAnswer", &plain(cause, CAUSE)),
            None => all.all.retain(|c| c.r#type != name),
        }
    }
    let far = status.clock_skew_ms.filter(|ms| SKEW_MS < ms.unsigned_abs());
    match far {
        Some(ms) => {
            all.set("ClockSkewed", "True", "ClocksDiffer", &format!("the node's clock is {ms} ms before the hub's"))
        }
        None => all.set("ClockSkewed", "False", "ClocksAgree", ""),
    }
    expiring(&mut status, now);
    status
}

/// Says anew which certificates end soon: that turns by time alone.
pub(super) fn expiring(status: &mut NodeStatus, now: SystemTime) {
    let limit = jiff::Timestamp::try_from(now + EXPIRING).unwrap_or(jiff::Timestamp::MAX);
    let soon = |certificate: &&NodeCertificate| {
        certificate.expires.parse::<jiff::Timestamp>().is_ok_and(|until| until < limit)
    };
    let names: Vec<&str> = status.certificates.iter().filter(soon).map(|c| c.name.as_str()).collect();
    let message = plain(&names.join(", "), CAUSE);
    let mut all = Conditions { all: &mut status.conditions, now: time(now) };
    if message.is_empty() {
        all.set("CertificatesExpiring", "False", "NoneSoon", "");
    } else {
        all.set("CertificatesExpiring", "True", "EndsWithinThirtyDays", &message);
    }
}

/// Nothing is heard of the node any more: what was said last stays, but nobody vouches for it.
pub(super) fn silent(status: &mut NodeStatus, now: SystemTime) {
    let mut all = Conditions { all: &mut status.conditions, now: time(now) };
    all.set(super::REPORTING, "Unknown", "AgentSilent", "its agent has neither a session nor asked for one");
}

/// A greeting's way takes its time: a skew that moves by less than a second has not moved.
fn steady(before: Option<i64>, now: Option<i64>) -> Option<i64> {
    match (before, now) {
        (Some(before), Some(now)) if before.abs_diff(now) <= 1000 => Some(before),
        (before, None) => before,
        (_, now) => now,
    }
}

fn certificates(facts: &Facts) -> Vec<NodeCertificate> {
    let named = facts.iter().filter_map(|(key, value)| {
        let name = plain(key.strip_prefix("node.cert.")?, WORD);
        let until: u64 = value.parse().ok().filter(|until| *until <= LAST)?;
        Some((until, name))
    });
    let mut all: Vec<(u64, String)> = named.collect();
    all.sort();
    all.truncate(CERTIFICATES);
    let object =
        |(until, name)| NodeCertificate { name, expires: time(SystemTime::UNIX_EPOCH + Duration::from_secs(until)) };
    all.into_iter().map(object).collect()
}

struct Conditions<'a> {
    all: &'a mut Vec<Condition>,
    now: String,
}
impl Conditions<'_> {
    fn set(&mut self, name: &str, status: &str, reason: &str, message: &str) {
        let (status, reason, message) = (status.to_owned(), reason.to_owned(), message.to_owned());
        match self.all.iter_mut().find(|c| c.r#type == name) {
            Some(c) => {
                if c.status != status {
                    c.last_transition_time.clone_from(&self.now);
                }
                (c.status, c.reason, c.message) = (status, reason, message);
            }
            None => self.all.push(Condition {
                r#type: name.to_owned(),
                status,
                reason,
                message,
                last_transition_time: self.now.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }
    fn at(status: &NodeStatus, name: &str) -> String {
        let found = status.conditions.iter().find(|c| c.r#type == name);
        found.map_or_else(String::new, |c| format!("{} {}", c.status, c.reason))
    }
    fn day(n: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(n * 86_400)
    }

    #[test]
    fn facts_become_a_status_with_reasons() {
        let told = facts(&[
            ("node.kubelet", "v1.33.4"),
            ("node.ready", "ok"),
            ("node.api", "ok"),
            ("node.etcd", "refused"),
            ("node.memory", "40"),
            ("node.disk", "9"),
            ("node.cert.apiserver.crt", "86400000"),
            ("node.cert.etcd/server.crt", "31536000"),
        ]);
        let status = status(&told, Some(7000), &NodeStatus::default(), day(355));
        assert_eq!(status.kubelet_version, "v1.33.4");
        assert_eq!(status.certificates[0].name, "etcd/server.crt", "the first to end comes first");
        let expected = [
            ("Reporting", "True AgentReports"),
            ("Ready", "True KubeletReady"),
            ("MemoryPressure", "False EnoughLeft"),
            ("DiskPressure", "True LittleLeft"),
            ("ApiServerReachable", "True Answers"),
            ("EtcdReachable", "False NoAnswer"),
            ("CertificatesExpiring", "True EndsWithinThirtyDays"),
            ("ClockSkewed", "True ClocksDiffer"),
        ];
        for (name, said) in expected {
            assert_eq!(at(&status, name), said, "{name}");
        }
    }

    #[test]
    fn hostile_texts_are_bounded_and_harmless() {
        let long = "x".repeat(1000);
        let mut told = facts(&[
            ("node", "../../etc"),
            ("node.kernel", "6.1\u{1b}[2J\u{202e}evil"),
            ("node.osImage", &long),
            ("node.disk", "4000000000"),
            ("node.memory", "-1"),
            ("node.skewMs", "nine"),
            ("node.ready", &long),
            ("zone", "a b"),
            ("node.roles", "x y,control-plane,,-bad"),
        ]);
        told.extend((0..60).map(|n| (format!("node.cert.{n}\n"), format!("{}", u64::MAX - n))));
        told.extend((0..60).map(|n| (format!("node.cert.ok{n}"), n.to_string())));
        let status = status(&told, None, &NodeStatus::default(), day(1));
        assert_eq!((node_name(&told).as_str(), status.kernel_version.as_str()), ("", "6.1[2Jevil"));
        assert_eq!((status.os_image.len(), status.disk_available_percent, status.clock_skew_ms), (WORD, None, None));
        assert_eq!(status.certificates.len(), CERTIFICATES);
        assert!(status.conditions.iter().all(|c| c.message.len() <= CAUSE));
        let labels = labels("edge1", &told);
        assert_eq!(labels.len(), 2, "{labels:?}");
        assert!(labels.contains_key("node-role.kubernetes.io/control-plane"));
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let good = facts(&[("node.ready", "ok"), ("node.cert.a", "3456000")]);
        let first = status(&good, Some(10), &NodeStatus::default(), day(1));
        let again = status(&good, Some(400), &first, day(2));
        assert_eq!(first, again, "nothing that matters has changed");
        let mut later = again.clone();
        expiring(&mut later, day(20));
        assert_eq!(at(&later, "CertificatesExpiring"), "True EndsWithinThirtyDays", "by time alone");
        silent(&mut later, day(21));
        assert_eq!(at(&later, "Reporting"), "Unknown AgentSilent");
    }
}
