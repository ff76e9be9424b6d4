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

    /// Z09: what is too deep, grows when it is read, or says one thing twice is refused, and fast.
    #[test]
    fn z09_depth_growth_and_doubled_keys_are_refused() {
        let value = |text: &str| read::<serde_json::Value>(text);
        const DEEP: usize = 100_000;
        for (what, text) in [
            ("flow lists", "[".repeat(DEEP)),
            ("flow lists that end", "[".repeat(DEEP) + &"]".repeat(DEEP)),
            ("flow maps", "{a: ".repeat(DEEP) + &"}".repeat(DEEP)),
            ("block lists", "- ".repeat(DEEP) + "a"),
            ("block maps", (0..3000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect()),
            ("questions", "? ".repeat(DEEP)),
            ("anchors", (0..DEEP).map(|n| format!("- &a{n} a\n")).collect()),
        ] {
            assert!(value(&text).is_err(), "{what}");
        }
        // Each line ten times the one before: a file of 300 bytes would be as many terabytes.
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..15 {
            laughs += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
        }
        assert!(value(&laughs).is_err());
        assert!(value("a: &a [*a]").is_err(), "a list within itself");
        for twice in
            ["a: 1\na: 2\n", "{a: 1, a: 2}", "{\"a\": 1, \"a\": 2}", "b: {c: [{a: 1, a: 1}]}", "a: 1\n\"a\": 2\n"]
        {
            assert!(value(twice).is_err(), "{twice:?}");
        }
        assert!(value("a: 1\n---\na: 2\n").is_err(), "two documents where one is asked for");
    }

    proptest::proptest! {
        /// Z09: whatever is read, nothing panics; and what it means is what it means when it is written and read again.
        #[test]
        fn z09_any_text_is_refused_or_means_one_thing(text in "[a-z0-9 :,\\[\\]{}&*!|>'\"%@`#\\-\\?\n\t\\\\]{0,60}") {
            if let Ok(value) = read::<serde_json::Value>(&text) {
                let written = write(&value).unwrap();
                proptest::prop_assert_eq!(read::<serde_json::Value>(&written).unwrap(), value, "{}", written);
            }
        }
    }
}
