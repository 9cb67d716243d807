//! How data moves between the tiers, as people write it.

use std::{fmt, str::FromStr};

/// A choice of `--policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Movement {
    /// What is needed is brought to VRAM, ahead of need where it can be foreseen.
    #[default]
    Dynamic,
    /// Everything stays where it was put.
    Static,
    /// Whatever may move is moved at random, from this seed: to show that results stay right.
    Torture(u64),
}

impl FromStr for Movement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, seed) = text.trim().split_once(':').map_or((text.trim(), None), |(name, seed)| (name, Some(seed)));
        match (name, seed) {
            ("dynamic", None) => Ok(Self::Dynamic),
            ("static", None) => Ok(Self::Static),
            ("torture", None) => Ok(Self::Torture(1)),
            ("torture", Some(seed)) => {
                seed.parse().map(Self::Torture).map_err(|_| format!("'{seed}' is no seed: a whole number is"))
            }
            _ => Err(format!("'{}' is none of dynamic, static, torture, torture:SEED", text.trim())),
        }
    }
}

impl fmt::Display for Movement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dynamic => f.write_str("dynamic"),
            Self::Static => f.write_str("static"),
            Self::Torture(seed) => write!(f, "torture:{seed}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back() {
        for movement in [Movement::Dynamic, Movement::Static, Movement::Torture(77)] {
            assert_eq!(movement.to_string().parse(), Ok(movement));
        }
        assert_eq!(" torture ".parse(), Ok(Movement::Torture(1)));
    }

    #[test]
    fn a_wrong_word_is_told_what_would_be_right() {
        for text in ["", "fast", "static:3", "torture:x"] {
            let error = text.parse::<Movement>().unwrap_err();
            assert!(error.contains("seed") || error.contains("dynamic, static"), "{error}");
        }
    }
}
