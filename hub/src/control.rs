//! A socket in the data folder by which whoever owns that folder asks the running hub for a backup, or to move its store.

use crate::{
    authority::{CaStatus, CaStep, RotationError, Turning},
    backup::{BackupError, BackupInfo, take, transfer},
    place::{StorePlace, StoreSettings},
};
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
const NO_ANSWER: &str = "it gave no answer";
/// Longest wait for the question.
const QUESTION: Duration = Duration::from_secs(5);
/// Longest wait for the answer: a backup of everything.
const ANSWER: Duration = Duration::from_secs(600);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Question {
    Backup(PathBuf),
    Migrate(StoreSettings),
    Ca(CaStep),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Done(BackupInfo),
    Ca(CaStatus),
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
pub(crate) async fn serve(
    listener: UnixListener,
    (store, place): (Store, StorePlace),
    turning: Turning,
    stop: CancellationToken,
) {
    let data: Arc<Path> = turning.dir.as_path().into();
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
                answer("backed up", move || take(&store, &data, &to)).await
            }
            Ok(Question::Migrate(to)) => migrate(&store, &place, &data, &to).await,
            Ok(Question::Ca(step)) => {
                let turning = turning.clone();
                match tokio::task::spawn_blocking(move || turning.step(step)).await {
                    Ok(Ok(status)) => Answer::Ca(status),
                    Ok(Err(error)) => Answer::Failed(crate::authority::words(&error)),
                    Err(error) => Answer::Failed(error.to_string()),
                }
            }
        };
        let mut text = serde_json::to_vec(&answer).unwrap_or_default();
        text.push(b'\n');
        let _ = timeout(QUESTION, write.write_all(&text)).await;
    }
}

async fn answer(what: &str, work: impl FnOnce() -> Result<BackupInfo, BackupError> + Send + 'static) -> Answer {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(info)) => {
            tracing::info!(revision = info.revision, objects = info.objects, "{what}");
            Answer::Done(info)
        }
        Ok(Err(error)) => Answer::Failed(error.to_string()),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// Writes end before the copy begins, and begin again only if it fails: nothing that is acknowledged stays behind.
async fn migrate(store: &Store, from: &StorePlace, data: &Arc<Path>, to: &StoreSettings) -> Answer {
    let to = match to.place() {
        Ok(to) => to,
        Err(error) => return Answer::Failed(error.to_string()),
    };
    if let Err(error) = store.freeze().await {
        return Answer::Failed(error.to_string());
    }
    let (source, from, data) = (store.clone(), from.clone(), Arc::clone(data));
    let answer =
        answer("the store has moved: start this hub where it is now", move || transfer(&source, &data, &from, &to));
    let answer = answer.await;
    if matches!(answer, Answer::Failed(_)) {
        store.thaw();
    }
    answer
}

/// Asks the hub that runs on `data`; `None`: none runs there.
pub(crate) fn ask(data: &Path, question: Question) -> Result<Option<BackupInfo>, BackupError> {
    match put(data, question).map_err(BackupError::Hub)? {
        None => Ok(None),
        Some(Answer::Done(info)) => Ok(Some(info)),
        Some(Answer::Failed(why)) => Err(BackupError::Hub(why)),
        Some(Answer::Ca(_)) => Err(BackupError::Hub(NO_ANSWER.to_owned())),
    }
}

/// The same about its authority.
pub(crate) fn ask_ca(data: &Path, step: CaStep) -> Result<Option<CaStatus>, RotationError> {
    match put(data, Question::Ca(step)).map_err(RotationError::Hub)? {
        None => Ok(None),
        Some(Answer::Ca(status)) => Ok(Some(status)),
        Some(Answer::Failed(why)) => Err(RotationError::Hub(why)),
        Some(Answer::Done(_)) => Err(RotationError::Hub(NO_ANSWER.to_owned())),
    }
}

fn put(data: &Path, question: Question) -> Result<Option<Answer>, String> {
    let failed = |error: io::Error| error.to_string();
    let mut socket = match UnixStream::connect(data.join(SOCKET)) {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    socket.set_read_timeout(Some(ANSWER)).map_err(failed)?;
    let mut question = serde_json::to_vec(&question).unwrap_or_default();
    question.push(b'\n');
    socket.write_all(&question).map_err(failed)?;
    let mut line = String::new();
    BufReader::new(socket.take(LINE)).read_line(&mut line).map_err(failed)?;
    serde_json::from_str(&line).map(Some).map_err(|_| NO_ANSWER.to_owned())
}
