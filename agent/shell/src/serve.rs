//! Terminals for clients: a WebSocket each.

use crate::{
    frames::{PROTOCOL, Size},
    history::History,
    kube::Kube,
    limits,
    running::{Client, Shell},
    terminal::Terminal,
};
use http::{HeaderValue, Request, Response, StatusCode, header, request::Parts};
use moorline_proxy::{Body, body, status::status_response, upgrade::UpgradedIo, wire::WantsUpgrade};
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// Who wants a shell.
pub struct Visitor {
    /// Their name, for the log.
    pub user: String,
    /// Tells them from somebody of the same name before or after them; empty where nobody knows.
    pub uid: String,
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
    /// Without a client, for one that said how it will be known again.
    pub detached: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { idle: limits::IDLE, total: limits::TOTAL, detached: limits::DETACHED }
    }
}

/// What a shell is to be.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Where its programs are.
    pub root: PathBuf,
    /// What it must not be able to read, where its root does not keep it from that.
    #[cfg_attr(not(windows), allow(dead_code))]
    pub hidden: Vec<PathBuf>,
    /// Its number among those that run.
    #[cfg_attr(windows, allow(dead_code))]
    pub place: u32,
    /// The cluster, for prompt and kubeconfig.
    pub cluster: String,
    /// The client's `TERM`.
    pub term: String,
}

/// The shells of an agent.
pub struct Shells {
    root: PathBuf,
    hidden: Vec<PathBuf>,
    patience: Patience,
    most: usize,
    taken: Arc<Mutex<BTreeSet<u32>>>,
    named: Named,
    tasks: TaskTracker,
}

/// What a client comes back by: its user's name and uid, and the id that it chose.
type Name = (String, String, String);

/// Shells that a client may come back to.
type Named = Arc<Mutex<HashMap<Name, mpsc::Sender<Client>>>>;

/// A shell's entry among these.
pub(crate) struct Registered(Named, Name);
impl Drop for Registered {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// A number that one shell has, from 0.
struct Place(Arc<Mutex<BTreeSet<u32>>>, u32);
impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Shells {
    /// Shells that run the programs in `root`: a folder with `bin`, `usr` and so on; on Windows one with `kubectl.exe`.
    ///
    /// On Windows what the shells of agents that were killed left behind is removed by the way.
    pub fn new(root: PathBuf, patience: Patience) -> Self {
        #[cfg(windows)]
        crate::terminal::sweep();
        Self {
            root,
            hidden: Vec::new(),
            patience,
            most: limits::SHELLS,
            taken: Arc::default(),
            named: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Where a shell could read one of these, none is given. For Windows, where shells see the node's files; on Linux their
    /// root holds none of them.
    pub fn hiding(self, hidden: Vec<PathBuf>) -> Self {
        Self { hidden, ..self }
    }

    /// So many at a time, and never more than [`limits::SHELLS`]: what they take of memory is their agent's.
    pub fn at_most(self, most: usize) -> Self {
        Self { most: most.min(limits::SHELLS), ..self }
    }

    /// How many there are now.
    pub fn open(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The lowest number that is free: none is used again while a process of its shell may live.
    fn place(&self) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let most = u32::try_from(self.most).unwrap_or(u32::MAX);
        let number = (0..most).find(|number| !taken.contains(number))?;
        taken.insert(number);
        Some(Place(self.taken.clone(), number))
    }

    /// Answers a request for a shell: `GET` that asks for a WebSocket, with `columns`, `rows` and `term` in its query.
    /// The shell lives as long as the connection behind the answer, or with `session=ID` until its client has been away
    /// for [`Patience::detached`]; `attach=1` comes back to it, and `seen=COUNT` says how many bytes it had shown by then.
    pub async fn serve(&self, request: Request<Body>, visitor: Visitor) -> Response<Body> {
        let (head, _) = request.into_parts();
        let key = match accept_key(&head) {
            Ok(key) => key,
            Err(refusal) => return *refusal,
        };
        let query = head.uri.query().unwrap_or_default();
        let (size, term) = wishes(query);
        let session = match session(query) {
            Ok(session) => session.map(|(id, attach)| ((visitor.user.clone(), visitor.uid.clone(), id), attach)),
            Err(why) => return status_response(StatusCode::BAD_REQUEST, why),
        };
        if let Some((name, true)) = &session {
            return self.attach(name, (seen(query), visitor.kube), key);
        }
        let Some(place) = self.place() else {
            return status_response(StatusCode::TOO_MANY_REQUESTS, "this node has as many shells as it may");
        };
        let plan = Plan {
            root: self.root.clone(),
            hidden: self.hidden.clone(),
            place: place.1,
            cluster: visitor.cluster,
            term,
        };
        let (terminal, door) = match Terminal::start(&plan, size).await {
            Ok(started) => started,
            Err(error) => {
                tracing::warn!(user = visitor.user, cause = %error, "no shell");
                return status_response(StatusCode::INTERNAL_SERVER_ERROR, &format!("no shell on this node: {error}"));
            }
        };
        tracing::info!(user = visitor.user, place = place.1, "shell begins");
        let (entry, coming) = match session.map(|(name, _)| self.enter(name)).transpose() {
            Ok(entered) => entered.unzip(),
            Err(refusal) => return *refusal,
        };
        let (ours, theirs) = tokio::io::duplex(limits::PIPE);
        let (patience, token) = (self.patience, self.tasks.token());
        let (history, typed, user) = (History::default(), 0, visitor.user);
        let shell = Shell { terminal, door, coming, entry, patience, user, history, typed };
        let client = Client { io: ours, seen: None, kube: visitor.kube };
        tokio::spawn(async move {
            let _held: (Place, TaskTrackerToken) = (place, token);
            shell.run(client).await;
        });
        switching(key, theirs)
    }

    /// Notes a shell that its client may come back to.
    fn enter(&self, name: Name) -> Result<(Registered, mpsc::Receiver<Client>), Box<Response<Body>>> {
        let (tell, coming) = mpsc::channel(1);
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.contains_key(&name) {
            return Err(Box::new(status_response(StatusCode::CONFLICT, "there is a shell of this id: attach to it")));
        }
        named.insert(name.clone(), tell);
        Ok((Registered(self.named.clone(), name), coming))
    }

    /// A client comes back. It takes the place of one that is still there: that one's connection has died unnoticed. What the
    /// shell asks from then on is asked with the rights that it has now.
    fn attach(&self, name: &Name, (seen, kube): (Option<u64>, Arc<dyn Kube>), key: HeaderValue) -> Response<Body> {
        let found = self.named.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let Some(shell) = found else {
            return status_response(StatusCode::NOT_FOUND, "this shell has ended, or is on another node");
        };
        let (ours, theirs) = tokio::io::duplex(limits::PIPE);
        match shell.try_send(Client { io: ours, seen, kube }) {
            Ok(()) => switching(key, theirs),
            Err(_) => status_response(StatusCode::NOT_FOUND, "this shell has just ended"),
        }
    }
}

/// The answer that makes a connection a WebSocket.
fn switching(key: HeaderValue, theirs: DuplexStream) -> Response<Body> {
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

/// The id that the client chose, and whether it comes back.
fn session(query: &str) -> Result<Option<(String, bool)>, &'static str> {
    let field = |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
    let Some((_, id)) = field("session") else { return Ok(None) };
    if limits::SESSION.contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        Ok(Some((id.to_owned(), field("attach").is_some_and(|(_, value)| value == "1"))))
    } else {
        Err("session must be 32 to 64 letters and digits, which nobody can guess")
    }
}

/// How many bytes a client that comes back was shown, if it says so.
fn seen(query: &str) -> Option<u64> {
    query.split('&').find_map(|pair| pair.strip_prefix("seen="))?.parse().ok()
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
    fn a_shells_id_is_one_that_nobody_guesses() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(session("columns=80"), Ok(None));
        assert_eq!(session(&format!("session={id}")), Ok(Some((id.to_owned(), false))));
        assert_eq!(session(&format!("attach=1&session={id}")), Ok(Some((id.to_owned(), true))));
        for bad in ["session=", "session=short", "session=0123456789abcdef0123456789abcde/"] {
            assert!(session(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_agent_gives_as_many_shells_as_it_has_room_for() {
        for (told, given) in [(2, 2), (limits::SHELLS + 1, limits::SHELLS)] {
            let shells = Shells::new("/".into(), Patience::default()).at_most(told);
            let all: Vec<Place> = std::iter::from_fn(|| shells.place()).take(limits::SHELLS + 1).collect();
            assert_eq!((all.len(), shells.open()), (given, given));
        }
    }

    #[test]
    fn a_place_is_free_again_when_its_shell_has_ended() {
        let shells = Shells::new("/".into(), Patience::default());
        let mut all: Vec<Place> = std::iter::from_fn(|| shells.place()).collect();
        assert_eq!(all.len(), limits::SHELLS);
        let number = all.remove(3).1;
        assert_eq!(shells.place().map(|place| place.1), Some(number));
    }
}
