//! `moorline status`: the hub and its clusters at a glance, causes in words; or the tunnel to one cluster as it is now.

use crate::{
    output::{DataArgs, Printer, Table, data},
    resource::Resource,
    target::HubArgs,
    text, version,
};
use jiff::Timestamp;
use serde_json::{Value, json};

/// `moorline status`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline status              the hub and every cluster
  moorline status edge1        the tunnel to one: what carries it and why, round trip, loss
  moorline status -o json")]
pub struct Args {
    /// The tunnel to this cluster alone, as it is at this moment
    cluster: Option<String>,
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline status`
pub async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    if let Some(cluster) = &args.cluster {
        let link = client.get(&format!("{}/link", Resource::Cluster.path(cluster))).await?;
        let words = args.form.form.map_or_else(|| Ok(sessions(&link, Timestamp::now())), |form| data(&link, form));
        return Ok(text::print(&words?)?);
    }
    // The version endpoint is a nicety: a hub behind a filter that hides it still has a status.
    let hub_version = client.get("/version").await.ok();
    let me = client.get("/auth/whoami").await?;
    let list = client.get(&Resource::Cluster.collection()).await?;
    let clusters = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(form) = args.form.form {
        let url = client.url().to_string();
        let answer = json!({ "hub": { "url": url, "version": hub_version }, "user": me, "clusters": clusters });
        return Ok(text::print(&data(&answer, form)?)?);
    }
    let now = Timestamp::now();
    let version = hub_version.as_ref().and_then(version::of_hub);
    let user = me.get("user").and_then(Value::as_str).unwrap_or("<unknown>");
    let up = clusters.iter().filter(|cluster| connected(cluster).0).count();
    let mut out = format!(
        "Hub:       {} {}\nUser:      {}\nClusters:  {}, {up} connected\n",
        client.url(),
        version.as_deref().unwrap_or("<unknown>"),
        text::clean(user),
        clusters.len(),
    );
    if !clusters.is_empty() {
        let columns = ["Cluster", "State", "Since", "Carrier", "RTT", "Agents", "Endpoint", "Agent", "Kubernetes"];
        let rows = clusters.iter().map(|cluster| row(cluster, now)).collect();
        out.push('\n');
        out.push_str(&Printer::new(false).render(Table::of(&columns, rows)));
    }
    text::print(&out)?;
    if let Some(warning) = version.and_then(|hub| version::skew(version::OWN, &hub)) {
        text::say(&warning);
    }
    Ok(())
}

/// The sessions of one cluster.
fn sessions(link: &Value, now: Timestamp) -> String {
    let all = link["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return "No agent is connected. The agent's log says why; on its host: moorline doctor\n".to_owned();
    }
    let word = |value: &Value| text::clean(value.as_str().unwrap_or_default());
    let rows = all.iter().map(|session| {
        let since = session["connectedSince"].as_str().and_then(|time| time.parse().ok());
        let lost = session["packets"]["lostPercent"].as_f64().map(|percent| format!("{percent:.2}%"));
        let state = match (session["draining"] == true, session["inDoubt"] == true) {
            (true, _) => "Draining",
            (_, true) => "Silent",
            _ => "Connected",
        };
        vec![
            word(&session["agent"]),
            word(&session["role"]),
            state.to_owned(),
            since.map(|then| text::age(then, now)).unwrap_or_default(),
            word(&session["carrier"]),
            format!("{:.1}ms", session["rttMs"].as_f64().unwrap_or_default()),
            lost.unwrap_or_else(|| "-".to_owned()),
            session["openStreams"].to_string(),
            word(&session["why"]),
        ]
    });
    let columns = ["Agent", "Role", "State", "Since", "Carrier", "RTT", "Loss", "Streams", "Why no better carrier"];
    Printer::new(false).render(Table::of(&columns, rows.collect()))
}

/// Whether the cluster is connected, and its state in words.
fn connected(cluster: &Value) -> (bool, String) {
    let conditions = cluster.pointer("/status/conditions").and_then(Value::as_array);
    let condition = conditions.and_then(|all| {
        all.iter().find(|condition| condition.get("type").and_then(Value::as_str) == Some("Connected"))
    });
    let part = |key| condition.and_then(|c| c.get(key)).and_then(Value::as_str).filter(|s| !s.is_empty());
    match part("status") {
        Some("True") => (true, "Connected".into()),
        Some("False") => {
            let why = part("message").or_else(|| part("reason"));
            (false, why.map_or_else(|| "Disconnected".into(), |why| format!("Disconnected: {why}")))
        }
        Some(_) => (false, part("message").unwrap_or("Unknown").to_owned()),
        None => (false, "Never connected".into()),
    }
}

/// How it stands with the way that does not lead through the hub, in words. Nothing, where there is none.
fn endpoint(cluster: &Value) -> String {
    let conditions = cluster.pointer("/status/conditions").and_then(Value::as_array);
    let of = |name: &str| {
        let one = conditions?.iter().find(|one| one.get("type").and_then(Value::as_str) == Some(name))?;
        let word = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
        Some((word("status"), word("reason"), word("message")))
    };
    // Of two causes the one that the other follows from.
    let wrong = ["BundleCurrent", "EndpointReady"].into_iter().filter_map(of).find(|(status, ..)| *status != "True");
    match (wrong, of("EndpointReady")) {
        (Some((_, reason, _)), _) => reason.to_owned(),
        (None, Some((_, "Serving", modes))) => format!("Serving ({modes})"),
        (None, Some((_, reason, _))) => reason.to_owned(),
        (None, None) => String::new(),
    }
}

fn row(cluster: &Value, now: Timestamp) -> Vec<String> {
    let at = |pointer: &str| cluster.pointer(pointer);
    let word = |pointer: &str| match at(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let (up, state) = connected(cluster);
    let since = at(if up { "/status/connectedSince" } else { "/status/lastSeen" }).and_then(Value::as_str);
    let since = since.and_then(|time| time.parse().ok()).map(|time| text::age(time, now));
    let rtt = at("/status/rttMs").and_then(Value::as_f64).filter(|_| up).map(|ms| format!("{ms:.0}ms"));
    vec![
        word("/metadata/name"),
        state,
        since.unwrap_or_default(),
        if up { word("/status/carrier") } else { String::new() },
        rtt.unwrap_or_default(),
        word("/status/agents"),
        endpoint(cluster),
        word("/status/agentVersion"),
        word("/status/kubernetesVersion"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_shows_what_carries_it_and_why() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let link = json!({ "sessions": [
            { "agent": "edge1.a1", "role": "cluster", "connectedSince": "2026-11-21T09:58:00Z", "carrier": "tls",
              "rttMs": 12.34, "openStreams": 3, "why": "quic: no answer\u{1b}[2J" },
            { "agent": "edge1.n1", "role": "node", "connectedSince": "2026-11-21T09:00:00Z", "carrier": "quic",
              "rttMs": 1, "packets": { "lostPercent": 0.5 }, "openStreams": 0, "inDoubt": true },
        ]});
        let shown = sessions(&link, now);
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..9], ["edge1.a1", "cluster", "Connected", "2m", "tls", "12.3ms", "-", "3", "quic:"]);
        assert_eq!(lines[2][..8], ["edge1.n1", "node", "Silent", "60m", "quic", "1.0ms", "0.50%", "0"]);
        assert!(!shown.contains('\u{1b}'), "what an agent says moves no cursor");
        assert!(sessions(&json!({ "sessions": [] }), now).starts_with("No agent is connected"));
    }

    #[test]
    fn an_endpoint_says_how_it_is() {
        let with = |conditions: Value| endpoint(&json!({ "status": { "conditions": conditions } }));
        let one = |name: &str, status: &str, reason: &str, message: &str| json!({ "type": name, "status": status, "reason": reason, "message": message });
        let current = one("BundleCurrent", "True", "Delivered", "");
        assert_eq!(with(json!([])), "");
        assert_eq!(with(json!([current, one("EndpointReady", "True", "Serving", "proxy")])), "Serving (proxy)");
        assert_eq!(with(json!([current, one("EndpointReady", "False", "NoEndpoint", "x")])), "NoEndpoint");
        let gone = one("BundleCurrent", "Unknown", "AgentGone", "x");
        assert_eq!(with(json!([one("EndpointReady", "Unknown", "AgentGone", "x"), gone])), "AgentGone");
    }

    #[test]
    fn a_cluster_that_is_gone_says_why_and_since_when() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let cluster = json!({
            "metadata": {"name": "edge1"},
            "status": {
                "conditions": [{"type": "Connected", "status": "False", "message": "certificate expired"}],
                "lastSeen": "2026-11-21T07:00:00Z", "carrier": "quic", "rttMs": 12, "agents": 0}});
        let row = row(&cluster, now);
        assert_eq!(row[..5], ["edge1", "Disconnected: certificate expired", "3h", "", ""]);
        let cluster = json!({
            "metadata": {"name": "edge1"},
            "status": {
                "conditions": [{"type": "Connected", "status": "True"}],
                "connectedSince": "2026-11-21T09:58:00Z", "carrier": "quic", "rttMs": 12, "agents": 1}});
        assert_eq!(super::row(&cluster, now)[..6], ["edge1", "Connected", "2m", "quic", "12ms", "1"]);
        assert_eq!(connected(&json!({})).1, "Never connected");
    }
}
