//! `moorline share`: services of one cluster at addresses of another.

use crate::{
    client::{ApiError, Client},
    failure::{advise, usage},
    get::{self, ListArgs},
    output::{Form, FormArgs},
    resource::Resource,
    target::HubArgs,
    text,
};
use http::Method;
use serde_json::{Value, json};
use std::{str::FromStr, time::Duration};
use tokio::time::{Instant, sleep};

/// How often it is looked whether the address is there.
const LOOK: Duration = Duration::from_millis(300);

/// `moorline share`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Let other clusters have a service of a cluster
    #[command(after_help = "\
Examples:
  moorline share export edge1 shop/web 80:http --to edge2
  moorline share export edge1 kube-system/kube-dns 53:dns-tcp 53/udp:dns --to '*'

Several clusters may export the same service: connections go to those that work and are near.")]
    Export(ExportArgs),
    /// Give a cluster an address for a service that others export
    #[command(after_help = "\
Examples:
  moorline share import edge2 shop/web
  moorline share import edge2 apps/payments --from shop/web --from-cluster edge1

It waits until the address is there, or says why it is not. What the cluster's owner does first: docs, \"Services of one
cluster in another\".")]
    Import(ImportArgs),
    /// List exports and imports, and how they are
    List(ListCommand),
    /// Take exports and imports back, and end what goes through them
    #[command(after_help = "\
Examples:
  moorline share delete import/shop-web-edge2 export/shop-web-edge1")]
    Delete(DeleteArgs),
}

/// `NAMESPACE/NAME`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    namespace: String,
    name: String,
}

impl FromStr for Named {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("svc/").unwrap_or(text);
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("a service is NAMESPACE/NAME".to_owned()),
        }
    }
}

/// `PORT[/tcp|/udp][:NAME]`, as the hub takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Port(Value);

impl FromStr for Port {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        const RULE: &str = "a port is NUMBER[/udp][:NAME], such as 80:http or 53/udp:dns";
        let (rest, name) = text.split_once(':').map_or((text, None), |(rest, name)| (rest, Some(name)));
        let (number, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
        let number = number.parse::<u16>().ok().filter(|number| *number != 0).ok_or(RULE)?;
        let mut port = json!({ "port": number });
        match protocol.to_ascii_lowercase().as_str() {
            "tcp" => {}
            "udp" => port["protocol"] = "UDP".into(),
            _ => return Err(RULE.to_owned()),
        }
        match name {
            Some("") => return Err(RULE.to_owned()),
            Some(name) => port["name"] = name.into(),
            None => {}
        }
        Ok(Self(port))
    }
}

/// `moorline share export`
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// The cluster that has the service
    cluster: String,
    /// The service
    #[arg(value_name = "NAMESPACE/NAME")]
    service: Named,
    /// Its ports, as the service numbers them
    #[arg(value_name = "PORT[/udp][:NAME]", required = true)]
    ports: Vec<Port>,
    /// A cluster that may import it, or '*' for every one; can be repeated
    #[arg(long = "to", value_name = "CLUSTER", required = true)]
    to: Vec<String>,
    /// Connections of one client keep to one cluster
    #[arg(long)]
    session_affinity: bool,
    /// Name of the export [default: made from service and cluster]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline share import`
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The cluster that gets the address
    cluster: String,
    /// The service that is made there
    #[arg(value_name = "NAMESPACE/NAME")]
    service: Named,
    /// The exported service, where it is called otherwise
    #[arg(long, value_name = "NAMESPACE/NAME")]
    from: Option<Named>,
    /// A cluster that it comes from; can be repeated [default: all that export it]
    #[arg(long = "from-cluster", value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// Name of the import [default: made from service and cluster]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Wait at most this long until the address is there
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = text::duration)]
    timeout: Duration,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline share list`
#[derive(Debug, clap::Args)]
pub struct ListCommand {
    #[command(flatten)]
    form: FormArgs,
    /// Only objects with these labels, such as env=prod,tier!=test
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    #[command(flatten)]
    hub: HubArgs,
}

/// `moorline share delete`
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// What goes: export/NAME or import/NAME
    #[arg(value_name = "KIND/NAME", required = true, value_parser = object)]
    objects: Vec<(Resource, String)>,
    #[command(flatten)]
    hub: HubArgs,
}

fn object(text: &str) -> Result<(Resource, String), String> {
    let (kind, name) = text.split_once('/').unwrap_or_default();
    // Also as `-o name` prints them.
    let resource = match kind.split('.').next().unwrap_or_default() {
        "export" | "exports" | "serviceexport" | "serviceexports" => Resource::ServiceExport,
        "import" | "imports" | "serviceimport" | "serviceimports" => Resource::ServiceImport,
        _ => return Err("what goes is export/NAME or import/NAME".to_owned()),
    };
    if name.is_empty() { Err("which? moorline share list".to_owned()) } else { Ok((resource, name.to_owned())) }
}

/// `shop-web-edge1`
fn default_name(service: &Named, cluster: &str) -> String {
    format!("{}-{}-{cluster}", service.namespace, service.name)
}

/// `moorline share …`
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Export(args) => export(args).await,
        Command::Import(args) => import(args).await,
        Command::List(args) => list(args).await,
        Command::Delete(args) => delete(args).await,
    }
}

async fn export(args: ExportArgs) -> anyhow::Result<()> {
    let name = args.name.clone().unwrap_or_else(|| default_name(&args.service, &args.cluster));
    let ports: Vec<Value> = args.ports.into_iter().map(|port| port.0).collect();
    let mut spec = json!({
        "cluster": args.cluster, "namespace": args.service.namespace, "service": args.service.name,
        "ports": ports, "importers": args.to,
    });
    if args.session_affinity {
        spec["sessionAffinity"] = "ClientIP".into();
    }
    let kind = Resource::ServiceExport;
    args.hub.client()?.create(kind, &kind.object(Some(&name), spec)).await?;
    text::say(&format!("serviceexport {name} created."));
    Ok(())
}

async fn import(args: ImportArgs) -> anyhow::Result<()> {
    let name = args.name.clone().unwrap_or_else(|| default_name(&args.service, &args.cluster));
    let mut from = serde_json::Map::new();
    if let Some(service) = &args.from {
        from.insert("namespace".to_owned(), service.namespace.clone().into());
        from.insert("service".to_owned(), service.name.clone().into());
    }
    if !args.clusters.is_empty() {
        from.insert("clusters".to_owned(), args.clusters.clone().into());
    }
    let spec = json!({
        "cluster": args.cluster, "namespace": args.service.namespace, "service": args.service.name, "from": from,
    });
    let (client, kind) = (args.hub.client()?, Resource::ServiceImport);
    client.create(kind, &kind.object(Some(&name), spec)).await?;
    text::say(&format!("serviceimport {name} created."));
    wait(&client, &name, args.timeout).await
}

/// Until the address is there, or the time is over.
async fn wait(client: &Client, name: &str, most: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + most;
    loop {
        let now = client.get(&Resource::ServiceImport.path(name)).await?;
        let conditions = now.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        let ready = conditions.into_iter().find(|c| c["type"] == "Ready").cloned().unwrap_or_default();
        if ready["status"] == "True" {
            let word = |at: &str| now.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
            text::say(&format!(
                "{}.{}.svc is at {} in cluster {}, port {}.",
                word("/spec/service"),
                word("/spec/namespace"),
                word("/status/address"),
                word("/spec/cluster"),
                ports(&now),
            ));
            return Ok(());
        }
        if until < Instant::now() {
            let word = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
            let (reason, message) = (word("reason"), word("message"));
            let why = if reason.is_empty() {
                "the hub has said nothing yet".to_owned()
            } else {
                format!("{reason}: {message}")
            };
            return Err(advise(
                format!("serviceimport {name} has no address that leads somewhere: {why}"),
                format!(
                    "the hub goes on trying; to see: moorline share list; to end it: moorline share delete import/{name}"
                ),
            ));
        }
        sleep(LOOK).await;
    }
}

/// `80, 53/UDP`
fn ports(import: &Value) -> String {
    let all = import.pointer("/status/ports").and_then(Value::as_array).into_iter().flatten();
    let shown = |port: &Value| match port["protocol"].as_str() {
        Some(protocol) if protocol != "TCP" => format!("{}/{protocol}", port["port"]),
        _ => port["port"].to_string(),
    };
    all.map(shown).collect::<Vec<_>>().join(", ")
}

async fn list(args: ListCommand) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    if args.form.form == Some(Form::Json) {
        return Err(usage(
            "two lists are not one JSON document",
            "moorline get serviceexports -o json, and serviceimports",
        ));
    }
    for (at, kind) in [Resource::ServiceExport, Resource::ServiceImport].into_iter().enumerate() {
        if at > 0 {
            match args.form.form {
                Some(Form::Name) => {}
                Some(Form::Yaml) => text::print("---\n")?,
                _ => text::print("\n")?,
            }
        }
        let form = FormArgs { form: args.form.form };
        get::list(&client, kind, &ListArgs { name: None, form, selector: args.selector.clone(), watch: false }).await?;
    }
    Ok(())
}

async fn delete(args: DeleteArgs) -> anyhow::Result<()> {
    let client = args.hub.client()?;
    for (resource, name) in &args.objects {
        match client.call(Method::DELETE, &resource.path(name), None).await {
            Err(error) if ApiError::is_not_found(&error) => {
                return Err(advise(
                    format!("there is no {} {name:?}", resource.singular()),
                    "what there is: moorline share list",
                ));
            }
            other => drop(other?),
        }
        text::say(&format!("{} {name} deleted.", resource.singular()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_they_are_shown() {
        let read = |text: &str| text.parse::<Port>().map(|port| port.0);
        assert_eq!(read("80").unwrap(), json!({ "port": 80 }));
        assert_eq!(read("80:http").unwrap(), json!({ "port": 80, "name": "http" }));
        assert_eq!(read("53/udp:dns").unwrap(), json!({ "port": 53, "protocol": "UDP", "name": "dns" }));
        assert_eq!(read("53/TCP").unwrap(), json!({ "port": 53 }));
        for bad in ["", "0", "65536", "http", "80:", "53/sctp", "80/udp:", ":80"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let import = json!({ "status": { "ports": [{ "port": 80, "name": "x" }, { "port": 53, "protocol": "UDP" }] } });
        assert_eq!(ports(&import), "80, 53/UDP");
    }

    #[test]
    fn services_and_objects_have_two_parts() {
        let shop = Named { namespace: "shop".to_owned(), name: "web".to_owned() };
        assert_eq!("shop/web".parse(), Ok(shop.clone()));
        assert_eq!("svc/shop/web".parse(), Ok(shop.clone()));
        assert_eq!(default_name(&shop, "edge1"), "shop-web-edge1");
        for bad in ["web", "/web", "shop/", "a/b/c"] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
        assert_eq!(object("export/a").unwrap(), (Resource::ServiceExport, "a".to_owned()));
        assert_eq!(object("serviceimport.moorline.dev/a").unwrap(), (Resource::ServiceImport, "a".to_owned()));
        for bad in ["a", "export/", "user/a", ""] {
            assert!(object(bad).is_err(), "{bad}");
        }
    }
}
