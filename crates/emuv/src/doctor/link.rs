//! How fast the link is: what the GPU reports, and what copies of host-backed chunks reach.

use std::time::Instant;

use emuv_cuda::{CuResult, Gpu};
use emuv_policy::{Bytes, Tier};

use super::{
    check::{Check, Link},
    device::{Device, Span, Stream},
    gpu::gigabytes,
    mapping::Mapping,
};

/// How much is copied.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Size of a chunk, and of a copy.
    pub piece: Bytes,
    /// Copies per direction in one measurement.
    pub copies: u64,
    /// Measurements, of which the median counts.
    pub samples: usize,
}

impl Amount {
    /// Enough for a figure: 256 MiB per direction and sample.
    pub const REAL: Self = Self { piece: Bytes::mib(32), copies: 8, samples: 5 };
    /// What all samples of all three ways copy.
    pub fn all_bytes(self) -> u64 {
        // Both ways at once counts as two.
        4 * self.samples as u64 * self.copies * self.piece.0
    }

    /// Enough to see that it works.
    pub const SIMULATED: Self = Self { piece: Bytes::mib(4), copies: 2, samples: 3 };
}

/// Measures all three ways into `link`; `copied` is told of each sample's bytes.
///
/// # Errors
/// The driver's own.
pub fn measure(gpu: &dyn Gpu, device: &Device<'_>, amount: Amount, link: &mut Link, copied: &dyn Fn(u64)) -> CuResult {
    let piece = amount.piece.0;
    // One pair of chunks for each direction, so that both can run at once.
    let mut mapping = Mapping::reserve(gpu, 4 * piece)?;
    let vram_in = mapping.append(Tier::Vram, piece)?;
    let ram_in = mapping.append(Tier::Ram, piece)?;
    let vram_out = mapping.append(Tier::Vram, piece)?;
    let ram_out = mapping.append(Tier::Ram, piece)?;
    device.fill(mapping.span(), 1)?;
    device.synchronize()?;
    let (up, down) = (device.stream()?, device.stream()?);
    let h2d = Transfer { stream: &up, dst: vram_in, src: ram_in };
    let d2h = Transfer { stream: &down, dst: ram_out, src: vram_out };
    let outcome = (|| {
        link.h2d_gbps = Some(median_gbps(amount, &[&h2d], copied)?);
        link.d2h_gbps = Some(median_gbps(amount, &[&d2h], copied)?);
        link.both_gbps = Some(median_gbps(amount, &[&h2d, &d2h], copied)?);
        Ok(())
    })();
    // Nothing may be in flight when the mapping goes.
    outcome.and(device.synchronize())
}

struct Transfer<'a> {
    stream: &'a Stream<'a>,
    dst: Span,
    src: Span,
}

fn median_gbps(amount: Amount, transfers: &[&Transfer<'_>], copied: &dyn Fn(u64)) -> CuResult<f64> {
    // One round unmeasured: the first copy pays for setting things up.
    once(1, transfers)?;
    let mut samples = Vec::new();
    for _ in 0..amount.samples {
        let start = Instant::now();
        once(amount.copies, transfers)?;
        let bytes = amount.piece.0 * amount.copies * transfers.len() as u64;
        samples.push(gigabytes(bytes) / start.elapsed().as_secs_f64());
        copied(bytes);
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}

fn once(copies: u64, transfers: &[&Transfer<'_>]) -> CuResult {
    for _ in 0..copies {
        for transfer in transfers {
            transfer.stream.copy(transfer.dst, transfer.src)?;
        }
    }
    for transfer in transfers {
        transfer.stream.synchronize()?;
    }
    Ok(())
}

/// What one lane carries in one direction, in 10^9 bytes a second after encoding.
fn lane_gbps(generation: u32) -> Option<f64> {
    Some(match generation {
        1 => 0.25,
        2 => 0.5,
        3 => 0.985,
        4 => 1.969,
        5 => 3.938,
        6 => 7.563,
        _ => return None,
    })
}

/// The two checks: the link as the GPU reports it, and as measured.
pub fn judge(link: &Link, measured: &CuResult, simulated: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    let pair = |generation: Option<u32>, width: Option<u32>| {
        let word = |number: Option<u32>| number.map_or_else(|| "?".to_owned(), |n| n.to_string());
        format!("PCIe {} x{}", word(generation), word(width))
    };
    let (now, most) = (pair(link.generation, link.width), pair(link.generation_max, link.width_max));
    let narrow = matches!((link.width, link.width_max), (Some(now), Some(most)) if now < most);
    checks.push(match (link.generation_max, narrow) {
        (None, _) => {
            Check::warn("pcie", "unknown", "NVML does not say; is libnvidia-ml.so.1 installed with the driver?")
        }
        (Some(_), true) => Check::warn(
            "pcie",
            format!("{now}, could be {most}"),
            "the card has fewer lanes than it could use: check the slot and what shares its lanes",
        ),
        (Some(_), false) => Check::ok("pcie", format!("{now}, at most {most}")),
    });
    if let Err(error) = measured {
        let advice = "copies between VRAM and host-backed chunks fail; please report this with the driver version";
        checks.push(Check::fail("bandwidth", error.to_string(), advice));
        return checks;
    }
    let rate = |rate: Option<f64>| rate.map_or_else(|| "?".to_owned(), |r| format!("{r:.1}"));
    let mut found = format!(
        "{} GB/s to the GPU, {} GB/s back, {} GB/s both at once",
        rate(link.h2d_gbps),
        rate(link.d2h_gbps),
        rate(link.both_gbps)
    );
    if simulated {
        found.push_str(" (simulated: not a measurement)");
    }
    let expected =
        link.generation_max.and_then(lane_gbps).zip(link.width_max).map(|(lane, width)| lane * f64::from(width));
    let slow = match (expected, link.h2d_gbps, link.d2h_gbps) {
        (Some(expected), Some(h2d), Some(d2h)) if !simulated => h2d.min(d2h) < 0.6 * expected,
        _ => false,
    };
    checks.push(match (slow, expected) {
        (true, Some(expected)) => Check::warn(
            "bandwidth",
            found,
            format!(
                "the link should carry about {expected:.0} GB/s: check the slot, the host's memory channels, \
                 and whether another program uses the link now"
            ),
        ),
        _ => Check::ok("bandwidth", found),
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::{super::check::Status, *};

    fn gen5(h2d: f64) -> Link {
        Link {
            generation: Some(5),
            generation_max: Some(5),
            width: Some(16),
            width_max: Some(16),
            h2d_gbps: Some(h2d),
            d2h_gbps: Some(55.4),
            both_gbps: Some(101.7),
        }
    }

    fn statuses(link: &Link, simulated: bool) -> Vec<Status> {
        judge(link, &Ok(()), simulated).iter().map(|check| check.status).collect()
    }

    #[test]
    fn a_full_link_is_fine() {
        assert_eq!(statuses(&gen5(55.5), false), [Status::Ok, Status::Ok]);
    }

    #[test]
    fn a_link_far_below_its_generation_is_worth_a_warning_unless_simulated() {
        assert_eq!(statuses(&gen5(25.0), false), [Status::Ok, Status::Warn]);
        assert_eq!(statuses(&gen5(25.0), true), [Status::Ok, Status::Ok]);
    }

    #[test]
    fn missing_lanes_are_named_and_an_idle_generation_is_not() {
        let narrow = Link { width: Some(4), ..gen5(55.5) };
        assert_eq!(statuses(&narrow, false)[0], Status::Warn);
        let idle = Link { generation: Some(1), ..gen5(55.5) };
        assert_eq!(statuses(&idle, false)[0], Status::Ok);
    }

    #[test]
    fn unknown_is_said_to_be_unknown() {
        let checks = judge(&Link::default(), &Ok(()), false);
        assert_eq!((checks[0].status, checks[0].found.as_str()), (Status::Warn, "unknown"));
    }
}
