//! `moorline doctor`: each thing that can stand between this machine, a hub and a cluster, with verdict and advice.

mod local;
mod network;

use crate::{
    output::{DataArgs, data},
    settings::{KnownHub, Settings},
    target::HubUrl,
    text, tls,
};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// `moorline doctor`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline doctor
  moorline doctor --hub https://hub.example:8443
  moorline doctor --hub https://hub.example:8443 --state-dir /var/lib/moorline-agent --kubeconfig ~/.kube/config

Nothing is changed, and a running agent is not disturbed. Exit code 1 if a check fails.")]
pub struct Args {
    /// The hub [default: the agent's, or the one of the last `moorline login`]
    #[arg(long, value_name = "URL", env = "MOORLINE_HUB")]
    hub: Option<HubUrl>,
    /// PEM file of the hub's authority [default: the one kept at login or by the agent]
    #[arg(long, value_name = "FILE", env = "MOORLINE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Also check the agent that keeps its state here
    #[arg(long, value_name = "DIR", env = "MOORLINE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Also check the API server of this kubeconfig
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Its context [default: the current one]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,
    /// Longest time for each check
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = text::duration)]
    timeout: Duration,
    #[command(flatten)]
    form: DataArgs,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but not as it could, or not for everyone.
    Warn,
    /// Does not work.
    Fail,
    /// Could not be checked, because of another check or because nothing names it.
    Skip,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    /// As it should be.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, detail: detail.into(), advice: None }
    }
    /// Works, but.
    pub fn warn(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, detail: detail.into(), advice: Some(advice.into()) }
    }
    /// Does not work.
    pub fn fail(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, detail: detail.into(), advice: Some(advice.into()) }
    }
    /// Was not checked.
    pub fn skip(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Skip, detail: detail.into(), advice: None }
    }
}

/// `moorline doctor`
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = Settings::load()?;
    let known = match &args.hub {
        Some(url) => settings.hub(&url.to_string()).cloned(),
        None => settings.current().cloned(),
    };
    let agent = args.state_dir.as_deref().and_then(local::AgentFacts::read);
    // Somebody who points at an agent's state wants to know about that agent's hub.
    let of_agent = || agent.as_ref().and_then(|agent| agent.hub.parse().ok());
    let of_login = || known.as_ref().and_then(|hub| hub.url.parse().ok());
    let url = args.hub.clone().or_else(of_agent).or_else(of_login);
    let roots = roots(&args, agent.as_ref(), known.as_ref())?;
    let mut checks = vec![local::proxy(url.as_ref())];
    match &url {
        Some(url) => checks.extend(network::checks(url, roots.as_deref(), args.timeout).await),
        None => checks.push(Check::fail("hub", "no hub is known", "name it: moorline doctor --hub https://HUB:8443")),
    }
    checks.push(local::login(known.as_ref(), args.timeout).await);
    if let Some(dir) = &args.state_dir {
        checks.extend(local::agent_state(dir));
    }
    checks.push(local::api_server(args.kubeconfig.as_deref(), args.context.as_deref(), args.timeout).await);
    show(&args, &checks)?;
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The authorities that this machine knows for the hub, PEM.
fn roots(args: &Args, agent: Option<&local::AgentFacts>, known: Option<&KnownHub>) -> anyhow::Result<Option<String>> {
    if let Some(file) = &args.ca_file {
        return tls::ca_from_file(file).map(Some);
    }
    let of_agent = agent.and_then(local::AgentFacts::bundle);
    Ok(of_agent.or_else(|| known.map(|hub| hub.ca.clone())))
}

fn show(args: &Args, checks: &[Check]) -> anyhow::Result<()> {
    if let Some(form) = args.form.form {
        return Ok(text::print(&data(&serde_json::json!({ "checks": checks }), form)?)?);
    }
    Ok(text::print(&checks.iter().map(line).collect::<String>())?)
}

fn line(check: &Check) -> String {
    let (colour, word) = match check.verdict {
        Verdict::Ok => ("\u{1b}[32m", "ok"),
        Verdict::Warn => ("\u{1b}[33m", "warn"),
        Verdict::Fail => ("\u{1b}[31m", "FAIL"),
        Verdict::Skip => ("\u{1b}[2m", "skip"),
    };
    let advice = check.advice.as_ref().map(|advice| format!("              -> {}\n", text::clean(advice)));
    let (name, detail) = (check.name, text::clean(&check.detail));
    format!("{colour}{word:4}\u{1b}[0m  {name:7} {detail}\n{}", advice.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_verdict_name_and_advice() {
        let text = line(&Check::fail("tcp", "refused\u{7}", "start it"));
        assert_eq!(text, "\u{1b}[31mFAIL\u{1b}[0m  tcp     refused\\u{7}\n              -> start it\n");
    }
}
