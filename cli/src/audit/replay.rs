//! `moorline audit recordings`, `… replay` and `… record`: sessions in terminals on record.

use crate::{
    client::Client,
    failure::{StdoutError, advise},
    output::{Data, DataArgs, Printer, Table, data},
    resource::{Resource, segment},
    target::HubArgs,
    text,
};
use anyhow::Context;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    io::{IsTerminal, Write, stdout},
    path::PathBuf,
    time::Duration,
};

/// Longest wait for a recording: the hub looks its seal up in the audit log.
const PATIENCE: Duration = Duration::from_secs(60);

/// `moorline audit recordings`
#[derive(Debug, clap::Args)]
pub struct List {
    /// Whose session, or as whom
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Where
    #[arg(long, value_name = "CLUSTER")]
    cluster: Option<String>,
    /// The newest, so many
    #[arg(long, default_value_t = 100)]
    limit: u16,
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline audit replay`
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// The recording, as `moorline audit recordings` names it
    name: String,
    /// So many times as fast
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    speed: f64,
    /// Longest pause between two outputs
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = text::duration)]
    max_pause: Duration,
    /// Show all at once; so it is where standard output is no terminal
    #[arg(long)]
    no_wait: bool,
    /// Show control characters instead of letting the terminal obey them
    #[arg(long)]
    plain: bool,
    /// Keep the recording in this file (asciicast v2) and show nothing
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Show it although it is not what the audit log says
    #[arg(long)]
    altered: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "camelCase")]
pub enum What {
    /// Nothing
    Never,
    /// What terminals show
    Always,
    /// And what is typed, passwords included
    WithInput,
    /// What the hub's configuration says
    Default,
}

impl What {
    /// As objects say it.
    pub fn value(self) -> Value {
        match self {
            Self::Never => "never".into(),
            Self::Always => "always".into(),
            Self::WithInput => "withInput".into(),
            Self::Default => Value::Null,
        }
    }
}

/// `moorline audit record`
#[derive(Debug, clap::Args)]
pub struct Record {
    /// The cluster
    cluster: String,
    /// What of sessions that begin from now on
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    hub: HubArgs,
}

pub(super) async fn record(args: Record) -> anyhow::Result<()> {
    let patch = json!({ "spec": { "record": args.what.value() } });
    args.hub.client()?.merge(Resource::Cluster, &args.cluster, &patch).await?;
    text::say(&format!(
        "sessions in terminals of cluster {} that begin from now on are recorded accordingly.",
        args.cluster
    ));
    Ok(())
}

pub(super) async fn list(args: List) -> anyhow::Result<()> {
    let mut query = format!("limit={}", args.limit);
    for (name, value) in [("user", args.user), ("cluster", args.cluster)] {
        query.extend(value.map(|value| format!("&{name}={}", segment(&value))));
    }
    let answer = args.hub.client()?.get(&format!("/auth/recordings?{query}")).await?;
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    match args.form.form {
        Some(Data::Json) => Ok(text::print(&items.iter().map(|item| format!("{item}\n")).collect::<String>())?),
        Some(form) => Ok(text::print(&data(&Value::from(items), form)?)?),
        None => {
            let columns = ["Name", "Started", "User", "Cluster", "What", "KiB", "State"];
            let rows = items.iter().map(row).collect();
            Ok(text::print(&Printer::new(false).render(Table::of(&columns, rows)))?)
        }
    }
}

fn row(item: &Value) -> Vec<String> {
    let get = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
    let user = match get("asUser") {
        none if none.is_empty() => get("user"),
        as_whom => format!("{} as {as_whom}", get("user")),
    };
    let uri = get("requestURI");
    let started = get("started").parse::<Timestamp>().map(|at| text::age(at, Timestamp::now())).unwrap_or_default();
    vec![
        get("name"),
        format!("{started} ago"),
        user,
        get("cluster"),
        uri.split('?').next().unwrap_or_default().to_owned(),
        (item["bytes"].as_u64().unwrap_or_default().div_ceil(1024)).to_string(),
        if item["open"] == true { "open" } else { "over" }.to_owned(),
    ]
}

pub(super) async fn replay(args: Replay) -> anyhow::Result<()> {
    if !(args.speed.is_finite() && args.speed > 0.0) {
        return Err(crate::failure::usage("that is no speed", "it is a number above 0: --speed 2"));
    }
    let client = Client::new(&args.hub.known()?, PATIENCE)?;
    let reply = client.fetch(&format!("/auth/recordings/{}", segment(&args.name)), "application/x-asciicast").await?;
    match reply.headers.get("moorline-seal").and_then(|seal| seal.to_str().ok()) {
        Some("sealed") => text::say("sealed: these are the bytes that the audit log names."),
        Some("open") => text::say("its session goes on; nothing seals it yet."),
        Some("altered") if !args.altered => {
            return Err(advise(
                format!("recording {} is not what the audit log says: it was changed", args.name),
                "to see it all the same: --altered",
            ));
        }
        Some("altered") => text::say("CHANGED: these are not the bytes that the audit log names."),
        _ => text::say("the audit log names no bytes for it any more: nothing proves that they are what was shown."),
    }
    if let Some(file) = &args.save {
        return std::fs::write(file, &reply.body).with_context(|| format!("cannot write {}", file.display()));
    }
    let wait = !args.no_wait && stdout().is_terminal();
    let mut at = 0.0;
    for event in events(&reply.body) {
        let (time, shown) = event.context("the recording cannot be read")?;
        if wait {
            let pause = Duration::try_from_secs_f64((time - at) / args.speed).unwrap_or_default();
            tokio::time::sleep(pause.min(args.max_pause)).await;
        }
        at = time;
        // As it is: what a terminal was sent is sent to this one.
        let shown = if args.plain { lines(&shown) } else { shown };
        let mut out = stdout().lock();
        out.write_all(shown.as_bytes()).and_then(|()| out.flush()).map_err(StdoutError)?;
    }
    Ok(())
}

/// Control characters shown, but for line ends.
fn lines(shown: &str) -> String {
    shown.replace("\r\n", "\n").split('\n').map(text::clean).collect::<Vec<_>>().join("\n")
}

/// Times and what was shown then.
fn events(file: &[u8]) -> impl Iterator<Item = anyhow::Result<(f64, String)>> + '_ {
    let lines = file.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty());
    lines.filter_map(|line| match serde_json::from_slice::<(f64, String, String)>(line) {
        Ok((time, code, text)) => (code == "o").then_some(Ok((time, text))),
        Err(error) => Some(Err(error.into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_played() {
        let file = b"{\"version\":2}\n[0.1, \"o\", \"$ \"]\n[0.2, \"i\", \"x\"]\n[0.3, \"r\", \"80x24\"]\n[0.4, \"o\", \"\\u001b[1mok\\r\\n\"]\n";
        let shown: Vec<_> = events(file).map(|event| event.unwrap()).collect();
        assert_eq!(shown, [(0.1, "$ ".to_owned()), (0.4, "\u{1b}[1mok\r\n".to_owned())]);
        assert_eq!(lines(&shown[1].1), "\\u{1b}[1mok\n");
        assert!(events(b"{}\nnonsense\n").next().unwrap().is_err());
    }
}
