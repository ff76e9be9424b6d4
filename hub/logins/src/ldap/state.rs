//! Accounts that exist and may not come in. Directories say so in their own ways; what they refuse themselves when the
//! user binds needs no entry here.

use jiff::Timestamp;

/// What is read of a user besides names.
pub(super) const ATTRIBUTES: [&str; 6] = [
    "userAccountControl",
    "msDS-User-Account-Control-Computed",
    "accountExpires",
    "pwdAccountLockedTime",
    "shadowExpire",
    "nsAccountLock",
];

/// `ADS_UF_ACCOUNTDISABLE` and `ADS_UF_LOCKOUT` (MS-ADTS §2.2.16).
const DISABLED: u32 = 0x2;
const LOCKED: u32 = 0x10;
/// Active Directory counts 100 ns from 1601-01-01: this many seconds before 1970.
const EPOCH_1601: i64 = 11_644_473_600;
/// Locked until somebody unlocks it (draft-behera-ldap-password-policy §5.3.3).
const FOR_EVER: &str = "000001010000Z";

/// Why the account is not to be used, if it is not. `get`: the first value of an attribute.
pub(super) fn trouble(get: &dyn Fn(&str) -> Option<String>, now: Timestamp) -> Option<&'static str> {
    let number = |name: &str| get(name).and_then(|text| text.parse::<i64>().ok());
    let flags = |name: &str| number(name).and_then(|n| u32::try_from(n & 0xffff_ffff).ok()).unwrap_or(0);
    if flags("userAccountControl") & DISABLED != 0 {
        return Some("the account is disabled");
    }
    if flags("msDS-User-Account-Control-Computed") & LOCKED != 0 {
        return Some("the account is locked");
    }
    // 0 and the largest number mean never.
    if let Some(ticks) = number("accountExpires")
        && ticks > 0
        && ticks != i64::MAX
        && ticks / 10_000_000 - EPOCH_1601 <= now.as_second()
    {
        return Some("the account is expired");
    }
    // A lock with a time may be over; the directory knows its own rule and refuses the bind while it is not.
    if get("pwdAccountLockedTime").is_some_and(|at| at == FOR_EVER) {
        return Some("the account is locked");
    }
    // RFC 2307 §3: days since 1970; none or -1 means never.
    if let Some(days) = number("shadowExpire")
        && days >= 0
        && days * 86_400 <= now.as_second()
    {
        return Some("the account is expired");
    }
    if get("nsAccountLock").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return Some("the account is disabled");
    }
    None
}

/// Whether a bind's result code speaks of this user, not of the directory: inappropriateAuthentication,
/// insufficientAccessRights, unwillingToPerform, constraintViolation, noSuchObject (RFC 4511 appendix A).
pub(super) fn refuses(code: u32) -> bool {
    matches!(code, 19 | 32 | 48 | 50 | 53)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_that_may_not_come_in_are_told() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let day = now.as_second() / 86_400;
        let ticks = |seconds: i64| ((now.as_second() + seconds + EPOCH_1601) * 10_000_000).to_string();
        let ask = |name: &'static str, value: &str| {
            let value = value.to_owned();
            trouble(&move |asked| (asked == name).then(|| value.clone()), now)
        };
        for (name, value, bad) in [
            ("userAccountControl", "512", false),
            ("userAccountControl", "514", true),
            ("userAccountControl", "-2147483134", true), // signed, with 0x2
            ("msDS-User-Account-Control-Computed", "0", false),
            ("msDS-User-Account-Control-Computed", "16", true),
            ("accountExpires", "0", false),
            ("accountExpires", "9223372036854775807", false),
            ("accountExpires", &ticks(60), false),
            ("accountExpires", &ticks(-60), true),
            ("pwdAccountLockedTime", "000001010000Z", true),
            ("pwdAccountLockedTime", "20260101000000Z", false),
            ("shadowExpire", "-1", false),
            ("shadowExpire", &(day + 1).to_string(), false),
            ("shadowExpire", &(day - 1).to_string(), true),
            ("nsAccountLock", "TRUE", true),
            ("nsAccountLock", "false", false),
        ] {
            assert_eq!(ask(name, value).is_some(), bad, "{name}={value}");
        }
    }
}
