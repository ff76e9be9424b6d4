//! Messages on the control stream, and what each side makes of them.

use crate::{
    carrier::Raw,
    session::{Arrivals, LATE, Shared},
};
use moorline_proto::{
    code::CloseCode,
    codec::{announced_length, put_framed},
    control::{Control, Goodbye},
    tlv::WireError,
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, timeout},
};

/// How long the end of the control stream may come before the end of the connection that explains it.
const EXPLAIN: Duration = Duration::from_secs(1);

/// Why no message was read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The stream ended.
    #[error("control stream ended")]
    End,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
}
impl ReadError {
    /// The code to close the session with.
    pub fn code(&self) -> CloseCode {
        match self {
            Self::Wire(WireError::TooLong { .. } | WireError::TooMany { .. }) => CloseCode::TooLarge,
            _ => CloseCode::Protocol,
        }
    }
}

/// Reads one length and as many bytes. Not cancel safe.
pub(crate) async fn read_framed(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ReadError> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ReadError::End),
        Err(error) => return Err(error.into()),
    }
    let mut body = vec![0; announced_length(length)?];
    match from.read_exact(&mut body).await {
        Ok(_) => Ok(body),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ReadError::End),
        Err(error) => Err(error.into()),
    }
}

/// Reads one message that this version knows. Not cancel safe.
pub(crate) async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> Result<Control, ReadError> {
    loop {
        if let Some(message) = Control::decode(&read_framed(from).await?)? {
            return Ok(message);
        }
    }
}

/// Writes one message. Not cancel safe.
pub(crate) async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &Control) -> io::Result<()> {
    let mut bytes = Vec::new();
    put_framed(&mut bytes, |out| message.encode(out)).map_err(io::Error::other)?;
    to.write_all(&bytes).await?;
    to.flush().await
}

/// An allowance of messages that refills with time.
struct Allowance {
    left: u32,
    burst: u32,
    every: Duration,
    at: Instant,
}
impl Allowance {
    fn take(&mut self) -> bool {
        let earned = (self.at.elapsed().as_nanos() / self.every.as_nanos().max(1)).min(self.burst.into());
        if let Ok(earned @ 1..) = u32::try_from(earned) {
            self.left = self.left.saturating_add(earned).min(self.burst);
            self.at = Instant::now();
        }
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

/// Hears the peer until the session has to end, and says with which code.
pub(crate) async fn listen(
    shared: &Shared,
    mut from: ReadHalf<Raw>,
    inbox: mpsc::Sender<Control>,
) -> (CloseCode, String) {
    let limits = &shared.limits;
    let mut allowance = Allowance {
        left: limits.control_burst,
        burst: limits.control_burst,
        every: limits.control_every,
        at: Instant::now(),
    };
    let mut arrivals = Arrivals::new(shared);
    let mut patience = limits.keep_alive + LATE;
    loop {
        let read = {
            let reading = read_framed(&mut from);
            tokio::pin!(reading);
            loop {
                // An agent asks for signs of life: where neither that nor anything else comes, it is gone.
                match timeout(patience, &mut reading).await {
                    Ok(read) => break read,
                    Err(_) if shared.is_hub() && limits.silence <= arrivals.last(shared).elapsed() => {
                        return (CloseCode::Silent, "nothing came from the agent in time".into());
                    }
                    Err(_) => patience = LATE,
                }
            }
        };
        arrivals.last(shared);
        patience = limits.keep_alive + LATE;
        let message = match read.and_then(|bytes| Ok(Control::decode(&bytes)?)) {
            Ok(message) => message,
            Err(error @ ReadError::Wire(_)) => return (error.code(), format!("control message: {error}")),
            Err(error) => {
                // The peer may just have closed: its code is the better explanation.
                let _ = timeout(EXPLAIN, shared.conn.closed()).await;
                return (CloseCode::Protocol, error.to_string());
            }
        };
        if !allowance.take() {
            return (CloseCode::Flood, "too many control messages".into());
        }
        let Some(message) = message else { continue };
        let name = message.name();
        match message {
            Control::Ping(number) => {
                if shared.outbox.try_send(Control::Pong(number)).is_err() {
                    return (CloseCode::Flood, "pings faster than their answers are read".into());
                }
            }
            Control::Pong(number) => {
                if !shared.heard_pong(number) {
                    return (CloseCode::Protocol, "a pong without its ping".into());
                }
            }
            Control::Drain { grace_ms } => shared.heard_drain(Duration::from_millis(grace_ms.into())),
            Control::Goodbye(Goodbye { code, message, .. }) => {
                shared.heard_goodbye(code, message);
                return (CloseCode::Normal, "after the peer's goodbye".into());
            }
            Control::Renew { .. } | Control::Facts(_) if shared.is_hub() => {
                if inbox.try_send(message).is_err() {
                    return (CloseCode::Flood, format!("more {name} messages than are handled"));
                }
            }
            Control::Renewed { .. } | Control::RenewRefused { .. } if !shared.is_hub() => {
                if inbox.try_send(message).is_err() {
                    return (CloseCode::Flood, format!("more {name} messages than are handled"));
                }
            }
            _ => return (CloseCode::Protocol, format!("{name} is not allowed here")),
        }
    }
}

/// Sends what is queued until the stream breaks.
pub(crate) async fn speak(
    shared: &Shared,
    mut to: WriteHalf<Raw>,
    mut outbox: mpsc::Receiver<Control>,
) -> (CloseCode, String) {
    while let Some(message) = outbox.recv().await {
        if let Err(error) = write_message(&mut to, &message).await {
            let _ = timeout(EXPLAIN, shared.conn.closed()).await;
            return (CloseCode::Protocol, format!("control stream: {error}"));
        }
    }
    std::future::pending().await // `shared` holds a sender: not reached while the session lives
}
