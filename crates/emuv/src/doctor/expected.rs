//! What the kernels compute, on the CPU: the other half of every comparison.

/// The scattering function of `emuv_fill`.
pub fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Element `index` after `emuv_fill` with `seed`.
#[allow(clippy::cast_possible_truncation)] // The kernel takes the low 32 bits of the index too.
pub fn filled(index: u64, seed: u32) -> u32 {
    mix((index as u32).wrapping_add(seed))
}

/// One step of `emuv_mix`.
pub fn mixed(value: u32, round: u32) -> u32 {
    value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223).wrapping_add(round)
}

/// The sum that `emuv_reduce` adds for these elements.
pub fn reduced(words: impl Iterator<Item = u32>) -> u64 {
    let weights = (0_u64..).map(|index| index.wrapping_mul(2).wrapping_add(1));
    words.zip(weights).fold(0, |sum, (word, weight)| u64::from(word).wrapping_mul(weight).wrapping_add(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_scatter_and_zero_stays() {
        assert_eq!(mix(0), 0);
        assert_eq!(filled(5, 7), mix(12));
        assert_eq!(filled(1 << 32, 7), filled(0, 7), "only the low 32 bits of the index count");
        let differing = (0..1000).map(|i| (mix(i) ^ mix(i + 1)).count_ones()).sum::<u32>();
        assert!((12_000..20_000).contains(&differing), "{differing} of 32000 bits differ");
    }

    #[test]
    fn the_sum_notices_an_exchange() {
        assert_eq!(reduced([5, 7].into_iter()), 5 + 3 * 7);
        assert_ne!(reduced([5, 7].into_iter()), reduced([7, 5].into_iter()));
    }

    #[test]
    fn arithmetic_wraps() {
        assert_eq!(mixed(u32::MAX, u32::MAX), 0_u32.wrapping_sub(1_664_525).wrapping_add(1_013_904_222));
    }
}
