//! The live figure in numbers, and in words.

use std::fmt;

use crate::Bytes;

/// Allocations that are named for what was moved of them.
pub const MOST_NAMED: usize = 3;

/// The percent of bound is known if this part of the time is unsure at most.
const UNSURE: f64 = 0.05;

/// Iterations that it takes.
pub(super) const FEWEST_ITERATIONS: u64 = 3;

/// VRAM beyond a budget that the card must have to be asked for it: its driver's own.
const LEFT_TO_DRIVER: u64 = 512 << 20;

/// The part of what moved, in percent, from which on one allocation is to blame.
const BLAMED_PERCENT: f64 = 30.0;

/// The part of what comes in, in percent, from which on it is that which lasts, or which does not, that matters.
const MOSTLY_PERCENT: u64 = 60;

const LARGER_BATCH: &str =
    "most of it stays from iteration to iteration (weights): a larger batch has the GPU do more for the same bytes";
const SMALLER_BATCH: &str = "most of it is made anew in each iteration (activations): a smaller batch moves less";

/// How an allocation was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Maker {
    /// It is not known, or it is gone.
    #[default]
    Unknown,
    /// By `cuMemAlloc` or its like.
    Plain,
    /// In a stream's order, from a pool: `cuMemAllocAsync`.
    Pool,
}

impl Maker {
    /// The call, as people know it.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Unknown => None,
            Self::Plain => Some("cuMemAlloc"),
            Self::Pool => Some("cuMemAllocAsync"),
        }
    }
}

/// An allocation of which much was moved. Those that were one after the other at the same place count as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Where it lies in the arena.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
    /// What was moved of it, both ways, each time that it was.
    pub moved_bytes: u64,
    /// How it was made.
    pub maker: Maker,
}

/// A program was seen to run at less than a quarter of the speed that it would have with everything in VRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slow {
    /// How long was looked, in microseconds.
    pub micros: u64,
    /// How much of that the GPU did not wait for data or read it in place; 0: not known.
    pub busy_micros: u64,
    /// How much went into reading in place.
    pub in_place_micros: u64,
    /// Iterations meanwhile, in thousandths; 0: no loop is foreseen.
    pub iterations_milli: u64,
    /// Bytes moved into VRAM meanwhile.
    pub in_bytes: u64,
    /// Bytes moved out of it.
    pub out_bytes: u64,
    /// Bytes read in place.
    pub in_place_bytes: u64,
    /// The least time of so many iterations that link and GPU allow, in microseconds; 0: not known.
    pub bound_micros: u64,
    /// So much more VRAM would allow half of the speed with everything in VRAM; 0: not known, or VRAM is not what is
    /// missing.
    pub more_vram_bytes: u64,
    /// The same, but to be twice as fast as now.
    pub twice_as_fast: bool,
    /// Of what has to come in, so many percent last from iteration to iteration: weights, not activations.
    pub lasting_percent: u64,
}

/// The live figure. Counts from the beginning: whoever wants that of a while takes differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// How long was watched, in microseconds; 0: never, and so is everything else.
    pub watched_micros: u64,
    /// How much of that works were held and the GPU had nothing else to do.
    pub starved_micros: u64,
    /// How much works took that read in place, as far as that is known.
    pub in_place_micros: u64,
    /// What they read in place, in bytes.
    pub in_place_bytes: u64,
    /// Bytes moved, both ways.
    pub moved_bytes: u64,
    /// The link's speeds, in bytes a millisecond: into VRAM, into RAM, both together. 0: not known.
    pub link_bytes_per_milli: [u64; 3],
    /// Works of the loop in which most time was measured; until then, of the one that was seen last.
    pub works_per_iteration: u64,
    /// Iterations of it that were measured; what follows is about those. (Counters: another loop may come to be the one.)
    pub iterations: u64,
    /// How long they took, in microseconds.
    pub iterations_micros: u64,
    /// How long with everything in VRAM, at least.
    pub in_vram_micros: u64,
    /// How long at least, as far as GPU and link go.
    pub bound_micros: u64,
    /// How much longer that may be, as it is not known how long works would have taken that read in place.
    pub unsure_micros: u64,
    /// Bytes moved into VRAM.
    pub in_bytes: u64,
    /// Bytes moved out of it.
    pub out_bytes: u64,
    /// Bytes read in place.
    pub iterations_in_place_bytes: u64,
    /// Bytes that had to come in.
    pub bound_in_bytes: u64,
    /// Bytes that had to go out.
    pub bound_out_bytes: u64,
    /// Whether there was a warning, and what it was.
    pub slow: Option<Slow>,
    /// Of which allocations most was moved, most first; unused ones have no bytes.
    pub most_moved: [Moved; MOST_NAMED],
}

/// Why the percent of bound is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Nothing was watched.
    NotWatched,
    /// The link could not be measured.
    NoLink,
    /// No loop was found.
    NoLoop,
    /// A loop was found, but not followed for long enough.
    FewIterations,
    /// It is not known how long works would have taken that read in place.
    InPlace,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotWatched => "nothing was moved ahead of need",
            Self::NoLink => "the link's speed could not be measured",
            Self::NoLoop => "the program was not seen to repeat itself",
            Self::FewIterations => "the program did not repeat itself for long enough",
            Self::InPlace => "it is not known how long what was read in place would have taken in VRAM",
        })
    }
}

/// What is to be known besides to say what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Card {
    /// The VRAM budget; 0: not known.
    pub budget_bytes: u64,
    /// The card's VRAM; 0: not known.
    pub physical_bytes: u64,
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
fn part(of: u64, all: u64) -> f64 {
    of as f64 / all.max(1) as f64
}

fn millis(micros: u64, count: u64) -> f64 {
    part(micros, count) / 1e3
}

impl Summary {
    /// How much of what GPU and link allow was reached, in percent.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn percent_of_bound(&self) -> Result<f64, Unknown> {
        if self.watched_micros == 0 {
            return Err(Unknown::NotWatched);
        }
        if self.link_bytes_per_milli.contains(&0) {
            return Err(Unknown::NoLink);
        }
        if self.works_per_iteration == 0 {
            return Err(Unknown::NoLoop);
        }
        if self.iterations < FEWEST_ITERATIONS {
            return Err(Unknown::FewIterations);
        }
        if part(self.unsure_micros, self.iterations_micros) > UNSURE {
            return Err(Unknown::InPlace);
        }
        Ok((part(self.bound_micros, self.iterations_micros) * 100.0).min(100.0))
    }

    /// Of the speed with everything in VRAM so much was had, in percent.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn percent_of_vram_speed(&self) -> Result<f64, Unknown> {
        self.percent_of_bound().map(|_| (part(self.in_vram_micros, self.iterations_micros) * 100.0).min(100.0))
    }

    /// The figure in words, to follow what has moved.
    pub fn words(&self) -> String {
        match self.percent_of_bound() {
            Ok(percent) => format!(
                "{percent:.0} % of bound over {} iterations ({:.1} ms each; at least {:.1} by what GPU and link allow)",
                self.iterations,
                millis(self.iterations_micros, self.iterations),
                millis(self.bound_micros, self.iterations),
            ),
            Err(why) => format!("percent of bound unknown: {why}"),
        }
    }

    /// Why it is slow, if it is.
    pub fn reason(&self) -> Option<String> {
        let slow = self.slow?;
        let lost = part(slow.micros.saturating_sub(slow.busy_micros), slow.micros) * 100.0;
        let lost = if slow.busy_micros > 0 { format!("{lost:.0} %") } else { "most".to_owned() };
        let mut words = format!("data that is not in VRAM takes up {lost} of the time: ");
        let (count, per) = if slow.iterations_milli > 0 {
            (slow.iterations_milli, "an iteration")
        } else {
            (slow.micros.max(1) / 1000, "a second")
        };
        let each =
            |number: u64| u64::try_from(u128::from(number) * 1000 / u128::from(count.max(1))).unwrap_or(u64::MAX);
        let (into, out) = (Bytes(each(slow.in_bytes)), Bytes(each(slow.out_bytes)));
        let in_place = each(slow.in_place_bytes);
        words.push_str(&format!("{into} come in and {out} go out {per}"));
        if in_place > 0 {
            words.push_str(&format!(", {} are read in place", Bytes(in_place)));
        }
        if slow.iterations_milli > 0 {
            let [whole, busy, bound] = [slow.micros, slow.busy_micros, slow.bound_micros].map(|m| millis(each(m), 1));
            words.push_str(&format!(" of {whole:.1} ms"));
            if slow.busy_micros > 0 {
                words.push_str(&format!(", in which the GPU's own work is {busy:.1} ms"));
            }
            if slow.bound_micros > 0 {
                words.push_str(&format!("; the link allows {bound:.1} ms"));
            }
        } else {
            words.push_str("; the program was not seen to repeat itself, so nothing can be brought ahead");
        }
        Some(words)
    }

    /// What helps most, if it is slow and something does.
    pub fn remedy(&self, card: Card) -> Option<String> {
        let slow = self.slow?;
        let mut words = Vec::new();
        let wanted = card.budget_bytes.saturating_add(slow.more_vram_bytes);
        if slow.more_vram_bytes > 0 && card.budget_bytes > 0 {
            let gigabytes = tenths_of_gib(wanted);
            let speed = if slow.twice_as_fast { "twice this speed" } else { "half of VRAM speed" };
            if wanted.saturating_add(LEFT_TO_DRIVER) <= card.physical_bytes {
                words.push(format!("--vram {gigabytes}G would allow {speed}"));
            } else {
                words.push(format!("a card with {gigabytes} GiB of VRAM for this program would allow {speed}"));
            }
        }
        if slow.more_vram_bytes > 0 && slow.lasting_percent >= MOSTLY_PERCENT {
            words.push(LARGER_BATCH.to_owned());
        } else if slow.more_vram_bytes > 0 && slow.lasting_percent <= 100 - MOSTLY_PERCENT {
            words.push(SMALLER_BATCH.to_owned());
        }
        if let Some(blamed) = self.blamed() {
            words.push(blamed);
        }
        (!words.is_empty()).then(|| words.join("; "))
    }

    fn blamed(&self) -> Option<String> {
        let all = self.moved_bytes;
        let worst = self.most_moved[0];
        let percent = part(worst.moved_bytes, all) * 100.0;
        if percent < BLAMED_PERCENT || all < self.in_place_bytes {
            return None;
        }
        let maker = worst.maker.name().map(|name| format!(" ({name})")).unwrap_or_default();
        Some(format!("{percent:.0} % of what moved is of one allocation of {}{maker}", Bytes(worst.bytes)))
    }
}

/// In GiB, to the next tenth.
fn tenths_of_gib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10).div_ceil(1 << 30);
    if tenths.is_multiple_of(10) { format!("{}", tenths / 10) } else { format!("{}.{}", tenths / 10, tenths % 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// 4 GB each way in 80 ms, where the GPU's own work is 15 ms; 25 iterations in 2 s.
    fn slow() -> Summary {
        let slow = Slow {
            micros: 2_000_000,
            busy_micros: 375_000,
            iterations_milli: 25_000,
            in_bytes: 100 * GIB,
            out_bytes: 100 * GIB,
            bound_micros: 1_950_000,
            more_vram_bytes: 9 * GIB / 4,
            lasting_percent: 90,
            ..Slow::default()
        };
        Summary { watched_micros: 4_000_000, moved_bytes: 400 * GIB, slow: Some(slow), ..Summary::default() }
    }

    #[test]
    fn the_figure_says_what_was_reached_or_why_it_is_not_known() {
        let known = Summary {
            watched_micros: 4_000_000,
            link_bytes_per_milli: [1; 3],
            works_per_iteration: 10,
            iterations: 40,
            iterations_micros: 4_000_000,
            bound_micros: 3_360_000,
            in_vram_micros: 2_000_000,
            ..Summary::default()
        };
        assert_eq!(
            known.words(),
            "84 % of bound over 40 iterations (100.0 ms each; at least 84.0 by what GPU and link allow)"
        );
        assert_eq!(known.percent_of_vram_speed(), Ok(50.0));
        let cases = [
            (Summary { watched_micros: 0, ..known }, Unknown::NotWatched),
            (Summary { link_bytes_per_milli: [1, 0, 1], ..known }, Unknown::NoLink),
            (Summary { works_per_iteration: 0, ..known }, Unknown::NoLoop),
            (Summary { iterations: 2, ..known }, Unknown::FewIterations),
            (Summary { unsure_micros: 210_000, ..known }, Unknown::InPlace),
        ];
        for (summary, why) in cases {
            assert_eq!(summary.percent_of_bound(), Err(why));
            assert_eq!(summary.words(), format!("percent of bound unknown: {why}"));
        }
    }

    #[test]
    fn the_warning_says_what_crosses_and_how_long_that_takes() {
        assert_eq!(
            slow().reason().unwrap(),
            "data that is not in VRAM takes up 81 % of the time: 4 GiB come in and 4 GiB go out an iteration of 80.0 ms, in \
             which the GPU's own work is 15.0 ms; the link allows 78.0 ms"
        );
        let unknown = Summary { slow: slow().slow.map(|slow| Slow { busy_micros: 0, ..slow }), ..slow() };
        let reason = unknown.reason().unwrap();
        assert!(reason.contains("takes up most of the time: ") && !reason.contains("own work"), "{reason}");
        let without_a_loop = Summary { slow: slow().slow.map(|slow| Slow { iterations_milli: 0, ..slow }), ..slow() };
        let reason = without_a_loop.reason().unwrap();
        assert!(reason.contains("50 GiB come in and 50 GiB go out a second; the program was not seen"), "{reason}");
        assert_eq!(Summary::default().reason(), None);
    }

    #[test]
    fn the_remedy_is_a_budget_that_the_card_has_or_else_another_card() {
        let remedy = |budget, physical| {
            let card = Card { budget_bytes: budget * GIB, physical_bytes: physical * GIB };
            slow().remedy(card).unwrap()
        };
        assert!(remedy(9, 24).starts_with("--vram 11.3G would allow half of VRAM speed; most of it stays from"));
        assert!(
            remedy(11, 12).starts_with("a card with 13.3 GiB of VRAM for this program would allow half of VRAM speed")
        );
    }

    #[test]
    fn an_allocation_of_which_most_moved_is_named() {
        let mut summary = Summary { slow: Some(Slow::default()), ..slow() };
        assert_eq!(summary.remedy(Card::default()), None, "nothing is known that helps");
        summary.most_moved[0] = Moved { offset: 0, bytes: 2 * GIB, moved_bytes: 300 * GIB, maker: Maker::Plain };
        let expected = "75 % of what moved is of one allocation of 2 GiB (cuMemAlloc)";
        assert_eq!(summary.remedy(Card::default()).as_deref(), Some(expected));
    }
}
