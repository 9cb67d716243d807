//! Sizes, as people write and read them.

use std::{fmt, str::FromStr};

/// A number of bytes. Written `512M`, `12G`, `10.5G`, `12GiB` (1024-based) or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// Zero where the result would be negative.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The largest size where the result would not fit.
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseBytesError {
    /// Not a number with an optional unit.
    NotASize(String),
    /// A negative number.
    Negative(String),
    /// More than any machine has (16 EiB and up).
    TooLarge(String),
}

impl fmt::Display for ParseBytesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASize(text) => write!(f, "'{text}' is not a size; write for example 512M, 12G or 12GiB"),
            Self::Negative(text) => write!(f, "'{text}' is negative"),
            Self::TooLarge(text) => write!(f, "'{text}' is more than any machine has"),
        }
    }
}

impl std::error::Error for ParseBytesError {}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let not_a_size = || ParseBytesError::NotASize(text.to_owned());
        if let Some(rest) = trimmed.strip_prefix('-') {
            let number = rest.starts_with(|c: char| c.is_ascii_digit());
            return Err(if number { ParseBytesError::Negative(text.to_owned()) } else { not_a_size() });
        }
        let split = trimmed.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let number = number.trim_end();
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(not_a_size()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') || fraction.len() > 9 {
            return Err(not_a_size());
        }
        let too_large = || ParseBytesError::TooLarge(text.to_owned());
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let whole = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
        // At most nine digits and 2^40: the product fits in 128 bits by far.
        let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        let part = (fraction.parse::<u128>().unwrap_or(0) << shift) / scale;
        let part = u64::try_from(part).map_err(|_| too_large())?;
        whole.checked_add(part).map(Bytes).ok_or_else(too_large)
    }
}

impl fmt::Display for Bytes {
    /// Two decimals at most, in the largest unit that keeps the number at 1 or above.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            n if n >= 1 << 40 => (40, "TiB"),
            n if n >= 1 << 30 => (30, "GiB"),
            n if n >= 1 << 20 => (20, "MiB"),
            n if n >= 1 << 10 => (10, "KiB"),
            n => return write!(f, "{n} B"),
        };
        let hundredths = (u128::from(self.0) * 100 + (1 << (shift - 1))) >> shift;
        let (whole, rest) = (hundredths / 100, hundredths % 100);
        match rest {
            0 => write!(f, "{whole} {unit}"),
            r if r % 10 == 0 => write!(f, "{whole}.{} {unit}", r / 10),
            r => write!(f, "{whole}.{r:02} {unit}"),
        }
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("12G", 12 << 30),
            ("12GiB", 12 << 30),
            ("12 gb", 12 << 30),
            ("10.5G", 21 << 29),
            ("1.25k", 1280),
            ("2T", 2 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_said_so() {
        for text in ["", "G", "12X", "1.2.3G", "1e9", "0x10", "12.", "--4G", "４G"] {
            assert!(matches!(text.parse::<Bytes>(), Err(ParseBytesError::NotASize(_))), "{text}");
        }
        assert!(matches!("-4G".parse::<Bytes>(), Err(ParseBytesError::Negative(_))));
        assert!(matches!("99999999999999999999".parse::<Bytes>(), Err(ParseBytesError::TooLarge(_))));
        assert!(matches!("99999999T".parse::<Bytes>(), Err(ParseBytesError::TooLarge(_))));
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_reads_best() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(768 << 20).to_string(), "768 MiB");
        assert_eq!(Bytes(21 << 29).to_string(), "10.5 GiB");
        assert_eq!(Bytes((10 << 30) + (1 << 28)).to_string(), "10.25 GiB");
    }
}
