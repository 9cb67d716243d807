//! Links by name.

use emuv_policy::machine::Link;

/// Measured on an H200 (PCIe 5 x16): 55 GB/s each way, 101 both. Older generations at half and a quarter of that, which is
/// what x16 cards commonly reach.
const PCIE5: [f64; 3] = [54.8, 54.9, 100.7];
const PCIE4: [f64; 3] = [25.0, 25.0, 46.0];
const PCIE3: [f64; 3] = [12.3, 12.3, 22.6];

/// The link that a text names. None: PCIe 4.
pub(super) fn named(text: Option<&str>) -> Result<Link, String> {
    let [into_vram, into_ram, both] = match text {
        None | Some("pcie4") => PCIE4,
        Some("pcie3") => PCIE3,
        Some("pcie5") => PCIE5,
        Some(text) => speeds(text)?,
    };
    Ok(Link::gb_per_s(into_vram, into_ram, both))
}

fn speeds(text: &str) -> Result<[f64; 3], String> {
    let speed = |part: &str| part.trim().parse::<f64>().ok().filter(|speed| (0.001..=1e5).contains(speed));
    let parts = text.split(',').map(speed).collect::<Option<Vec<f64>>>();
    let Some(Ok(speeds)) = parts.map(<[f64; 3]>::try_from) else {
        return Err(format!(
            "'{text}' is no link; write pcie3, pcie4, pcie5, or three speeds in GB/s: into VRAM, into RAM, both together"
        ));
    };
    let [into_vram, into_ram, both] = speeds;
    if both < into_vram.max(into_ram) {
        return Err(format!("'{text}': both directions together carry {both} GB/s, less than one of them alone"));
    }
    Ok(speeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_names_or_three_speeds() {
        assert_eq!(named(Some("pcie4")), named(None));
        assert_eq!(named(Some("25,26.5, 40")), Ok(Link::gb_per_s(25.0, 26.5, 40.0)));
        for wrong in ["pcie9", "25", "25,25", "25,25,46,1", "0,1,2", "-1,1,2", "a,b,c", "nan,1,2", "25,25,20"] {
            assert!(named(Some(wrong)).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
