//! A request, taken apart: path, parameters, body.

use crate::{
    ApiError, Cause, KindSpec, LabelSelector, Limits,
    body::BoxError,
    negotiate::{Form, Syntax},
    ops::{Part, Unknown, WriteOptions, name_of},
    patch,
    select::FieldSelector,
    versions::View,
    watch::Selects,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc};

/// Query parameters. A name that comes twice: the first wins, as in Go's `url.Values.Get`.
pub(crate) struct Query(HashMap<String, String>);

impl Query {
    pub(crate) fn read(parts: &Parts) -> Result<Self, ApiError> {
        let mut out = HashMap::new();
        for pair in parts.uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key)?, decode(value)?);
            out.entry(key).or_insert(value);
        }
        Ok(Self(out))
    }

    /// A parameter; `None`: not there, or empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A switch, as Kubernetes' query conversion reads it: there and neither `false` nor `0`.
    pub(crate) fn is_true(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

fn decode(text: &str) -> Result<String, ApiError> {
    let bad = || ApiError::bad_request("the query is not valid");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let pair = [bytes.next().ok_or_else(bad)?, bytes.next().ok_or_else(bad)?];
                let digits = std::str::from_utf8(&pair).map_err(|_| bad())?;
                u8::from_str_radix(digits, 16).map_err(|_| bad())?
            }
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| bad())
}

/// A request for objects.
pub(crate) struct Call<'a> {
    /// As it is asked for, in that version.
    pub(crate) kind: &'a KindSpec,
    /// As it is stored.
    pub(crate) stored: &'a KindSpec,
    /// Between the two, where they differ.
    pub(crate) view: Option<&'a Arc<View>>,
    pub(crate) name: &'a str,
    pub(crate) part: Part,
    pub(crate) query: Query,
    pub(crate) form: Form,
    pub(crate) syntax: Syntax,
    /// Who writes, for `metadata.managedFields`.
    pub(crate) manager: String,
}

/// Longest name of a field manager, as kube-apiserver has it.
const MANAGER: usize = 128;

/// The name under which a writer's fields are kept: what it says, or the first word of its user agent.
pub(crate) fn manager(query: &Query, headers: &HeaderMap) -> Result<String, ApiError> {
    if let Some(said) = query.get("fieldManager") {
        if MANAGER < said.len() {
            let causes =
                [Cause::new("FieldValueTooLong", "fieldManager", format!("must have at most {MANAGER} bytes"))];
            return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", &causes));
        }
        if said.chars().any(char::is_control) {
            let causes =
                [Cause::invalid("fieldManager", format!("{said:?}: should only contain printable characters"))];
            return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", &causes));
        }
        return Ok(said.to_owned());
    }
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let first: String = agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    Ok(if first.is_empty() { "unknown".into() } else { first.chars().take(MANAGER).collect() })
}

impl Call<'_> {
    /// A stored object in the version that is asked for.
    pub(crate) fn see(&self, stored: Arc<Value>) -> Arc<Value> {
        self.view.map_or_else(|| Arc::clone(&stored), |view| Arc::new(view.see(&stored)))
    }

    /// An object as it was sent, in the version that is stored; how to write it; and what to warn of.
    pub(crate) fn take(
        &self,
        sent: Value,
        options: WriteOptions,
        whole: bool,
    ) -> Result<(Value, WriteOptions, Vec<String>), ApiError> {
        let Some(view) = self.view else { return Ok((sent, options, Vec::new())) };
        let (object, warnings) = view.take(self.stored, sent, options.unknown, whole)?;
        // What the version does not know was said; what the other one does not is not the sender's doing.
        Ok((object, WriteOptions { unknown: Unknown::Drop, ..options }, warnings))
    }

    pub(crate) fn subresource(&self) -> &'static str {
        self.part.subresource()
    }

    /// How the write that is asked for is to be done. `kind`: of the options, in errors.
    pub(crate) fn write_options(&self, kind: &str) -> Result<WriteOptions, ApiError> {
        let unsupported = |field: &str, given: &str, supported: &str| {
            let cause =
                Cause::new("FieldValueNotSupported", field, format!("{given:?}: supported values: {supported}"));
            ApiError::invalid("meta.k8s.io", kind, "", &[cause])
        };
        let dry_run = match self.query.get("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => return Err(unsupported("dryRun", other, "\"All\"")),
        };
        // Without a wish the server warns, as kube-apiserver does.
        let unknown = match self.query.get("fieldValidation") {
            None | Some("Warn") => Unknown::Warn,
            Some("Strict") => Unknown::Refuse,
            Some("Ignore") => Unknown::Drop,
            Some(other) => return Err(unsupported("fieldValidation", other, "\"Ignore\", \"Strict\", \"Warn\"")),
        };
        Ok(WriteOptions { unknown, dry_run, unconditional: false })
    }

    /// What the selectors of the request choose.
    pub(crate) fn selects(&self) -> Result<Selects, ApiError> {
        let labels = LabelSelector::parse(self.query.get("labelSelector").unwrap_or_default())
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(self.query.get("fieldSelector").unwrap_or_default(), self.kind)?;
        let name = self.name.to_owned();
        Ok(Arc::new(move |object: &Value| {
            (name.is_empty() || name_of(object) == name)
                && labels.matches(&object["metadata"]["labels"])
                && fields.matches(object)
        }))
    }

    /// The one name that it selects, if it does: then no other object has to be looked at.
    pub(crate) fn only(&self) -> Option<&str> {
        if !self.name.is_empty() {
            return Some(self.name);
        }
        self.query.get("fieldSelector")?.split(',').find_map(|part| {
            let (field, value) = part.split_once('=')?;
            (field.trim() == "metadata.name").then(|| value.strip_prefix('=').unwrap_or(value).trim())
        })
    }

    /// Whether [`Call::selects`] is true of every object.
    pub(crate) fn selects_all(&self) -> bool {
        let none = |key| self.query.get(key).is_none_or(str::is_empty);
        self.name.is_empty() && none("labelSelector") && none("fieldSelector")
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        let bad = |_| ApiError::bad_request(format!("{key} must be a number"));
        self.query.get(key).map(|text| text.parse().map_err(bad)).transpose()
    }
}

/// Reads bodies within their bounds.
pub(crate) struct Reader<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) limits: &'a Limits,
}

impl Reader<'_> {
    pub(crate) fn content_type(&self) -> &str {
        let text = self.parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim()
    }

    /// A whole body, never more than the limit.
    pub(crate) async fn bytes<B>(&self, body: B) -> Result<Bytes, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let limit = self.limits.body;
        let too_large = || {
            let message = format!("the request body must not have more than {limit} bytes");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
        };
        if self.parts.headers.get(header::CONTENT_ENCODING).is_some_and(|v| v != "identity") {
            return Err(unsupported("the body of the request must not be compressed"));
        }
        let length = self.parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|n| u64::try_from(limit).is_ok_and(|limit| limit < n)) {
            return Err(too_large());
        }
        let whole = Box::pin(Limited::new(body, limit).collect());
        match tokio::time::timeout(self.limits.body_time, whole).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(ApiError::bad_request(format!("the request body ended early: {error}"))),
            Err(_) => {
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "Timeout", "the request body did not come in time"))
            }
        }
    }

    /// An object in JSON or YAML.
    pub(crate) async fn object<B>(&self, body: B) -> Result<Value, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let syntax = match self.content_type() {
            "" | "application/json" => Syntax::Json,
            "application/yaml" => Syntax::Yaml,
            _ => {
                return Err(unsupported(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json, application/yaml",
                ));
            }
        };
        parse(syntax, &self.bytes(body).await?)
    }
}

pub(crate) fn unsupported(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
}

/// One document.
pub(crate) fn parse(syntax: Syntax, bytes: &[u8]) -> Result<Value, ApiError> {
    let bad = |why: String| ApiError::bad_request(format!("the object provided is unrecognized: {why}"));
    match syntax {
        Syntax::Json => serde_json::from_slice(bytes).map_err(|e| bad(e.to_string())),
        Syntax::Yaml => {
            let value: Value = serde_saphyr::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
            // The JSON reader bounds its nesting itself.
            if patch::DEPTH < patch::depth(&value) { Err(patch::too_deep()) } else { Ok(value) }
        }
    }
}

/// A `resourceVersion` parameter.
pub(crate) fn revision(text: Option<&str>) -> Result<Option<u64>, ApiError> {
    let bad = |text| {
        let cause = Cause::invalid("resourceVersion", format!("{text:?}: must be a number"));
        ApiError::invalid("", "ListOptions", "", &[cause])
    };
    text.map(|text| text.parse().map_err(|_| bad(text))).transpose()
}
