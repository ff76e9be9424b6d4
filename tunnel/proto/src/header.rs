//! The header that begins every stream, and the verdict that begins every answer.

use crate::{code::RefuseCode, inside::Inside};
use alloc::{string::String, vec::Vec};

/// What one stream is for, on whose behalf, and until when. Tolerates fields it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHeader {
    /// Where the acceptor is to connect the stream.
    pub target: Target,
    /// How urgent its bytes are.
    pub class: Class,
    /// How long the acceptor may take until its verdict, in milliseconds. 0: the acceptor's own limit.
    pub deadline_ms: u32,
    /// W3C `traceparent` of the request, verbatim.
    pub traceparent: Option<String>,
    /// On whose behalf. A kube target without one is refused.
    pub principal: Option<Principal>,
}

/// Where a stream leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The cluster's Kubernetes API server: one HTTP message each way, as `proxy` writes them.
    Kube,
    /// A service, pod or host inside the cluster.
    Inside(Inside),
    /// A shell on the agent's node: one HTTP message each way as for [`Target::Kube`], a request for a WebSocket. Node
    /// agents alone serve it.
    Shell,
    /// Answers every byte with itself: the tunnel's own probe.
    Echo,
    /// Plans for the agent's node: one HTTP message each way, as for `Kube`, without a principal; each plan is signed. Node
    /// agents alone serve it.
    Node,
    /// What the agent keeps for the cluster's own endpoint: one HTTP message each way, as for `Kube`, without a principal.
    Endpoint,
}

/// Scheduling class of a stream, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Class {
    /// Small requests, exec, shells.
    #[default]
    Interactive,
    /// Watches and followed logs.
    Watch,
    /// Copies, large lists, downloads.
    Bulk,
}

/// A user as the hub vouches for it, in the terms of Kubernetes' `user.Info`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Principal {
    /// User name. Never empty.
    pub user: String,
    /// Stable id, empty where there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Extra attributes, key to values.
    pub extra: Vec<(String, Vec<String>)>,
    /// Whom the user asks to act as (`kubectl --as`); the edge grants it only by the cluster's own rules.
    pub act_as: Option<ActAs>,
}

/// The identity that a user asks to act as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ActAs {
    /// User name. Never empty.
    pub user: String,
    /// Stable id, empty where none was asked for.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Extra attributes, key to values.
    pub extra: Vec<(String, Vec<String>)>,
}

/// What the acceptor says before its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The target is connected, or will be by the first byte.
    Accepted,
    /// No stream; the session lives on.
    Refused(Refusal),
}

/// Why a stream was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The cause.
    pub code: RefuseCode,
    /// For people.
    pub message: String,
    /// Whether the target cannot have seen anything, so that another session may be tried.
    pub retry_elsewhere: bool,
}
