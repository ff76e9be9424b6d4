//! The book: complete, without dead links, and what is written from the code is current.

use super::{run, stdout};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src").canonicalize().unwrap()
}

fn pages(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|e| e == "md") {
            found.insert(path);
        }
    }
}

/// Targets of `[text](target)` outside of code.
fn links(markdown: &str) -> Vec<String> {
    let mut code = false;
    let mut found = Vec::new();
    for line in markdown.lines() {
        code ^= line.starts_with("```");
        if !code {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            found.extend(targets.map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_page_is_in_the_summary_and_every_link_leads_somewhere() {
    let (book, mut all) = (book(), BTreeSet::new());
    pages(&book, &mut all);
    let listed = links(&fs::read_to_string(book.join("SUMMARY.md")).unwrap());
    let listed: BTreeSet<PathBuf> = listed.iter().map(|page| book.join(page)).collect();
    all.remove(&book.join("SUMMARY.md"));
    assert_eq!(all, listed, "left: the files; right: what SUMMARY.md lists");
    for page in &all {
        let text = fs::read_to_string(page).unwrap();
        assert!(text.starts_with("# "), "{} has no title", page.display());
        for link in links(&text).iter().filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap_or_default();
            assert!(page.with_file_name("").join(file).exists(), "{}: {link} leads nowhere", page.display());
        }
    }
}

/// Compares a page, or writes it: `MOORLINE_WRITE_DOCS=1`, as `make docs` does.
fn current(page: &str, content: &str) {
    let path = book().join("reference").join(page);
    if std::env::var_os("MOORLINE_WRITE_DOCS").is_some() {
        fs::write(&path, content).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap() == content, "docs/src/reference/{page} is out of date: make docs");
}

#[test]
fn the_reference_is_that_of_the_program() {
    let home = tempfile::tempdir().unwrap();
    for page in ["cli", "configuration"] {
        let output = run(home.path(), &["reference", page]);
        assert!(output.status.success());
        current(&format!("{page}.md"), &stdout(&output));
    }
}

/// The names and help texts of metrics, as the sources register them: `"moorline_…", "help"`.
#[test]
fn the_metrics_page_has_every_metric() {
    let root = book().join("../..");
    let (mut found, mut open) = (std::collections::BTreeMap::new(), Vec::new());
    for part in ["agent", "hub", "proxy", "apiserver", "cli", "tunnel", "authz"] {
        open.push(root.join(part));
    }
    while let Some(path) = open.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" && name != "target" {
                open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            continue;
        }
        if !name.ends_with(".rs") || name == "tests.rs" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for rest in text.split("\"moorline_").skip(1) {
            let Some((name, rest)) = rest.split_once('"') else { continue };
            let rest = rest.trim_start().strip_prefix(',').map(str::trim_start);
            let Some(help) = rest.and_then(|rest| rest.strip_prefix('"')) else { continue };
            let help = help.split('"').next().unwrap_or_default();
            let help = help.split_whitespace().filter(|word| *word != "\\").collect::<Vec<_>>().join(" ");
            if name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()) && help.contains(' ') {
                found.insert(format!("moorline_{name}"), help.trim_end_matches(['.', '\\']).to_owned());
            }
        }
    }
    assert!(found.len() > 30, "only {} metrics were found", found.len());
    let rows: String =
        found.iter().map(|(name, help)| format!("| `{name}` | {} |\n", help.replace('|', "\\|"))).collect();
    let head = "# Metrics\n\nWritten from the code by `make docs`. `…_bucket`, `…_sum` and `…_count` of histograms are left out.\n";
    current("metrics.md", &format!("{head}\n| metric | what it counts |\n|---|---|\n{rows}"));
}
