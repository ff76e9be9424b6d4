//! The signed word of who calls, as services are sent it. One is made for many requests: a signature costs as much as all the
//! rest of what a request is judged by.

use crate::{directory::Authenticated, issue::Issuer};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long one is used. Much shorter than it is good for, and than a key that was replaced is still published.
const USED: Duration = Duration::from_secs(30);
/// Words that are remembered.
const REMEMBERED: usize = 4096;

/// Words that were made lately, by the login that they are of and the host that they are for.
#[derive(Default)]
pub(super) struct Words(Mutex<HashMap<(String, String), Word>>);

struct Word {
    text: String,
    /// The key that signed it: one that is lost signs nothing that anybody believes.
    key: String,
    uid: String,
    verbs: Option<Arc<[String]>>,
    until: Instant,
}

impl Words {
    /// The word for the service at `host`, made by `issuer` where there is none that is young.
    pub fn of(&self, who: &Authenticated, host: &str, issuer: &Issuer) -> String {
        let (now, signed_by) = (Instant::now(), issuer.signing().key());
        let key = (who.token.clone(), host.to_owned());
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && now < known.until
            && known.key == signed_by
            && known.uid == who.identity.uid
            && known.verbs == who.verbs
        {
            return known.text.clone();
        }
        let (text, life) = issuer.for_audience(who, format!("moorline:backend:{host}"));
        let until = now + USED.min(Duration::from_secs(life) / 2);
        let (uid, verbs) = (who.identity.uid.clone(), who.verbs.clone());
        let word = Word { text: text.clone(), key: signed_by, uid, verbs, until };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if REMEMBERED <= all.len() {
            all.retain(|_, word| now < word.until);
        }
        if REMEMBERED <= all.len() {
            all.clear();
        }
        all.insert(key, word);
        text
    }
}
