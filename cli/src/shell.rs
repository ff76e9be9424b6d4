//! `moorline shell`: a terminal on a node of a cluster, with kubectl as oneself.

mod progress;

use crate::{
    client::{ApiError, Client, Socket},
    failure::advise,
    target::HubArgs,
};
use anyhow::Context;
use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use moorline_authz::plan::sha256;
use moorline_proto::id::{AgentName, ClusterId};
use moorline_shell::frames::{self, Input, Output, PROTOCOL, Place, Size};
use progress::Progress;
use std::{
    convert::Infallible,
    env,
    io::{IsTerminal, Write, stdin, stdout},
    process::ExitCode,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, protocol::Role},
};

/// Longest wait for the shell to begin.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a silent shell is told that its client is there, under the shortest patience of proxies on the way.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// How long a lost shell is asked for again: as long as it waits.
const AGAIN: Duration = Duration::from_secs(60);
/// How long "there is none" is not believed: it may be the word of another node, while the shell's own is not back yet.
const ABSENT: Duration = Duration::from_secs(20);
/// Pause before it is asked for again.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest name of a shell.
const NAME: usize = 63;
/// Bytes typed or pasted at once that are sent at a time.
const CHUNK: usize = 16 << 10;

/// `moorline shell`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline shell edge1                        on whichever node agent stands by
  moorline shell edge1 --node worker-3
  echo 'kubectl get pods -A' | moorline shell edge1
  moorline shell edge1 --session upgrade      one that can be come back to by that name
  moorline shell edge1 --session upgrade --attach

The shell runs as nobody, in a box that holds kubectl and other programs and nothing of the node's. Its kubectl asks the
cluster's API server as you, through the cluster's own edge policy. Nodes give shells where the cluster's owner has
switched them on: spec.shells.allow in the edge policy.")]
pub struct Args {
    /// The cluster
    cluster: ClusterId,
    /// The node agent [default: one that stands by]
    #[arg(long, value_name = "NAME")]
    node: Option<AgentName>,
    /// Call the shell so among your own: letters, digits and dashes. --attach comes back to it
    #[arg(long, value_name = "NAME", value_parser = named)]
    session: Option<String>,
    /// Come back to the shell of that name, whose connection was lost less than a minute ago or whose terminal is elsewhere
    #[arg(long, requires = "session")]
    attach: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// The id of a shell that is called so. The node knows shells by user and id: nobody else's is found by it.
fn id_of(name: &str) -> String {
    sha256(format!("moorline shell {name}").as_bytes())
}

fn named(name: &str) -> Result<String, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let fits = (1..=NAME).contains(&name.len()) && name.bytes().all(plain);
    if fits { Ok(name.to_owned()) } else { Err("a name is up to 63 letters, digits and dashes") }
}

/// `moorline shell CLUSTER`: the exit code is the shell's.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.hub.known()?, PATIENCE)?;
    // By this the shell is known again, should the connection be lost: nobody guesses it who was not told a name.
    let id = match &args.session {
        Some(name) => id_of(name),
        None => format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>()),
    };
    let progress = if args.attach { Progress::of_a_shell_that_runs() } else { Progress::default() };
    let (tell, mut typed) = mpsc::channel(4);
    let mut tell = Some(tell); // reading begins with the first connection
    let mut resized = local::Resized::new()?;
    let mut raw = None;
    // Where another process was before, the connection was lost before this one began.
    let mut lost_at = args.attach.then(Instant::now);
    let ended = loop {
        let opened = client.websocket(&path(&args, &id, lost_at.map(|_| progress.shown())), PROTOCOL).await;
        let (socket, early) = match (opened, lost_at) {
            (Ok(opened), _) => opened,
            // The way may still be broken; and where the shell is gone there is nothing to wait for.
            (Err(error), Some(lost_at)) if lost_at.elapsed() < patience(&error) => {
                sleep(PAUSE).await;
                continue;
            }
            (Err(error), Some(_)) => break Err(lost(&format!("{:#}", anyhow::Error::from(error)))),
            (Err(error), None) => break Err(error.into()),
        };
        if let Some(tell) = tell.take() {
            std::thread::spawn(move || read(&tell)); // a blocking read cannot be called off: it ends with the process
        }
        if raw.is_none() && stdin().is_terminal() && stdout().is_terminal() {
            raw = Some(local::Raw::begin()?);
        }
        let socket = WebSocketStream::from_partially_read(socket, early.to_vec(), Role::Client, None).await;
        match session(socket, &mut typed, &mut resized, &progress, lost_at.is_some()).await {
            Ok(End::Ended(code, why)) => break Ok((code, why)),
            Ok(End::Taken) => {
                let advice = "have it back: the same command with --session NAME and --attach";
                break Err(advise("the shell goes on in another terminal", advice));
            }
            Ok(End::Lost(why)) => {
                crate::text::say(&format!("\r\nthe connection is lost ({why}); coming back to the shell\r"));
                progress.is_cut();
                lost_at = Some(Instant::now());
                sleep(PAUSE).await;
            }
            Err(error) => break Err(error),
        }
    };
    drop(raw);
    let (code, why) = ended?;
    if code != 0 && why != format!("the shell ended with exit code {code}") {
        return Err(advise(format!("the shell ended: {why}"), "begin another one: moorline shell"));
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// How long a lost shell is asked for again after this answer.
fn patience(error: &ApiError) -> Duration {
    match error {
        error if error.is_forbidden() => Duration::ZERO,
        error if error.is_not_found() => ABSENT,
        _ => AGAIN,
    }
}

/// Where the shell is. `seen`: it is come back to, after so many bytes that it has shown.
fn path(args: &Args, id: &str, seen: Option<u64>) -> String {
    let (size, term) = (local::size(), env::var("TERM").unwrap_or_default());
    let term: String = term.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.+".contains(*c)).collect();
    let (cluster, Size { width, height }) = (&args.cluster, size);
    let mut path = format!("/k8s/clusters/{cluster}/shell?columns={width}&rows={height}&term={term}&session={id}");
    if let Some(seen) = seen {
        path.push_str(&format!("&attach=1&seen={seen}"));
    }
    if let Some(node) = &args.node {
        path.push_str(&format!("&node={node}"));
    }
    path
}

/// How a connection to a shell ends.
enum End {
    /// The shell has ended: its exit code, and why.
    Ended(i32, String),
    /// The connection is gone; the shell waits.
    Lost(String),
    /// Another process has come to it.
    Taken,
}

type ToShell = SplitSink<WebSocketStream<Socket>, Message>;

/// One connection. `again`: it leads back to a shell.
async fn session(
    socket: WebSocketStream<Socket>,
    typed: &mut mpsc::Receiver<Input>,
    resized: &mut local::Resized,
    progress: &Progress,
    again: bool,
) -> anyhow::Result<End> {
    let (mut send, receive) = socket.split();
    // Neither waits for the other: what is pasted is echoed meanwhile.
    let typing = async {
        let why = match type_in(&mut send, typed, resized, progress, again).await {
            Ok(never) => match never {},
            Err(error) => error.to_string(),
        };
        sleep(PAUSE).await; // the shell's last word may be on its way
        Ok(End::Lost(why))
    };
    tokio::select! {
        ended = hear(receive, progress) => ended,
        ended = typing => ended,
    }
}

/// Shows what the shell shows, until it or the connection ends.
async fn hear(mut receive: SplitStream<WebSocketStream<Socket>>, progress: &Progress) -> anyhow::Result<End> {
    loop {
        match receive.next().await {
            Some(Ok(Message::Binary(message))) => match frames::hear(&message)? {
                Output::Shown(bytes) => {
                    let mut out = stdout().lock();
                    out.write_all(&bytes).and_then(|()| out.flush()).context("cannot write to the terminal")?;
                    progress.was_shown(bytes.len());
                }
                Output::Ended { code, why } => return Ok(End::Ended(code, why)),
            },
            Some(Ok(Message::Pong(place))) => {
                let missed = Place::read(&place).map_or(0, |place| progress.reaches(place));
                if missed > 0 {
                    crate::text::say(&format!("\r\n{missed} bytes that the shell has shown are not kept any more\r"));
                }
            }
            Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == frames::REPLACED => {
                return Ok(End::Taken);
            }
            Some(Ok(Message::Close(_))) | None => return Ok(End::Lost("it ended".to_owned())),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Ok(End::Lost(error.to_string())),
        }
    }
}

/// Sends what is typed, and again what a lost connection may have kept. Ends when the connection does.
async fn type_in(
    send: &mut ToShell,
    typed: &mut mpsc::Receiver<Input>,
    resized: &mut local::Resized,
    progress: &Progress,
    again: bool,
) -> Result<Infallible, tungstenite::Error> {
    let message = |input: &Input| Message::Binary(frames::write(input));
    send.send(message(&Input::Resize(local::size()))).await?;
    if again {
        for bytes in progress.to_send_again().await {
            send.send(message(&Input::Typed(bytes))).await?;
        }
        // A shell that was come back to has not heard that nothing more is typed.
        if progress.is_over() {
            send.send(message(&Input::End)).await?;
        }
    }
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.tick().await;
    loop {
        tokio::select! {
            Some(input) = progress.when_there_is_room(typed.recv()) => {
                progress.was_typed(&input);
                send.send(message(&input)).await?;
                if progress.has_to_ask() {
                    send.send(Message::Ping(progress.place())).await?;
                }
            }
            size = resized.next() => send.send(message(&Input::Resize(size))).await?,
            _ = heartbeat.tick() => send.send(Message::Ping(progress.place())).await?,
        }
    }
}

fn lost(why: &str) -> anyhow::Error {
    advise(format!("the shell is gone: {why}"), "how the cluster is: moorline status")
}

/// Sends on what is typed, until nobody wants it.
fn read(tell: &mpsc::Sender<Input>) {
    use std::io::Read;
    let mut buffer = vec![0; CHUNK];
    loop {
        let input = match stdin().lock().read(&mut buffer) {
            Ok(n @ 1..) => Input::Typed(Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default())),
            Ok(0) | Err(_) => Input::End,
        };
        let last = input == Input::End;
        if tell.blocking_send(input).is_err() || last {
            return;
        }
    }
}

#[cfg(unix)]
mod local {
    //! This side's terminal.

    use super::Size;
    use anyhow::Context;
    use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
    use std::io::stdin;
    use tokio::signal::unix::{Signal, SignalKind, signal};

    pub fn size() -> Size {
        match tcgetwinsize(stdin()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size { width: size.ws_col, height: size.ws_row },
            _ => Size::default(),
        }
    }

    /// The terminal hands every key through until this is dropped.
    pub struct Raw(Termios);
    impl Raw {
        pub fn begin() -> anyhow::Result<Self> {
            let before = tcgetattr(stdin()).context("cannot read the terminal's settings")?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(stdin(), OptionalActions::Now, &raw).context("cannot set the terminal")?;
            Ok(Self(before))
        }
    }
    impl Drop for Raw {
        fn drop(&mut self) {
            let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0); // a terminal that is gone needs none
        }
    }

    pub struct Resized(Signal);
    impl Resized {
        pub fn new() -> anyhow::Result<Self> {
            Ok(Self(signal(SignalKind::window_change())?))
        }
        pub async fn next(&mut self) -> Size {
            let _ = self.0.recv().await;
            size()
        }
    }
}

#[cfg(not(unix))]
mod local {
    //! This side's console: lines as they are, and the usual size.

    use super::Size;

    pub fn size() -> Size {
        Size::default()
    }
    pub struct Raw;
    impl Raw {
        pub fn begin() -> anyhow::Result<Self> {
            Ok(Self)
        }
    }
    pub struct Resized;
    impl Resized {
        pub fn new() -> anyhow::Result<Self> {
            Ok(Self)
        }
        pub async fn next(&mut self) -> Size {
            std::future::pending().await
        }
    }
}
