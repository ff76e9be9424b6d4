//! Names and label syntax, after Kubernetes' apimachinery `util/validation`.

/// RFC 1123 label: at most 63 of `a-z 0-9 -`, alphanumeric at both ends.
///
/// # Errors
/// The rule, for people.
pub fn dns_label(name: &str) -> Result<(), String> {
    if (1..=63).contains(&name.len()) && label_like(name) {
        return Ok(());
    }
    if 63 < name.len() {
        return Err("must be no more than 63 characters".into());
    }
    Err("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
         with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        .into())
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 characters.
///
/// # Errors
/// The rule, for people.
pub fn dns_subdomain(name: &str) -> Result<(), String> {
    if (1..=253).contains(&name.len()) && name.split('.').all(label_like) {
        return Ok(());
    }
    if 253 < name.len() {
        return Err("must be no more than 253 characters".into());
    }
    Err("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
         start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        .into())
}

fn label_like(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

/// The rule of [`qualified`], in Kubernetes' words.
pub(crate) const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// The rule of what a label's value consists of, in Kubernetes' words.
pub(crate) const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, \
    '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or \
    '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// `[prefix/]name`, the key of a label or annotation.
pub(crate) fn qualified(key: &str) -> bool {
    let name = match key.split_once('/') {
        Some((prefix, name)) if dns_subdomain(prefix).is_ok() => name,
        Some(_) => return false,
        None => key,
    };
    !name.is_empty() && label_value(name)
}

/// The value of a label: empty, or at most 63 of `A-Za-z0-9-_.` with alphanumeric ends.
pub(crate) fn label_value(value: &str) -> bool {
    label_value_breaks(value).next().is_none()
}

/// The rules of a label's value that this one breaks, in Kubernetes' words.
pub(crate) fn label_value_breaks(value: &str) -> impl Iterator<Item = &'static str> {
    let ends = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    let well = value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends(value.bytes().next())
        && ends(value.bytes().last());
    let long = (63 < value.len()).then_some("must be no more than 63 characters");
    long.into_iter().chain((!well).then_some(LABEL_VALUE))
}

/// Five random characters, as Kubernetes appends to a generateName.
pub(crate) fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    random.as_bytes().iter().take(5).map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_rfc_1123() {
        for good in ["a", "edge-1", "edge-1.agent", "0"] {
            assert!(dns_subdomain(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", ".a", "a..b", "a/b", &"a".repeat(254)] {
            assert!(dns_subdomain(bad).is_err(), "{bad}");
        }
        assert!(dns_label("a.b").is_err());
        assert!(qualified("example.com/Some_key") && qualified("a"));
        assert!(!qualified("/a") && !qualified("a/") && !qualified("a b") && !qualified("A/b"));
        assert!(label_value("") && label_value("a.B_c") && !label_value("-a") && !label_value(&"a".repeat(64)));
    }
}
