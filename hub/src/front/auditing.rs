//! `GET /auth/audit`: the audit log, for administrators and auditors.

use super::{
    Front,
    answers::{json, later},
    searches::NoSearch,
};
use crate::directory::Authenticated;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use moorline_proxy::{
    Body,
    audit::search::{End, Query, search},
    status::status_response,
};
use serde_json::json as value;
use std::{collections::HashMap, time::Duration};
use url::form_urlencoded;

/// Records of one answer, at most, and where nothing is said.
const MOST: usize = 1000;
const USUAL: usize = 100;
/// Longest time for one search: it reads files.
const PATIENCE: Duration = Duration::from_secs(10);

impl Front {
    /// `GET /auth/audit?user&cluster&verb&resource&recording&since&until&limit`
    pub(super) async fn search_audit(&self, request: &Request<Incoming>, who: &Authenticated) -> Response<Body> {
        if let Err(refusal) = self.reads_audit(who) {
            return refusal;
        }
        let asked: HashMap<String, String> =
            form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
        let query = match query(&asked) {
            Ok(query) => query,
            Err(message) => return status_response(StatusCode::BAD_REQUEST, &message),
        };
        let path = self.audit_path.clone();
        match self.searches.run(move || search(&path, &query, PATIENCE)).await {
            Ok(Ok(found)) => json(StatusCode::OK, &value!({ "items": found.records, "partial": found.partial })),
            Ok(Err(error)) => {
                tracing::error!("the audit log cannot be read: {error}");
                later(StatusCode::SERVICE_UNAVAILABLE, "the audit log cannot be read", Duration::from_secs(1))
            }
            Err(why) => no_search(why),
        }
    }
}

/// Clients come again.
pub(super) fn no_search(why: NoSearch) -> Response<Body> {
    let (code, message) = match why {
        NoSearch::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too many searches at this moment"),
        NoSearch::Failed => (StatusCode::SERVICE_UNAVAILABLE, "the search failed"),
    };
    later(code, message, Duration::from_secs(1))
}

fn query(asked: &HashMap<String, String>) -> Result<Query, String> {
    const KNOWN: [&str; 8] = ["user", "cluster", "verb", "resource", "recording", "since", "until", "limit"];
    if let Some(unknown) = asked.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(format!("{unknown:?} is nothing to search by; there are {}", KNOWN.join(", ")));
    }
    let text = |name: &str| asked.get(name).filter(|text| !text.is_empty()).cloned();
    let time = |name: &str| {
        let parsed = text(name).map(|text| text.parse::<Timestamp>());
        parsed.transpose().map_err(|_| format!("{name} must be a time such as 2030-01-31T12:00:00Z"))
    };
    let limit = match text("limit").map(|text| text.parse::<usize>()) {
        None => USUAL,
        Some(Ok(limit @ 1..=MOST)) => limit,
        Some(_) => return Err(format!("limit must be from 1 to {MOST}")),
    };
    Ok(Query {
        from: End::Newest,
        user: text("user"),
        cluster: text("cluster"),
        verb: text("verb"),
        resource: text("resource"),
        recording: text("recording"),
        but_verb: None,
        since: time("since")?,
        until: time("until")?,
        limit,
    })
}
