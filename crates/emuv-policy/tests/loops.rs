//! The movement policy in virtual time: loops of works over chunks. What a round costs is compared with what physics
//! allows.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, clippy::unwrap_used)]

mod synthetic;

use emuv_policy::{
    GRANULE, Policy,
    machine::{Cost, GpuWork, Link, Machine, Op},
};

const MIB: u64 = 1 << 20;

/// A work of the loop: which chunks it touches, by number.
#[derive(Clone)]
struct Kernel {
    chunks: Vec<usize>,
    micros: f64,
    kind: u64,
}

/// Runs `rounds` rounds; gives the cost of the last one.
fn run(machine: &Machine, slowness: f64, sizes: &[u64], kernels: &[Kernel], rounds: usize) -> Cost {
    run_each(machine, slowness, sizes, std::iter::repeat_n(kernels.to_vec(), rounds)).pop().unwrap()
}

/// Runs these rounds; gives the cost of each.
fn run_each(
    machine: &Machine,
    slowness: f64,
    sizes: &[u64],
    rounds: impl IntoIterator<Item = Vec<Kernel>>,
) -> Vec<Cost> {
    let mut program = Vec::new();
    let mut offsets = Vec::new();
    let mut offset = 0;
    for &bytes in sizes {
        program.extend([Op::Map { offset, bytes }, Op::Allocate { offset, bytes }]);
        offsets.push(offset);
        offset += bytes.next_multiple_of(GRANULE);
    }
    for kernels in rounds {
        program.push(Op::Round);
        for kernel in kernels {
            program.push(Op::Work(GpuWork {
                chunks: kernel.chunks.iter().map(|chunk| offsets[*chunk]).collect(),
                micros: kernel.micros,
                issue_us: 5.0,
                kind: kernel.kind,
                everything: false,
                slowness,
            }));
        }
    }
    machine.run(&program, Policy::Dynamic { safe: false })
}

/// The works of a network's forward passes: each reads a weight of its own and a few hot buffers.
fn forward(layers: usize, weight_bytes: u64, micros: f64) -> (Vec<u64>, Vec<Kernel>) {
    let per_layer = usize::try_from(weight_bytes.div_ceil(32 * MIB)).unwrap();
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

fn pcie5(vram_bytes: u64) -> Machine {
    Machine { vram_bytes, ram_bytes: 1 << 40, link: Link::gb_per_s(54.0, 54.0, 88.0), wake_us: 50.0 }
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
    let machine = pcie5(9 << 30);
    let spilled = total - machine.vram_bytes;
    let cost = run(&machine, 15.0, &sizes, &kernels, 8);
    // What is brought pushes as much out: nobody can tell that it was not written to.
    let bound = 2.0 * spilled as f64 / machine.link.both_bytes_per_us;
    assert!(report("link-bound", cost, bound, spilled) > 90.0);
}

#[test]
fn a_loop_that_computes_long_enough_hides_the_link() {
    let (sizes, kernels) = forward(140, 96 * MIB, 1200.0);
    let total: u64 = sizes.iter().sum();
    let machine = pcie5(9 << 30);
    let spilled = total - machine.vram_bytes;
    let cost = run(&machine, 15.0, &sizes, &kernels, 6);
    let bound: f64 = kernels.iter().map(|kernel| kernel.micros).sum();
    assert!(report("compute-bound", cost, bound, spilled) > 95.0);
}

#[test]
fn what_reads_each_byte_once_is_left_where_it_is() {
    let (sizes, kernels) = forward(140, 96 * MIB, 25.0);
    let total: u64 = sizes.iter().sum();
    let machine = pcie5(9 << 30);
    let spilled = total - machine.vram_bytes;
    let cost = run(&machine, 1.05, &sizes, &kernels, 8);
    assert!(cost.promoted_bytes <= spilled / 20, "{} bytes were brought", cost.promoted_bytes);
    let compute: f64 = kernels.iter().map(|kernel| kernel.micros).sum();
    let bound = spilled as f64 / machine.link.in_bytes_per_us;
    assert!(report("read once", cost, bound.max(compute), spilled) > 80.0);
}

#[test]
fn an_optimizers_moments_stay_where_they_are_and_not_what_other_works_read_too() {
    // Weights are read going forward and back, and by the optimizer, with two moments each.
    let layers = 40;
    let sizes = vec![32 * MIB; 3 * layers];
    let weights = (0..layers).chain((0..layers).rev());
    let mut kernels: Vec<Kernel> = weights.map(|at| Kernel { chunks: vec![at], micros: 30.0, kind: 1 }).collect();
    kernels.extend((0..layers).map(|at| Kernel {
        chunks: vec![at, layers + at, 2 * layers + at],
        micros: 30.0,
        kind: 2,
    }));
    let total: u64 = sizes.iter().sum();
    let with = |vram_bytes: u64| {
        let cost = run(&pcie5(vram_bytes), 1.05, &sizes, &kernels, 12);
        println!("{} of {} MiB: {cost:?}", vram_bytes / MIB, total / MIB);
        (cost.promoted_bytes, cost.in_place_bytes)
    };
    // A third of all does not fit: half of the moments.
    let (brought, in_place) = with(total * 2 / 3);
    assert!(brought <= total / 20 && in_place >= total / 4, "{brought} brought, {in_place} in place");
    // More than all moments: the rest comes and goes. Weights that stayed as well would each cross the link three times.
    let (brought, in_place) = with(total / 5);
    let moments = total * 2 / 3;
    assert!(in_place >= moments * 7 / 8 && in_place <= moments + total / 6, "{in_place} of {moments} in place");
    assert!(brought >= total / 4 && brought <= total * 3 / 4, "{brought} brought");
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
    let machine = pcie5(total - (2 << 30));
    let spilled = total - machine.vram_bytes;
    let cost = run(&machine, 15.0, &sizes, &kernels, 8);
    let (forwards, backwards) = (170.0 * layers as f64, 340.0 * layers as f64);
    let link = spilled as f64 / machine.link.in_bytes_per_us;
    assert!(report("training", cost, forwards.max(link) + backwards.max(link), spilled) > 70.0);
}

#[test]
fn experts_that_nobody_can_foresee_are_read_where_they_are_and_what_is_always_read_comes_to_vram() {
    const LAYERS: usize = 7;
    const EXPERTS: usize = 16;
    const TOKENS: usize = 160;
    // Every layer has four weights that are always read, and experts of three weights, of which two are.
    const LAYER: usize = 4 + 3 * EXPERTS;
    let sizes: Vec<u64> = (0..LAYERS * LAYER).map(|at| if at % LAYER < 4 { 8 * MIB } else { 12 * MIB }).collect();
    let total: u64 = sizes.iter().sum();
    let machine = pcie5(total * 2 / 3);
    let mut number = synthetic::numbers(1);
    let mut any_expert = || usize::try_from(number()).unwrap() % EXPERTS;
    let mut token = |_| {
        let mut kernels = Vec::new();
        for layer in 0..LAYERS {
            let mut read = |at: usize, kind: u64| {
                kernels.push(Kernel { chunks: vec![layer * LAYER + at], micros: 10.0, kind });
            };
            (0..4).for_each(|part| read(part, 100 + part as u64));
            for expert in [any_expert(), any_expert()] {
                (0..3).for_each(|part| read(4 + 3 * expert + part, 200 + part as u64));
            }
        }
        kernels
    };
    let costs = run_each(&machine, 1.05, &sizes, (0..TOKENS).map(&mut token));
    let settled = &costs[TOKENS / 2..];
    let micros: f64 = settled.iter().map(|cost| cost.micros).sum::<f64>() / settled.len() as f64;
    let promoted: u64 = settled.iter().map(|cost| cost.promoted_bytes).sum::<u64>() / settled.len() as u64;
    // A third of everything is in RAM. (What is always read comes to VRAM in the end.)
    let read_bytes = (LAYERS * (4 * 8 + 2 * 3 * 12)) as f64 * MIB as f64 / 3.0;
    let in_place = (LAYERS * 10) as f64 * 10.0 + read_bytes / machine.link.in_bytes_per_us;
    println!("{micros:.0} us a token instead of {in_place:.0}, {} MiB brought for each", promoted / MIB);
    assert!(micros < 0.85 * in_place);
}
