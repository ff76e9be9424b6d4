//! HTTP/1.1 in plain text to services, over connections that are kept for the next request.
//!
//! A connection is driven by whoever uses it, in its own task: a request costs no other task, and no bytes are handed from
//! one to another. While nobody uses it nobody listens to it; whether its server has hung up is looked at when it is taken,
//! and once in a while.

use super::Failure;
use crate::limits;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use moorline_proxy::{Body, BodyError};
use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};
use tokio::{
    net::TcpStream,
    task::unconstrained,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// No connection was made.
    #[error(transparent)]
    Dial(#[from] Failure),
    /// The connection broke.
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// Connections that nobody uses, by the authority that they lead to.
#[derive(Default)]
pub(super) struct Kept {
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    places: HashMap<Arc<str>, Vec<(Instant, Connection)>>,
    all: usize,
    /// Looks after them while there are some.
    keeper: Option<AbortOnDropHandle<()>>,
}

struct Connection {
    sender: SendRequest<Body>,
    driver: http1::Connection<TokioIo<TcpStream>, Body>,
}

impl Connection {
    async fn new(tcp: TcpStream) -> hyper::Result<Self> {
        let (sender, driver) = http1::handshake(TokioIo::new(tcp)).await?;
        Ok(Self { sender, driver })
    }

    /// Whether it takes one more request. Reads what has come meanwhile: an end, if anything.
    fn is_free(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        Pin::new(&mut self.driver).poll(&mut nobody).is_pending() && self.sender.is_ready()
    }
}

impl Kept {
    /// Sends a request by a connection that is free, or by the one that `dial` makes then. `to` is the authority.
    ///
    /// # Errors
    /// See [`Unanswered`].
    ///
    /// # Cancel safety
    /// Dropping the future, or the answer's body, closes the connection.
    pub async fn send(
        self: &Arc<Self>,
        to: &str,
        mut request: Request<Body>,
        dial: impl Future<Output = Result<TcpStream, Failure>>,
    ) -> Result<Response<Body>, Unanswered> {
        while let Some((to, connection)) = self.take(to) {
            match exchange(connection, request).await {
                Ok((answer, connection)) => return Ok(self.answer(to, connection, answer)),
                // It was closed while nobody used it, and nothing was sent.
                Err((_, Some(unsent))) => request = unsent,
                Err((error, None)) => return Err(error.into()),
            }
        }
        match exchange(Connection::new(dial.await?).await?, request).await {
            Ok((answer, connection)) => Ok(self.answer(to.into(), connection, answer)),
            Err((error, _)) => Err(error.into()),
        }
    }

    fn answer(
        self: &Arc<Self>,
        to: Arc<str>,
        connection: Option<Connection>,
        answer: Response<Incoming>,
    ) -> Response<Body> {
        let (head, body) = answer.into_parts();
        let rest = connection.map(|connection| (to, connection));
        let mut body = Driven { body, rest, home: Arc::downgrade(self) };
        if body.body.is_end_stream() {
            body.settle();
            return Response::from_parts(head, moorline_proxy::body::empty());
        }
        Response::from_parts(head, Body::new(body))
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last: the others grow old.
    fn take(&self, to: &str) -> Option<(Arc<str>, Connection)> {
        loop {
            let (to, mut connection) = {
                let mut idle = self.lock();
                let (to, _) = idle.places.get_key_value(to)?;
                let to = Arc::clone(to);
                let Some((_, connection)) = idle.places.get_mut(&to).and_then(Vec::pop) else {
                    idle.places.remove(&to);
                    return None;
                };
                idle.all -= 1;
                (to, connection)
            };
            if connection.is_free() {
                return Some((to, connection));
            }
        }
    }

    fn put(self: &Arc<Self>, to: Arc<str>, connection: Connection) {
        let mut idle = self.lock();
        if limits::WEB_IDLE_ALL <= idle.all {
            return;
        }
        let place = idle.places.entry(to).or_default();
        if limits::WEB_IDLE <= place.len() {
            return;
        }
        place.push((Instant::now(), connection));
        idle.all += 1;
        if idle.keeper.is_none() {
            idle.keeper = Some(AbortOnDropHandle::new(tokio::spawn(tend(Arc::downgrade(self)))));
        }
    }

    /// Closes those that nobody has used for [`limits::WEB_KEPT`], or whose server has hung up. Whether any is left.
    fn sweep(&self) -> bool {
        let mut idle = self.lock();
        let Idle { places, all, keeper } = &mut *idle;
        places.retain(|_, place| {
            place.retain_mut(|(since, connection)| since.elapsed() < limits::WEB_KEPT && connection.is_free());
            !place.is_empty()
        });
        *all = places.values().map(Vec::len).sum();
        if *all == 0 {
            *keeper = None; // ends this very task, at its next wait
        }
        *all > 0
    }
}

async fn tend(kept: Weak<Kept>) {
    loop {
        sleep(limits::WEB_SWEEP).await;
        if !kept.upgrade().is_some_and(|kept| kept.sweep()) {
            return;
        }
    }
}

/// One request and the head of its answer, and the connection if it goes on. An error gives back a request of which nothing
/// was sent.
async fn exchange(
    Connection { mut sender, driver }: Connection,
    request: Request<Body>,
) -> Result<(Response<Incoming>, Option<Connection>), (hyper::Error, Option<Request<Body>>)> {
    let mut driver = Some(driver);
    // It waits for nobody but the driver, which has just been heard: so it needs no wake-up and no turn of its own.
    let mut answer = pin!(unconstrained(sender.try_send_request(request)));
    let answer = poll_fn(|cx| {
        // One that is over still holds a request that it has not begun; dropped, it gives it back.
        if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
            driver = None;
        }
        answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    })
    .await
    .map_err(|mut failed| {
        let unsent = failed.take_message();
        (failed.into_error(), unsent)
    })?;
    Ok((answer, driver.map(|driver| Connection { sender, driver })))
}

/// An answer's body, and the connection that it comes by.
struct Driven {
    body: Incoming,
    rest: Option<(Arc<str>, Connection)>,
    home: Weak<Kept>,
}

impl Driven {
    /// The answer is whole: its connection is free for the next one, if it is.
    fn settle(&mut self) {
        if let (Some((to, mut connection)), Some(home)) = (self.rest.take(), self.home.upgrade())
            && connection.is_free()
        {
            home.put(to, connection);
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // What it has can only have come by driving its connection: nobody else has to be heard.
        let mut nobody = Context::from_waker(Waker::noop());
        let mut next = |body: &mut Incoming| {
            let frame = Pin::new(body).poll_frame(&mut nobody);
            frame.map(|frame| frame.map(|frame| frame.map_err(|e| BodyError::Source(e.into()))))
        };
        if let Poll::Ready(frame) = next(&mut self.body) {
            return Poll::Ready(frame);
        }
        let over = match &mut self.rest {
            Some((_, connection)) => Pin::new(&mut connection.driver).poll(cx).is_ready(),
            None => true,
        };
        if over {
            self.rest = None;
        }
        match next(&mut self.body) {
            Poll::Pending if over => Poll::Ready(Some(Err(BodyError::Truncated))),
            frame => frame,
        }
    }
}

impl http_body::Body for Driven {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(self.poll_next(cx));
        match &frame {
            // Nothing comes after trailers.
            Some(Ok(frame)) if frame.is_data() && !self.body.is_end_stream() => {}
            Some(Err(_)) => self.rest = None,
            _ => self.settle(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Collected};
    use std::{net::SocketAddr, time::Duration};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
        time::timeout,
    };

    const LONG: Duration = Duration::from_secs(20);
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// A server that gives these answers on each connection, one for each request, and hangs up after the last. Tells of each
    /// connection, and of its end.
    async fn server(
        answers: &'static [&'static str],
    ) -> (SocketAddr, mpsc::UnboundedReceiver<&'static str>, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, (tell, told)) = (listener.local_addr().unwrap(), mpsc::unbounded_channel());
        let task = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                tell.send("begun").unwrap();
                let tell = tell.clone();
                tokio::spawn(async move {
                    for answer in answers {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            match socket.read_u8().await {
                                Ok(byte) => head.push(byte),
                                Err(_) => {
                                    let _ = tell.send("ended");
                                    return;
                                }
                            }
                        }
                        socket.write_all(answer.as_bytes()).await.unwrap();
                    }
                    drop(socket);
                    let _ = tell.send("hung up");
                });
            }
        });
        (addr, told, AbortOnDropHandle::new(task))
    }

    async fn ask(kept: &Arc<Kept>, at: SocketAddr) -> Result<Response<Body>, Unanswered> {
        let request = Request::get("/").header("host", "x").body(moorline_proxy::body::empty()).unwrap();
        let dial = async { TcpStream::connect(at).await.map_err(|e| Failure::Unreachable(e.to_string())) };
        timeout(LONG, kept.send("x:80", request, dial)).await.expect("an answer in time")
    }

    async fn whole(answer: Response<Body>) -> Result<Collected<Bytes>, BodyError> {
        timeout(LONG, answer.into_body().collect()).await.expect("an end in time")
    }

    async fn heard(told: &mut mpsc::UnboundedReceiver<&'static str>) -> &'static str {
        timeout(LONG, told.recv()).await.expect("in time").unwrap()
    }

    #[tokio::test]
    async fn one_connection_serves_one_request_after_the_other() {
        let answers = &[
            OK,
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nx-sum: 3\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            OK,
            OK,
        ];
        let ((at, mut told, _server), kept) = (server(answers).await, Arc::new(Kept::default()));
        for (nth, body) in ["ok", "", "abc", "", "ok"].into_iter().enumerate() {
            let all = whole(ask(&kept, at).await.unwrap()).await.unwrap();
            assert_eq!(all.trailers().map(|t| t["x-sum"].clone()), (nth == 2).then(|| "3".parse().unwrap()));
            assert_eq!(all.to_bytes(), body, "{nth}");
        }
        assert_eq!((heard(&mut told).await, told.try_recv().is_err()), ("begun", true), "one connection");
        // Two at once are two connections.
        let (one, two) = (ask(&kept, at).await.unwrap(), ask(&kept, at).await.unwrap());
        assert_eq!(heard(&mut told).await, "hung up", "that was its last");
        assert_eq!(heard(&mut told).await, "begun");
        let (one, two) = (whole(one).await.unwrap().to_bytes(), whole(two).await.unwrap().to_bytes());
        assert_eq!((&one[..], &two[..]), (&b"ok"[..], &b"ok"[..]));
    }

    #[tokio::test]
    async fn a_request_comes_back_from_a_connection_whose_server_hung_up_before_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, kept) = (listener.local_addr().unwrap(), Arc::new(Kept::default()));
        let asked = async { whole(ask(&kept, at).await.unwrap()).await.unwrap().to_bytes() };
        let answered = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.read_u8().await.unwrap();
            socket.write_all(OK.as_bytes()).await.unwrap();
            socket
        };
        let (answer, mut socket) = tokio::join!(asked, answered);
        assert_eq!(answer, "ok");
        let (_, connection) = kept.lock().places.get_mut("x:80").and_then(Vec::pop).unwrap();
        socket.shutdown().await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await; // the runtime hears of it at one of its next turns
        }
        let request = Request::get("/").header("host", "x").body(moorline_proxy::body::empty()).unwrap();
        let outcome = timeout(LONG, exchange(connection, request)).await.expect("an end in time");
        assert!(matches!(outcome, Err((_, Some(_)))), "unsent, and so it is sent by another");
    }

    #[tokio::test]
    async fn an_answer_with_trailers_leaves_its_connection_free() {
        const SUM: &str =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n1\r\nc\r\n0\r\nx-sum: 3\r\n\r\n";
        let ((at, mut told, _server), kept) = (server(&[SUM, OK, OK]).await, Arc::new(Kept::default()));
        let mut body = ask(&kept, at).await.unwrap().into_body();
        // As whoever sends it on reads it: not beyond the trailers.
        while timeout(LONG, body.frame()).await.expect("in time").unwrap().unwrap().is_data() {}
        drop(body);
        assert_eq!(whole(ask(&kept, at).await.unwrap()).await.unwrap().to_bytes(), "ok");
        assert_eq!((heard(&mut told).await, told.try_recv().is_err()), ("begun", true), "one connection");
    }

    #[tokio::test]
    async fn a_connection_whose_server_has_hung_up_is_not_used_and_not_kept() {
        let ((at, mut told, _server), kept) = (server(&[OK]).await, Arc::new(Kept::default()));
        for _ in 0..3 {
            assert_eq!(whole(ask(&kept, at).await.unwrap()).await.unwrap().to_bytes(), "ok");
            assert_eq!((heard(&mut told).await, heard(&mut told).await), ("begun", "hung up"));
            let closed = async {
                while kept.sweep() {
                    tokio::task::yield_now().await;
                }
            };
            timeout(LONG, closed).await.expect("that it hung up is seen");
        }
    }

    #[tokio::test]
    async fn an_answer_that_was_cut_is_no_end() {
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            let answers: &'static [&'static str] = Box::leak(Box::new([cut]));
            let ((at, _told, _server), kept) = (server(answers).await, Arc::new(Kept::default()));
            assert!(whole(ask(&kept, at).await.unwrap()).await.is_err(), "{cut}");
            assert!(!kept.sweep(), "nothing is kept of it");
        }
        let ((at, _told, _server), kept) = (server(&["HTTP/1.1 2"]).await, Arc::new(Kept::default()));
        assert!(matches!(ask(&kept, at).await, Err(Unanswered::Http(_))));
    }

    #[tokio::test]
    async fn an_answer_that_nobody_reads_to_its_end_takes_its_connection_with_it() {
        let long = &["HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc", OK];
        let ((at, mut told, _server), kept) = (server(long).await, Arc::new(Kept::default()));
        drop(ask(&kept, at).await.unwrap());
        assert_eq!((heard(&mut told).await, heard(&mut told).await), ("begun", "ended"));
        assert!(!kept.sweep());
    }

    #[tokio::test]
    async fn what_nobody_uses_is_closed_after_a_while() {
        let ((at, mut told, _server), kept) = (server(&[OK, OK]).await, Arc::new(Kept::default()));
        assert_eq!(whole(ask(&kept, at).await.unwrap()).await.unwrap().to_bytes(), "ok");
        assert_eq!(heard(&mut told).await, "begun");
        assert!(kept.sweep(), "it is young");
        // By itself: nobody asks for anything any more.
        tokio::task::yield_now().await; // it waits by then
        tokio::time::pause();
        tokio::time::advance(limits::WEB_KEPT).await;
        tokio::time::resume();
        assert_eq!(heard(&mut told).await, "ended");
        assert!(kept.lock().keeper.is_none() && kept.lock().all == 0);
    }
}
