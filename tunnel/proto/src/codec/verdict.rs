//! The acceptor's verdict, and why it refused.

use super::{checked, put_length};
use crate::{
    code::RefuseCode,
    header::{Refusal, Verdict},
    tlv::{MAX_MESSAGE, Need::Critical, Need::Optional, WireError, Writer},
};
use alloc::{string::String, vec::Vec};

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
