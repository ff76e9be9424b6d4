//! Stream headers: target, class, principal.

use super::{
    checked,
    inside::{put_inside, take_inside},
    limits, within_message,
};
use crate::{
    header::{ActAs, Class, Principal, StreamHeader, Target},
    tlv::{Fields, Need::Critical, Need::Optional, WireError, Writer},
};
use alloc::{string::String, vec::Vec};

impl StreamHeader {
    /// Appends the header's TLV form, without a length in front.
    ///
    /// # Errors
    /// A value is over its limit in [`limits`], or not allowed.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let start = out.len();
        let mut w = Writer::new(out);
        w.nested(1, Critical, |w| {
            match &self.target {
                Target::Kube => w.number(1, Critical, 1),
                Target::Inside(inside) => put_inside(w, inside)?,
                Target::Echo => w.number(1, Critical, 3),
                Target::Shell => w.number(1, Critical, 6),
                Target::Endpoint => w.number(1, Critical, 9),
                Target::Node => w.number(1, Critical, 10),
            }
            Ok(())
        })?;
        let class = match self.class {
            Class::Interactive => 0,
            Class::Watch => 1,
            Class::Bulk => 2,
        };
        w.number(2, Optional, class);
        if self.deadline_ms != 0 {
            w.number(3, Optional, self.deadline_ms);
        }
        if let Some(traceparent) = &self.traceparent {
            w.name(4, Optional, "traceparent", traceparent, limits::TRACEPARENT)?;
        }
        if let Some(principal) = &self.principal {
            w.nested(5, Critical, |w| {
                put_user(w, &principal.user, &principal.uid, &principal.groups, &principal.extra)?;
                match &principal.act_as {
                    Some(other) => {
                        w.nested(5, Critical, |w| put_user(w, &other.user, &other.uid, &other.groups, &other.extra))
                    }
                    None => Ok(()),
                }
            })?;
        }
        within_message(out, start, "stream header")
    }

    /// Reads a header from exactly these bytes.
    ///
    /// # Errors
    /// Broken framing, a field twice, a value over its limit, or something that must be understood and is not.
    pub fn decode(message: &[u8]) -> Result<Self, WireError> {
        let (mut target, mut class, mut deadline_ms) = (None, Class::default(), 0);
        let (mut traceparent, mut principal) = (None, None);
        let mut fields = checked(message, "stream header")?;
        while let Some(field) = fields.next()? {
            match field.number {
                1..=5 => fields.once(&field)?,
                _ => field.skip()?,
            }
            match field.number {
                1 => target = Some(take_target(field.value)?),
                2 => {
                    class = match field.number::<u64>("class")? {
                        1 => Class::Watch,
                        2 => Class::Bulk,
                        _ => Class::Interactive, // an unknown urgency harms nobody
                    }
                }
                3 => deadline_ms = field.number("deadline")?,
                4 => traceparent = Some(field.name("traceparent", limits::TRACEPARENT)?),
                5 => principal = Some(take_principal(field.value)?),
                _ => {}
            }
        }
        let target = target.ok_or(WireError::Missing { what: "target" })?;
        Ok(Self { target, class, deadline_ms, traceparent, principal })
    }
}

fn take_target(message: &[u8]) -> Result<Target, WireError> {
    let mut kind = None;
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next()? {
        if field.number == 1 {
            fields.once(&field)?;
            kind = Some(field.number::<u64>("target kind")?);
        }
    }
    // The other fields are read when the kind is known: of a kind we do not know, we know no fields either.
    match kind.ok_or(WireError::Missing { what: "target kind" })? {
        kind @ (1 | 3 | 6 | 9 | 10) => {
            let mut fields = Fields::new(message);
            while let Some(field) = fields.next()? {
                match field.number {
                    1 => {}
                    2..=7 => return Err(WireError::BadValue { what: "target" }),
                    _ => field.skip()?,
                }
            }
            Ok(match kind {
                1 => Target::Kube,
                3 => Target::Echo,
                6 => Target::Shell,
                10 => Target::Node,
                _ => Target::Endpoint,
            })
        }
        kind @ (2 | 4 | 5) => take_inside(kind, message).map(Target::Inside),
        kind => Err(WireError::UnknownTarget(kind)),
    }
}

type Extra = [(String, Vec<String>)];

fn put_user(w: &mut Writer<'_>, user: &str, uid: &str, groups: &[String], extra: &Extra) -> Result<(), WireError> {
    if user.is_empty() {
        return Err(WireError::Missing { what: "user" });
    }
    w.name(1, Critical, "user", user, limits::NAME)?;
    if !uid.is_empty() {
        w.name(2, Critical, "uid", uid, limits::NAME)?;
    }
    if groups.len() > limits::GROUPS {
        return Err(WireError::TooMany { what: "groups" });
    }
    for group in groups {
        w.name(3, Critical, "group", group, limits::NAME)?;
    }
    if extra.len() > limits::EXTRAS {
        return Err(WireError::TooMany { what: "extra attributes" });
    }
    for (key, values) in extra {
        if values.len() > limits::EXTRA_VALUES {
            return Err(WireError::TooMany { what: "extra values" });
        }
        w.nested(4, Critical, |w| {
            w.name(1, Critical, "extra key", key, limits::NAME)?;
            values.iter().try_for_each(|value| w.name(2, Critical, "extra value", value, limits::NAME))
        })?;
    }
    Ok(())
}

fn take_principal(message: &[u8]) -> Result<Principal, WireError> {
    let (user, act_as) = take_user(message, true)?;
    let ActAs { user, uid, groups, extra } = user;
    Ok(Principal { user, uid, groups, extra, act_as })
}

/// A user's fields; with `outer`, also whom the user asks to act as.
fn take_user(message: &[u8], outer: bool) -> Result<(ActAs, Option<ActAs>), WireError> {
    let (mut user, mut act_as) = (ActAs::default(), None);
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next()? {
        match field.number {
            1 | 2 => fields.once(&field)?,
            5 if outer => fields.once(&field)?,
            3 if user.groups.len() == limits::GROUPS => return Err(WireError::TooMany { what: "groups" }),
            4 if user.extra.len() == limits::EXTRAS => return Err(WireError::TooMany { what: "extra attributes" }),
            3 | 4 => {}
            _ => field.skip()?,
        }
        match field.number {
            1 => user.user = field.name("user", limits::NAME)?,
            2 => user.uid = field.name("uid", limits::NAME)?,
            3 => user.groups.push(field.name("group", limits::NAME)?),
            4 => user.extra.push(take_extra(field.value)?),
            5 if outer => act_as = Some(take_user(field.value, false)?.0),
            _ => {}
        }
    }
    if user.user.is_empty() {
        return Err(WireError::Missing { what: "user" });
    }
    Ok((user, act_as))
}

fn take_extra(message: &[u8]) -> Result<(String, Vec<String>), WireError> {
    let (mut key, mut values) = (None, Vec::new());
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next()? {
        match field.number {
            1 => {
                fields.once(&field)?;
                key = Some(field.name("extra key", limits::NAME)?);
            }
            2 if values.len() == limits::EXTRA_VALUES => return Err(WireError::TooMany { what: "extra values" }),
            2 => values.push(field.name("extra value", limits::NAME)?),
            _ => field.skip()?,
        }
    }
    Ok((key.ok_or(WireError::Missing { what: "extra key" })?, values))
}
