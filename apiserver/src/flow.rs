//! How many requests are served at once: reads and writes apart, and no caller more than a share.

use crate::{ApiError, Limits};
use http::StatusCode;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The seats of one API server.
#[derive(Clone)]
pub(crate) struct Seats {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    callers: Arc<Mutex<HashMap<String, usize>>>,
    share: usize,
}

/// A taken seat; dropping it gives it back.
pub(crate) struct Seat {
    _place: OwnedSemaphorePermit,
    callers: Arc<Mutex<HashMap<String, usize>>>,
    flow: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = callers.get_mut(&self.flow) {
            *taken -= 1;
            if *taken == 0 {
                callers.remove(&self.flow);
            }
        }
    }
}

impl Seats {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            reads: Arc::new(Semaphore::new(limits.reads)),
            writes: Arc::new(Semaphore::new(limits.writes)),
            callers: Arc::default(),
            share: limits.caller_requests,
        }
    }

    /// A seat for one request of a caller, or 429.
    pub(crate) fn take(&self, flow: &str, write: bool) -> Result<Seat, ApiError> {
        let seats = if write { &self.writes } else { &self.reads };
        let place = Arc::clone(seats).try_acquire_owned().map_err(|_| too_many())?;
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = callers.entry(flow.to_owned()).or_default();
        if *taken == self.share {
            return Err(too_many());
        }
        *taken += 1;
        drop(callers);
        Ok(Seat { _place: place, callers: Arc::clone(&self.callers), flow: flow.to_owned() })
    }
}

fn too_many() -> ApiError {
    let message = "too many requests, please try again later.";
    let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
    error.retry_after = Some(1);
    error
}
