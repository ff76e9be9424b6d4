//! A login at a provider in front of a service: off from the page of the hub's own origin, and back to it.
//!
//! The code that comes back is worth nothing without what this browser keeps in a cookie since it left (RFC 7636): nobody
//! is logged in as somebody else by a link.

use super::{BROWSER, OWN_COOKIE, cookie, encode, escape, redirect, set_cookie};
use crate::{
    front::{Front, answers::login_refused},
    login::{AtProvider, LoginError},
};
use http::{Request, Response};
use hyper::body::Incoming;
use moorline_logins::{Round, Way, pkce};
use moorline_proxy::Body;
use std::{fmt::Write, net::SocketAddr};

const ATTRIBUTES: &str = "Path=/; Secure; HttpOnly; SameSite=Lax";

/// The service that somebody wants to reach, as the page's address says it.
pub(super) struct Wanted<'a> {
    pub authority: &'a str,
    pub state: &'a str,
    pub path: &'a str,
}

impl Wanted<'_> {
    fn query(&self) -> String {
        format!("host={}&state={}&path={}", encode(self.authority), encode(self.state), encode(self.path))
    }
}

impl Front {
    /// Links to providers that a browser can log in at.
    pub(super) fn provider_links(&self, wanted: &Wanted<'_>) -> String {
        let mut html = String::new();
        for provider in self.logins.providers().iter().filter(|p| p.ways().contains(&Way::Browser)) {
            let (name, query) = (provider.name(), wanted.query());
            let to = format!("{BROWSER}?{query}&provider={}", encode(name));
            let _ = write!(html, "<p><a href=\"{}\">Log in with {}</a>", escape(&to), escape(name));
        }
        html
    }

    /// The browser leaves for a provider.
    pub(super) async fn leave_for_provider(
        &self,
        provider: &str,
        wanted: &Wanted<'_>,
        remote: SocketAddr,
    ) -> Response<Body> {
        let verifier = pkce::random();
        let begun = async {
            self.logins.attempt_from(remote.ip())?;
            let asked = self.logins.provider(provider)?;
            let round = Round::new(format!("{}/auth/callback/{provider}", self.public_url));
            let to = asked.browser(&round).await.map_err(|e| self.logins.understood(provider, e))?;
            self.logins.rounds.left(AtProvider {
                provider: provider.to_owned(),
                round,
                back: format!("{}{BROWSER}?{}", self.names.public_url, wanted.query()),
                state: String::new(),
                challenge: pkce::challenge(&verifier),
            });
            Ok::<_, LoginError>(to)
        };
        match begun.await {
            Ok(to) => {
                let mut response = redirect(&to);
                let kept = format!("{OWN_COOKIE}-round={verifier}; {ATTRIBUTES}; Max-Age=600");
                set_cookie(&mut response, &kept);
                response
            }
            Err(error) => login_refused(&error),
        }
    }

    /// It is back, with a code or with the provider's refusal.
    pub(super) async fn back_from_provider(
        &self,
        request: &Request<Incoming>,
        code: &str,
        wanted: &Wanted<'_>,
        remote: SocketAddr,
    ) -> Response<Body> {
        let verifier = cookie(request, "-round").unwrap_or_default().to_owned();
        let redeemed = async {
            self.logins.attempt_from(remote.ip())?;
            let redeemed = self.logins.rounds.redeem(code, &verifier).ok_or(LoginError::Wrong)?;
            self.logins.lawful(remote.ip());
            let user = self.logins.user_of(&redeemed)?;
            self.logins.issue(&user, &redeemed.provider, None).await
        };
        match redeemed.await {
            Ok(issued) => {
                let mut response = redirect(&format!("{BROWSER}?{}", wanted.query()));
                let (token, life) = (issued.token, issued.expires_in);
                set_cookie(&mut response, &format!("{OWN_COOKIE}-login={token}; {ATTRIBUTES}; Max-Age={life}"));
                set_cookie(&mut response, &format!("{OWN_COOKIE}-round=; {ATTRIBUTES}; Max-Age=0"));
                response
            }
            Err(LoginError::Wrong) => {
                self.count_refusal("login_code");
                let words = "This login was not begun in this browser, or took too long. Log in again.";
                self.refused_page(wanted, words)
            }
            Err(error) => self.refused_page(wanted, &error.to_string()),
        }
    }
}
