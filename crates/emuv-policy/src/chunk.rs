//! How an allocation is cut into chunks and where each goes.
//!
//! A chunk is one physical handle: the driver maps handles whole, never in part, and a remap costs the
//! same for 2 MiB as for 64 MiB. So large allocations use 32 MiB chunks (a remap then hides behind the
//! chunk's copy) and the rest is cut into the largest power of two that fits, which keeps handles
//! exchangeable between allocations.

use crate::Tier;

/// The unit of chunk sizes and addresses: what every driver so far says for both tiers.
pub const GRANULE: u64 = 2 << 20;

/// Chunk sizes in use, largest first.
pub const CHUNK_CLASSES: [u64; 5] = [32 << 20, 16 << 20, 8 << 20, 4 << 20, 2 << 20];

/// One chunk of an allocation (or of a slab).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Where it starts in the arena.
    pub offset: u64,
    /// Its size, one of [`CHUNK_CLASSES`].
    pub bytes: u64,
    /// Where its bytes are.
    pub tier: Tier,
}

/// Room per tier for one placement, in bytes, in the order in which it is used up: VRAM, then RAM, then
/// the VRAM that was held back for the driver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rooms {
    pub vram: u64,
    pub ram: u64,
    pub vram_reserve: u64,
}

/// Cuts `bytes` (a multiple of [`GRANULE`]) starting at `offset` into chunks and gives each a tier.
/// `None` if it does not fit.
pub(crate) fn place(offset: u64, bytes: u64, mut rooms: Rooms) -> Option<Vec<Chunk>> {
    debug_assert!(bytes.is_multiple_of(GRANULE));
    let mut chunks = Vec::new();
    let mut done = 0;
    while done < bytes {
        let (tier, room) = if rooms.vram >= GRANULE {
            (Tier::Vram, &mut rooms.vram)
        } else if rooms.ram >= GRANULE {
            (Tier::Ram, &mut rooms.ram)
        } else {
            (Tier::Vram, &mut rooms.vram_reserve)
        };
        let most = (bytes - done).min(*room);
        let size = *CHUNK_CLASSES.iter().find(|&&class| class <= most)?;
        *room -= size;
        chunks.push(Chunk { offset: offset + done, bytes: size, tier });
        done += size;
    }
    Some(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn rooms(vram: u64, ram: u64) -> Rooms {
        Rooms { vram: vram * MIB, ram: ram * MIB, vram_reserve: 0 }
    }

    fn sizes(chunks: &[Chunk]) -> Vec<(Tier, u64)> {
        chunks.iter().map(|c| (c.tier, c.bytes / MIB)).collect()
    }

    #[test]
    fn large_allocations_use_32_mib_chunks_and_a_power_of_two_tail() {
        let chunks = place(0, 78 * MIB, rooms(1000, 0)).unwrap();
        assert_eq!(sizes(&chunks), [32, 32, 8, 4, 2].map(|size| (Tier::Vram, size)));
    }

    #[test]
    fn vram_is_used_to_the_last_granule_before_ram() {
        let chunks = place(0, 64 * MIB, rooms(22, 100)).unwrap();
        let expected =
            [(Tier::Vram, 16), (Tier::Vram, 4), (Tier::Vram, 2), (Tier::Ram, 32), (Tier::Ram, 8), (Tier::Ram, 2)];
        assert_eq!(sizes(&chunks), expected);
    }

    #[test]
    fn what_is_held_back_for_the_driver_is_the_last_resort() {
        let rooms = Rooms { vram: 0, ram: 2 * MIB, vram_reserve: 4 * MIB };
        let chunks = place(0, 6 * MIB, rooms).unwrap();
        assert_eq!(sizes(&chunks), [(Tier::Ram, 2), (Tier::Vram, 4)]);
        assert_eq!(place(0, 8 * MIB, rooms), None);
    }

    #[test]
    fn chunks_cover_the_allocation_without_gap() {
        let chunks = place(10 * GRANULE, 94 * MIB, rooms(30, 70)).unwrap();
        let mut next = 10 * GRANULE;
        for chunk in &chunks {
            assert_eq!(chunk.offset, next);
            next += chunk.bytes;
        }
        assert_eq!(next, 10 * GRANULE + 94 * MIB);
    }
}
