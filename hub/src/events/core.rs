//! The same events as Kubernetes' own clients look for them: `kubectl describe` asks for core/v1, whatever it describes.

use crate::kinds::API_VERSION;
use serde_json::{Value, json};
use url::form_urlencoded;

/// Whether a path lists events of core/v1. The hub's objects have no namespace, so each has all of them.
pub(crate) fn is_core_events(path: &str) -> bool {
    match path.strip_prefix("/api/v1/") {
        Some("events") => true,
        Some(rest) => {
            let namespace = rest.strip_prefix("namespaces/").and_then(|rest| rest.strip_suffix("/events"));
            namespace.is_some_and(|namespace| !namespace.is_empty() && !namespace.contains('/'))
        }
        None => false,
    }
}

fn asked(query: &str, name: &str) -> Option<String> {
    let pairs = form_urlencoded::parse(query.as_bytes());
    pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Whether a query asks for what comes, rather than for what is there: a parameter that is there and not said to be false,
/// as Kubernetes reads it.
pub(crate) fn is_watch(query: Option<&str>) -> bool {
    query
        .and_then(|query| asked(query, "watch"))
        .is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
}

/// A list of the hub's events as an `EventList` of core/v1: those that a query's `fieldSelector` asks for by
/// `involvedObject.*`.
pub(crate) fn core_events(list: &Value, query: Option<&str>) -> Value {
    let selector = query.and_then(|query| asked(query, "fieldSelector")).unwrap_or_default();
    // `a=b`, `a==b`, `a!=b`.
    let terms = selector.split(',').filter_map(|term| term.split_once('='));
    let wanted: Vec<(&str, bool, &str)> = terms
        .map(|(key, value)| match key.strip_suffix('!') {
            Some(key) => (key, false, value),
            None => (key, true, value.trim_start_matches('=')),
        })
        .collect();
    let items = list["items"].as_array().into_iter().flatten().map(core_event);
    let fits = |event: &Value| {
        wanted.iter().all(|(key, equal, value)| {
            let pointer = format!("/{}", key.replace('.', "/"));
            // A field that is not there is empty.
            (event.pointer(&pointer).and_then(Value::as_str).unwrap_or_default() == *value) == *equal
        })
    };
    let items: Vec<Value> = items.filter(fits).collect();
    json!({ "apiVersion": "v1", "kind": "EventList", "metadata": list["metadata"], "items": items })
}

fn core_event(event: &Value) -> Value {
    let (metadata, spec) = (&event["metadata"], &event["spec"]);
    let about = &spec["involved"];
    json!({
        "metadata": {
            "name": metadata["name"], "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"], "namespace": "default",
        },
        "involvedObject": {
            "apiVersion": API_VERSION, "kind": about["kind"], "name": about["name"], "uid": about["uid"],
        },
        "type": spec["type"], "reason": spec["reason"], "message": spec["message"], "count": spec["count"],
        "firstTimestamp": spec["firstTime"], "lastTimestamp": spec["lastTime"],
        "source": { "component": "moorline-hub" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_events() {
        assert!(is_core_events("/api/v1/events") && is_core_events("/api/v1/namespaces/default/events"));
        assert!(!is_core_events("/api/v1/namespaces/a/b/events") && !is_core_events("/api/v1/pods"));
        assert!(!is_core_events("/api/v1/namespaces//events") && !is_core_events("/apis/x/v1/events"));
    }

    #[test]
    fn what_is_asked_for_by_its_object_is_found() {
        let event = |name: &str| {
            json!({ "metadata": { "name": format!("{name}.x") }, "spec": {
                "involved": { "kind": "Cluster", "name": name, "uid": "u" }, "reason": "X", "count": 2,
            }})
        };
        let list = json!({ "metadata": { "resourceVersion": "7" }, "items": [event("a"), event("b")] });
        let all = core_events(&list, None);
        assert_eq!((all["kind"].as_str(), all["items"].as_array().unwrap().len()), (Some("EventList"), 2));
        let query =
            "fieldSelector=involvedObject.name%3Da%2CinvolvedObject.namespace%3D%2CinvolvedObject.uid%3D%3Du&limit=500";
        let one = core_events(&list, Some(query));
        let [one] = &one["items"].as_array().unwrap()[..] else { panic!("{one}") };
        assert_eq!((one["involvedObject"]["name"].as_str(), one["count"].as_u64()), (Some("a"), Some(2)));
        let others = core_events(&list, Some("fieldSelector=involvedObject.name%21%3Da,reason%21%3DY"));
        let [other] = &others["items"].as_array().unwrap()[..] else { panic!("{others}") };
        assert_eq!(other["involvedObject"]["name"], "b");
        for (query, watches) in
            [("watch", true), ("watch=True", true), ("a=b&watch=1", true), ("watch=false", false), ("w", false)]
        {
            assert_eq!(is_watch(Some(query)), watches, "{query}");
        }
    }
}
