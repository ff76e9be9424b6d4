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

/// Opens a shell's stream, on a node agent and nowhere else.
pub(crate) struct ShellDial {
    pub call: CallDial,
    /// Which; `None`: any that stands by.
    pub node: Option<AgentName>,
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
            sessions.retain(|entry| entry.node && wanted.as_ref().is_none_or(|wanted| *wanted == entry.agent));
            let all: Vec<_> = sessions.iter().map(|entry| entry.candidate()).collect();
            let header = StreamHeader { target: Target::Shell, class: Class::Interactive, ..header.clone() };
            let mut tried = Vec::new();
            while let Some(at) = pick(&all, &tried, [rand::random::<u32>() as usize, rand::random::<u32>() as usize]) {
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
