//! The control stream's messages: greeting, liveness, drain, certificate renewal.

use crate::{code::CloseCode, id::InstanceId};
use alloc::{string::String, vec::Vec};

/// The version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;

/// The first message, from the side that dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lowest protocol version spoken.
    pub min_version: u16,
    /// Highest protocol version spoken.
    pub max_version: u16,
    /// Which run of the agent this is.
    pub instance: InstanceId,
    /// Software version, for people.
    pub software: String,
    /// Names of optional abilities. Unknown ones are ignored.
    pub capabilities: Vec<String>,
    /// Facts for the hub's `Cluster` and `Agent` objects, such as `kubernetesVersion`. Unknown keys are kept.
    pub facts: Vec<(String, String)>,
    /// The sender's clock, milliseconds since the Unix epoch: a skew is told early and in words.
    pub now_ms: u64,
}

/// The hub's answer that opens a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both sides speak from here on.
    pub version: u16,
    /// Software version, for people.
    pub software: String,
    /// Names of optional abilities. Unknown ones are ignored.
    pub capabilities: Vec<String>,
    /// The hub's clock, milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// The hub's answer that opens none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goodbye {
    /// The cause.
    pub code: CloseCode,
    /// For people.
    pub message: String,
    /// Do not dial again before this many milliseconds. 0: the agent's own back-off.
    pub retry_after_ms: u32,
}

/// Everything that can stand on the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Agent to hub, first.
    Hello(Hello),
    /// Hub to agent, first.
    Welcome(Welcome),
    /// Either way: the session ends, or never began.
    Goodbye(Goodbye),
    /// Either way: answer with the same number.
    Ping(u64),
    /// The answer.
    Pong(u64),
    /// Either way: open no new streams; open ones may end within this many milliseconds.
    Drain {
        /// Milliseconds until the sender closes the session.
        grace_ms: u32,
    },
    /// Agent to hub: a certificate signing request (DER, PKCS #10) for the same identity.
    Renew {
        /// The request.
        csr: Vec<u8>,
    },
    /// Hub to agent: the new certificate chain, leaf first, and the trust bundle to keep (DER).
    Renewed {
        /// Leaf first.
        chain: Vec<Vec<u8>>,
        /// Every authority to trust from now on.
        bundle: Vec<Vec<u8>>,
    },
    /// Hub to agent: the renewal was refused.
    RenewRefused {
        /// For people.
        message: String,
    },
    /// Agent to hub: facts that changed.
    Facts(Vec<(String, String)>),
}
