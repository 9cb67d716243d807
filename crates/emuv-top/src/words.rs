//! Numbers in few letters, and bars, in the letters that the terminal has.

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Colours; without them everything is told by letters alone.
    pub colour: bool,
    /// Block characters; without them ASCII.
    pub blocks: bool,
}

impl Look {
    /// As the environment says: `NO_COLOR`, and a locale that has UTF-8. `get` looks a variable up.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        Self { colour: set("NO_COLOR").is_none(), blocks: locale.contains("utf-8") || locale.contains("utf8") }
    }

    /// VRAM of programs under emuV.
    pub const fn vram(self) -> char {
        if self.blocks { '█' } else { '#' }
    }

    /// Their RAM.
    pub const fn ram(self) -> char {
        if self.blocks { '▒' } else { '=' }
    }

    /// VRAM of others.
    pub const fn other(self) -> char {
        if self.blocks { '░' } else { '-' }
    }

    /// Unused.
    pub const fn free(self) -> char {
        if self.blocks { '·' } else { '.' }
    }
}

/// Bytes as people compare them, in GiB or MiB: at most 6 letters.
#[allow(clippy::cast_precision_loss)] // Figures for people.
pub fn size(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0)
}

/// Bytes by the second, in powers of 1000 as links are measured: at most 6 letters.
pub fn rate(bytes_per_second: f64) -> String {
    scaled(bytes_per_second, 1000.0)
}

/// A count: at most 6 letters.
pub fn count(number: f64) -> String {
    scaled(number, 1000.0).to_lowercase()
}

fn scaled(number: f64, base: f64) -> String {
    let mut number = number.max(0.0);
    let mut unit = "";
    for next in ["K", "M", "G", "T", "P", "E"] {
        // What would be rounded up to four digits belongs to the next.
        if number < base.min(999.5) {
            break;
        }
        (number, unit) = (number / base, next);
    }
    if unit.is_empty() || number >= 99.95 { format!("{number:.0}{unit}") } else { format!("{number:.1}{unit}") }
}

/// A percentage.
pub fn percent(percent: f64) -> String {
    format!("{percent:.0} %")
}

/// How many of `width` places each part has, so that nothing that is there has none and their sum fits.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Places of a bar.
pub fn places<const N: usize>(parts: [u64; N], whole: u64, width: usize) -> [usize; N] {
    let mut sum = 0_u64;
    let mut taken = 0;
    parts.map(|part| {
        sum = sum.saturating_add(part);
        let end = (sum as f64 / whole.max(1) as f64 * width as f64).round() as usize;
        let least = usize::from(part > 0);
        let places = end.saturating_sub(taken).max(least).min(width.saturating_sub(taken));
        taken += places;
        places
    })
}

/// A bar as text.
pub fn bar<const N: usize>(parts: [(u64, char); N], whole: u64, width: usize, free: char) -> String {
    let places = places(parts.map(|(part, _)| part), whole, width);
    let mut text: String =
        parts.iter().zip(places).flat_map(|((_, letter), places)| std::iter::repeat_n(*letter, places)).collect();
    text.extend(std::iter::repeat_n(free, width.saturating_sub(places.iter().sum())));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_six_letters() {
        let gib = 1 << 30;
        let sizes = [0, 1000, 1023, 1 << 20, 99 << 20, 18 * gib + gib / 5, 999 * gib, u64::MAX].map(size);
        assert_eq!(sizes, ["0", "1.0K", "1.0K", "1.0M", "99.0M", "18.2G", "999G", "16.0E"]);
        assert_eq!([12.1e9, 999_600.0, 0.4, f64::MAX.min(1e21)].map(rate), ["12.1G", "1.0M", "0", "1000E"]);
        assert_eq!(count(12_345.0), "12.3k");
    }

    #[test]
    fn a_bar_has_its_width_and_a_place_for_whatever_is_there() {
        assert_eq!(bar([(5, 'v'), (2, 'r')], 10, 10, '.'), "vvvvvrr...");
        assert_eq!(bar([(1, 'v'), (1, 'r')], 1000, 5, '.'), "vr...");
        assert_eq!(bar([(u64::MAX, 'v'), (u64::MAX, 'r')], 1, 4, '.'), "vvvv");
        assert_eq!(bar([(0, 'v')], 0, 3, '.'), "...");
        assert_eq!(bar([(1, 'v')], 1, 0, '.'), "");
    }

    #[test]
    fn the_environment_says_what_the_terminal_has() {
        let look = |pairs: &[(&str, &str)]| {
            Look::from_env(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(look(&[("LANG", "de_DE.UTF-8")]), Look { colour: true, blocks: true });
        assert_eq!(look(&[("LANG", "C.utf8"), ("LC_ALL", "C")]), Look { colour: true, blocks: false });
        assert_eq!(look(&[("NO_COLOR", "1")]), Look { colour: false, blocks: false });
        assert!(look(&[("NO_COLOR", "")]).colour);
    }
}
