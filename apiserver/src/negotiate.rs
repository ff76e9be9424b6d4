//! What form a client wants its answer in, and the answer in that form.

use crate::{
    ApiError, KindSpec,
    body::full,
    openapi_pb,
    table::{Include, partial, table},
};
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use std::io::Write as _;

/// How objects are shown: whole, as table rows, or their metadata alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Whole,
    Table(Include),
    Partial,
}

/// One object as the client wants it.
pub(crate) fn render(kind: &KindSpec, object: &Value, form: Form) -> Value {
    match form {
        Form::Whole => object.clone(),
        Form::Partial => partial(object),
        Form::Table(include) => {
            let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
            table(kind, std::iter::once(object), include, metadata)
        }
    }
}

/// One entry of an `Accept` header.
struct Media<'a> {
    kind: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Media<'_> {
    fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }
}

/// The entries of `Accept`, the most wanted first (RFC 9110 §12.5.1).
fn accepted(headers: &HeaderMap) -> Vec<Media<'_>> {
    let text = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).filter(|v| !v.trim().is_empty());
    let mut all: Vec<(f32, Media<'_>)> = text
        .unwrap_or("*/*")
        .split(',')
        .map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.filter_map(|p| p.split_once('=')).collect();
            let quality = parameters.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
            (quality, Media { kind, parameters })
        })
        .filter(|(quality, _)| 0.0 < *quality)
        .collect();
    all.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    all.into_iter().map(|(_, media)| media).collect()
}

/// Text formats that objects are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    Json,
    Yaml,
}

impl Syntax {
    fn of(media: &str) -> Option<Self> {
        match media {
            "application/json" | "application/*" | "*/*" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

fn not_acceptable(also: &str) -> ApiError {
    let message = format!("only the following media types are accepted: application/json, application/yaml{also}");
    ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
}

/// The form and syntax for objects of this API.
///
/// # Errors
/// 406: nothing that is accepted can be made, protobuf above all.
pub(crate) fn objects(headers: &HeaderMap, include: Option<&str>) -> Result<(Form, Syntax), ApiError> {
    for media in accepted(headers) {
        let Some(syntax) = Syntax::of(media.kind) else { continue };
        let ours = matches!(media.parameter("v"), "" | "v1") && matches!(media.parameter("g"), "" | "meta.k8s.io");
        let form = match media.parameter("as") {
            "" => Form::Whole,
            "Table" if ours => Form::Table(match include {
                Some("None") => Include::None,
                Some("Object") => Include::Object,
                _ => Include::Metadata,
            }),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if ours => Form::Partial,
            _ => continue,
        };
        return Ok((form, syntax));
    }
    Err(not_acceptable(""))
}

/// Which shape of discovery is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// One document for each group and version.
    Legacy,
    /// All in one (`APIGroupDiscoveryList`) of this version of `apidiscovery.k8s.io`.
    Aggregated(&'static str),
    /// OpenAPI version 2 as protobuf.
    Protobuf,
}

impl Discovery {
    pub(crate) fn media(self) -> Option<&'static str> {
        match self {
            Self::Legacy => None,
            Self::Protobuf => Some(openapi_pb::MEDIA[0]),
            Self::Aggregated("v2beta1") => {
                Some("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList")
            }
            Self::Aggregated(_) => Some("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
        }
    }
}

/// The shape of discovery documents. `open_api`: of OpenAPI version 2.
///
/// # Errors
/// 406: as for objects.
pub(crate) fn discovery(headers: &HeaderMap, open_api: bool) -> Result<Discovery, ApiError> {
    for media in accepted(headers) {
        if open_api && openapi_pb::MEDIA.contains(&media.kind) {
            return Ok(Discovery::Protobuf);
        }
        if !matches!(media.kind, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let asked = (media.parameter("as"), media.parameter("g"), media.parameter("v"));
        match asked {
            ("", ..) => return Ok(Discovery::Legacy),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => return Ok(Discovery::Aggregated("v2")),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => return Ok(Discovery::Aggregated("v2beta1")),
            _ => {}
        }
    }
    Err(not_acceptable(""))
}

/// A whole answer, not yet written.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: StatusCode,
    pub(crate) value: Value,
    pub(crate) warnings: Vec<String>,
    pub(crate) syntax: Syntax,
    /// Another media type than that of the syntax.
    pub(crate) media: Option<&'static str>,
    /// Written already, in that type.
    pub(crate) written: Option<Vec<u8>>,
}

impl Reply {
    pub(crate) fn new(code: StatusCode, value: Value) -> Self {
        Self { code, value, warnings: Vec::new(), syntax: Syntax::Json, media: None, written: None }
    }

    pub(crate) fn ok(value: Value) -> Self {
        Self::new(StatusCode::OK, value)
    }

    pub(crate) fn warning(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    pub(crate) fn into_response(self, headers: &HeaderMap) -> Response<crate::Body> {
        let (text, content_type) = match (self.written, self.syntax) {
            (Some(bytes), _) => (bytes, "application/octet-stream"),
            (None, Syntax::Json) => (self.value.to_string().into_bytes(), "application/json"),
            (None, Syntax::Yaml) => match serde_saphyr::to_string(&self.value) {
                Ok(text) => (text.into_bytes(), "application/yaml"),
                Err(_) => (self.value.to_string().into_bytes(), "application/json"),
            },
        };
        let (bytes, packed) = pack(text, headers);
        let mut response = Response::new(full(bytes));
        *response.status_mut() = self.code;
        let out = response.headers_mut();
        out.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media.unwrap_or(content_type)));
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if packed {
            out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            out.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        for warning in self.warnings {
            // RFC 9111 §5.5 as Kubernetes uses it: code 299, the agent `-`, the text quoted.
            let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
                out.append(header::WARNING, value);
            }
        }
        response
    }
}

/// Answers from this size on are compressed for those who take gzip, as kube-apiserver does.
const WORTH_PACKING: usize = 128 * 1024;

fn pack(bytes: Vec<u8>, headers: &HeaderMap) -> (Vec<u8>, bool) {
    let accepts = |v: &HeaderValue| v.to_str().is_ok_and(|v| v.split(',').any(takes_gzip));
    if bytes.len() < WORTH_PACKING || !headers.get_all(header::ACCEPT_ENCODING).iter().any(accepts) {
        return (bytes, false);
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    match encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
        Ok(packed) => (packed, true),
        Err(_) => (bytes, false),
    }
}

fn takes_gzip(item: &str) -> bool {
    let mut parts = item.split(';').map(str::trim);
    let refused = |p: &str| p.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0);
    matches!(parts.next(), Some("gzip")) && !parts.any(refused)
}
