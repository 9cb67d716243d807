//! Which memory has stayed in VRAM since it was last somebody's: an allocation of a loop looks for that.

use emuv_policy::{GRANULE, MoveRoom, Policy, Residency, Step, Tier};

const ROOM: MoveRoom =
    MoveRoom { vram_bytes: 4 * GRANULE, ram_bytes: 64 * GRANULE, vram_coming_bytes: 0, vram_excess_bytes: 0 };

#[test]
fn what_is_brought_while_it_is_nobodys_has_not_stayed() {
    let mut residency = Residency::new(Policy::Torture { state: 1, safe: false });
    residency.add_chunk(0, GRANULE, Tier::Vram, false);
    residency.add_extent(0, GRANULE);
    residency.quiesced();
    residency.searched_all(Some(&[]));
    residency.remove_extent(0);
    assert!(residency.has_stayed(GRANULE / 2));
    assert!(!residency.has_stayed(GRANULE), "nothing is there");
    for to in [Tier::Ram, Tier::Vram] {
        let Step::Move { offset: 0, to: goes, copy: false, .. } = residency.next_step(ROOM) else { panic!("rests") };
        assert_eq!(goes, to);
        assert!(!residency.has_stayed(0), "it is on its way to {to}");
        residency.finish(0, true);
        assert!(!residency.has_stayed(0), "it has been in RAM");
    }
    residency.add_extent(0, GRANULE);
    residency.remove_extent(0);
    assert!(residency.has_stayed(0));
}
