//! Logins: what every provider calls once somebody has proved who they are, and what keeps a login going.
//!
//! A login is a `Token` object with a provider. Its refresh token is good once and answered with the next; its access
//! tokens are signed, live shortly and stand nowhere. With the object gone, or its user, all of it is over.

use crate::{
    directory::{Authenticated, Directory},
    kinds::{TokenSpec, UserSpec},
    records::{RecordError, Records},
    signing::{Signing, now},
    status::time,
};
use moorline_apiserver::{Object, Spec};
use moorline_authz::{
    access_token::{Audience, Claims, cluster_life},
    refresh::{RefreshText, Verdict},
};
use serde::Serialize;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Refreshes of different logins that go on at once without waiting for each other, about.
const STRIPES: usize = 64;
/// How often logins and keys that have expired are removed.
const SWEEP: Duration = Duration::from_secs(600);

/// Somebody who proved who they are.
pub(crate) struct Proven<'a> {
    /// The user.
    pub user: &'a Object<UserSpec>,
    /// Which provider proved it: `local`, or the name of a configured one.
    pub provider: &'a str,
    /// How long the login may last; `None`: the hub's rule. More than the hub permits is refused.
    pub life: Option<Duration>,
}

/// What a login, and each refresh, is answered with.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Issued {
    /// Name of the user.
    pub user: String,
    /// The access token: a bearer token for the hub and for clusters through it.
    pub token: String,
    /// RFC 3339: when the access token ends.
    pub expires: String,
    /// The same in seconds from now, for those whose clock is another.
    pub expires_in: u64,
    /// The next refresh token; the one before is worth nothing.
    pub refresh_token: String,
    /// RFC 3339: when the login ends, however often it is refreshed.
    pub session_expires: String,
    /// Name of the login's `Token` object.
    pub session: String,
}

/// An access token for clusters alone.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterToken {
    token: String,
    expires: String,
    expires_in: u64,
    session_expires: String,
}

/// A login whose refresh token somebody has held.
pub(crate) struct Login {
    /// Name of its `Token` object.
    pub id: String,
    /// Name of the user.
    pub user: String,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// One answer, whatever is wrong with it.
    #[error("this login is over; log in again")]
    Over,
    /// A refresh token came twice. The login is over.
    #[error("this refresh token was used before, so the login was ended; log in again")]
    Reused,
    #[error("ttlSeconds is over what this hub permits")]
    TooLong,
    #[error("the store: {0}")]
    Store(#[from] RecordError),
}

/// Makes and keeps logins.
pub(crate) struct Issuer {
    records: Records,
    signing: Arc<Signing>,
    life: Duration,
    life_max: Duration,
    turns: Vec<Mutex<()>>,
}

impl Issuer {
    pub fn new(records: Records, signing: Arc<Signing>, config: &crate::Config) -> Self {
        let turns = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Self { records, signing, life: config.login_life, life_max: config.login_life_max, turns }
    }

    /// The keys.
    pub fn signing(&self) -> &Arc<Signing> {
        &self.signing
    }

    /// A new login. Everything that is to be checked about the user has been.
    ///
    /// # Errors
    /// [`IssueError::TooLong`], or the store's.
    pub async fn issue(&self, proven: Proven<'_>) -> Result<Issued, IssueError> {
        let life = proven.life.unwrap_or(self.life);
        if life.is_zero() || self.life_max < life {
            return Err(IssueError::TooLong);
        }
        let ends = SystemTime::now() + life;
        let spec = TokenSpec {
            user: proven.user.metadata.name.clone(),
            description: Some("login".to_owned()),
            expires: time(ends),
            provider: Some(proven.provider.to_owned()),
            ..TokenSpec::default()
        };
        let mut made = self.records.create(&Object::new("", spec)).await?;
        let refresh = made.status.take().and_then(|status| status.token);
        let refresh = refresh.ok_or_else(|| RecordError::Failed("no token was made".to_owned()))?;
        Ok(self.issued(&made, &proven.user.metadata.uid, ends, refresh))
    }

    fn issued(&self, session: &Object<TokenSpec>, uid: &str, ends: SystemTime, refresh_token: String) -> Issued {
        let (user, id) = (session.spec.user.clone(), session.metadata.name.clone());
        let (token, expires, expires_in) = self.access(
            (&user, uid, &id),
            (ends, self.signing.access_life()),
            session.spec.verbs.clone(),
            vec![Audience::Hub.text()],
        );
        Issued {
            user,
            token,
            expires,
            expires_in,
            refresh_token,
            session_expires: session.spec.expires.clone(),
            session: id,
        }
    }

    /// An access token: no longer than what it was made by.
    fn access(
        &self,
        (user, uid, session): (&str, &str, &str),
        (ends, life): (SystemTime, Duration),
        verbs: Option<Vec<String>>,
        aud: Vec<String>,
    ) -> (String, String, u64) {
        let at = now();
        let sid_exp = ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let exp = at.saturating_add(life.as_secs()).min(sid_exp);
        let claims = Claims {
            iss: self.signing.issuer().to_owned(),
            sub: user.to_owned(),
            uid: uid.to_owned(),
            aud,
            iat: at,
            nbf: at,
            exp,
            jti: uuid::Uuid::new_v4().simple().to_string(),
            sid: session.to_owned(),
            sid_exp,
            verbs,
        };
        (self.signing.sign(&claims), time(SystemTime::UNIX_EPOCH + Duration::from_secs(exp)), exp.saturating_sub(at))
    }

    /// An access token that is good for these clusters and nothing else, for whoever is at the other end of a way that
    /// does not lead through the hub. That the caller reaches them has been decided.
    pub fn for_clusters(&self, who: &Authenticated, clusters: &[String]) -> ClusterToken {
        let aud = clusters.iter().map(|name| Audience::Cluster(name.clone()).text()).collect();
        let verbs = who.verbs.as_ref().map(|verbs| verbs.to_vec());
        let (user, ends) = (&who.identity, who.lease.expires());
        let life = cluster_life(self.signing.access_life());
        let (token, expires, expires_in) = self.access((&user.user, &user.uid, &who.token), (ends, life), verbs, aud);
        ClusterToken { token, expires, expires_in, session_expires: time(ends) }
    }

    /// An access token that is good for `audience` and nothing else, and its life in seconds.
    pub fn for_audience(&self, who: &Authenticated, audience: String) -> (String, u64) {
        let verbs = who.verbs.as_ref().map(|verbs| verbs.to_vec());
        let (user, ends) = (&who.identity, who.lease.expires());
        let life = self.signing.access_life();
        let (token, _, life) = self.access((&user.user, &user.uid, &who.token), (ends, life), verbs, vec![audience]);
        (token, life)
    }

    /// Two refreshes of one login go one after the other.
    fn turn_of(&self, id: &str) -> Option<&Mutex<()>> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        self.turns.get(usize::try_from(hasher.finish()).unwrap_or_default() % STRIPES)
    }

    /// A new access token and the next refresh token. One that was used before ends the login, and what is open under it.
    ///
    /// # Errors
    /// The login is over, or the store's.
    pub async fn refresh(&self, text: &str, directory: &Directory) -> Result<Issued, IssueError> {
        let shown = RefreshText::parse(text).map_err(|_| IssueError::Over)?;
        let turn = self.turn_of(&shown.id).ok_or(IssueError::Over)?;
        let _turn = turn.lock().await;
        let record = self.records.refresh(&shown.id).ok_or(IssueError::Over)?;
        let at = now();
        match record.judge(&shown, at) {
            Verdict::Good => {}
            Verdict::Wrong => return Err(IssueError::Over),
            Verdict::Reused => {
                tracing::warn!(session = shown.id, "a refresh token came a second time: the login is ended");
                self.end(&shown.id, directory).await?;
                return Err(IssueError::Reused);
            }
        }
        let session = self.records.get::<TokenSpec>(&shown.id)?.ok_or(IssueError::Over)?;
        let user = self.records.get::<UserSpec>(&session.spec.user)?.ok_or(IssueError::Over)?;
        let owned = session
            .metadata
            .owner_references
            .iter()
            .any(|owner| owner.kind == UserSpec::KIND && owner.uid == user.metadata.uid);
        let ends = session.spec.expires.parse::<jiff::Timestamp>().map(SystemTime::from);
        let ends = ends.ok().filter(|ends| SystemTime::now() < *ends).ok_or(IssueError::Over)?;
        let live = user.metadata.deletion_timestamp.is_none() && session.metadata.deletion_timestamp.is_none();
        if !owned || !live || user.spec.disabled || session.spec.provider.is_none() {
            return Err(IssueError::Over);
        }
        let next = shown.turn();
        self.records.set_refresh(&shown.id, &record.turned(&shown, &next, at)).await?;
        // Deleted while it was renewed: the record just written belongs to nothing.
        if self.records.get::<TokenSpec>(&shown.id)?.is_none() {
            return Err(IssueError::Over);
        }
        Ok(self.issued(&session, &user.metadata.uid, ends, next.reveal().to_string()))
    }

    /// The login that a refresh token is of, or was: for whoever wants to end it and has no access token that is still good.
    ///
    /// # Errors
    /// There is no such login, or the store's.
    pub fn login_of(&self, text: &str) -> Result<Login, IssueError> {
        let shown = RefreshText::parse(text).map_err(|_| IssueError::Over)?;
        let record = self.records.refresh(&shown.id).ok_or(IssueError::Over)?;
        if record.judge(&shown, now()) == Verdict::Wrong {
            return Err(IssueError::Over);
        }
        let session = self.records.get::<TokenSpec>(&shown.id)?.ok_or(IssueError::Over)?;
        Ok(Login { id: session.metadata.name, user: session.spec.user })
    }

    /// Ends a login, and everything that is open under it.
    ///
    /// # Errors
    /// The store's.
    pub async fn end(&self, id: &str, directory: &Directory) -> Result<(), IssueError> {
        match self.records.delete_token(id).await {
            Ok(()) | Err(RecordError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
        directory.revoke(id);
        Ok(())
    }

    /// Removes logins and keys that have expired.
    pub async fn sweep(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(SWEEP)).await.is_some() {
            let Ok(tokens) = self.records.list::<TokenSpec>() else { continue };
            let over = |token: &Object<TokenSpec>| {
                token.spec.expires.parse::<jiff::Timestamp>().is_ok_and(|at| at <= jiff::Timestamp::now())
            };
            for token in tokens.iter().filter(|token| over(token)) {
                if let Err(error) = self.records.delete_token(&token.metadata.name).await {
                    tracing::debug!(token = token.metadata.name, "an expired token was not removed: {error}");
                }
            }
        }
    }
}
