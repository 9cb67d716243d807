//! Tables of pointers in pinned memory that works are given. The host has written them, so what they lead to counts as
//! given as well, each time; that a kernel stores a further pointer there is what remains to be seen. It is looked for once the work
//! is done, by what stands there then and did not before. The host may have written that, too: then more escapes than has to,
//! and it proves nothing of the kernel, which is doubted instead (`emuv_policy::residency::pointers`).

use crate::{arena::lock, host_ranges::HostRanges, sync::Mutex, touch::Table};

/// See the module's head. One per device.
#[derive(Debug, Default)]
pub(crate) struct Tables(Mutex<Vec<Watched>>);

#[derive(Debug)]
struct Watched {
    /// Stream and number of the work.
    work: (u32, u64),
    table: Table,
}

impl Tables {
    /// A work that is searched behind has been given these.
    pub fn watch(&self, work: (u32, u64), tables: &[Table]) {
        if !tables.is_empty() {
            lock(&self.0).extend(tables.iter().map(|table| Watched { work, table: table.clone() }));
        }
    }

    /// Pointers that stand in the tables of works up to `done` (stream, number), and stood there in none of them at its launch.
    pub fn stored(&self, done: &[(u32, u64)], ranges: &HostRanges) -> Vec<u64> {
        let is_done =
            |watched: &mut Watched| done.iter().any(|(lane, last)| watched.work.0 == *lane && watched.work.1 <= *last);
        let ended: Vec<Watched> = lock(&self.0).extract_if(.., is_done).collect();
        let mut found = Vec::new();
        for Watched { table, .. } in ended {
            ranges.reach(table.start, |word| found.extend((word != 0 && !table.shown.contains(&word)).then_some(word)));
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_work_leaves_in_a_table_is_found_when_it_is_done() {
        let (ranges, tables) = (HostRanges::default(), Tables::default());
        let mut memory = [0_u64; 8];
        let start = memory.as_ptr() as u64;
        ranges.add_pinned(start, 64);
        memory[2] = 77;
        tables.watch((3, 5), &[Table { start, bytes: 64, shown: vec![77].into() }]);
        memory[7] = 88;
        assert!(tables.stored(&[(3, 4), (2, 9)], &ranges).is_empty(), "that work is not known to be done");
        assert_eq!(tables.stored(&[(3, 5)], &ranges), [88]);
        assert!(tables.stored(&[(3, 9)], &ranges).is_empty(), "it has been looked at");
        assert_eq!(memory[2..], [77, 0, 0, 0, 0, 88]);
    }
}
