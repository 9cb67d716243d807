//! The movement policy in virtual time: loops of works over chunks, a link, a GPU that works its queue off, a program
//! that runs ahead. What a loop costs is compared with what physics allows.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::collections::VecDeque;

use emuv_policy::{Begin, Begun, GRANULE, HoldId, MoveRoom, Policy, Residency, Step, StreamId, Tier, Work};

const MIB: u64 = 1 << 20;
const STREAM: StreamId = StreamId(1);

/// A work of the loop: the chunks that it touches and how long it takes with all of them in VRAM, in microseconds.
#[derive(Clone)]
struct Kernel {
    chunks: Vec<usize>,
    micros: f64,
    kind: u64,
}

struct Machine {
    vram_bytes: u64,
    link_bytes_per_us: f64,
    /// How much slower than the link a kernel reads from RAM in place.
    in_place: f64,
    remap_us: f64,
    issue_us: f64,
}

struct Move {
    chunk: usize,
    to: Tier,
    copied_at: f64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    micros: f64,
    promoted_bytes: u64,
}

/// Runs `rounds` rounds; gives the cost of the last one.
#[allow(clippy::too_many_lines)]
fn run(machine: &Machine, sizes: &[u64], kernels: &[Kernel], rounds: usize) -> Cost {
    let mut residency = Residency::new(Policy::Dynamic { safe: false });
    residency.set_link(machine.link_bytes_per_us);
    let mut offsets = Vec::new();
    let mut tiers = Vec::new();
    let (mut at, mut used) = (0, 0);
    for &bytes in sizes {
        let tier = if used + bytes <= machine.vram_bytes { Tier::Vram } else { Tier::Ram };
        used += if tier == Tier::Vram { bytes } else { 0 };
        residency.add_chunk(at, bytes, tier, false);
        residency.add_extent(at, bytes);
        offsets.push(at);
        tiers.push(tier);
        at += bytes.next_multiple_of(GRANULE);
    }
    residency.quiesced();
    let mut free = machine.vram_bytes - used;
    let mut now = 0.0_f64;
    let mut cpu_free_at = 0.0_f64;
    let mut next = 0;
    let mut hold: Option<HoldId> = None;
    let mut held_since = None;
    // Begun works: when each will be done, and what to measure.
    let mut queue: VecDeque<(f64, Begun, usize)> = VecDeque::new();
    let mut gpu_free_at = 0.0_f64;
    let mut fences: VecDeque<(f64, u64)> = VecDeque::new();
    let mut moves: Vec<Move> = Vec::new();
    let (mut in_free_at, mut out_free_at, mut mover_free_at) = (0.0_f64, 0.0_f64, 0.0_f64);
    let (mut promoted, mut at_round) = (0_u64, Cost::default());
    let mut last = Cost::default();
    let total = rounds * kernels.len();
    let mut steps = 0_u64;
    while next < total || !queue.is_empty() {
        steps += 1;
        assert!(steps < 20_000_000, "no end: work {next} of {total} at {now} us, held {hold:?}");
        // The GPU.
        while queue.front().is_some_and(|(done, ..)| *done <= now) {
            let Some((done, begun, index)) = queue.pop_front() else { break };
            if begun.measure {
                let kernel = &kernels[index % kernels.len()];
                let ram = begun.ram_bytes as f64 / machine.link_bytes_per_us * machine.in_place;
                residency.measured(kernel.kind, begun.ram_bytes, kernel.micros + ram);
            }
            if (index + 1) % kernels.len() == 0 {
                last = Cost { micros: done - at_round.micros, promoted_bytes: promoted - at_round.promoted_bytes };
                at_round = Cost { micros: done, promoted_bytes: promoted };
            }
        }
        while fences.front().is_some_and(|(done, _)| *done <= now) {
            let Some((_, number)) = fences.pop_front() else { break };
            residency.completed(STREAM, number);
        }
        // Copies that are over: the mover replaces mappings, one after the other.
        if mover_free_at <= now
            && let Some(at) = moves.iter().position(|m| m.copied_at <= now)
        {
            let done = moves.swap_remove(at);
            tiers[done.chunk] = done.to;
            free = if done.to == Tier::Ram { free + sizes[done.chunk] } else { free };
            residency.finish(offsets[done.chunk], true);
            mover_free_at = now + machine.remap_us;
        }
        // The mover.
        if mover_free_at <= now {
            let coming = moves.iter().filter(|m| m.to == Tier::Ram).map(|m| sizes[m.chunk]).sum();
            match residency.next_step(MoveRoom { vram_bytes: free, ram_bytes: u64::MAX, vram_coming_bytes: coming }) {
                Step::Move { offset, bytes, to, copy } => {
                    let lane = if to == Tier::Vram { &mut in_free_at } else { &mut out_free_at };
                    let micros = if copy { bytes as f64 / machine.link_bytes_per_us } else { 0.0 };
                    *lane = lane.max(now) + micros;
                    if to == Tier::Vram {
                        free -= bytes;
                        promoted += bytes;
                    }
                    let chunk = offsets.iter().position(|o| *o == offset).unwrap_or(0);
                    moves.push(Move { chunk, to, copied_at: *lane });
                    continue;
                }
                Step::Search(_) => {
                    residency.searched_all(Some(&[]));
                    continue;
                }
                Step::Collect => {
                    let searches = residency.collecting();
                    residency.collected(&searches, &[]);
                    continue;
                }
                Step::Learn(_) => {
                    if let Some(number) = residency.fence(STREAM) {
                        fences.push_back((gpu_free_at, number));
                    }
                }
                Step::Rest => {}
            }
        }
        // The program.
        if next < total && cpu_free_at <= now {
            let kernel = &kernels[next % kernels.len()];
            let touched: Vec<u64> = kernel.chunks.iter().map(|chunk| offsets[*chunk]).collect();
            let signature =
                kernel.chunks.iter().fold(kernel.kind, |sum, c| sum.wrapping_mul(31).wrapping_add(*c as u64));
            let patient = held_since.is_none_or(|since| now - since < 100_000.0);
            let work = Work {
                stream: STREAM,
                offsets: &touched,
                everything: false,
                may_store_pointers: false,
                signature: signature | 1,
                kind: kernel.kind,
                patient,
            };
            match residency.begin(&work, hold) {
                Begin::Go(begun) => {
                    residency.issued(&begun);
                    let ram = begun.ram_bytes as f64 / machine.link_bytes_per_us * machine.in_place;
                    gpu_free_at = gpu_free_at.max(now) + kernel.micros + ram;
                    queue.push_back((gpu_free_at, begun, next));
                    next += 1;
                    (hold, held_since) = (None, None);
                    cpu_free_at = now + machine.issue_us;
                    if next.is_multiple_of(16)
                        && let Some(number) = residency.fence(STREAM)
                    {
                        fences.push_back((gpu_free_at, number));
                    }
                }
                Begin::Hold(id) => {
                    hold = Some(id);
                    held_since.get_or_insert(now);
                }
            }
        }
        now += 5.0;
    }
    last
}

/// The works of a network's forward passes: each reads a weight of its own and a few hot buffers.
fn forward(layers: usize, weight_bytes: u64, micros: f64) -> (Vec<u64>, Vec<Kernel>) {
    let per_layer = weight_bytes.div_ceil(32 * MIB) as usize;
    let mut sizes = vec![8 * MIB; 4];
    let mut kernels = Vec::new();
    for layer in 0..layers {
        let first = sizes.len();
        sizes.extend((0..per_layer).map(|_| 32 * MIB));
        let mut chunks: Vec<usize> = (first..first + per_layer).collect();
        chunks.extend([layer % 4, (layer + 1) % 4]);
        kernels.push(Kernel { chunks, micros, kind: 7 });
        for small in 0..4 {
            kernels.push(Kernel { chunks: vec![small, (small + 1) % 4], micros: 6.0, kind: 8 });
        }
    }
    (sizes, kernels)
}

fn pcie5(vram_bytes: u64, in_place: f64) -> Machine {
    Machine { vram_bytes, link_bytes_per_us: 50_000.0, in_place, remap_us: 250.0, issue_us: 5.0 }
}

fn report(what: &str, cost: Cost, bound_us: f64, spilled_bytes: u64) -> f64 {
    let percent = 100.0 * bound_us / cost.micros;
    println!(
        "{what}: {:.1} ms a round, {percent:.0} % of the bound; {} MiB brought, {} MiB do not fit",
        cost.micros / 1e3,
        cost.promoted_bytes / MIB,
        spilled_bytes / MIB
    );
    percent
}

#[test]
fn a_loop_that_the_link_limits_moves_little_more_than_what_does_not_fit() {
    let (sizes, kernels) = forward(140, 96 * MIB, 60.0);
    let total: u64 = sizes.iter().sum();
    let machine = pcie5(9 << 30, 15.0);
    let spilled = total - machine.vram_bytes;
    let cost = run(&machine, &sizes, &kernels, 8);
    let bound = spilled as f64 / machine.link_bytes_per_us;
    assert!(report("link-bound", cost, bound, spilled) > 70.0);
}

#[test]
fn a_loop_that_computes_long_enough_hides_the_link() {
    let (sizes, kernels) = forward(140, 96 * MIB, 1200.0);
    let total: u64 = sizes.iter().sum();
    let machine = pcie5(9 << 30, 15.0);
    let spilled = total - machine.vram_bytes;
    let cost = run(&machine, &sizes, &kernels, 6);
    let bound: f64 = kernels.iter().map(|kernel| kernel.micros).sum();
    assert!(report("compute-bound", cost, bound, spilled) > 85.0);
}

#[test]
fn what_reads_each_byte_once_is_left_where_it_is() {
    let (sizes, kernels) = forward(140, 96 * MIB, 25.0);
    let total: u64 = sizes.iter().sum();
    let machine = pcie5(9 << 30, 1.05);
    let spilled = total - machine.vram_bytes;
    let cost = run(&machine, &sizes, &kernels, 4);
    assert_eq!(cost.promoted_bytes, 0);
    let compute: f64 = kernels.iter().map(|kernel| kernel.micros).sum();
    let bound = spilled as f64 / machine.link_bytes_per_us;
    assert!(report("read once", cost, bound.max(compute), spilled) > 70.0);
}

#[test]
fn what_is_made_going_forward_and_used_going_back_is_moved_once_each_way() {
    // Activations of a training step: written in order, read in reverse.
    let layers = 120;
    let mut sizes = vec![8 * MIB; 4];
    let first = sizes.len();
    sizes.extend((0..layers).flat_map(|_| [32 * MIB, 32 * MIB, 16 * MIB]));
    let of = |layer: usize| (first + 3 * layer..first + 3 * layer + 3).collect::<Vec<_>>();
    let mut kernels: Vec<Kernel> = (0..layers).map(|l| Kernel { chunks: of(l), micros: 170.0, kind: 1 }).collect();
    kernels.extend((0..layers).rev().map(|l| Kernel { chunks: of(l), micros: 340.0, kind: 2 }));
    let total: u64 = sizes.iter().sum();
    let machine = pcie5(total - (2 << 30), 10.0);
    let spilled = total - machine.vram_bytes;
    let cost = run(&machine, &sizes, &kernels, 8);
    let (forwards, backwards) = (170.0 * layers as f64, 340.0 * layers as f64);
    let link = spilled as f64 / machine.link_bytes_per_us;
    assert!(report("training", cost, forwards.max(link) + backwards.max(link), spilled) > 60.0);
}
