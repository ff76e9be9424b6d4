//! A socket in the data folder by which whoever owns that folder asks the running hub for a backup.

use crate::backup::{BackupError, BackupInfo, take};
use moorline_apiserver::Store;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Name of the socket in the data folder.
const SOCKET: &str = "control.sock";
/// Longest line either way, in bytes.
const LINE: u64 = 16 << 10;
/// Longest wait for the question.
const QUESTION: Duration = Duration::from_secs(5);
/// Longest wait for the answer: a backup of everything.
const ANSWER: Duration = Duration::from_secs(600);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Question {
    Backup(PathBuf),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Done(BackupInfo),
    Failed(String),
}

/// Listens there. A socket that is left over from a hub that was killed is replaced: the store's lock says that none runs.
pub(crate) fn listen(data: &Path) -> io::Result<UnixListener> {
    let path = data.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers, one at a time, until `stop`.
pub(crate) async fn serve(listener: UnixListener, store: Store, data: PathBuf, stop: CancellationToken) {
    let data: Arc<Path> = data.into();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((mut socket, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let mut line = String::new();
        let (read, mut write) = socket.split();
        let mut read = tokio::io::BufReader::new(read.take(LINE));
        let Ok(Ok(_)) = timeout(QUESTION, read.read_line(&mut line)).await else { continue };
        let answer = match serde_json::from_str(&line) {
            Err(error) => Answer::Failed(format!("the question cannot be read: {error}")),
            Ok(Question::Backup(to)) => {
                let (store, data) = (store.clone(), Arc::clone(&data));
                let work = tokio::task::spawn_blocking(move || take(&store, &data, &to));
                match work.await {
                    Ok(Ok(info)) => {
                        tracing::info!(revision = info.revision, objects = info.objects, "backed up");
                        Answer::Done(info)
                    }
                    Ok(Err(error)) => Answer::Failed(error.to_string()),
                    Err(error) => Answer::Failed(error.to_string()),
                }
            }
        };
        let mut text = serde_json::to_vec(&answer).unwrap_or_default();
        text.push(b'\n');
        let _ = timeout(QUESTION, write.write_all(&text)).await;
    }
}

/// Asks the hub that runs on `data` for a backup; `None`: none runs there.
pub(crate) fn ask(data: &Path, to: &Path) -> Result<Option<BackupInfo>, BackupError> {
    let failed = |error: io::Error| BackupError::Hub(error.to_string());
    let mut socket = match UnixStream::connect(data.join(SOCKET)) {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    socket.set_read_timeout(Some(ANSWER)).map_err(failed)?;
    let mut question = serde_json::to_vec(&Question::Backup(to.to_owned())).unwrap_or_default();
    question.push(b'\n');
    socket.write_all(&question).map_err(failed)?;
    let mut line = String::new();
    BufReader::new(socket.take(LINE)).read_line(&mut line).map_err(failed)?;
    match serde_json::from_str(&line) {
        Ok(Answer::Done(info)) => Ok(Some(info)),
        Ok(Answer::Failed(why)) => Err(BackupError::Hub(why)),
        Err(_) => Err(BackupError::Hub("it gave no answer".to_owned())),
    }
}
