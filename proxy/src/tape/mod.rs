//! Sessions in terminals on record: what passes is read beside the stream, and kept as asciicast.

mod cast;
mod spdy;
mod store;
mod taped;
mod told;
mod websocket;

pub use cast::About;
pub use store::{
    Kept, LONGEST_TAKEN, Lost, NoTape, Outbox, Over, Seal, Settings, Store, Take, TakeError, Taking, Tape, is_of,
};
pub use taped::Taped;

use http::{HeaderMap, header};
use moorline_authz::verb::RequestInfo;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    ToCluster,
    /// To the client.
    ToClient,
}

/// What passes cannot be read, so it cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session cannot be recorded: {0}")]
pub struct Unreadable(pub &'static str);

/// What a terminal's protocol says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard<'a> {
    /// Typed, or piped in.
    Typed(&'a [u8]),
    /// Shown, or piped out.
    Shown(&'a [u8]),
    /// The window has so many columns and rows now.
    Resized(u16, u16),
}

/// What a call is, where sessions have to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// No terminal.
    Free,
    /// A terminal whose protocol is known.
    Terminal,
    /// It may be one, and nobody here could read it.
    Unknown,
}

/// What a call is. `upgrade`: it asks for raw bytes both ways.
pub fn sort(info: &RequestInfo, method: &http::Method, path: &str, upgrade: bool) -> Sort {
    let sub = info.subresource.as_str();
    let node = info.resource == "nodes" && (sub == "proxy" || info.verb == "proxy");
    match (info.is_resource, info.resource.as_str(), sub) {
        (false, ..) if path == "/shell" => Sort::Terminal,
        (true, "pods", "exec" | "attach") => Sort::Terminal,
        // A kubelet runs commands for a POST to /run, and has terminals of its own.
        _ if node && (upgrade || !matches!(*method, http::Method::GET | http::Method::HEAD)) => Sort::Unknown,
        (true, "pods", "portforward" | "proxy") | (true, "services", "proxy") => Sort::Free,
        _ if info.endless || !upgrade => Sort::Free,
        // An API that was added to the cluster may have consoles.
        _ => Sort::Unknown,
    }
}

/// Reads one upgraded connection, both directions.
#[derive(Debug)]
pub struct Decoder {
    protocol: Protocol,
    sizes: Vec<u8>,
}

#[derive(Debug)]
enum Protocol {
    WebSocket(websocket::Channels),
    Spdy(Box<spdy::Streams>),
}

/// Longest text of sizes that are not whole yet, in bytes.
const SIZES: usize = 4096;

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

impl Decoder {
    /// By the head of the answer that switched protocols. `None`: one that nobody here reads.
    pub fn of(answer: &HeaderMap) -> Option<Self> {
        let text = |name| answer.get(name).map_or(Some(""), |value: &http::HeaderValue| value.to_str().ok());
        let upgrade = text(header::UPGRADE)?;
        let protocol = if upgrade.eq_ignore_ascii_case("websocket") {
            if answer.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
                return None;
            }
            Protocol::WebSocket(websocket::Channels::of(text(header::SEC_WEBSOCKET_PROTOCOL)?)?)
        } else if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
            Protocol::Spdy(Box::new(spdy::Streams::new()))
        } else {
            return None;
        };
        Some(Self { protocol, sizes: Vec::new() })
    }

    /// Reads on.
    ///
    /// # Errors
    /// Nothing after this can be read.
    pub fn feed(&mut self, way: Way, bytes: &[u8], heard: &mut dyn FnMut(Heard<'_>)) -> Result<(), Unreadable> {
        let Self { protocol, sizes } = self;
        match protocol {
            Protocol::WebSocket(channels) => channels.feed(way, bytes, &mut |channel, bytes| match (way, channel) {
                (Way::ToCluster, 0) => heard(Heard::Typed(bytes)),
                (Way::ToCluster, 4) => resized(sizes, bytes, heard),
                (Way::ToClient, 1 | 2) => heard(Heard::Shown(bytes)),
                _ => {}
            }),
            Protocol::Spdy(streams) => streams.feed(way, bytes, &mut |kind, bytes| match (way, kind) {
                (Way::ToCluster, spdy::StreamKind::Stdin) => heard(Heard::Typed(bytes)),
                (Way::ToCluster, spdy::StreamKind::Resize) => resized(sizes, bytes, heard),
                (Way::ToClient, spdy::StreamKind::Output) => heard(Heard::Shown(bytes)),
                _ => {}
            }),
        }
    }
}

/// Sizes come as JSON, one after the other, however cut.
fn resized(held: &mut Vec<u8>, bytes: &[u8], heard: &mut dyn FnMut(Heard<'_>)) {
    if SIZES < held.len() + bytes.len() {
        held.clear(); // no size is so long: a terminal's picture may be off, and nothing else
        return;
    }
    held.extend_from_slice(bytes);
    let mut sizes = serde_json::Deserializer::from_slice(held).into_iter::<Size>();
    let mut read = 0;
    while let Some(Ok(Size { width, height })) = sizes.next() {
        read = sizes.byte_offset();
        if width != 0 && height != 0 {
            heard(Heard::Resized(width, height));
        }
    }
    held.drain(..read);
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_authz::verb::request_info;

    #[test]
    fn whatever_may_be_a_terminal_is_one() {
        let of = |method: &str, path: &str, upgrade| {
            let (at, query) = path.split_once('?').map_or((path, None), |(at, query)| (at, Some(query)));
            sort(&request_info(method, at, query), &method.parse().unwrap(), at, upgrade)
        };
        for (method, path, upgrade, expected) in [
            ("GET", "/api/v1/namespaces/x/pods/p/exec?command=sh", true, Sort::Terminal),
            ("POST", "/api/v1/namespaces/x/pods/p/attach", true, Sort::Terminal),
            ("POST", "/api/v1/namespaces/x/pods/p%2Fexec", true, Sort::Terminal),
            ("GET", "/shell?columns=80", true, Sort::Terminal),
            ("POST", "/api/v1/namespaces/x/pods/p/portforward", true, Sort::Free),
            ("GET", "/api/v1/namespaces/x/services/s:80/proxy/ws", true, Sort::Free),
            ("GET", "/api/v1/pods?watch=1", true, Sort::Free),
            ("GET", "/api/v1/nodes/n/proxy/exec/x/p/c", true, Sort::Unknown),
            ("POST", "/api/v1/nodes/n/proxy/run/x/p/c", false, Sort::Unknown),
            ("GET", "/api/v1/proxy/nodes/n/exec/x/p/c", true, Sort::Unknown),
            ("GET", "/api/v1/nodes/n/proxy/metrics", false, Sort::Free),
            (
                "GET",
                "/apis/subresources.kubevirt.io/v1/namespaces/x/virtualmachineinstances/v/console",
                true,
                Sort::Unknown,
            ),
            ("POST", "/api/v1/namespaces/x/pods", false, Sort::Free),
        ] {
            assert_eq!(of(method, path, upgrade), expected, "{method} {path} {upgrade}");
        }
    }

    #[test]
    fn sizes_come_however_they_are_cut() {
        let (mut held, mut got) = (Vec::new(), Vec::new());
        for part in ["{\"Width\":8", "0,\"Height\":24}\n{\"Width\":0,\"Height\":0}{\"Wid", "th\":1,\"Height\":2}"] {
            resized(&mut held, part.as_bytes(), &mut |heard| got.push(format!("{heard:?}")));
        }
        assert_eq!(got, ["Resized(80, 24)", "Resized(1, 2)"]);
    }

    #[test]
    fn only_what_is_known_is_read() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            Decoder::of(&headers).is_some()
        };
        assert!(of(&[("upgrade", "SPDY/3.1")]));
        assert!(of(&[("upgrade", "WebSocket"), ("sec-websocket-protocol", "v5.channel.k8s.io")]));
        assert!(!of(&[("upgrade", "websocket"), ("sec-websocket-protocol", "plain.kubevirt.io")]));
        assert!(!of(&[("upgrade", "websocket"), ("sec-websocket-extensions", "permessage-deflate")]));
        assert!(!of(&[("upgrade", "h2c")]) && !of(&[]));
    }
}
