//! The named codes of the wire: why a session closed, why a stream was refused, why a stream was reset.
//! Numbers are fixed for ever; a number that this side does not know reads as the set's `Unknown`.

use core::fmt;

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$vdoc])* $variant,)+ /// A number that this version has no name for.
            Unknown(u32) }
        impl $name {
            /// Every code that has a name.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// The number on the wire.
            pub const fn number(self) -> u32 { match self { $(Self::$variant => $number,)+ Self::Unknown(n) => n } }
            /// The code of a number on the wire.
            pub const fn from_number(n: u32) -> Self { match n { $($number => Self::$variant,)+ n => Self::Unknown(n) } }
            /// The name in logs and metric labels: a bounded set.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $text,)+ Self::Unknown(_) => "unknown" } }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.name()) }
        }
    };
}

codes! {
    /// Why a session ended. On QUIC the application close code; on the mux the code of the go-away frame.
    CloseCode {
        /// An ordinary end.
        Normal = 0x0, "normal";
        /// The peer broke the framing or sent what its state does not allow.
        Protocol = 0x1, "protocol_error";
        /// A bug or failure of this side.
        Internal = 0x2, "internal_error";
        /// A frame or message over its limit.
        TooLarge = 0x3, "too_large";
        /// More streams, credit or bytes than were granted.
        FlowControl = 0x4, "flow_control";
        /// Nothing was heard in time.
        Silent = 0x5, "silent";
        /// The greeting was not finished in time.
        SlowHello = 0x6, "slow_hello";
        /// No common version of the protocol.
        Version = 0x7, "no_common_version";
        /// The identity is known but may not have a session now.
        NotAllowed = 0x8, "not_allowed";
        /// Another live session of another process holds this identity.
        DuplicateIdentity = 0x9, "duplicate_identity";
        /// A newer session of the same identity took this one's place.
        Replaced = 0xa, "replaced";
        /// The hub is full or starting: come back after the pause that it names.
        Busy = 0xb, "busy";
        /// This side is going away; open sessions elsewhere.
        Shutdown = 0xc, "shutdown";
        /// The certificate, or the agent that it names, is no longer valid.
        CredentialGone = 0xd, "credential_gone";
        /// The peer opened a kind of stream that its role may not open.
        ForbiddenStream = 0xe, "forbidden_stream";
        /// A flood of messages that cost more than they are allowed to.
        Flood = 0xf, "flood";
        /// The peer knows nothing of this session: it was started anew. Never sent; what a stateless reset reads as.
        Forgotten = 0x10, "forgotten";
        /// Nothing is wrong: the hub has as many sessions of this kind as it wants. Come back after the pause.
        Parked = 0x11, "parked";
    }
}
codes! {
    /// Why a stream was refused by its acceptor. A refusal ends that stream alone.
    RefuseCode {
        /// The header could not be read.
        BadHeader = 0x1, "bad_header";
        /// The acceptor does not know this kind of target.
        UnknownTarget = 0x2, "unknown_target";
        /// The request carries no identity.
        NoIdentity = 0x3, "no_identity";
        /// The edge policy says no.
        Policy = 0x4, "policy";
        /// The acceptor could not reach the target. Nothing was sent to it.
        Unreachable = 0x5, "unreachable";
        /// The deadline passed before the target was reached.
        Deadline = 0x6, "deadline";
        /// The acceptor is full. Safe to try elsewhere.
        Busy = 0x7, "busy";
        /// The acceptor is draining. Safe to try elsewhere.
        Draining = 0x8, "draining";
        /// A failure of the acceptor itself.
        Internal = 0x9, "internal_error";
        /// There is no such service, pod, port or name inside the cluster.
        NotFound = 0xa, "not_found";
        /// The service or pod is there, and nothing of it is ready.
        NoEndpoints = 0xb, "no_endpoints";
        /// The target's host answered that nothing listens there.
        ConnectionRefused = 0xc, "connection_refused";
        /// The target did not prove by TLS who it is, or speaks no TLS.
        Tls = 0xd, "tls";
    }
}
codes! {
    /// Why one side cut a stream short.
    ResetCode {
        /// The opener no longer wants the answer.
        Cancelled = 0x1, "cancelled";
        /// The other socket of the splice broke.
        Broken = 0x2, "broken";
        /// The stream's own framing was broken.
        Protocol = 0x3, "protocol_error";
        /// Nothing moved in time.
        Idle = 0x4, "idle";
        /// The right to this stream ended.
        Revoked = 0x5, "revoked";
        /// The task behind the stream failed.
        Internal = 0x6, "internal_error";
        /// The session ended under the stream.
        SessionLost = 0x7, "session_lost";
        /// The stream was refused before it began.
        Refused = 0x8, "refused";
    }
}
