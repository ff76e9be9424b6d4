//! OpenAPI version 2 in the one form that kubectl asks for: protobuf, message `openapi.v2.Document` of gnostic.
//!
//! Only what kubectl reads is written: schemas, and which parameters a patch takes. Field numbers are those of gnostic's
//! `OpenAPIv2.proto`.

use serde_json::{Map, Value};

/// Names of the type. The answer has the first: `@` is no character of a media type, though kubectl asks with it.
pub(crate) const MEDIA: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
];

/// The bytes of one message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        loop {
            let low = u8::try_from(value & 0x7f).unwrap_or(0x7f);
            value >>= 7;
            if value == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }

    /// A field of bytes: wire type 2.
    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// A text that the document has, if it has it.
    fn text(&mut self, field: u64, value: &Value) {
        if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, value: &Value) {
        for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    /// A `Named…`: name and value.
    fn named(&mut self, field: u64, name: &str, value: &Self) {
        let mut pair = Self::default();
        pair.bytes(1, name.as_bytes());
        pair.message(2, value);
        self.message(field, &pair);
    }

    /// What begins with `x-`, as `NamedAny` with its text; JSON is YAML.
    fn extensions(&mut self, field: u64, map: &Map<String, Value>) {
        for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, &any(value));
        }
    }
}

fn any(value: &Value) -> Message {
    let mut any = Message::default();
    any.bytes(2, value.to_string().as_bytes());
    any
}

/// A document of version 2 as a `Document`.
pub(crate) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    out.message(2, &info);
    let mut paths = Message::default();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let mut methods = Message::default();
        for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
            if let Some(found) = item[method].as_object() {
                methods.message(field, &operation(found));
            }
        }
        paths.named(2, path, &methods);
    }
    out.message(8, &paths);
    let mut definitions = Message::default();
    for (name, found) in document["definitions"].as_object().into_iter().flatten() {
        definitions.named(1, name, &schema(found));
    }
    out.message(9, &definitions);
    out.0
}

fn operation(found: &Map<String, Value>) -> Message {
    let at = |key: &str| found.get(key).unwrap_or(&Value::Null);
    let mut out = Message::default();
    out.text(5, at("operationId"));
    out.texts(6, at("produces"));
    out.texts(7, at("consumes"));
    for parameter in at("parameters").as_array().into_iter().flatten().filter(|p| p["in"] == "query") {
        let mut query = Message::default();
        query.text(2, &parameter["in"]);
        query.text(4, &parameter["name"]);
        query.text(6, &parameter["type"]);
        // ParametersItem.parameter.non_body_parameter.query_parameter_sub_schema
        let wrapped = [3, 2, 1].into_iter().fold(query, |inner, field| {
            let mut outer = Message::default();
            outer.message(field, &inner);
            outer
        });
        out.message(8, &wrapped);
    }
    out.message(9, &Message::default());
    out.extensions(13, found);
    out
}

fn schema(found: &Value) -> Message {
    let mut out = Message::default();
    let Some(map) = found.as_object() else { return out };
    out.text(1, &found["$ref"]);
    out.text(2, &found["format"]);
    out.text(4, &found["description"]);
    if let Some(default) = map.get("default") {
        out.message(5, &any(default));
    }
    out.texts(19, &found["required"]);
    for value in found["enum"].as_array().into_iter().flatten() {
        out.message(20, &any(value));
    }
    if let Some(inner) = map.get("additionalProperties").filter(|v| v.is_object()) {
        let mut item = Message::default();
        item.message(1, &schema(inner));
        out.message(21, &item);
    }
    if found["type"].is_string() {
        let mut kind = Message::default();
        kind.text(1, &found["type"]);
        out.message(22, &kind);
    }
    if let Some(inner) = map.get("items").filter(|v| v.is_object()) {
        let mut item = Message::default();
        item.message(1, &schema(inner));
        out.message(23, &item);
    }
    if let Some(fields) = found["properties"].as_object() {
        let mut properties = Message::default();
        for (name, inner) in fields {
            properties.named(1, name, &schema(inner));
        }
        out.message(25, &properties);
    }
    out.extensions(31, map);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_are_those_of_the_wire_format() {
        let found = schema(&json!({ "type": "string", "description": "d".repeat(200) }));
        // Field 4, 200 bytes as a varint of two; field 22 with field 1 inside.
        assert_eq!(found.0[..3], [4 << 3 | 2, 0xc8, 0x01]);
        assert_eq!(found.0[203..], [0xb2, 0x01, 8, 0x0a, 6, b's', b't', b'r', b'i', b'n', b'g']);
    }
}
