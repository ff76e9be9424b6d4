//! The kubeconfig files of this user, by kubectl's rules (`clientcmd` of client-go).

use super::document::{Document, Section};
use crate::{
    failure::advise,
    files::{self, FileLock},
};
use std::{
    env,
    path::{Path, PathBuf},
};

/// The files, in the order in which kubectl reads them: the first that has a name wins.
pub struct Files {
    files: Vec<(PathBuf, Option<Document>)>,
    default: usize,
    changed: Vec<bool>,
    _locks: Vec<FileLock>,
}

/// `$KUBECONFIG`'s list, or `~/.kube/config`.
pub fn paths() -> anyhow::Result<Vec<PathBuf>> {
    let listed: Vec<PathBuf> = match env::var_os("KUBECONFIG") {
        Some(list) => env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect(),
        None => Vec::new(),
    };
    if listed.is_empty() { Ok(vec![files::home()?.join(".kube").join("config")]) } else { Ok(listed) }
}

impl Files {
    /// Locks and reads them. New entries go to the first file that exists, or else the last one
    /// (`PathOptions.GetDefaultFilename`).
    pub fn open(mut paths: Vec<PathBuf>) -> anyhow::Result<Self> {
        let mut seen = std::collections::BTreeSet::new();
        paths.retain(|path| seen.insert(path.clone()));
        let default = paths.iter().position(|path| path.exists()).unwrap_or(paths.len().saturating_sub(1));
        // In sorted order, as client-go does: two programs with different lists cannot block each other.
        let used = |path: &&PathBuf| path.exists() || paths.get(default) == Some(*path);
        let _locks = seen.iter().filter(used).map(|path| FileLock::take(path)).collect::<Result<_, _>>()?;
        let files: Vec<_> =
            paths.into_iter().map(|path| Ok((read(&path)?, path))).map(swap).collect::<Result<_, anyhow::Error>>()?;
        Ok(Self { changed: vec![false; files.len()], files, default, _locks })
    }

    /// An entry, from the first file that has it.
    pub fn entry(&self, section: Section, name: &str) -> Option<&serde_json::Value> {
        self.files.iter().find_map(|(_, doc)| doc.as_ref()?.entry(section, name))
    }

    /// The document that an entry lives in, or where a new one goes; it will be written.
    pub fn home_of(&mut self, section: Section, name: &str) -> &mut Document {
        let has =
            |(_, doc): &(PathBuf, Option<Document>)| doc.as_ref().is_some_and(|d| d.entry(section, name).is_some());
        let at = self.files.iter().position(has).unwrap_or(self.default);
        self.document(at)
    }

    /// Sets the current context where it was set, or else in the file for new entries.
    pub fn use_context(&mut self, name: &str) {
        let has = |(_, doc): &(PathBuf, Option<Document>)| doc.as_ref().is_some_and(|d| d.current_context().is_some());
        let at = self.files.iter().position(has).unwrap_or(self.default);
        self.document(at).set_current_context(name);
    }

    /// The context in use.
    pub fn current_context(&self) -> Option<&str> {
        self.files.iter().find_map(|(_, doc)| doc.as_ref()?.current_context())
    }

    fn document(&mut self, at: usize) -> &mut Document {
        // `at` is a position in the list, which is never empty.
        self.changed[at] = true;
        self.files[at].1.get_or_insert_with(Document::empty)
    }

    /// Writes what changed; gives the paths.
    pub fn save(self) -> anyhow::Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        for ((path, document), changed) in self.files.into_iter().zip(self.changed) {
            if let (Some(document), true) = (document, changed) {
                files::write_private(&path, document.write()?.as_bytes())?;
                written.push(path);
            }
        }
        Ok(written)
    }
}

fn swap(pair: anyhow::Result<(Option<Document>, PathBuf)>) -> anyhow::Result<(PathBuf, Option<Document>)> {
    pair.map(|(document, path)| (path, document))
}

fn read(path: &Path) -> anyhow::Result<Option<Document>> {
    let Some(text) = files::read_text(path)? else { return Ok(None) };
    match Document::read(&text) {
        Ok(document) => Ok(Some(document)),
        Err(why) => Err(advise(
            format!("{} is no kubeconfig: {why}", path.display()),
            "it was left as it is; mend it, or write elsewhere: moorline kubeconfig --output FILE",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    const ONE: &str = "clusters: [{name: a, cluster: {server: one}}]\ncurrent-context: first\n";
    const TWO: &str = "clusters: [{name: a, cluster: {server: two}}, {name: b, cluster: {server: two}}]\n";

    fn fields(server: &str) -> serde_json::Map<String, serde_json::Value> {
        json!({ "server": server }).as_object().unwrap().clone()
    }

    #[test]
    fn entries_are_written_where_they_come_from_and_new_ones_to_the_first_file_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let [missing, one, two] = ["missing", "one", "two"].map(|name| dir.path().join(name));
        fs::write(&one, ONE).unwrap();
        fs::write(&two, TWO).unwrap();
        let mut files = Files::open(vec![missing.clone(), one.clone(), two.clone()]).unwrap();
        assert_eq!(files.entry(Section::Clusters, "a"), Some(&json!({"server": "one"})), "the first file wins");
        files.home_of(Section::Clusters, "b").put(Section::Clusters, "b", &fields("changed"));
        files.home_of(Section::Clusters, "new").put(Section::Clusters, "new", &fields("new"));
        assert_eq!(files.save().unwrap(), [one.clone(), two.clone()]);
        let read = |path| Document::read(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(read(&two).entry(Section::Clusters, "b"), Some(&json!({"server": "changed"})));
        assert_eq!(read(&one).entry(Section::Clusters, "new"), Some(&json!({"server": "new"})));
        assert!(!missing.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no lock is left");
    }

    #[test]
    fn with_no_file_at_all_the_last_one_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["x", "y"].map(|name| dir.path().join(name));
        let mut files = Files::open(paths.to_vec()).unwrap();
        files.use_context("c");
        assert_eq!(files.save().unwrap(), [paths[1].clone()]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, "users: 7").unwrap();
        assert!(Files::open(vec![path.clone()]).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "users: 7");
        assert!(!dir.path().join("config.lock").exists());
    }
}
