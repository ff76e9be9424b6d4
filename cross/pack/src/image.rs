//! OCI images of one static binary: no shell, no library, not root.
//!
//! The archive is an OCI image layout (image-spec 1.1) whose index names the image for containerd, and beside it the
//! `manifest.json` of older `docker load`.

use crate::archive::{Access, Archive, sha256};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::PathBuf};

/// The user that images run as: the "nonroot" of distroless images.
const USER: u64 = 65532;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// `moorline-pack image`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name and tag, such as ghcr.io/moorline/moorline-agent:0.1.0
    #[arg(long)]
    name: String,
    /// ARCHITECTURE=BINARY, such as amd64=dist/moorline-agent-linux-amd64; can be repeated
    #[arg(long = "binary", required = true, value_parser = pair)]
    binaries: Vec<(String, PathBuf)>,
    /// The binary's name in the image, at its root
    #[arg(long)]
    program: String,
    /// Arguments unless the pod has its own; can be repeated
    #[arg(long = "argument")]
    arguments: Vec<String>,
    /// A folder of the image's user, to mount state on; can be repeated
    #[arg(long = "folder")]
    folders: Vec<String>,
    /// PATH=SOURCE: another file, such as a library of a program that is not static; can be repeated
    #[arg(long = "file", value_parser = file)]
    files: Vec<(String, PathBuf)>,
    /// What it is, in a line
    #[arg(long)]
    description: String,
    /// Time of everything in it, seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    epoch: u64,
    /// The archive to write
    #[arg(short, long)]
    output: PathBuf,
}

fn pair(text: &str) -> Result<(String, PathBuf), String> {
    let (architecture, path) = text.split_once('=').ok_or("must be ARCHITECTURE=FILE")?;
    match architecture {
        "amd64" | "arm64" => Ok((architecture.to_owned(), path.into())),
        other => Err(format!("{other:?}: only amd64 and arm64 are built")),
    }
}

fn file(text: &str) -> Result<(String, PathBuf), String> {
    let (path, source) = text.split_once('=').ok_or("must be PATH=SOURCE")?;
    Ok((path.trim_start_matches('/').to_owned(), source.into()))
}

/// What the layout stores by its hash.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Keeps a blob; gives its descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (sha256(&bytes), bytes.len());
        self.0.insert(digest.clone(), bytes);
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
    }
}

/// Writes the archive.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut blobs = Blobs::default();
    let (mut manifests, mut for_docker) = (Vec::new(), Vec::new());
    for (architecture, path) in &args.binaries {
        let binary = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(elf_machine(&binary) == Some(architecture), "{} is no {architecture} program", path.display());
        let layer = layer(args, &binary)?;
        let config = serde_json::to_vec(&config(args, architecture, &sha256(&layer))?)?;
        let layer = blobs.add(LAYER, layer);
        let config = blobs.add(CONFIG, config);
        let tag = if for_docker.is_empty() { args.name.clone() } else { format!("{}-{architecture}", args.name) };
        for_docker.push(json!({ "Config": blob_path(&config), "RepoTags": [tag], "Layers": [blob_path(&layer)] }));
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let mut descriptor = blobs.add(MANIFEST, serde_json::to_vec(&manifest)?);
        descriptor["platform"] = json!({ "architecture": architecture, "os": "linux" });
        manifests.push(descriptor);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let mut image = blobs.add(INDEX, serde_json::to_vec(&index)?);
    let tag = args.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    image["annotations"] = json!({ "io.containerd.image.name": args.name, "org.opencontainers.image.ref.name": tag });
    let top = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [image] });

    let mut archive = Archive::new(Vec::new(), args.epoch);
    archive.file("oci-layout", Access::FILE, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.file("index.json", Access::FILE, &serde_json::to_vec(&top)?)?;
    archive.file("manifest.json", Access::FILE, &serde_json::to_vec(&for_docker)?)?;
    archive.folder("blobs", Access::PROGRAM)?;
    archive.folder("blobs/sha256", Access::PROGRAM)?;
    for (digest, bytes) in &blobs.0 {
        archive.file(&format!("blobs/sha256/{digest}"), Access::FILE, bytes)?;
    }
    fs::write(&args.output, archive.finish()?).with_context(|| format!("writing {}", args.output.display()))?;
    Ok(())
}

fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}

fn layer(args: &Args, binary: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut layer = Archive::new(Vec::new(), args.epoch);
    layer.folder("etc", Access::PROGRAM)?;
    let passwd = format!("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/:/sbin/nologin\n");
    layer.file("etc/passwd", Access::FILE, passwd.as_bytes())?;
    layer.file("etc/group", Access::FILE, format!("root:x:0:\nnonroot:x:{USER}:\n").as_bytes())?;
    for folder in &args.folders {
        let folder = folder.trim_matches('/');
        let mut above = folder.match_indices('/').map(|(at, _)| &folder[..at]);
        above.try_for_each(|above| layer.folder(above, Access::PROGRAM))?;
        layer.folder(folder, Access { owner: USER, mode: 0o700 })?;
    }
    for (path, source) in &args.files {
        let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        layer.file(path, Access::PROGRAM, &content)?;
    }
    layer.file(&args.program, Access::PROGRAM, binary)?;
    Ok(layer.finish()?)
}

fn config(args: &Args, architecture: &str, diff: &str) -> anyhow::Result<Value> {
    let (_, version) = args.name.rsplit_once(':').context("--name needs a tag")?;
    Ok(json!({
        "architecture": architecture,
        "os": "linux",
        "created": rfc3339(args.epoch),
        "config": {
            "User": format!("{USER}:{USER}"),
            "Entrypoint": [format!("/{}", args.program)],
            "Cmd": args.arguments,
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": args.program,
                "org.opencontainers.image.description": args.description,
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
                "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff}")] },
    }))
}

/// The architecture of a 64-bit little-endian ELF program (`e_machine`, System V ABI).
fn elf_machine(binary: &[u8]) -> Option<&'static str> {
    match (binary.get(..6)?, binary.get(18..20)?) {
        (b"\x7fELF\x02\x01", [0x3e, 0]) => Some("amd64"),
        (b"\x7fELF\x02\x01", [0xb7, 0]) => Some("arm64"),
        _ => None,
    }
}

/// A time in UTC, by the days-to-date algorithm of Howard Hinnant.
pub fn rfc3339(epoch: u64) -> String {
    let (days, second) = (epoch / 86_400 + 719_468, epoch % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (date, month) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn elf(machine: u8) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        bytes[18] = machine;
        bytes
    }

    fn made(dir: &std::path::Path, output: &str, machine: u8) -> anyhow::Result<Vec<u8>> {
        fs::write(dir.join("x86"), elf(machine))?;
        fs::write(dir.join("arm"), elf(0xb7))?;
        let binary = |architecture: &str, file: &str| (architecture.to_owned(), dir.join(file));
        run(&Args {
            name: "example.com/moorline-agent:1.2.3".into(),
            binaries: vec![binary("amd64", "x86"), binary("arm64", "arm")],
            program: "moorline-agent".into(),
            arguments: vec![],
            files: vec![],
            folders: vec!["var/lib/moorline-agent".into()],
            description: "test".into(),
            epoch: 1_700_000_000,
            output: dir.join(output),
        })?;
        Ok(fs::read(dir.join(output))?)
    }

    fn entries(bytes: &[u8]) -> BTreeMap<String, (Vec<u8>, u64, u32)> {
        let mut tar = tar::Archive::new(bytes);
        tar.entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let (path, header) = (entry.path().unwrap().display().to_string(), entry.header().clone());
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (path, (content, header.uid().unwrap(), header.mode().unwrap()))
            })
            .collect()
    }

    /// Each digest that the layout names is that of the blob, and every platform is reached from the index.
    #[test]
    fn the_layout_holds_what_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let files = entries(&made(dir.path(), "a.tar", 0x3e).unwrap());
        for (path, (content, ..)) in
            files.iter().filter(|(path, _)| path.starts_with("blobs/sha256/") && path.len() > 20)
        {
            assert_eq!(path, &format!("blobs/sha256/{}", sha256(content)));
        }
        let parse = |path: &str| serde_json::from_slice::<Value>(&files[path].0).unwrap();
        let image = parse("index.json")["manifests"][0].clone();
        assert_eq!(image["annotations"]["io.containerd.image.name"], "example.com/moorline-agent:1.2.3");
        let manifests = parse(&blob_path(&image))["manifests"].as_array().unwrap().clone();
        let platforms: Vec<&str> = manifests.iter().filter_map(|m| m["platform"]["architecture"].as_str()).collect();
        assert_eq!(platforms, ["amd64", "arm64"]);
        for manifest in &manifests {
            let manifest = parse(&blob_path(manifest));
            let config = parse(&blob_path(&manifest["config"]));
            assert_eq!(
                (&config["config"]["User"], &config["created"]),
                (&json!("65532:65532"), &json!("2023-11-14T22:13:20Z"))
            );
            let layer = entries(&files[&blob_path(&manifest["layers"][0])].0);
            assert_eq!(layer["moorline-agent"].2, 0o755);
            assert_eq!((layer["var/lib/moorline-agent/"].1, layer["var/lib/moorline-agent/"].2), (USER, 0o700));
        }
    }

    #[test]
    fn two_runs_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        assert!(made(dir.path(), "a.tar", 0x3e).unwrap() == made(dir.path(), "b.tar", 0x3e).unwrap());
    }

    #[test]
    fn a_program_for_another_processor_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (machine, refused) in [(0x3e, false), (0xb7, true)] {
            assert_eq!(made(dir.path(), "a.tar", machine).is_err(), refused);
        }
        assert_eq!(elf_machine(b"MZ"), None);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(4_102_444_799), "2099-12-31T23:59:59Z");
    }
}
