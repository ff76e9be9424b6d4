//! The chain: each record names the hash of the one before it, and its own. Whoever edits, cuts out, adds or reorders
//! records breaks it, unless they write everything after it anew; a copy of any later hash, kept elsewhere, shows that.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::io::Write as _;

/// Length of a hash in text: SHA-256 as base64url without padding.
const HASH: usize = 43;
/// What stands between a record's text and its own hash.
const MARK: &[u8] = b",\"hash\":\"";

/// Where a chain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Number of the next record.
    pub next: u64,
    /// Hash of the last one.
    pub last: String,
}

impl Default for Chain {
    fn default() -> Self {
        Self { next: 1, last: "A".repeat(HASH) }
    }
}

fn hash(text: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(text))
}

impl Chain {
    /// Makes a record, a JSON object that ends with `}`, a link of the chain, and puts it into `out` as one line.
    pub fn seal(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let open = record.trim_ascii_end().strip_suffix(b"}").unwrap_or(record);
        let begin = out.len();
        out.extend_from_slice(open);
        let comma = if open.trim_ascii_end().ends_with(b"{") { "" } else { "," };
        let _ = write!(out, "{comma}\"seq\":{},\"prev\":\"{}\"", self.next, self.last); // into memory: it does not fail
        self.last.clear();
        URL_SAFE_NO_PAD.encode_string(Sha256::digest(out.get(begin..).unwrap_or_default()), &mut self.last);
        self.next += 1;
        out.extend_from_slice(MARK);
        out.extend_from_slice(self.last.as_bytes());
        out.extend_from_slice(b"\"}\n");
    }

    /// Follows one line, without its end.
    ///
    /// # Errors
    /// What is wrong with it. The chain stays where it was.
    pub fn follow(&mut self, line: &[u8]) -> Result<(), Flaw> {
        let link = Link::read(line)?;
        if link.seq != self.next {
            return Err(Flaw::Order { wanted: self.next, found: link.seq });
        }
        if link.prev != self.last {
            return Err(Flaw::Prev { seq: link.seq });
        }
        (self.next, self.last) = (link.seq + 1, link.hash);
        Ok(())
    }

    /// Where a chain is after this line, whatever came before it.
    ///
    /// # Errors
    /// The line is not a link.
    pub fn after(line: &[u8]) -> Result<Self, Flaw> {
        let link = Link::read(line)?;
        Ok(Self { next: link.seq + 1, last: link.hash })
    }

    /// Where a chain was before this line.
    ///
    /// # Errors
    /// The line is not a link.
    pub fn before(line: &[u8]) -> Result<Self, Flaw> {
        let link = Link::read(line)?;
        Ok(Self { next: link.seq, last: link.prev })
    }
}

/// What a line says of itself, its own hash checked.
struct Link {
    seq: u64,
    prev: String,
    hash: String,
}

#[derive(Deserialize)]
struct Fields {
    seq: u64,
    prev: String,
    hash: String,
}

impl Link {
    fn read(line: &[u8]) -> Result<Self, Flaw> {
        let Fields { seq, prev, hash: said } = serde_json::from_slice(line).map_err(|_| Flaw::Unreadable)?;
        let text = line.len().checked_sub(MARK.len() + HASH + 2).and_then(|end| line.get(..end));
        let text = text.filter(|text| line.get(text.len()..).is_some_and(|rest| rest.starts_with(MARK)));
        match text {
            Some(text) if hash(text) == said => Ok(Self { seq, prev, hash: said }),
            _ => Err(Flaw::Edited { seq }),
        }
    }
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// No record, or a part of one.
    #[error("not a record")]
    Unreadable,
    /// The text is not what was hashed.
    #[error("record {seq} was edited")]
    Edited {
        /// Its number.
        seq: u64,
    },
    /// Records are missing, doubled or in another order.
    #[error("record {found} stands where {wanted} belongs")]
    Order {
        /// The number that comes next.
        wanted: u64,
        /// The number that is there.
        found: u64,
    },
    /// What came before was replaced.
    #[error("record {seq} follows another than the one before it")]
    Prev {
        /// Its number.
        seq: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(n: usize) -> Vec<Vec<u8>> {
        let (mut chain, mut out) = (Chain::default(), Vec::new());
        (0..n).for_each(|i| chain.seal(format!("{{\"user\":\"u{i}\"}}").as_bytes(), &mut out));
        out.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
    }

    fn verify(lines: &[Vec<u8>]) -> Result<Chain, Flaw> {
        let mut chain = Chain::default();
        lines.iter().try_for_each(|line| chain.follow(line)).map(|()| chain)
    }

    #[test]
    fn s70_edits_cuts_and_new_orders_break_the_chain() {
        let good = log(5);
        assert_eq!(verify(&good).unwrap().next, 6);
        let mut cut = good.clone();
        cut.remove(2);
        assert_eq!(verify(&cut), Err(Flaw::Order { wanted: 3, found: 4 }));
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        assert!(verify(&swapped).is_err());
        let mut edited = good.clone();
        edited[3] = String::from_utf8(edited[3].clone()).unwrap().replace("u3", "u9").into_bytes();
        assert_eq!(verify(&edited), Err(Flaw::Edited { seq: 4 }));
        // Edited, and hashed again: the next one shows it.
        let mut forged = good.clone();
        let mut chain = Chain::before(&good[3]).unwrap();
        let mut line = Vec::new();
        chain.seal(b"{\"user\":\"u9\"}", &mut line);
        forged[3] = line.trim_ascii_end().to_vec();
        assert_eq!(verify(&forged), Err(Flaw::Prev { seq: 5 }));
        assert_eq!(Chain::after(&good[4]).unwrap(), verify(&good).unwrap());
        assert_eq!(Chain::default().follow(b"{}"), Err(Flaw::Unreadable));
    }

    proptest! {
        /// Whatever byte is bent, the chain shows it.
        #[test]
        fn z14_one_bent_byte_is_seen(line in 0usize..4, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut lines = log(4);
            let at = at.index(lines[line].len());
            lines[line][at] ^= 1 << bit;
            prop_assert!(verify(&lines).is_err());
        }
    }
}
