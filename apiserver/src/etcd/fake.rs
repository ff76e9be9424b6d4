//! An etcd within the test: what it does next is said to it, and what it was asked can be looked at.

use super::{EtcdPlace, pb};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::task::AbortOnDropHandle;

/// Longest wait for what comes at once where the machine is not busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What it holds, as at one of its revisions.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    revision: i64,
    keys: BTreeMap<Bytes, (i64, Bytes)>,
    /// Every change, for those who watch.
    changes: Vec<(i64, Bytes, Option<Bytes>)>,
}

/// What it was asked, and how it answers.
#[derive(Debug, Default)]
pub(super) struct Course {
    content: Content,
    /// How often it was put back: who watched before hears nothing more.
    age: u64,
    /// Readings are not answered.
    pub(super) still: bool,
    /// Changes are not told.
    pub(super) silent: bool,
    /// As far as it says that it is while it is silent.
    pub(super) lags: Option<i64>,
    /// How often those who watch were told how far it is.
    pub(super) told: usize,
    /// Readings that were asked for.
    pub(super) readings: usize,
    pub(super) compactions: Vec<i64>,
}

/// See the module. It ends with this.
pub(super) struct Fake {
    course: Arc<Mutex<Course>>,
    news: watch::Sender<()>,
    port: u16,
    _task: AbortOnDropHandle<()>,
}

fn locked(course: &Mutex<Course>) -> MutexGuard<'_, Course> {
    course.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (course, news) = (Arc::new(Mutex::new(Course::default())), watch::Sender::new(()));
        let (shared, told) = (Arc::clone(&course), news.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (course, news) = (Arc::clone(&shared), told.clone());
                let serve = service_fn(move |request| answer(Arc::clone(&course), news.clone(), request));
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                connections.spawn(async move { drop(serving.serve_connection(TokioIo::new(stream), serve).await) });
            }
        }));
        Self { course, news, port, _task: task }
    }

    pub(super) fn place(&self) -> EtcdPlace {
        EtcdPlace::parse(&format!("etcd://127.0.0.1:{}/fake", self.port), None).unwrap()
    }

    pub(super) fn course(&self) -> MutexGuard<'_, Course> {
        locked(&self.course)
    }

    /// Somebody who is no store writes.
    pub(super) fn put(&self, key: &str, value: &str) {
        self.turn(|course| course.content.change(vec![(key.to_owned().into(), Some(value.to_owned().into()))]));
    }

    pub(super) fn content(&self) -> Content {
        self.course().content.clone()
    }

    /// It stops and starts with what it had earlier.
    pub(super) fn put_back(&self, earlier: Content) {
        self.turn(|course| {
            course.content = earlier;
            course.age += 1;
            course.silent = false;
        });
    }

    /// It behaves otherwise from now on.
    pub(super) fn turn(&self, how: impl FnOnce(&mut Course)) {
        how(&mut self.course());
        self.news.send_replace(());
    }

    /// Until it was asked for something.
    pub(super) async fn until(&self, so: impl Fn(&Course) -> bool) {
        let mut news = self.news.subscribe();
        let there = async {
            while !so(&self.course()) {
                news.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, there).await.expect("it is asked");
    }
}

impl Content {
    fn change(&mut self, all: Vec<(Bytes, Option<Bytes>)>) {
        self.revision += 1;
        for (key, value) in all {
            match &value {
                Some(value) => drop(self.keys.insert(key.clone(), (self.revision, value.clone()))),
                None => drop(self.keys.remove(&key)),
            }
            self.changes.push((self.revision, key, value));
        }
    }

    fn range(&self, asked: &pb::RangeRequest) -> pb::RangeResponse {
        let found = self.keys.iter().filter(|(key, _)| match asked.range_end.is_empty() {
            true => **key == asked.key,
            false => asked.key <= **key && **key < asked.range_end,
        });
        let kvs = found.map(|(key, (at, value))| kv(key, *at, value)).collect();
        pb::RangeResponse { header: self.header(), kvs, more: false }
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { revision: self.revision })
    }

    fn txn(&mut self, asked: pb::TxnRequest) -> pb::TxnResponse {
        let met = |compare: &pb::Compare| match (&compare.wanted, self.keys.get(&compare.key)) {
            (Some(pb::Wanted::ModRevision(at)), found) => *at == found.map_or(0, |(at, _)| *at),
            (Some(pb::Wanted::Value(value)), Some((_, found))) => value == found,
            _ => false,
        };
        let succeeded = asked.compare.iter().all(met);
        let (mut changes, mut responses) = (Vec::new(), Vec::new());
        for op in if succeeded { asked.success } else { asked.failure } {
            match op.request {
                Some(pb::Request::Put(put)) => changes.push((put.key, Some(put.value))),
                Some(pb::Request::Delete(delete)) => changes.push((delete.key, None)),
                Some(pb::Request::Range(range)) => {
                    responses.push(pb::ResponseOp { response: Some(pb::Response::Range(self.range(&range))) });
                }
                None => {}
            }
        }
        if !changes.is_empty() {
            self.change(changes);
        }
        pb::TxnResponse { header: self.header(), succeeded, responses }
    }

    /// What one who watches is told next, and from where on after that.
    fn next(&self, asked: &pb::WatchCreateRequest, from: i64) -> Option<(pb::WatchResponse, i64)> {
        let new = self.changes.iter().filter(|(at, key, _)| from <= *at && asked.key <= *key && *key < asked.range_end);
        let events: Vec<pb::Event> = new.map(event).collect();
        (!events.is_empty()).then(|| (pb::WatchResponse { events, ..Default::default() }, self.revision + 1))
    }
}

fn kv(key: &Bytes, at: i64, value: &Bytes) -> pb::KeyValue {
    pb::KeyValue { key: key.clone(), mod_revision: at, value: value.clone() }
}

fn event((at, key, value): &(i64, Bytes, Option<Bytes>)) -> pb::Event {
    let kind = if value.is_some() { pb::EventType::Put } else { pb::EventType::Delete };
    pb::Event { r#type: kind as i32, kv: Some(kv(key, *at, &value.clone().unwrap_or_default())) }
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A message as gRPC frames it: not compressed, and how long it is.
fn framed(message: &impl Message) -> Frame<Bytes> {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len().try_into().unwrap());
    message.encode(&mut bytes).unwrap();
    Frame::data(bytes.freeze())
}

async fn answer(
    course: Arc<Mutex<Course>>,
    news: watch::Sender<()>,
    request: Request<Incoming>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let (frames, rest) = mpsc::channel(16);
    let path = request.uri().path().to_owned();
    // Ends when the caller has gone: nobody takes its frames then.
    tokio::spawn(async move { speak(&course, &news, &path, request.into_body(), &frames).await });
    let rest = futures_util::stream::unfold(rest, async |mut rest| Some((rest.recv().await?, rest)));
    let mut response = Response::new(StreamBody::new(rest));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// `None`: the caller has gone.
async fn speak(
    course: &Mutex<Course>,
    news: &watch::Sender<()>,
    path: &str,
    mut body: Incoming,
    frames: &Frames,
) -> Option<()> {
    // A question is small: it comes as one frame.
    let question = body.frame().await?.ok()?.into_data().ok()?.slice(5..);
    let mut changed = news.subscribe();
    let answer = match path {
        "/etcdserverpb.KV/Range" => {
            locked(course).readings += 1;
            news.send_replace(());
            while locked(course).still {
                changed.changed().await.ok()?;
            }
            framed(&locked(course).content.range(&pb::RangeRequest::decode(question).ok()?))
        }
        "/etcdserverpb.KV/Txn" => {
            let made = locked(course).content.txn(pb::TxnRequest::decode(question).ok()?);
            news.send_replace(());
            framed(&made)
        }
        "/etcdserverpb.KV/Compact" => {
            locked(course).compactions.push(pb::CompactionRequest::decode(question).ok()?.revision);
            news.send_replace(());
            framed(&pb::CompactionResponse {})
        }
        _ => {
            let asked = pb::WatchRequest::decode(question).ok()?.create?;
            let mut from = asked.start_revision;
            let (age, mut told, header) = {
                let course = locked(course);
                (course.age, course.told, course.content.header())
            };
            frames.send(Ok(framed(&pb::WatchResponse { header, created: true, ..Default::default() }))).await.ok()?;
            loop {
                let next = {
                    let course = locked(course);
                    if course.age != age {
                        break;
                    }
                    let next = if course.silent { None } else { course.content.next(&asked, from) };
                    let far = || {
                        let header = match course.silent {
                            true => Some(pb::ResponseHeader { revision: course.lags? }),
                            false => course.content.header(),
                        };
                        let far = pb::WatchResponse { header, ..Default::default() };
                        (asked.progress_notify && told < course.told).then_some((far, from))
                    };
                    let next = next.or_else(far);
                    told = course.told;
                    next
                };
                match next {
                    Some((portion, then)) => {
                        frames.send(Ok(framed(&portion))).await.ok()?;
                        from = then;
                    }
                    None => changed.changed().await.ok()?,
                }
            }
            return end(frames, "14").await;
        }
    };
    frames.send(Ok(answer)).await.ok()?;
    end(frames, "0").await
}

async fn end(frames: &Frames, status: &'static str) -> Option<()> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().ok()?, HeaderValue::from_static(status))]);
    frames.send(Ok(Frame::trailers(trailers))).await.ok()
}
