//! Clients that take nothing of their answers. What has to be sent waits in buffers of the hub's and the kernel's, and the connection
//! keeps its place: of an answer that has an end of its own, for so long and no longer.

use http::Request;
use moorline_authz::verb::{RequestInfo, request_info};
use prometheus::IntCounter;
use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Whether what a connection carries now is to be taken without long pauses. Goes with each of its requests, as an extension.
/// A stream may be left alone for hours, as a log in a pager is: until somebody says otherwise, all are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prompt(Arc<AtomicBool>);

impl Prompt {
    /// Another request begins.
    pub fn forget(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// The answer to this call of an API is to be taken without long pauses, if it has an end of its own. `rest`: path and query.
    pub fn note<B>(request: &Request<B>, rest: &str) {
        let Some(prompt) = request.extensions().get::<Self>() else { return };
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let info = request_info(request.method().as_str(), path, query);
        prompt.0.store(!is_long_running(&info), Ordering::Relaxed);
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What an API server itself sets no time for (`BasicLongRunningRequestCheck` of k8s.io/apiserver, as kube-apiserver uses it).
fn is_long_running(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "watch" | "proxy")
        || matches!(info.subresource.as_str(), "attach" | "exec" | "log" | "portforward" | "proxy")
}

/// A connection that fails once its client has taken nothing for that long of what it should.
#[derive(Debug)]
pub(crate) struct PromptIo<IO> {
    io: IO,
    prompt: Prompt,
    patience: Duration,
    slow: IntCounter,
    /// Since nothing is taken any more.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<IO> PromptIo<IO> {
    pub fn new(io: IO, prompt: Prompt, patience: Duration, slow: IntCounter) -> Self {
        Self { io, prompt, patience, slow, alarm: None }
    }

    /// What came of sending something, or the end where it has been waited for too long.
    fn sent<T>(&mut self, sent: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if sent.is_ready() || !self.prompt.is() {
            self.alarm = None;
            return sent;
        }
        let patience = self.patience;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(patience)));
        std::task::ready!(alarm.as_mut().poll(cx));
        self.alarm = None;
        self.slow.inc();
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for PromptIo<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for PromptIo<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write(cx, buf);
        self.sent(sent, cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.sent(sent, cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.io).poll_flush(cx);
        self.sent(sent, cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.io).poll_shutdown(cx);
        self.sent(sent, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{Instant, timeout},
    };

    const PATIENCE: Duration = Duration::from_secs(60);
    const LONG: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn streams_are_left_alone_and_answers_that_end_are_not() {
        let noted = |method: &str, rest: &str| {
            let prompt = Prompt::default();
            let request = Request::builder().method(method).uri("/").extension(prompt.clone());
            Prompt::note(&request.body(()).unwrap(), rest);
            prompt.is()
        };
        for (method, rest) in [
            ("GET", "/api/v1/pods"),
            ("GET", "/api/v1/namespaces/a/pods/b?watch=0"),
            ("POST", "/api/v1/namespaces/a/configmaps"),
            ("GET", "/version"),
        ] {
            assert!(noted(method, rest), "{method} {rest}");
        }
        for rest in [
            "/api/v1/pods?watch=1",
            "/api/v1/watch/pods",
            "/api/v1/namespaces/a/pods/b/log",
            "/api/v1/namespaces/a/pods/b/log?follow=true",
            "/api/v1/namespaces/a/pods/b/exec?command=sh",
            "/api/v1/namespaces/a/pods/b/portforward",
            "/api/v1/namespaces/a/services/b:80/proxy/c",
            "/api/v1/proxy/namespaces/a/services/b/c",
        ] {
            assert!(!noted("GET", rest), "{rest}");
        }
        // Of a connection that is none of the port's nobody asks.
        Prompt::note(&Request::new(()), "/api");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_off_in_time_and_who_takes_little_is_not() {
        let slow = IntCounter::new("slow", "slow").unwrap();
        let (prompt, (near, mut far)) = (Prompt::default(), duplex(1));
        let mut near = PromptIo::new(near, prompt.clone(), PATIENCE, slow.clone());
        // A stream may wait for a day.
        assert!(timeout(LONG, near.write_all(b"abc")).await.is_err());
        prompt.0.store(true, Ordering::Relaxed);
        let takes = async {
            for _ in 0..5 {
                tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
                far.read_u8().await.unwrap();
            }
        };
        let (sent, ()) = tokio::join!(near.write_all(b"12345"), takes);
        assert!(sent.is_ok() && slow.get() == 0, "{sent:?}");
        let begun = Instant::now();
        let sent = timeout(LONG, near.write_all(b"67")).await.expect("in time");
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() < PATIENCE + Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(slow.get(), 1);
        // The next request's answer may be a stream again.
        prompt.forget();
        assert!(timeout(LONG, near.write_all(b"8")).await.is_err());
    }
}
