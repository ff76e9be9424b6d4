//! What comes from outside into a plugin: its table of the configuration, objects of its kinds. Whatever it is, the answer is
//! an error in words.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use moorline_plugin::{Configured, Factory, HubObject, Plugin, Registration, Spec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Settings {
    every: u32,
    names: Vec<String>,
    zone: Option<Box<Settings>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct BellSpec {
    settings: Settings,
}
impl Spec for BellSpec {
    type Status = Settings;
    const KIND: &'static str = "Bell";
    const PLURAL: &'static str = "bells";
    const SINGULAR: &'static str = "bell";
}

struct Bells;
impl Plugin for Bells {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn register(&self, _: &mut Registration) {}
}
impl Configured for Bells {
    const NAME: &'static str = "bells";
    type Config = Settings;
    fn new(_: Settings) -> Result<Self, String> {
        Ok(Self)
    }
}

/// A step of a generator that is the same everywhere (xorshift), so that a failure comes again.
fn dice(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    usize::try_from(*seed % 1_000_003).unwrap()
}

/// Any value, with the known keys among its keys.
fn any(seed: &mut u64, depth: usize) -> Value {
    const KEYS: [&str; 9] = ["every", "names", "zone", "enabled", "settings", "", "\u{0}", "a.b", "__proto__"];
    match dice(seed) % if depth == 0 { 7 } else { 10 } {
        0 => Value::Null,
        1 => Value::Bool(dice(seed).is_multiple_of(2)),
        2 => json!(dice(seed)),
        3 => json!(-1.5e300),
        4 => json!(u64::MAX),
        5 => Value::from("\u{202e}\u{0}x".repeat(dice(seed) % 50)),
        6 => json!([]),
        7 => (0..dice(seed) % 4).map(|_| any(seed, depth - 1)).collect(),
        _ => {
            let mut map = Map::new();
            for _ in 0..dice(seed) % 5 {
                map.insert(KEYS[dice(seed) % KEYS.len()].to_owned(), any(seed, depth - 1));
            }
            map.into()
        }
    }
}

#[test]
fn z11_whatever_a_table_or_an_object_says_the_answer_is_in_words() {
    let (mut seed, mut refused, mut taken) = (0x9E37_79B9_7F4A_7C15, 0, 0);
    for _ in 0..20_000 {
        let value = any(&mut seed, 6);
        let tables = BTreeMap::from([("bells".to_owned(), value.clone())]);
        match Factory::build(&[Factory::of::<Bells>()], tables) {
            Ok(made) => {
                taken += 1;
                assert!(made.len() <= 1);
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("plugins.bells"), "{error}");
            }
        }
        let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Bell", "metadata": { "name": "b" }, "spec": value });
        if let Ok(object) = serde_json::from_value::<HubObject<BellSpec>>(object) {
            assert_eq!(object.name(), "b");
        }
    }
    assert!(1000 < refused && 100 < taken, "{refused} refused, {taken} taken");
    // Nesting has an end before the stack has.
    let mut deep = json!({});
    for _ in 0..100 {
        deep = json!({ "zone": deep });
    }
    assert!(Factory::build(&[Factory::of::<Bells>()], BTreeMap::from([("bells".to_owned(), deep)])).is_ok());
    let text = format!("{}{}", "{\"zone\":".repeat(100_000), "}".repeat(100_000));
    assert!(serde_json::from_str::<HubObject<BellSpec>>(&text).is_err());
}
