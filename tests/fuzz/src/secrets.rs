//! Credentials that somebody made up: none is believed, and what is one has one spelling.

use crate::split;
use moorline_authz::{
    access_token::{self, KeySet},
    bundle,
    token::TokenText,
};

/// The first byte chooses what the others are.
pub fn run(data: &[u8]) {
    let (kind, data) = split(data);
    match kind % 3 {
        0 => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let Ok(token) = TokenText::parse(text) else { return };
            assert_eq!(token.reveal().as_str(), text, "a token has one spelling");
            assert!(token.hash().verify(&token));
        }
        1 => {
            let Ok(text) = std::str::from_utf8(data) else { return };
            assert!(access_token::verify(text, &KeySet::default(), "https://hub", 1000).is_err());
        }
        _ => {
            assert!(bundle::open(data, |_, _| false, "edge1", None).is_err(), "unsigned");
            let Ok(found) = bundle::open(data, |_, _| true, "edge1", Some(7)) else { return };
            assert!(found.cluster == "edge1" && 7 <= found.serial);
        }
    }
}
