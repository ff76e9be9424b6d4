//! Keeps a login going: its access token lives for an hour at most, and its refresh token is good once.
//!
//! Many programs of one user share one login. Whoever finds the access token half over takes the lock, looks again, and
//! asks the hub once for all.

use crate::{
    client::{ApiError, Client, field},
    files::{self, ProcessLock},
    settings::{self, KnownHub, Secret, Settings},
};
use http::{Method, StatusCode};
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

/// Longest wait for another program of this user that renews the login, or for the hub.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for a token that only could be newer: kubectl waits for it.
const AHEAD_PATIENCE: Duration = Duration::from_secs(3);
/// After an attempt in vain to get a newer token, how long the one at hand is used without asking again, in seconds.
const RETRY: i64 = 30;
/// A token that ends sooner than this, in seconds, is as good as over.
const SPARE: i64 = 5;
/// A token for a cluster is renewed when one part of these of its life is over. The hub makes it live a fifth longer than
/// an access token, so that the whole life of one of these is left when the hub goes away.
const PARTS: i64 = 6;
/// Tokens for clusters that are renewed along with the login, most recently used first.
const ALONG: usize = 16;

/// A token for one cluster, for the way that does not lead through the hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterToken {
    /// The bearer token.
    pub token: Secret,
    /// When it ends, by this machine's clock.
    pub expires: Timestamp,
    /// From when on a newer one is asked for.
    renew: Timestamp,
    /// Not before this.
    retry: Timestamp,
}

/// Takes up the answer to a login or a refresh.
///
/// # Errors
/// It has no token.
pub fn take(hub: &mut KnownHub, answer: &Value) -> anyhow::Result<()> {
    let word = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    hub.token = Some(Secret::new(field(answer, "/token")?.to_owned()));
    let (expires, renew) = times(answer, 2);
    (hub.expires, hub.renew) = (expires.map(|at| at.to_string()), renew.map(|at| at.to_string()));
    hub.refresh = word("refreshToken").map(Secret::new);
    hub.login_expires = word("sessionExpires");
    if let Some(user) = word("user") {
        hub.user = Some(user);
    }
    Ok(())
}

/// When a token ends, and when one part of `parts` of its life is over: by this machine's clock, which may be wrong.
fn times(answer: &Value, parts: i64) -> (Option<Timestamp>, Option<Timestamp>) {
    let now = Timestamp::now();
    let said = answer.get("expires").and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
    match answer.get("expiresIn").and_then(Value::as_i64) {
        Some(life) => (now.checked_add(life.seconds()).ok(), now.checked_add((life / parts).seconds()).ok()),
        None => (said, None),
    }
}

/// Whether the access token is over, or nearly.
pub fn is_over(hub: &KnownHub) -> bool {
    let at = hub.expires.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
    at.is_some_and(|at| at.as_second() - SPARE <= Timestamp::now().as_second())
}

/// Whether it is time for a newer access token.
pub fn is_due(hub: &KnownHub) -> bool {
    let at = hub.renew.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
    hub.refresh.is_some() && (is_over(hub) || at.is_some_and(|at| at <= Timestamp::now()))
}

/// The hub with an access token that is good for a while. What cannot be renewed and is not over is used as it is.
///
/// # Errors
/// The login is over, or the hub did not answer.
pub async fn fresh(hub: &KnownHub) -> Result<KnownHub, ApiError> {
    if !is_due(hub) {
        return Ok(hub.clone());
    }
    let over = is_over(hub);
    match renew(hub, if over { PATIENCE } else { AHEAD_PATIENCE }).await {
        Err(error) if !over && !matches!(error, ApiError::Refused { .. }) => Ok(hub.clone()),
        other => other,
    }
}

async fn renew(hub: &KnownHub, patience: Duration) -> Result<KnownHub, ApiError> {
    let local = |source: anyhow::Error| ApiError::Local { source };
    let lock = settings::path().map_err(local)?.with_file_name("renew");
    let _one = ProcessLock::take(&lock, PATIENCE).await.map_err(local)?;
    let settings = Settings::load().map_err(local)?;
    let Some(kept) = settings.hub(&hub.url) else { return Err(logged_out(hub)) };
    if kept.token.is_some() && kept.token != hub.token && !is_due(kept) {
        return Ok(KnownHub { ca: hub.ca.clone(), ..kept.clone() }); // somebody else was quicker
    }
    let Some(refresh) = &kept.refresh else { return Err(logged_out(hub)) };
    let bare = KnownHub { token: None, refresh: None, ..hub.clone() };
    let client = Client::new(&bare, patience).map_err(local)?;
    let body = json!({ "refreshToken": refresh.reveal() });
    let answer = client.call(Method::POST, "/auth/refresh", Some(&body)).await?;
    let mut next = kept.clone();
    take(&mut next, &answer).map_err(local)?;
    Settings::change(|settings| {
        for known in settings.hubs.iter_mut().filter(|known| known.url == next.url) {
            *known = next.clone();
        }
    })
    .map_err(local)?;
    Ok(KnownHub { ca: hub.ca.clone(), ..next })
}

fn logged_out(hub: &KnownHub) -> ApiError {
    ApiError::Refused {
        url: hub.url.clone(),
        code: StatusCode::UNAUTHORIZED,
        reason: "Unauthorized".into(),
        message: format!("logged out of {}", hub.url),
        retry_after: None,
    }
}

/// Folder of the tokens for clusters, of all hubs.
fn folder() -> anyhow::Result<PathBuf> {
    Ok(settings::path()?.with_file_name("tokens"))
}

/// What the files of a hub's tokens begin with.
fn prefix(url: &str) -> String {
    let place = url.trim_start_matches("https://");
    let plain: String = place.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
    format!("{plain}~")
}

fn file(url: &str, cluster: &str) -> anyhow::Result<PathBuf> {
    Ok(folder()?.join(format!("{}{cluster}.json", prefix(url))))
}

fn kept(url: &str, cluster: &str) -> anyhow::Result<Option<ClusterToken>> {
    let text = files::read_text(&file(url, cluster)?)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

fn keep(url: &str, cluster: &str, token: &ClusterToken) -> anyhow::Result<()> {
    files::write_private(&file(url, cluster)?, serde_json::to_string(token)?.as_bytes())
}

impl ClusterToken {
    fn is_good(&self) -> bool {
        Timestamp::now().as_second() + SPARE < self.expires.as_second()
    }
    fn is_due(&self) -> bool {
        let now = Timestamp::now();
        self.renew <= now && self.retry <= now
    }
}

/// A token for a cluster's own endpoint. It is renewed when a sixth of its life is over, so that nearly all of it is left
/// when the hub goes away; a hub that does not answer costs a moment, once in a while.
///
/// # Errors
/// There is none that is good, and the hub gave none.
pub async fn for_cluster(hub: &KnownHub, cluster: &str) -> anyhow::Result<ClusterToken> {
    let usable = |token: &ClusterToken| token.is_good() && !token.is_due();
    if let Some(token) = kept(&hub.url, cluster)?.filter(usable) {
        return Ok(token);
    }
    let _one = ProcessLock::take(&folder()?.join(prefix(&hub.url)), PATIENCE).await?;
    let before = kept(&hub.url, cluster)?;
    if let Some(token) = before.clone().filter(usable) {
        return Ok(token);
    }
    let good = before.filter(ClusterToken::is_good);
    let patience = if good.is_some() { AHEAD_PATIENCE } else { PATIENCE };
    match (ask_for(hub, cluster, patience).await, good) {
        (Ok(token), _) => {
            keep(&hub.url, cluster, &token)?;
            Ok(token)
        }
        (Err(ApiError::Refused { code, message, .. }), _) if code.is_client_error() && code.as_u16() != 429 => {
            // The hub has the last word: a right that is gone is not used up to its end.
            let _ = std::fs::remove_file(file(&hub.url, cluster)?);
            let login = format!("log in again: moorline login {}", hub.url);
            Err(crate::failure::advise(message, login))
        }
        (Err(_), Some(mut token)) => {
            token.retry = Timestamp::now().checked_add(RETRY.seconds())?;
            keep(&hub.url, cluster, &token)?;
            Ok(token)
        }
        (Err(error), None) => Err(error.into()),
    }
}

async fn ask_for(hub: &KnownHub, cluster: &str, patience: Duration) -> Result<ClusterToken, ApiError> {
    let local = |source: anyhow::Error| ApiError::Local { source };
    let client = Client::new(hub, patience).map_err(local)?;
    let answer = client.call(Method::POST, "/auth/token", Some(&json!({ "clusters": [cluster] }))).await?;
    let token = Secret::new(field(&answer, "/token").map_err(local)?.to_owned());
    let (Some(expires), renew) = times(&answer, PARTS) else {
        return Err(ApiError::NotAHub { url: hub.url.clone() });
    };
    Ok(ClusterToken { token, expires, renew: renew.unwrap_or(expires), retry: Timestamp::UNIX_EPOCH })
}

/// Renews, along with a login, the tokens for clusters that were used before: whoever works through the hub today may
/// need the other way tomorrow. What fails is left as it is.
pub async fn along(hub: &KnownHub) {
    let (Ok(folder), prefix) = (folder(), prefix(&hub.url)) else { return };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut found: Vec<(std::time::SystemTime, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let cluster = name.strip_prefix(&prefix)?.strip_suffix(".json")?.to_owned();
            Some((entry.metadata().ok()?.modified().ok()?, cluster))
        })
        .collect();
    found.sort();
    let all = async {
        for (_, cluster) in found.iter().rev().take(ALONG) {
            let _ = for_cluster(hub, cluster).await;
        }
    };
    let _ = tokio::time::timeout(AHEAD_PATIENCE, all).await;
}

/// Forgets the tokens for clusters, of a login that is over.
pub fn forget(url: &str) {
    let Ok(entries) = folder().and_then(|folder| Ok(std::fs::read_dir(folder)?)) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix(url)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(expires: i64, renew: i64) -> KnownHub {
        let at = |seconds: i64| Some(Timestamp::now().checked_add(seconds.seconds()).unwrap().to_string());
        let refresh = Some(Secret::new("mlr_x".to_owned()));
        KnownHub { expires: at(expires), renew: at(renew), refresh, ..KnownHub::default() }
    }

    #[test]
    fn a_login_is_renewed_before_it_is_over() {
        assert!(!is_due(&hub(3600, 1800)) && !is_over(&hub(3600, 1800)));
        assert!(is_due(&hub(1700, -1)) && !is_over(&hub(1700, -1)));
        assert!(is_due(&hub(4, 100)) && is_over(&hub(4, 100)));
        assert!(!is_due(&KnownHub { refresh: None, ..hub(-1, -1) }), "an API key has no other");
    }

    #[test]
    fn f28_times_are_counted_from_here_not_by_the_hubs_clock() {
        let answer =
            json!({ "token": "t", "expires": "1999-01-01T00:00:00Z", "expiresIn": 3600, "refreshToken": "mlr_a" });
        let mut known = KnownHub::default();
        take(&mut known, &answer).unwrap();
        assert!(!is_over(&known) && !is_due(&known), "{known:?}");
        assert!(!format!("{known:?}").contains("mlr_a"));
    }

    #[test]
    fn f01_an_outage_as_long_as_the_life_of_an_access_token_is_outlived() {
        const HOUR: i64 = 3600;
        let (expires, renew) = times(&json!({ "expiresIn": HOUR * 6 / 5 }), PARTS);
        let left = expires.unwrap().as_second() - renew.unwrap().as_second();
        assert!(HOUR <= left, "{left} s are left of the oldest one that is not renewed yet");
    }

    #[test]
    fn hubs_do_not_share_files() {
        assert_eq!(prefix("https://hub.example:8443"), "hub.example_8443~");
        assert_eq!(prefix("https://[2001:db8::1]"), "_2001_db8__1_~");
    }
}
