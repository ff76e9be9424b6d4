//! Services that clusters share: columns and rules.

use super::{invalid, joined, text};
use crate::kinds::{CONFLICT, READY, ServiceExportSpec, ServiceImportSpec};
use moorline_apiserver::{Cause, Column, KindSpec, dns_label};
use moorline_proto::id::ClusterId;
use serde_json::Value;
use std::collections::BTreeSet;

fn why(object: &Value) -> Value {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().find(|c| text(c, "/type") == READY);
    Value::from(ready.map_or("", |c| text(c, "/reason")))
}

fn ports(object: &Value, at: &str) -> Value {
    let list = object.pointer(at).and_then(Value::as_array).into_iter().flatten();
    let shown = |port: &Value| {
        let number = port.get("port")?.as_u64()?;
        Some(if text(port, "/protocol") == "UDP" { format!("{number}/UDP") } else { number.to_string() })
    };
    Value::from(list.filter_map(shown).collect::<Vec<_>>().join(","))
}

/// Names of clusters, of a namespace and of a service at these pointers.
fn check(object: &Value, names: &[(&'static str, &str)], clusters: (&'static str, &str)) -> Vec<Cause> {
    let mut wrong = Vec::new();
    if text(object, "/spec/cluster").parse::<ClusterId>().is_err() {
        wrong.push(invalid("spec.cluster", "not a cluster name"));
    }
    for (field, at) in names {
        let name = text(object, at);
        if !name.is_empty()
            && let Err(e) = dns_label(name)
        {
            wrong.push(invalid(field, e));
        }
    }
    for name in object.pointer(clusters.1).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if name != "*" && name.parse::<ClusterId>().is_err() {
            wrong.push(invalid(clusters.0, format!("{name:?} is no cluster name")));
        }
    }
    wrong
}

pub(super) fn export() -> KindSpec {
    KindSpec::of::<ServiceExportSpec>()
        .column(Column::at("Cluster", "/spec/cluster"))
        .column(Column::at("Namespace", "/spec/namespace"))
        .column(Column::at("Service", "/spec/service"))
        .column(Column::with("Ports", |object| ports(object, "/spec/ports")))
        .column(Column::with("Importers", joined("/spec/importers")).described("Clusters that may import it"))
        .column(Column::condition("Ready", READY))
        .column(Column::with("Why", why))
        .column(Column::condition("Conflict", CONFLICT).wide())
        .selectable(&["spec.cluster"])
        .validate(|object, _| {
            let names = [("spec.namespace", "/spec/namespace"), ("spec.service", "/spec/service")];
            let mut wrong = check(object, &names, ("spec.importers", "/spec/importers"));
            let list = object.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
            let (mut numbers, mut called) = (BTreeSet::new(), BTreeSet::new());
            for port in list {
                let name = text(port, "/name");
                let number = port.get("port").and_then(Value::as_u64).unwrap_or_default();
                let udp = text(port, "/protocol") == "UDP";
                let name_or_default = match (name, udp) {
                    ("", false) => format!("port-{number}"),
                    ("", true) => format!("udp-{number}"),
                    (name, _) => name.to_owned(),
                };
                if !numbers.insert((number, udp)) || !called.insert(name_or_default) {
                    wrong.push(invalid("spec.ports", "a number or a name stands there twice"));
                }
                if !name.is_empty() && (name.len() > 15 || dns_label(name).is_err()) {
                    wrong.push(invalid("spec.ports", format!("{name:?} is no name of a port")));
                }
            }
            wrong
        })
}

pub(super) fn import() -> KindSpec {
    KindSpec::of::<ServiceImportSpec>()
        .column(Column::at("Cluster", "/spec/cluster"))
        .column(Column::at("Namespace", "/spec/namespace"))
        .column(Column::at("Service", "/spec/service"))
        .column(Column::at("Address", "/status/address").described("Of the service in its cluster"))
        .column(Column::with("Ports", |object| ports(object, "/status/ports")))
        .column(Column::with("From", joined("/status/clusters")).described("Clusters that it comes from"))
        .column(Column::condition("Ready", READY))
        .column(Column::with("Why", why))
        .selectable(&["spec.cluster"])
        .validate(|object, old| {
            let names = [
                ("spec.namespace", "/spec/namespace"),
                ("spec.service", "/spec/service"),
                ("spec.from.namespace", "/spec/from/namespace"),
                ("spec.from.service", "/spec/from/service"),
            ];
            let mut wrong = check(object, &names, ("spec.from.clusters", "/spec/from/clusters"));
            for (field, at) in [
                ("spec.cluster", "/spec/cluster"),
                ("spec.namespace", "/spec/namespace"),
                ("spec.service", "/spec/service"),
            ] {
                if old.is_some_and(|old| text(old, at) != text(object, at)) {
                    wrong.push(invalid(field, "the address of an import is not moved; make another import"));
                }
            }
            wrong
        })
}
