//! One shell that runs: between its terminal and whichever client it has.

use crate::{
    frames::{self, Input, Place},
    history::History,
    kube::{Door, Kube},
    limits,
    serve::{Patience, Registered},
    terminal::{NOT_MADE, Terminal},
};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::sync::Arc;
use tokio::{
    io::DuplexStream,
    sync::mpsc,
    time::{Instant, MissedTickBehavior, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

/// A client's connection.
pub(crate) struct Client {
    pub io: DuplexStream,
    /// It comes back, and says how many bytes it was shown before, if it counts them.
    pub seen: Option<u64>,
    /// Answers the shell's calls while this client is there: its rights are those of today, not of whoever began.
    pub kube: Arc<dyn Kube>,
}

/// A shell that runs, with or without a client.
pub(crate) struct Shell {
    pub terminal: Terminal,
    pub door: Door,
    /// Clients that come back; `None`: the shell ends with its client.
    pub coming: Option<mpsc::Receiver<Client>>,
    pub entry: Option<Registered>,
    pub patience: Patience,
    pub user: String,
    pub history: History,
    /// Bytes that clients typed and that the terminal has taken.
    pub typed: u64,
}

type ToClient = SplitSink<WebSocketStream<DuplexStream>, Message>;

impl Shell {
    /// Until it ends. `client`: whoever asked for it.
    pub async fn run(mut self, mut client: Client) {
        let begin = Instant::now();
        let mut returned = false;
        let (ended, to_client) = loop {
            let (to_client, ended, next) = self.with(client, returned, begin).await;
            client = match (ended, next) {
                (_, Some(next)) => {
                    replaced(to_client);
                    next
                }
                // While nobody is there nothing is done in the user's name: calls to the API server have ended.
                ("client gone", None) => match self.alone(begin).await {
                    Ok(next) => next,
                    Err(ended) => break (ended, None),
                },
                (ended, None) => break (ended, Some(to_client)),
            };
            returned = true;
            tracing::info!(user = self.user, "a client is back at its shell");
        };
        self.end(ended, to_client).await;
    }

    /// Until the client goes, another takes its place, or the shell ends.
    async fn with(
        &mut self,
        client: Client,
        returned: bool,
        begin: Instant,
    ) -> (ToClient, &'static str, Option<Client>) {
        let config = WebSocketConfig::default()
            .max_message_size(Some(limits::MESSAGE))
            .max_frame_size(Some(limits::MESSAGE))
            .write_buffer_size(0)
            .max_write_buffer_size(2 * limits::MESSAGE);
        let socket = WebSocketStream::from_raw_socket(client.io, Role::Server, Some(config)).await;
        let (mut to_client, from_client) = socket.split();
        let again = returned.then(|| {
            let (shown, missed) = self.history.after(client.seen);
            (Place { typed: self.typed, shown }, missed)
        });
        let Self { terminal, door, coming, history, typed, patience, .. } = self;
        let keeps = coming.is_some().then_some(history);
        let pumped = pump(terminal, (&mut to_client, from_client), (keeps, typed), again, (*patience, begin));
        let (ended, next) = tokio::select! {
            ended = pumped => (ended, None),
            () = door.serve(&client.kube) => ("unreachable", None),
            Some(next) = another(coming) => ("replaced", Some(next)),
        };
        (to_client, ended, next)
    }

    /// Until a client comes back. What is shown meanwhile is kept, and where that is much the shell waits; one that ends
    /// tells it to whoever comes back.
    async fn alone(&mut self, begin: Instant) -> Result<Client, &'static str> {
        let Some(coming) = &mut self.coming else { return Err("client gone") };
        let mut over = false;
        tracing::info!(user = self.user, "a shell waits for its client to come back");
        let until = (Instant::now() + self.patience.detached).min(begin + self.patience.total);
        let mut buffer = vec![0; limits::CHUNK];
        loop {
            tokio::select! {
                Some(next) = coming.recv() => return Ok(next),
                shown = self.terminal.read(&mut buffer), if !over && !self.history.is_full() => match shown {
                    Ok(n @ 1..) => self.history.push(buffer.get(..n).unwrap_or_default()),
                    Ok(0) | Err(_) => over = true,
                },
                () = sleep_until(until) => return Err("client gone"),
            }
        }
    }

    /// Ends the shell, and tells its client, if there is one.
    async fn end(mut self, ended: &'static str, to_client: Option<ToClient>) {
        let last = match ended {
            "exit" => {
                let code = timeout(limits::LAST_OUTPUT, self.terminal.ended()).await;
                let code = code.map_or(None, Result::ok).unwrap_or_else(|| i32::from(NOT_MADE));
                Some(frames::ended(code, &format!("the shell ended with exit code {code}")))
            }
            "idle" => Some(frames::ended(1, "nothing was typed for too long")),
            "time is up" => Some(frames::ended(1, "a shell lasts no longer")),
            _ => None,
        };
        drop((self.entry.take(), self.coming.take())); // nobody comes back to it from here on
        drop(self.terminal); // before the last word, so that who has heard it can rely on it
        if let Some(mut to_client) = to_client {
            let say = async {
                if let Some(last) = last {
                    to_client.send(Message::Binary(last)).await?;
                }
                let code = if ended == "protocol" { CloseCode::Protocol } else { CloseCode::Normal };
                to_client.send(Message::Close(Some(CloseFrame { code, reason: Default::default() }))).await
            };
            let _ = timeout(limits::LAST_OUTPUT, say).await; // a client that is gone hears nothing
        }
        tracing::info!(user = self.user, ended, "shell ends");
    }
}

/// Tells a client that another is in its place, so that it does not come back in turn. Mostly its connection has died
/// unnoticed, so nobody waits for that.
fn replaced(mut to_client: ToClient) {
    let close = Message::Close(Some(CloseFrame { code: frames::REPLACED.into(), reason: Default::default() }));
    tokio::spawn(timeout(limits::LAST_OUTPUT, async move { drop(to_client.send(close).await) }));
}

/// The next client; never, where none may come.
async fn another(coming: &mut Option<mpsc::Receiver<Client>>) -> Option<Client> {
    match coming {
        Some(coming) => coming.recv().await,
        None => std::future::pending().await,
    }
}

/// Moves bytes until one side ends. Returns why, in a word. `again`: where the client takes up, and what it missed.
async fn pump(
    terminal: &Terminal,
    (to_client, mut from_client): (&mut ToClient, SplitStream<WebSocketStream<DuplexStream>>),
    (mut history, taken): (Option<&mut History>, &mut u64),
    again: Option<(Place, Vec<u8>)>,
    (patience, begin): (Patience, Instant),
) -> &'static str {
    let (typed, mut touched) = tokio::sync::watch::channel(Instant::now());
    let shown = async {
        if let Some((place, missed)) = again {
            // Unasked, as RFC 6455 §5.5.3 lets anybody: a client that does not know it does not mind.
            if to_client.send(Message::Pong(place.write())).await.is_err() {
                return "client gone";
            }
            for piece in missed.chunks(limits::CHUNK) {
                if to_client.send(Message::Binary(frames::output(piece))).await.is_err() {
                    return "client gone";
                }
            }
            history.iter_mut().for_each(|history| history.was_sent());
        }
        let mut buffer = vec![0; limits::CHUNK];
        loop {
            match terminal.read(&mut buffer).await {
                Ok(n @ 1..) => {
                    let bytes = buffer.get(..n).unwrap_or_default();
                    history.iter_mut().for_each(|history| history.push(bytes));
                    if to_client.send(Message::Binary(frames::output(bytes))).await.is_err() {
                        return "client gone";
                    }
                    history.iter_mut().for_each(|history| history.was_sent());
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
                _ = over.tick(), if no_more => {
                    drop(terminal.write(Terminal::END).await);
                    continue;
                }
            };
            match message {
                Some(Ok(Message::Binary(message))) => match frames::read(&message) {
                    Ok(Input::Typed(_)) if no_more => return "protocol",
                    Ok(Input::Typed(bytes)) => {
                        typed.send_replace(Instant::now());
                        let mut left = &bytes[..];
                        while !left.is_empty() {
                            // Counted at once: what was taken is not typed again, wherever this is called off.
                            match terminal.write(left).await {
                                Ok(n) => (*taken, left) = (*taken + n as u64, left.get(n..).unwrap_or_default()),
                                Err(_) => std::future::pending().await, // the shell is gone: the other half knows why
                            }
                        }
                    }
                    Ok(Input::Resize(size)) => terminal.resize(size),
                    Ok(Input::End) => no_more = true,
                    Err(_) => return "protocol",
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                // Who says goodbye does not come back.
                Some(Ok(Message::Close(_))) => return "closed",
                Some(Err(_)) | None => return "client gone",
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
    tokio::select! {
        ended = shown => ended,
        ended = typing => ended,
        ended = bored => ended,
        () = sleep_until(begin + patience.total) => "time is up",
    }
}
