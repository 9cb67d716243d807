//! Whose turn it is on a GPU that several slices share.
//!
//! A *tenant* is a slice with processes in it. There is nobody above them: each tenant publishes how it stands ([`Tenant`]),
//! looks at what the others have published, and takes the [`step`] that the same pure function gives to all. What is
//! published may be a moment old, so two may take a turn at once; the one that began later sees that and ends its own. No
//! memory is ever at stake (the accounts see to that), only time.
//!
//! *When nobody needs turns* ([`need`]): those that want the GPU have sets that fit in its VRAM together, none has a cap, and
//! what the driver does by itself (a slice of time for each process in turn) is what their weights say. Then all run.
//!
//! *A turn* is the right to give the GPU work. It ends with its quantum, or when its holder has nothing for the GPU any more,
//! and is over when what was given is done; then the next one takes its own.
//!
//! *Who is next*: the tenant with the least *virtual time*, which is the time that its turns lasted, divided by its weight. Who
//! comes (back) starts where the others are: idle time is not saved up. Under a cap, a tenant also pays for its time: each
//! millisecond costs `100 / cap` of wall time, during which it may not have a turn, after [`BURST_MICROS`] in advance.
//!
//! *Memory*: while turns are taken for memory only, whatever fits beside the one whose turn it is runs with it, and they share
//! the charge. [`allot`] says how much VRAM each may have: those whose turn it is all that they need, then the next, whose
//! set so comes ahead of its turn where there is room, then the others.
//!
//! *Quantum*: [`TIME_QUANTUM_MICROS`] where only time is shared. Where memory is exchanged, long enough that bringing the
//! tenant's set over the link takes a twentieth of it, from one second to twenty: it is brought while the other's goes, so
//! turns cost about that much, and who waits for one waits so long.
//!
//! *Who does not keep to it*: nothing stops a kernel. A tenant whose work goes on after its quantum is waited for as long as a
//! quantum again (0.1 to 1 s), then the next one has its turn although that still runs (the driver shares the GPU between
//! them). Its owner is charged until it is done, and pays back by waiting, up to [`MOST_DEBT_MICROS`] of the others' time. A
//! tenant that shows no sign of life ([`STALE_MICROS`]) is not waited for at all; one whose processes are gone is not there.
//!
//! All times are in microseconds of one clock.

mod account;

pub use account::TimeAccount;

/// A turn where only time is shared.
pub const TIME_QUANTUM_MICROS: u64 = 100_000;
/// The shortest and the longest turn where memory is exchanged.
pub const MEMORY_QUANTUM_MICROS: (u64, u64) = (1_000_000, 20_000_000);
/// Who has not been seen for so long is stopped, or as good as that.
pub const STALE_MICROS: u64 = 300_000;
/// Time that a capped tenant may have in advance.
pub const BURST_MICROS: u64 = 100_000;
/// The most of the others' time that somebody who had too much has to wait.
pub const MOST_DEBT_MICROS: u64 = 10_000_000;

/// A quantum is so many times as long as bringing the set takes.
const QUANTUM_PER_SWAP: u64 = 20;
/// How long the end of work is waited for after a turn, at least and at most.
const GRACE_MICROS: (u64, u64) = (100_000, 1_000_000);

/// The right to give the GPU work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Since when.
    pub began_micros: u64,
    /// Until when.
    pub until_micros: u64,
}

/// How a tenant stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Names it, and decides between equals.
    pub id: u64,
    /// Its weight, from 1.
    pub weight: u32,
    /// The most of the GPU's time that it may have, in percent.
    pub cap_percent: Option<u32>,
    /// Its processes that want the GPU: the driver gives time to each.
    pub processes: u32,
    /// When one of its processes last looked around.
    pub beat_micros: u64,
    /// It has work for the GPU, or had some a moment ago.
    pub wants: bool,
    /// Work that it has given is not done.
    pub busy: bool,
    /// What it has had.
    pub account: TimeAccount,
    /// Its turn.
    pub turn: Option<Turn>,
    /// What it holds in both tiers, as far as it may be in VRAM.
    pub set_bytes: u64,
    /// What of that is in VRAM.
    pub resident_bytes: u64,
}

/// The GPU, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// What tenants can have of its VRAM together.
    pub vram_bytes: u64,
    /// What the link brings to VRAM in a microsecond.
    pub link_bytes_per_micro: u64,
}

/// Why turns are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// The sets do not fit together.
    pub memory: bool,
    /// The driver would not divide the time as it is to be.
    pub time: bool,
}

impl Need {
    /// Whether any are.
    pub fn any(self) -> bool {
        self.memory || self.time
    }
}

/// What a tenant may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Give the GPU work: turns are not needed.
    Free,
    /// Give the GPU work: it has its turn.
    Turn,
    /// Give it nothing.
    Shut,
}

impl Tenant {
    fn is_alive(&self, now: u64) -> bool {
        now.saturating_sub(self.beat_micros) <= STALE_MICROS
    }

    fn competes(&self, now: u64) -> bool {
        self.is_alive(now) && (self.wants || self.busy)
    }

    /// Whether others wait for it to end.
    pub fn is_running(&self, now: u64) -> bool {
        self.competes(now)
            && self.turn.is_some_and(|turn| {
                let length = turn.until_micros.saturating_sub(turn.began_micros);
                let grace = length.clamp(GRACE_MICROS.0, GRACE_MICROS.1);
                let end = turn.until_micros.saturating_add(if self.busy { grace } else { 0 });
                // No turn ends later than that, whatever somebody has published.
                now < end && turn.until_micros <= now.saturating_add(MEMORY_QUANTUM_MICROS.1)
            })
    }

    /// Whether it may take a turn.
    fn is_candidate(&self, now: u64) -> bool {
        self.is_alive(now) && self.wants && self.account.is_paid(now)
    }
}

/// Whether turns are needed, and why.
pub fn need(tenants: &[Tenant], card: &Card, now: u64) -> Need {
    let competing: Vec<&Tenant> = tenants.iter().filter(|tenant| tenant.competes(now)).collect();
    let sets: u64 = competing.iter().map(|tenant| tenant.set_bytes).sum();
    // The driver gives every process the same.
    let share = |one: &Tenant, other: &Tenant| u64::from(one.weight) * u64::from(other.processes.max(1));
    let even = competing.windows(2).all(|pair| share(pair[0], pair[1]) == share(pair[1], pair[0]));
    Need {
        memory: competing.len() > 1 && sets > card.vram_bytes,
        time: !even || competing.iter().any(|tenant| tenant.cap_percent.is_some()),
    }
}

/// What tenant `me` does now; its account and its turn are what it then publishes.
///
/// To be called again and again, at least every few milliseconds while the gate is not [`Gate::Free`].
pub fn step(me: usize, tenants: &mut [Tenant], card: &Card, now: u64) -> Gate {
    let mut need = need(tenants, card, now);
    // Who has a cap asks before it gives the GPU anything.
    need.time |= tenants[me].cap_percent.is_some();
    charge(me, tenants, need, now);
    let gate = if need.any() {
        let turn = decide(me, tenants, need, card, now);
        tenants[me].turn = turn.or(tenants[me].turn.filter(|_| tenants[me].busy));
        if turn.is_some() { Gate::Turn } else { Gate::Shut }
    } else {
        tenants[me].turn = None;
        Gate::Free
    };
    let own = &mut tenants[me];
    own.account.settled_micros = now;
    // Without turns nothing is charged: where all stand is found anew when they are needed.
    own.account.joined = need.any() && (own.wants || own.busy);
    gate
}

/// Charges tenant `me` for the time since it was charged last.
fn charge(me: usize, tenants: &mut [Tenant], need: Need, now: u64) {
    let running = tenants.iter().filter(|tenant| tenant.is_running(now)).count();
    let others = |tenants: &[Tenant]| {
        let others = tenants.iter().enumerate().filter(|(index, other)| *index != me && other.competes(now));
        others.map(|(_, other)| other.account.virtual_time).min()
    };
    let least = others(tenants);
    let own = &mut tenants[me];
    let had = own.busy || own.turn.is_some() && own.wants || !need.any() && own.wants;
    let micros = if had { now.saturating_sub(own.account.settled_micros).min(STALE_MICROS.max(1)) } else { 0 };
    if !need.any() {
        own.account.used_micros += micros;
        return;
    }
    if !own.account.joined
        && let Some(least) = least
    {
        own.account.join(least);
    }
    let together = if need.time || !own.is_running(now) { 1 } else { running.max(1) };
    own.account.charge(micros / together as u64, now, own.weight, own.cap_percent);
    if let Some(least) = least {
        own.account.forgive(least);
    }
}

/// The turn that tenant `me` has from now on; `None`: it may not give the GPU anything.
fn decide(me: usize, tenants: &[Tenant], need: Need, card: &Card, now: u64) -> Option<Turn> {
    let own = &tenants[me];
    let running = |index: usize| tenants[index].is_running(now);
    let fits = |bytes: u64| !need.time && bytes <= card.vram_bytes;
    let set_of_running: u64 = tenants.iter().filter(|tenant| tenant.is_running(now)).map(|t| t.set_bytes).sum();
    // Who may have a turn and has none, in the order in which they get it. Who holds one and is still first keeps it.
    let mut waiting: Vec<usize> =
        (0..tenants.len()).filter(|i| tenants[*i].is_candidate(now) && (*i == me || !running(*i))).collect();
    waiting.sort_by_key(|index| (tenants[*index].account.virtual_time, tenants[*index].id));
    if let Some(turn) = own.turn.filter(|turn| now < turn.until_micros && own.is_running(now)) {
        let earlier = tenants.iter().enumerate().any(|(index, other)| {
            let before = |other: Turn| (other.began_micros, tenants[index].id) < (turn.began_micros, own.id);
            index != me && running(index) && other.turn.is_some_and(before)
        });
        // Two that took theirs at once.
        return Some(turn).filter(|_| (!earlier || fits(set_of_running)) && (own.busy || own.account.is_paid(now)));
    }
    if !waiting.contains(&me) {
        return None;
    }
    let others_end = (0..tenants.len()).filter(|i| *i != me && running(*i)).filter_map(|i| tenants[i].turn);
    let Some(until) = others_end.map(|turn| turn.until_micros).min() else {
        let until_micros = now + quantum(own, need, card);
        return (waiting.first() == Some(&me)).then_some(Turn { began_micros: now, until_micros });
    };
    // Beside the others, until the first of them ends; those that come first choose first.
    let mut sum = set_of_running - if running(me) { own.set_bytes } else { 0 };
    for index in waiting {
        let with = sum + tenants[index].set_bytes;
        if fits(with) {
            sum = with;
            if index == me {
                return (now < until).then_some(Turn { began_micros: now, until_micros: until });
            }
        }
    }
    None
}

/// How long a turn of a tenant is that begins now.
fn quantum(tenant: &Tenant, need: Need, card: &Card) -> u64 {
    if !need.memory {
        return TIME_QUANTUM_MICROS;
    }
    // What it lacks now it has sent away for the others, and will again.
    let swap = tenant.set_bytes.saturating_sub(tenant.resident_bytes) / card.link_bytes_per_micro.max(1);
    (swap * QUANTUM_PER_SWAP).clamp(MEMORY_QUANTUM_MICROS.0, MEMORY_QUANTUM_MICROS.1)
}

/// The VRAM that each tenant may have now, in bytes; [`u64::MAX`] where there is enough for all.
pub fn allot(tenants: &[Tenant], card: &Card, now: u64) -> Vec<u64> {
    let all: u64 = tenants.iter().map(|tenant| tenant.set_bytes).sum();
    if all <= card.vram_bytes {
        return vec![u64::MAX; tenants.len()];
    }
    // Who is stopped cannot give anything up.
    let stuck = |tenant: &Tenant| !tenant.is_alive(now);
    let kept: u64 = tenants.iter().filter(|tenant| stuck(tenant)).map(|tenant| tenant.resident_bytes).sum();
    let mut left = card.vram_bytes.saturating_sub(kept);
    let mut order: Vec<usize> = (0..tenants.len()).collect();
    order.sort_by_key(|index| {
        let tenant = &tenants[*index];
        let rank = match () {
            () if tenant.is_running(now) => 0,
            () if tenant.wants => 1,
            () => 2,
        };
        (rank, tenant.account.virtual_time, tenant.id)
    });
    let mut allotted = vec![0; tenants.len()];
    for index in order {
        let tenant = &tenants[index];
        allotted[index] = if stuck(tenant) { tenant.resident_bytes } else { tenant.set_bytes.min(left) };
        left -= if stuck(tenant) { 0 } else { allotted[index] };
    }
    allotted
}
