//! Streams to node agents: shells.

use super::{CallDial, LeasedStream, pick};
use crate::kinds::{AgentRole, AgentSpec};
use futures_util::{FutureExt, future::BoxFuture};
use moorline_authz::access::Permit;
use moorline_proto::{
    header::{Class, StreamHeader, Target},
    id::AgentName,
};
use moorline_proxy::kube::{Dial, DialError};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Opens a shell's stream, on a node agent and nowhere else.
pub(crate) struct ShellDial {
    pub call: CallDial,
    /// Which; `None`: any that stands by.
    pub node: Option<AgentName>,
    /// The id that the client gave its shell: it leads to the same node again, as long as that one stands by.
    pub session: Option<String>,
}

/// Where a shell of this id comes among nodes: each id has an order of its own, which lasts while nodes come and go.
fn rank(session: &str, agent: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (session, agent).hash(&mut hasher);
    hasher.finish()
}

impl Dial for ShellDial {
    type Stream = LeasedStream;
    fn dial<'a>(
        &'a self,
        permit: &'a Permit,
        header: &'a StreamHeader,
        _: u32,
    ) -> BoxFuture<'a, Result<LeasedStream, DialError>> {
        async move {
            let cluster = permit.cluster();
            let wanted = self.node.as_ref().map(|node| format!("{cluster}.{node}"));
            let mut sessions = self.call.registry.of_cluster(cluster);
            // One that was named and gives none says itself why.
            sessions
                .retain(|entry| entry.node && wanted.as_ref().map_or(entry.carries(), |wanted| *wanted == entry.agent));
            if let Some(session) = &self.session {
                sessions.sort_by_key(|entry| (entry.session.is_draining(), rank(session, &entry.agent)));
            }
            let all: Vec<_> = sessions.iter().map(|entry| entry.candidate()).collect();
            let header = StreamHeader { target: Target::Shell, class: Class::Interactive, ..header.clone() };
            let mut tried = Vec::new();
            let next = |tried: &[usize]| match &self.session {
                Some(_) => (tried.len() < all.len()).then_some(tried.len()),
                None => pick(&all, tried, [rand::random::<u32>() as usize, rand::random::<u32>() as usize]),
            };
            while let Some(at) = next(&tried) {
                tried.push(at);
                let Some(entry) = sessions.get(at) else { continue };
                if let Ok(stream) = entry.session.open(&header).await {
                    return Ok(LeasedStream::new(stream, self.call.end_of(permit, header.class)));
                }
            }
            let (cluster, node) = (cluster.to_owned(), self.node.as_ref().map(ToString::to_string));
            let parked = wanted.is_some_and(|agent| {
                let object = self.call.records.get::<AgentSpec>(&agent);
                let is_node = matches!(object, Ok(Some(object)) if object.spec.role == AgentRole::Node);
                if is_node {
                    self.call.registry.call(&agent);
                }
                is_node
            });
            Err(DialError::NoNode { cluster, node, parked })
        }
        .boxed()
    }
}
