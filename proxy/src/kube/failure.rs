//! What a client is told when there is no answer.

use super::DialError;
use crate::{
    Body, BodyError,
    pace::TooSlow,
    status::{Details, of_refusal, reason_of, status_with},
    wire::WireError,
};
use http::{Response, StatusCode};
use std::time::Duration;

/// When to ask again for a cluster that is not connected. kubectl asks ten times before it prints the answer, so this
/// is a tenth of how long a person waits for it.
const NOT_CONNECTED: Duration = Duration::from_secs(1);

/// When to ask again for a node agent that was parked and is being called.
const CALLED: Duration = Duration::from_secs(5);

/// Why a call got no answer from its cluster.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Dial(DialError),
    #[error(transparent)]
    Wire(WireError),
}

impl Failure {
    /// The client did not send the request's body in time.
    fn is_slow(&self) -> bool {
        matches!(self, Self::Wire(WireError::Stream(error)) if TooSlow::is(error))
    }

    /// How the audit log says it.
    pub(super) fn ended(&self) -> &'static str {
        match self {
            _ if self.is_slow() => "slow_body",
            Self::Dial(DialError::NotConnected { .. }) => "not_connected",
            Self::Dial(DialError::NoNode { .. }) => "no_node",
            Self::Dial(DialError::Busy { .. }) => "busy",
            Self::Dial(DialError::Refused(_)) | Self::Wire(WireError::Refused(_)) => "refused",
            Self::Dial(DialError::Lost) | Self::Wire(WireError::Stream(_) | WireError::Elsewhere) => "lost",
            Self::Dial(DialError::Timeout) => "timeout",
            Self::Wire(WireError::Head(_)) => "bad_head",
            Self::Wire(WireError::Peer(_)) => "protocol_error",
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            _ if self.is_slow() => StatusCode::REQUEST_TIMEOUT,
            Self::Dial(e) => e.status(),
            Self::Wire(WireError::Head(_)) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Wire(WireError::Stream(BodyError::Source(_))) => StatusCode::BAD_REQUEST,
            Self::Wire(WireError::Refused(_) | WireError::Stream(_) | WireError::Elsewhere | WireError::Peer(_)) => {
                StatusCode::BAD_GATEWAY
            }
        }
    }

    /// What a client may know: no addresses, no text of ours.
    pub(super) fn message(&self, cluster: &str) -> String {
        match self {
            _ if self.is_slow() => "the request's body came too slowly".to_owned(),
            Self::Dial(DialError::NotConnected { since: Some(since), .. }) => {
                format!("cluster {cluster:?} has not been connected since {since}")
            }
            Self::Dial(DialError::NotConnected { since: None, .. }) => {
                format!("cluster {cluster:?} has never been connected")
            }
            Self::Dial(e @ DialError::NoNode { .. }) => e.to_string(),
            Self::Dial(DialError::Busy { .. }) => format!("cluster {cluster:?} cannot take another request now"),
            Self::Dial(DialError::Lost) => {
                format!("the connection to cluster {cluster:?} ended before the request was sent")
            }
            Self::Dial(DialError::Timeout) => format!("the agent of cluster {cluster:?} did not answer in time"),
            Self::Dial(DialError::Refused(refusal)) | Self::Wire(WireError::Refused(refusal)) => {
                format!("the agent of cluster {cluster:?} refused ({}): {}", refusal.code, refusal.message)
            }
            Self::Wire(WireError::Head(what)) => format!("the request cannot be sent: {what}"),
            Self::Wire(WireError::Stream(BodyError::Source(_))) => "the request ended before its end".to_owned(),
            Self::Wire(WireError::Stream(_) | WireError::Elsewhere) => {
                format!("the connection to cluster {cluster:?} broke; whether the request took effect is not known")
            }
            Self::Wire(WireError::Peer(_)) => format!("the agent of cluster {cluster:?} broke the protocol"),
        }
    }

    /// One word for it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Dial(DialError::Refused(refusal)) | Self::Wire(WireError::Refused(refusal)) => {
                of_refusal(refusal.code).1
            }
            _ => reason_of(self.status()),
        }
    }

    /// The answer to the client. `close`: the rest of this connection cannot be trusted.
    pub(super) fn response(&self, cluster: &str, trace: &str, close: bool) -> Response<Body> {
        let code = self.status();
        let retry_after = match self {
            Self::Dial(DialError::NotConnected { .. }) => Some(NOT_CONNECTED),
            Self::Dial(DialError::NoNode { parked: true, .. }) => Some(CALLED),
            _ if code == StatusCode::SERVICE_UNAVAILABLE => Some(Duration::from_secs(1)),
            _ => None,
        };
        let message = format!("{} (trace {trace})", self.message(cluster));
        // What is left of a body that was given up would be read as the next request.
        let close = close || self.is_slow();
        status_with(code, self.reason(), &message, &Details { retry_after, close, ..Details::default() })
    }
}
