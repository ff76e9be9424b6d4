//! `Impersonate-*`: what a caller asked for, what the cluster must be asked about it, and what the edge sends.

use crate::identity::{ActAs, Identity, MASTERS};

/// Most groups, and most values of extras, that one request may ask to act with: each is a question to the cluster.
pub const MAX_NAMES: usize = 64;

/// Why the headers of a request give no identity to act as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadImpersonation {
    /// Ambiguous, incomplete or not a header that exists. 400.
    #[error("impersonation: {0}")]
    Malformed(&'static str),
    /// Names a group that nobody acts as. 403.
    #[error("nobody may act as group {0:?} through this hub")]
    Group(String),
    /// A header that some servers would take for another one (`Impersonate_User`). 403.
    #[error("header {0:?} is refused")]
    Twin(String),
}

/// An identity that cannot be said in headers without becoming another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name with control characters, or with a space at its edge, cannot be impersonated")]
pub struct Unspeakable;

/// Lower case, with `_` read as `-`: what some servers make of a header's name (CGI, WSGI), so that a twin is seen as what it is.
pub fn canonical(name: &str) -> String {
    name.chars().map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// Whether the canonical form of a name begins with `prefix`, itself canonical. Asked of every header: no allocation.
pub fn is_spelt_like(name: &str, prefix: &str) -> bool {
    let head = name.as_bytes().get(..prefix.len());
    head.is_some_and(|head| head.iter().zip(prefix.bytes()).all(|(&is, wanted)| fold(is) == wanted))
}

const fn fold(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }
}

/// Whether a header, however it is spelt, speaks of who the caller is or where the call comes from. None of these
/// ever passes from a client to a cluster.
pub fn is_identity_header(name: &str) -> bool {
    const PREFIXES: [&str; 5] = ["impersonate-", "x-remote-", "x-forwarded-", "x-moorline-", "proxy-"];
    const NAMES: [&str; 9] = [
        "authorization",
        "cookie",
        "cookie2",
        "forwarded",
        "via",
        "x-real-ip",
        "x-client-cert",
        "x-ssl-client-cert",
        "x-auth-token",
    ];
    PREFIXES.iter().any(|prefix| is_spelt_like(name, prefix))
        || NAMES.iter().any(|known| name.len() == known.len() && is_spelt_like(name, known))
}

/// Reads the client's `Impersonate-*` out of all headers of a request.
///
/// # Errors
/// See [`BadImpersonation`]. A refused group is told first, whatever else is wrong.
pub fn parse<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Option<ActAs>, BadImpersonation> {
    use BadImpersonation::Malformed;
    let (mut who, mut seen, mut values, mut wrong) = (Identity::default(), false, 0usize, None);
    for (name, value) in headers {
        if !is_spelt_like(name, "impersonate-") {
            continue;
        }
        let canonical = canonical(name);
        let Some(what) = canonical.strip_prefix("impersonate-") else { continue };
        if !canonical.eq_ignore_ascii_case(name) && !what.starts_with("extra-") {
            return Err(BadImpersonation::Twin(name.to_owned()));
        }
        seen = true;
        let value = match std::str::from_utf8(value) {
            Ok(value) if speakable(value) => value,
            _ => {
                wrong = wrong.or(Some("a value is empty or not printable text"));
                continue;
            }
        };
        match what {
            "user" if who.user.is_empty() => who.user = value.to_owned(),
            "uid" if who.uid.is_empty() => who.uid = value.to_owned(),
            "user" | "uid" => wrong = wrong.or(Some("Impersonate-User and Impersonate-Uid can be given once only")),
            "group" if value == MASTERS => return Err(BadImpersonation::Group(value.to_owned())),
            "group" => {
                values += 1;
                who.groups.push(value.to_owned());
            }
            _ => match extra_key(name) {
                Ok(Some(key)) => {
                    values += 1;
                    who.extra.entry(key).or_default().push(value.to_owned());
                }
                Ok(None) => wrong = wrong.or(Some("there is no such Impersonate- header")),
                Err(twin) => return Err(twin),
            },
        }
        if MAX_NAMES < values {
            return Err(Malformed("too many groups or extras"));
        }
    }
    match wrong {
        Some(why) => Err(Malformed(why)),
        None if !seen => Ok(None),
        None if who.user.is_empty() => Err(Malformed("Impersonate-User is missing")),
        None => Ok(Some(ActAs(who))),
    }
}

/// The key of an `Impersonate-Extra-<key>`: lower-case and percent-decoded. `None`: another header.
fn extra_key(name: &str) -> Result<Option<String>, BadImpersonation> {
    const PREFIX: &str = "impersonate-extra-";
    let Some((prefix, key)) = name.split_at_checked(PREFIX.len()) else { return Ok(None) };
    if !prefix.eq_ignore_ascii_case(PREFIX) {
        let twin = canonical(prefix) == PREFIX;
        return if twin { Err(BadImpersonation::Twin(name.to_owned())) } else { Ok(None) };
    }
    let decoded = crate::verb::percent_decode(&key.to_ascii_lowercase());
    let key = decoded.and_then(|bytes| String::from_utf8(bytes).ok()).map(|key| key.to_lowercase());
    match key {
        Some(key) if speakable(&key) => Ok(Some(key)),
        _ => Err(BadImpersonation::Malformed("the key of an extra is malformed")),
    }
}

/// Whether a header's value can carry `text` and nothing is lost on the way.
fn speakable(text: &str) -> bool {
    !text.is_empty() && text.trim() == text && !text.chars().any(char::is_control)
}

/// One question to the cluster, as the fields of a SubjectAccessReview's `resourceAttributes`. The verb is always `impersonate`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Review {
    /// API group: empty for core, or `authentication.k8s.io`.
    pub group: &'static str,
    /// `users`, `groups`, `serviceaccounts`, `userextras` or `uids`.
    pub resource: &'static str,
    /// The key of an extra; empty otherwise.
    pub subresource: String,
    /// Namespace of a service account; empty otherwise.
    pub namespace: String,
    /// Who or what is to be impersonated.
    pub name: String,
}

/// Every question to which the cluster must say yes before the principal may act so: the same that its API server asks
/// (k8s.io/apiserver `endpoints/filters/impersonation.go`).
pub fn required_reviews(act_as: &ActAs) -> Vec<Review> {
    const AUTHN: &str = "authentication.k8s.io";
    let ActAs(who) = act_as;
    let review = |group, resource, subresource: &str, namespace: &str, name: &str| Review {
        group,
        resource,
        subresource: subresource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let account = who.user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let mut all = vec![match account {
        Some((namespace, name)) if !name.contains(':') => review("", "serviceaccounts", "", namespace, name),
        _ => review("", "users", "", "", &who.user),
    }];
    all.extend(who.groups.iter().map(|group| review("", "groups", "", "", group)));
    for (key, values) in &who.extra {
        all.extend(values.iter().map(|value| review(AUTHN, "userextras", key, "", value)));
    }
    if !who.uid.is_empty() {
        all.push(review(AUTHN, "uids", "", "", &who.uid));
    }
    all
}

/// The headers by which the edge tells the API server who it is: name and value, groups one by one, keys of extras percent-encoded.
///
/// # Errors
/// A part of the identity would arrive as something else.
pub fn headers_for(identity: &Identity) -> Result<Vec<(String, String)>, Unspeakable> {
    let mut all = vec![("impersonate-user".to_owned(), identity.user.clone())];
    if !identity.uid.is_empty() {
        all.push(("impersonate-uid".to_owned(), identity.uid.clone()));
    }
    all.extend(identity.groups.iter().map(|group| ("impersonate-group".to_owned(), group.clone())));
    for (key, values) in &identity.extra {
        if !speakable(key) {
            return Err(Unspeakable);
        }
        let name = format!("impersonate-extra-{}", encode_key(key));
        all.extend(values.iter().map(|value| (name.clone(), value.clone())));
    }
    if all.iter().all(|(_, value)| speakable(value)) { Ok(all) } else { Err(Unspeakable) }
}

/// Percent-encodes what cannot stand in a header's name (RFC 9110 §5.6.2 `token`), and `%` itself.
fn encode_key(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for b in key.bytes() {
        // '_' could stand there, but a server that reads it as '-' would see another key.
        if b.is_ascii_alphanumeric() || b"!#$&'*+-.^`|~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &str)]) -> Result<Option<ActAs>, BadImpersonation> {
        parse(headers.iter().map(|(n, v)| (*n, v.as_bytes())))
    }

    #[test]
    fn a_lawful_identity_is_read_whole() {
        let got = read(&[
            ("accept", "*/*"),
            ("Impersonate-User", "bob"),
            ("impersonate-group", "a"),
            ("IMPERSONATE-GROUP", "b"),
            ("Impersonate-Uid", "7"),
            ("Impersonate-Extra-Acme.com%2FTeam", "x"),
            ("impersonate-extra-acme.com%2fteam", "y"),
        ]);
        let Ok(Some(ActAs(who))) = got else { panic!("{got:?}") };
        assert_eq!((who.user.as_str(), who.uid.as_str()), ("bob", "7"));
        assert_eq!(who.groups, ["a", "b"]);
        assert_eq!(who.extra["acme.com/team"], ["x", "y"]);
        assert_eq!(read(&[("accept", "*/*")]), Ok(None));
    }

    #[test]
    fn s03_masters_are_refused_alone_twice_or_with_a_user() {
        let group = ("Impersonate-Group", "system:masters");
        for headers in
            [&[group][..], &[group, group], &[("Impersonate-User", "bob"), group], &[("Impersonate-User", ""), group]]
        {
            assert!(matches!(read(headers), Err(BadImpersonation::Group(_))), "{headers:?}");
        }
    }

    #[test]
    fn s06_twins_and_doubles_are_refused() {
        for name in [
            "Impersonate_User",
            "IMPERSONATE_user",
            "impersonate_extra-a",
            "Impersonate-Extra_a",
            "impersonate_extra_a",
        ] {
            assert!(
                matches!(read(&[("Impersonate-User", "bob"), (name, "x")]), Err(BadImpersonation::Twin(_))),
                "{name}"
            );
            assert!(is_identity_header(name), "{name}");
        }
        for headers in [
            &[("IMPERSONATE-user", "admin"), ("Impersonate-User", "bob")][..],
            &[("Impersonate-Uid", "1"), ("Impersonate-Uid", "1"), ("Impersonate-User", "bob")],
            &[("Impersonate-Group", "a")],
            &[("Impersonate-Uid", "a")],
            &[("Impersonate-Extra-a", "a")],
            &[("Impersonate-User", "")],
            &[("Impersonate-User", " bob")],
            &[("Impersonate-User", "bob"), ("Impersonate-Group", "")],
            &[("Impersonate-User", "bob"), ("Impersonate-Nonsense", "a")],
            &[("Impersonate-User", "bob"), ("Impersonate-Extra-", "a")],
            &[("Impersonate-User", "bob"), ("Impersonate-Extra-%zz", "a")],
        ] {
            assert!(matches!(read(headers), Err(BadImpersonation::Malformed(_))), "{headers:?}");
        }
        let many: Vec<_> =
            std::iter::once(("Impersonate-User", "b")).chain((0..65).map(|_| ("Impersonate-Group", "g"))).collect();
        assert!(read(&many).is_err());
    }

    #[test]
    fn s05_headers_of_identity_are_known_in_any_spelling() {
        for name in [
            "X-Remote-User",
            "x_remote_group",
            "X-REMOTE-EXTRA-a",
            "X-Forwarded-User",
            "Authorization",
            "Cookie",
            "Forwarded",
            "Via",
            "Proxy-Authorization",
            "Proxy_Connection",
            "X-Moorline-Principal",
            "X-Real-IP",
        ] {
            assert!(is_identity_header(name), "{name}");
        }
        for name in ["Accept", "User-Agent", "X-Stream-Protocol-Version", "Audit-ID", "Kubectl-Command", "Traceparent"]
        {
            assert!(!is_identity_header(name), "{name}");
        }
    }

    #[test]
    fn the_cluster_is_asked_what_its_api_server_would_ask() {
        let mut who = Identity::new("system:serviceaccount:ns:builder", ["ops"]);
        who.uid = "u1".into();
        who.extra.insert("scope".into(), vec!["a".into(), "b".into()]);
        let asked = required_reviews(&ActAs(who));
        let short: Vec<_> =
            asked.iter().map(|r| (r.resource, r.subresource.as_str(), r.namespace.as_str(), r.name.as_str())).collect();
        assert_eq!(
            short,
            [
                ("serviceaccounts", "", "ns", "builder"),
                ("groups", "", "", "ops"),
                ("userextras", "scope", "", "a"),
                ("userextras", "scope", "", "b"),
                ("uids", "", "", "u1"),
            ]
        );
        assert_eq!(required_reviews(&ActAs(Identity::new("bob", [""; 0])))[0].resource, "users");
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        let mut who = Identity::new("bob", ["a", "ü b"]);
        who.uid = "u".into();
        who.extra.insert("acme.com/a_b%c".into(), vec!["x".into()]);
        let said = headers_for(&who).unwrap();
        assert_eq!(parse(said.iter().map(|(n, v)| (n.as_str(), v.as_bytes()))), Ok(Some(ActAs(who))));
        for bad in ["", " a", "a ", "a\r\nImpersonate-Group: system:masters", "a\0"] {
            assert_eq!(headers_for(&Identity::new(bad, [""; 0])), Err(Unspeakable), "{bad:?}");
            assert_eq!(headers_for(&Identity::new("bob", [bad])), Err(Unspeakable), "{bad:?}");
        }
    }
}
