//! GitHub and GitHub Enterprise: an OAuth app; organisations and teams are the groups.

use crate::{
    DevicePoll, DeviceStart, LoginError, LoginProvider, Proof, Round, Secret, Still, Way,
    config::{GitHubConfig, secret},
    http_client::{HttpClient, checked, stays_here},
    limits, pkce, tidy,
};
use futures_util::{FutureExt, future::BoxFuture};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::Semaphore;
use url::Url;

const GITHUB: &str = "https://github.com";
const GITHUB_API: &str = "https://api.github.com";
/// What is needed to see organisations and teams.
const SCOPE: &str = "read:org";
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
const DEVICE_INTERVAL: Duration = Duration::from_secs(5);

/// An OAuth app.
pub(crate) struct GitHub {
    name: String,
    base: Url,
    api: Url,
    client_id: String,
    client_secret: Secret,
    organizations: Vec<String>,
    http: HttpClient,
    slots: Semaphore,
}

#[derive(Deserialize)]
struct User {
    id: u64,
    login: String,
    #[serde(default)]
    name: Option<String>,
}
#[derive(Deserialize)]
struct Organization {
    login: String,
}
#[derive(Deserialize)]
struct Team {
    slug: String,
    organization: Organization,
}
/// GitHub answers refusals with 200 and `error`.
#[derive(Default, Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
}
#[derive(Deserialize)]
struct DeviceAnswer {
    device_code: String,
    user_code: String,
    verification_uri: String,
    expires_in: u64,
    #[serde(default)]
    interval: Option<u64>,
}

impl GitHub {
    pub fn new(name: String, config: &GitHubConfig) -> Result<Self, String> {
        let base_text = config.base_url.as_deref().unwrap_or(GITHUB).trim_end_matches('/');
        let base = checked(base_text).map_err(|why| format!("baseUrl {why}"))?;
        let api = match (&config.api_url, base_text) {
            (Some(api), _) => api.trim_end_matches('/').to_owned(),
            (None, GITHUB) => GITHUB_API.to_owned(),
            (None, enterprise) => format!("{enterprise}/api/v3"),
        };
        let api = checked(&api).map_err(|why| format!("apiUrl {why}"))?;
        if config.organizations.is_empty() {
            return Err("organizations: name at least one, or everybody on GitHub could log in".to_owned());
        }
        let plain = [&base, &api].iter().all(|url| url.scheme() == "http" && stays_here(url));
        Ok(Self {
            name,
            base,
            api,
            client_id: config.client_id.clone(),
            client_secret: secret(&config.client_secret_file)?,
            organizations: config.organizations.iter().map(|o| o.to_lowercase()).collect(),
            http: HttpClient::new(config.ca_file.as_deref(), plain)?,
            slots: Semaphore::new(limits::AT_ONCE),
        })
    }

    fn at(base: &Url, path: &str) -> Result<Url, LoginError> {
        checked(&format!("{}{path}", base.as_str().trim_end_matches('/'))).map_err(LoginError::unavailable)
    }

    async fn token(&self, form: &[(&str, &str)]) -> Result<TokenAnswer, LoginError> {
        let url = Self::at(&self.base, "/login/oauth/access_token")?;
        let (code, answer) = self.http.post(&url, form, None).await?;
        if code.is_server_error() {
            return Err(LoginError::unavailable(format!("{url} answered {code}")));
        }
        serde_json::from_value(answer).map_err(LoginError::unavailable)
    }

    async fn proof(&self, answer: TokenAnswer) -> Result<Proof, LoginError> {
        if let Some(error) = answer.error {
            let why = format!("{error} {}", answer.error_description.unwrap_or_default());
            return Err(match error.as_str() {
                "incorrect_client_credentials" | "redirect_uri_mismatch" | "device_flow_disabled" => {
                    LoginError::unavailable(format!("GitHub refuses this hub: {why}"))
                }
                _ => LoginError::wrong(why),
            });
        }
        let token = answer.access_token.ok_or_else(|| LoginError::unavailable("no access token came"))?;
        self.of(Secret::new(token)).await
    }

    /// Whom an access token stands for, and where they are members.
    async fn of(&self, token: Secret) -> Result<Proof, LoginError> {
        let (user, _) = self.http.get::<User>(&Self::at(&self.api, "/user")?, Some(token.reveal())).await?;
        let organizations: Vec<Organization> = self.all("/user/orgs", &token).await?;
        let mine = |name: &str| self.organizations.contains(&name.to_lowercase());
        let mut groups: Vec<String> = organizations.into_iter().map(|o| o.login).filter(|o| mine(o)).collect();
        if groups.is_empty() {
            let why = format!("GitHub user {:?} is in none of the organisations that may log in here", user.login);
            return Err(LoginError::NotAllowed { why });
        }
        let teams: Vec<Team> = self.all("/user/teams", &token).await?;
        let teams = teams.into_iter().filter(|team| mine(&team.organization.login));
        groups.extend(teams.map(|team| format!("{}/{}", team.organization.login, team.slug)));
        Ok(Proof {
            subject: user.id.to_string(),
            username: user.login,
            display_name: user.name.filter(|name| !name.is_empty()),
            groups: tidy(groups),
            renewal: Some(token),
        })
    }

    /// A list, page by page as `Link` says (RFC 8288).
    async fn all<T: DeserializeOwned>(&self, path: &str, token: &Secret) -> Result<Vec<T>, LoginError> {
        let mut found = Vec::new();
        for page in 1..=limits::PAGES {
            let url = Self::at(&self.api, &format!("{path}?per_page=100&page={page}"))?;
            let (some, headers) = self.http.get::<Vec<T>>(&url, Some(token.reveal())).await?;
            found.extend(some);
            let links = headers.get(http::header::LINK).and_then(|value| value.to_str().ok()).unwrap_or_default();
            if !links.contains("rel=\"next\"") {
                break;
            }
        }
        Ok(found)
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, LoginError>>) -> Result<T, LoginError> {
        let Ok(_slot) = self.slots.try_acquire() else { return Err(LoginError::Busy) };
        let done = tokio::time::timeout(limits::LOGIN, work).await;
        done.map_err(|_| LoginError::unavailable("GitHub took too long"))?
    }

    async fn begin_device(&self) -> Result<DeviceStart, LoginError> {
        let url = Self::at(&self.base, "/login/device/code")?;
        let (code, answer) = self.http.post(&url, &[("client_id", &self.client_id), ("scope", SCOPE)], None).await?;
        if !code.is_success() || answer.get("error").is_some_and(Value::is_string) {
            return Err(LoginError::unavailable(format!("{url} answered {code}: {}", answer["error"])));
        }
        let answer: DeviceAnswer = serde_json::from_value(answer).map_err(LoginError::unavailable)?;
        Ok(DeviceStart {
            device_code: Secret::new(answer.device_code),
            user_code: answer.user_code,
            verification_uri: answer.verification_uri,
            verification_uri_complete: None,
            expires_in: Duration::from_secs(answer.expires_in),
            interval: answer.interval.map_or(DEVICE_INTERVAL, Duration::from_secs),
        })
    }

    async fn poll_device(&self, code: &Secret) -> Result<DevicePoll, LoginError> {
        let form =
            [("client_id", self.client_id.as_str()), ("device_code", code.reveal()), ("grant_type", DEVICE_GRANT)];
        let answer = self.token(&form).await?;
        match answer.error.as_deref() {
            Some("authorization_pending") => Ok(DevicePoll::Pending),
            Some("slow_down") => Ok(DevicePoll::SlowDown),
            _ => Ok(DevicePoll::Done(Box::new(self.proof(answer).await?))),
        }
    }

    async fn redeem(&self, round: &Round, code: &str) -> Result<Proof, LoginError> {
        let form = [
            ("client_id", self.client_id.as_str()),
            ("client_secret", self.client_secret.reveal()),
            ("code", code),
            ("redirect_uri", &round.redirect_uri),
            ("code_verifier", round.verifier.reveal()),
        ];
        let answer = self.token(&form).await?;
        self.proof(answer).await
    }

    async fn ask_again(&self, subject: &str, renewal: Option<&Secret>) -> Result<Still, LoginError> {
        let Some(token) = renewal else { return Err(LoginError::Unsupported) };
        match self.of(token.clone()).await {
            Ok(proof) if proof.subject == subject => Ok(Still::There(Box::new(proof))),
            Ok(_) => Err(LoginError::wrong("the token is somebody else's")),
            Err(LoginError::Wrong { why } | LoginError::NotAllowed { why }) => Ok(Still::Gone { why }),
            Err(error) => Err(error),
        }
    }
}

impl LoginProvider for GitHub {
    fn name(&self) -> &str {
        &self.name
    }
    fn kind(&self) -> &'static str {
        "github"
    }
    fn ways(&self) -> &'static [Way] {
        &[Way::Browser, Way::Device]
    }
    fn browser<'a>(&'a self, round: &'a Round) -> BoxFuture<'a, Result<String, LoginError>> {
        let made = Self::at(&self.base, "/login/oauth/authorize").map(|mut url| {
            url.query_pairs_mut()
                .append_pair("client_id", &self.client_id)
                .append_pair("redirect_uri", &round.redirect_uri)
                .append_pair("scope", SCOPE)
                .append_pair("state", &round.state)
                .append_pair("code_challenge", &pkce::challenge(round.verifier.reveal()))
                .append_pair("code_challenge_method", "S256");
            url.into()
        });
        std::future::ready(made).boxed()
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
        self.bounded(self.ask_again(subject, renewal)).boxed()
    }
}
