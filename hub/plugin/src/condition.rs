//! Conditions, as Kubernetes has them.

use crate::limits;
use kube::{
    Api,
    api::{DynamicObject, PostParams},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Attempts against writers of the same object.
const TRIES: u32 = 8;

/// Kubernetes' `metav1.Condition`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What it is about.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for programs.
    pub reason: String,
    /// For people.
    pub message: String,
    /// RFC 3339: since when `status` is what it is.
    pub last_transition_time: String,
}

impl Condition {
    /// A condition as of now. No more of its message than [`limits::MESSAGE`].
    pub fn new(r#type: &str, holds: bool, reason: &str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        Self {
            r#type: r#type.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message: message.chars().take(limits::MESSAGE).collect(),
            last_transition_time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }
    }

    /// Puts it among others, in place of the one of its type. Whether that changed anything but the time.
    pub fn put(mut self, all: &mut Vec<Self>) -> bool {
        let Some(old) = all.iter_mut().find(|old| old.r#type == self.r#type) else {
            all.push(self);
            return true;
        };
        if old.status == self.status {
            self.last_transition_time.clone_from(&old.last_transition_time);
        }
        let changed = *old != self;
        *old = self;
        changed
    }
}

/// Writes a condition into `status.conditions` of an object, among those of others, where it says something new.
///
/// # Errors
/// The API refused, or others write all the time. An object that is gone is no error.
pub async fn set_condition(api: &Api<DynamicObject>, name: &str, condition: Condition) -> Result<(), kube::Error> {
    let r#type = condition.r#type.clone();
    change_condition(api, name, &r#type, |_| condition.clone()).await.map(drop)
}

/// As [`set_condition`], where what is to be said depends on what is said there. The answer is what the object says then;
/// `None`: it is gone.
pub(crate) async fn change_condition(
    api: &Api<DynamicObject>,
    name: &str,
    r#type: &str,
    change: impl Fn(Option<&Condition>) -> Condition,
) -> Result<Option<Condition>, kube::Error> {
    let mut tries = 0;
    loop {
        let Some(mut object) = api.get_opt(name).await? else { return Ok(None) };
        let stored = object.data.pointer("/status/conditions").cloned().unwrap_or(Value::Array(Vec::new()));
        let mut all: Vec<Condition> = serde_json::from_value(stored).map_err(kube::Error::SerdeError)?;
        let new = change(all.iter().find(|condition| condition.r#type == r#type));
        if !new.clone().put(&mut all) {
            return Ok(Some(new));
        }
        if !object.data["status"].is_object() {
            object.data["status"] = json!({});
        }
        object.data["status"]["conditions"] = serde_json::to_value(all).map_err(kube::Error::SerdeError)?;
        match api.replace_status(name, &PostParams::default(), &object).await {
            Ok(_) => return Ok(Some(new)),
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => tries += 1,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_between_letters() {
        let all = Condition::new("Synced", false, "No", "é".repeat(limits::MESSAGE));
        assert_eq!(all.message.chars().count(), limits::MESSAGE);
        let more = Condition::new("Synced", false, "No", "é".repeat(limits::MESSAGE + 1));
        assert_eq!(more.message, all.message);
    }

    #[test]
    fn the_time_of_a_condition_is_that_of_its_last_change() {
        let mut all = vec![Condition::new("Other", true, "Yes", "")];
        assert!(Condition::new("Synced", false, "No", "not yet").put(&mut all));
        all[1].last_transition_time = "2001-01-01T00:00:00Z".to_owned();
        assert!(!Condition::new("Synced", false, "No", "not yet").put(&mut all), "nothing new");
        assert!(Condition::new("Synced", false, "No", "still not").put(&mut all));
        assert_eq!(all[1].last_transition_time, "2001-01-01T00:00:00Z");
        assert!(Condition::new("Synced", true, "Yes", "").put(&mut all));
        assert_ne!(all[1].last_transition_time, "2001-01-01T00:00:00Z");
        assert_eq!(all.len(), 2);
    }
}
