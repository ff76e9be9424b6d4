//! Looks through a log: by user, cluster, verb and time. What was written last comes last.

use super::files::{MAX_LINE, all};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::VecDeque,
    fs, io,
    io::{BufRead, Read},
    path::Path,
    time::{Duration, Instant},
};

/// What is looked for: all of it must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Who asked, or as whom.
    pub user: Option<String>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// Kubernetes verb.
    pub verb: Option<String>,
    /// Any verb but this.
    pub but_verb: Option<String>,
    /// A resource such as `pods`, or `pods/exec`.
    pub resource: Option<String>,
    /// Name of a recording.
    pub recording: Option<String>,
    /// From then on.
    pub since: Option<Timestamp>,
    /// Before then.
    pub until: Option<Timestamp>,
    /// So many of these.
    pub limit: usize,
    /// Which of these, where there are more.
    pub from: End,
}

/// An end of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum End {
    /// What was written last.
    #[default]
    Newest,
    /// What was written first: whoever writes later cannot push it out.
    Oldest,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Oldest first.
    pub records: Vec<Value>,
    /// The time was up before all of the log was read: there may be more.
    pub partial: bool,
}

impl Query {
    /// Texts that a record's line must have, to pass over most lines without reading them as JSON.
    fn needles(&self) -> Vec<String> {
        let named = [&self.user, &self.cluster, &self.verb, &self.recording];
        named.into_iter().flatten().filter_map(|text| serde_json::to_string(text).ok()).collect()
    }

    /// Whether a record fits.
    pub fn fits(&self, record: &Value) -> bool {
        let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let is = |wanted: &Option<String>, found: &[&str]| wanted.as_deref().is_none_or(|w| found.contains(&w));
        let resource = match (text("/objectRef/resource"), text("/objectRef/subresource")) {
            (resource, "") => resource.to_owned(),
            (resource, sub) => format!("{resource}/{sub}"),
        };
        let at = text("/stageTimestamp").parse::<Timestamp>().ok();
        is(&self.user, &[text("/user/username"), text("/impersonatedUser/username")])
            && is(&self.cluster, &[text("/annotations/moorline.dev~1cluster")])
            && is(&self.recording, &[text("/annotations/moorline.dev~1recording")])
            && is(&self.verb, &[text("/verb")])
            && self.but_verb.as_deref().is_none_or(|verb| verb != text("/verb"))
            && is(&self.resource, &[&resource, text("/objectRef/resource")])
            && self.since.is_none_or(|since| at.is_some_and(|at| since <= at))
            && self.until.is_none_or(|until| at.is_some_and(|at| at < until))
    }
}

/// Reads the files from that end, until enough is found or `patience` is over.
///
/// # Errors
/// A file cannot be read.
pub fn search(path: &Path, query: &Query, patience: Duration) -> io::Result<Answer> {
    let (begun, needles) = (Instant::now(), query.needles());
    let mut answer = Answer::default();
    let mut files = all(path);
    if query.from == End::Newest {
        files.reverse();
    }
    for file in files {
        let room = query.limit.saturating_sub(answer.records.len());
        if room == 0 {
            break;
        }
        let reader = match fs::File::open(file) {
            Ok(file) => io::BufReader::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // removed or set aside just now
            Err(error) => return Err(error),
        };
        let mut found = VecDeque::new();
        let fits = |line: &str| {
            let may = needles.iter().all(|needle| line.contains(needle));
            may.then(|| serde_json::from_str(line).ok()).flatten().filter(|record| query.fits(record))
        };
        answer.partial = !lines(reader, |line| {
            if begun.elapsed() > patience {
                return Next::LateStop;
            }
            found.extend(fits(line));
            match query.from {
                End::Oldest if found.len() == room => return Next::Stop,
                End::Newest if found.len() > room => drop(found.pop_front()),
                _ => {}
            }
            Next::Line
        })?;
        match query.from {
            End::Oldest => answer.records.extend(found),
            End::Newest => answer.records = found.into_iter().chain(answer.records).collect(),
        }
        if answer.partial {
            break;
        }
    }
    Ok(answer)
}

/// What comes after a line.
enum Next {
    Line,
    /// That was enough.
    Stop,
    /// There was no time for more.
    LateStop,
}

/// Shows each line that is text. Whether there was time for all.
fn lines(mut reader: impl BufRead, mut look: impl FnMut(&str) -> Next) -> io::Result<bool> {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(true);
        }
        match std::str::from_utf8(&bytes).map_or(Next::Line, &mut look) {
            Next::Line => {}
            Next::Stop => return Ok(true),
            Next::LateStop => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_that_fit_are_found_over_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let line = |n: u32, user: &str, verb: &str, cluster: &str| {
            json!({ "n": n, "user": { "username": user }, "verb": verb, "stageTimestamp": format!("2026-11-21T10:00:{n:02}Z"),
                    "objectRef": { "resource": "pods", "subresource": "exec" },
                    "annotations": { "moorline.dev/cluster": cluster } }).to_string() + "\n"
        };
        let old = line(1, "ann", "get", "a") + &line(2, "bob", "get", "a") + "{\"torn\n";
        fs::write(dir.path().join("audit-00000000000000000001.log"), old).unwrap();
        let path = dir.path().join("audit.log");
        fs::write(&path, line(3, "ann", "list", "b") + &line(4, "ann", "get", "a") + &line(5, "ann", "get", "b"))
            .unwrap();
        let ask = |query: Query| {
            let found = search(&path, &query, Duration::from_secs(9)).unwrap().records;
            found.iter().map(|r| r["n"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        let some = |text: &str| Some(text.to_owned());
        let base = Query { limit: 10, ..Query::default() };
        assert_eq!(ask(base.clone()), [1, 2, 3, 4, 5]);
        assert_eq!(ask(Query { limit: 2, ..base.clone() }), [4, 5]);
        let oldest = Query { from: End::Oldest, ..base.clone() };
        assert_eq!(ask(oldest.clone()), [1, 2, 3, 4, 5]);
        assert_eq!(ask(Query { limit: 1, ..oldest.clone() }), [1]);
        assert_eq!(ask(Query { limit: 3, ..oldest.clone() }), [1, 2, 3]);
        assert_eq!(ask(Query { limit: 2, user: some("ann"), verb: some("get"), ..oldest }), [1, 4]);
        assert_eq!(ask(Query { user: some("ann"), verb: some("get"), ..base.clone() }), [1, 4, 5]);
        assert_eq!(ask(Query { cluster: some("b"), ..base.clone() }), [3, 5]);
        assert_eq!(ask(Query { cluster: some("b"), but_verb: some("list"), limit: 1, ..base.clone() }), [5]);
        assert_eq!(ask(Query { but_verb: some("get"), limit: 1, ..base.clone() }), [3]);
        assert_eq!(ask(Query { resource: some("pods/exec"), user: some("bob"), ..base.clone() }), [2]);
        assert!(ask(Query { resource: some("secrets"), ..base.clone() }).is_empty());
        let at = |s: &str| Some(s.parse().unwrap());
        let between = Query { since: at("2026-11-21T10:00:02Z"), until: at("2026-11-21T10:00:04Z"), ..base };
        assert_eq!(ask(between), [2, 3]);
    }
}
