//! Maps for keys that are handles, numbers or hashes already: what is looked up at every launch. They need no defence
//! against chosen keys, which is what the standard hasher takes its time for; and they are the same in every run.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

/// A map by handle or number.
pub type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Scatter>>;

/// A set of handles or numbers.
pub type FastSet<K> = HashSet<K, BuildHasherDefault<Scatter>>;

/// Scatters each word of a key over all bits.
#[derive(Debug, Default)]
pub struct Scatter(u64);

impl Hasher for Scatter {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0 ^ value);
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    #[allow(clippy::cast_sign_loss)] // Only its bits count.
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

/// A bijection that scatters (the finaliser of SplitMix64).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
