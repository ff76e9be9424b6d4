//! Where the streams of a session live.

use super::stream::Stream;
use alloc::{collections::BTreeMap, vec::Vec};

/// Names one stream of one [`super::Mux`]. It stays valid until the stream is released, and never names another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey {
    pub(super) slot: u32,
    pub(super) id: u32,
}

impl StreamKey {
    /// The id on the wire.
    #[must_use]
    pub const fn id(self) -> u32 {
        self.id
    }

    /// A small number that no other stream has while this one lives: an index for what belongs to the stream.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Streams by slot, for those who hold a key, and by id, for the wire.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Option<Stream>>,
    free: Vec<u32>,
    by_id: BTreeMap<u32, u32>,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn insert(&mut self, stream: Stream) -> StreamKey {
        let id = stream.id;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32 // ids are 32 bits, so are the slots
        });
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(stream);
        }
        self.by_id.insert(id, slot);
        StreamKey { slot, id }
    }

    pub(super) fn key(&self, id: u32) -> Option<StreamKey> {
        self.by_id.get(&id).map(|slot| StreamKey { slot: *slot, id })
    }

    pub(super) fn get(&self, key: StreamKey) -> Option<&Stream> {
        self.slots.get(key.slot())?.as_ref().filter(|stream| stream.id == key.id)
    }

    pub(super) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.slots.get_mut(key.slot())?.as_mut().filter(|stream| stream.id == key.id)
    }

    pub(super) fn remove(&mut self, key: StreamKey) -> Option<Stream> {
        let place = self.slots.get_mut(key.slot())?;
        let stream = place.take_if(|stream| stream.id == key.id)?;
        self.by_id.remove(&key.id);
        self.free.push(key.slot);
        // A burst of streams leaves nothing behind once it is over.
        if self.by_id.is_empty() {
            *self = Self::default();
        }
        Some(stream)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (StreamKey, &Stream)> {
        self.slots.iter().enumerate().filter_map(|(slot, place)| {
            place.as_ref().map(|stream| (StreamKey { slot: slot as u32, id: stream.id }, stream))
        })
    }

    pub(super) fn keys(&self) -> Vec<StreamKey> {
        self.iter().map(|(key, _)| key).collect()
    }
}
