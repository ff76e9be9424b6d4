//! `moorline auth can-i`: who decides, what they decide, and by which rule.

use crate::{
    client::{ApiError, Client},
    output::{DataArgs, data},
    resource::segment,
    target::HubArgs,
    text,
};
use http::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

/// `moorline auth`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Whether you, or somebody else, may do something in a cluster
    #[command(after_help = "\
Examples:
  moorline auth can-i get pods --cluster edge1 -n shop
  moorline auth can-i create deployments.apps --cluster edge1 --as anna      administrators ask about others
  moorline auth can-i create pods/exec --cluster edge1 -o json

Two decide, one after the other: the hub, by its grants, and the cluster, by the edge policy of
its owner and its own RBAC. About somebody else the RBAC alone is asked. The exit code is 0 for
yes and 1 for no.")]
    CanI(Args),
}

/// `moorline auth can-i`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// get, list, watch, create, update, patch, delete, …
    verb: String,
    /// pods, deployments.apps, pods/exec, … or a path such as /metrics
    resource: String,
    /// One object of this name
    name: Option<String>,
    /// The cluster
    #[arg(long, value_name = "CLUSTER")]
    cluster: String,
    /// The namespace [default: every namespace]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Ask about this user
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    form: DataArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline auth`
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::CanI(args) = command;
    let client = args.hub.client()?;
    let question = json!({ "cluster": args.cluster, "verb": args.verb, "user": args.user });
    let hub = client.call(Method::POST, "/auth/can-i", Some(&question)).await?;
    let yes = hub["allowed"] == true;
    let cluster = if yes && hub["connected"] == true { Some(ask_cluster(&client, &args, &hub).await?) } else { None };
    let allowed = yes && cluster.as_ref().is_some_and(|cluster| cluster["allowed"] == true);
    let code = if allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if let Some(form) = args.form.form {
        text::print(&data(&json!({ "allowed": allowed, "hub": hub, "cluster": cluster }), form)?)?;
        return Ok(code);
    }
    let words = |value: &Value| text::clean(value.as_str().unwrap_or_default());
    let list = |value: &Value| value.as_array().into_iter().flatten().map(words).collect::<Vec<_>>();
    let mut lines = format!("{}\n", if allowed { "yes" } else { "no" });
    lines.push_str(&format!("hub:      {}: {}\n", if yes { "yes" } else { "no" }, words(&hub["reason"])));
    for rule in list(&hub["rules"]) {
        lines.push_str(&format!("          rule: {rule}\n"));
    }
    if yes {
        lines.push_str(&format!("          as:   {} in {}\n", words(&hub["user"]), or_none(&list(&hub["groups"]))));
        if let Some(kept @ ("always" | "withInput")) = hub["record"].as_str() {
            let what = if kept == "always" { "what they show" } else { "what they show and what is typed" };
            lines.push_str(&format!("          terminals are recorded: {what}\n"));
        }
    }
    match &cluster {
        Some(said) => {
            let verdict = if said["allowed"] == true { "yes" } else { "no" };
            let reason = said["reason"].as_str().filter(|reason| !reason.is_empty());
            let reason = reason.map_or_else(|| "no rule of its RBAC permits it".to_owned(), text::clean);
            lines.push_str(&format!("cluster:  {verdict}: {reason}\n"));
        }
        None if yes => lines.push_str("cluster:  not connected, so it cannot be asked\n"),
        None => {}
    }
    text::print(&lines)?;
    Ok(code)
}

fn or_none(list: &[String]) -> String {
    if list.is_empty() { "no group".to_owned() } else { list.join(", ") }
}

/// The cluster's own answer: a SelfSubjectAccessReview, or for somebody else a SubjectAccessReview.
async fn ask_cluster(client: &Client, args: &Args, hub: &Value) -> anyhow::Result<Value> {
    let mut spec = attributes(args);
    let kind = match &args.user {
        None => "SelfSubjectAccessReview",
        Some(user) => {
            // As the API server adds it to everybody who is known.
            let mut groups = hub["groups"].as_array().cloned().unwrap_or_default();
            groups.push("system:authenticated".into());
            (spec["user"], spec["groups"]) = (user.as_str().into(), groups.into());
            "SubjectAccessReview"
        }
    };
    let body = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec });
    let plural = format!("{}s", kind.to_lowercase());
    let path = format!("/k8s/clusters/{}/apis/authorization.k8s.io/v1/{plural}", segment(&args.cluster));
    match client.call(Method::POST, &path, Some(&body)).await {
        Ok(answer) => Ok(answer.get("status").cloned().unwrap_or_default()),
        Err(ApiError::Refused { message, .. }) => Ok(json!({ "allowed": false, "reason": message })),
        Err(error) => Err(error.into()),
    }
}

fn attributes(args: &Args) -> Value {
    if args.resource.starts_with('/') {
        return json!({ "nonResourceAttributes": { "verb": args.verb, "path": args.resource } });
    }
    let (named, subresource) = args.resource.split_once('/').unwrap_or((&args.resource, ""));
    let (resource, group) = named.split_once('.').unwrap_or((named, ""));
    json!({ "resourceAttributes": {
        "verb": args.verb, "resource": resource, "group": group, "subresource": subresource,
        "name": args.name.as_deref().unwrap_or_default(), "namespace": args.namespace.as_deref().unwrap_or_default(),
    } })
}
