//! Opaque handles: numbers that mean objects, unique over all kinds, so that a handle of the wrong kind or
//! of a destroyed object is always noticed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::sync::lock;

/// Handles look like addresses, as the driver's do, but nothing lies there (it is below any mapping).
static NEXT: AtomicU64 = AtomicU64::new(0x1000);

/// A number that no other handle has.
pub fn fresh() -> u64 {
    NEXT.fetch_add(16, Ordering::Relaxed)
}

/// Whether a handle was given out at some time, for an object of whatever kind.
pub fn was_given(handle: u64) -> bool {
    (0x1000..NEXT.load(Ordering::Relaxed)).contains(&handle) && handle.is_multiple_of(16)
}

/// The live objects of one kind.
#[derive(Debug)]
pub struct Handles<T> {
    objects: Mutex<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { objects: Mutex::new(HashMap::new()) }
    }
}

impl<T> Handles<T> {
    /// Adds an object and returns its handle.
    pub fn insert(&self, object: T) -> u64 {
        self.insert_shared(Arc::new(object))
    }

    /// Adds an object that is held elsewhere too.
    pub fn insert_shared(&self, object: Arc<T>) -> u64 {
        let handle = fresh();
        lock(&self.objects).insert(handle, object);
        handle
    }

    /// Adds an object that already has its handle.
    pub fn place(&self, handle: u64, object: Arc<T>) {
        lock(&self.objects).insert(handle, object);
    }

    /// The object of a handle, while it lives.
    pub fn get(&self, handle: u64) -> Option<Arc<T>> {
        lock(&self.objects).get(&handle).cloned()
    }

    /// Ends a handle.
    pub fn remove(&self, handle: u64) -> Option<Arc<T>> {
        lock(&self.objects).remove(&handle)
    }

    /// Ends the handles of every object that `gone` picks.
    pub fn remove_all(&self, gone: impl Fn(&T) -> bool) {
        lock(&self.objects).retain(|_, object| !gone(object));
    }

    /// The objects that `picked` picks.
    pub fn select(&self, picked: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        lock(&self.objects).values().filter(|object| picked(object)).cloned().collect()
    }
}
