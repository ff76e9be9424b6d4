//! Not GitHub: a stand-in, written from the public description of its OAuth apps and REST API, for nothing of GitHub
//! can run here. It answers what a login asks, refusals with status 200 as GitHub does, lists in pages of two.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};
use tokio::net::TcpListener;
use url::{Url, form_urlencoded};

#[derive(Default)]
struct State {
    /// Code to challenge and redirect.
    codes: HashMap<String, (String, String)>,
    /// Polls so far, of the one device.
    polls: u32,
    revoked: bool,
    /// Organisations of octocat.
    organizations: Vec<String>,
}

pub struct GitHub {
    pub base: String,
    pub dir: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

impl GitHub {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let organizations = ["other", "third", "Acme"].map(str::to_owned).into();
        let state = Arc::new(Mutex::new(State { organizations, ..State::default() }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "app secret\n").unwrap();
        Self { base, dir, state }
    }

    /// octocat takes the app's right back.
    pub fn revoke(&self) {
        self.state.lock().unwrap().revoked = true;
    }

    pub fn leave_all(&self) {
        self.state.lock().unwrap().organizations.clear();
    }

    pub fn yaml(&self) -> String {
        format!(
            "- name: gh\n  github:\n    baseUrl: {}\n    clientId: app\n    clientSecretFile: {}\n    organizations: [acme]\n",
            self.base,
            self.dir.path().join("secret").display()
        )
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let form: HashMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
    let url = Url::parse(&format!("http://x{}", parts.uri)).unwrap();
    let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
    let get = |name: &str| form.get(name).cloned().unwrap_or_default();
    let mut state = state.lock().unwrap();
    let bearer = parts.headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let known = bearer == "Bearer gho_octocat" && !state.revoked;
    let refused = |error: &str| (StatusCode::OK, json!({ "error": error, "error_description": "as GitHub words it" }));
    let (code, value) = match (parts.method.as_str(), url.path()) {
        ("GET", "/login/oauth/authorize") => {
            let code = format!("code-{}", state.codes.len());
            let to = format!("{}?code={code}&state={}", query["redirect_uri"], query["state"]);
            state.codes.insert(code, (query["code_challenge"].clone(), query["redirect_uri"].clone()));
            let response = Response::builder().status(302).header("location", to);
            return Ok(response.body(Full::default()).unwrap());
        }
        ("POST", "/login/oauth/access_token") if get("client_id") != "app" => refused("incorrect_client_credentials"),
        ("POST", "/login/oauth/access_token") if form.contains_key("device_code") => {
            state.polls += 1;
            match state.polls {
                1 => refused("authorization_pending"),
                2 => refused("slow_down"),
                _ => (StatusCode::OK, json!({ "access_token": "gho_octocat", "token_type": "bearer" })),
            }
        }
        ("POST", "/login/oauth/access_token") if get("client_secret") != "app secret" => {
            refused("incorrect_client_credentials")
        }
        ("POST", "/login/oauth/access_token") => match state.codes.remove(&get("code")) {
            Some((challenge, to))
                if challenge == moorline_logins::pkce::challenge(&get("code_verifier"))
                    && to == get("redirect_uri") =>
            {
                (StatusCode::OK, json!({ "access_token": "gho_octocat", "scope": "read:org", "token_type": "bearer" }))
            }
            _ => refused("bad_verification_code"),
        },
        ("POST", "/login/device/code") => (
            StatusCode::OK,
            json!({ "device_code": "dev", "user_code": "WDJB-MJHT", "verification_uri": "https://github.com/login/device",
                    "expires_in": 900, "interval": 5 }),
        ),
        (_, path) if path.starts_with("/api/v3") && !known => {
            (StatusCode::UNAUTHORIZED, json!({ "message": "Bad credentials" }))
        }
        ("GET", "/api/v3/user") => (StatusCode::OK, json!({ "id": 583231, "login": "octocat", "name": "The Octocat" })),
        ("GET", "/api/v3/user/orgs") => {
            let all: Vec<Value> = state.organizations.iter().map(|o| json!({ "login": o, "id": 1 })).collect();
            return Ok(paged(&all, &query));
        }
        ("GET", "/api/v3/user/teams") => {
            let team = |org: &str, slug: &str| json!({ "slug": slug, "name": "x", "organization": { "login": org } });
            let all = [team("other", "secret"), team("third", "x"), team("Acme", "platform")];
            return Ok(paged(&all, &query));
        }
        _ => (StatusCode::NOT_FOUND, json!({ "message": "Not Found" })),
    };
    let response = Response::builder().status(code).header("content-type", "application/json");
    Ok(response.body(Full::from(value.to_string())).unwrap())
}

fn paged(all: &[Value], query: &HashMap<String, String>) -> Response<Full<Bytes>> {
    let page: usize = query.get("page").and_then(|p| p.parse().ok()).unwrap_or(1);
    let some: Vec<&Value> = all.iter().skip((page - 1) * 2).take(2).collect();
    let mut response = Response::builder().header("content-type", "application/json");
    if all.len() > page * 2 {
        response = response.header("link", format!("<http://x/?page={}>; rel=\"next\"", page + 1));
    }
    response.body(Full::from(serde_json::to_string(&some).unwrap())).unwrap()
}
