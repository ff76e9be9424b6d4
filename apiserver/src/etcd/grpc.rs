//! Calls to an etcd: one member at a time, the next one after a failure.

use super::{
    EtcdError, EtcdPlace, PAUSE, pb,
    place::{self},
};
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use http::{Uri, uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls_pki_types::ServerName;
use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// Longest wait for a connection to a member.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest wait for an answer. A member that has no leader answers nothing for longer.
const ANSWER: Duration = Duration::from_secs(3);
/// The same for a transaction, which is tried at the next member then: its mark tells if it was made after all. So a leader
/// that froze, and a member that has no other yet, cost less than the five seconds in which a write is to be there again.
const MADE: Duration = Duration::from_millis(1500);
/// When a transaction that was not answered is sent to the next member as well. An election takes one or two seconds; what a
/// member is given before it knows of it goes to the leader that is no more, and is lost. So it takes this much longer than
/// the election, and not [`MADE`]; and an etcd whose disk is slow is asked twice, and not ten times.
const AGAIN: Duration = Duration::from_millis(500);
/// How often a silent connection is asked whether it lives. etcd ends one that asks more often than every five seconds
/// (`--grpc-keepalive-min-time`, etcd's configuration reference: "minimum duration interval that a client should wait before
/// pinging server", 5 s unless told), with `too_many_pings`.
const ALIVE: Duration = Duration::from_secs(6);
/// How long that answer may take. Together they are when a silent etcd is noticed by who only listens.
const ALIVE_ANSWER: Duration = Duration::from_secs(3);
/// Largest answer, in bytes: a page of [`PAGE`] objects of etcd's largest size.
const LARGEST: usize = 128 << 20;
/// Keys of one page.
pub(super) const PAGE: i64 = 64;

pub(super) struct Etcds {
    members: Vec<Channel>,
    at: usize,
}

impl Etcds {
    /// Connects when it is first asked. Within a runtime only.
    pub(super) fn new(place: &EtcdPlace) -> Result<Self, EtcdError> {
        let tls = place.client_config()?;
        let channel = |member: &String| {
            // TLS is the connector's business, so the address that gRPC knows is one without it.
            let endpoint = Endpoint::from_shared(format!("http://{member}"))
                .map_err(|e| EtcdError::Address { address: place.to_string(), why: e.to_string() })?
                .http2_keep_alive_interval(ALIVE)
                .keep_alive_timeout(ALIVE_ANSWER)
                // Of a connection without a watch or a call nobody waits for anything, and etcd takes no questions on it:
                // gRPC permits one in two hours there.
                .keep_alive_while_idle(false);
            let connector = Connector { member: member.as_str().into(), tls: tls.clone() };
            Ok(endpoint.connect_with_connector_lazy(connector))
        };
        Ok(Self { members: place.members.iter().map(channel).collect::<Result<_, EtcdError>>()?, at: 0 })
    }

    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    /// Goes on with the next member.
    pub(super) fn turn(&mut self) {
        self.at = (self.at + 1) % self.members.len().max(1);
    }

    fn member(&self, at: usize) -> Result<Channel, Status> {
        self.members.get(at).cloned().ok_or_else(|| Status::unavailable("no members"))
    }

    async fn unary<Q, A>(&self, path: &'static str, question: Q, within: Duration) -> Result<A, Status>
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        unary(self.member(self.at)?, path, question, within).await
    }

    pub(super) async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.unary("/etcdserverpb.KV/Range", request, ANSWER).await
    }

    pub(super) async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.unary("/etcdserverpb.KV/Txn", request, MADE).await
    }

    /// The same for one that is made once, however often it is sent: it goes to the next member as well whenever [`AGAIN`]
    /// goes by without an answer, or one fails, until `until`. An answer that it was not made counts once the sendings
    /// before it have answered too, unless it says whose write was first and `mine` knows it: any of them may have made it.
    /// `true`: some have not, so nobody knows.
    pub(super) async fn txn_once(
        &mut self,
        request: &pb::TxnRequest,
        until: Instant,
        mine: impl Fn(&pb::TxnResponse) -> bool,
    ) -> (Result<pb::TxnResponse, Status>, bool) {
        let (mut tries, first, mut sent, mut failed) = (FuturesUnordered::new(), self.at, 0, 0);
        let mut not_made = None;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                // An answer that is there counts before another sending.
                biased;
                Some((member, answer)) = tries.next() => {
                    let answer: Result<pb::TxnResponse, Status> = answer;
                    let status = match answer {
                        Ok(answer) if answer.succeeded || mine(&answer) => {
                            self.at = member;
                            return (Ok(answer), false);
                        }
                        Ok(answer) => {
                            self.at = member;
                            if tries.is_empty() {
                                return (Ok(answer), 0 < failed);
                            }
                            not_made = Some(answer);
                            continue;
                        }
                        Err(status) => status,
                    };
                    failed += 1;
                    if let Some(answer) = not_made.take() {
                        if tries.is_empty() {
                            return (Ok(answer), true);
                        }
                        not_made = Some(answer);
                        continue;
                    }
                    let now = Instant::now();
                    // Every member gets its chance at once; when all have failed, a moment later.
                    next = next.min(if failed % self.members() == 0 { now + PAUSE } else { now });
                    let final_word = matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted);
                    if final_word || (until <= next && tries.is_empty()) {
                        return (Err(status), 1 < sent || !final_word);
                    }
                }
                () = sleep_until(next), if not_made.is_none() && (next < until || sent == 0) => {
                    let at = (first + sent) % self.members().max(1);
                    sent += 1;
                    next = Instant::now() + AGAIN;
                    let (member, request) = (self.member(at), request.clone());
                    tries.push(async move {
                        let answer = match member {
                            Ok(member) => unary(member, "/etcdserverpb.KV/Txn", request, MADE).await,
                            Err(status) => Err(status),
                        };
                        (at, answer)
                    });
                }
            }
        }
    }

    /// The call does not borrow this, so that it may outlive whoever begins it.
    pub(super) fn compact(&self, revision: i64) -> impl Future<Output = Result<(), Status>> + Send + use<> {
        let (member, request) = (self.member(self.at), pb::CompactionRequest { revision });
        async move {
            let _: pb::CompactionResponse = unary(member?, "/etcdserverpb.KV/Compact", request, ANSWER).await?;
            Ok(())
        }
    }

    /// Every change of the keys from `key` to before `end`, from a revision on; and now and then, where there is none, up to
    /// where all were told.
    pub(super) async fn watch(
        &self,
        key: Bytes,
        end: Bytes,
        from: i64,
    ) -> Result<Streaming<pb::WatchResponse>, Status> {
        let create = pb::WatchCreateRequest { key, range_end: end, start_revision: from, progress_notify: true };
        // The question stays open for as long as the answer is wanted.
        let question = stream::iter([pb::WatchRequest { create: Some(create) }]).chain(stream::pending());
        let mut request = Request::new(question);
        // A member that has lost its leader ends the watch instead of going silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let ask = async {
            let mut client = client(self.member(self.at)?);
            client.ready().await.map_err(|e| Status::unavailable(cause(&e)))?;
            let codec = ProstCodec::<pb::WatchRequest, pb::WatchResponse>::default();
            client.streaming(request, PathAndQuery::from_static("/etcdserverpb.Watch/Watch"), codec).await
        };
        let late = |_| Status::unavailable("no watch in time");
        Ok(tokio::time::timeout(ANSWER, ask).await.map_err(late)??.into_inner())
    }
}

fn client(member: Channel) -> Grpc<Channel> {
    Grpc::new(member).max_decoding_message_size(LARGEST)
}

async fn unary<Q, A>(member: Channel, path: &'static str, question: Q, within: Duration) -> Result<A, Status>
where
    Q: Message + Default + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let ask = async {
        let mut client = client(member);
        client.ready().await.map_err(|e| Status::unavailable(cause(&e)))?;
        let codec = ProstCodec::<Q, A>::default();
        client.unary(Request::new(question), PathAndQuery::from_static(path), codec).await
    };
    let late = |_| Status::unavailable("no answer in time");
    Ok(tokio::time::timeout(within, ask).await.map_err(late)??.into_inner())
}

/// An error with what lies under it, on one line.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = error.source();
    }
    text
}

/// Opens connections to one member.
#[derive(Clone)]
struct Connector {
    member: Arc<str>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Wire>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { member, tls } = self.clone();
        Box::pin(async move {
            let connect = async {
                let tcp = TcpStream::connect(&*member).await?;
                tcp.set_nodelay(true)?;
                let Some(config) = tls else { return Ok(Box::new(tcp) as Box<dyn Wire>) };
                let host = place::host(&member).trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                Ok(Box::new(tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?) as Box<dyn Wire>)
            };
            match tokio::time::timeout(CONNECT, connect).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }
}
