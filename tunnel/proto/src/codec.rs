//! How headers, verdicts and control messages are written: every field number of the wire stands here, and in
//! `tunnel/SPEC.md`. A number is never used again for anything else.

use crate::{
    code::{CloseCode, RefuseCode},
    control::{Control, Goodbye, Hello, Welcome},
    header::{ActAs, Class, Principal, Refusal, StreamHeader, Target, Verdict},
    id::InstanceId,
    tlv::{Fields, MAX_MESSAGE, Need::Critical, Need::Optional, WireError, Writer, put_varint, take_varint},
};
use alloc::{borrow::ToOwned, string::String, vec::Vec};

/// Bounds on what a message may hold, checked by its writer and by its reader.
pub mod limits {
    /// Longest user name, uid, group, extra key or extra value, in bytes.
    pub const NAME: usize = 1024;
    /// Groups of one user.
    pub const GROUPS: usize = 1024;
    /// Extra attributes of one user.
    pub const EXTRAS: usize = 64;
    /// Values of one extra attribute.
    pub const EXTRA_VALUES: usize = 64;
    /// Longest `traceparent`, in bytes: version 00 has 55 (W3C Trace Context §3.2), later ones may be longer.
    pub const TRACEPARENT: usize = 128;
    /// Longest host name of a TCP target, in bytes (RFC 1035 §2.3.4, as text).
    pub const HOST: usize = 253;
    /// Longest software version, in bytes.
    pub const SOFTWARE: usize = 128;
    /// Capabilities in one greeting.
    pub const CAPABILITIES: usize = 64;
    /// Longest name of a capability or fact, in bytes.
    pub const KEY: usize = 64;
    /// Facts in one message.
    pub const FACTS: usize = 64;
    /// Longest value of a fact, in bytes.
    pub const FACT: usize = 1024;
    /// Longest certificate or signing request (DER), in bytes.
    pub const CERTIFICATE: usize = 16 * 1024;
    /// Certificates in one chain or bundle.
    pub const CERTIFICATES: usize = 16;
}

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
                Target::Tcp { host, port } => {
                    w.number(1, Critical, 2);
                    w.name(2, Critical, "host", host, limits::HOST)?;
                    w.number(3, Critical, (*port).into());
                }
                Target::Echo => w.number(1, Critical, 3),
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
    let (mut kind, mut host, mut port) = (None, None, None);
    let mut fields = Fields::new(message);
    let mut unknown = Ok(());
    while let Some(field) = fields.next()? {
        match field.number {
            1..=3 => fields.once(&field)?,
            // Said after the kind was seen: of a kind we do not know, we know no fields either.
            _ => unknown = unknown.and(field.skip()),
        }
        match field.number {
            1 => kind = Some(field.number::<u64>("target kind")?),
            2 => host = Some(field.name("host", limits::HOST)?),
            3 => port = Some(field.number::<u16>("port")?),
            _ => {}
        }
    }
    match (kind.ok_or(WireError::Missing { what: "target kind" })?, host, port) {
        (1, None, None) => unknown.map(|()| Target::Kube),
        (2, Some(host), Some(port)) if !host.is_empty() && port != 0 => unknown.map(|()| Target::Tcp { host, port }),
        (3, None, None) => unknown.map(|()| Target::Echo),
        (1..=3, _, _) => Err(WireError::BadValue { what: "target" }),
        (kind, _, _) => Err(WireError::UnknownTarget(kind)),
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

impl Refusal {
    /// Appends the refusal's TLV form. Its message is cut at [`crate::tlv::MAX_TEXT`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.number(1, Critical, self.code.number());
        w.text(2, &self.message);
        if self.retry_elsewhere {
            w.number(3, Optional, 1);
        }
    }

    /// Reads a refusal from exactly these bytes.
    ///
    /// # Errors
    /// Broken framing, a field twice, or something that must be understood and is not.
    pub fn decode(message: &[u8]) -> Result<Self, WireError> {
        let (mut code, mut text, mut retry_elsewhere) = (None, String::new(), false);
        let mut fields = checked(message, "refusal")?;
        while let Some(field) = fields.next()? {
            match field.number {
                1..=3 => fields.once(&field)?,
                _ => field.skip()?,
            }
            match field.number {
                1 => code = Some(RefuseCode::from_number(field.number("refusal code")?)),
                2 => text = field.text(),
                3 => retry_elsewhere = field.number::<u64>("retry elsewhere")? == 1,
                _ => {}
            }
        }
        let code = code.ok_or(WireError::Missing { what: "refusal code" })?;
        Ok(Self { code, message: text, retry_elsewhere })
    }
}

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

impl Verdict {
    /// The record that says "accepted".
    pub const ACCEPTED: [u8; 1] = [ACCEPTED];

    /// Appends the verdict record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Accepted => out.push(ACCEPTED),
            Self::Refused(refusal) => {
                let mut body = Vec::new();
                refusal.encode(&mut body);
                out.push(REFUSED);
                put_length(out, body.len());
                out.extend_from_slice(&body);
            }
        }
    }
}

/// Reads the verdict record off the front of an answer without taking a byte of what follows.
#[derive(Debug, Default)]
pub struct VerdictReader {
    taken: Vec<u8>,
}
impl VerdictReader {
    /// How many bytes to pass to [`VerdictReader::push`] at most. Never 0 before the verdict is known.
    pub fn wants(&self) -> usize {
        match self.announced() {
            None if self.taken.is_empty() => 1,
            None => 5usize.saturating_sub(self.taken.len()),
            Some(len) => (5 + len).saturating_sub(self.taken.len()),
        }
    }

    fn announced(&self) -> Option<usize> {
        let bytes: [u8; 4] = self.taken.get(1..5)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    }

    /// Takes the next bytes of the answer, at most [`VerdictReader::wants`] of them. `Ok(None)`: more are needed.
    ///
    /// # Errors
    /// The record is none. The length is checked before a byte of the refusal is kept.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Verdict>, WireError> {
        self.taken.extend_from_slice(bytes);
        match self.taken.first() {
            None => return Ok(None),
            Some(&ACCEPTED) => return Ok(Some(Verdict::Accepted)),
            Some(&REFUSED) => {}
            Some(_) => return Err(WireError::BadValue { what: "verdict" }),
        }
        match self.announced() {
            Some(len) if len > MAX_MESSAGE => Err(WireError::TooLong { what: "refusal" }),
            Some(len) if self.taken.len() >= 5 + len => {
                let body = self.taken.get(5..5 + len).ok_or(WireError::Truncated)?;
                Refusal::decode(body).map(|refusal| Some(Verdict::Refused(refusal)))
            }
            _ => Ok(None),
        }
    }
}

const HELLO: u64 = 1;
const WELCOME: u64 = 2;
const GOODBYE: u64 = 3;
const PING: u64 = 4;
const PONG: u64 = 5;
const DRAIN: u64 = 6;
const RENEW: u64 = 7;
const RENEWED: u64 = 8;
const RENEW_REFUSED: u64 = 9;
const FACTS: u64 = 10;

impl Control {
    /// Appends the message, without a length in front.
    ///
    /// # Errors
    /// A value is over its limit in [`limits`], or not allowed.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let start = out.len();
        let kind = match self {
            Self::Hello(_) => HELLO,
            Self::Welcome(_) => WELCOME,
            Self::Goodbye(_) => GOODBYE,
            Self::Ping(_) => PING,
            Self::Pong(_) => PONG,
            Self::Drain { .. } => DRAIN,
            Self::Renew { .. } => RENEW,
            Self::Renewed { .. } => RENEWED,
            Self::RenewRefused { .. } => RENEW_REFUSED,
            Self::Facts(_) => FACTS,
        };
        // All kinds of version 1 must be understood; a later kind may be sent with the bit clear and is then skipped.
        put_varint(out, kind << 1 | 1);
        let mut w = Writer::new(out);
        match self {
            Self::Hello(hello) => {
                w.number(1, Critical, hello.min_version.into());
                w.number(2, Critical, hello.max_version.into());
                w.fixed64(3, Critical, hello.instance.0);
                w.name(4, Optional, "software", &hello.software, limits::SOFTWARE)?;
                put_capabilities(&mut w, 5, &hello.capabilities)?;
                put_facts(&mut w, 6, &hello.facts)?;
                w.fixed64(7, Optional, hello.now_ms);
            }
            Self::Welcome(welcome) => {
                w.number(1, Critical, welcome.version.into());
                w.name(2, Optional, "software", &welcome.software, limits::SOFTWARE)?;
                put_capabilities(&mut w, 3, &welcome.capabilities)?;
                w.fixed64(4, Optional, welcome.now_ms);
            }
            Self::Goodbye(goodbye) => {
                w.number(1, Critical, goodbye.code.number());
                w.text(2, &goodbye.message);
                if goodbye.retry_after_ms != 0 {
                    w.number(3, Optional, goodbye.retry_after_ms);
                }
            }
            Self::Ping(n) | Self::Pong(n) => w.fixed64(1, Critical, *n),
            Self::Drain { grace_ms } => w.number(1, Critical, *grace_ms),
            Self::Renew { csr } => {
                if csr.len() > limits::CERTIFICATE {
                    return Err(WireError::TooLong { what: "signing request" });
                }
                w.bytes(1, Critical, csr);
            }
            Self::Renewed { chain, bundle } => {
                put_certificates(&mut w, 1, chain)?;
                put_certificates(&mut w, 2, bundle)?;
            }
            Self::RenewRefused { message } => w.text(1, message),
            Self::Facts(facts) => put_facts(&mut w, 1, facts)?,
        }
        within_message(out, start, "control message")
    }

    /// Reads a message from exactly these bytes. `Ok(None)`: of a kind that this version may ignore.
    ///
    /// # Errors
    /// Broken framing, a field twice, a value over its limit, or something that must be understood and is not.
    pub fn decode(message: &[u8]) -> Result<Option<Self>, WireError> {
        if message.len() > MAX_MESSAGE {
            return Err(WireError::TooLong { what: "control message" });
        }
        let mut body = message;
        let kind = take_varint(&mut body)?;
        let fields = Fields::new(body);
        match kind >> 1 {
            HELLO => take_hello(fields).map(Self::Hello),
            WELCOME => take_welcome(fields).map(Self::Welcome),
            GOODBYE => take_goodbye(fields).map(Self::Goodbye),
            PING => take_fixed64(fields).map(Self::Ping),
            PONG => take_fixed64(fields).map(Self::Pong),
            DRAIN => take_drain(fields),
            RENEW => take_renew(fields),
            RENEWED => take_renewed(fields),
            RENEW_REFUSED => take_renew_refused(fields),
            FACTS => take_only_facts(fields),
            _ if kind & 1 == 0 => return Ok(None),
            unknown => return Err(WireError::UnknownMessage(unknown)),
        }
        .map(Some)
    }

    /// The kind of message, for logs and metric labels: a bounded set.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Welcome(_) => "welcome",
            Self::Goodbye(_) => "goodbye",
            Self::Ping(_) => "ping",
            Self::Pong(_) => "pong",
            Self::Drain { .. } => "drain",
            Self::Renew { .. } => "renew",
            Self::Renewed { .. } => "renewed",
            Self::RenewRefused { .. } => "renew_refused",
            Self::Facts(_) => "facts",
        }
    }
}

fn take_hello(mut fields: Fields<'_>) -> Result<Hello, WireError> {
    let (mut min, mut max, mut instance, mut now_ms) = (None, None, None, 0);
    let (mut software, mut capabilities, mut facts) = (String::new(), Vec::new(), Vec::new());
    while let Some(field) = fields.next()? {
        match field.number {
            1..=4 | 7 => fields.once(&field)?,
            5 | 6 => {}
            _ => field.skip()?,
        }
        match field.number {
            1 => min = Some(field.number("version")?),
            2 => max = Some(field.number("version")?),
            3 => instance = Some(InstanceId(field.fixed64("instance")?)),
            4 => software = field.name("software", limits::SOFTWARE)?,
            5 => push(&mut capabilities, "capabilities", limits::CAPABILITIES, field.name("capability", limits::KEY)?)?,
            6 => push(&mut facts, "facts", limits::FACTS, take_fact(field.value)?)?,
            7 => now_ms = field.fixed64("clock")?,
            _ => {}
        }
    }
    let missing = |what| WireError::Missing { what };
    let (min_version, max_version) = (min.ok_or(missing("version"))?, max.ok_or(missing("version"))?);
    if min_version > max_version {
        return Err(WireError::BadValue { what: "version" });
    }
    let instance = instance.ok_or(missing("instance"))?;
    Ok(Hello { min_version, max_version, instance, software, capabilities, facts, now_ms })
}

fn take_welcome(mut fields: Fields<'_>) -> Result<Welcome, WireError> {
    let (mut version, mut software, mut capabilities, mut now_ms) = (None, String::new(), Vec::new(), 0);
    while let Some(field) = fields.next()? {
        match field.number {
            1 | 2 | 4 => fields.once(&field)?,
            3 => {}
            _ => field.skip()?,
        }
        match field.number {
            1 => version = Some(field.number("version")?),
            2 => software = field.name("software", limits::SOFTWARE)?,
            3 => push(&mut capabilities, "capabilities", limits::CAPABILITIES, field.name("capability", limits::KEY)?)?,
            4 => now_ms = field.fixed64("clock")?,
            _ => {}
        }
    }
    let version = version.ok_or(WireError::Missing { what: "version" })?;
    Ok(Welcome { version, software, capabilities, now_ms })
}

fn take_goodbye(mut fields: Fields<'_>) -> Result<Goodbye, WireError> {
    let (mut code, mut message, mut retry_after_ms) = (None, String::new(), 0);
    while let Some(field) = fields.next()? {
        match field.number {
            1..=3 => fields.once(&field)?,
            _ => field.skip()?,
        }
        match field.number {
            1 => code = Some(CloseCode::from_number(field.number("close code")?)),
            2 => message = field.text(),
            3 => retry_after_ms = field.number("pause")?,
            _ => {}
        }
    }
    Ok(Goodbye { code: code.ok_or(WireError::Missing { what: "close code" })?, message, retry_after_ms })
}

fn take_fixed64(mut fields: Fields<'_>) -> Result<u64, WireError> {
    let mut number = None;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => {
                fields.once(&field)?;
                number = Some(field.fixed64("number")?);
            }
            _ => field.skip()?,
        }
    }
    number.ok_or(WireError::Missing { what: "number" })
}

fn take_drain(mut fields: Fields<'_>) -> Result<Control, WireError> {
    let mut grace_ms = None;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => {
                fields.once(&field)?;
                grace_ms = Some(field.number("grace")?);
            }
            _ => field.skip()?,
        }
    }
    Ok(Control::Drain { grace_ms: grace_ms.ok_or(WireError::Missing { what: "grace" })? })
}

fn take_renew(mut fields: Fields<'_>) -> Result<Control, WireError> {
    let mut csr = None;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => {
                fields.once(&field)?;
                csr = Some(field.bytes("signing request", limits::CERTIFICATE)?.to_owned());
            }
            _ => field.skip()?,
        }
    }
    Ok(Control::Renew { csr: csr.ok_or(WireError::Missing { what: "signing request" })? })
}

fn take_renewed(mut fields: Fields<'_>) -> Result<Control, WireError> {
    let (mut chain, mut bundle) = (Vec::new(), Vec::new());
    while let Some(field) = fields.next()? {
        let list = match field.number {
            1 => &mut chain,
            2 => &mut bundle,
            _ => {
                field.skip()?;
                continue;
            }
        };
        let certificate = field.bytes("certificate", limits::CERTIFICATE)?.to_owned();
        push(list, "certificates", limits::CERTIFICATES, certificate)?;
    }
    if chain.is_empty() || bundle.is_empty() {
        return Err(WireError::Missing { what: "certificates" });
    }
    Ok(Control::Renewed { chain, bundle })
}

fn take_renew_refused(mut fields: Fields<'_>) -> Result<Control, WireError> {
    let mut message = String::new();
    while let Some(field) = fields.next()? {
        match field.number {
            1 => {
                fields.once(&field)?;
                message = field.text();
            }
            _ => field.skip()?,
        }
    }
    Ok(Control::RenewRefused { message })
}

fn take_only_facts(mut fields: Fields<'_>) -> Result<Control, WireError> {
    let mut facts = Vec::new();
    while let Some(field) = fields.next()? {
        match field.number {
            1 => push(&mut facts, "facts", limits::FACTS, take_fact(field.value)?)?,
            _ => field.skip()?,
        }
    }
    Ok(Control::Facts(facts))
}

fn take_fact(message: &[u8]) -> Result<(String, String), WireError> {
    let (mut key, mut value) = (None, String::new());
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next()? {
        match field.number {
            1 | 2 => fields.once(&field)?,
            _ => field.skip()?,
        }
        match field.number {
            1 => key = Some(field.name("fact key", limits::KEY)?),
            2 => value = field.name("fact", limits::FACT)?,
            _ => {}
        }
    }
    Ok((key.ok_or(WireError::Missing { what: "fact key" })?, value))
}

fn put_facts(w: &mut Writer<'_>, number: u64, facts: &[(String, String)]) -> Result<(), WireError> {
    if facts.len() > limits::FACTS {
        return Err(WireError::TooMany { what: "facts" });
    }
    facts.iter().try_for_each(|(key, value)| {
        w.nested(number, Optional, |w| {
            w.name(1, Critical, "fact key", key, limits::KEY)?;
            w.name(2, Critical, "fact", value, limits::FACT)
        })
    })
}

fn put_capabilities(w: &mut Writer<'_>, number: u64, names: &[String]) -> Result<(), WireError> {
    if names.len() > limits::CAPABILITIES {
        return Err(WireError::TooMany { what: "capabilities" });
    }
    names.iter().try_for_each(|name| w.name(number, Optional, "capability", name, limits::KEY))
}

fn put_certificates(w: &mut Writer<'_>, number: u64, list: &[Vec<u8>]) -> Result<(), WireError> {
    if list.is_empty() {
        return Err(WireError::Missing { what: "certificates" });
    }
    if list.len() > limits::CERTIFICATES {
        return Err(WireError::TooMany { what: "certificates" });
    }
    for certificate in list {
        if certificate.len() > limits::CERTIFICATE {
            return Err(WireError::TooLong { what: "certificate" });
        }
        w.bytes(number, Critical, certificate);
    }
    Ok(())
}

fn push<T>(list: &mut Vec<T>, what: &'static str, max: usize, item: T) -> Result<(), WireError> {
    if list.len() == max {
        return Err(WireError::TooMany { what });
    }
    list.push(item);
    Ok(())
}

fn checked<'a>(message: &'a [u8], what: &'static str) -> Result<Fields<'a>, WireError> {
    if message.len() > MAX_MESSAGE { Err(WireError::TooLong { what }) } else { Ok(Fields::new(message)) }
}

fn within_message(out: &[u8], start: usize, what: &'static str) -> Result<(), WireError> {
    if out.len() - start > MAX_MESSAGE { Err(WireError::TooLong { what }) } else { Ok(()) }
}

/// The `u32` length in front of headers, refusals and control messages.
fn put_length(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
}

/// Appends `u32 length | message` as stands in front of a stream or on the control stream.
///
/// # Errors
/// What `encode` says.
pub fn put_framed(
    out: &mut Vec<u8>,
    encode: impl FnOnce(&mut Vec<u8>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let mut body = Vec::new();
    encode(&mut body)?;
    put_length(out, body.len());
    out.extend_from_slice(&body);
    Ok(())
}

/// The length that 4 bytes announce.
///
/// # Errors
/// Over [`MAX_MESSAGE`].
pub fn announced_length(bytes: [u8; 4]) -> Result<usize, WireError> {
    match usize::try_from(u32::from_be_bytes(bytes)) {
        Ok(len) if len <= MAX_MESSAGE => Ok(len),
        _ => Err(WireError::TooLong { what: "message" }),
    }
}

#[cfg(test)]
mod tests;
