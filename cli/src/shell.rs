//! `moorline shell`: a terminal on a node of a cluster, with kubectl as oneself.

use crate::{
    client::{Client, Socket},
    failure::advise,
    target::HubArgs,
};
use anyhow::Context;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use moorline_proto::id::{AgentName, ClusterId};
use moorline_shell::frames::{self, Input, Output, PROTOCOL, Size};
use std::{
    env,
    io::{IsTerminal, Write, stdin, stdout},
    process::ExitCode,
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

/// Longest wait for the shell to begin.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a silent shell is told that its client is there, under the shortest patience of proxies on the way.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Bytes typed or pasted at once that are sent at a time.
const CHUNK: usize = 16 << 10;

/// `moorline shell`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline shell edge1                        on whichever node agent stands by
  moorline shell edge1 --node worker-3
  echo 'kubectl get pods -A' | moorline shell edge1

The shell runs as nobody, in a box that holds kubectl and other programs and nothing of the node's. Its kubectl asks the
cluster's API server as you, through the cluster's own edge policy. Nodes give shells where the cluster's owner has
switched them on: spec.shells.allow in the edge policy.")]
pub struct Args {
    /// The cluster
    cluster: ClusterId,
    /// The node agent [default: one that stands by]
    #[arg(long, value_name = "NAME")]
    node: Option<AgentName>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline shell CLUSTER`: the exit code is the shell's.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.hub.known()?, PATIENCE)?;
    let size = local::size();
    let term = env::var("TERM").unwrap_or_default();
    let mut path = format!(
        "/k8s/clusters/{}/shell?columns={}&rows={}&term={}",
        args.cluster,
        size.width,
        size.height,
        term.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.+".contains(*c)).collect::<String>()
    );
    if let Some(node) = &args.node {
        path.push_str(&format!("&node={node}"));
    }
    let (socket, early) = client.websocket(&path, PROTOCOL).await?;
    let socket = WebSocketStream::from_partially_read(socket, early.to_vec(), Role::Client, None).await;
    let raw = (stdin().is_terminal() && stdout().is_terminal()).then(local::Raw::begin).transpose()?;
    let ended = session(socket).await;
    drop(raw);
    let (code, why) = ended?;
    if code != 0 && why != format!("the shell ended with exit code {code}") {
        return Err(advise(format!("the shell ended: {why}"), "begin another one: moorline shell"));
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

async fn session(socket: WebSocketStream<Socket>) -> anyhow::Result<(i32, String)> {
    let (mut send, mut receive) = socket.split();
    let (tell, mut typed) = mpsc::channel(4);
    std::thread::spawn(move || read(&tell)); // a blocking read cannot be called off: it ends with the process
    let mut resized = local::Resized::new()?;
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.tick().await;
    loop {
        let message = tokio::select! {
            heard = receive.next() => match heard {
                Some(Ok(Message::Binary(message))) => match frames::hear(&message)? {
                    Output::Shown(bytes) => {
                        let mut out = stdout().lock();
                        out.write_all(&bytes).and_then(|()| out.flush()).context("cannot write to the terminal")?;
                        continue;
                    }
                    Output::Ended { code, why } => return Ok((code, why)),
                },
                Some(Ok(Message::Close(_))) | None => return Err(lost("the connection ended")),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(lost(&error.to_string())),
            },
            Some(input) = typed.recv() => Message::Binary(frames::write(&input)),
            size = resized.next() => Message::Binary(frames::write(&Input::Resize(size))),
            _ = heartbeat.tick() => Message::Ping(Bytes::new()),
        };
        send.send(message).await.map_err(|error| lost(&error.to_string()))?;
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
