//! Shells where there are none: nodes that run neither Linux nor Windows.

use crate::{Config, serve::Service};
use moorline_link::IncomingStream;
use moorline_proto::id::ClusterId;
use moorline_proxy::edge::{Reviewer, Upstream};
use std::convert::Infallible;

/// No value of it exists.
pub struct NodeShells(Infallible);

impl NodeShells {
    /// There are none.
    pub fn new(_: &Config, _: &ClusterId) -> Option<Self> {
        None
    }

    pub(crate) async fn stream<U: Upstream, R: Reviewer>(&self, _: &Service<U, R>, _: IncomingStream) {
        match self.0 {}
    }
}
