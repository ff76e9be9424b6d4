//! The byte stream under the WebSocket carrier: binary messages, one after the other, whose limits mean nothing.
//!
//! What it carries is TLS of its own, end to end: whoever ends the outer TLS, a reverse proxy or one that inspects,
//! sees ciphertext. So nothing is believed here; the framing only has to be bounded.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Sink, Stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        handshake::{client::generate_key, server::create_response_with_body},
        protocol::{Role, WebSocketConfig},
    },
};

/// Where a hub takes WebSocket connections of agents.
pub const PATH: &str = "/connect";
/// The subprotocol that both sides name.
pub const PROTOCOL: &str = "moorline.v1";

/// Bytes of one message, sent or taken: four TLS records.
const MESSAGE: usize = 64 << 10;
/// Bytes asked of the connection at once. Held per connection.
const READ_BUFFER: usize = 16 << 10;
/// Nothing is kept to be written with what follows: the TLS within gathers, and never flushes its last alert.
const WRITE_BUFFER: usize = 0;
/// Bytes that may wait to be written: writing waits for the message before.
const MAX_WRITE_BUFFER: usize = 2 * MESSAGE;
/// Messages without a byte in a row, pings among them, before the peer counts as hostile.
const EMPTY_RUN: u32 = 64;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE))
        .accept_unmasked_frames(false)
}

/// A WebSocket connection as a stream of bytes.
pub(crate) struct WebSocketBytes<IO> {
    socket: WebSocketStream<IO>,
    /// Of the message that is being read.
    message: Bytes,
    empty: u32,
}

impl<IO> fmt::Debug for WebSocketBytes<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketBytes").field("message", &self.message.len()).finish_non_exhaustive()
    }
}

/// Asks for the upgrade on a connection that speaks HTTP/1.1 to `authority`.
///
/// # Errors
/// In words: what was answered instead.
pub(crate) async fn dial<IO>(io: IO, authority: &str) -> Result<WebSocketBytes<IO>, String>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get(format!("wss://{authority}{PATH}"))
        .header(header::HOST, authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .body(())
        .map_err(|error| error.to_string())?;
    match tokio_tungstenite::client_async_with_config(request, io, Some(config())).await {
        Ok((socket, _)) => Ok(WebSocketBytes { socket, message: Bytes::new(), empty: 0 }),
        Err(Error::Http(answer)) => Err(format!("{} was answered to the request for a WebSocket", answer.status())),
        Err(error) => Err(error.to_string()),
    }
}

/// The hub's side of a connection that was upgraded.
pub(crate) async fn serve<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> WebSocketBytes<IO> {
    after_handshake(io, Role::Server).await
}

/// Either side of a connection that was upgraded.
pub(crate) async fn after_handshake<IO: AsyncRead + AsyncWrite + Unpin>(io: IO, role: Role) -> WebSocketBytes<IO> {
    let socket = WebSocketStream::from_raw_socket(io, role, Some(config())).await;
    WebSocketBytes { socket, message: Bytes::new(), empty: 0 }
}

/// The hub's answer to a request for a WebSocket at [`PATH`]: the head of the 101.
///
/// # Errors
/// The status to answer with instead, and why.
pub fn upgrade<B>(request: &Request<B>) -> Result<Response<()>, (StatusCode, &'static str)> {
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered = offered.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let ours = offered.map(str::trim).any(|protocol| protocol == PROTOCOL);
    let mut response = create_response_with_body(request, || ()).map_err(|error| match error {
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => {
            (StatusCode::UPGRADE_REQUIRED, "only version 13 of WebSocket is spoken here")
        }
        _ => (StatusCode::BAD_REQUEST, "this is no request for a WebSocket"),
    })?;
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    if !key.is_some_and(|key| key.len() == 24 && key.as_bytes().ends_with(b"==")) {
        return Err((StatusCode::BAD_REQUEST, "the WebSocket key is none"));
    }
    if !ours {
        return Err((StatusCode::BAD_REQUEST, "the subprotocol is moorline.v1"));
    }
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBytes<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.message.is_empty() {
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => {
                    (this.message, this.empty) = (bytes, 0);
                }
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) if this.empty < EMPTY_RUN => {
                    this.empty += 1;
                }
                // An end that the TLS within has not announced is an error there.
                None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "not a byte stream")));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let n = this.message.len().min(buf.remaining());
        buf.put_slice(this.message.get(..n).unwrap_or_default());
        this.message.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketBytes<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(cx)).map_err(broken)?;
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut message = BytesMut::with_capacity(total.min(MESSAGE));
        for buf in bufs {
            let room = MESSAGE - message.len();
            message.extend_from_slice(buf.get(..room).unwrap_or(buf));
        }
        let n = message.len();
        if n > 0 {
            socket.start_send(Message::Binary(message.freeze())).map_err(broken)?;
        }
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}

#[cfg(test)]
mod tests;
