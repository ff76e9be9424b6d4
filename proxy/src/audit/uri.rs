//! Targets as they stand on record: with everything but what would let a reader of the log in.

use moorline_authz::verb::percent_decode;

/// What stands in place of a value.
const HIDDEN: &str = "***";
/// How names of such parameters end, but for digits; only their letters and digits are looked at, whatever their case.
const ENDS: [&str; 9] =
    ["token", "secret", "password", "passwd", "passphrase", "apikey", "accesskey", "signature", "assertion"];
/// Other names of such parameters.
const NAMES: [&str; 5] = ["authorization", "jwt", "pwd", "sig", "samlresponse"];

/// `target` without the values of parameters that carry credentials by their name: `?token=…`, `access_token`, ….
///
/// Nobody gets in at the hub by them, but some try, and services behind it may take them.
pub fn recorded(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let parameters: Vec<String> = query.split('&').map(parameter).collect();
    format!("{path}?{}", parameters.join("&"))
}

/// One between two `&`. Some servers part at `;` too: there a name begins, and what follows a credential is hidden with it.
fn parameter(text: &str) -> String {
    let mut at = 0;
    for part in text.split(';') {
        if let Some((name, _)) = part.split_once('=').filter(|(name, _)| is_credential(name)) {
            let shown = text.get(..at + name.len()).unwrap_or_default();
            return format!("{shown}={HIDDEN}");
        }
        at += part.len() + 1;
    }
    text.to_owned()
}

fn is_credential(name: &str) -> bool {
    let bytes = percent_decode(name).unwrap_or_else(|| name.as_bytes().to_vec());
    let name: String =
        bytes.into_iter().filter(u8::is_ascii_alphanumeric).map(|b| char::from(b.to_ascii_lowercase())).collect();
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    NAMES.contains(&name) || ENDS.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::recorded;

    #[test]
    fn s13_values_of_credentials_are_on_no_record() {
        for (target, want) in [
            ("/api/v1/pods?watch=1&limit=500&continue=abc", "/api/v1/pods?watch=1&limit=500&continue=abc"),
            ("/api", "/api"),
            ("/api?", "/api?"),
            ("/api?token", "/api?token"),
            ("/api?token=a.b", "/api?token=***"),
            ("/api?a=1&access_token=x&b=2", "/api?a=1&access_token=***&b=2"),
            ("/api?Access-Token=x&id_token=y", "/api?Access-Token=***&id_token=***"),
            ("/api?%74oke%6e=x", "/api?%74oke%6e=***"),
            ("/api?token%5B%5D=x&filter.client_secret=y", "/api?token%5B%5D=***&filter.client_secret=***"),
            ("/api?%zztoken=x", "/api?%zztoken=***"),
            ("/api?token==x=y", "/api?token=***"),
            ("/api?token[0]=x&password1=y&client_assertion=z", "/api?token[0]=***&password1=***&client_assertion=***"),
            ("/api?a=1;token=x;y", "/api?a=1;token=***"),
            ("/api?a=1?token=x&token=?y", "/api?a=1?token=x&token=***"),
            ("/api?API_KEY=x&Password=y&sig=z&jwt=w", "/api?API_KEY=***&Password=***&sig=***&jwt=***"),
            (
                "/exec?command=sh&command=-c&command=token&tokens=1",
                "/exec?command=sh&command=-c&command=token&tokens=1",
            ),
        ] {
            assert_eq!(recorded(target), want);
        }
    }
}
