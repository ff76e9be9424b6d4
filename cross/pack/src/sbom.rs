//! CycloneDX 1.5 bills of materials, from what cargo resolves for a target.

use crate::image::rfc3339;
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// `moorline-pack sbom`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The package that the binary is built from
    #[arg(long)]
    package: String,
    /// The target that it is built for
    #[arg(long)]
    target: String,
    /// NAME@VERSION of what is linked and is no crate; can be repeated
    #[arg(long = "linked")]
    linked: Vec<String>,
    /// The binaries that it is about; their hashes go in
    #[arg(long = "binary")]
    binaries: Vec<PathBuf>,
    /// When it was made, seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    epoch: u64,
    /// The file to write
    #[arg(short, long)]
    output: PathBuf,
}

/// Asks cargo, writes the file.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let metadata = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &args.target])
        .output()
        .context("running cargo metadata")?;
    ensure!(metadata.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let root = metadata["workspace_root"].as_str().context("no workspace")?;
    let lock = fs::read_to_string(Path::new(root).join("Cargo.lock"))?;
    let mut bill = bill(&metadata, &checksums(&lock), &args.package, args.epoch)?;
    let components = bill["components"].as_array_mut().context("no components")?;
    for linked in &args.linked {
        let (name, version) = linked.split_once('@').context("--linked must be NAME@VERSION")?;
        components.push(json!({ "type": "library", "name": name, "version": version, "bom-ref": linked }));
    }
    for binary in &args.binaries {
        let hash = crate::archive::sha256(&fs::read(binary).with_context(|| format!("reading {}", binary.display()))?);
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let hashes = json!([{ "alg": "SHA-256", "content": hash }]);
        components.push(json!({ "type": "file", "name": name, "bom-ref": format!("file:{name}"), "hashes": hashes }));
    }
    fs::write(&args.output, serde_json::to_vec_pretty(&bill)?)
        .with_context(|| format!("writing {}", args.output.display()))
}

/// `name version` → SHA-256, from Cargo.lock.
fn checksums(lock: &str) -> BTreeMap<String, String> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|quoted| quoted.trim_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]");
    blocks
        .filter_map(|block| {
            let name = format!("{} {}", value(block, "name")?, value(block, "version")?);
            Some((name, value(block, "checksum")?))
        })
        .collect()
}

fn bill(metadata: &Value, checksums: &BTreeMap<String, String>, package: &str, epoch: u64) -> anyhow::Result<Value> {
    let by_id = |list: &Value| -> BTreeMap<String, Value> {
        let items = list.as_array().into_iter().flatten();
        items.filter_map(|item| Some((item["id"].as_str()?.to_owned(), item.clone()))).collect()
    };
    let (packages, nodes) = (by_id(&metadata["packages"]), by_id(&metadata["resolve"]["nodes"]));
    let start = packages.iter().find(|(_, p)| p["name"] == package).map(|(id, _)| id.clone());
    let start = start.with_context(|| format!("no package {package}"))?;
    // What is compiled in or runs while it is compiled; not what its tests use.
    let (mut seen, mut open) = (BTreeSet::from([start.clone()]), vec![start.clone()]);
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    while let Some(id) = open.pop() {
        let below = nodes.get(&id).map(|node| node["deps"].clone()).unwrap_or_default();
        for dependency in below.as_array().into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array();
            let Some(to) = dependency["pkg"].as_str() else { continue };
            if kinds.into_iter().flatten().all(|kind| kind["kind"] == "dev") {
                continue;
            }
            edges.entry(id.clone()).or_default().insert(to.to_owned());
            if seen.insert(to.to_owned()) {
                open.push(to.to_owned());
            }
        }
    }
    let reference = |id: &str| packages.get(id).map(purl).unwrap_or_default();
    let mut components: Vec<Value> = seen
        .iter()
        .filter(|id| **id != start)
        .filter_map(|id| packages.get(id))
        .map(|package| component(package, checksums))
        .collect();
    components.sort_by_key(|c| c["bom-ref"].as_str().unwrap_or_default().to_owned());
    let mut dependencies: Vec<Value> = edges
        .iter()
        .map(|(from, to)| {
            let to: BTreeSet<String> = to.iter().map(|id| reference(id)).collect();
            json!({ "ref": reference(from), "dependsOn": to })
        })
        .collect();
    dependencies.sort_by_key(|d| d["ref"].as_str().unwrap_or_default().to_owned());
    let mut subject = packages.get(&start).map(|package| component(package, checksums)).unwrap_or_default();
    subject["type"] = json!("application");
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "timestamp": rfc3339(epoch), "component": subject },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn purl(package: &Value) -> String {
    format!(
        "pkg:cargo/{}@{}",
        package["name"].as_str().unwrap_or_default(),
        package["version"].as_str().unwrap_or_default()
    )
}

fn component(package: &Value, checksums: &BTreeMap<String, String>) -> Value {
    let (name, version) =
        (package["name"].as_str().unwrap_or_default(), package["version"].as_str().unwrap_or_default());
    let mut made =
        json!({ "type": "library", "name": name, "version": version, "purl": purl(package), "bom-ref": purl(package) });
    if let Some(licence) = package["license"].as_str() {
        made["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
    }
    if let Some(hash) = checksums.get(&format!("{name} {version}")) {
        made["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tests_use_is_not_in_the_bill() {
        let package = |name: &str| json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0" });
        let dependency = |pkg: &str, kind: Value| json!({ "pkg": pkg, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [package("app"), package("used"), package("builds"), package("tests"), package("deep")],
            "resolve": { "nodes": [
                { "id": "app", "deps": [dependency("used", Value::Null), dependency("builds", json!("build")), dependency("tests", json!("dev"))] },
                { "id": "used", "deps": [dependency("deep", Value::Null)] },
            ] },
        });
        let lock = "[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n";
        let bill = bill(&metadata, &checksums(lock), "app", 0).unwrap();
        let names: Vec<&str> =
            bill["components"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
        assert_eq!(names, ["builds", "deep", "used"]);
        assert_eq!(bill["components"][2]["hashes"][0]["content"], "abc");
        assert_eq!(bill["components"][2]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["dependencies"][0]["dependsOn"], json!(["pkg:cargo/builds@1.0.0", "pkg:cargo/used@1.0.0"]));
    }
}
