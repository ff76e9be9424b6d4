//! Two answers, without what must differ.

use crate::{rows::Row, target::Answer};
use serde_json::{Value, json};

/// The answers of one row, in the form in which they are compared.
pub fn normal(answers: &[Answer], row: &Row) -> Vec<Value> {
    // Ids and revisions are each server's own; within a row they stand for the same thing.
    let mut own = Vec::new();
    for answer in answers {
        collect(&answer.body, &mut own);
    }
    own.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    let steps = answers.iter().map(|answer| {
        let mut body = answer.body.clone();
        clean(&mut body, &own, row);
        if body["kind"] == "APIResourceList"
            && let Some(resources) = body["resources"].as_array_mut()
        {
            // The real one lists them in the order in which it heard of the definitions: any.
            resources.sort_by_key(|resource| resource["name"].to_string());
        }
        let mut out = json!({ "code": answer.code, "body": body });
        if !answer.warnings.is_empty() {
            out["warnings"] = json!(answer.warnings);
        }
        if row.media {
            out["media"] = answer.content_type.clone().into();
        }
        for pointer in row.without {
            if let Some((parent, field)) = pointer.rsplit_once('/') {
                match out.pointer_mut(parent) {
                    Some(Value::Object(map)) => drop(map.remove(field)),
                    Some(Value::Array(all)) => {
                        all.iter_mut().filter_map(Value::as_object_mut).for_each(|o| drop(o.remove(field)));
                    }
                    _ => {}
                }
            }
        }
        out
    });
    steps.collect()
}

/// Longer than anything that a row itself sends as a uid.
const OWN: usize = 8;

/// The values that are a server's own, with what stands for them.
fn collect(value: &Value, into: &mut Vec<(String, &'static str)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let stand_in = match key.as_str() {
                    "uid" => "<uid>",
                    "continue" => "<continue>",
                    _ => "",
                };
                match value.as_str() {
                    Some(text) if !stand_in.is_empty() && OWN < text.len() => into.push((text.to_owned(), stand_in)),
                    _ => collect(value, into),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|v| collect(v, into)),
        _ => {}
    }
}

fn clean(value: &mut Value, own: &[(String, &'static str)], row: &Row) {
    match value {
        Value::Object(map) => {
            if !row.managers {
                map.remove("managedFields");
            }
            // `null` and "not there" are one to every client.
            map.retain(|k, v| !(v.is_null() || k == "continue" && v == ""));
            if let Some(Value::Array(all)) = map.get_mut("managedFields") {
                in_order(all);
            }
            for (key, value) in map {
                match (key.as_str(), &*value) {
                    ("resourceVersion", Value::String(text)) if text != "0" => *value = "<rv>".into(),
                    ("creationTimestamp" | "deletionTimestamp" | "time", Value::String(_)) => *value = "<time>".into(),
                    _ => clean(value, own, row),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|v| clean(v, own, row)),
        Value::String(text) => {
            for (theirs, stand_in) in own {
                if text.contains(theirs.as_str()) {
                    *text = text.replace(theirs.as_str(), stand_in);
                }
            }
            if row.numbers {
                *text = without_numbers(text);
            }
        }
        _ => {}
    }
}

/// Within an operation a server lists managers by the second in which they wrote, and then by name: whether a second passes
/// between two writes is chance.
fn in_order(managers: &mut [Value]) {
    for one in managers.chunk_by_mut(|a, b| a["operation"] == b["operation"]) {
        one.sort_by_key(|manager| (manager["manager"].to_string(), manager["subresource"].to_string()));
    }
}

/// Digits, which in some messages are revisions.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let digit = c.is_ascii_digit();
        if !(digit && out.ends_with('#')) {
            out.push(if digit { '#' } else { c });
        }
    }
    out
}

/// Codes and reasons: `201, 409 Conflict`.
pub fn short(steps: &[Value]) -> String {
    let one = |step: &Value| {
        let reason = step["body"]["reason"].as_str().unwrap_or_default();
        format!("{} {reason}", step["code"]).trim().to_owned()
    };
    steps.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Where they differ, for whoever reads the failure.
pub fn difference(real: &[Value], ours: &[Value]) -> String {
    let mut out = Vec::new();
    for (i, (real, ours)) in real.iter().zip(ours).enumerate() {
        differ(&format!("step {}", i + 1), real, ours, &mut out);
    }
    out.join("\n")
}

fn differ(path: &str, real: &Value, ours: &Value, out: &mut Vec<String>) {
    if real == ours {
        return;
    }
    match (real, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let gone = a.keys().filter(|k| !b.contains_key(*k));
            for key in b.keys().chain(gone) {
                differ(
                    &format!("{path}/{key}"),
                    &a.get(key).cloned().unwrap_or_default(),
                    &b.get(key).cloned().unwrap_or_default(),
                    out,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&format!("{path}/{i}"), a, b, out);
            }
        }
        _ => out.push(format!("{path}\n  real {real}\n  ours {ours}")),
    }
}
