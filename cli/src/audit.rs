//! `moorline audit`: who did what, and whether the record of it is whole.

mod replay;

pub use replay::What;

use crate::{
    failure::advise,
    output::{Data, DataArgs, Printer, Table, data},
    resource::segment,
    target::HubArgs,
    text,
};
use anyhow::Context;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Flaws that are shown of one log.
const FLAWS: usize = 100;

/// `moorline audit`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Find records by user, cluster, verb, resource and time
    #[command(after_help = "\
Examples:
  moorline audit search --user anna --since 1h
  moorline audit search --cluster edge1 --verb delete --since 2026-11-20T00:00:00Z --until 2026-11-21T00:00:00Z
  moorline audit search --resource pods/exec -o json")]
    Search(Search),
    /// Check that no record was edited, removed or put elsewhere
    #[command(after_help = "\
Examples:
  moorline audit verify /var/lib/moorline-hub/audit.log

Reads the file and those set aside beside it. The exit code is 1 where anything is wrong. Who can write the files can
also write all of them anew: keep the printed end of the chain elsewhere, and a later run shows whether it is still in.")]
    Verify(Verify),
    /// List what was recorded of sessions in terminals
    #[command(after_help = "\
Examples:
  moorline audit recordings
  moorline audit recordings --user anna --cluster edge1 -o json")]
    Recordings(replay::List),
    /// Show again what a session's terminal showed
    #[command(after_help = "\
Examples:
  moorline audit replay 20261121101500-4f6c1a
  moorline audit replay 20261121101500-4f6c1a --speed 4 --max-pause 1s
  moorline audit replay 20261121101500-4f6c1a --save session.cast     for other players of asciicast

It is checked against the audit log first. Administrators and members of moorline:auditors replay, and that they did is
on record.")]
    Replay(replay::Replay),
    /// Say what is recorded of sessions in a cluster's terminals
    #[command(after_help = "\
Examples:
  moorline audit record edge1 always
  moorline audit record edge1 default

It counts for kubectl exec and attach, and for moorline shell. A grant may ask for more, or take its holders out:
moorline grant create … --record never")]
    Record(replay::Record),
}

/// `moorline audit search`
#[derive(Debug, clap::Args)]
pub struct Search {
    /// Who did it, or as whom it was done
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Where
    #[arg(long, value_name = "CLUSTER")]
    cluster: Option<String>,
    /// What: get, list, create, delete, …
    #[arg(long, value_name = "VERB")]
    verb: Option<String>,
    /// To what: pods, pods/exec, logins, …
    #[arg(long, value_name = "RESOURCE")]
    resource: Option<String>,
    /// From then on: a time, or how long ago, such as 2h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Before then: a time, or how long ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// The newest of them, so many
    #[arg(long, default_value_t = 100)]
    limit: u16,
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline audit verify`
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The log that is written now
    file: PathBuf,
    /// A hash of the chain that was printed before and must still be in it
    // One in 64 begins with a hyphen.
    #[arg(long, value_name = "HASH", allow_hyphen_values = true)]
    holds: Option<String>,
    #[command(flatten)]
    form: DataArgs,
}

fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let ago: Duration = text::duration(text).map_err(|_| "a time such as 2026-11-21T10:00:00Z, or 2h".to_owned())?;
    Timestamp::now().checked_sub(ago).map_err(|e| e.to_string())
}

/// `moorline audit`
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Search(args) => search(args).await.map(|()| ExitCode::SUCCESS),
        Command::Verify(args) => verify(&args),
        Command::Recordings(args) => replay::list(args).await.map(|()| ExitCode::SUCCESS),
        Command::Replay(args) => replay::replay(args).await.map(|()| ExitCode::SUCCESS),
        Command::Record(args) => replay::record(args).await.map(|()| ExitCode::SUCCESS),
    }
}

async fn search(args: Search) -> anyhow::Result<()> {
    let mut query = format!("limit={}", args.limit);
    for (name, value) in
        [("user", args.user), ("cluster", args.cluster), ("verb", args.verb), ("resource", args.resource)]
    {
        query.extend(value.map(|value| format!("&{name}={}", segment(&value))));
    }
    for (name, at) in [("since", args.since), ("until", args.until)] {
        query.extend(at.map(|at| format!("&{name}={}", segment(&at.to_string()))));
    }
    let answer = args.hub.client()?.get(&format!("/auth/audit?{query}")).await?;
    if answer["partial"] == true {
        text::say("not all of the log was read in time: narrow it with --since");
    }
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    match args.form.form {
        // One record a line, as the log has it.
        Some(Data::Json) => Ok(text::print(&items.iter().map(|item| format!("{item}\n")).collect::<String>())?),
        Some(form) => Ok(text::print(&data(&Value::from(items), form)?)?),
        None => {
            let rows = items.iter().map(row).collect();
            let columns = ["Time", "User", "Cluster", "Verb", "What", "Answer"];
            Ok(text::print(&Printer::new(false).render(Table::of(&columns, rows)))?)
        }
    }
}

fn row(item: &Value) -> Vec<String> {
    let get = |pointer: &str| item.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let user = match get("/impersonatedUser/username") {
        as_whom if as_whom.is_empty() => get("/user/username"),
        as_whom => format!("{} as {as_whom}", get("/user/username")),
    };
    let code = item.pointer("/responseStatus/code").map_or_else(|| "begun".to_owned(), Value::to_string);
    vec![
        get("/stageTimestamp"),
        user,
        get("/annotations/moorline.dev~1cluster"),
        get("/verb"),
        get("/requestURI"),
        code,
    ]
}

fn verify(args: &Verify) -> anyhow::Result<ExitCode> {
    use moorline_hub::audit_files::{all, verify};
    let files = all(&args.file);
    if files.is_empty() {
        return Err(advise(
            format!("there is no audit log {}", args.file.display()),
            "it is <data-dir>/audit.log of the hub",
        ));
    }
    let mut report = verify(&args.file, FLAWS).with_context(|| format!("cannot read {}", args.file.display()))?;
    if let Some(hash) = &args.holds {
        let needle = format!("\"hash\":\"{hash}\"");
        let holds = |file: &PathBuf| std::fs::read_to_string(file).is_ok_and(|text| text.contains(&needle));
        if !files.iter().any(holds) {
            report.flaws.push((args.file.clone(), 0, format!("no record has the hash {hash}")));
        }
    }
    let whole = report.flaws.is_empty();
    let code = if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if let Some(form) = args.form.form {
        let flaws: Vec<_> =
            report.flaws.iter().map(|(file, line, what)| json!({ "file": file, "line": line, "what": what })).collect();
        let value = json!({ "whole": whole, "records": report.records, "first": report.first, "files": files.len(),
                            "last": report.end.next.saturating_sub(1), "end": report.end.last, "flaws": flaws });
        text::print(&data(&value, form)?)?;
        return Ok(code);
    }
    for (file, line, what) in &report.flaws {
        let at = if *line == 0 { String::new() } else { format!(":{line}") };
        text::say(&format!("{}{at}: {what}", file.display()));
    }
    for (file, line) in &report.torn {
        text::say(&format!("{}:{line}: cut short by a crash; the records around it follow each other", file.display()));
    }
    let verdict = if whole { "whole" } else { "NOT whole" };
    text::print(&format!(
        "{verdict}: {} records in {} files, from {} to {}\nend of the chain: {}\n",
        report.records,
        files.len(),
        report.first,
        report.end.next.saturating_sub(1),
        text::clean(&report.end.last)
    ))?;
    Ok(code)
}
