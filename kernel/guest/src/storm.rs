//! Processes and threads that charge and release at once, on accounts of their own and on one that all share, while limits change:
//! the books are exact to the byte.

use std::{os::unix::fs::FileExt, thread};

use emuv_kernel_client::{Amount, Ledger as _, Node, Refused};

use crate::{
    Test,
    hostile::Random,
    ledger::both,
    machine::{GIB, MIB, Module, PAGE_BYTES, assert_unused, open, set, times},
    sys::{self, Child, End, Line},
};

pub const TESTS: &[Test] = &[("a storm of calls from processes and threads, exact to the byte", storm)];

const PROCESSES: usize = 4;
const THREADS: u64 = 4;

/// What a thread, or several, hold of the account that all share, and of the one of their process.
#[derive(Clone, Copy)]
struct Held {
    shared: Amount,
    own: Amount,
}

impl Held {
    const NOTHING: Self =
        Self { shared: Amount { vram_bytes: 0, ram_bytes: 0 }, own: Amount { vram_bytes: 0, ram_bytes: 0 } };

    fn and(self, other: Self) -> Self {
        Self { shared: sum(self.shared, other.shared), own: sum(self.own, other.own) }
    }
}

fn sum(one: Amount, other: Amount) -> Amount {
    both(one.vram_bytes + other.vram_bytes, one.ram_bytes + other.ram_bytes)
}

/// One thread's calls. It gives back no more than it got, so nothing of that may be refused.
fn charge_and_release(shared: &Node, own: &Node, mut random: Random, rounds: u32) -> (Held, [u32; 2]) {
    let (mut held, mut answers) = (Held::NOTHING, [0; 2]);
    for _ in 0..rounds {
        let (node, mine) = if random.below(2) == 0 { (shared, &mut held.shared) } else { (own, &mut held.own) };
        match random.below(5) {
            0 | 1 => {
                let amount = both(random.below(400 * MIB), random.below(60 * MIB));
                match node.charge(amount) {
                    Ok(_) => {
                        *mine = sum(*mine, amount);
                        answers[0] += 1;
                    }
                    Err(Refused::NoRoom(_)) => answers[1] += 1,
                    Err(refused) => panic!("{refused:?}"),
                }
            }
            2 | 3 => {
                let part = both(random.below(mine.vram_bytes + 1), random.below(mine.ram_bytes + 1));
                node.release(part).expect("it is held");
                *mine = both(mine.vram_bytes - part.vram_bytes, mine.ram_bytes - part.ram_bytes);
            }
            // Pages count as well. A full share refuses them.
            _ => {
                let _ = own.ram().write_at(b"x", random.below(256) * PAGE_BYTES);
                let query = own.query().expect("it answers");
                assert!(query.vram_used_bytes <= 6 * GIB && query.ram_used_bytes <= GIB, "{query:?}");
            }
        }
    }
    (held, answers)
}

fn tenant(shared: &Node, seed: u64, report: &Line, go_on: &Line) {
    let own = open(0);
    let rounds = times(2000);
    let mut all = Held::NOTHING;
    let mut answers = [0; 2];
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let own = &own;
                scope.spawn(move || charge_and_release(shared, own, Random(seed ^ number), rounds))
            })
            .collect();
        for thread in threads {
            let (held, [granted, refused]) = thread.join().expect("its calls were answered as they must be");
            all = all.and(held);
            answers = [answers[0] + granted, answers[1] + refused];
        }
    });
    let query = own.query().expect("it answers");
    assert_eq!(both(query.own_vram_bytes, query.own_ram_bytes), all.own, "nobody else uses this account");
    for amount in [all.shared, all.own] {
        report.tell([amount.vram_bytes, amount.ram_bytes]);
    }
    report.tell(answers.map(u64::from));
    go_on.hear();
    shared.release(all.shared).expect("it is held");
    report.say();
    sys::forever();
}

fn storm() {
    let _module = Module::with(6, 1);
    // Forked, so one account for all processes.
    let shared = open(0);
    let mut random = Random::new("storm");
    let tenants: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let (seed, report, go_on) = (random.next(), Line::new(), Line::new());
            (Child::run(|| tenant(&shared, seed, &report, &go_on)), report, go_on)
        })
        .collect();
    for _ in 0..times(2000) {
        set(0, "physical_bytes", 3 * GIB + random.below(3 * GIB)).expect("root may");
    }
    set(0, "physical_bytes", 6 * GIB).expect("root may");
    let hear = |report: &Line| {
        let [vram_bytes, ram_bytes] = report.hear_numbers();
        both(vram_bytes, ram_bytes)
    };
    let mut all = Held::NOTHING;
    let mut each = Vec::new();
    let mut answers = [0; 2];
    for (_, report, _) in &tenants {
        let held = Held { shared: hear(report), own: hear(report) };
        let [granted, refused] = report.hear_numbers();
        answers = [answers[0] + granted, answers[1] + refused];
        all = all.and(held);
        each.push(held.own);
    }
    println!("  {} charges granted, {} refused", answers[0], answers[1]);
    assert!(answers.iter().all(|number| *number > 0));
    let check = |shares: Amount, own: Amount, holders: u32| {
        let query = shared.query().expect("it answers");
        assert_eq!(both(query.own_vram_bytes, query.own_ram_bytes), own);
        let used = both(query.vram_used_bytes, query.ram_used_bytes - query.resident_bytes);
        assert_eq!((used, query.holders), (shares, holders));
        assert!(query.vram_peak_bytes <= 6 * GIB && query.ram_peak_bytes <= GIB);
    };
    check(sum(all.shared, all.own), all.shared, 5);
    for (_, report, go_on) in &tenants {
        go_on.say();
        report.hear();
    }
    check(all.own, both(0, 0), 5);
    let mut left = all.own;
    for (number, (child, ..)) in tenants.into_iter().enumerate() {
        child.kill();
        assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
        left = both(left.vram_bytes - each[number].vram_bytes, left.ram_bytes - each[number].ram_bytes);
        check(left, both(0, 0), 4 - u32::try_from(number).expect("it is below 4"));
    }
    drop(shared);
    assert_unused(0);
}
