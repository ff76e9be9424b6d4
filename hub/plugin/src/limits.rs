//! Every bound of this crate.

use std::time::Duration;

/// First pause before a part of a plugin that failed is started again. Doubled each time, with jitter.
pub const RESTART_FIRST: Duration = Duration::from_secs(1);
/// Longest such pause.
pub const RESTART_LONGEST: Duration = Duration::from_secs(60);
/// A part that ran this long has recovered, and a watch for so long after its listing: its next pause is the first one again.
pub const RECOVERED: Duration = Duration::from_secs(120);
/// Errors of a watch in a row, of those after which kube-rs may go on: with the last of them it begins anew.
pub const WATCH_ERRORS: u32 = 3;
/// How often a plugin's runtime has to show that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Without a sign of life for this long it stands still: not ready, and its rules are not asked.
pub const STUCK: Duration = Duration::from_secs(5);
/// Longest that a rule (validation, defaults) of a plugin may take: the write is refused after it.
pub const RULE: Duration = Duration::from_secs(1);
/// Rules of one plugin that are being asked at a time. Those that never end count until the hub does.
pub const RULES: usize = 4;
/// Longest that a route of a plugin may take: 504 after it.
pub const ROUTE: Duration = Duration::from_secs(30);
/// Longest that a login provider of a plugin may take: nobody is let in by it then. Over what a provider bounds itself.
pub const LOGIN: Duration = Duration::from_secs(20);
/// Questions to one of them at a time; more are told to come again.
pub const LOGINS: usize = 64;
/// Longest wait for the head of an answer to a plugin's request, watches too.
pub const ANSWER: Duration = Duration::from_secs(30);
/// Requests of one plugin to the hub's API at a time; further ones wait. Far fewer than one caller may have there: with a
/// thousand clusters that come at once a plugin takes its time, and nobody's place.
pub const REQUESTS: usize = 16;
/// Longest request that a plugin may send, in bytes.
pub const REQUEST: usize = 4 << 20;
/// How long a write may take to be made of which nobody has told: as long as it is waited for, and as long as an API server
/// goes on with a request (kube-apiserver, `--request-timeout`: 60 s), and a while.
pub const LANDING: Duration = ANSWER.saturating_add(Duration::from_secs(65));
/// Largest answer of a cluster that is no watch, in bytes: a page of 500 nodes with all their images has some 15 MiB.
pub const ANSWER_SIZE: usize = 64 << 20;
/// Largest answer of a cluster that is an error, in bytes: a `Status` has a few lines.
pub const REFUSAL: usize = 64 << 10;
/// Longest line of a cluster's watch, in bytes: etcd takes objects of 1.5 MiB, and as text they are larger.
pub const WATCH_LINE: usize = 4 << 20;
/// Longest name in a cluster, and of a namespace. Most kinds' have at most 253 letters; those of roles and their bindings have
/// no bound in Kubernetes, and the hub's own there are of names of 253 and what stands before them.
pub const NAME: usize = 1024;
/// Objects of one kind of a cluster that are known at a time.
pub const OBJECTS: usize = 50_000;
/// What these have together, in bytes of JSON, where they are kept: one Secret that is as large as Kubernetes takes them,
/// 1.4 MiB of base64, in 180 namespaces.
pub const HELD: usize = 256 << 20;
/// Objects of a page of a listing, where any of them may be as large as etcd takes them.
pub const PAGE: u32 = 30;
/// Largest object as JSON: the 1.5 MiB of etcd, of which all may be bytes, in base64.
const LARGEST: usize = 2 << 20;
const _: () =
    assert!(PAGE as usize * LARGEST < ANSWER_SIZE, "a page of the largest objects is an answer that is taken");
/// Longest words of an error in a condition, a status or the log, in letters: they may be a cluster's.
pub const MESSAGE: usize = 400;
/// How long a plugin may take to end with the hub.
pub const END: Duration = Duration::from_secs(5);
/// By how much a plugin's threads step back behind the traffic (nice(2)), as those that check passwords do.
pub const NICE: i32 = 10;
/// Changes of one moment are looked at once.
pub const GATHER: Duration = Duration::from_millis(100);
/// First pause before an object that could not be written is tried again. Doubled each time, with jitter.
pub const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest such pause.
pub const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// Failures that a status names; the rest is counted.
pub const NAMED: usize = 10;
/// A mirror tells of itself in its cluster's object at most this often.
pub const TELL: Duration = Duration::from_secs(1);
/// So many times in a row; then there is news without end, and it is told this often.
pub const TELL_AT_ONCE: u32 = 20;
/// See [`TELL_AT_ONCE`].
pub const TELL_STEADILY: Duration = Duration::from_secs(10);
