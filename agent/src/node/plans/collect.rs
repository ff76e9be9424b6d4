//! A support bundle: files and what programs print, in one `.tar.gz`.

use super::{
    Plans,
    steps::{Failure, command},
};
use crate::limits;
use flate2::{Compression, write::GzEncoder};
use moorline_authz::plan::{Collect, is_windows, without_verbatim};
use std::{
    fs,
    io::{Read, Write},
    path::Path,
};

/// Packs the bundle; gives a list of what is in it. What cannot be had is said in it, and is no failure: a bundle is for
/// nodes on which something is wrong.
pub(super) async fn collect(plans: &Plans, wish: &Collect, into: &Path) -> Result<String, Failure> {
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    let mut list = Vec::new();
    for (n, words) in wish.commands.iter().enumerate() {
        let name = format!("commands/{n:02}-{}", label(words));
        let said = match command(words, limits::PLAN_COLLECT, limits::PLAN_PART).await {
            Ok((output, Ok(()))) => Ok(output),
            Ok((mut output, Err(why))) => {
                output.extend_from_slice(format!("\n[{why}]\n").as_bytes());
                Ok(output)
            }
            Err(failure) => Err(failure.why),
        };
        add(&mut parts, &mut list, name, said);
    }
    for path in &wish.files {
        // A link's end must be allowed too, not only the link.
        let real = fs::canonicalize(path).map_err(|e| e.to_string());
        let real =
            real.and_then(|real| plans.real(without_verbatim(&real.to_string_lossy())).map_err(|failure| failure.why));
        let content = real.and_then(|real| content(&real));
        add(&mut parts, &mut list, format!("files/{}", place(path)), content);
    }
    let said = list.join("\n");
    parts.push(("CONTENTS".to_owned(), format!("{said}\n").into_bytes()));
    let into = into.to_owned();
    let work = tokio::task::spawn_blocking(move || pack(&parts, &into));
    work.await.map_err(|_| "it has failed by a bug".to_owned())??;
    Ok(said)
}

fn add(parts: &mut Vec<(String, Vec<u8>)>, list: &mut Vec<String>, name: String, content: Result<Vec<u8>, String>) {
    match content {
        Ok(bytes) => {
            list.push(format!("{name}: {} bytes", bytes.len()));
            parts.push((name, bytes));
        }
        Err(why) => list.push(format!("{name}: not there: {why}")),
    }
}

/// Where a file is in the archive: `C:\a\b` is `C/a/b`, for archives know neither drives nor another stroke.
fn place(path: &str) -> String {
    let path = if is_windows(path) { path.replacen(':', "", 1).replace('\\', "/") } else { path.to_owned() };
    path.trim_start_matches('/').to_owned()
}

fn label(words: &[String]) -> String {
    let name: String = words.join("-").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    name.trim_matches('-').chars().take(60).collect()
}

/// A file's end, if it is long. A file with a private key has no content for others.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    let wrong = |e: std::io::Error| e.to_string();
    let found = fs::metadata(path).map_err(wrong)?;
    if !found.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut file = fs::File::open(path).map_err(wrong)?;
    let most = limits::PLAN_PART as u64;
    let skip = found.len().saturating_sub(most);
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(skip)).map_err(wrong)?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(wrong)?;
    let secret =
        bytes.windows(12).any(|window| window == b"PRIVATE KEY-") || path.extension().is_some_and(|e| e == "key");
    if secret { Err("it holds a private key".to_owned()) } else { Ok(bytes) }
}

fn pack(parts: &[(String, Vec<u8>)], into: &Path) -> std::io::Result<()> {
    let part = into.with_extension("part");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut archive = tar::Builder::new(GzEncoder::new(options.open(&part)?, Compression::default()));
    for (name, bytes) in parts {
        let mut head = tar::Header::new_gnu();
        head.set_size(bytes.len() as u64);
        head.set_mode(0o600);
        head.set_mtime(super::now());
        archive.append_data(&mut head, name, bytes.as_slice())?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.sync_all()?;
    fs::rename(&part, into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_windows_has_a_place_in_an_archive_that_everybody_can_open() {
        assert_eq!(place("/var/log/a:b"), "var/log/a:b");
        assert_eq!(place(r"C:\ProgramData\a.log"), "C/ProgramData/a.log");
    }
}
