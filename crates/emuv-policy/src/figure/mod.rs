//! The live figure: how much of what GPU and link allow a program has, while it runs; and a warning where that is little.
//!
//! The bound of an iteration (section "Moving well" of the design) is `max(C, X_in / B_in, X_out / B_out, (X_in + X_out) /
//! B_both)`. None of it is told to emuV by anybody, so:
//!
//! - An *iteration* is as many works as the loop has that is foreseen, counted as they are known to be done. Where no loop is
//!   foreseen, or another one is, nothing is measured.
//! - `C`, the time with everything in VRAM, is the time that an iteration took, less the time in which a work was held and
//!   the GPU had nothing else to do, less what works took longer that read in place. That is known of kinds that were
//!   timed with more and with less in RAM. How long others would have taken in VRAM is not known, nor whether time is won at
//!   all by doing a work sooner while the program is not ahead of the GPU, because its host is slow: then `C` lies between two
//!   numbers, and the lower one counts. Iterations without such works say it for those with them. (A host that is slow and yet
//!   ahead, because the GPU is slower still, is not seen: then `C` is the GPU's alone.) What emuV's part of its calls takes such a host is
//!   not the program's: it is no part of `C` while the program is not ahead.
//! - `X`, what has to cross the link, is counted by Belady's rule for the last round as it was (`least.rs`). What did not
//!   cross did not have to, so it is never more than was moved or read in place.
//! - `B` is measured once; copies that go faster than that raise it.
//!
//! So the bound is never more than the time, whatever is wrong with what is foreseen. Where so much is not known that the figure
//! could be off by more than a twentieth, it is unknown, with the reason ([`Unknown`]).
//!
//! A program is *slow* while for some seconds more than three quarters of the time goes into waiting for data and reading in
//! place. Then what would help is looked for, and said once ([`Summary::reason`], [`Summary::remedy`]).

mod costs;
mod least;
mod summary;

use std::rc::Rc;

use crate::{LastRound, ReadInPlace, Sight, Tier, machine::Link};
pub use costs::{Cost, Costs};
use least::{Crossing, Reckoning, Round};
use summary::FEWEST_ITERATIONS;
pub use summary::{Card, MOST_NAMED, Maker, Moved, Slow, Summary, Unknown};

/// So many iterations, and so many microseconds, are measured at a time: works are told to be done some of them at a time.
const BLOCK_ITERATIONS: u64 = 8;
const BLOCK_US: f64 = 200e3;

/// A program is ahead of the GPU that has given it so many works which are not known to be done.
const AHEAD_WORKS: u64 = 128;

/// A loop is the same one as long as its length differs by less than this part.
const SAME_WORKS: u64 = 16;

/// So many loops of a program are told apart.
const MOST_LOOPS: usize = 8;

/// What has to cross is counted again after ever more iterations, up to this.
const MOST_ITERATIONS: u64 = 64;

/// How long is looked whether a program is slow, in microseconds.
const WINDOW_US: f64 = 2e6;

/// So many times in a row it is slow before anything is said of it; a program that is not seen to repeat itself may still
/// be about to.
const SLOW_WINDOWS: u32 = 2;
const SLOW_WINDOWS_WITHOUT_LOOP: u32 = 5;

/// Slow: less than this part of the time goes into anything else than waiting for data.
const SLOW: f64 = 0.25;

/// The remedy: VRAM with which the link takes so many times as long as the GPU, or, where it is not known what of the time
/// in place the GPU would need, so many times less than now.
const HALF_SPEED: f64 = 2.0;

/// Steps of the search for it.
const SEARCH_STEPS: u32 = 8;

/// What has happened up to a moment, or between two.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    us: f64,
    starved_us: f64,
    /// The program was not ahead of the GPU for other reasons: perhaps its host is what is slow.
    near_us: f64,
    /// What emuV's part of the program's calls took its host meanwhile.
    overhead_us: f64,
    in_bytes: f64,
    out_bytes: f64,
    in_place: ReadInPlace,
}

impl Sum {
    #[allow(clippy::cast_precision_loss)] // Far below 2^52.
    fn in_place_bytes(&self) -> f64 {
        self.in_place.bytes as f64
    }

    fn since(&self, before: &Self) -> Self {
        let (now, then) = (self.in_place, before.in_place);
        Self {
            us: self.us - before.us,
            starved_us: self.starved_us - before.starved_us,
            near_us: self.near_us - before.near_us,
            overhead_us: self.overhead_us - before.overhead_us,
            in_bytes: self.in_bytes - before.in_bytes,
            out_bytes: self.out_bytes - before.out_bytes,
            in_place: ReadInPlace {
                bytes: now.bytes - then.bytes,
                micros: now.micros - then.micros,
                unsure_micros: now.unsure_micros - then.unsure_micros,
                untimed: now.untimed - then.untimed,
            },
        }
    }

    fn is_clean(&self) -> bool {
        self.in_place.untimed == 0 && self.in_place.unsure_micros <= 0.0
    }

    /// How long it would have taken with everything in VRAM: at least, at most.
    fn in_vram_us(&self) -> (f64, f64) {
        let overhead_us = self.overhead_us.min(self.near_us);
        let (computed_us, near_us) = (self.us - self.starved_us - overhead_us, self.near_us - overhead_us);
        let most = computed_us - (self.in_place.micros - near_us).max(0.0);
        let least = computed_us - self.in_place.micros - self.in_place.unsure_micros;
        let least = if self.in_place.untimed > 0 { 0.0 } else { least.max(0.0) };
        (least, most.max(least))
    }
}

/// A loop that is followed.
#[derive(Debug)]
struct Followed {
    turns: u64,
    works: u64,
    /// The end of the iteration under way, in works that are done, and whether it has begun.
    until: u64,
    begun: bool,
    /// When it began.
    start: Sum,
    /// Iterations of the block under way, and when that began.
    iterations: u64,
    block: Sum,
    /// Iterations, from the beginning.
    seen: u64,
    /// Of those that were not unsure: how many, and how long they would have taken in VRAM at least.
    clean: (u64, f64),
    ask_at: u64,
    round: Option<(Rc<Round>, Crossing)>,
}

/// What is being reckoned.
#[derive(Debug)]
struct Task {
    reckoning: Reckoning,
    search: Option<Search>,
}

/// The search for the VRAM that would do.
#[derive(Debug, Clone, Copy)]
struct Search {
    /// With so much it does not, with so much it does.
    bytes: (u64, u64),
    /// How long the link may take for an iteration.
    link_us: f64,
    steps: u32,
}

/// What is known of a program that is slow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Warning {
    #[default]
    None,
    /// It is slow; what helps is being looked for.
    Asked,
    /// It is to be said.
    Due,
    Said,
}

/// See the module's head. One per device. It is told what there is to see, as often as somebody looks.
#[derive(Debug, Default)]
pub struct Watch {
    link: Option<Link>,
    now: Sum,
    /// Whether the GPU was starved, and the program ahead of it, when it was last looked at.
    was: (bool, bool),
    /// What emuV's part of the program's calls had taken by then.
    overhead_us: f64,
    first_us: Option<f64>,
    followed: Option<Followed>,
    task: Option<Task>,
    /// What is slow is looked at in windows: when this one began, in works as well.
    window: Option<(Sum, u64)>,
    slow_windows: u32,
    warning: Warning,
    costs: Costs,
    /// What was measured of each loop: some of a program's are its setup's, or come between.
    measured: Vec<Summary>,
    /// What is not about one of them.
    summary: Summary,
}

impl Watch {
    /// The link's speeds have been measured.
    pub fn set_link(&mut self, link: Link) {
        self.link = Some(link);
    }

    /// A chunk has been moved, with its bytes; `extent`: where the allocation begins that it is part of, and its size.
    #[allow(clippy::cast_precision_loss)] // Far below 2^52.
    pub fn moved(&mut self, to: Tier, bytes: u64, extent: Option<(u64, u64)>) {
        match to {
            Tier::Vram => self.now.in_bytes += bytes as f64,
            Tier::Ram => self.now.out_bytes += bytes as f64,
        }
        self.summary.moved_bytes += bytes;
        if let Some(extent) = extent {
            self.costs.add(extent, bytes, to);
        }
    }

    /// What was moved of which allocation.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// What there is to see at this time, in microseconds from any moment on. True: [`Self::reckon`] wants a round.
    pub fn look(&mut self, micros: f64, sight: &Sight) -> bool {
        let first = *self.first_us.get_or_insert(micros);
        let before = self.now.us;
        self.now.us = micros - first;
        let passed = self.now.us - before;
        let overhead_us = sight.overhead_micros - std::mem::replace(&mut self.overhead_us, sight.overhead_micros);
        match self.was {
            (true, _) => self.now.starved_us += passed,
            (false, false) => {
                self.now.near_us += passed;
                self.now.overhead_us += overhead_us;
            }
            (false, true) => {}
        }
        self.was = (sight.starved, sight.begun.saturating_sub(sight.done) >= AHEAD_WORKS);
        self.now.in_place = sight.in_place;
        self.follow(sight);
        self.watch_speed(sight.done);
        self.task.is_none() && self.link.is_some() && self.followed.as_ref().is_some_and(|f| f.seen >= f.ask_at)
    }

    fn follow(&mut self, sight: &Sight) {
        let Some(looped) = sight.looped.filter(|looped| looped.works > 0) else {
            self.lose();
            return;
        };
        let same = |followed: &Followed| followed.turns == looped.turns && is_same_loop(followed.works, looped.works);
        if !self.followed.as_ref().is_some_and(same) {
            self.lose();
            self.followed = Some(Followed {
                turns: looped.turns,
                works: looped.works,
                // What is not done yet of what had begun when the loop was found is not taken for part of it.
                until: sight.begun,
                begun: false,
                start: self.now,
                iterations: 0,
                block: self.now,
                seen: 0,
                clean: (0, 0.0),
                ask_at: 0,
                round: None,
            });
        }
        self.summary.works_per_iteration = looped.works;
        let Some(followed) = &mut self.followed else { return };
        if sight.done < followed.until {
            return;
        }
        if followed.begun {
            let iterations = 1 + (sight.done - followed.until) / followed.works;
            followed.iterations += iterations;
            followed.seen += iterations;
            let these = self.now.since(&followed.start);
            if these.is_clean() {
                followed.clean.0 += iterations;
                followed.clean.1 += these.in_vram_us().0;
            }
            followed.until += iterations * followed.works;
        } else {
            followed.begun = true;
            followed.block = self.now;
            followed.until = sight.done + looped.works;
        }
        followed.works = looped.works;
        followed.start = self.now;
        let block = self.now.since(&followed.block);
        if followed.round.is_some() && followed.iterations >= BLOCK_ITERATIONS && block.us >= BLOCK_US {
            self.close_block();
        }
    }

    /// The loop is over.
    fn lose(&mut self) {
        self.close_block();
        self.followed = None;
        self.task = None;
        if self.warning == Warning::Asked {
            self.warning = Warning::Due;
        }
    }

    /// Counts the iterations that have been measured.
    #[allow(clippy::cast_precision_loss)] // Estimates.
    fn close_block(&mut self) {
        let Some(followed) = &mut self.followed else { return };
        let count = std::mem::take(&mut followed.iterations);
        let block = followed.start.since(&followed.block);
        followed.block = followed.start;
        let (Some((_, crossing)), Some(link)) = (&followed.round, &mut self.link) else { return };
        if count == 0 || block.us <= 0.0 || followed.seen < FEWEST_ITERATIONS {
            return;
        }
        raise(link, &block);
        let needed = |bytes: u64, had: f64| (bytes as f64 * count as f64).min(had);
        let in_bytes = needed(crossing.in_bytes, block.in_bytes + block.in_place_bytes());
        let out_bytes = needed(crossing.out_bytes, block.out_bytes);
        let link_us = link.micros(in_bytes, out_bytes);
        let (mut least, mut most) = block.in_vram_us();
        let (clean, clean_us) = followed.clean;
        if !block.is_clean() && clean >= FEWEST_ITERATIONS {
            least = least.max((clean_us / clean as f64 * count as f64).min(most));
            most = least;
        }
        let bound_us = least.max(link_us);
        // What was done can be done: if the link alone would have taken longer, works read less than all of what they name.
        let unsure_us = (most.max(link_us) - bound_us) + (bound_us - block.us).max(0.0);
        let works = followed.works;
        let summary = self.of_loop(works);
        summary.works_per_iteration = works;
        summary.iterations += count;
        add(&mut summary.iterations_micros, block.us);
        add(&mut summary.in_vram_micros, least);
        add(&mut summary.bound_micros, bound_us.min(block.us));
        add(&mut summary.unsure_micros, unsure_us);
        add(&mut summary.in_bytes, block.in_bytes);
        add(&mut summary.out_bytes, block.out_bytes);
        summary.iterations_in_place_bytes += block.in_place.bytes;
        add(&mut summary.bound_in_bytes, in_bytes);
        add(&mut summary.bound_out_bytes, out_bytes);
    }

    /// What has been measured of the loop with so many works, to be added to. Of many loops the shortest is forgotten.
    fn of_loop(&mut self, works: u64) -> &mut Summary {
        let same = |loops: &Summary| is_same_loop(loops.works_per_iteration, works);
        let at = self.measured.iter().position(same).unwrap_or_else(|| {
            if self.measured.len() == MOST_LOOPS {
                let shortest = (0..MOST_LOOPS).min_by_key(|&at| self.measured[at].iterations_micros);
                self.measured.swap_remove(shortest.unwrap_or(0));
            }
            self.measured.push(Summary::default());
            self.measured.len() - 1
        });
        &mut self.measured[at]
    }

    /// The last round of the loop, as [`Self::look`] wanted it, and what is free of VRAM. `None`: there is no loop any more.
    pub fn reckon(&mut self, last: Option<LastRound>, free_vram_bytes: u64) {
        let Some(followed) = &mut self.followed else { return };
        followed.ask_at = followed.seen + followed.seen.clamp(1, MOST_ITERATIONS);
        let Some(last) = last else { return };
        let round = Rc::new(Round::new(last, free_vram_bytes));
        let vram_bytes = round.vram_bytes;
        self.task = Some(Task { reckoning: Reckoning::new(round, vram_bytes), search: None });
    }

    /// Goes on with what is being reckoned, for about so many uses of chunks. Says whether there is more to do.
    pub fn think(&mut self, touches: usize) -> bool {
        let (Some(task), Some(link)) = (&mut self.task, &self.link) else { return false };
        let Some(crossing) = task.reckoning.step(touches, link) else { return true };
        let (round, vram_bytes) = (task.reckoning.round.clone(), task.reckoning.vram_bytes);
        let search = task.search.take();
        self.task = None;
        match search {
            Some(search) => self.searched(search, round, vram_bytes, crossing),
            None => {
                if let Some(followed) = &mut self.followed {
                    followed.round = Some((round, crossing));
                }
                if self.warning == Warning::Asked {
                    self.look_for_remedy();
                }
            }
        }
        self.task.is_some()
    }

    // --- the warning ----------------------------------------------------------------------------------------

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Estimates.
    fn watch_speed(&mut self, done: u64) {
        if self.warning != Warning::None {
            return;
        }
        let (start, works) = *self.window.get_or_insert((self.now, done));
        let window = self.now.since(&start);
        if window.us < WINDOW_US {
            return;
        }
        self.window = Some((self.now, done));
        // Works count with what they read in place when they begin, so this may come out as less than nothing.
        let busy_us = (window.us - window.starved_us - window.in_place.micros).max(0.0);
        // A loop that has just been found is not yet run as it will be.
        let (is_learning, windows) = match &self.followed {
            Some(followed) => (followed.seen < FEWEST_ITERATIONS, SLOW_WINDOWS),
            None => (false, SLOW_WINDOWS_WITHOUT_LOOP),
        };
        self.slow_windows = if busy_us < window.us * SLOW && !is_learning { self.slow_windows + 1 } else { 0 };
        if self.slow_windows < windows {
            return;
        }
        let iterations = self.followed.as_ref().map_or(0.0, |f| done.saturating_sub(works) as f64 / f.works as f64);
        self.summary.slow = Some(Slow {
            micros: window.us as u64,
            busy_micros: busy_us as u64,
            in_place_micros: window.in_place.micros as u64,
            iterations_milli: (iterations * 1e3) as u64,
            in_bytes: window.in_bytes as u64,
            out_bytes: window.out_bytes as u64,
            in_place_bytes: window.in_place.bytes,
            ..Slow::default()
        });
        self.warning = if iterations > 0.0 && self.link.is_some() { Warning::Asked } else { Warning::Due };
        if self.warning == Warning::Asked && self.task.is_none() {
            self.look_for_remedy();
        }
    }

    /// Looks for the VRAM that would do.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Estimates.
    fn look_for_remedy(&mut self) {
        let known = self.followed.as_ref().and_then(|followed| followed.round.clone());
        let (Some((round, crossing)), Some(link), Some(slow)) = (known, &self.link, &mut self.summary.slow) else {
            return;
        };
        let iterations = slow.iterations_milli as f64 / 1e3;
        let busy_us = slow.busy_micros as f64 / iterations;
        let link_us = link.micros(crossing.in_bytes as f64, crossing.out_bytes as f64);
        slow.bound_micros = (busy_us.max(link_us) * iterations) as u64;
        slow.lasting_percent = crossing.lasting_bytes * 100 / crossing.in_bytes.max(1);
        if link_us <= busy_us * HALF_SPEED {
            // It is not the link.
            self.warning = Warning::Due;
            return;
        }
        slow.twice_as_fast = slow.busy_micros == 0 || slow.in_place_micros > slow.busy_micros;
        let link_us = if slow.twice_as_fast { link_us / HALF_SPEED } else { busy_us * HALF_SPEED };
        let bytes = (round.vram_bytes, round.vram_bytes.max(round.touched_bytes));
        self.search(Search { bytes, link_us, steps: 0 }, round);
    }

    fn search(&mut self, search: Search, round: Rc<Round>) {
        let middle = search.bytes.0.midpoint(search.bytes.1);
        self.task = Some(Task { reckoning: Reckoning::new(round, middle), search: Some(search) });
    }

    #[allow(clippy::cast_precision_loss)] // Estimates.
    fn searched(&mut self, mut search: Search, round: Rc<Round>, vram_bytes: u64, crossing: Crossing) {
        let link_us = self.link.map_or(0.0, |link| link.micros(crossing.in_bytes as f64, crossing.out_bytes as f64));
        if link_us <= search.link_us {
            search.bytes.1 = vram_bytes;
        } else {
            search.bytes.0 = vram_bytes;
        }
        search.steps += 1;
        if search.steps < SEARCH_STEPS {
            self.search(search, round);
            return;
        }
        if let Some(slow) = &mut self.summary.slow {
            slow.more_vram_bytes = search.bytes.1 - round.vram_bytes;
        }
        self.warning = Warning::Due;
    }

    /// Whether the program is slow and that has not been said yet.
    pub fn is_to_be_said(&mut self) -> bool {
        let due = self.warning == Warning::Due;
        if due {
            self.warning = Warning::Said;
        }
        due
    }

    // --- the figure -----------------------------------------------------------------------------------------

    /// Nothing comes any more: what has been measured counts.
    pub fn finish(&mut self) {
        self.lose();
    }

    /// The figure so far.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Estimates.
    pub fn summary(&self) -> Summary {
        let milli = |rate: f64| (rate * 1e3) as u64;
        let link =
            self.link.map(|link| [link.in_bytes_per_us, link.out_bytes_per_us, link.both_bytes_per_us].map(milli));
        let mut most_moved = [Moved::default(); MOST_NAMED];
        for (moved, cost) in most_moved.iter_mut().zip(self.costs.most(MOST_NAMED)) {
            let moved_bytes = cost.moved_bytes();
            *moved = Moved { offset: cost.offset, bytes: cost.bytes, moved_bytes, maker: Maker::Unknown };
        }
        Summary {
            watched_micros: self.now.us as u64,
            starved_micros: self.now.starved_us as u64,
            in_place_micros: (self.now.in_place.micros + self.now.in_place.unsure_micros) as u64,
            in_place_bytes: self.now.in_place.bytes,
            link_bytes_per_milli: link.unwrap_or_default(),
            most_moved,
            moved_bytes: self.summary.moved_bytes,
            slow: self.summary.slow,
            ..*self.measured.iter().max_by_key(|of| of.iterations_micros).unwrap_or(&self.summary)
        }
    }
}

/// Whether so many works, and so many then, are a round of one loop.
fn is_same_loop(works: u64, then: u64) -> bool {
    works.abs_diff(then) <= works / SAME_WORKS
}

/// A link that has carried so much in that time can.
fn raise(link: &mut Link, block: &Sum) {
    let (into, out) = (block.in_bytes / block.us, block.out_bytes / block.us);
    link.in_bytes_per_us = link.in_bytes_per_us.max(into);
    link.out_bytes_per_us = link.out_bytes_per_us.max(out);
    link.both_bytes_per_us = link.both_bytes_per_us.max(into + out);
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Of a positive number.
fn add(sum: &mut u64, number: f64) {
    *sum += number.round() as u64;
}
