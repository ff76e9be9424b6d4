//! Hygiene of headers, both directions (RFC 9110 §7.6.1).

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ALT_SVC, CONNECTION, CONTENT_LENGTH, HOST, SEC_WEBSOCKET_PROTOCOL, TE, TRANSFER_ENCODING, UPGRADE},
};
use moorline_authz::impersonation::{is_identity_header, is_spelt_like};

/// Why a request's headers are refused: 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHeaders {
    /// `Connection` names a header that is not the client's to remove.
    #[error("Connection must not name {0}")]
    ConnectionNames(String),
    /// An upgrade to something else than SPDY/3.1 or WebSocket.
    #[error("upgrade to {0:?} is not possible here")]
    Upgrade(String),
    /// A value that cannot be read.
    #[error("header {0} is malformed")]
    Malformed(&'static str),
}

/// The item of a WebSocket's subprotocols in which browsers hide a bearer token for an API server.
pub const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Leaves in a client's request only what may go to a cluster. Returns whether it asks for an upgrade that is allowed.
///
/// # Errors
/// See [`BadHeaders`].
pub fn clean_request(headers: &mut HeaderMap) -> Result<bool, BadHeaders> {
    clean(headers, &["websocket", "SPDY/3.1"], |name| !is_identity_header(name))
}

/// The same for a service: cookies stay, and so does the wish for trailers, without which there is no gRPC. The only
/// upgrade is to WebSocket.
///
/// # Errors
/// See [`BadHeaders`].
pub fn clean_service_request(headers: &mut HeaderMap) -> Result<bool, BadHeaders> {
    let trailers = headers.get(TE).is_some_and(|value| {
        value.to_str().is_ok_and(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case("trailers")))
    });
    let upgrade = clean(headers, &["websocket"], |name| !is_identity_header(name) || name == "cookie")?;
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(upgrade)
}

fn clean(headers: &mut HeaderMap, protocols: &[&'static str], keep: impl Fn(&str) -> bool) -> Result<bool, BadHeaders> {
    let named = connection_names(headers)?;
    let framing = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING];
    if let Some(name) = named.iter().find(|name| is_identity_header(name) || framing.iter().any(|f| f == name.as_str()))
    {
        return Err(BadHeaders::ConnectionNames(name.clone()));
    }
    let upgrade = match (named.iter().any(|name| name == "upgrade"), wanted(headers, protocols)?) {
        (true, wanted) => wanted,
        (false, _) => None,
    };
    if upgrade.is_some() && headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
        return Err(BadHeaders::Malformed("Content-Length of a request for an upgrade"));
    }
    remove_where(headers, |name| is_hop_by_hop(name, &named) || matches!(name, "host" | "expect") || !keep(name));
    strip_bearer_protocol(headers)?;
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    }
    Ok(upgrade.is_some())
}

/// Removes every header that speaks of who the caller is, however it is spelt.
pub fn strip_identity(headers: &mut HeaderMap) {
    remove_where(headers, is_identity_header);
}

/// Removes what a backend other than the API server must never see: credentials, and words of who the caller is that
/// are not the hub's own. What the hub says itself (`X-Forwarded-*`) stays.
pub fn strip_credentials(headers: &mut HeaderMap) {
    const SAID: [&str; 6] = [
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-forwarded-prefix",
        "x-forwarded-user",
        "x-moorline-identity",
    ];
    remove_where(headers, |name| is_identity_header(name) && name != "cookie" && !SAID.contains(&name));
}

/// Leaves in a cluster's answer only what may go to a client. `upgraded`: a 101 keeps its upgrade headers.
pub fn clean_response(headers: &mut HeaderMap, upgraded: bool) {
    let protocol = headers.get(UPGRADE).cloned().filter(|_| upgraded);
    // An answer cannot make us remove what it does not own: names that cannot be read are left out.
    let named = connection_names(headers).unwrap_or_default();
    remove_where(headers, |name| is_hop_by_hop(name, &named) || name == ALT_SVC || is_spelt_like(name, "x-moorline-"));
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
}

/// The lower-case names that `Connection` lists.
fn connection_names(headers: &HeaderMap) -> Result<Vec<String>, BadHeaders> {
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        let value = value.to_str().map_err(|_| BadHeaders::Malformed("Connection"))?;
        named.extend(value.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()));
    }
    Ok(named)
}

/// What `Upgrade` asks for, if anything: one of `protocols`.
fn wanted(headers: &HeaderMap, protocols: &[&'static str]) -> Result<Option<&'static str>, BadHeaders> {
    let mut values = headers.get_all(UPGRADE).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let known = protocols.iter().find(|name| name.eq_ignore_ascii_case(text.trim()));
    match known {
        Some(name) if values.next().is_none() => Ok(Some(name)),
        _ => Err(BadHeaders::Upgrade(text.into_owned())),
    }
}

/// `name`, in lower case, belongs to one connection alone; `named` are those that `Connection` lists.
fn is_hop_by_hop(name: &str, named: &[String]) -> bool {
    matches!(
        name,
        "connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "http2-settings"
    ) || named.iter().any(|n| n == name)
}

fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn strip_bearer_protocol(headers: &mut HeaderMap) -> Result<(), BadHeaders> {
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        return Ok(());
    }
    let mut kept = Vec::new();
    for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let value = value.to_str().map_err(|_| BadHeaders::Malformed("Sec-WebSocket-Protocol"))?;
        let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
        kept.extend(items.filter(|item| !item.to_ascii_lowercase().starts_with(BEARER_PROTOCOL)).map(str::to_owned));
    }
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if !kept.is_empty() {
        let value =
            HeaderValue::try_from(kept.join(", ")).map_err(|_| BadHeaders::Malformed("Sec-WebSocket-Protocol"))?;
        headers.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        headers.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap())).collect()
    }
    fn cleaned(headers: &[(&str, &str)]) -> Result<(bool, Vec<String>), BadHeaders> {
        let mut map = map(headers);
        let upgrade = clean_request(&mut map)?;
        let mut left: Vec<_> = map.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        left.sort();
        Ok((upgrade, left))
    }

    #[test]
    fn s01_connection_cannot_name_identity() {
        for name in [
            "Impersonate-User",
            "authorization",
            "X-Remote-User",
            "impersonate_group",
            "Host",
            "Content-Length",
            "x-moorline-a",
        ] {
            for value in [name.to_owned(), format!("close, {name}"), format!("keep-alive,{name} ,x")] {
                assert!(matches!(cleaned(&[("connection", &value)]), Err(BadHeaders::ConnectionNames(_))), "{value}");
            }
            assert!(cleaned(&[("connection", "close"), ("connection", name)]).is_err(), "{name} in a second line");
        }
    }

    #[test]
    fn s05_s06_s47_only_what_is_the_clients_own_passes() {
        let (upgrade, left) = cleaned(&[
            ("accept", "*/*"),
            ("user-agent", "kubectl"),
            ("if-none-match", "x"),
            ("traceparent", "t"),
            ("x-my", "1"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("host", "hub"),
            ("expect", "100-continue"),
            ("authorization", "Bearer x"),
            ("cookie", "a"),
            ("proxy-authorization", "x"),
            ("x-remote-user", "a"),
            ("x-remote-extra-a", "a"),
            ("x_remote_group", "a"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-user", "a"),
            ("forwarded", "for=1"),
            ("via", "x"),
            ("impersonate-user", "a"),
            ("impersonate_user", "a"),
            ("impersonate-extra-a", "a"),
            ("x-moorline-principal", "a"),
        ])
        .unwrap();
        assert!(!upgrade);
        assert_eq!(left, ["accept: */*", "if-none-match: x", "traceparent: t", "user-agent: kubectl", "x-my: 1"]);
    }

    #[test]
    fn s31_only_the_two_streaming_protocols_are_upgraded_to() {
        for bad in ["h2c", "TLS/1.0", "websocket, h2c", "", "SPDY/3"] {
            let headers = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", bad), ("http2-settings", "AAMAAABk")];
            assert!(matches!(cleaned(&headers), Err(BadHeaders::Upgrade(_))), "{bad}");
        }
        assert_eq!(
            cleaned(&[("connection", "upgrade"), ("upgrade", "SPDY/3.1")]),
            Ok((true, vec!["upgrade: SPDY/3.1".to_owned()]))
        );
        assert_eq!(
            cleaned(&[("connection", "Upgrade"), ("upgrade", "WebSocket"), ("sec-websocket-key", "k")])
                .map(|(u, l)| (u, l.len())),
            Ok((true, 2))
        );
        assert_eq!(
            cleaned(&[("upgrade", "websocket")]),
            Ok((false, vec![])),
            "without Connection it is no request for one"
        );
        assert!(cleaned(&[("connection", "upgrade"), ("upgrade", "websocket"), ("content-length", "5")]).is_err());
    }

    #[test]
    fn a_token_does_not_hide_among_subprotocols() {
        let protocols = "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0, v4.channel.k8s.io";
        let (_, left) = cleaned(&[("sec-websocket-protocol", protocols)]).unwrap();
        assert_eq!(left, ["sec-websocket-protocol: v5.channel.k8s.io, v4.channel.k8s.io"]);
    }

    #[test]
    fn answers_lose_what_is_between_two_machines() {
        let mut headers = map(&[
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("etag", "e"),
            ("upgrade", "websocket"),
        ]);
        clean_response(&mut headers, false);
        assert_eq!(headers, map(&[("etag", "e")]));
        let mut headers = map(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        let before = headers.clone();
        clean_response(&mut headers, true);
        assert_eq!(headers, before);
    }
}
