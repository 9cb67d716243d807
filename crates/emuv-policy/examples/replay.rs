//! cargo run --release -p emuv-policy --example replay -- TRACE VRAM_GIB IN_PLACE US_PER_GIB SMALL_US [SPAN works per round]
use emuv_policy::{Policy, machine::{GpuWork, Machine, Op}, trace::{self, Event}};
use std::collections::HashMap;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let bytes = std::fs::read(&args[1]).unwrap();
    let f = |i: usize| args[i].parse::<f64>().unwrap();
    let (vram, in_place, per_gib, small, span) = (f(2), f(3), f(4), f(5), args.get(6).map_or(0, |s| s.parse::<usize>().unwrap()));
    let ignore_everything = args.len() > 7;
    let remap = if args.len() > 8 { [30.0, 17.0] } else { [130.0, 380.0] };
    let mut ops = Vec::new();
    let mut sizes = HashMap::new();
    let mut works = 0;
    for (_, event) in trace::read(&bytes).unwrap() {
        match event {
            Event::Chunk { offset, bytes, fixed: false, .. } => { sizes.insert(offset, bytes); ops.push(Op::Map { offset, bytes }); }
            Event::Removed { offset } if sizes.contains_key(&offset) => ops.push(Op::Unmap { offset }),
            Event::Extent { offset, bytes } => ops.push(Op::Allocate { offset, bytes }),
            Event::Freed { offset } => ops.push(Op::Free { offset }),
            Event::Begun { kind, signature, flags, chunks, .. } => {
                works += 1;
                if span > 0 && works % span == 0 { ops.push(Op::Round); }
                let chunks: Vec<u64> = chunks.into_iter().filter(|c| sizes.contains_key(c)).collect();
                let total: u64 = chunks.iter().map(|c| sizes[c]).sum();
                ops.push(Op::Work(GpuWork { chunks, micros: small + total as f64 / (1u64 << 30) as f64 * per_gib, kind, signature, everything: flags.everything && !ignore_everything }));
            }
            _ => {}
        }
    }
    let machine = Machine { vram_bytes: (vram * (1u64 << 30) as f64) as u64, link_bytes_per_us: 54_000.0, both_bytes_per_us: 44_000.0, in_place, remap_us: remap, issue_us: 5.0 };
    for policy in [Policy::Static, Policy::Dynamic { safe: false }] {
        println!("{policy:?}");
        for (i, cost) in machine.run(&ops, policy).iter().enumerate() {
            println!("  {i}: {:.1} ms, in {} MiB, out {} MiB", cost.micros / 1e3, cost.promoted_bytes >> 20, cost.evicted_bytes >> 20);
        }
    }
}
