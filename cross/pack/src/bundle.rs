//! The air-gap bundle: a folder as one archive, with the hash of each file in it.

use crate::archive::{Access, Archive, sha256};
use anyhow::{Context, ensure};
use flate2::{Compression, GzBuilder};
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// `moorline-pack bundle`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of the folder that the archive unpacks to
    #[arg(long)]
    name: String,
    /// PATH=SOURCE: a file, or a folder with all in it, and where it goes in the archive; can be repeated
    #[arg(long = "add", required = true, value_parser = pair)]
    add: Vec<(String, PathBuf)>,
    /// Time of everything in it, seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    epoch: u64,
    /// The archive to write, .tar.gz
    #[arg(short, long)]
    output: PathBuf,
}

fn pair(text: &str) -> Result<(String, PathBuf), String> {
    let (path, source) = text.split_once('=').ok_or("must be PATH=SOURCE")?;
    Ok((path.to_owned(), source.into()))
}

/// Writes the archive.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for (path, source) in &args.add {
        collect(path, source, &mut files)?;
    }
    files.sort();
    files.dedup();
    ensure!(!files.is_empty(), "nothing to bundle");
    let gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    let mut archive = Archive::new(gzip, args.epoch);
    let mut sums = String::new();
    for (path, source) in &files {
        let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        let access = if is_program(&content) { Access::PROGRAM } else { Access::FILE };
        archive.file(&format!("{}/{path}", args.name), access, &content)?;
        writeln!(sums, "{}  {path}", sha256(&content))?;
    }
    archive.file(&format!("{}/SHA256SUMS", args.name), Access::FILE, sums.as_bytes())?;
    fs::write(&args.output, archive.finish()?.finish()?).with_context(|| format!("writing {}", args.output.display()))
}

fn collect(path: &str, source: &Path, files: &mut Vec<(String, PathBuf)>) -> anyhow::Result<()> {
    if !source.is_dir() {
        files.push((path.to_owned(), source.to_owned()));
        return Ok(());
    }
    for entry in fs::read_dir(source).with_context(|| format!("reading {}", source.display()))? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|name| anyhow::anyhow!("{name:?} is no text"))?;
        let path = if path.is_empty() { name } else { format!("{path}/{name}") };
        collect(&path, &entry.path(), files)?;
    }
    Ok(())
}

/// The file system's permissions depend on who unpacked the sources; the content does not.
fn is_program(content: &[u8]) -> bool {
    [&b"\x7fELF"[..], b"MZ", b"#!"].iter().any(|magic| content.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::{collections::BTreeMap, io::Read};

    #[test]
    fn the_bundle_lists_the_hash_of_each_file_and_is_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("tree/below")).unwrap();
        fs::write(at("tree/below/b"), "two").unwrap();
        fs::write(at("tree/run"), "#!/bin/sh\n").unwrap();
        let make = |output: &str| {
            let add = vec![("deploy".to_owned(), at("tree")), ("README.md".to_owned(), at("tree/below/b"))];
            run(&Args { name: "bundle".into(), add, epoch: 7, output: at(output) }).unwrap();
            fs::read(at(output)).unwrap()
        };
        let bytes = make("a.tar.gz");
        assert!(bytes == make("b.tar.gz"));
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(GzDecoder::new(&bytes[..])).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mode) = (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap());
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            files.insert(path, (content, mode));
        }
        assert_eq!(files["bundle/deploy/run"].1, 0o755);
        assert_eq!(files["bundle/deploy/below/b"], ("two".to_owned(), 0o644));
        let sums = &files["bundle/SHA256SUMS"].0;
        assert_eq!(sums.lines().count(), 3);
        assert!(sums.contains(&format!("{}  README.md\n", sha256(b"two"))), "{sums}");
    }
}
