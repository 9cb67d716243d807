use emuv_policy::trace::{self, Event};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let bytes = std::fs::read(&args[1]).unwrap();
    let span: u64 = args[2].parse().unwrap();
    let mut f = emuv_policy::foresight_for_tools();
    let mut ids = std::collections::HashMap::new();
    let (mut n, mut hist) = (0u64, std::collections::BTreeMap::new());
    let mut sizes = std::collections::HashMap::new();
    for (_, e) in trace::read(&bytes).unwrap() {
        if let Event::Chunk { offset, bytes, .. } = e { sizes.insert(offset, bytes); }
        if let Event::Begun { kind, signature, chunks, .. } = e {
            let b = chunks.iter().map(|c| sizes[c]).sum();
            let idx: Vec<u32> = chunks.iter().map(|c| { let l = ids.len() as u32; *ids.entry(*c).or_insert(l) }).collect();
            f.note(signature, kind, &idx, b);
            n += 1;
            *hist.entry(f.period()).or_insert(0) += 1;
            if n % span == 0 {
                let mut h: Vec<_> = std::mem::take(&mut hist).into_iter().collect();
                h.sort_by_key(|(_, c)| -(*c as i64)); h.truncate(8);
                println!("{n}: length {:.0} {h:?}", f.length());
            }
        }
    }
}
