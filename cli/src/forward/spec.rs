//! What is to be forwarded, as people type it.

use moorline_proto::inside::{BadDestination, Destination};

/// What arrives at the local port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// One local port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where to.
    pub to: Destination,
    /// What.
    pub kind: Kind,
    /// The local port; 0: any.
    pub local: u16,
}

/// Words that name no forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    /// A port before any target.
    #[error("{0:?} is a port, and no target stands before it")]
    NoTarget(String),
    /// A target that needs ports.
    #[error("{0} needs a port: {0} PORT, LOCAL:REMOTE or :REMOTE")]
    NoPort(String),
    /// A port that is none.
    #[error("{0:?} is no port: PORT, LOCAL:REMOTE or :REMOTE")]
    BadPort(String),
    /// A kind of object that has no address of its own.
    #[error("{0}: only services and pods are forwarded to; name the service in front of it, or one of its pods")]
    OtherKind(String),
    /// A target that is none.
    #[error("{0:?}: {1}")]
    BadTarget(String, BadDestination),
}

/// A target whose ports are still to come.
#[derive(Clone)]
enum Place {
    Service(String, String),
    Pod(String, String),
    Host(String, u16),
}

impl Place {
    fn at(&self, port: &str) -> Result<Destination, BadDestination> {
        match self {
            Self::Service(namespace, name) => Destination::service(namespace, name, port),
            Self::Pod(namespace, name) => Destination::pod(namespace, name, port),
            Self::Host(host, port) => Destination::host(host, *port),
        }
    }
}

/// Reads targets, each with the ports that follow it.
pub fn parse(words: &[String], namespace: &str) -> Result<Vec<Forward>, BadSpec> {
    let mut all = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if is_port(word) {
            return Err(BadSpec::NoTarget(word.clone()));
        }
        let (kind, place) = target(word, namespace)?;
        let bad = |e| BadSpec::BadTarget(word.clone(), e);
        let before = all.len();
        while let Some(port) = words.next_if(|next| is_port(next)) {
            let wrong = || BadSpec::BadPort(port.clone());
            let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
            let (local, remote) = match (&place, port.split_once(':')) {
                (Place::Host(_, remote), None) => (number(port)?, remote.to_string()),
                (_, Some(("", remote))) => (0, remote.to_owned()),
                (_, Some((local, remote))) => (number(local)?, remote.to_owned()),
                // A name has no number of its own: any local port will do.
                (_, None) => (port.parse().unwrap_or(0), port.clone()),
            };
            if let Place::Host(_, fixed) = &place
                && remote != fixed.to_string()
            {
                return Err(wrong());
            }
            all.push(Forward { to: place.at(&remote).map_err(|_| wrong())?, kind, local });
        }
        match &place {
            _ if before < all.len() => {}
            Place::Host(_, port) => all.push(Forward { to: place.at("").map_err(bad)?, kind, local: *port }),
            _ => {
                place.at("1").map_err(bad)?;
                return Err(BadSpec::NoPort(word.clone()));
            }
        }
    }
    Ok(all)
}

/// A word that is no target: `80`, `8080:80`, `:80`, `8080:http`, `http` after a target is none either.
fn is_port(word: &str) -> bool {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !word.contains('/')
        && match word.split_once(':') {
            Some((local, _)) => number(local),
            None => number(word),
        }
}

fn target(word: &str, namespace: &str) -> Result<(Kind, Place), BadSpec> {
    let (kind, rest) = match word.strip_prefix("udp/") {
        Some(rest) => (Kind::Udp, rest),
        None => (Kind::Tcp, word),
    };
    let (of, name) = match rest.split_once('/') {
        // kubectl's own short form: a bare name is a pod's.
        None if kind == Kind::Tcp => ("pod", rest),
        None => ("tcp", rest),
        Some(pair) => pair,
    };
    let (ns, bare) = name.split_once('/').map_or((namespace, name), |(ns, name)| (ns, name));
    let place = match of {
        "svc" | "service" | "services" => Place::Service(ns.into(), bare.into()),
        "pod" | "pods" | "po" => Place::Pod(ns.into(), bare.into()),
        "tcp" | "host" => {
            let bad = |e| BadSpec::BadTarget(word.to_owned(), e);
            let (host, port) = name.rsplit_once(':').ok_or_else(|| BadSpec::NoPort(format!("{word}:PORT")))?;
            let port = port.parse().map_err(|_| BadSpec::BadPort(port.to_owned()))?;
            Destination::host(host, port).map_err(bad)?;
            Place::Host(host.into(), port)
        }
        _ => return Err(BadSpec::OtherKind(word.to_owned())),
    };
    Ok((kind, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, BadSpec> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let shown = |f: &Forward| format!("{:?} {} {}", f.kind, f.local, f.to);
        parse(&words, "shop").map(|all| all.iter().map(shown).collect())
    }

    #[test]
    fn targets_and_ports_read_as_kubectl_users_type_them() {
        for (text, want) in [
            ("svc/monitoring/grafana 3000:80", &["Tcp 3000 svc/monitoring/grafana:80"][..]),
            (
                "svc/web 80 :443 8080:http",
                &["Tcp 80 svc/shop/web:80", "Tcp 0 svc/shop/web:443", "Tcp 8080 svc/shop/web:http"],
            ),
            ("web-0 8080", &["Tcp 8080 pod/shop/web-0:8080"]),
            ("service/a/b 1 po/c 2 pods/d/e.f 3", &["Tcp 1 svc/a/b:1", "Tcp 2 pod/shop/c:2", "Tcp 3 pod/d/e.f:3"]),
            ("tcp/10.0.0.5:5432", &["Tcp 5432 host/10.0.0.5:5432"]),
            ("tcp/10.0.0.5:5432 15432 tcp/db.corp:1", &["Tcp 15432 host/10.0.0.5:5432", "Tcp 1 host/db.corp:1"]),
            ("tcp/[fd00::1]:80 8080:80", &["Tcp 8080 host/[fd00::1]:80"]),
            ("udp/svc/kube-system/kube-dns 5353:53", &["Udp 5353 svc/kube-system/kube-dns:53"]),
            ("udp/10.0.0.10:53 0", &["Udp 0 host/10.0.0.10:53"]),
            ("tcp/web.shop.svc:80", &["Tcp 80 svc/shop/web:80"]),
        ] {
            assert_eq!(
                read(text).as_deref(),
                Ok(&want.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_forward_is_told() {
        for bad in [
            "80",
            "svc/web",
            "deploy/web 80",
            "svc/a/b/c 80",
            "svc/web 80:",
            "svc/web 70000:80",
            "tcp/10.0.0.5",
            "tcp/10.0.0.5:x",
            "tcp/10.0.0.5:80 80:81",
            "svc/../x 80",
            "udp/svc/web",
            "tcp/127.1:80",
            "svc/Web 80",
        ] {
            assert!(read(bad).is_err(), "{bad}: {:?}", read(bad));
        }
    }
}
