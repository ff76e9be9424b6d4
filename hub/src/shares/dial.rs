//! Streams for imports: they last as long as export, import and the agent that asked.

use super::Shares;
use crate::route::{LeasedStream, Opener};
use futures_util::{FutureExt, future::BoxFuture};
use moorline_authz::access::{Permit, Transport, authorize_import};
use moorline_proto::header::StreamHeader;
use moorline_proxy::kube::{Dial, DialError};
use std::{future::Future, sync::Arc, time::Instant};

/// Who asks for which import.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub cluster: String,
    /// Its name within the cluster.
    pub agent: String,
    /// SHA-256 of its key, in hex.
    pub key: String,
    pub import: String,
    pub port: (u16, Transport),
}

/// Opens streams for one connection.
pub(super) struct ImportDial {
    pub shares: Arc<Shares>,
    pub asked: Asked,
    /// The permits, and the export that each is for.
    pub ways: Vec<(Permit, String)>,
}

/// A connection that counts.
struct Open(Arc<Shares>, String);
impl Drop for Open {
    fn drop(&mut self) {
        self.0.memory().closed(&self.1);
    }
}

impl ImportDial {
    /// Resolves when the right is gone. The connection counts as open until this is dropped.
    fn end_of(&self, permit: &Permit, export: &str) -> impl Future<Output = ()> + Send + 'static {
        let (shares, asked) = (Arc::clone(&self.shares), self.asked.clone());
        let (permit, export) = (permit.clone(), export.to_owned());
        self.shares.memory().opened(&export, Instant::now());
        let open = Open(Arc::clone(&shares), export.clone());
        async move {
            let _open = open;
            let mut known = shares.known.subscribe();
            loop {
                let now = Arc::clone(&known.borrow_and_update());
                let who = (asked.cluster.as_str(), asked.agent.as_str());
                let again = authorize_import(&now, who, &asked.import, &export, asked.port);
                let agent = format!("{}.{}", asked.cluster, asked.agent);
                let kept = again.is_ok_and(|again| again == permit) && shares.is_agent(&agent, &asked.key);
                if !kept || known.changed().await.is_err() {
                    break;
                }
            }
            shares.metrics.streams_revoked.inc();
        }
    }
}

impl Dial for ImportDial {
    type Stream = LeasedStream;
    fn dial<'a>(
        &'a self,
        permit: &'a Permit,
        header: &'a StreamHeader,
        attempt: u32,
    ) -> BoxFuture<'a, Result<LeasedStream, DialError>> {
        async move {
            let shares = &self.shares;
            let sessions = Opener { registry: &shares.registry, records: &shares.records, metrics: &shares.metrics };
            let (stream, by) = sessions.open(permit, header, attempt).await?;
            let export = self.ways.iter().find(|(known, _)| known == permit);
            let export = export.map(|(_, name)| name.as_str()).unwrap_or_default();
            Ok(LeasedStream::new(stream, self.end_of(permit, export)).carried(by))
        }
        .boxed()
    }
}
