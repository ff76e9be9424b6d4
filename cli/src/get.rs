//! `moorline get`: lists, single objects and watches of the hub's API.

use crate::{
    client::{ApiError, Client, TABLE},
    failure::usage,
    output::{Data, Form, FormArgs, Printer, Table, data, names},
    resource::Resource,
    target::HubArgs,
    text,
};
use serde_json::Value;
use std::time::Duration;

/// Pause before a watch that the hub ended is opened again.
const AGAIN: Duration = Duration::from_secs(1);

/// `moorline get`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The kind of object
    #[arg(value_enum)]
    pub resource: Resource,
    #[command(flatten)]
    pub list: ListArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// What every list takes.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only this one [default: all]
    pub name: Option<String>,
    #[command(flatten)]
    pub form: FormArgs,
    /// Only objects with these labels, such as env=prod,tier!=test
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Keep going and print each change
    #[arg(short = 'w', long)]
    pub watch: bool,
}

/// `moorline get …`
pub async fn run(args: Args) -> anyhow::Result<()> {
    list(&args.hub.client()?, args.resource, &args.list).await
}

/// Prints objects of a kind, and with `--watch` their changes until interrupted.
pub async fn list(client: &Client, resource: Resource, args: &ListArgs) -> anyhow::Result<()> {
    match args.form.form {
        None | Some(Form::Wide) => table(client, resource, args).await,
        Some(_) if args.watch => {
            Err(usage("-w prints a table and goes with no other form", "leave out -o, or use -o wide"))
        }
        Some(Form::Json) => text::print(&data(&fetch(client, resource, args).await?, Data::Json)?).map_err(Into::into),
        Some(Form::Yaml) => text::print(&data(&fetch(client, resource, args).await?, Data::Yaml)?).map_err(Into::into),
        Some(Form::Name) => text::print(&names(resource, &fetch(client, resource, args).await?)).map_err(Into::into),
    }
}

fn path(resource: Resource, args: &ListArgs) -> String {
    let base = match &args.name {
        Some(name) => resource.path(name),
        None => resource.collection(),
    };
    match &args.selector {
        Some(selector) => format!("{base}?labelSelector={}", crate::resource::segment(selector)),
        None => base,
    }
}

async fn fetch(client: &Client, resource: Resource, args: &ListArgs) -> Result<Value, ApiError> {
    client.get(&path(resource, args)).await
}

async fn table(client: &Client, resource: Resource, args: &ListArgs) -> anyhow::Result<()> {
    let mut printer = Printer::new(args.form.form == Some(Form::Wide));
    loop {
        let table = Table::read(client.get_as(&path(resource, args), TABLE).await?)?;
        let from = table.resource_version().map(str::to_owned);
        if table.is_empty() {
            text::say(&format!("no {} found", resource.plural()));
        }
        if !table.is_empty() {
            text::print(&printer.render(table))?;
        }
        if !args.watch {
            return Ok(());
        }
        let Some(from) = from else {
            return Err(crate::failure::advise("the hub's list cannot be watched", "leave out -w"));
        };
        follow(client, resource, args, from, &mut printer).await?;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Prints changes from a revision on. Comes back when the hub no longer has it, so that the list is read anew.
async fn follow(
    client: &Client,
    resource: Resource,
    args: &ListArgs,
    mut from: String,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    loop {
        let mut query = format!("{}?watch=true&resourceVersion={from}", resource.collection());
        if let Some(selector) = &args.selector {
            query.push_str(&format!("&labelSelector={}", crate::resource::segment(selector)));
        }
        if let Some(name) = &args.name {
            query.push_str(&format!("&fieldSelector=metadata.name%3D{}", crate::resource::segment(name)));
        }
        let mut events = client.watch(&query, TABLE).await?;
        while let Some(event) = events.next().await? {
            let object = event.get("object").cloned().unwrap_or_default();
            match event.get("type").and_then(Value::as_str) {
                Some("ERROR") => return Ok(()),
                Some("BOOKMARK") => {}
                _ => text::print(&printer.render(Table::read(object.clone())?))?,
            }
            if let Some(version) = version_of(&object) {
                from = version;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The revision of an event: of the table, or of the object in its row.
fn version_of(object: &Value) -> Option<String> {
    let of = |pointer| object.pointer(pointer).and_then(Value::as_str).filter(|v| !v.is_empty());
    of("/metadata/resourceVersion").or_else(|| of("/rows/0/object/metadata/resourceVersion")).map(str::to_owned)
}
