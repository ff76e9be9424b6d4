//! Label and field selectors.

use crate::{ApiError, KindSpec};
use serde_json::Value;

/// A selector that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0}")]
pub struct SelectorError(String);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// `a=b,c!=d,e in (f,g),h notin (i),j,!k`: all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<(String, Test)>);

impl LabelSelector {
    /// Reads one; empty selects everything.
    ///
    /// # Errors
    /// The text is no selector.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        split(text).into_iter().map(requirement).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the labels (`metadata.labels` of an object) satisfy it.
    pub fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|(key, test)| {
            let value = labels.get(key).and_then(Value::as_str);
            match test {
                Test::In(any) => value.is_some_and(|v| any.iter().any(|a| a == v)),
                Test::NotIn(none) => value.is_none_or(|v| none.iter().all(|n| n != v)),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
            }
        })
    }
}

/// At commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0u32, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    if !text.trim().is_empty() {
        parts.push(&text[from..]);
    }
    parts
}

fn requirement(text: &str) -> Result<(String, Test), SelectorError> {
    let text = text.trim();
    let bad = || SelectorError(format!("{text:?}"));
    let (key, test) = if let Some(key) = text.strip_prefix('!') {
        (key.trim(), Test::Absent)
    } else if let Some(open) = text.find('(') {
        let inside = text[open + 1..].strip_suffix(')').ok_or_else(bad)?;
        let values: Vec<String> = inside.split(',').map(|v| v.trim().to_owned()).collect();
        let mut head = text[..open].split_whitespace();
        match (head.next(), head.next(), head.next()) {
            (Some(key), Some("in"), None) => (key, Test::In(values)),
            (Some(key), Some("notin"), None) => (key, Test::NotIn(values)),
            _ => return Err(bad()),
        }
    } else if let Some((key, value)) = text.split_once("!=") {
        (key.trim(), Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key.trim(), Test::In(vec![value.trim().to_owned()]))
    } else {
        (text, Test::Exists)
    };
    let values_ok = match &test {
        Test::In(values) | Test::NotIn(values) => values.iter().all(|v| crate::names::label_value(v)),
        Test::Exists | Test::Absent => true,
    };
    if !crate::names::qualified(key) || !values_ok {
        return Err(bad());
    }
    Ok((key.to_owned(), test))
}

/// `metadata.name=x,spec.cluster!=y`: all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct FieldSelector(Vec<(String, bool, String)>);

impl FieldSelector {
    pub(crate) fn parse(text: &str, kind: &KindSpec) -> Result<Self, ApiError> {
        let mut all = Vec::new();
        for part in text.split(',').filter(|p| !p.trim().is_empty()) {
            let found = part
                .split_once("!=")
                .map(|(f, v)| (f, false, v))
                .or_else(|| part.split_once("==").map(|(f, v)| (f, true, v)))
                .or_else(|| part.split_once('=').map(|(f, v)| (f, true, v)));
            let Some((field, equal, value)) = found else {
                return Err(ApiError::bad_request(format!("invalid field selector {part:?}")));
            };
            let field = field.trim();
            if !matches!(field, "metadata.name" | "metadata.namespace") && !kind.selectable.contains(&field) {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
            all.push((format!("/{}", field.replace('.', "/")), equal, value.trim().to_owned()));
        }
        Ok(Self(all))
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(pointer, equal, value)| {
            let found = match object.pointer(pointer) {
                Some(Value::String(s)) => s.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            (found == *value) == *equal
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_select() {
        let labels = json!({"env": "prod", "tier": "web"});
        for (text, selects) in [
            ("", true),
            ("env=prod", true),
            ("env==prod,tier=web", true),
            ("env!=prod", false),
            ("gone!=x", true),
            ("env in (dev, prod)", true),
            ("env in (dev),tier", false),
            ("env notin (dev,test),!gone", true),
            ("!env", false),
            ("gone", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&labels), selects, "{text}");
        }
        for bad in ["env in prod", "env in (prod", "=x", "a b", "env=(x", "a=b c", ",", "x within (a)"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
        assert!(!LabelSelector::parse("a=1").unwrap().matches(&Value::Null));
    }
}
