//! What has to be sent of a bundle to somebody who has the one before it.
//!
//! A delta says which pieces of the old bytes make up the new ones, and holds the rest. It is believed in nothing: what comes
//! out of it is a whole bundle with its signature, and goes through [`super::open`] like one that came whole. It is made
//! from bytes and not from users and grants, so that hub and agent need not know the same fields.

use super::MAX_LEN;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// What it begins with.
const MAGIC: &[u8] = b"moorline-delta/1\n";
/// Bytes of a piece: at least, at most, and about.
const PIECE: (usize, usize, u64) = (32, 1024, 64);
const COPY: u8 = 0;
const INSERT: u8 = 1;

/// Why a delta comes to nothing. Its sender then sends the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// Cut short, altered, or no delta at all.
    #[error("this is no delta, or only part of one")]
    Malformed,
    /// It is for another bundle than the one that is here.
    #[error("the delta is for another bundle than the one that is here")]
    Base,
    /// What comes out is over [`MAX_LEN`].
    #[error("the bundle is larger than {MAX_LEN} bytes")]
    TooLarge,
}

/// A number for each byte, which tells neighbourhoods apart (splitmix64).
const GEAR: [u64; 256] = {
    let (mut all, mut state, mut at) = ([0; 256], 0u64, 0);
    while at < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        all[at] = z ^ (z >> 31);
        at += 1;
    }
    all
};

/// Cuts where the content says so: a change moves the cuts around it, and no others.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut begin = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(begin..).filter(|rest| !rest.is_empty())?;
        let (least, most, about) = PIECE;
        let mut hash = 0u64;
        let cut = rest.iter().take(most).position({
            let mut at = 0;
            move |byte| {
                hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
                at += 1;
                least <= at && (hash >> 32).is_multiple_of(about)
            }
        });
        let length = cut.map_or(most, |at| at + 1).min(rest.len());
        let piece = (begin, rest.get(..length).unwrap_or_default());
        begin += length;
        Some(piece)
    })
}

/// Where some bytes begin, and how many they are.
type Part = (usize, usize);

/// The delta from `base` to `new`; `None`: it would save less than half.
pub fn make(base: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let mut known: HashMap<&[u8], usize> = HashMap::new();
    for (at, piece) in pieces(base) {
        known.entry(piece).or_insert(at);
    }
    let mut out = [MAGIC, &Sha256::digest(base)[..], &number(new.len())?].concat();
    // The copy or insertion that is being gathered.
    let (mut copy, mut insert): (Option<Part>, Option<Part>) = (None, None);
    for (at, piece) in pieces(new) {
        // What goes on where the last one ended is the same copy.
        let next = copy.map(|(from, length)| from + length);
        let next = next.filter(|next| base.get(*next..next + piece.len()) == Some(piece));
        match next.or_else(|| known.get(piece).copied()) {
            Some(from) => {
                flush(&mut out, new, None, insert.take())?;
                copy = match copy {
                    Some((begin, length)) if begin + length == from => Some((begin, length + piece.len())),
                    other => {
                        flush(&mut out, new, other, None)?;
                        Some((from, piece.len()))
                    }
                };
            }
            None => {
                flush(&mut out, new, copy.take(), None)?;
                insert = Some(insert.map_or((at, piece.len()), |(begin, length)| (begin, length + piece.len())));
            }
        }
    }
    flush(&mut out, new, copy, insert)?;
    (out.len() <= new.len() / 2).then_some(out)
}

fn number(n: usize) -> Option<[u8; 4]> {
    u32::try_from(n).ok().map(u32::to_be_bytes)
}

fn flush(out: &mut Vec<u8>, new: &[u8], copy: Option<Part>, insert: Option<Part>) -> Option<()> {
    if let Some((from, length)) = copy {
        out.push(COPY);
        out.extend_from_slice(&number(from)?);
        out.extend_from_slice(&number(length)?);
    }
    if let Some((at, length)) = insert {
        out.push(INSERT);
        out.extend_from_slice(&number(length)?);
        out.extend_from_slice(new.get(at..at + length)?);
    }
    Some(())
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8], DeltaError> {
    let (taken, rest) = input.split_at_checked(length).ok_or(DeltaError::Malformed)?;
    *input = rest;
    Ok(taken)
}

fn read(input: &mut &[u8]) -> Result<usize, DeltaError> {
    let bytes: [u8; 4] = take(input, 4)?.try_into().map_err(|_| DeltaError::Malformed)?;
    usize::try_from(u32::from_be_bytes(bytes)).map_err(|_| DeltaError::Malformed)
}

/// What `delta` makes of `base`: bytes to be opened like any bundle.
///
/// # Errors
/// See [`DeltaError`]. No more than the announced length is ever held, and that is at most [`MAX_LEN`].
pub fn apply(delta: &[u8], base: &[u8]) -> Result<Vec<u8>, DeltaError> {
    let mut input = delta.strip_prefix(MAGIC).ok_or(DeltaError::Malformed)?;
    if take(&mut input, 32)? != &Sha256::digest(base)[..] {
        return Err(DeltaError::Base);
    }
    let length = read(&mut input)?;
    if MAX_LEN < length {
        return Err(DeltaError::TooLarge);
    }
    let mut out = Vec::new();
    while let Some((kind, rest)) = input.split_first() {
        input = rest;
        let piece = match *kind {
            COPY => {
                let (from, length) = (read(&mut input)?, read(&mut input)?);
                base.get(from..from.saturating_add(length)).ok_or(DeltaError::Malformed)?
            }
            INSERT => {
                let length = read(&mut input)?;
                take(&mut input, length)?
            }
            _ => return Err(DeltaError::Malformed),
        };
        // Pieces without content would be an endless list of nothing.
        if piece.is_empty() || length < out.len() + piece.len() {
            return Err(DeltaError::Malformed);
        }
        out.extend_from_slice(piece);
    }
    if out.len() == length { Ok(out) } else { Err(DeltaError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn users(range: std::ops::Range<u32>) -> String {
        let user = |n: u32| {
            format!("{{\"name\":\"user-{n}\",\"uid\":\"{:08x}\",\"groups\":[\"dev\"]}},", n.wrapping_mul(2_654_435_761))
        };
        range.map(user).collect()
    }

    #[test]
    fn one_user_among_many_costs_little() {
        let base = users(0..5_000);
        let new = format!("serial 2{}{{\"name\":\"new\"}},{}", users(0..2_500), users(2_501..5_000));
        let delta = make(base.as_bytes(), new.as_bytes()).unwrap();
        assert!(delta.len() < 4_000, "{} bytes for {}", delta.len(), new.len());
        assert_eq!(apply(&delta, base.as_bytes()).unwrap(), new.as_bytes());
        assert_eq!(apply(&delta, new.as_bytes()), Err(DeltaError::Base), "for one bundle alone");
    }

    #[test]
    fn what_saves_nothing_is_sent_whole() {
        assert_eq!(make(b"", users(0..100).as_bytes()), None);
        assert_eq!(make(users(0..100).as_bytes(), users(1_000..1_100).as_bytes()), None);
    }

    #[test]
    fn z08_a_delta_cannot_ask_for_more_than_a_bundle_is() {
        let head = |length: u32| [MAGIC, &Sha256::digest(b"base")[..], &length.to_be_bytes()].concat();
        let copy = |from: u32, length: u32| [&[COPY][..], &from.to_be_bytes(), &length.to_be_bytes()].concat();
        assert_eq!(apply(&head(u32::MAX), b"base"), Err(DeltaError::TooLarge));
        assert_eq!(apply(&head(MAX_LEN as u32 + 1), b"base"), Err(DeltaError::TooLarge));
        for bad in [
            copy(0, 5),
            copy(4, 1),
            copy(u32::MAX, u32::MAX),
            copy(0, 0),
            [copy(0, 4), copy(0, 4)].concat(),
            [&[INSERT][..], &u32::MAX.to_be_bytes(), b"x"].concat(),
            vec![7],
            vec![],
        ] {
            assert_eq!(apply(&[head(5), bad.clone()].concat(), b"base"), Err(DeltaError::Malformed), "{bad:?}");
        }
        assert_eq!(apply(&[head(4), copy(0, 4)].concat(), b"base").unwrap(), b"base");
    }

    proptest! {
        /// Whatever changed, what comes out is what was meant; and nothing else comes out of a part of it.
        #[test]
        fn what_is_made_is_what_was_meant(
            keep in prop::collection::vec(0u32..400, 0..60), cut in any::<prop::sample::Index>(), noise in any::<[u8; 9]>()
        ) {
            let base = users(0..400).into_bytes();
            let mut new: Vec<u8> = keep.iter().flat_map(|n| users(*n..*n + 7).into_bytes()).collect();
            new.extend_from_slice(&noise);
            if let Some(delta) = make(&base, &new) {
                prop_assert_eq!(apply(&delta, &base), Ok(new));
                prop_assert!(apply(&delta[..cut.index(delta.len())], &base).is_err());
            }
        }

        #[test]
        fn bent_deltas_cannot_panic_us(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let (base, new) = (users(0..60).into_bytes(), users(3..60).into_bytes());
            let mut delta = make(&base, &new).unwrap();
            *at.get_mut(&mut delta) = byte;
            let _ = apply(&delta, &base);
        }
    }
}
