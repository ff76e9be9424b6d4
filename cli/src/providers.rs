//! Logins at providers: which there are, and the ways through them.

use crate::{
    client::{ApiError, Client, field},
    failure::{advise, usage},
    text,
};
use anyhow::Context;
use http::{Method, StatusCode};
use moorline_hub::logins::pkce;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

/// How long somebody may take in their browser.
const BROWSER: Duration = Duration::from_secs(600);
/// Longest head of a browser's request, in bytes.
const HEAD: usize = 16 * 1024;
/// How long one connection of a browser may take.
const VISIT: Duration = Duration::from_secs(10);
/// RFC 8628 §3.5: how much slower to ask once that is wanted.
const SLOWER: Duration = Duration::from_secs(5);

/// How to log in.
#[derive(Debug, Default, clap::Args)]
pub struct ProviderArgs {
    /// Log in through this provider of the hub [default: local, the hub's own passwords]
    #[arg(short, long, value_name = "NAME", env = "MOORLINE_LOGIN_PROVIDER")]
    pub provider: Option<String>,
    /// Type a code on another device instead of opening a browser here
    #[arg(long)]
    pub device: bool,
    /// Print the address instead of opening a browser
    #[arg(long, conflicts_with = "device")]
    pub no_browser: bool,
    /// List the hub's login providers and do nothing else
    #[arg(long)]
    pub list: bool,
}

/// What a provider takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A name and a password.
    Password,
    /// A browser here.
    Browser,
    /// A code, typed anywhere.
    Device,
}

/// The providers as lines of text.
pub async fn list(client: &Client) -> anyhow::Result<()> {
    let answer = client.get("/auth/providers").await?;
    let mut lines = String::new();
    for provider in answer.pointer("/providers").and_then(Value::as_array).into_iter().flatten() {
        let ways: Vec<_> = provider["ways"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let name = text::clean(field(provider, "/name")?);
        lines.push_str(&format!("{name:<20} {:<18} {}\n", text::clean(field(provider, "/kind")?), ways.join(", ")));
    }
    Ok(text::print(&lines)?)
}

/// How to log in through the provider that was named.
pub async fn way(client: &Client, args: &ProviderArgs) -> anyhow::Result<Way> {
    let Some(name) = &args.provider else {
        if args.device {
            return Err(usage("no provider named", "say which: --provider NAME; the hub's are shown by --list"));
        }
        return Ok(Way::Password);
    };
    let answer = client.get("/auth/providers").await?;
    let all = answer.pointer("/providers").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(found) = all.iter().find(|provider| provider["name"] == name.as_str()) else {
        let names: Vec<_> = all.iter().filter_map(|provider| provider["name"].as_str()).map(text::clean).collect();
        return Err(usage(format!("this hub has no login provider {name:?}"), format!("it has: {}", names.join(", "))));
    };
    let takes = |way: &str| found["ways"].as_array().is_some_and(|ways| ways.iter().any(|w| w == way));
    match (takes("password"), takes("browser"), takes("device")) {
        (_, _, true) if args.device => Ok(Way::Device),
        _ if args.device => Err(usage(format!("provider {name:?} has no device login"), "leave out --device")),
        (true, ..) => Ok(Way::Password),
        // Nobody sits at a browser of a machine that is reached by SSH.
        (_, _, true) if std::env::var_os("SSH_CONNECTION").is_some() && !args.no_browser => Ok(Way::Device),
        (_, true, _) => Ok(Way::Browser),
        (_, _, true) => Ok(Way::Device),
        _ => Err(advise(format!("provider {name:?} has no way that this moorline knows"), "a newer moorline may")),
    }
}

/// A browser goes to the provider and comes back to a port of this machine (RFC 8252). The hub's answer to a login.
pub async fn by_browser(client: &Client, provider: &str, ttl: Option<Duration>, open: bool) -> anyhow::Result<Value> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no port to wait for the browser at")?;
    let (state, verifier) = (pkce::random(), pkce::random());
    let back = format!("http%3A%2F%2F127.0.0.1%3A{}%2F", listener.local_addr()?.port());
    let challenge = pkce::challenge(&verifier);
    let path = format!("/auth/start/{provider}?redirect_uri={back}&state={state}&code_challenge={challenge}");
    let answer = client.get(&path).await?;
    let to = field(&answer, "/location")?;
    if !(open && open_browser(to)) {
        text::say(&format!("Open this address in a browser on this machine:\n\n  {}\n", text::clean(to)));
    } else {
        text::say("A browser is open for you to log in. Without one here: --device");
    }
    let code = timeout(BROWSER, wait_for_browser(&listener, &state)).await;
    let code = code.map_err(|_| advise("nobody came back from the browser", "try again, or with --device"))??;
    let mut body = json!({ "code": code, "codeVerifier": verifier });
    if let Some(ttl) = ttl {
        body["ttlSeconds"] = ttl.as_secs().into();
    }
    Ok(client.call(Method::POST, "/auth/code", Some(&body)).await?)
}

/// The code that a browser brings. Whatever else comes by is turned away.
async fn wait_for_browser(listener: &TcpListener, state: &str) -> anyhow::Result<String> {
    loop {
        let (mut socket, _) = listener.accept().await?;
        let Ok(Ok(target)) = timeout(VISIT, request_target(&mut socket)).await else { continue };
        let query = target.split_once('?').map(|(_, query)| query).unwrap_or_default();
        let get = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).next()
        };
        if get("state").as_deref() != Some(state) {
            let _ = answer(&mut socket, "404 Not Found", "Nothing is here.").await;
            continue;
        }
        return match (get("code"), get("error_description").or_else(|| get("error"))) {
            (Some(code), _) => {
                let _ = answer(&mut socket, "200 OK", "Logged in. You can close this window.").await;
                Ok(code)
            }
            (None, why) => {
                let _ = answer(&mut socket, "403 Forbidden", "Not logged in. The terminal says why.").await;
                let why = why.unwrap_or_else(|| "the provider let nobody in".to_owned());
                Err(advise(why, "try again, or log in another way: moorline login --list"))
            }
        };
    }
}

/// `GET <target> HTTP/1.1`
async fn request_target(socket: &mut TcpStream) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        if HEAD < head.len() || socket.read_buf(&mut head).await? == 0 {
            anyhow::bail!("no request");
        }
    }
    let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["GET", target, _] => Ok(target.to_owned()),
        _ => anyhow::bail!("no GET"),
    }
}

async fn answer(socket: &mut TcpStream, status: &str, words: &str) -> std::io::Result<()> {
    let body = format!("<!doctype html><meta charset=utf-8><title>Moorline</title><p>{words}</p>\n");
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Security-Policy: default-src 'none'\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    socket.shutdown().await
}

/// Percent-encoding and `+` (the URL standard's form encoding) undone.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).unwrap_or(0) as u8;
                let (high, low) = (digit(bytes.next()), digit(bytes.next()));
                out.push(high << 4 | low);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a browser was started.
fn open_browser(address: &str) -> bool {
    use std::process::{Command, Stdio};
    let chosen = std::env::var("BROWSER").ok().filter(|browser| !browser.is_empty());
    let program = match chosen.as_deref() {
        Some(browser) => browser,
        None if cfg!(target_os = "macos") => "open",
        None if cfg!(windows) => "explorer",
        None => "xdg-open",
    };
    if chosen.is_none()
        && cfg!(all(unix, not(target_os = "macos")))
        && ["DISPLAY", "WAYLAND_DISPLAY"].iter().all(|name| std::env::var_os(name).is_none())
    {
        return false;
    }
    let silent = Stdio::null;
    Command::new(program).arg(address).stdin(silent()).stdout(silent()).stderr(silent()).spawn().is_ok()
}

/// A code is shown, typed on any device, and waited for (RFC 8628). The hub's answer to a login.
pub async fn by_device(client: &Client, provider: &str, ttl: Option<Duration>) -> anyhow::Result<Value> {
    let start = client.call(Method::POST, "/auth/device", Some(&json!({ "provider": provider }))).await?;
    let code = text::clean(field(&start, "/userCode")?);
    let plain = field(&start, "/verificationUri")?;
    let whole = start.get("verificationUriComplete").and_then(Value::as_str);
    if text::can_ask()
        && let Some(picture) = qr(whole.unwrap_or(plain))
    {
        text::say(&picture);
    }
    text::say(&format!("On any device open {} and type the code\n\n  {code}\n", text::clean(plain)));
    let seconds = |name: &str, or: u64| Duration::from_secs(start.get(name).and_then(Value::as_u64).unwrap_or(or));
    let (mut every, ends) = (seconds("interval", 5), Instant::now() + seconds("expiresIn", 600));
    let mut body = json!({ "deviceCode": field(&start, "/deviceCode")? });
    if let Some(ttl) = ttl {
        body["ttlSeconds"] = ttl.as_secs().into();
    }
    while Instant::now() < ends {
        sleep(every).await;
        let answer = match client.call(Method::POST, "/auth/device/poll", Some(&body)).await {
            // The hub or the provider is away for a moment: the code is still good.
            Err(ApiError::Refused { code: StatusCode::SERVICE_UNAVAILABLE, .. }) => continue,
            // There are too many behind this address.
            Err(ApiError::Refused { code: StatusCode::TOO_MANY_REQUESTS, .. }) => {
                every += SLOWER;
                continue;
            }
            Err(ApiError::Timeout { .. } | ApiError::Connect { .. } | ApiError::Broken { .. }) => continue,
            other => other?,
        };
        match answer.get("status").and_then(Value::as_str) {
            Some("slow_down") => every += SLOWER,
            Some(_) => {}
            None => return Ok(answer),
        }
    }
    Err(advise("the code was typed nowhere in time", "run it again for a new one"))
}

/// White on black, in a terminal of whatever colours.
const WHITE_ON_BLACK: &str = "\x1b[38;5;231;48;5;16m";
const PLAIN: &str = "\x1b[0m";

/// The address as a QR code of half blocks. What is printed is the light of it, margin included: so it is dark on light also
/// where colours are not shown, on a dark terminal.
fn qr(address: &str) -> Option<String> {
    use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
    let code = QrCode::with_error_correction_level(address, EcLevel::L).ok()?;
    let (printed, left_out) = (Dense1x2::Dark, Dense1x2::Light); // as the library calls a block and a space
    let picture = code.render::<Dense1x2>().dark_color(left_out).light_color(printed).build();
    Some(picture.lines().map(|line| format!("{WHITE_ON_BLACK}{line}{PLAIN}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_brings_is_decoded_whatever_it_is() {
        assert_eq!(decode("a%20b+c%2Fd"), "a b c/d");
        for odd in ["%", "%4", "%zz", "%ff"] {
            decode(odd);
        }
    }

    #[test]
    fn an_address_becomes_a_picture() {
        let picture = qr("https://id.example/device?user_code=WDJB-MJHT").unwrap();
        assert!(picture.lines().count() > 10 && picture.contains('█'), "{picture}");
    }

    #[tokio::test]
    async fn only_the_browser_that_was_sent_is_heard() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let visit = |target: &'static str| async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            let mut all = String::new();
            socket.read_to_string(&mut all).await.unwrap();
            all
        };
        let visits = async {
            assert!(visit("/favicon.ico").await.starts_with("HTTP/1.1 404"));
            assert!(visit("/?code=evil&state=other").await.starts_with("HTTP/1.1 404"));
            assert!(visit("/?code=good&state=mine").await.starts_with("HTTP/1.1 200"));
        };
        let (code, ()) = tokio::join!(wait_for_browser(&listener, "mine"), visits);
        assert_eq!(code.unwrap(), "good");
    }
}
