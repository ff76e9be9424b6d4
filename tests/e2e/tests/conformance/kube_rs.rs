//! kube-rs against both servers: what its calls give, step by step.

use crate::{World, clear};
use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, pin_mut};
use kube::{
    Api, Client, Config, Error,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
    discovery::{Discovery, Scope},
};
use serde_json::{Value, json};

fn boats(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("moorline.dev", "v1alpha1", "Boat");
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "boats"))
}

fn boat(name: &str, metres: u32) -> Result<DynamicObject> {
    let value = json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": { "name": name, "labels": { "fleet": "north" } },
        "spec": { "metres": metres },
    });
    Ok(serde_json::from_value(value)?)
}

/// An error as code and reason; anything else than an answer of the server fails.
fn refusal<T>(result: Result<T, Error>) -> Result<String> {
    match result {
        Ok(_) => Ok("went well".into()),
        Err(Error::Api(status)) => Ok(format!("{} {}", status.code, status.reason)),
        Err(other) => Err(other.into()),
    }
}

async fn trace(client: Client) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    let api = boats(&client);
    let discovery = Discovery::new(client.clone()).filter(&["moorline.dev"]).run().await?;
    let group = discovery.get("moorline.dev").context("no group")?;
    for (resource, capabilities) in group.recommended_resources() {
        ensure!(capabilities.scope == Scope::Cluster);
        let mut below: Vec<_> = capabilities.subresources.iter().map(|(r, _)| r.plural.clone()).collect();
        below.sort();
        seen.push(format!("{} {} {below:?}", resource.kind, resource.plural));
    }
    seen.sort();

    let made = api.create(&PostParams::default(), &boat("ada", 10)?).await?;
    let from = made.metadata.resource_version.clone().context("no revision")?;
    seen.push(format!("generation {:?}", made.metadata.generation));
    seen.push(refusal(api.create(&PostParams::default(), &boat("ada", 10)?).await)?);
    for name in ["bob", "cyd"] {
        api.create(&PostParams::default(), &boat(name, 5)?).await?;
    }
    let page = api.list(&ListParams::default().limit(2).labels("fleet=north")).await?;
    let token = page.metadata.continue_.clone().context("no token")?;
    let rest = api.list(&ListParams::default().limit(2).labels("fleet=north").continue_token(&token)).await?;
    let names: Vec<_> = page.items.iter().chain(&rest.items).filter_map(|o| o.metadata.name.clone()).collect();
    seen.push(format!("pages {names:?}"));
    let metadata = api.list_metadata(&ListParams::default()).await?;
    seen.push(format!("metadata of {}", metadata.items.len()));

    let apply = PatchParams::apply("first");
    let config = |metres: u32| {
        Patch::Apply(
            json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Boat", "metadata": { "name": "dora" }, "spec": { "metres": metres } }),
        )
    };
    api.patch("dora", &apply, &config(7)).await?;
    seen.push(refusal(api.patch("dora", &PatchParams::apply("second"), &config(8)).await)?);
    let forced = api.patch("dora", &PatchParams::apply("second").force(), &config(8)).await?;
    let managers: Vec<_> = forced.metadata.managed_fields.iter().flatten().filter_map(|m| m.manager.clone()).collect();
    seen.push(format!("managed by {managers:?}"));
    let place = Patch::Merge(json!({ "status": { "place": "here" } }));
    let placed = api.patch_status("ada", &PatchParams::default(), &place).await?;
    seen.push(format!("status {}", placed.data["status"]));
    let scale =
        api.patch_scale("ada", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "replicas": 3 } }))).await?;
    seen.push(format!("scale {:?}", scale.spec.and_then(|s| s.replicas)));
    let mut stale = boat("ada", 11)?;
    stale.metadata.resource_version = Some(from.clone());
    seen.push(refusal(api.replace("ada", &PostParams::default(), &stale).await)?);
    let mut fresh = api.get("ada").await?;
    fresh.data["spec"]["metres"] = json!(401);
    seen.push(refusal(api.replace("ada", &PostParams::default(), &fresh).await)?);
    seen.push(refusal(api.get("nobody").await)?);
    seen.push(format!("optional {}", api.get_opt("nobody").await?.is_none()));

    let gone = api.delete("bob", &DeleteParams::background()).await?;
    seen.push(format!("deleted {}", gone.is_right()));
    let all = api.delete_collection(&DeleteParams::default(), &ListParams::default().labels("fleet=north")).await?;
    seen.push(format!("collection {:?}", all.left().map(|l| l.items.len())));

    let events = api.watch(&WatchParams::default().timeout(1), &from).await?;
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let name = |o: &DynamicObject| o.metadata.name.clone().unwrap_or_default();
        match event? {
            WatchEvent::Added(o) => seen.push(format!("added {}", name(&o))),
            WatchEvent::Modified(o) => {
                seen.push(format!("modified {} {}", name(&o), o.data.get("spec").unwrap_or(&Value::Null)))
            }
            WatchEvent::Deleted(o) => seen.push(format!("deleted {}", name(&o))),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => seen.push(format!("error {}", status.code)),
        }
    }
    Ok(seen)
}

pub fn check(world: &World) -> Result<()> {
    clear(&world.real)?;
    clear(&world.ours)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (real, ours) = runtime.block_on(async {
        let file = Kubeconfig::read_from(world.real.dir.join("kubeconfig"))?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let real = trace(Client::try_from(config)?).await.context("the real one")?;
        let config = Config::new(format!("http://{}", world.ours.address).parse()?);
        let ours = trace(Client::try_from(config)?).await.context("ours")?;
        anyhow::Ok((real, ours))
    })?;
    println!("| kube-rs | {} answers | {} |", ours.len(), if real == ours { "same" } else { "DIFFERS" });
    ensure!(real == ours, "real {real:#?}\nours {ours:#?}");
    ensure!(ours.len() > 20, "{ours:#?}");
    Ok(())
}
