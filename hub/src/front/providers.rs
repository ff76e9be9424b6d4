//! Logins at providers: by browser and back, by a code typed on another device, and what a person can choose from.

use super::{
    Front,
    answers::{closing, json, login_refused},
};
use crate::{
    audit,
    login::{AtProvider, LoginError, Redeemable, Turn},
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use moorline_logins::{DevicePoll, Round};
use moorline_proxy::{Body, body, status::status_response};
use serde::Deserialize;
use serde_json::json as value;
use std::{collections::HashMap, net::SocketAddr};
use url::{Host, Url, form_urlencoded};

/// Longest state that a program gives along, in bytes.
const STATE: usize = 256;
/// Length of a challenge (RFC 7636 §4.2: SHA-256 as base64url).
const CHALLENGE: usize = 43;
/// Longest text of a provider that is passed on, in bytes.
const WORDS: usize = 500;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Redeem {
    code: String,
    code_verifier: String,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StartDevice {
    provider: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PollDevice {
    device_code: String,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// How polling is getting on.
enum Polled {
    /// RFC 8628 §3.5: `authorization_pending` or `slow_down`.
    Wait(&'static str),
    In(Box<crate::issue::Issued>),
}

fn query(request: &Request<Incoming>) -> HashMap<String, String> {
    form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect()
}

/// A program that sends its browser on by itself: the browser need not trust this hub for that.
fn wants_json(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.starts_with("application/json"))
}

/// Where a program may wait for its browser: on the browser's own machine (RFC 8252 §7.3).
fn loopback(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let here = match url.host()? {
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
        Host::Domain(_) => false,
    };
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (here && plain && url.scheme() == "http" && url.query().is_none()).then_some(url)
}

fn found(to: &str) -> Response<Body> {
    let mut response = Response::new(body::full(""));
    *response.status_mut() = StatusCode::FOUND;
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // What stands in these addresses is for who they lead to alone.
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

impl Front {
    /// `GET /auth/providers`: names and ways, for everybody.
    pub(super) fn list_providers(&self) -> Response<Body> {
        let all: Vec<_> = self
            .logins
            .providers()
            .iter()
            .map(|p| value!({ "name": p.name(), "kind": p.kind(), "ways": p.ways() }))
            .collect();
        json(StatusCode::OK, &value!({ "providers": all }))
    }

    /// `GET /auth/start/PROVIDER?redirect_uri&state&code_challenge`: a browser is sent on.
    pub(super) async fn start_browser(
        &self,
        request: &Request<Incoming>,
        provider: &str,
        remote: SocketAddr,
    ) -> Response<Body> {
        let query = query(request);
        let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let (back, state, challenge) = (get("redirect_uri"), get("state"), get("code_challenge"));
        let Some(back) = loopback(back) else {
            return closing(StatusCode::BAD_REQUEST, "redirect_uri must be http://127.0.0.1:PORT/…");
        };
        if state.is_empty() || STATE < state.len() || challenge.len() != CHALLENGE {
            return closing(StatusCode::BAD_REQUEST, "state and code_challenge (S256) are wanted");
        }
        let begun = async {
            self.logins.attempt_from(remote.ip())?;
            let asked = self.logins.provider(provider)?;
            let round = Round::new(format!("{}/auth/callback/{provider}", self.public_url));
            let to = asked.browser(&round).await.map_err(|e| self.logins.understood(provider, e))?;
            self.logins.rounds.left(AtProvider {
                provider: provider.to_owned(),
                round,
                back: back.into(),
                state: state.to_owned(),
                challenge: challenge.to_owned(),
            });
            Ok::<_, LoginError>(to)
        };
        match begun.await {
            Ok(to) if wants_json(request) => json(StatusCode::OK, &value!({ "location": to })),
            Ok(to) => found(&to),
            Err(error) => login_refused(&error),
        }
    }

    /// `GET /auth/callback/PROVIDER?code&state`: it comes back, and is sent to the program that waits for it.
    pub(super) async fn browser_came_back(
        &self,
        request: &Request<Incoming>,
        provider: &str,
        remote: SocketAddr,
    ) -> Response<Body> {
        let query = query(request);
        let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let Some(at) = self.logins.rounds.came_back(get("state")).filter(|at| at.provider == provider) else {
            return closing(StatusCode::BAD_REQUEST, "this login is over or was not begun here; begin again");
        };
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let result = self.finish_browser(&at, get("code"), get("error"), get("error_description")).await;
        self.logins.count(&result);
        let (user, code) = match &result {
            Ok((user, _)) => (user.clone(), StatusCode::OK),
            Err(error) => (String::new(), login_refused(error).status()),
        };
        self.audit_login("/auth/callback", &user, provider, remote, code);
        let Ok(mut to) = Url::parse(&at.back) else { return closing(StatusCode::BAD_REQUEST, "nobody waits for it") };
        match result {
            Ok((_, code)) => {
                self.logins.lawful(remote.ip());
                to.query_pairs_mut().append_pair("code", &code).append_pair("state", &at.state);
            }
            Err(error) => {
                to.query_pairs_mut()
                    .append_pair("error", "access_denied")
                    .append_pair("error_description", &error.to_string())
                    .append_pair("state", &at.state);
            }
        }
        found(to.as_str())
    }

    async fn finish_browser(
        &self,
        at: &AtProvider,
        code: &str,
        error: &str,
        words: &str,
    ) -> Result<(String, String), LoginError> {
        if !error.is_empty() || code.is_empty() {
            let words: String = words.chars().filter(|c| !c.is_control()).take(WORDS).collect();
            return Err(LoginError::Refused(format!("the provider says: {error} {words}")));
        }
        let provider = self.logins.provider(&at.provider)?;
        let proof = provider.returned(&at.round, code).await.map_err(|e| self.logins.understood(&at.provider, e))?;
        let user = self.logins.admit(&at.provider, &proof).await?;
        let name = user.metadata.name;
        let code = self.logins.rounds.redeemable(Redeemable {
            provider: at.provider.clone(),
            user: name.clone(),
            user_uid: user.metadata.uid,
            challenge: at.challenge.clone(),
        });
        Ok((name, code))
    }

    /// `POST /auth/code`: the program takes its login.
    pub(super) async fn redeem(&self, request: Request<Incoming>, remote: SocketAddr) -> Response<Body> {
        let body = match self.read_of_stranger(request, remote).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Ok(Redeem { code, code_verifier, ttl_seconds }) = serde_json::from_slice(&body) else {
            return status_response(StatusCode::BAD_REQUEST, "the body must be {\"code\", \"codeVerifier\"}");
        };
        let redeemed = async {
            self.logins.attempt_from(remote.ip())?;
            let redeemed = self.logins.rounds.redeem(&code, &code_verifier).ok_or(LoginError::Wrong)?;
            self.logins.lawful(remote.ip());
            let user = self.logins.user_of(&redeemed)?;
            self.logins.issue(&user, &redeemed.provider, ttl_seconds).await
        };
        match redeemed.await {
            Ok(issued) => json(StatusCode::OK, &issued),
            Err(error) => login_refused(&error),
        }
    }

    /// `POST /auth/device`: a code to type on another device (RFC 8628 §3.1).
    pub(super) async fn start_device(&self, request: Request<Incoming>, remote: SocketAddr) -> Response<Body> {
        let body = match self.read_of_stranger(request, remote).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Ok(StartDevice { provider }) = serde_json::from_slice(&body) else {
            return status_response(StatusCode::BAD_REQUEST, "the body must be {\"provider\"}");
        };
        let begun = async {
            self.logins.attempt_from(remote.ip())?;
            let asked = self.logins.provider(&provider)?;
            let start = asked.device().await.map_err(|e| self.logins.understood(&provider, e))?;
            let handle = self.logins.rounds.device(&provider, start.device_code, start.interval, start.expires_in);
            Ok::<_, LoginError>(value!({
                "deviceCode": handle,
                "userCode": start.user_code,
                "verificationUri": start.verification_uri,
                "verificationUriComplete": start.verification_uri_complete,
                "expiresIn": start.expires_in.as_secs(),
                "interval": start.interval.as_secs(),
            }))
        };
        match begun.await {
            Ok(answer) => json(StatusCode::OK, &answer),
            Err(error) => login_refused(&error),
        }
    }

    /// `POST /auth/device/poll`: 202 while nothing has come of it.
    pub(super) async fn poll_device(&self, request: Request<Incoming>, remote: SocketAddr) -> Response<Body> {
        let body = match self.read_of_stranger(request, remote).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let Ok(PollDevice { device_code, ttl_seconds }) = serde_json::from_slice(&body) else {
            return status_response(StatusCode::BAD_REQUEST, "the body must be {\"deviceCode\"}");
        };
        let (provider, code) = match self.logins.rounds.poll(&device_code) {
            Some(Turn::Now { provider, code }) => (provider, code),
            Some(Turn::TooSoon) => return json(StatusCode::ACCEPTED, &value!({ "status": "slow_down" })),
            None => return login_refused(&LoginError::Wrong),
        };
        if self.audit.admit().await.is_err() {
            return self.audit_full();
        }
        let polled = async {
            let asked = self.logins.provider(&provider)?;
            match asked.poll(&code).await.map_err(|e| self.logins.understood(&provider, e))? {
                DevicePoll::Pending => Ok(Polled::Wait("authorization_pending")),
                DevicePoll::SlowDown => {
                    self.logins.rounds.slower(&device_code);
                    Ok(Polled::Wait("slow_down"))
                }
                DevicePoll::Done(proof) => {
                    let user = self.logins.admit(&provider, &proof).await?;
                    Ok(Polled::In(Box::new(self.logins.issue(&user, &provider, ttl_seconds).await?)))
                }
            }
        };
        let result: Result<Polled, LoginError> = polled.await;
        let (user, response) = match &result {
            Ok(Polled::Wait(status)) => return json(StatusCode::ACCEPTED, &value!({ "status": status })),
            Ok(Polled::In(issued)) => (issued.user.clone(), json(StatusCode::OK, issued)),
            Err(error) => (String::new(), login_refused(error)),
        };
        // A provider that is away for a moment ends no login.
        if !matches!(result, Err(LoginError::Away(_) | LoginError::Busy)) {
            self.logins.rounds.polled(&device_code);
        }
        self.logins.count(&result);
        self.audit_login("/auth/device", &user, &provider, remote, response.status());
        response
    }

    /// What was refused unseen is counted, not recorded: nobody fills the log by asking often.
    pub(super) fn audit_login(&self, path: &str, user: &str, provider: &str, remote: SocketAddr, code: StatusCode) {
        if matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return;
        }
        let mut event = audit::event("create", path, user, remote, code.as_u16(), "logins", "");
        if !provider.is_empty() {
            event.annotations.insert("moorline.dev/provider", provider.to_owned());
        }
        self.audit.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_sent_back_to_its_own_machine_alone() {
        for good in ["http://127.0.0.1:4711/", "http://127.0.0.1:4711/back", "http://[::1]:4711/"] {
            assert!(loopback(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "https://127.0.0.1:1/",
            "http://localhost:1/",
            "http://127.0.0.1.example:1/",
            "http://a@127.0.0.1:1/",
            "http://127.0.0.1:1/?a=b",
            "http://127.0.0.1:1/#a",
            "http://192.0.2.1/",
            "javascript:alert(1)",
        ] {
            assert!(loopback(bad).is_none(), "{bad}");
        }
    }
}
