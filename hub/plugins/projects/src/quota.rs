//! One quota shared among namespaces, of which Kubernetes knows nothing: each namespace has a ResourceQuota, and these
//! are moved between the namespaces so that their sum never passes what the project has.
//!
//! Two rules keep that true at any moment, whatever pods come meanwhile and however late news of them is: a share is
//! raised only by what no share holds and nobody uses, and only once every share that was lowered is in force
//! (`status.hard` equals `spec.hard`, from when on admission goes by it).

use std::collections::BTreeMap;

/// A share as the cluster shows it, for one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// `spec.hard`, as last seen.
    pub hard: Option<i128>,
    /// `status.hard`: what admission goes by.
    pub in_force: Option<i128>,
    /// `status.used`.
    pub used: i128,
    /// What was last asked for here: newer than what is seen.
    pub planned: Option<i128>,
}

impl Share {
    /// What this namespace holds at most, whichever of what is known is newest.
    fn held(&self) -> i128 {
        self.hard.unwrap_or(0).max(self.planned.unwrap_or(0)).max(self.in_force.unwrap_or(0)).max(self.used)
    }

    fn settled(&self) -> bool {
        self.hard == self.in_force && (self.planned.is_none() || self.planned == self.hard)
    }

    /// What it was last told.
    fn told(&self) -> i128 {
        self.planned.or(self.hard).unwrap_or(0)
    }
}

/// The shares to ask for next, in multiples of `unit`. What is not hungry keeps what it has, so that an idle project
/// writes nothing.
pub(crate) fn plan(limit: i128, unit: i128, shares: &BTreeMap<String, Share>) -> BTreeMap<String, i128> {
    let mut next: BTreeMap<String, i128> = shares.iter().map(|(name, share)| (name.clone(), share.told())).collect();
    let count = i128::try_from(shares.len()).unwrap_or(i128::MAX).max(1);
    let used: i128 = shares.values().map(|share| share.used).sum();
    let part = ((limit - used) / count).max(0) / unit * unit;
    let hungry = |share: &Share| share.planned.is_none() || 2 * (share.told() - share.used) < part;
    let over = shares.values().map(Share::told).sum::<i128>() > limit;
    if !over && !shares.values().any(hungry) {
        return next;
    }
    // First everybody gives back what is more than the own part.
    let mut lowered = false;
    for (name, share) in shares {
        let target = share.used + part;
        if target < share.told() {
            next.insert(name.clone(), target);
            lowered = true;
        }
    }
    if lowered || !shares.values().all(Share::settled) {
        return next;
    }
    // All of that is in force: what is left can be given to those who have less than their part.
    let mut free = limit - shares.values().map(Share::held).sum::<i128>();
    for (name, share) in shares {
        let missing = (share.used + part - share.held()).clamp(0, free.max(0));
        if missing > 0 {
            next.insert(name.clone(), share.held() + missing);
            free -= missing;
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_counted_is_shared_in_whole_numbers() {
        let share = |hard, used| Share { hard: Some(hard), in_force: Some(hard), used, planned: Some(hard) };
        let shares = BTreeMap::from([("a".to_owned(), share(3000, 3000)), ("b".to_owned(), share(3000, 0))]);
        assert_eq!(plan(6000, 1000, &shares)["b"], 1000);
        assert_eq!(plan(6000, 1, &shares)["b"], 1500);
    }

    #[test]
    fn a_project_alone_has_all_of_it_and_two_share_it() {
        let mut shares = BTreeMap::from([("a".to_owned(), Share::default())]);
        assert_eq!(plan(10, 1, &shares)["a"], 10);
        let whole = Share { hard: Some(10), in_force: Some(10), used: 4, planned: Some(10) };
        shares.insert("a".to_owned(), whole);
        assert_eq!(plan(10, 1, &shares)["a"], 10, "nothing to do");
        shares.insert("b".to_owned(), Share::default());
        let first = plan(10, 1, &shares);
        assert_eq!((first["a"], first["b"]), (7, 0), "given back first");
        shares.insert("a".to_owned(), Share { hard: Some(7), planned: Some(7), ..whole });
        shares.insert("b".to_owned(), Share { planned: Some(0), hard: Some(0), in_force: Some(0), used: 0 });
        assert_eq!(plan(10, 1, &shares)["b"], 0, "not before it is in force");
        shares.insert("a".to_owned(), Share { hard: Some(7), in_force: Some(7), planned: Some(7), used: 4 });
        assert_eq!(plan(10, 1, &shares)["b"], 3);
    }

    #[derive(Debug, Clone)]
    enum Act {
        Use(usize, i128),
        Free(usize, i128),
        /// The quota controller puts spec.hard in force.
        Enforce(usize),
        /// What is planned is written.
        Write(usize),
        /// The plugin's view of one namespace catches up.
        See(usize),
        Plan,
        Limit(i128),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (0usize..3, 1i128..8).prop_map(|(at, n)| Act::Use(at, n)),
            2 => (0usize..3, 1i128..8).prop_map(|(at, n)| Act::Free(at, n)),
            3 => (0usize..3).prop_map(Act::Enforce),
            3 => (0usize..3).prop_map(Act::Write),
            3 => (0usize..3).prop_map(Act::See),
            4 => Just(Act::Plan),
            1 => (10i128..30).prop_map(Act::Limit),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        /// Whatever the order of pods, writes, controllers and late news: never more in use than the project has had.
        #[test]
        fn namespaces_together_never_pass_the_quota(acts in prop::collection::vec(act(), 1..80)) {
            let (mut limit, mut most) = (20, 20);
            let mut real = vec![Share::default(); 3];
            let mut view = vec![Share::default(); 3];
            for act in acts {
                match act {
                    // Admission goes by what is in force; a namespace without a quota is not served at all here.
                    Act::Use(at, n) => if real[at].used + n <= real[at].in_force.unwrap_or(0) { real[at].used += n },
                    Act::Free(at, n) => real[at].used = (real[at].used - n).max(0),
                    Act::Enforce(at) => real[at].in_force = real[at].hard,
                    Act::Write(at) => if view[at].planned.is_some() { real[at].hard = view[at].planned },
                    Act::See(at) => view[at] = Share { planned: view[at].planned, ..real[at] },
                    Act::Limit(n) => { limit = n; most = most.max(n) }
                    Act::Plan => {
                        let named = view.iter().enumerate().map(|(at, share)| (at.to_string(), *share)).collect();
                        for (name, hard) in plan(limit, 1, &named) {
                            view[name.parse::<usize>().unwrap()].planned = Some(hard);
                        }
                    }
                }
                let used: i128 = real.iter().map(|share| share.used).sum();
                prop_assert!(used <= most, "{used} of {most}: {real:?} {view:?}");
            }
        }

        /// With everybody calm, shares come to rest, and no namespace is left without its part.
        #[test]
        fn shares_come_to_rest(used in prop::collection::vec(0i128..10, 1..6), limit in 60i128..200) {
            let mut shares: BTreeMap<String, Share> = used.iter().enumerate()
                .map(|(at, used)| (at.to_string(), Share { used: *used, ..Share::default() })).collect();
            let mut before = BTreeMap::new();
            for _ in 0..20 {
                let next = plan(limit, 1, &shares);
                for (name, hard) in &next {
                    let share = shares.get_mut(name).unwrap();
                    (share.planned, share.hard, share.in_force) = (Some(*hard), Some(*hard), Some(*hard));
                }
                if next == before { break }
                before = next;
            }
            let part = (limit - used.iter().sum::<i128>()) / i128::try_from(used.len()).unwrap();
            prop_assert_eq!(plan(limit, 1, &shares), before);
            for share in shares.values() {
                prop_assert!(2 * (share.told() - share.used) >= part, "{:?}", shares);
            }
        }
    }
}
