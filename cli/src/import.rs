//! `moorline import`: a cluster that the hub reaches by itself.

use crate::{
    client::{ApiError, Client},
    failure::{advise, usage},
    resource::{Resource, segment},
    target::HubArgs,
    text, yaml,
};
use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How often it is looked whether the cluster is there.
const LOOK: Duration = Duration::from_millis(300);

/// `moorline import`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moorline import edge9 --kubeconfig edge9.yaml
  moorline import edge9 --kubeconfig ~/.kube/config --context edge9 --plugin health --plugin rbac

The hub has to reach the API server. The kubeconfig's user acts for the hub's users there: it needs the right to
impersonate users and groups. Files that it names are put in; programs (exec) are not run at the hub.
To end it: moorline delete cluster edge9")]
pub struct Args {
    /// The cluster's name at the hub
    cluster: String,
    /// The kubeconfig
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Its context [default: the current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// A plugin of the hub that is let in there; can be repeated
    #[arg(long = "plugin", value_name = "NAME")]
    plugins: Vec<String>,
    /// Let nobody change anything there
    #[arg(long)]
    read_only: bool,
    /// Wait at most this long until it is connected
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = text::duration)]
    timeout: Duration,
    #[command(flatten)]
    hub: HubArgs,
}

/// The one context of a kubeconfig, with the content of files in the place of their names.
fn standalone(document: &Value, context: Option<&str>, folder: &Path) -> anyhow::Result<Value> {
    let named = |section: &str, name: &str, content: &str| -> anyhow::Result<Map<String, Value>> {
        let entries = document[section].as_array().into_iter().flatten();
        let entry =
            entries.into_iter().find(|entry| entry["name"] == name).and_then(|entry| entry[content].as_object());
        entry.cloned().with_context(|| format!("the kubeconfig has no {content} {name:?}"))
    };
    let context = context.or_else(|| document["current-context"].as_str()).filter(|name| !name.is_empty());
    let Some(context) = context else {
        return Err(usage("the kubeconfig has no current context", "name one: --context NAME"));
    };
    let chosen = named("contexts", context, "context")?;
    let text = |key: &str| chosen.get(key).and_then(Value::as_str).unwrap_or_default();
    let (mut cluster, mut user) =
        (named("clusters", text("cluster"), "cluster")?, named("users", text("user"), "user")?);
    for program in ["exec", "auth-provider"] {
        if user.contains_key(program) {
            return Err(advise(
                format!("this kubeconfig logs in by a program ({program}), which the hub does not run"),
                "use one with a token or a client certificate, such as of: kubectl create token",
            ));
        }
    }
    for (of, from, to) in [
        (&mut cluster, "certificate-authority", "certificate-authority-data"),
        (&mut user, "client-certificate", "client-certificate-data"),
    ] {
        inline(of, from, to, folder, |bytes| STANDARD.encode(bytes))?;
    }
    inline(&mut user, "client-key", "client-key-data", folder, |bytes| STANDARD.encode(bytes))?;
    inline(&mut user, "tokenFile", "token", folder, |bytes| String::from_utf8_lossy(bytes).trim().to_owned())?;
    Ok(json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "import",
        "clusters": [{ "name": "import", "cluster": cluster }],
        "users": [{ "name": "import", "user": user }],
        "contexts": [{ "name": "import", "context": { "cluster": "import", "user": "import" } }],
    }))
}

fn inline(
    of: &mut Map<String, Value>,
    from: &str,
    to: &str,
    folder: &Path,
    as_text: impl Fn(&[u8]) -> String,
) -> anyhow::Result<()> {
    let Some(name) = of.remove(from) else { return Ok(()) };
    if of.contains_key(to) {
        return Ok(()); // as kubectl: the content goes before the file
    }
    let path = folder.join(name.as_str().unwrap_or_default());
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    of.insert(to.to_owned(), as_text(&bytes).into());
    Ok(())
}

/// The hub refuses it too, but after the import was made: then it would wait for the agents' end to take their place.
async fn alone(client: &Client, cluster: &str) -> anyhow::Result<()> {
    let own = format!("{}?fieldSelector=spec.cluster%3D{}", Resource::Agent.collection(), segment(cluster));
    let all = client.get(&own).await?;
    let names = all["items"].as_array().into_iter().flatten().filter_map(|agent| agent["metadata"]["name"].as_str());
    let others: Vec<&str> = names.filter(|name| *name != format!("{cluster}.import")).take(5).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(advise(
        format!("cluster {cluster} is served by agents of its own: {}", others.join(", ")),
        format!(
            "import it under another name; if they are gone for good: kubectl delete agents.moorline.dev {}",
            others.join(" ")
        ),
    ))
}

/// `moorline import`
pub async fn run(args: Args) -> anyhow::Result<()> {
    let path = &args.kubeconfig;
    let content = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let document: Value = yaml::read(&content).with_context(|| format!("{} is no kubeconfig", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let kubeconfig = yaml::write(&standalone(&document, args.context.as_deref(), folder)?)?;
    let spec = json!({ "kubeconfig": kubeconfig, "plugins": args.plugins, "readOnly": args.read_only });
    let (client, kind) = (args.hub.client()?, Resource::ClusterImport);
    alone(&client, &args.cluster).await?;
    client.create(kind, &kind.object(Some(&args.cluster), spec)).await?;
    let until = Instant::now() + args.timeout;
    loop {
        let import = client.get(&kind.path(&args.cluster)).await?;
        let cluster = match client.get(&Resource::Cluster.path(&args.cluster)).await {
            Err(error) if ApiError::is_not_found(&error) => Value::Null,
            other => other?,
        };
        let of = |object: &Value, wanted: &str| {
            let all = object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
            all.into_iter().find(|c| c["type"] == wanted).cloned().unwrap_or_default()
        };
        let (connected, reachable) = (of(&cluster, "Connected"), of(&import, "Reachable"));
        if connected["status"] == "True" && reachable["status"] == "True" {
            let version = reachable["message"].as_str().unwrap_or_default();
            text::say(&format!("cluster {} imported: Kubernetes {version}.", args.cluster));
            return Ok(());
        }
        if until < Instant::now() {
            let why = [reachable, of(&import, "Running")];
            let why = why.iter().find(|c| c["status"] == "False").and_then(|c| c["message"].as_str());
            return Err(advise(
                format!("cluster {} is imported, and not yet there: {}", args.cluster, why.unwrap_or("no answer")),
                format!("the hub goes on trying; to see: moorline get clusterimports {} -o yaml", args.cluster),
            ));
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_put_in_and_programs_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), "pem").unwrap();
        std::fs::write(dir.path().join("token"), "t0ken\n").unwrap();
        let document = |user: Value| {
            json!({
                "current-context": "a",
                "contexts": [{ "name": "a", "context": { "cluster": "k", "user": "u" } }],
                "clusters": [{ "name": "k", "cluster": { "server": "https://k", "certificate-authority": "ca.pem" } }],
                "users": [{ "name": "u", "user": user }, { "name": "other", "user": { "token": "secret" } }],
            })
        };
        let made = standalone(&document(json!({ "tokenFile": "token" })), None, dir.path()).unwrap();
        assert_eq!(made["clusters"][0]["cluster"]["certificate-authority-data"], "cGVt");
        assert_eq!(made["users"], json!([{ "name": "import", "user": { "token": "t0ken" } }]));
        assert!(standalone(&document(json!({ "exec": {} })), None, dir.path()).is_err());
        assert!(standalone(&document(json!({ "token": "t" })), Some("b"), dir.path()).is_err());
        assert!(standalone(&document(json!({ "client-key": "none" })), None, dir.path()).is_err());
    }
}
