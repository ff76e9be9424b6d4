//! What `kubectl get` prints: `Table` of `meta.k8s.io/v1`, made at the server.

use crate::KindSpec;
use jiff::Timestamp;
use serde_json::{Value, json};

/// What the table's rows carry besides their cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

pub(crate) fn table(
    kind: &KindSpec,
    objects: impl Iterator<Item = impl std::ops::Deref<Target = Value>>,
    include: Include,
    metadata: Value,
) -> Value {
    let mut columns = vec![json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Name of the object, unique within its kind",
    })];
    columns.extend(kind.columns.iter().map(|c| {
        let kind = if c.kind == "date" { "string" } else { c.kind };
        json!({ "name": c.name, "type": kind, "format": "", "priority": c.priority, "description": c.description })
    }));
    columns.push(json!({
        "name": "Age", "type": "string", "format": "", "priority": 0, "description": "Time since it was created",
    }));
    let rows: Vec<Value> = objects.map(|object| row(kind, &object, include)).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

fn row(kind: &KindSpec, object: &Value, include: Include) -> Value {
    let mut cells = vec![object["metadata"]["name"].clone()];
    for column in &kind.columns {
        let cell = (column.cell)(object);
        cells.push(if column.kind == "date" { age(&cell) } else { cell });
    }
    cells.push(age(&object["metadata"]["creationTimestamp"]));
    let object = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(object),
        Include::Object => object.clone(),
    };
    json!({ "cells": cells, "object": object })
}

/// An object without spec and status.
pub(crate) fn partial(object: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] })
}

fn age(since: &Value) -> Value {
    let since: Option<Timestamp> = since.as_str().and_then(|s| s.parse().ok());
    since.map_or("<unknown>".into(), |at| human(Timestamp::now().as_second() - at.as_second()).into())
}

/// A duration as kubectl prints ages: `42s`, `3m5s`, `5h`, `7d3h` (apimachinery's `HumanDuration`).
fn human(seconds: i64) -> String {
    let s = seconds.max(0);
    let (minutes, hours, days) = (s / 60, s / 3600, s / 86_400);
    let pair = |a: i64, b: i64, units: (&str, &str)| match b {
        0 => format!("{a}{}", units.0),
        b => format!("{a}{}{b}{}", units.0, units.1),
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => pair(minutes, s % 60, ("m", "s")),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, minutes % 60, ("h", "m")),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, hours % 24, ("d", "h")),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, days % 365, ("y", "d")),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_like_kubectls() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (185, "3m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
