//! The bundle's copy in a Secret, sealed: every agent of the cluster puts it there and takes it from there, so that an
//! endpoint beside any of them, on a new node or after a restart, lets users in while the hub is away.

use super::Room;
use crate::{
    limits,
    secret::{SecretCopy, SecretError, SecretName},
    upstream::ApiServer,
};
use moorline_endpoint::shelf::ShelfError;
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tokio::time::sleep;

/// The key of the Secret's data.
const BUNDLE: &str = "bundle";

/// Keeps a room and a Secret the same.
pub struct Keeper {
    room: Room,
    secret: SecretCopy,
}

impl Keeper {
    /// Of the Secret `name`; `account` is the service account's folder, which knows the pod's namespace.
    pub fn new(room: Room, upstream: Arc<ApiServer>, name: &SecretName, account: Option<&Path>) -> Self {
        Self { room, secret: SecretCopy::new(upstream, name, account) }
    }

    /// Takes what is there, then puts there what comes. Never ends; trouble is told and tried again.
    pub async fn run(&self) {
        let mut changes = self.room.kept.subscribe();
        loop {
            match self.insist().await {
                Ok(()) => {
                    self.room.copied("ok");
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(cause = %error, "the bundle is not in its Secret: a new pod would have none without the hub");
                    self.room.copied(error.to_string());
                    // What comes meanwhile may be what helps.
                    tokio::select! {
                        () = sleep(limits::SECRET_PAUSE_MAX) => {}
                        _ = changes.changed() => {}
                    }
                }
            }
        }
    }

    /// The same, anew at once where another agent wrote meanwhile: every agent gets its bundle at the same time.
    async fn insist(&self) -> Result<(), KeepError> {
        for _ in 1..limits::SECRET_TRIES {
            match self.both().await {
                Err(KeepError::Secret(SecretError::Changed(_))) => {}
                done => return done,
            }
        }
        self.both().await
    }

    /// The newer of the two is in both after this.
    async fn both(&self) -> Result<(), KeepError> {
        let (data, version) =
            self.secret.insist("cannot read the bundle's Secret yet; trying again", || self.secret.read()).await?;
        let there = data.get(BUNDLE).filter(|bytes| !bytes.is_empty()).cloned();
        let shelf = self.room.shelf.clone();
        let compared = tokio::task::spawn_blocking(move || {
            // What cannot be opened or believed is written over by what can.
            let serial = there.clone().and_then(|there| {
                let serial = shelf.serial_of(there);
                serial.inspect_err(|error| tracing::error!("what is in the bundle's Secret is refused: {error}")).ok()
            });
            match (shelf.sealed()?, serial, there) {
                (here, Some(serial), Some(there)) if here.as_ref().is_none_or(|(here, _)| *here < serial) => {
                    let bundle = shelf.put_sealed(there)?;
                    tracing::info!(serial = bundle.serial, "a bundle was taken from its Secret");
                    Ok(None)
                }
                (Some((here, sealed)), serial, _) if serial != Some(here) => Ok(Some(sealed)),
                _ => Ok(None),
            }
        });
        let write: Result<Option<Vec<u8>>, ShelfError> = compared.await.map_err(|_| KeepError::Bug)?;
        // One whose time is over, or that could not be kept: the next one from the hub is written all the same.
        let Some(sealed) = write? else { return Ok(()) };
        if limits::SECRET_BUNDLE < sealed.len() {
            return Err(KeepError::TooLarge { size: sealed.len() });
        }
        // Another agent that wrote meanwhile is not written over.
        Ok(self.secret.write(&BTreeMap::from([(BUNDLE.to_owned(), sealed)]), Some(&version)).await?)
    }
}

/// Why room and Secret are not the same.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    /// The Secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The room.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// Kubernetes would not take it.
    #[error(
        "the bundle is {size} bytes, and a Secret takes {} of them: give the endpoint a folder that lasts",
        limits::SECRET_BUNDLE
    )]
    TooLarge {
        /// Sealed, in bytes.
        size: usize,
    },
    /// A task that panicked.
    #[error("failed by a bug")]
    Bug,
}
