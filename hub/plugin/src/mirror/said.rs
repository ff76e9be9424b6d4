//! What the object of a cluster says of what a mirror has there, in one condition. It may say more than there is, and never
//! less: who reads there that nothing is left lets the cluster go. So a mirror makes its first object in a cluster only
//! once the condition says that something may be there ([`super::Report::making`]).

use super::Report;
use crate::{Condition, HubView, PluginError, condition::change_condition};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::watcher,
};

/// The reason when the mirror was never let in, and has nothing there.
const NOT_ALLOWED: &str = "NotAllowed";
/// The reason when it is let in no more, and may have left something there.
pub const SHUT_OUT: &str = "ShutOut";
/// The reason once nothing of it is left in a cluster that is being removed.
pub const REMOVED: &str = "Removed";
/// The reasons when the cluster cannot be looked at, and something may be there, or nothing was ever made there.
const CANNOT_WATCH: &str = "CannotWatch";
const NOTHING_MADE: &str = "NothingMade";
/// The reason when all is there that is wanted, and how its message begins when that is nothing.
const IN_SYNC: (&str, &str) = ("InSync", "0 objects");

/// Whether a mirror's condition says that nothing of the mirror is in the cluster.
pub fn says_nothing(condition: &Condition) -> bool {
    match condition.reason.as_str() {
        REMOVED | NOT_ALLOWED | NOTHING_MADE => true,
        reason => reason == IN_SYNC.0 && condition.message.starts_with(IN_SYNC.1),
    }
}

/// Whether words of a cluster's are its owner's refusal.
fn is_refusal(why: &str) -> bool {
    why.contains("edge policy")
}

/// Why nothing is done in a cluster, by what it says and by whether something may be there.
fn reason_for(why: &str, something: bool) -> &'static str {
    match (is_refusal(why), something) {
        (true, true) => SHUT_OUT,
        (true, false) => NOT_ALLOWED,
        (false, true) => CANNOT_WATCH,
        (false, false) => NOTHING_MADE,
    }
}

/// The condition of a report. `before`: what it says now; a mirror that has not seen the cluster yet knows nothing else.
pub(super) fn as_condition(r#type: &str, report: &Report, leaving: bool, before: Option<&Condition>) -> Condition {
    let drift = match &report.last_drift {
        Some(key) => format!("; put right {} times what others changed, last {key}", report.drifted),
        None => String::new(),
    };
    // What failed is not there, or is counted as if it were.
    let mut something = report.making || 0 < report.there;
    let (holds, reason, message) = match (&report.trouble, report.failed.iter().next()) {
        (Some(why), _) => {
            // Not all was looked at: what was known before holds.
            something |= report.of.is_none() && before.is_some_and(|before| !says_nothing(before));
            (false, reason_for(why, something), why.clone())
        }
        (None, Some((key, why))) => (
            false,
            "Failing",
            format!(
                "{} of {} objects, first {key}: {why}{drift}",
                report.failed.len(),
                report.failed.len() + report.synced
            ),
        ),
        (None, None) if report.making && report.there == 0 => {
            (false, "Syncing", "the first objects are being made".to_owned())
        }
        // What was wanted has changed under way.
        (None, None) if report.of.is_none() => (false, "Syncing", "objects are being made and taken away".to_owned()),
        (None, None) if leaving && !something && report.of.as_ref().is_some_and(|of| of.is_empty()) => {
            (true, REMOVED, "nothing of it is left in the cluster".to_owned())
        }
        (None, None) => (true, IN_SYNC.0, format!("{} objects{drift}", report.there)),
    };
    Condition::new(r#type, holds, reason, message)
}

pub(super) fn clusters_of(hub: &HubView) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("moorline.dev", "v1alpha1", "Cluster");
    Api::all_with(hub.client.clone(), &ApiResource::from_gvk_with_plural(&kind, "clusters"))
}

/// Tells in the cluster's object, in the condition of a mirror's, why nothing can be done there: what is mirrored comes of a
/// watch of `plural`, which failed. The error is the half's.
pub async fn cannot_watch(
    hub: &HubView,
    (cluster, condition): (&str, &str),
    plural: &str,
    error: &watcher::Error,
) -> PluginError {
    let why = format!("cannot watch {plural}: {error}");
    let told = |before: Option<&Condition>| {
        let reason = reason_for(&why, before.is_some_and(|before| !says_nothing(before)));
        Condition::new(condition, false, reason, why.clone())
    };
    match change_condition(&clusters_of(hub), cluster, condition, told).await {
        Ok(_) => PluginError::Other(why),
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::{Key, Objects};
    use serde_json::Value;
    use std::sync::Arc;

    fn of(report: &Report, leaving: bool) -> Condition {
        as_condition("X", report, leaving, None)
    }

    #[test]
    fn a_cluster_that_leaves_is_clean_when_nothing_is_wanted_and_nothing_fails() {
        let key = Key { kind: "Role", namespace: String::new(), name: "r".to_owned() };
        let one: Objects = [(key.clone(), Value::Null)].into();
        let full = Report { of: Some(Arc::new(one)), synced: 1, there: 1, ..Report::default() };
        assert_eq!(of(&full, true).reason, "InSync", "what it says is of the time before");
        let empty = Report { of: Some(Arc::default()), ..Report::default() };
        assert_eq!((of(&empty, true).reason.as_str(), of(&empty, false).reason.as_str()), (REMOVED, "InSync"));
        assert_eq!((says_nothing(&of(&full, true)), says_nothing(&of(&empty, false))), (false, true));
        let cut = of(&Report { there: 1, ..Report::default() }, true);
        assert_eq!((cut.reason.as_str(), says_nothing(&cut)), ("Syncing", false), "it was left for something newer");
        let stuck = Report { failed: [(key, "no".to_owned())].into(), ..empty.clone() };
        assert_eq!(of(&stuck, true).reason, "Failing");
        for leaving in [true, false] {
            let making = of(&Report { making: true, ..empty.clone() }, leaving);
            assert!(!says_nothing(&making), "{making:?}");
        }
    }

    #[test]
    fn who_is_refused_may_have_left_something_where_that_was_told_before() {
        let refused = Report { trouble: Some("by the edge policy".to_owned()), ..Report::default() };
        let (looked, there) = (Some(Arc::default()), 1);
        let before = |report: &Report| of(report, false);
        let nothing = before(&Report { of: looked.clone(), ..Report::default() });
        let something = before(&Report { of: looked.clone(), there, ..Report::default() });
        let reason = |report: &Report, before| as_condition("X", report, true, before).reason;
        assert_eq!(reason(&refused, None), NOT_ALLOWED);
        assert_eq!(reason(&refused, Some(&nothing)), NOT_ALLOWED);
        assert_eq!(reason(&refused, Some(&something)), SHUT_OUT, "this mirror has not seen the cluster");
        // Where it cannot be known what is wanted either, that is a failure of nothing that is there.
        let unsure = [(Key { kind: "Role", namespace: String::new(), name: "r".to_owned() }, "unknown".to_owned())];
        assert_eq!(reason(&Report { failed: unsure.into(), ..refused.clone() }, None), NOT_ALLOWED);
        let down = Report { trouble: Some("no answer".to_owned()), ..Report::default() };
        let never = as_condition("X", &down, true, Some(&nothing));
        assert!(says_nothing(&never), "{never:?}");
        assert_eq!(reason(&refused, Some(&never)), NOT_ALLOWED, "nothing was ever there, whatever came between");
        assert_eq!(reason(&down, Some(&something)), CANNOT_WATCH);
        let looked = Report { of: looked, ..refused };
        assert_eq!(reason(&looked, Some(&something)), NOT_ALLOWED, "it had seen that nothing is there");
        assert_eq!(reason(&Report { there, ..looked }, None), SHUT_OUT);
    }
}
