//! Targets inside a cluster.

use super::limits;
use crate::{
    inside::{Destination, Inside, Labels, Payload},
    tlv::{Fields, Need::Critical, WireError, Writer},
};
use alloc::{string::String, vec::Vec};

/// The fields of a target inside a cluster, its kind first.
pub(super) fn put_inside(w: &mut Writer<'_>, inside: &Inside) -> Result<(), WireError> {
    let bad = |_| WireError::BadValue { what: "target" };
    // What was put together by hand is held to the same rules as what is read.
    if inside.to.checked().map_err(bad)? != inside.to {
        return Err(WireError::BadValue { what: "target" });
    }
    match &inside.to {
        Destination::Host { host, port } => {
            w.number(1, Critical, 2);
            w.name(2, Critical, "host", host, limits::HOST)?;
            w.number(3, Critical, (*port).into());
        }
        Destination::Service { namespace, name, port } | Destination::Pod { namespace, name, port } => {
            let service = matches!(inside.to, Destination::Service { .. });
            w.number(1, Critical, if service { 4 } else { 5 });
            w.name(2, Critical, "name", name, limits::HOST)?;
            w.name(4, Critical, "namespace", namespace, limits::HOST)?;
            w.name(5, Critical, "port", port, limits::PORT)?;
        }
    }
    if inside.payload != Payload::Bytes {
        w.number(6, Critical, inside.payload.number());
    }
    if inside.labels.len() > limits::LABEL_SETS {
        return Err(WireError::TooMany { what: "label sets" });
    }
    for set in &inside.labels {
        if set.len() > limits::LABELS {
            return Err(WireError::TooMany { what: "labels" });
        }
        w.nested(7, Critical, |w| {
            set.iter().try_for_each(|(key, value)| {
                w.nested(1, Critical, |w| {
                    w.name(1, Critical, "label key", key, limits::LABEL_KEY)?;
                    w.name(2, Critical, "label value", value, limits::LABEL_VALUE)
                })
            })
        })?;
    }
    Ok(())
}

/// Reads a target of `kind` from exactly these bytes.
pub(super) fn take_inside(kind: u64, message: &[u8]) -> Result<Inside, WireError> {
    let (mut name, mut number, mut namespace, mut port) = (None, None, None, None);
    let (mut payload, mut labels) = (Payload::Bytes, Vec::new());
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next()? {
        match field.number {
            1..=6 => fields.once(&field)?,
            7 if labels.len() == limits::LABEL_SETS => return Err(WireError::TooMany { what: "label sets" }),
            7 => {}
            _ => field.skip()?,
        }
        match field.number {
            2 => name = Some(field.name("host", limits::HOST)?),
            3 => number = Some(field.number::<u16>("port")?),
            4 => namespace = Some(field.name("namespace", limits::HOST)?),
            5 => port = Some(field.name("port", limits::PORT)?),
            6 => {
                let read = Payload::from_number(field.number("payload")?);
                payload = read.ok_or(WireError::BadValue { what: "payload" })?;
            }
            7 => labels.push(take_labels(field.value)?),
            _ => {}
        }
    }
    let to = match (kind, name, number, namespace, port) {
        (2, Some(host), Some(port), None, None) => Destination::host(&host, port),
        (4, Some(name), None, Some(namespace), Some(port)) => Destination::service(&namespace, &name, &port),
        (5, Some(name), None, Some(namespace), Some(port)) => Destination::pod(&namespace, &name, &port),
        _ => return Err(WireError::BadValue { what: "target" }),
    };
    Ok(Inside { to: to.map_err(|_| WireError::BadValue { what: "target" })?, payload, labels })
}

fn take_labels(message: &[u8]) -> Result<Labels, WireError> {
    let mut set = Labels::new();
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next()? {
        match field.number {
            1 if set.len() == limits::LABELS => return Err(WireError::TooMany { what: "labels" }),
            1 => set.push(take_label(field.value)?),
            _ => field.skip()?,
        }
    }
    Ok(set)
}

fn take_label(message: &[u8]) -> Result<(String, String), WireError> {
    let (mut key, mut value) = (None, None);
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next()? {
        match field.number {
            1 | 2 => fields.once(&field)?,
            _ => field.skip()?,
        }
        match field.number {
            1 => key = Some(field.name("label key", limits::LABEL_KEY)?),
            2 => value = Some(field.name("label value", limits::LABEL_VALUE)?),
            _ => {}
        }
    }
    key.zip(value).ok_or(WireError::Missing { what: "label" })
}
