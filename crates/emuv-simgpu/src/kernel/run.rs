//! What the built-in kernels do. They work on blocks, read and write only through the view, and stop when
//! their context goes away.

use super::builtin::Arguments;
use crate::{
    memory::view::{Stop, View},
    sync::lock,
};

/// Words that one block holds.
pub(super) const BLOCK_WORDS: u64 = 32 << 10;

/// Steps between two looks at whether the context still lives.
pub(super) const STEPS_PER_CHECK: u64 = 256;

/// The bit mixer that `emuv_fill` uses.
pub fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[allow(clippy::cast_possible_truncation)] // The low half is what is wanted.
fn low(x: u64) -> u32 {
    x as u32
}

/// Blocks of `n` words: index of the first word, and how many bytes.
pub(super) fn blocks(n: u64) -> impl Iterator<Item = (u64, usize)> {
    let starts = (0..n.div_ceil(BLOCK_WORDS)).map(|block| block * BLOCK_WORDS);
    starts.map(move |first| (first, crate::memory::length((n - first).min(BLOCK_WORDS) * 4)))
}

/// The address of element `index`, where elements have `size` bytes.
pub(super) fn element(base: u64, index: u64, size: u64) -> Result<u64, Stop> {
    index.checked_mul(size).and_then(|offset| base.checked_add(offset)).ok_or(Stop::IllegalAddress(base))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

pub(super) fn update(bytes: &mut [u8], mut change: impl FnMut(usize, u32) -> u32) {
    for (index, word) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *word = change(index, u32::from_le_bytes(*word)).to_le_bytes();
    }
}

/// `dst[i] = mix((u32)i + seed)`
pub fn fill(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let (dst, n, seed) = (arguments.word(0), arguments.word(1), arguments.half(2));
    let mut block = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    for (first, bytes) in blocks(n) {
        view.check()?;
        let mut i = low(first);
        update(&mut block[..bytes], |_, _| {
            let value = mix(i.wrapping_add(seed));
            i = i.wrapping_add(1);
            value
        });
        view.store(element(dst, first, 4)?, &block[..bytes])?;
    }
    Ok(())
}

/// `buf[i] = buf[i] * 1664525 + 1013904223 + round`
pub fn mix_buffer(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    mix_words(view, arguments.word(0), arguments.word(1), arguments.half(2))
}

/// The same for any buffer.
pub(super) fn mix_words(view: &mut View<'_>, buffer: u64, n: u64, round: u32) -> Result<(), Stop> {
    let mut block = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    for (first, bytes) in blocks(n) {
        view.check()?;
        let at = element(buffer, first, 4)?;
        view.load(at, &mut block[..bytes])?;
        update(&mut block[..bytes], |_, x| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223).wrapping_add(round));
        view.store(at, &block[..bytes])?;
    }
    Ok(())
}

/// `y[i] = fma(a, x[i], y[i])`
pub fn axpy(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let (y, x, a, n) = (arguments.word(0), arguments.word(1), arguments.float(2), arguments.word(3));
    let mut block_x = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    let mut block_y = block_x.clone();
    for (first, bytes) in blocks(n) {
        view.check()?;
        let at = element(y, first, 4)?;
        view.load(element(x, first, 4)?, &mut block_x[..bytes])?;
        view.load(at, &mut block_y[..bytes])?;
        let mut xs = words(&block_x[..bytes]);
        update(&mut block_y[..bytes], |_, word| {
            let x = f32::from_bits(xs.next().unwrap_or(0));
            a.mul_add(x, f32::from_bits(word)).to_bits()
        });
        view.store(at, &block_y[..bytes])?;
    }
    Ok(())
}

fn matrix(view: &mut View<'_>, address: u64, elements: u64) -> Result<Vec<f32>, Stop> {
    let bytes = elements.checked_mul(4).ok_or(Stop::IllegalAddress(address))?;
    // Asked for before it is allocated: a wild size is a fault, not a huge buffer.
    element(address, elements, 4)?;
    let mut values = Vec::new();
    let mut block = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    for (first, part) in blocks(bytes / 4) {
        view.check()?;
        view.load(element(address, first, 4)?, &mut block[..part])?;
        values.extend(words(&block[..part]).map(f32::from_bits));
    }
    Ok(values)
}

/// `c = a * b`, row-major, each output summed in order with fused multiply-add.
pub fn gemm(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [c, a, b] = [0, 1, 2].map(|i| arguments.word(i));
    let [m, n, k] = [3, 4, 5].map(|i| u64::from(arguments.half(i)));
    if m == 0 || n == 0 {
        return Ok(());
    }
    let a = matrix(view, a, m * k)?;
    let b = matrix(view, b, k * n)?;
    let columns = crate::memory::length(n);
    let depth = crate::memory::length(k);
    for r in 0..m {
        view.check()?;
        let mut row = vec![0.0_f32; columns];
        for i in 0..depth {
            let left = a[crate::memory::length(r) * depth + i];
            for (sum, right) in row.iter_mut().zip(&b[i * columns..]) {
                *sum = left.mul_add(*right, *sum);
            }
        }
        let bytes: Vec<u8> = row.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        view.store(element(c, r * n, 4)?, &bytes)?;
    }
    Ok(())
}

/// Pages of 4 KiB that a gather has read, as a GPU's cache would keep them for the length of a kernel.
struct PageCache {
    pages: Vec<Option<(u64, Box<[u8]>)>>,
}

impl PageCache {
    const SLOTS: u64 = 1024;

    fn new() -> Self {
        Self { pages: (0..Self::SLOTS).map(|_| None).collect() }
    }

    fn load_u32(&mut self, view: &mut View<'_>, address: u64) -> Result<u32, Stop> {
        let (page, offset) = (address & !4095, crate::memory::length(address & 4095));
        if offset > 4092 {
            return view.load_u32(address);
        }
        let slot = &mut self.pages[crate::memory::length((page / 4096) % Self::SLOTS)];
        if !matches!(slot, Some((held, _)) if *held == page) {
            let mut bytes = vec![0; 4096].into_boxed_slice();
            if view.load(page, &mut bytes).is_err() {
                // Pinned host memory may begin or end inside a page.
                return view.load_u32(address);
            }
            *slot = Some((page, bytes));
        }
        let bytes = slot.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        Ok(bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word)))
    }
}

/// `dst[i] = src[idx[i]]`
pub fn gather(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [dst, src, idx, n] = [0, 1, 2, 3].map(|i| arguments.word(i));
    let mut block = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    let mut cache = PageCache::new();
    for (first, bytes) in blocks(n) {
        view.check()?;
        view.load(element(idx, first, 4)?, &mut block[..bytes])?;
        for word in block[..bytes].as_chunks_mut::<4>().0 {
            let at = element(src, u64::from(u32::from_le_bytes(*word)), 4)?;
            *word = cache.load_u32(view, at)?.to_le_bytes();
        }
        view.store(element(dst, first, 4)?, &block[..bytes])?;
    }
    Ok(())
}

/// Follows pointers: `p = head; steps times p = *p; *out = p`
pub fn chase(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [out, head, steps] = [0, 1, 2].map(|i| arguments.word(i));
    let mut p = head;
    for step in 0..steps {
        if step % STEPS_PER_CHECK == 0 {
            view.check()?;
        }
        p = view.load_u64(p)?;
    }
    view.store(out, &p.to_le_bytes())
}

/// `*out += sum of src[i] * (2 * i + 1)`, wrapping, as one atomic addition.
pub fn reduce(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [out, src, n] = [0, 1, 2].map(|i| arguments.word(i));
    let mut block = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    let mut sum = 0_u64;
    for (first, bytes) in blocks(n) {
        view.check()?;
        view.load(element(src, first, 4)?, &mut block[..bytes])?;
        for (i, word) in (first..).zip(words(&block[..bytes])) {
            let weight = i.wrapping_mul(2).wrapping_add(1);
            sum = sum.wrapping_add(u64::from(word).wrapping_mul(weight));
        }
    }
    let engine = std::sync::Arc::clone(view.engine());
    let _guard = lock(&engine.machine.atomics);
    let total = view.load_u64(out)?.wrapping_add(sum);
    view.store(out, &total.to_le_bytes())
}

/// Two sums over `words` words (`crates/emuv-shim/kernels/hash.ptx`), all of them as the first block's part.
pub fn hash(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [start, words, seed, sums] = [0, 1, 2, 3].map(|i| arguments.word(i));
    let mut block = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    let (mut first_sum, mut second_sum) = (0_u64, 0_u64);
    for (first, bytes) in blocks(words.saturating_mul(2)) {
        view.check()?;
        view.load(element(start, first, 4)?, &mut block[..bytes])?;
        for (i, word) in (first / 2..).zip(block[..bytes].as_chunks::<8>().0) {
            let x = u64::from_le_bytes(*word) ^ seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut z = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            first_sum = first_sum.wrapping_add(z ^ z >> 31);
            let mut y = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
            y = (y ^ y >> 32).wrapping_mul(0xa076_1d64_78bd_642f);
            second_sum = second_sum.wrapping_add(y ^ y >> 29);
        }
    }
    view.store(sums, &first_sum.to_le_bytes())?;
    view.store(sums.wrapping_add(8), &second_sum.to_le_bytes())
}

/// Copies `bytes` to `target` from `source` (`crates/emuv-shim/kernels/copy.ptx`).
pub fn copy(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let [target, source, bytes] = [0, 1, 2].map(|i| arguments.word(i));
    let mut block = vec![0; 4 * crate::memory::length(BLOCK_WORDS)];
    for (first, bytes) in blocks(bytes / 4) {
        view.check()?;
        view.load(element(source, first, 4)?, &mut block[..bytes])?;
        view.store(element(target, first, 4)?, &block[..bytes])?;
    }
    Ok(())
}

/// For `count` pairs (address, length) in `list`: adds to the first word of every 4 KiB.
pub fn touch(view: &mut View<'_>, arguments: &Arguments) -> Result<(), Stop> {
    let (list, count, add) = (arguments.word(0), arguments.half(1), arguments.half(2));
    for pair in 0..u64::from(count) {
        let address = view.load_u64(element(list, pair, 16)?)?;
        let bytes = view.load_u64(element(list, pair, 16)?.wrapping_add(8))?;
        for page in 0..bytes / 4096 {
            if page % STEPS_PER_CHECK == 0 {
                view.check()?;
            }
            let at = element(address, page, 4096)?;
            let word = view.load_u32(at)?.wrapping_add(add);
            view.store(at, &word.to_le_bytes())?;
        }
    }
    Ok(())
}
