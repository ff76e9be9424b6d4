//! Which ids a peer has used.

use alloc::collections::BTreeMap;

/// The ids of one parity that were opened. Ids may come out of order, for other implementations send the frame that
/// opens a stream with its first data; none may come twice.
#[derive(Debug)]
pub(super) struct SeenIds {
    /// The first id above all that were seen. `None`: all were.
    next: Option<u32>,
    /// Skipped ranges below `next`, first id to last.
    gaps: BTreeMap<u32, u32>,
    max_gaps: usize,
}

impl SeenIds {
    pub(super) const fn new(first: u32, max_gaps: usize) -> Self {
        Self { next: Some(first), gaps: BTreeMap::new(), max_gaps }
    }

    /// Whether `id` was opened, or can no longer be.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.next.is_none_or(|next| id < next) && self.gap_of(id).is_none()
    }

    /// Marks `id` as opened; `false`: it was before.
    pub(super) fn insert(&mut self, id: u32) -> bool {
        if let Some((first, last)) = self.gap_of(id) {
            self.gaps.remove(&first);
            if first < id {
                self.gaps.insert(first, id - 2);
            }
            if id < last {
                self.gaps.insert(id + 2, last);
            }
        } else {
            let Some(next) = self.next.filter(|next| *next <= id) else { return false };
            if next < id {
                self.gaps.insert(next, id - 2);
            }
            self.next = id.checked_add(2);
        }
        // The oldest skipped ids count as used: a peer that comes back to them is beyond all reordering.
        while self.gaps.len() > self.max_gaps {
            self.gaps.pop_first();
        }
        true
    }

    fn gap_of(&self, id: u32) -> Option<(u32, u32)> {
        let (first, last) = self.gaps.range(..=id).next_back()?;
        (id <= *last).then_some((*first, *last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    proptest! {
        /// With room for every gap it is a set.
        #[test]
        fn is_a_set_of_ids(ids in prop::collection::vec(0u32..60, 0..60)) {
            let (mut seen, mut model) = (SeenIds::new(1, 100), BTreeSet::new());
            for id in ids.into_iter().map(|id| id * 2 + 1) {
                prop_assert_eq!(seen.contains(id), model.contains(&id));
                prop_assert_eq!(seen.insert(id), model.insert(id));
            }
        }
    }

    #[test]
    fn the_last_id_is_the_end_and_old_gaps_close() {
        let mut seen = SeenIds::new(1, 1);
        assert!(seen.insert(5) && seen.insert(9) && seen.insert(u32::MAX));
        assert!(!seen.insert(u32::MAX) && !seen.insert(3) && !seen.insert(7));
        assert!(seen.insert(11));
    }
}
