//! What goes wrong with a store.

use crate::{disk::FORMAT, etcd::EtcdError, seal::SealError};

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is held by another process, is no store, or cannot be read or written.
    #[error("cannot open the store {path}: {why}; does another hub run on this folder?")]
    Database {
        /// The file.
        path: String,
        /// The cause.
        why: String,
    },
    /// A newer version wrote it.
    #[error("the store {path} has format {found} and this version knows {FORMAT}: use the version that wrote it")]
    Newer {
        /// The file.
        path: String,
        /// Its format.
        found: u64,
    },
    /// Its key, or the lack of one.
    #[error("{place}: {source}")]
    Sealed {
        /// The file, or the address.
        place: String,
        /// What is wrong.
        #[source]
        source: SealError,
    },
    /// An etcd.
    #[error("the store {place}: {source}")]
    Etcd {
        /// Its address.
        place: String,
        /// The cause.
        #[source]
        source: EtcdError,
    },
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The object is not at the revision that the change expects; this is where it is.
    #[error("the object is at revision {0:?}")]
    Conflict(Option<u64>),
    /// The disk failed: whether it was written is unknown, and nothing will be until a restart.
    #[error("the store takes no writes until it is started again: {0}")]
    Failed(String),
    /// The disk is full: whether it was written is unknown. Writes are taken again soon after there is space.
    #[error("the store takes no writes until there is space on its disk: {0}")]
    Full(String),
    /// etcd does not answer, or has no leader: whether it was written is unknown. It is asked again by itself.
    #[error("the store takes no writes until its etcd answers: {0}")]
    Unavailable(String),
    /// The change is larger than the backend takes. Nothing was written.
    #[error("the store does not take so much at once: {0}")]
    TooLarge(String),
    /// Its content is being moved, or was: nothing was written, and nothing will be here.
    #[error("the store takes no writes: it moves to another place, where the hub goes on once it is started there")]
    Moving,
    /// No place or no answer in time. Whether it was written is unknown if it waited for the answer.
    #[error("the store is overloaded")]
    Overloaded,
}

/// The revision asked for is no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version")]
pub struct Compacted;
