//! What stands between the library that keeps a store's file and the disk.

use redb::{BackendError, StorageBackend};
use std::{
    io,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// What is done to a disk once it may be.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
enum Act {
    Write { at: u64, data: Vec<u8> },
    Resize(u64),
    Sync,
}

/// Remembers whether an fsync failed: after that nobody knows what is on the disk, whatever the file reads like. And holds
/// everything that is written back until it is known that the file is this version's: what opening writes is a few pages,
/// and what is put right after a kill.
///
/// Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Witness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: Box<dyn StorageBackend>,
    lost: AtomicBool,
    /// Not done yet, in order; read as if it were.
    held: Mutex<Vec<Act>>,
    /// Whether that is over.
    released: AtomicBool,
}

impl Witness {
    /// Holds writes back.
    pub(crate) fn holding(disk: Box<dyn StorageBackend>) -> Self {
        let (lost, released) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Inner { disk, lost, held: Mutex::default(), released }))
    }

    /// Does what was held back, in the order and with the syncs that it was asked for, and holds nothing back any more.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn release(&self) -> io::Result<()> {
        let mut held = self.held();
        for act in held.drain(..) {
            match act {
                Act::Write { at, data } => self.0.disk.write(at, &data)?,
                Act::Resize(len) => self.0.disk.set_len(len)?,
                Act::Sync => self.sync()?,
            }
        }
        self.0.released.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether an fsync failed.
    pub(crate) fn lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Act>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.disk.sync_data().inspect_err(|_| self.0.lost.store(true, Ordering::Release))
    }

    /// `true`: it was kept for later.
    fn hold(&self, act: impl FnOnce() -> Act) -> bool {
        if self.0.released.load(Ordering::Acquire) {
            return false;
        }
        let mut held = self.held();
        let hold = !self.0.released.load(Ordering::Acquire);
        if hold {
            held.push(act());
        }
        hold
    }
}

/// Lays a write over what was read from `offset` on.
fn lay(out: &mut [u8], offset: u64, at: u64, data: &[u8]) {
    let (from, end) = (at.max(offset), (at + data.len() as u64).min(offset + out.len() as u64));
    if from < end {
        // Both lie within slices, whose lengths are `usize`.
        let place = |position: u64, begin: u64| usize::try_from(position - begin).unwrap_or(usize::MAX);
        out[place(from, offset)..place(end, offset)].copy_from_slice(&data[place(from, at)..place(end, at)]);
    }
}

impl StorageBackend for Witness {
    fn len(&self) -> io::Result<u64> {
        let mut len = self.0.disk.len()?;
        for act in &*self.held() {
            match act {
                Act::Write { at, data } => len = len.max(at + data.len() as u64),
                Act::Resize(to) => len = *to,
                Act::Sync => {}
            }
        }
        Ok(len)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.0.released.load(Ordering::Acquire) {
            return self.0.disk.read(offset, out);
        }
        let end = offset + out.len() as u64;
        if self.len()? < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // What lies past the end of the disk was only made longer, or stands in a write.
        out.fill(0);
        let there = self.0.disk.len()?.clamp(offset, end) - offset;
        if let Some(part) = usize::try_from(there).ok().and_then(|there| out.get_mut(..there)).filter(|p| !p.is_empty())
        {
            self.0.disk.read(offset, part)?;
        }
        for act in &*self.held() {
            match act {
                Act::Write { at, data } => lay(out, offset, *at, data),
                // Made shorter, and longer again: nothing is left of what lay there.
                Act::Resize(to) if *to < end => {
                    let gone = usize::try_from(to.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
                    out[gone..].fill(0);
                }
                Act::Resize(_) | Act::Sync => {}
            }
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.hold(|| Act::Resize(len)) { Ok(()) } else { self.0.disk.set_len(len) }
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.hold(|| Act::Sync) { Ok(()) } else { self.sync() }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let held = self.hold(|| Act::Write { at: offset, data: data.to_vec() });
        if held { Ok(()) } else { self.0.disk.write(offset, data) }
    }
    fn close(&self) -> io::Result<()> {
        self.0.disk.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.disk.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.disk.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.disk.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.disk.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.disk.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.disk.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    /// The disk stays here to be looked at.
    #[derive(Debug)]
    struct Seen(Arc<InMemoryBackend>);
    impl StorageBackend for Seen {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    fn act() -> impl Strategy<Value = Act> {
        let write =
            (0u64..300, prop::collection::vec(any::<u8>(), 1..100)).prop_map(|(at, data)| Act::Write { at, data });
        prop_oneof![4 => write, 1 => (0u64..400).prop_map(Act::Resize), 1 => Just(Act::Sync)]
    }

    fn perform(on: &dyn StorageBackend, act: &Act) {
        match act {
            Act::Write { at, data } => {
                let end = at + data.len() as u64;
                if on.len().unwrap() < end {
                    on.set_len(end).unwrap();
                }
                on.write(*at, data).unwrap();
            }
            Act::Resize(len) => on.set_len(*len).unwrap(),
            Act::Sync => on.sync_data().unwrap(),
        }
    }

    fn content(of: &dyn StorageBackend) -> Vec<u8> {
        let mut all = vec![9; usize::try_from(of.len().unwrap()).unwrap()];
        of.read(0, &mut all).unwrap();
        all
    }

    proptest! {
        /// What is held back reads as if it were done, whole and in parts, and is done when it is released, and not before.
        #[test]
        fn what_is_held_back_reads_as_if_it_were_done(
            before in prop::collection::vec(act(), 0..5),
            acts in prop::collection::vec(act(), 0..20),
            parts in prop::collection::vec((0u64..400, 1usize..100), 5),
        ) {
            let (model, disk) = (InMemoryBackend::new(), Arc::new(InMemoryBackend::new()));
            for act in &before {
                perform(&model, act);
                perform(&*disk, act);
            }
            let untouched = content(&*disk);
            let witness = Witness::holding(Box::new(Seen(Arc::clone(&disk))));
            for act in &acts {
                perform(&model, act);
                perform(&witness, act);
                prop_assert_eq!(content(&witness), content(&model));
            }
            let all = content(&model);
            for (offset, len) in parts {
                let mut out = vec![9; len];
                let at = usize::try_from(offset).unwrap();
                match all.get(at..at + len) {
                    Some(part) => {
                        witness.read(offset, &mut out).unwrap();
                        prop_assert_eq!(&out[..], part);
                    }
                    None => prop_assert!(witness.read(offset, &mut out).is_err()),
                }
            }
            prop_assert_eq!(content(&*disk), untouched);
            witness.release().unwrap();
            prop_assert_eq!(content(&*disk), all);
        }
    }
}
