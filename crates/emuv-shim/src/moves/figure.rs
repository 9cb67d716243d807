//! The mover's part of the live figure ([`emuv_policy::figure`]): it looks whenever the mover does, and publishes now and then.
//! Nothing of it is on the way of a launch.

use std::time::Duration;

use emuv_policy::{
    Policy, Sight, Tier,
    figure::{Card, Cost, Maker, Summary, Watch},
    hash::FastMap,
    machine::Link,
};
use emuv_state::CostRecord;

use crate::{
    device::Device,
    log,
    session::Session,
    sync::{Instant, atomic::Ordering},
};

/// Between two times that the figure is published.
const PUBLISH: Duration = Duration::from_millis(500);

/// Uses of chunks that are reckoned with between two looks of the mover: some 20 us.
const TOUCHES: usize = 128;

/// See the module's head. One per mover; under a policy that does not bring data ahead there is nothing to watch.
pub(super) struct Figure {
    watch: Option<Watch>,
    since: Instant,
    published: Instant,
    /// How the allocations were made that have been named so far.
    makers: FastMap<u64, Maker>,
}

impl Figure {
    pub fn new(policy: Policy) -> Self {
        let watch = matches!(policy, Policy::Dynamic { .. }).then(Watch::default);
        Self { watch, since: Instant::now(), published: Instant::now(), makers: FastMap::default() }
    }

    /// The link has been measured.
    pub fn set_link(&mut self, link: Link) {
        if let Some(watch) = &mut self.watch {
            watch.set_link(link);
        }
    }

    /// A chunk has been moved with its bytes.
    pub fn moved(&mut self, device: &Device, offset: u64, bytes: u64, to: Tier) {
        if let Some(watch) = &mut self.watch {
            let extent = device.arena.residency_as_it_is().extent_at(offset);
            watch.moved(to, bytes, extent);
        }
    }

    /// The mover has looked, and this is what there was to see.
    #[allow(clippy::cast_precision_loss)] // Far below 2^52 us.
    pub fn look(&mut self, session: &Session, device: &Device, sight: &Sight) {
        let Some(watch) = &mut self.watch else { return };
        let micros = self.since.elapsed().as_micros() as f64;
        let sight = Sight { overhead_micros: device.moves.overhead.micros(), ..*sight };
        if watch.look(micros, &sight) {
            let round = device.arena.residency_as_it_is().last_round();
            watch.reckon(round, device.moves.spares.free_vram_bytes(&device.arena));
        }
        watch.think(TOUCHES);
        if watch.is_to_be_said() {
            let summary = self.publish(session, device);
            if !session.is_quiet() {
                say(session, device, &summary);
            }
        } else if self.published.elapsed() >= PUBLISH {
            self.publish(session, device);
        }
    }

    /// The mover ends.
    pub fn finish(&mut self, session: &Session, device: &Device) {
        if let Some(watch) = &mut self.watch {
            watch.finish();
            self.publish(session, device);
        }
    }

    fn publish(&mut self, session: &Session, device: &Device) -> Summary {
        self.published = Instant::now();
        let mut summary = self.watch.as_ref().map(Watch::summary).unwrap_or_default();
        for moved in summary.most_moved.iter_mut().filter(|moved| moved.moved_bytes > 0) {
            moved.maker = self.maker(device, moved.offset);
        }
        device.timeline.set_costs(|count| {
            let costs = self.watch.as_ref().map(|watch| watch.costs().most(count)).unwrap_or_default();
            let record = |cost: Cost| CostRecord {
                cost,
                maker: self.maker(device, cost.offset),
                site: device.sites.of(cost.offset, cost.bytes),
            };
            costs.into_iter().map(record).collect()
        });
        if let Some(counters) = session.counters(device.ordinal) {
            counters.figure.store(&summary);
        }
        summary
    }

    fn maker(&mut self, device: &Device, offset: u64) -> Maker {
        // What was made anew many times may just not be there.
        let maker = self.makers.entry(offset).or_default();
        if *maker == Maker::Unknown {
            *maker = maker_of(device, device.arena.base() + offset);
        }
        *maker
    }
}

fn maker_of(device: &Device, address: u64) -> Maker {
    if device.pools.find(address).is_some() {
        Maker::Pool
    } else if device.arena.find(address).is_some() {
        Maker::Plain
    } else {
        Maker::Unknown
    }
}

/// Says why the program is slow, and what helps.
fn say(session: &Session, device: &Device, summary: &Summary) {
    let Some(reason) = summary.reason() else { return };
    let card = session.counters(device.ordinal).map_or_else(Card::default, |counters| Card {
        budget_bytes: counters.vram.budget_bytes.load(Ordering::Relaxed),
        physical_bytes: counters.vram_physical_bytes.load(Ordering::Relaxed),
    });
    log::notice(format_args!("slow: {reason}"));
    if let Some(remedy) = summary.remedy(card) {
        log::notice(format_args!("what helps: {remedy} (-q hides this)"));
    }
}
