//! The same kubectl commands against both servers: what they print and how they end.

use crate::{World, clear};
use anyhow::{Result, ensure};
use moorline_e2e::{moorline, process::run};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The kubectls that are shown to both: what they are called, and the program.
pub fn programs() -> [(&'static str, PathBuf); 2] {
    [("current", moorline::kubectl()), ("1_32", moorline::kubectl_older())]
}

/// Commands in order, each with its standard input.
pub struct Scene {
    pub name: &'static str,
    commands: Vec<(&'static str, &'static str)>,
    /// Not compared, for 1.20 does not have what it needs: why, and what ours has to print.
    newer: Option<(&'static str, &'static [&'static str])>,
}

const ADA: &str =
    "apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata: {name: ada, labels: {a: b}}\nspec: {metres: 10}\n";
const ADA_20: &str =
    "apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata: {name: ada, labels: {a: b}}\nspec: {metres: 20}\n";
const BOB: &str = "apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata: {name: bob}\nspec: {metres: 5}\n";
const TOO_LONG: &str = "apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata: {name: ada}\nspec: {metres: 500}\n";

pub fn scenes() -> Vec<Scene> {
    let scene =
        |name, commands: &[(&'static str, &'static str)]| Scene { name, commands: commands.to_vec(), newer: None };
    vec![
        scene(
            "apply",
            &[
                ("apply -f -", ADA),
                ("apply -f -", ADA),
                ("apply -f -", ADA_20),
                ("get boats ada -o jsonpath={.spec.metres}", ""),
                ("apply --dry-run=server -f -", ADA),
                ("apply --prune -l a=b --prune-allowlist=moorline.dev/v1alpha1/Boat -f -", ADA_20),
            ],
        ),
        scene(
            "apply_server_side",
            &[
                ("apply --server-side -f -", ADA),
                ("apply --server-side -f -", ADA),
                ("apply --server-side --field-manager=other -f -", ADA_20),
                ("apply --server-side --field-manager=other --force-conflicts -f -", ADA_20),
                ("get boats ada -o jsonpath={.metadata.managedFields[*].manager}", ""),
            ],
        ),
        scene(
            "apply_of_a_kustomization",
            &[("apply -k {dir}", ""), ("get boats -l fleet=north -o name", ""), ("delete -k {dir}", "")],
        ),
        scene("diff", &[("create -f -", ADA), ("diff -f -", ADA_20)]),
        scene(
            "create_and_replace",
            &[
                ("create -f -", ADA),
                ("create -f -", ADA),
                ("create --dry-run=server -o name -f -", BOB),
                ("get boats", ""),
                ("replace -f -", ADA_20),
                ("replace --force -f -", ADA),
                ("replace -f -", BOB),
            ],
        ),
        scene(
            "tables",
            &[
                ("create -f -", ADA),
                ("create -f -", BOB),
                ("get boats", ""),
                ("get boats -o wide", ""),
                ("get bt ada", ""),
                ("get boats,lines", ""),
                ("get boats --show-labels", ""),
                ("get boats -L a", ""),
                ("get boats --sort-by=.spec.metres -o name", ""),
                ("get boats -l a=b -o name", ""),
                ("get boats -l a!=b -o name", ""),
                ("get boats --field-selector=metadata.name=bob -o name", ""),
                ("get boats --chunk-size=1 -o name", ""),
                ("get boats nobody", ""),
                ("get ships", ""),
                ("get lines", ""),
                ("get boats -o custom-columns=N:.metadata.name,M:.spec.metres", ""),
            ],
        ),
        scene(
            "label_annotate_patch",
            &[
                ("create -f -", ADA),
                ("label boat ada c=d", ""),
                ("label boat ada a=x", ""),
                ("label boat ada a=x --overwrite", ""),
                ("label boat ada a-", ""),
                ("annotate boat ada note=well", ""),
                ("patch boat ada --type=merge -p {\"spec\":{\"metres\":30}}", ""),
                ("patch boat ada --type=merge -p {\"spec\":{\"metres\":30}}", ""),
                ("patch boat ada --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/metres\",\"value\":31}]", ""),
                ("patch boat ada --subresource=status --type=merge -p {\"status\":{\"place\":\"here\"}}", ""),
                ("patch boat ada --type=merge -p {\"spec\":{\"metres\":401}}", ""),
                ("get boats ada -o jsonpath={.metadata.labels}{.spec}{.status}", ""),
            ],
        ),
        scene(
            "scale",
            &[
                ("create -f -", ADA),
                ("scale boat ada --replicas=3", ""),
                ("scale boat ada --replicas=4 --current-replicas=9", ""),
                ("get boat ada -o jsonpath={.spec.replicas}", ""),
                ("get boat ada --subresource=scale -o jsonpath={.spec.replicas}", ""),
            ],
        ),
        scene(
            "delete",
            &[
                ("create -f -", ADA),
                ("create -f -", BOB),
                ("delete boat ada --dry-run=server", ""),
                ("delete boat ada --cascade=foreground --wait=true", ""),
                ("delete boat ada", ""),
                ("delete boat ada --ignore-not-found", ""),
                ("delete boats -l x=y", ""),
                ("delete boats --all", ""),
                ("get boats", ""),
            ],
        ),
        scene(
            "wait",
            &[
                ("create -f -", ADA),
                ("wait boat/ada --for=jsonpath={.spec.metres}=10 --timeout=5s", ""),
                ("delete boat ada --wait=false", ""),
                ("wait boat/ada --for=delete --timeout=5s", ""),
            ],
        ),
        scene(
            "errors",
            &[
                ("create -f -", TOO_LONG),
                ("apply --server-side -f -", TOO_LONG),
                (
                    "create --validate=false -f -",
                    "apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata: {name: ADA}\nspec: {metres: 1}\n",
                ),
                (
                    "create --validate=false -f -",
                    "apiVersion: moorline.dev/v1alpha1\nkind: Boat\nmetadata: {name: ada}\nspec: {metres: 1, flag: blue}\n",
                ),
                ("create -f -", "apiVersion: moorline.dev/v1alpha1\nkind: Ship\nmetadata: {name: ada}\n"),
            ],
        ),
        scene(
            "discovery",
            &[
                ("api-resources --api-group=moorline.dev", ""),
                ("api-resources --api-group=moorline.dev -o wide --no-headers", ""),
            ],
        ),
        Scene {
            newer: Some((
                "1.24: explain reads OpenAPI version 3",
                &[
                    "berths <[]Object>",
                    "name <string> -required-",
                    "enum: red, green",
                    "crew <[]string>",
                    "Labels, to select by",
                ],
            )),
            ..scene(
                "explain",
                &[("explain boats.spec.berths", ""), ("explain boats --recursive", ""), ("explain boats.metadata", "")],
            )
        },
        scene("edit", &[("create -f -", ADA), ("edit boat ada", ""), ("get boat ada -o jsonpath={.spec.metres}", "")]),
    ]
}

/// What one command printed and how it ended, without what must differ.
fn outcome(command: &mut Command, input: &str, dir: &str) -> Result<String> {
    let output = run(command, input.as_bytes())?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut lines = vec![format!("exit {:?}", output.status.code())];
    // Names of temporary files, and the times and ids of `diff`.
    let own = ["+++ ", "--- ", "diff -u", "@@", "resourceVersion:", "uid:", "time:", "creationTimestamp:"];
    for line in out.lines().chain(err.lines()) {
        if own.iter().any(|o| line.contains(o)) {
            continue;
        }
        let line = line.replace(dir, "<dir>");
        lines.push(line.split_whitespace().map(|w| if is_age(w) { "<age>" } else { w }).collect::<Vec<_>>().join(" "));
    }
    Ok(lines.join("\n"))
}

fn is_age(word: &str) -> bool {
    word.strip_suffix('s').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn outcomes(scene: &Scene, binary: &Path, access: &[String]) -> Result<Vec<String>> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("ada.yaml"), ADA)?;
    std::fs::write(dir.path().join("bob.yaml"), BOB)?;
    let kustomization = "resources: [ada.yaml, bob.yaml]\nnamePrefix: north-\nlabels: [{pairs: {fleet: north}}]\n";
    std::fs::write(dir.path().join("kustomization.yaml"), kustomization)?;
    let path = dir.path().display().to_string();
    let one = |(line, input): &(&str, &str)| {
        let mut command = Command::new(binary);
        command.args(access).args(line.split(' ').map(|word| word.replace("{dir}", &path)));
        command.env("HOME", dir.path()).env("KUBE_EDITOR", "sed -i s/metres:.10/metres:\\ 15/");
        outcome(&mut command, input, &path)
    };
    scene.commands.iter().map(one).collect()
}

pub fn check(world: &World, binary: &Path, scene: &Scene) -> Result<()> {
    clear(&world.real)?;
    clear(&world.ours)?;
    let real = [format!("--kubeconfig={}", world.real.dir.join("kubeconfig").display())];
    let ours = ["--kubeconfig=/dev/null".to_owned(), format!("--server=http://{}", world.ours.address)];
    let real = outcomes(scene, binary, &real)?;
    let ours = outcomes(scene, binary, &ours)?;
    let verdict = if let Some((since, wanted)) = scene.newer {
        let all = ours.join("\n");
        wanted.iter().try_for_each(|w| {
            ensure!(all.contains(w), "no {w:?} in\n{all}");
            Ok(())
        })?;
        format!("newer than 1.20: {since}")
    } else {
        same(scene, &real, &ours)?;
        "same".to_owned()
    };
    println!("| kubectl {} | {} commands | {verdict} |", scene.name, scene.commands.len());
    Ok(())
}

fn same(scene: &Scene, real: &[String], ours: &[String]) -> Result<()> {
    let mut wrong = Vec::new();
    for ((real, ours), (line, _)) in real.iter().zip(ours).zip(&scene.commands) {
        if real != ours {
            wrong.push(format!("$ kubectl {line}\n--- real\n{real}\n--- ours\n{ours}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}
