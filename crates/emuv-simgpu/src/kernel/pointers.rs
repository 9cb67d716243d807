//! Kernels that store pointers in memory, follow them, and search for them.

use std::collections::BTreeMap;

use super::{
    builtin::Arguments,
    run::{self, BLOCK_WORDS, STEPS_PER_CHECK, blocks, element},
};
use crate::{
    memory::view::{Stop, View},
    sync::lock,
};

/// For each of `count` addresses in `table`, a buffer of `n` words: `buf[i] = buf[i] * 1664525 + 1013904223 + round`
pub fn batched_mix(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let (table, count, n, round) = (arguments.word(0), arguments.word(1), arguments.word(2), arguments.half(3));
    for index in 0..count {
        let buffer = view.load_u64(element(table, index, 8)?)?;
        run::mix_words(view, buffer, n, round)?;
    }
    Ok(())
}

/// `table[i] = base + i * stride`
pub fn store_pointers(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [table, base, stride, count] = [0, 1, 2, 3].map(|i| arguments.word(i));
    for index in 0..count {
        if index % STEPS_PER_CHECK == 0 {
            view.check()?;
        }
        let pointer = base.wrapping_add(index.wrapping_mul(stride));
        view.store(element(table, index, 8)?, &pointer.to_le_bytes())?;
    }
    Ok(())
}

/// Makes a ring of `count` nodes, `stride` bytes apart: each holds the address of the next one, then its number.
pub fn link(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [head, stride, count] = [0, 1, 2].map(|i| arguments.word(i));
    for index in 0..count {
        if index % STEPS_PER_CHECK == 0 {
            view.check()?;
        }
        let node = |index: u64| head.wrapping_add((index % count).wrapping_mul(stride));
        view.store(node(index), &node(index + 1).to_le_bytes())?;
        view.store(node(index).wrapping_add(8), &index.to_le_bytes())?;
    }
    Ok(())
}

/// `*out` = sum of the numbers of `steps` nodes from `head` on, wrapping.
pub fn walk(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [out, mut node, steps] = [0, 1, 2].map(|i| arguments.word(i));
    let mut sum = 0_u64;
    for step in 0..steps {
        if step % STEPS_PER_CHECK == 0 {
            view.check()?;
        }
        sum = sum.wrapping_add(view.load_u64(node.wrapping_add(8))?);
        node = view.load_u64(node)?;
    }
    view.store(out, &sum.to_le_bytes())
}

/// The module variable that the kernels below use: one pointer.
pub const VARIABLE: &str = "emuv_pointer";

/// As `emuv_mix`, for the buffer of `n` words whose address is in the module's variable.
pub fn global_mix(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let buffer = view.load_u64(arguments.variable()?)?;
    run::mix_words(view, buffer, arguments.word(0), arguments.half(1))
}

/// Stores an address into the module's variable.
pub fn global_set(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    view.store(arguments.variable()?, &arguments.word(0).to_le_bytes())
}

/// For each of `words` words w from `start` on with `w - base < size`: sets bit `(w - base) >> 21` of the bitmap. If such a
/// `w - base` lies in one of eight ranges: also bit 0 of `*flag` if that bit was not set before, nor in `known`, else bit 1.
pub fn search(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [start, words, base, size, bitmap, known, flag] = [0, 1, 2, 3, 4, 5, 6].map(|i| arguments.word(i));
    let named: Vec<(u64, u64)> = (0..8).map(|i| (arguments.word(7 + 2 * i), arguments.word(8 + 2 * i))).collect();
    let mut block = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    // By granule: whether a pointer into a named range was among those found.
    let mut found: BTreeMap<u64, bool> = BTreeMap::new();
    for (first, bytes) in blocks(words.saturating_mul(2)) {
        view.check()?;
        view.load(element(start, first, 4)?, &mut block[..bytes])?;
        for word in block[..bytes].as_chunks::<8>().0 {
            let offset = u64::from_le_bytes(*word).wrapping_sub(base);
            if offset < size {
                let is_named = named.iter().any(|(first, size)| offset.wrapping_sub(*first) < *size);
                *found.entry(offset >> 21).or_default() |= is_named;
            }
        }
    }
    let engine = std::sync::Arc::clone(view.engine());
    let _guard = lock(&engine.machine.atomics);
    for (granule, is_named) in found {
        let (at, bit) = (element(bitmap, granule >> 5, 4)?, 1 << (granule & 31));
        let before = view.load_u32(at)?;
        view.store(at, &(before | bit).to_le_bytes())?;
        if flag != 0 && is_named {
            let seen = before | view.load_u32(element(known, granule >> 5, 4)?)?;
            let raised = if seen & bit == 0 { 1 } else { 2 };
            let flags = view.load_u32(flag)? | raised;
            view.store(flag, &flags.to_le_bytes())?;
        }
    }
    Ok(())
}
