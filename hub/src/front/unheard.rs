//! What happens to callers while the store does not tell of changes.

use super::{Front, answers::later};
use http::{Response, StatusCode};
use moorline_proxy::Body;
use std::time::Duration;

impl Front {
    /// The refusal of everybody, once rights may have been taken away elsewhere for too long.
    pub(crate) fn unheard(&self) -> Option<Response<Body>> {
        (self.rights_without_store < self.records.unheard()).then(|| {
            self.count_refusal("store_silent");
            let why = "the hub's store does not answer, so that nobody knows whether rights were taken away meanwhile";
            later(StatusCode::SERVICE_UNAVAILABLE, why, Duration::from_secs(4))
        })
    }
}
