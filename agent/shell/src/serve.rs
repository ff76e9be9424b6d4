//! Terminals for clients: a WebSocket each.

use crate::{
    frames::{self, Input, PROTOCOL, Size},
    kube::{self, Kube},
    limits,
    sandbox::{NOT_MADE, PORT, Plan},
    terminal::Terminal,
};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header, request::Parts};
use moorline_proxy::{Body, body, status::status_response, upgrade::UpgradedIo, wire::WantsUpgrade};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::DuplexStream,
    time::{Instant, MissedTickBehavior, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// Who wants a shell.
pub struct Visitor {
    /// Their name, for the log.
    pub user: String,
    /// The cluster, for prompt and kubeconfig.
    pub cluster: String,
    /// Answers the shell's calls to the API server, as this user.
    pub kube: Arc<dyn Kube>,
}

/// How long shells last.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Without a key.
    pub idle: Duration,
    /// At all.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { idle: limits::IDLE, total: limits::TOTAL }
    }
}

/// The shells of an agent.
pub struct Shells {
    root: PathBuf,
    patience: Patience,
    taken: Arc<Mutex<BTreeSet<u32>>>,
    tasks: TaskTracker,
}

/// A user id that one shell has.
struct Place(Arc<Mutex<BTreeSet<u32>>>, u32);
impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Shells {
    /// Shells that run the programs in `root`, a folder with `bin`, `usr` and so on.
    pub fn new(root: PathBuf, patience: Patience) -> Self {
        Self { root, patience, taken: Arc::default(), tasks: TaskTracker::new() }
    }

    /// How many there are now.
    pub fn open(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The lowest user id that is free: none is used again while a process of its shell may live.
    fn place(&self) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let most = u32::try_from(limits::SHELLS).unwrap_or(u32::MAX);
        let uid = (0..most).map(|n| limits::FIRST_UID + n).find(|uid| !taken.contains(uid))?;
        taken.insert(uid);
        Some(Place(self.taken.clone(), uid))
    }

    /// Answers a request for a shell: `GET` that asks for a WebSocket, with `columns`, `rows` and `term` in its query.
    /// The shell lives as long as the connection behind the answer.
    pub async fn serve(&self, request: Request<Body>, visitor: Visitor) -> Response<Body> {
        let (head, _) = request.into_parts();
        let key = match accept_key(&head) {
            Ok(key) => key,
            Err(refusal) => return *refusal,
        };
        let (size, term) = wishes(head.uri.query().unwrap_or_default());
        let Some(place) = self.place() else {
            return status_response(StatusCode::TOO_MANY_REQUESTS, "this node has as many shells as it may");
        };
        let plan = Plan {
            root: self.root.clone(),
            uid: place.1,
            kubeconfig: kubeconfig(&visitor.cluster),
            cluster: visitor.cluster,
            term,
        };
        let (terminal, listener) = match Terminal::start(&plan, size).await {
            Ok(started) => started,
            Err(error) => {
                tracing::warn!(user = visitor.user, cause = %error, "no shell");
                return status_response(StatusCode::INTERNAL_SERVER_ERROR, &format!("no shell on this node: {error}"));
            }
        };
        tracing::info!(user = visitor.user, uid = place.1, "shell begins");
        let (ours, theirs) = tokio::io::duplex(limits::PIPE);
        let (patience, token) = (self.patience, self.tasks.token());
        tokio::spawn(async move {
            let _held: (Place, TaskTrackerToken) = (place, token);
            let config = WebSocketConfig::default()
                .max_message_size(Some(limits::MESSAGE))
                .max_frame_size(Some(limits::MESSAGE))
                .write_buffer_size(0)
                .max_write_buffer_size(2 * limits::MESSAGE);
            let socket = WebSocketStream::from_raw_socket(ours, Role::Server, Some(config)).await;
            let ended = tokio::select! {
                ended = pump(terminal, socket, patience) => ended,
                () = kube::serve(listener, visitor.kube) => "unreachable",
            };
            tracing::info!(user = visitor.user, ended, "shell ends");
        });
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        response.extensions_mut().insert(UpgradedIo::new(theirs));
        response
    }
}

/// What a WebSocket's handshake is answered with (RFC 6455 §4.2).
fn accept_key(head: &Parts) -> Result<HeaderValue, Box<Response<Body>>> {
    let bad = |message: &str| Box::new(status_response(StatusCode::BAD_REQUEST, message));
    let said = |name: header::HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    let asks = said(header::UPGRADE).is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"));
    if !asks || head.extensions.get::<WantsUpgrade>().is_none() || head.method != http::Method::GET {
        return Err(bad("a shell is a WebSocket: ask for one with GET, or use `moorline shell`"));
    }
    if said(header::SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(bad("Sec-WebSocket-Version must be 13"));
    }
    let offered = said(header::SEC_WEBSOCKET_PROTOCOL).unwrap_or_default();
    if !offered.split(',').any(|offered| offered.trim() == PROTOCOL) {
        return Err(bad(&format!("Sec-WebSocket-Protocol must offer {PROTOCOL}")));
    }
    let key = said(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let key = key.ok_or_else(|| bad("Sec-WebSocket-Key must be 16 bytes in base64"))?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|_| bad("Sec-WebSocket-Key cannot be answered"))
}

/// The client's window and terminal, as far as they make sense.
fn wishes(query: &str) -> (Size, String) {
    let mut size = Size::default();
    let mut term = "xterm-256color".to_owned();
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let cells = value.parse().ok().filter(|cells| (1..=limits::CELLS).contains(cells));
        match (key, cells) {
            ("columns", Some(cells)) => size.width = cells,
            ("rows", Some(cells)) => size.height = cells,
            ("term", _) if !value.is_empty() && value.len() <= 64 && value.bytes().all(plain) => {
                value.clone_into(&mut term)
            }
            _ => {}
        }
    }
    (size, term)
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+')
}

fn kubeconfig(cluster: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": cluster, "cluster": { "server": format!("http://127.0.0.1:{PORT}") } }],
        "users": [{ "name": "me", "user": {} }],
        "contexts": [{ "name": cluster, "context": { "cluster": cluster, "user": "me" } }],
        "current-context": cluster,
    })
    .to_string()
}

/// Moves bytes until one side ends. Returns why, in a word.
async fn pump(mut terminal: Terminal, socket: WebSocketStream<DuplexStream>, patience: Patience) -> &'static str {
    let (mut to_client, mut from_client) = socket.split();
    let begin = Instant::now();
    let (typed, mut touched) = tokio::sync::watch::channel(begin);
    let shown = async {
        let mut buffer = vec![0; limits::CHUNK];
        loop {
            match terminal.read(&mut buffer).await {
                Ok(n @ 1..) => {
                    let message = frames::output(buffer.get(..n).unwrap_or_default());
                    if to_client.send(Message::Binary(message)).await.is_err() {
                        return "client gone";
                    }
                }
                Ok(0) | Err(_) => return "exit",
            }
        }
    };
    let typing = async {
        let mut over = tokio::time::interval(limits::END_AGAIN);
        over.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut no_more = false;
        loop {
            let message = tokio::select! {
                message = from_client.next() => message,
                // ^D ends the line that is being read, and the shell at an empty one: every read finds the end, as of a
                // file that has ended.
                _ = over.tick(), if no_more => {
                    drop(terminal.write_all(&[4]).await);
                    continue;
                }
            };
            match message {
                Some(Ok(Message::Binary(message))) => match frames::read(&message) {
                    Ok(Input::Typed(_)) if no_more => return "protocol",
                    Ok(Input::Typed(bytes)) => {
                        typed.send_replace(Instant::now());
                        if terminal.write_all(&bytes).await.is_err() {
                            std::future::pending::<()>().await; // the shell is gone: the other half knows why
                        }
                    }
                    Ok(Input::Resize(size)) => drop(terminal.resize(size)), // of a shell that just ended
                    Ok(Input::End) => no_more = true,
                    Err(_) => return "protocol",
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return "client gone",
                Some(Ok(Message::Text(_) | Message::Frame(_))) => return "protocol",
            }
        }
    };
    let bored = async {
        loop {
            let until = *touched.borrow_and_update() + patience.idle;
            tokio::select! {
                () = sleep_until(until) => return "idle",
                _ = touched.changed() => {}
            }
        }
    };
    let ended = tokio::select! {
        ended = shown => ended,
        ended = typing => ended,
        ended = bored => ended,
        () = sleep_until(begin + patience.total) => "time is up",
    };
    let last = match ended {
        "exit" => {
            let code = timeout(limits::LAST_OUTPUT, terminal.ended()).await;
            let code = code.map_or(None, Result::ok).unwrap_or_else(|| i32::from(NOT_MADE));
            Some(frames::ended(code, &format!("the shell ended with exit code {code}")))
        }
        "idle" => Some(frames::ended(1, "nothing was typed for too long")),
        "time is up" => Some(frames::ended(1, "a shell lasts no longer")),
        _ => None,
    };
    drop(terminal); // before the last word, so that who has heard it can rely on it
    let say = async {
        if let Some(last) = last {
            to_client.send(Message::Binary(last)).await?;
        }
        let code = if ended == "protocol" { CloseCode::Protocol } else { CloseCode::Normal };
        to_client.send(Message::Close(Some(CloseFrame { code, reason: Default::default() }))).await
    };
    let _ = timeout(limits::LAST_OUTPUT, say).await; // a client that is gone hears nothing
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_makes_no_sense_is_the_usual_one() {
        let usual = (Size::default(), "xterm-256color".to_owned());
        assert_eq!(wishes(""), usual);
        assert_eq!(wishes("columns=0&rows=99999&term=a%20b&x"), usual);
        let (size, term) = wishes("columns=132&rows=50&term=tmux-256color");
        assert_eq!((size.width, size.height, term.as_str()), (132, 50, "tmux-256color"));
    }

    #[test]
    fn a_place_is_free_again_when_its_shell_has_ended() {
        let shells = Shells::new("/".into(), Patience::default());
        let mut all: Vec<Place> = std::iter::from_fn(|| shells.place()).collect();
        assert_eq!(all.len(), limits::SHELLS);
        let uid = all.remove(3).1;
        assert_eq!(shells.place().map(|place| place.1), Some(uid));
    }
}
