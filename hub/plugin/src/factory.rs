//! A plugin made from its table of the configuration.

use crate::Plugin;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// A plugin that has settings.
pub trait Configured: Plugin + Sized {
    /// As [`Plugin::name`].
    const NAME: &'static str;
    /// Its table. A key that it does not have is an error, at any depth.
    type Config: DeserializeOwned + Default;
    /// Makes it.
    ///
    /// # Errors
    /// Settings that cannot work, in words.
    fn new(config: Self::Config) -> Result<Self, String>;
}

/// Makes one plugin.
#[derive(Debug, Clone, Copy)]
pub struct Factory {
    name: &'static str,
    make: fn(Value) -> Result<Arc<dyn Plugin>, FactoryError>,
}

/// A table of the configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactoryError {
    /// There is no such plugin.
    #[error("plugins.{0}: there is no such plugin; there are {1}")]
    Unknown(String, String),
    /// A key that is not known.
    #[error("plugins.{0}.{1}: no such setting")]
    Key(&'static str, String),
    /// A value of a wrong type, or one that cannot work.
    #[error("plugins.{0}: {1}")]
    Value(&'static str, String),
}

fn make<P: Configured>(table: Value) -> Result<Arc<dyn Plugin>, FactoryError> {
    let mut unknown = Vec::new();
    let config = serde_ignored::deserialize::<_, _, P::Config>(table, |path| unknown.push(path.to_string()))
        .map_err(|e| FactoryError::Value(P::NAME, e.to_string()))?;
    if let Some(key) = unknown.into_iter().next() {
        return Err(FactoryError::Key(P::NAME, key));
    }
    let plugin = P::new(config).map_err(|why| FactoryError::Value(P::NAME, why))?;
    Ok(Arc::new(plugin))
}

impl Factory {
    /// The factory of `P`.
    pub const fn of<P: Configured>() -> Self {
        Self { name: P::NAME, make: make::<P> }
    }

    /// The plugins that are switched on: all of `factories` but those whose table says `enabled: false`.
    ///
    /// # Errors
    /// See [`FactoryError`].
    pub fn build(factories: &[Self], tables: BTreeMap<String, Value>) -> Result<Vec<Arc<dyn Plugin>>, FactoryError> {
        let mut tables = tables;
        let mut made = Vec::new();
        for factory in factories {
            let mut table = match tables.remove(factory.name) {
                None | Some(Value::Null) => Map::new(),
                Some(Value::Object(table)) => table,
                Some(_) => return Err(FactoryError::Value(factory.name, "must be a table of settings".to_owned())),
            };
            let on = match table.remove("enabled") {
                None => true,
                Some(Value::Bool(on)) => on,
                Some(_) => return Err(FactoryError::Value(factory.name, "enabled must be true or false".to_owned())),
            };
            // What is switched off is read too: a setting that is wrong is told when it is written, not when it is used.
            let plugin = (factory.make)(Value::Object(table))?;
            if on {
                made.push(plugin);
            }
        }
        match tables.into_iter().next() {
            None => Ok(made),
            Some((name, _)) => {
                let names: Vec<_> = factories.iter().map(|factory| factory.name).collect();
                Err(FactoryError::Unknown(name, names.join(", ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registration;
    use serde::Deserialize;
    use serde_json::json;

    struct Clock(Settings);
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Settings {
        every: u32,
        zone: Zone,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Zone {
        name: String,
    }
    impl Plugin for Clock {
        fn name(&self) -> &'static str {
            assert_eq!(self.0.zone.name, "");
            Self::NAME
        }
        fn register(&self, _: &mut Registration) {}
    }
    impl Configured for Clock {
        const NAME: &'static str = "clock";
        type Config = Settings;
        fn new(config: Settings) -> Result<Self, String> {
            if config.every > 60 { Err("every: at most 60".to_owned()) } else { Ok(Self(config)) }
        }
    }

    fn build(tables: Value) -> Result<usize, String> {
        let tables = serde_json::from_value(tables).unwrap();
        Factory::build(&[Factory::of::<Clock>()], tables).map(|made| made.len()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_plugin_has_its_own_table_and_unknown_keys_are_errors() {
        assert_eq!(build(json!({})), Ok(1));
        assert_eq!(build(json!({ "clock": { "every": 5 } })), Ok(1));
        assert_eq!(build(json!({ "clock": { "enabled": false } })), Ok(0), "disabled means gone");
        let wrong = |tables| build(tables).unwrap_err();
        assert_eq!(wrong(json!({ "clock": { "evry": 5 } })), "plugins.clock.evry: no such setting");
        assert_eq!(wrong(json!({ "clock": { "zone": { "x": 1 } } })), "plugins.clock.zone.x: no such setting");
        assert_eq!(wrong(json!({ "clock": { "enabled": false, "x": 1 } })), "plugins.clock.x: no such setting");
        assert_eq!(wrong(json!({ "clock": { "every": 61 } })), "plugins.clock: every: at most 60");
        assert!(wrong(json!({ "clock": { "every": "x" } })).starts_with("plugins.clock: invalid type"));
        assert_eq!(wrong(json!({ "clock": [] })), "plugins.clock: must be a table of settings");
        assert_eq!(wrong(json!({ "clok": {} })), "plugins.clok: there is no such plugin; there are clock");
    }
}
