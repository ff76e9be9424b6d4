//! Messages of the control stream.

use super::{limits, within_message};
use crate::{
    code::CloseCode,
    control::{Control, Goodbye, Hello, Welcome},
    id::InstanceId,
    tlv::{Fields, MAX_MESSAGE, Need::Critical, Need::Optional, WireError, Writer, put_varint, take_varint},
};
use alloc::{borrow::ToOwned, string::String, vec::Vec};

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
