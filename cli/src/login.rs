//! `moorline login`, `logout`, `whoami`.

use crate::{
    client::{ApiError, Client, field, tls_words},
    failure::{advise, usage},
    output::{DataArgs, data},
    providers::{self, ProviderArgs, Way},
    session,
    settings::{KnownHub, Secret, Settings},
    target::{HubArgs, HubUrl},
    text,
    tls::{self, Pin},
};
use anyhow::Context;
use http::{Method, StatusCode};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// Longest time for each step of a login. Passwords are slow to check by design.
const STEP: Duration = Duration::from_secs(30);

/// `moorline login`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline login https://hub.example:8443
  moorline login https://hub.example:8443 --user anna --ca-pin sha256:4f2a…
  moorline login --user ci --password-stdin < password.txt
  pass show moorline/key | moorline login https://hub.example:8443 --ca-file ca.crt --token-stdin
  moorline login --list                                   the login providers of the hub
  moorline login --provider corp --user anna              a password of the company's directory
  moorline login --provider sso                           by browser; --device: with a code, from any machine

The login is kept in $XDG_CONFIG_HOME/moorline/config.yaml, readable by you alone.
Programs need no login: they set MOORLINE_HUB, MOORLINE_CA_FILE and MOORLINE_API_KEY.")]
pub struct LoginArgs {
    /// The hub, https://HOST:PORT [default: the current one]
    #[arg(value_name = "HUB-URL", env = "MOORLINE_HUB")]
    hub: Option<HubUrl>,
    /// User name [default: ask]
    #[arg(short, long)]
    user: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Read an API key from standard input instead of a password
    #[arg(long, conflicts_with_all = ["password_stdin", "user", "ttl"])]
    token_stdin: bool,
    #[command(flatten)]
    through: ProviderArgs,
    /// How long the login lasts, such as 8h [default: the hub's rule]
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    ttl: Option<Duration>,
    /// SHA-256 of the hub's authority key, as `moorline hub` prints it at its start
    // The form without a prefix, as join tokens carry it, may begin with a hyphen.
    #[arg(long, value_name = "sha256:HEX", allow_hyphen_values = true, conflicts_with = "ca_file")]
    ca_pin: Option<Pin>,
    /// PEM file of the hub's authority
    #[arg(long, value_name = "FILE", env = "MOORLINE_CA_FILE")]
    ca_file: Option<PathBuf>,
}

/// `moorline login`
pub async fn login(args: LoginArgs) -> anyhow::Result<()> {
    let settings = Settings::load()?;
    let current = settings.current().and_then(|hub| hub.url.parse().ok());
    let Some(url) = args.hub.clone().or(current) else {
        return Err(usage("no hub named", "say which: moorline login https://HUB:8443"));
    };
    let known = settings.hub(&url.to_string());
    let ca = trust(&args, &url, known).await?;
    let mut hub = KnownHub { url: url.to_string(), ca, ..KnownHub::default() };
    if args.token_stdin {
        hub.token = Some(Secret::new(text::secret_from_stdin()?));
        let me = Client::new(&hub, STEP)?.get("/auth/whoami").await.context("the hub did not take the key")?;
        hub.user = Some(field(&me, "/user")?.to_owned());
    } else if args.through.list {
        return providers::list(&Client::new(&hub, STEP)?).await;
    } else {
        let client = Client::new(&hub, STEP)?;
        let way = providers::way(&client, &args.through).await?;
        let answer = prove(&args, way, &client, known).await?;
        session::take(&mut hub, &answer)?;
    }
    session::forget(&hub.url);
    finish(hub)
}

/// The hub's answer to whoever proved who they are, in the way that their provider wants.
async fn prove(args: &LoginArgs, way: Way, client: &Client, known: Option<&KnownHub>) -> anyhow::Result<Value> {
    let provider = args.through.provider.as_deref().unwrap_or_default();
    match way {
        Way::Browser => return providers::by_browser(client, provider, args.ttl, !args.through.no_browser).await,
        Way::Device => return providers::by_device(client, provider, args.ttl).await,
        Way::Password => {}
    }
    let user = user_name(args, known)?;
    let mut body = json!({ "username": user, "password": password(args, &user)? });
    if let Some(ttl) = args.ttl {
        body["ttlSeconds"] = ttl.as_secs().into();
    }
    if !provider.is_empty() {
        body["provider"] = provider.into();
    }
    match client.call(Method::POST, "/auth/login", Some(&body)).await {
        Err(ApiError::Refused { code: StatusCode::UNAUTHORIZED, .. }) => Err(advise(
            "wrong user name or password",
            "an administrator can set a new one: moorline user set-password; other ways in: moorline login --list",
        )),
        other => Ok(other?),
    }
}

/// Keeps the login.
fn finish(hub: KnownHub) -> anyhow::Result<()> {
    let url = hub.url.clone();
    let until = hub
        .login_expires
        .as_deref()
        .or(hub.expires.as_deref())
        .map(|at| format!(" until {}", text::clean(at)))
        .unwrap_or_default();
    text::say(&format!("Logged in to {url} as {}{until}.", text::clean(hub.user.as_deref().unwrap_or("?"))));
    Settings::change(|settings| settings.remember(hub))?;
    text::say("next: moorline clusters, or moorline kubeconfig --merge");
    Ok(())
}

fn user_name(args: &LoginArgs, known: Option<&KnownHub>) -> anyhow::Result<String> {
    let before = known.and_then(|hub| hub.user.clone());
    match (&args.user, before) {
        (Some(user), _) => Ok(user.clone()),
        (None, Some(user)) if args.password_stdin || !text::can_ask() => Ok(user),
        (None, _) if args.password_stdin || !text::can_ask() => {
            Err(usage("no user named", "say who: moorline login --user NAME"))
        }
        (None, before) => {
            let offer = before.as_ref().map(|user| format!(" [{user}]")).unwrap_or_default();
            let answer = text::ask(&format!("User{offer}: "))?.unwrap_or_default();
            let user = if answer.is_empty() { before.unwrap_or_default() } else { answer };
            if user.is_empty() { Err(usage("no user named", "say who: moorline login --user NAME")) } else { Ok(user) }
        }
    }
}

fn password(args: &LoginArgs, user: &str) -> anyhow::Result<String> {
    if args.password_stdin {
        return text::secret_from_stdin();
    }
    if !text::can_ask() {
        return Err(usage("no terminal to ask for a password", "use --password-stdin or --token-stdin"));
    }
    rpassword::prompt_password(format!("Password of {user}: ")).context("cannot read the password")
}

/// The hub's authority: given, pinned, known from before, or shown to the person and confirmed.
async fn trust(args: &LoginArgs, url: &HubUrl, known: Option<&KnownHub>) -> anyhow::Result<String> {
    match (&args.ca_file, args.ca_pin, known) {
        (Some(file), _, _) => tls::ca_from_file(file),
        (None, Some(pin), _) => fetch_ca(url, pin).await,
        (None, None, Some(hub)) => Ok(followed(url, &hub.ca).await.unwrap_or_else(|| hub.ca.clone())),
        (None, None, None) => {
            let pin = look(url).await?;
            confirm(url, pin)?;
            fetch_ca(url, pin).await
        }
    }
}

/// What a hub that is known says of its authorities, while it replaces one: over a connection that those vouch for that are
/// known, and only if one of them is still among them. Whoever is in front of the hub may have others.
async fn followed(url: &HubUrl, known: &str) -> Option<String> {
    let client = Client::anonymous(url.clone(), tls::trusting(known).ok()?, STEP);
    let reply = client.fetch("/auth/ca", "application/x-pem-file, */*").await.ok()?;
    let pem = String::from_utf8(reply.body.to_vec()).ok()?;
    let (all, known) = (tls::certificates(&pem).ok()?, tls::certificates(known).ok()?);
    all.iter().any(|one| known.contains(one)).then_some(pem)
}

/// The hub's authorities, over a connection that the pin vouches for.
async fn fetch_ca(url: &HubUrl, pin: Pin) -> anyhow::Result<String> {
    let client = Client::anonymous(url.clone(), tls::pinned(pin)?, STEP);
    let reply = client.fetch("/auth/ca", "application/x-pem-file, */*").await?;
    let pem = String::from_utf8(reply.body.to_vec()).context("the hub's authority is not PEM")?;
    let all = tls::certificates(&pem)?;
    if !all.iter().any(|certificate| Pin::of(certificate).is_ok_and(|found| found == pin)) {
        return Err(advise(format!("{url} names an authority other than {pin}"), "compare the pin with the hub's log"));
    }
    Ok(pem)
}

/// The pin of the authority that the server shows, unproven.
async fn look(url: &HubUrl) -> anyhow::Result<Pin> {
    let (peek, config) = tls::Peek::new(b"http/1.1")?;
    let hub = || url.to_string();
    let shown = async {
        let tcp = TcpStream::connect((url.host(), url.port())).await;
        let tcp = tcp.map_err(|source| ApiError::Connect { url: hub(), source })?;
        let name = ServerName::try_from(url.host().to_owned()).context("not a server name")?;
        let refused = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        match (peek.take(), refused) {
            (Some(chain), _) => Ok::<_, anyhow::Error>(chain),
            (None, Err(e)) => Err(ApiError::Tls { url: hub(), why: tls_words(&e) }.into()),
            (None, Ok(_)) => Err(ApiError::NotAHub { url: hub() }.into()),
        }
    };
    let chain = timeout(STEP, shown).await;
    let chain: Vec<_> = chain.unwrap_or_else(|_| Err(ApiError::Timeout { url: hub(), after: STEP }.into()))?;
    match tls::authority(&chain) {
        Some(authority) => Pin::of(authority),
        None => Err(advise(
            format!("{url} shows no authority of its own with its certificate"),
            "if it stands behind another TLS server, give that one's authority: --ca-file FILE",
        )),
    }
}

fn confirm(url: &HubUrl, pin: Pin) -> anyhow::Result<()> {
    if !text::can_ask() {
        return Err(advise(
            format!("{url} is not known yet; it shows the authority {pin}"),
            "compare it with what `moorline hub` printed at its start, then run again with --ca-pin",
        ));
    }
    text::say(&format!("{url} is not known yet. Its authority shows the fingerprint\n\n  {pin}\n"));
    text::say("Compare it with what `moorline hub` printed at its start.");
    match text::ask("Is it the same (yes/no)? ")?.as_deref() {
        Some("yes") => Ok(()),
        _ => {
            Err(advise("not confirmed: nothing was sent and nothing kept", "get the fingerprint from who runs the hub"))
        }
    }
}

/// `moorline logout`
#[derive(Debug, clap::Args)]
pub struct LogoutArgs {
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline logout`: revokes the token at the hub, then forgets it here.
pub async fn logout(args: LogoutArgs) -> anyhow::Result<()> {
    let hub = args.hub.known()?;
    if hub.token.is_none() {
        text::say(&format!("Already logged out of {}.", hub.url));
        return Ok(());
    }
    let client = Client::new(&hub, args.hub.request_timeout)?;
    // The refresh token says which login it is, also where the access token is over.
    let body = hub.refresh.as_ref().map(|refresh| json!({ "refreshToken": refresh.reveal() }));
    let bare = KnownHub { token: None, refresh: None, ..hub.clone() };
    let revoked = match body {
        Some(body) => {
            let client = Client::new(&bare, args.hub.request_timeout)?;
            client.call(Method::POST, "/auth/logout", Some(&body)).await
        }
        None => client.call(Method::POST, "/auth/logout", Some(&json!({}))).await,
    };
    Settings::change(|settings| {
        for known in settings.hubs.iter_mut().filter(|known| known.url == hub.url) {
            *known = KnownHub {
                url: known.url.clone(),
                ca: known.ca.clone(),
                user: known.user.clone(),
                ..KnownHub::default()
            };
        }
    })?;
    session::forget(&hub.url);
    match revoked {
        Ok(_) | Err(ApiError::Refused { code: StatusCode::UNAUTHORIZED, .. }) => {
            text::say(&format!("Logged out of {}.", hub.url));
            Ok(())
        }
        Err(error) => Err(anyhow::Error::from(error)
            .context("the token was forgotten here, but the hub could not be told and takes it until it expires")),
    }
}

/// `moorline whoami`
#[derive(Debug, clap::Args)]
pub struct WhoamiArgs {
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline whoami`
pub async fn whoami(args: WhoamiArgs) -> anyhow::Result<()> {
    let hub = args.hub.known()?;
    let me = args.hub.client()?.get("/auth/whoami").await?;
    if let Some(form) = args.form.form {
        return Ok(text::print(&data(&me, form)?)?);
    }
    let user = text::clean(field(&me, "/user")?);
    let groups = me.get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
    let groups: Vec<_> = groups.iter().filter_map(Value::as_str).map(text::clean).collect();
    let groups = if groups.is_empty() { "<none>".to_owned() } else { groups.join(", ") };
    let expires =
        hub.login_expires.as_deref().or(hub.expires.as_deref()).map_or_else(|| "<unknown>".to_owned(), text::clean);
    Ok(text::print(&format!("User:     {user}\nGroups:   {groups}\nHub:      {}\nExpires:  {expires}\n", hub.url))?)
}
