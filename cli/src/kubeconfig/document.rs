//! A kubeconfig as a document: what we do not know stays as it is.

use crate::yaml;
use serde_json::{Map, Value, json};

/// One kubeconfig file's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Document(Map<String, Value>);

/// A section of named entries, and the key that holds an entry's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `clusters`
    Clusters,
    /// `users`
    Users,
    /// `contexts`
    Contexts,
}

impl Section {
    fn keys(self) -> (&'static str, &'static str) {
        match self {
            Self::Clusters => ("clusters", "cluster"),
            Self::Users => ("users", "user"),
            Self::Contexts => ("contexts", "context"),
        }
    }

    /// What an earlier content of an entry of ours must not leave behind, because it would contradict the new one.
    fn replaced(self) -> &'static [&'static str] {
        match self {
            Self::Clusters => &["certificate-authority", "insecure-skip-tls-verify", "tls-server-name"],
            Self::Users => &[
                "token",
                "tokenFile",
                "exec",
                "auth-provider",
                "client-certificate",
                "client-certificate-data",
                "client-key",
                "client-key-data",
                "username",
                "password",
                "as",
                "as-groups",
                "as-uid",
                "as-user-extra",
            ],
            Self::Contexts => &[],
        }
    }
}

/// Why a text is no kubeconfig. Never quotes the text: it holds secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDocument {
    /// Not YAML, or not a map.
    #[error("it is not a YAML map")]
    NotAMap,
    /// A section is something other than a list of named maps.
    #[error("its {0} are not a list of named entries")]
    NotAList(&'static str),
}

impl Document {
    /// An empty kubeconfig.
    pub fn empty() -> Self {
        let base = json!({ "apiVersion": "v1", "kind": "Config" });
        Self(base.as_object().cloned().unwrap_or_default())
    }

    /// Reads YAML or JSON. Nothing at all is an empty kubeconfig, as for kubectl.
    pub fn read(text: &str) -> Result<Self, BadDocument> {
        if text.trim().is_empty() {
            return Ok(Self::empty());
        }
        let value = yaml::read(text).map_err(|_| BadDocument::NotAMap)?;
        let mut map = match value {
            Value::Object(map) => map,
            Value::Null => return Ok(Self::empty()),
            _ => return Err(BadDocument::NotAMap),
        };
        for (key, value) in Self::empty().0 {
            map.entry(key).or_insert(value);
        }
        for section in [Section::Clusters, Section::Users, Section::Contexts] {
            let name = section.keys().0;
            match map.get(name) {
                None | Some(Value::Null) => {}
                Some(Value::Array(entries)) if entries.iter().all(|e| e.get("name").is_some_and(Value::is_string)) => {}
                Some(_) => return Err(BadDocument::NotAList(name)),
            }
        }
        Ok(Self(map))
    }

    /// As YAML.
    pub fn write(&self) -> anyhow::Result<String> {
        yaml::write(&self.0)
    }

    /// The content of an entry.
    pub fn entry(&self, section: Section, name: &str) -> Option<&Value> {
        let (list, inner) = section.keys();
        let entries = self.0.get(list)?.as_array()?;
        entries.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?.get(inner)
    }

    /// Puts the fields into an entry, which is made if it is new. Fields of others stay.
    pub fn put(&mut self, section: Section, name: &str, fields: &Map<String, Value>) {
        let (list, inner) = section.keys();
        let slot = self.0.entry(list).or_insert_with(|| json!([]));
        if !slot.is_array() {
            *slot = json!([]);
        }
        let Value::Array(entries) = slot else { return };
        let found = entries.iter().position(|entry| entry.get("name").and_then(Value::as_str) == Some(name));
        let at = found.unwrap_or_else(|| {
            entries.push(json!({ "name": name }));
            entries.len() - 1
        });
        let Some(Value::Object(entry)) = entries.get_mut(at) else { return };
        let content = entry.entry(inner).or_insert_with(|| json!({}));
        if !content.is_object() {
            *content = json!({});
        }
        let Value::Object(content) = content else { return };
        content.retain(|key, _| !section.replaced().contains(&key.as_str()));
        content.extend(fields.clone());
    }

    /// The context that kubectl uses when none is named.
    pub fn current_context(&self) -> Option<&str> {
        self.0.get("current-context").and_then(Value::as_str).filter(|name| !name.is_empty())
    }

    /// Sets it.
    pub fn set_current_context(&mut self, name: &str) {
        self.0.insert("current-context".into(), name.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn what_is_unknown_stays() {
        let before = r#"
apiVersion: v1
kind: Config
preferences: {colors: true}
extensions: [{name: x, extension: {n: 1}}]
current-context: mine
clusters:
- name: mine
  cluster: {server: "https://1.2.3.4", proxy-url: "http://p", extensions: [{name: y, extension: {z: 2}}]}
contexts:
- name: mine
  context: {cluster: mine, user: me, namespace: team}
users:
- name: me
  user: {client-certificate: a.crt, client-key: a.key}
"#;
        let mut doc = Document::read(before).unwrap();
        doc.put(Section::Users, "ours", &map(json!({"token": "t"})));
        doc.put(Section::Contexts, "mine", &map(json!({"cluster": "other", "user": "ours"})));
        let again = Document::read(&doc.write().unwrap()).unwrap();
        assert_eq!(again, doc);
        let old = Document::read(before).unwrap();
        for key in ["preferences", "extensions", "clusters", "current-context"] {
            assert_eq!(doc.0.get(key), old.0.get(key), "{key}");
        }
        assert_eq!(
            doc.entry(Section::Contexts, "mine"),
            Some(&json!({"cluster": "other", "user": "ours", "namespace": "team"}))
        );
        assert_eq!(doc.entry(Section::Users, "me"), old.entry(Section::Users, "me"));
    }

    #[test]
    fn a_new_way_to_log_in_replaces_the_old_one() {
        let mut doc = Document::empty();
        doc.put(Section::Users, "u", &map(json!({"token": "t", "as": "root"})));
        doc.put(Section::Users, "u", &map(json!({"exec": {"command": "moorline"}})));
        assert_eq!(doc.entry(Section::Users, "u"), Some(&json!({"exec": {"command": "moorline"}})));
    }

    #[test]
    fn text_that_yaml_could_take_for_something_else_stays_text() {
        for name in [
            "0123",
            "1e3",
            "yes",
            "no",
            "null",
            "~",
            "1.0",
            "0x1f",
            "2026-11-21",
            "-",
            "- a",
            "a: b",
            "#c",
            "on",
            " x",
            "12:30:45",
            "\u{1b}",
            "",
        ] {
            let mut doc = Document::empty();
            doc.put(Section::Users, "u", &map(json!({"token": name})));
            let text = doc.write().unwrap();
            let back = Document::read(&text).unwrap();
            assert_eq!(back.entry(Section::Users, "u"), Some(&json!({"token": name})), "{text}");
        }
    }

    /// As kubectl, which writes a name such as `y` without quotes.
    #[test]
    fn yes_is_a_word() {
        let doc = Document::read("contexts: [{name: y, context: {cluster: no, user: on}}]").unwrap();
        assert_eq!(doc.entry(Section::Contexts, "y"), Some(&json!({"cluster": "no", "user": "on"})));
    }

    #[test]
    fn a_broken_file_is_refused_without_showing_it() {
        for bad in ["- a", "token: [secret", "secret", "users: secret", "users: [secret]"] {
            let error = Document::read(bad).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for nothing in ["", "\n", "null", "# only words\n", "{}"] {
            assert_eq!(Document::read(nothing).unwrap(), Document::empty(), "{nothing:?}");
        }
    }

    const VALID: &str = r#"apiVersion: v1
kind: Config
preferences: {colors: true}
current-context: mine
clusters:
- name: mine
  cluster: {server: "https://1.2.3.4:6443", certificate-authority-data: QUJD, tls-server-name: 'a b'}
contexts:
- name: mine
  context:
    cluster: mine
    user: me
    namespace: team
users:
- name: me
  user:
    exec: {apiVersion: client.authentication.k8s.io/v1, command: moorline, args: [credential, "--hub=x"], interactiveMode: Never}
- name: other
  user:
    token: |
      a
      b
"#;

    /// Reads, changes, writes and reads again; `None`: it was refused. Whatever comes in, nothing panics.
    fn through(text: &str) -> Option<()> {
        let mut doc = Document::read(text).ok()?;
        let (before, current) = (doc.clone(), doc.current_context().map(str::to_owned));
        for section in [Section::Clusters, Section::Users, Section::Contexts] {
            let _ = doc.entry(section, "mine");
        }
        let again = Document::read(&doc.write().unwrap()).unwrap();
        assert_eq!(again, before, "what is written is what was read");
        doc.put(Section::Users, "ours", &map(json!({ "token": "t" })));
        let again = Document::read(&doc.write().unwrap()).unwrap();
        assert_eq!(again.entry(Section::Users, "ours").and_then(|user| user.get("token")), Some(&json!("t")));
        assert_eq!(again.current_context().map(str::to_owned), current);
        Some(())
    }

    #[test]
    fn z08_the_file_that_is_bent_below_is_good() {
        assert_eq!(through(VALID), Some(()));
    }

    proptest::proptest! {
        #[test]
        fn z08_bytes_that_nobody_chose(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let _ = through(&String::from_utf8_lossy(&bytes));
        }

        /// A good file of which pieces are cut out, doubled, moved and replaced.
        #[test]
        fn z08_a_good_file_bent(
            bends in proptest::collection::vec((0..VALID.len(), 0usize..40, 0..VALID.len(), 0u8..4, proptest::prelude::any::<char>()), 1..5),
        ) {
            let mut text: Vec<char> = VALID.chars().collect();
            for (at, length, to, how, other) in bends {
                let at = at.min(text.len());
                let end = (at + length).min(text.len());
                let to = to.min(text.len());
                let piece: Vec<char> = text[at..end].to_vec();
                match how {
                    0 => drop(text.drain(at..end)),
                    1 => drop(text.splice(to..to, piece)),
                    2 => drop(text.splice(at..end, [other])),
                    _ => text.truncate(end),
                }
            }
            let _ = through(&text.into_iter().collect::<String>());
        }
    }
}
