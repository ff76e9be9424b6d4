//! A client of a shell, and what stands in the API server's place.

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
use http::{Request, Response, StatusCode};
use moorline_proxy::{
    Body, body,
    upgrade::{Io, UpgradedIo},
    wire::WantsUpgrade,
};
use moorline_shell::{
    Kube, Patience, Shells, Visitor,
    frames::{self, Input, Output, PROTOCOL, Place},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

pub const LONG: Duration = Duration::from_secs(60);

/// Remembers what was asked.
#[derive(Default)]
pub struct Recorder(pub Mutex<Vec<(String, http::HeaderMap)>>);

impl Kube for Recorder {
    fn call(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        let line = format!("{} {}", request.method(), request.uri());
        self.0.lock().unwrap().push((line, request.headers().clone()));
        async { Response::new(body::full("answered\n")) }.boxed()
    }
}

pub struct House {
    pub shells: Shells,
    pub kube: Arc<Recorder>,
}

impl House {
    pub fn new() -> Self {
        Self::patient(Patience::default())
    }
    pub fn patient(patience: Patience) -> Self {
        Self { shells: Shells::new("/".into(), patience), kube: Arc::default() }
    }

    pub fn request(&self, query: &str) -> Request<Body> {
        let mut request = Request::get(format!("/shell?{query}"))
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", PROTOCOL)
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(body::empty())
            .unwrap();
        request.extensions_mut().insert(WantsUpgrade);
        request
    }

    pub fn visitor(&self) -> Visitor {
        Visitor { user: "ana".to_owned(), uid: "u-1".to_owned(), cluster: "edge1".to_owned(), kube: self.kube.clone() }
    }

    /// A shell with neither echo nor prompt.
    pub async fn enter(&self) -> Client {
        self.enter_as(self.visitor()).await
    }

    /// The same, for somebody else.
    pub async fn enter_as(&self, visitor: Visitor) -> Client {
        let mut client = self.begin("columns=80&rows=24&term=dumb", visitor).await;
        client.type_in("stty -echo; PS1=; PS2=; set +m; echo be''gin\r").await;
        client.until("begin\r\n").await;
        client
    }

    pub async fn enter_with(&self, query: &str) -> Client {
        self.begin(query, self.visitor()).await
    }

    pub async fn begin(&self, query: &str, visitor: Visitor) -> Client {
        let mut response = self.shells.serve(self.request(query), visitor).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS, "{:?}", response);
        let io = response.extensions_mut().remove::<UpgradedIo>().and_then(|io| io.take()).unwrap();
        let socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        Client { socket, seen: String::new(), shown: 0, ended: None, closed: None }
    }
}

pub struct Client {
    pub socket: WebSocketStream<Box<dyn Io>>,
    pub seen: String,
    /// Bytes shown to it.
    pub shown: u64,
    pub ended: Option<(i32, String)>,
    /// With what code it was let go.
    pub closed: Option<u16>,
}

impl Client {
    pub async fn send(&mut self, input: Input) {
        self.socket.send(Message::Binary(frames::write(&input))).await.unwrap();
    }
    pub async fn type_in(&mut self, text: &str) {
        self.send(Input::Typed(Bytes::copy_from_slice(text.as_bytes()))).await;
    }

    /// The next thing that is heard; `None`: nothing more.
    pub async fn hear(&mut self) -> Option<Output> {
        loop {
            match self.socket.next().await? {
                Ok(Message::Binary(message)) => {
                    let output = frames::hear(&message).unwrap();
                    if let Output::Shown(bytes) = &output {
                        self.shown += bytes.len() as u64;
                    }
                    return Some(output);
                }
                Ok(Message::Close(frame)) => {
                    self.closed = frame.map(|frame| frame.code.into());
                    return None;
                }
                Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Where it takes up: the first thing that one hears who comes back.
    pub async fn place(&mut self) -> Place {
        match self.socket.next().await {
            Some(Ok(Message::Pong(place))) => {
                let place = Place::read(&place).unwrap();
                self.shown = place.shown;
                place
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the shell has taken what was typed.
    pub async fn is_taken(&mut self) {
        let place = Place { typed: 1, shown: self.shown }.write();
        self.socket.send(Message::Ping(place.clone())).await.unwrap();
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Pong(back))) if back == place => return,
                Some(Ok(Message::Binary(message))) => {
                    if let Output::Shown(bytes) = frames::hear(&message).unwrap() {
                        self.shown += bytes.len() as u64;
                        self.seen.push_str(&String::from_utf8_lossy(&bytes));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Everything shown until `mark`, which is taken away.
    pub async fn until(&mut self, mark: &str) -> String {
        loop {
            if let Some((before, after)) = self.seen.split_once(mark) {
                let (before, after) = (before.to_owned(), after.to_owned());
                self.seen = after;
                return before;
            }
            match self.hear().await {
                Some(Output::Shown(bytes)) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Some(Output::Ended { code, why }) => self.ended = Some((code, why)),
                None => panic!("ended ({:?}) before {mark:?}, after {:?}", self.ended, self.seen),
            }
        }
    }

    /// What a command writes, and its exit code.
    pub async fn run(&mut self, command: &str) -> (String, i32) {
        self.type_in(&format!("{{ {command}\n}} 2>&1; echo \"<<$?>>\"\r")).await;
        let shown = self.until("<<").await;
        let code = self.until(">>").await.parse().unwrap();
        (shown.trim().replace("\r\n", "\n"), code)
    }

    /// Until the end, which is returned.
    pub async fn end(&mut self) -> Option<(i32, String)> {
        while let Some(output) = self.hear().await {
            if let Output::Ended { code, why } = output {
                self.ended = Some((code, why));
            }
        }
        self.ended.clone()
    }
}

/// What `/proc` says of the processes of the user ids that shells have, with those that have ended and whose exit code nobody
/// has asked for: they count for the bound of processes.
pub fn statuses() -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let statuses = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    statuses.filter(|status| status.contains("\nUid:\t19000")).collect()
}

/// How many these are.
pub fn processes() -> usize {
    statuses().len()
}
