//! The live figure of a device ([`emuv_policy::figure`]) in its ledger.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use emuv_policy::figure::{MOST_NAMED, Maker, Moved, Slow, Summary};

/// Words that a figure has in the ledger, some of them not used yet.
pub(crate) const FIGURE_WORDS: usize = 64;

/// Words of [`Summary`] but for the allocations.
const FIXED: usize = 31;

/// A figure in a ledger.
#[repr(transparent)]
#[derive(Debug)]
pub struct FigureCounters([AtomicU64; FIGURE_WORDS]);

impl Default for FigureCounters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; FIGURE_WORDS])
    }
}

impl FigureCounters {
    /// What works have read in place, as of the last [`Self::store`], in bytes.
    pub fn in_place_bytes(&self) -> u64 {
        self.0[3].load(Relaxed)
    }

    /// The percent of the bound, as of the last [`Self::store`], if it is known.
    pub fn percent_of_bound(&self) -> Option<f64> {
        summary(&std::array::from_fn(|word| self.0[word].load(Relaxed))).percent_of_bound().ok()
    }

    /// Notes the figure as it is now.
    pub fn store(&self, summary: &Summary) {
        for (word, value) in self.0.iter().zip(words(summary)) {
            word.store(value, Relaxed);
        }
    }
}

fn words(summary: &Summary) -> [u64; FIGURE_WORDS] {
    let slow = summary.slow.unwrap_or_default();
    let [into, out, both] = summary.link_bytes_per_milli;
    let fixed: [u64; FIXED] = [
        summary.watched_micros,
        summary.starved_micros,
        summary.in_place_micros,
        summary.in_place_bytes,
        summary.moved_bytes,
        into,
        out,
        both,
        summary.works_per_iteration,
        summary.iterations,
        summary.iterations_micros,
        summary.in_vram_micros,
        summary.bound_micros,
        summary.unsure_micros,
        summary.in_bytes,
        summary.out_bytes,
        summary.iterations_in_place_bytes,
        summary.bound_in_bytes,
        summary.bound_out_bytes,
        u64::from(summary.slow.is_some()),
        slow.micros,
        slow.busy_micros,
        slow.in_place_micros,
        slow.iterations_milli,
        slow.in_bytes,
        slow.out_bytes,
        slow.in_place_bytes,
        slow.bound_micros,
        slow.more_vram_bytes,
        u64::from(slow.twice_as_fast),
        slow.lasting_percent,
    ];
    let named = summary.most_moved.iter().flat_map(|moved| [moved.bytes, moved.moved_bytes, code(moved.maker)]);
    let mut words = [0; FIGURE_WORDS];
    for (word, value) in words.iter_mut().zip(fixed.into_iter().chain(named)) {
        *word = value;
    }
    words
}

/// The figure that these words say, whatever they are.
pub(crate) fn summary(words: &[u64; FIGURE_WORDS]) -> Summary {
    let mut next = words.iter().copied();
    let mut word = || next.next().unwrap_or(0);
    let mut summary = Summary {
        watched_micros: word(),
        starved_micros: word(),
        in_place_micros: word(),
        in_place_bytes: word(),
        moved_bytes: word(),
        link_bytes_per_milli: [word(), word(), word()],
        works_per_iteration: word(),
        iterations: word(),
        iterations_micros: word(),
        in_vram_micros: word(),
        bound_micros: word(),
        unsure_micros: word(),
        in_bytes: word(),
        out_bytes: word(),
        iterations_in_place_bytes: word(),
        bound_in_bytes: word(),
        bound_out_bytes: word(),
        ..Summary::default()
    };
    let is_slow = word() != 0;
    let slow = Slow {
        micros: word(),
        busy_micros: word(),
        in_place_micros: word(),
        iterations_milli: word(),
        in_bytes: word(),
        out_bytes: word(),
        in_place_bytes: word(),
        bound_micros: word(),
        more_vram_bytes: word(),
        twice_as_fast: word() != 0,
        lasting_percent: word(),
    };
    summary.slow = is_slow.then_some(slow);
    for moved in summary.most_moved.iter_mut().take(MOST_NAMED) {
        *moved = Moved { offset: 0, bytes: word(), moved_bytes: word(), maker: maker(word()) };
    }
    summary
}

pub(crate) const fn code(maker: Maker) -> u64 {
    match maker {
        Maker::Unknown => 0,
        Maker::Plain => 1,
        Maker::Pool => 2,
    }
}

pub(crate) const fn maker(code: u64) -> Maker {
    match code {
        1 => Maker::Plain,
        2 => Maker::Pool,
        _ => Maker::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use emuv_policy::figure::Card;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_stored_is_read_back() {
        let mut numbers = [0; FIGURE_WORDS];
        numbers.iter_mut().zip(1000..).for_each(|(word, number)| *word = number);
        (numbers[19], numbers[29]) = (1, 1);
        (numbers[33], numbers[36], numbers[39]) = (1, 2, 0);
        numbers[FIXED + 3 * MOST_NAMED..].fill(0);
        let read = summary(&numbers);
        let counters = FigureCounters::default();
        counters.store(&read);
        assert_eq!(counters.0.map(AtomicU64::into_inner), numbers);
        assert_eq!((read.bound_out_bytes, read.most_moved[2].moved_bytes), (1018, 1038));
    }

    proptest! {
        #[test]
        fn no_words_make_the_figure_panic(words in proptest::collection::vec(any::<u64>(), FIGURE_WORDS), more in any::<u64>()) {
            let summary = summary(&words.try_into().unwrap());
            let _ = (summary.words(), summary.reason(), summary.percent_of_vram_speed());
            let _ = summary.remedy(Card { budget_bytes: more, physical_bytes: more });
        }
    }
}
