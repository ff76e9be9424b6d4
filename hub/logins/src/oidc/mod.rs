//! OpenID Connect: the code flow with PKCE for browsers, the device flow for terminals, refreshing for later.

mod keys;

use crate::{
    DevicePoll, DeviceStart, LoginError, LoginProvider, Proof, Round, Secret, Still, Way,
    config::{OidcConfig, secret},
    http_client::{HttpClient, checked, stays_here},
    limits, pkce, tidy,
};
use futures_util::{FutureExt, future::BoxFuture};
use http::StatusCode;
use keys::Keys;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, Semaphore};
use url::Url;

/// RFC 8628 §3.5: how much slower to ask after `slow_down`, and how often to ask where nothing is said.
const DEVICE_INTERVAL: Duration = Duration::from_secs(5);
/// The grant of the device flow.
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// An OpenID provider.
pub(crate) struct Oidc {
    name: String,
    issuer: String,
    client_id: String,
    client_secret: Option<Secret>,
    scope: String,
    username_claim: String,
    groups_claim: String,
    http: HttpClient,
    description: Mutex<Option<(Instant, Arc<Description>)>>,
    keys: Keys,
    slots: Semaphore,
}

/// What the provider says of itself (OpenID Connect Discovery §3), as far as it is used.
#[derive(Debug, Deserialize)]
struct Description {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    #[serde(default)]
    userinfo_endpoint: Option<String>,
    #[serde(default)]
    device_authorization_endpoint: Option<String>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    scopes_supported: Option<Vec<String>>,
}

/// The answer of the token endpoint (RFC 6749 §5), good or bad.
#[derive(Debug, Default, Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    id_token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    refresh_token: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
}

#[derive(Debug, Deserialize)]
struct DeviceAnswer {
    device_code: String,
    user_code: String,
    verification_uri: String,
    #[serde(default)]
    verification_uri_complete: Option<String>,
    expires_in: u64,
    #[serde(default)]
    interval: Option<u64>,
}

impl Oidc {
    pub fn new(name: String, config: &OidcConfig) -> Result<Self, String> {
        let issuer = checked(&config.issuer).map_err(|why| format!("issuer {why}"))?;
        let client_secret = config.client_secret_file.as_deref().map(secret).transpose()?;
        let http = HttpClient::new(config.ca_file.as_deref(), issuer.scheme() == "http" && stays_here(&issuer))?;
        let mut scope = vec!["openid".to_owned()];
        scope.extend(config.scopes.iter().filter(|s| *s != "openid").cloned());
        Ok(Self {
            name,
            issuer: config.issuer.clone(),
            client_id: config.client_id.clone(),
            client_secret,
            scope: scope.join(" "),
            username_claim: config.username_claim.clone(),
            groups_claim: config.groups_claim.clone(),
            http,
            description: Mutex::default(),
            keys: Keys::default(),
            slots: Semaphore::new(limits::AT_ONCE),
        })
    }

    /// The provider's description, kept for a while; the old one where there is no new one.
    async fn describe(&self) -> Result<Arc<Description>, LoginError> {
        let mut kept = self.description.lock().await;
        if let Some((at, description)) = &*kept
            && at.elapsed() < limits::DISCOVERY
        {
            return Ok(Arc::clone(description));
        }
        match self.fetch_description().await {
            Ok(new) => {
                let new = Arc::new(new);
                *kept = Some((Instant::now(), Arc::clone(&new)));
                Ok(new)
            }
            Err(error) => match &*kept {
                Some((_, old)) => {
                    tracing::warn!(provider = self.name, "the last description is used on: {}", error.why());
                    Ok(Arc::clone(old))
                }
                None => Err(error),
            },
        }
    }

    async fn fetch_description(&self) -> Result<Description, LoginError> {
        let at = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let url = checked(&at).map_err(LoginError::unavailable)?;
        let (description, _) = self.http.get::<Description>(&url, None).await?;
        // Discovery §4.3: what calls itself something else is something else.
        if description.issuer != self.issuer {
            return Err(LoginError::unavailable(format!("{at} speaks for {:?}", description.issuer)));
        }
        Ok(description)
    }

    /// The scopes that are asked for and that it knows; all, where it does not say what it knows.
    fn scope(&self, description: &Description) -> String {
        let Some(known) = &description.scopes_supported else { return self.scope.clone() };
        let wanted = self.scope.split(' ').filter(|scope| known.iter().any(|k| k == scope));
        wanted.collect::<Vec<_>>().join(" ")
    }

    async fn post(
        &self,
        description: &Description,
        url: &str,
        form: &[(&str, &str)],
    ) -> Result<(StatusCode, Value), LoginError> {
        let url = checked(url).map_err(LoginError::unavailable)?;
        let mut form = form.to_vec();
        let methods = description.token_endpoint_auth_methods_supported.as_deref();
        // RFC 8414 §2: where nothing is said it is client_secret_basic.
        let basic_works = methods.is_none_or(|all| all.iter().any(|m| m == "client_secret_basic"));
        match &self.client_secret {
            Some(secret) if basic_works => {
                return self.http.post(&url, &form, Some((&self.client_id, secret.reveal()))).await;
            }
            Some(secret) => form.push(("client_secret", secret.reveal())),
            None => {}
        }
        form.push(("client_id", &self.client_id));
        self.http.post(&url, &form, None).await
    }

    async fn tokens(&self, description: &Description, form: &[(&str, &str)]) -> Result<TokenAnswer, LoginError> {
        let (code, answer) = self.post(description, &description.token_endpoint, form).await?;
        let answer: TokenAnswer = serde_json::from_value(answer).map_err(LoginError::unavailable)?;
        if code.is_server_error() {
            return Err(LoginError::unavailable(format!("the token endpoint answered {code}")));
        }
        Ok(answer)
    }

    /// Whom the tokens stand for. `nonce`: the identity token must carry it.
    async fn proof(
        &self,
        description: &Description,
        answer: TokenAnswer,
        nonce: Option<&str>,
    ) -> Result<Proof, LoginError> {
        if let Some(error) = &answer.error {
            let more = answer.error_description.as_deref().unwrap_or_default();
            // Trouble of ours is not the user's.
            return Err(match error.as_str() {
                "invalid_client" | "unauthorized_client" | "unsupported_grant_type" | "invalid_scope" => {
                    LoginError::unavailable(format!("the provider refuses this hub: {error} {more}"))
                }
                _ => LoginError::wrong(format!("{error} {more}")),
            });
        }
        let token = answer.id_token.as_deref().ok_or_else(|| LoginError::unavailable("no identity token came"))?;
        let mut claims =
            self.keys.verify(&self.http, &description.jwks_uri, token, &self.issuer, &self.client_id).await?;
        if let Some(nonce) = nonce
            && text(&claims, "nonce") != Some(nonce)
        {
            return Err(LoginError::wrong("the identity token is of another login (nonce)"));
        }
        let subject = text(&claims, "sub").filter(|s| !s.is_empty()).map(str::to_owned);
        let subject = subject.ok_or_else(|| LoginError::unavailable("the identity token has no sub"))?;
        let lacking = !claims.contains_key(&self.groups_claim) || !claims.contains_key(&self.username_claim);
        if lacking && let (Some(at), Some(access)) = (&description.userinfo_endpoint, &answer.access_token) {
            let url = checked(at).map_err(LoginError::unavailable)?;
            let (more, _) = self.http.get::<Map<String, Value>>(&url, Some(access)).await?;
            // OpenID Connect Core §5.3.2: otherwise it speaks of somebody else.
            if text(&more, "sub") != Some(&subject) {
                return Err(LoginError::wrong("userinfo speaks of somebody else"));
            }
            for (name, value) in more {
                claims.entry(name).or_insert(value);
            }
        }
        let username =
            text(&claims, &self.username_claim).or_else(|| text(&claims, "email")).unwrap_or(&subject).to_owned();
        let groups = match claims.get(&self.groups_claim) {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(one)) => vec![one.clone()],
            _ => Vec::new(),
        };
        Ok(Proof {
            display_name: text(&claims, "name").map(str::to_owned),
            username,
            groups: tidy(groups),
            renewal: answer.refresh_token.map(Secret::new),
            subject,
        })
    }

    async fn ask_to(&self, round: &Round) -> Result<String, LoginError> {
        let description = self.describe().await?;
        let mut url = checked(&description.authorization_endpoint).map_err(LoginError::unavailable)?;
        let scope = self.scope(&description);
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.client_id)
            .append_pair("redirect_uri", &round.redirect_uri)
            .append_pair("scope", &scope)
            .append_pair("state", &round.state)
            .append_pair("nonce", &round.nonce)
            .append_pair("code_challenge", &pkce::challenge(round.verifier.reveal()))
            .append_pair("code_challenge_method", "S256");
        if scope.contains("offline_access") {
            query.append_pair("prompt", "consent"); // OpenID Connect Core §11: otherwise no refresh token comes
        }
        drop(query);
        Ok(url.into())
    }

    async fn redeem(&self, round: &Round, code: &str) -> Result<Proof, LoginError> {
        let description = self.describe().await?;
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &round.redirect_uri),
            ("code_verifier", round.verifier.reveal()),
        ];
        let answer = self.tokens(&description, &form).await?;
        self.proof(&description, answer, Some(&round.nonce)).await
    }

    async fn begin_device(&self) -> Result<DeviceStart, LoginError> {
        let description = self.describe().await?;
        let at = description.device_authorization_endpoint.as_deref().ok_or(LoginError::Unsupported)?;
        let (code, answer) = self.post(&description, at, &[("scope", &self.scope(&description))]).await?;
        if code != StatusCode::OK {
            return Err(LoginError::unavailable(format!("the device endpoint answered {code}: {answer}")));
        }
        let answer: DeviceAnswer = serde_json::from_value(answer).map_err(LoginError::unavailable)?;
        Ok(DeviceStart {
            device_code: Secret::new(answer.device_code),
            user_code: answer.user_code,
            verification_uri: answer.verification_uri,
            verification_uri_complete: answer.verification_uri_complete,
            expires_in: Duration::from_secs(answer.expires_in),
            interval: answer.interval.map_or(DEVICE_INTERVAL, Duration::from_secs),
        })
    }

    async fn poll_device(&self, code: &Secret) -> Result<DevicePoll, LoginError> {
        let description = self.describe().await?;
        let form = [("grant_type", DEVICE_GRANT), ("device_code", code.reveal())];
        let answer = self.tokens(&description, &form).await?;
        match answer.error.as_deref() {
            Some("authorization_pending") => Ok(DevicePoll::Pending),
            Some("slow_down") => Ok(DevicePoll::SlowDown),
            _ => Ok(DevicePoll::Done(Box::new(self.proof(&description, answer, None).await?))),
        }
    }

    async fn refresh(&self, subject: &str, renewal: Option<&Secret>) -> Result<Still, LoginError> {
        let Some(renewal) = renewal else { return Err(LoginError::Unsupported) };
        let description = self.describe().await?;
        let form = [("grant_type", "refresh_token"), ("refresh_token", renewal.reveal())];
        let answer = self.tokens(&description, &form).await?;
        if answer.error.as_deref() == Some("invalid_grant") {
            let why = answer.error_description.unwrap_or_default();
            return Ok(Still::Gone { why: format!("the provider renews the login no more: {why}") });
        }
        let mut proof = self.proof(&description, answer, None).await?;
        if proof.subject != subject {
            return Err(LoginError::wrong("the renewed login is somebody else's"));
        }
        // RFC 6749 §6: without a new one the old one stays good.
        proof.renewal.get_or_insert_with(|| renewal.clone());
        Ok(Still::There(Box::new(proof)))
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, LoginError>>) -> Result<T, LoginError> {
        let Ok(_slot) = self.slots.try_acquire() else { return Err(LoginError::Busy) };
        let done = tokio::time::timeout(limits::LOGIN, work).await;
        done.map_err(|_| LoginError::unavailable("the provider took too long"))?
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

impl LoginProvider for Oidc {
    fn name(&self) -> &str {
        &self.name
    }
    fn kind(&self) -> &'static str {
        "oidc"
    }
    fn ways(&self) -> &'static [Way] {
        &[Way::Browser, Way::Device]
    }
    fn browser<'a>(&'a self, round: &'a Round) -> BoxFuture<'a, Result<String, LoginError>> {
        self.bounded(self.ask_to(round)).boxed()
    }
    fn returned<'a>(&'a self, round: &'a Round, code: &'a str) -> BoxFuture<'a, Result<Proof, LoginError>> {
        self.bounded(self.redeem(round, code)).boxed()
    }
    fn device(&self) -> BoxFuture<'_, Result<DeviceStart, LoginError>> {
        self.bounded(self.begin_device()).boxed()
    }
    fn poll<'a>(&'a self, device_code: &'a Secret) -> BoxFuture<'a, Result<DevicePoll, LoginError>> {
        self.bounded(self.poll_device(device_code)).boxed()
    }
    fn still<'a>(&'a self, subject: &'a str, renewal: Option<&'a Secret>) -> BoxFuture<'a, Result<Still, LoginError>> {
        self.bounded(self.refresh(subject, renewal)).boxed()
    }
}

/// Used by [`Keys`].
fn address(text: &str) -> Result<Url, LoginError> {
    checked(text).map_err(LoginError::unavailable)
}
