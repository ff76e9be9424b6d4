//! Passwords of local users: argon2id with OWASP's minimum (19 MiB, 2 passes, 1 lane). Takes some 20 ms of a core: call it off the
//! runtime and bounded.

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use std::sync::LazyLock;

/// No hash could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot hash a password: {0}")]
pub struct HashError(String);

/// Hashes a password into a PHC string with a fresh salt.
///
/// # Errors
/// The password is over the algorithm's limit, or the system has no random source.
pub fn hash(password: &str) -> Result<String, HashError> {
    // Its default is argon2id, version 19, with exactly the parameters that the module's text names.
    let hash = Argon2::default().hash_password(password.as_bytes());
    hash.map(|hash| hash.to_string()).map_err(|e| HashError(e.to_string()))
}

/// Whether `password` is the one behind `phc`. A string that is no hash matches nothing.
pub fn verify(password: &str, phc: &str) -> bool {
    PasswordHash::new(phc).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

/// A hash that no password matches, for users that do not exist: the answer takes as long as for those who do.
pub fn decoy() -> &'static str {
    static DECOY: LazyLock<String> = LazyLock::new(|| {
        let nobody_knows = crate::token::TokenText::generate_api().reveal();
        hash(&nobody_knows).unwrap_or_default()
    });
    &DECOY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_matches_its_hash_alone() {
        let phc = hash("correct horse").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(verify("correct horse", &phc));
        assert!(
            !verify("Correct horse", &phc)
                && !verify("", &phc)
                && !verify("correct horse", "")
                && !verify("x", "plain")
        );
        assert!(decoy().starts_with("$argon2id$v=19$m=19456,t=2,p=1$") && !verify("", decoy()));
        assert_ne!(phc, hash("correct horse").unwrap(), "a fresh salt each time");
    }
}
