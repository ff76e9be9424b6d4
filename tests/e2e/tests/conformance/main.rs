//! Behaviours of Kubernetes' API machinery, one by one, asked of the real kube-apiserver (with custom resources) and of
//! ours, side by side. A row passes when both answer the same, but for what must differ: uids, revisions, times.
//!
//! Run with `cargo test -p moorline-e2e --test conformance`; `-- NAME` picks rows; `MOORLINE_KUBE_DIR` and
//! `MOORLINE_KUBE_PORT` name a control plane that already runs. `--nocapture` prints the table.

#![allow(missing_docs, reason = "a test")]

mod ansible;
mod boats;
mod kube_rs;
mod kubectl;
mod python;
mod rows;
mod same;
mod target;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use moorline_e2e::cluster::Cluster;
use rows::{Row, Step, Verdict};
use serde_json::Value;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use target::{Answer, Ask, Ours, Real, Target};

struct World {
    real: Real,
    ours: Ours,
    _cluster: Option<Cluster>,
}

impl World {
    fn start() -> Result<Self> {
        let (dir, port, cluster) = match std::env::var_os("MOORLINE_KUBE_DIR") {
            Some(dir) => (PathBuf::from(dir), std::env::var("MOORLINE_KUBE_PORT")?.parse()?, None),
            None => {
                let cluster = Cluster::start(300, false, None)?;
                (cluster.dir.clone(), cluster.port, Some(cluster))
            }
        };
        Ok(Self { real: Real::new(&dir, port)?, ours: Ours::new()?, _cluster: cluster })
    }
}

/// Nothing of the rows before is left.
fn clear(target: &dyn Target) -> Result<()> {
    for all in boats::PATHS {
        let ask = |method, path: String, body: &str| {
            let headers = vec![("content-type", "application/merge-patch+json".into())];
            target.ask(&Ask { method, path, headers, body: body.into() })
        };
        let all = format!("/apis/{all}");
        let list = ask("GET", all.clone(), "")?;
        for object in list.body["items"].as_array().context("no items")? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            if object["metadata"]["finalizers"].is_array() {
                ask("PATCH", format!("{all}/{name}"), r#"{"metadata":{"finalizers":null}}"#)?;
            }
            let headers = vec![("content-type", "application/json".into())];
            target.ask(&Ask { method: "DELETE", path: format!("{all}/{name}"), headers, body: String::new() })?;
        }
    }
    Ok(())
}

/// `{rv:1}`, `{uid:1}`, `{continue:1}`: of the answer of that step, counted from 1.
fn filled(text: &str, answers: &[Answer]) -> Result<String> {
    let mut out = text.to_owned();
    for (mark, pointer) in [
        ("rv", "/metadata/resourceVersion"),
        ("uid", "/metadata/uid"),
        ("continue", "/metadata/continue"),
        ("name", "/metadata/name"),
    ] {
        for (i, answer) in answers.iter().enumerate() {
            let mark = format!("{{{mark}:{}}}", i + 1);
            if out.contains(&mark) {
                let value = answer.body.pointer(pointer).and_then(Value::as_str).context("nothing to fill in")?;
                out = out.replace(&mark, value);
            }
        }
    }
    Ok(out)
}

fn answers(target: &dyn Target, steps: &[Step]) -> Result<Vec<Answer>> {
    clear(target)?;
    let mut all = Vec::new();
    for step in steps {
        let mut ask = step.ask.clone();
        ask.path = filled(&ask.path, &all)?;
        ask.body = filled(&ask.body, &all)?;
        if step.forget {
            target.forget()?;
        }
        let deadline = Instant::now() + Duration::from_secs(90);
        let answer = loop {
            let answer = target.ask(&ask)?;
            // What controllers do comes when it comes.
            let there = step.until.is_none_or(|code| answer.code == code);
            if there || deadline < Instant::now() {
                break answer;
            }
            std::thread::yield_now();
        };
        all.push(answer);
    }
    Ok(all)
}

fn check(world: &World, row: &Row) -> Result<()> {
    let (real, ours) = (answers(&world.real, &row.steps)?, answers(&world.ours, &row.steps)?);
    let (real, ours) = (same::normal(&real, row), same::normal(&ours, row));
    let equal = real == ours;
    let verdict = match (&row.verdict, equal) {
        (Verdict::Same, true) => "same".to_owned(),
        (Verdict::Newer { since, .. }, false) => format!("newer than 1.20: {since}"),
        (Verdict::Different { why, .. }, false) => format!("on purpose: {why}"),
        (Verdict::Same, false) => "DIFFERS".to_owned(),
        (_, true) => "SAME, and said to differ".to_owned(),
    };
    println!("| {} | {} | {} | {} | {verdict} |", row.name, row.doc, same::short(&real), same::short(&ours));
    match &row.verdict {
        Verdict::Same => ensure!(equal, "{}", same::difference(&real, &ours)),
        Verdict::Newer { ours: wanted, .. } | Verdict::Different { ours: wanted, .. } => {
            if equal {
                bail!("said to differ, and is the same: {}", same::short(&ours));
            }
            ensure!(same::short(&ours) == *wanted, "wanted {wanted} of ours\n{}", same::difference(&real, &ours));
        }
    }
    Ok(())
}

type Slot = Arc<Mutex<Option<Result<World, String>>>>;

/// Runs a test on the two servers, which the first one starts.
fn with(world: &Slot, test: impl FnOnce(&World) -> Result<()>) -> Result<(), libtest_mimic::Failed> {
    let mut guard = world.lock().unwrap_or_else(PoisonError::into_inner);
    // What did not start is not tried again for every row.
    let world = guard.get_or_insert_with(|| World::start().map_err(|e| format!("{e:#}")));
    let world = world.as_ref().map_err(|why| why.clone())?;
    test(world).map_err(|e| format!("{e:#}").into())
}

fn main() {
    let mut arguments = Arguments::from_args();
    // One pair of servers, one row at a time: each row clears away what is there.
    arguments.test_threads = Some(1);
    let world = Slot::default();
    let trials = rows::all().into_iter().map(|row| {
        let world = Arc::clone(&world);
        Trial::test(row.name, move || with(&world, |world| check(world, &row)))
    });
    let mut trials: Vec<Trial> = trials.collect();
    for (version, binary) in kubectl::programs() {
        for scene in kubectl::scenes() {
            let (world, binary) = (Arc::clone(&world), binary.clone());
            trials.push(Trial::test(format!("kubectl_{version}_{}", scene.name), move || {
                with(&world, |world| kubectl::check(world, &binary, &scene))
            }));
        }
    }
    let slot = Arc::clone(&world);
    trials.push(Trial::test("kube_rs_sees_the_same", move || with(&slot, kube_rs::check)));
    let slot = Arc::clone(&world);
    trials.push(Trial::test("python_sees_the_same", move || with(&slot, python::check)));
    let slot = Arc::clone(&world);
    trials.push(Trial::test("ansible_sees_the_same", move || with(&slot, ansible::check)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(world.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit();
}
