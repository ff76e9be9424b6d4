//! YAML as kubectl reads and writes it.

use serde::{Serialize, de::DeserializeOwned};

/// Reads YAML. Errors never quote the text, for it may hold secrets; `yes` and `y` are words, not truths.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { with_snippet: false, strict_booleans: true })
}

/// Writes YAML. A long value stays on its line, where tools that look for `key: value` find it.
pub fn write<T: Serialize>(value: &T) -> anyhow::Result<String> {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(value, options).map_err(|e| anyhow::anyhow!("cannot write YAML: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_stays_on_its_line() {
        let long = "mlt_".repeat(1000);
        let value = serde_json::json!({ "token": long, "words": "a b ".repeat(200), "pem": "one\ntwo\n" });
        let text = write(&value).unwrap();
        assert!(text.lines().any(|line| line == format!("token: {long}")), "{text}");
        assert_eq!(read::<serde_json::Value>(&text).unwrap(), value);
    }
}
