//! When a slice may be used: windows of the day, in a stated time zone.

use std::{fmt, str::FromStr};

const MINUTES_OF_DAY: u32 = 24 * 60;

/// Windows of the day, written `00:00-08:00,16:00-24:00 UTC+03:00`. A window may go over midnight (`22:00-06:00`). The
/// zone is an offset from UTC and is always stated; there is no summer time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Minutes of the day, from and until.
    windows: Vec<(u32, u32)>,
    offset_minutes: i32,
}

impl Schedule {
    /// Whether a moment, in seconds since 1970 (UTC), lies in a window.
    pub fn is_open_at(&self, unix_seconds: u64) -> bool {
        let minute = self.minute_of_day(unix_seconds);
        self.windows.iter().any(|&(from, until)| {
            if from < until { (from..until).contains(&minute) } else { minute >= from || minute < until }
        })
    }

    fn minute_of_day(&self, unix_seconds: u64) -> u32 {
        let minutes = i64::try_from(unix_seconds / 60).unwrap_or(0) + i64::from(self.offset_minutes);
        u32::try_from(minutes.rem_euclid(i64::from(MINUTES_OF_DAY))).unwrap_or(0)
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("'{text}' is no schedule; write for example 00:00-08:00,16:00-24:00 UTC+03:00");
        let (windows, zone) = text.trim().rsplit_once(char::is_whitespace).ok_or_else(|| {
            format!("'{text}' does not state its time zone; write for example 00:00-08:00 UTC or 00:00-08:00 UTC+03:00")
        })?;
        let offset_minutes = zone.strip_prefix("UTC").and_then(offset).ok_or_else(form)?;
        let windows = windows.split(',').map(window).collect::<Option<Vec<_>>>().ok_or_else(form)?;
        Ok(Self { windows, offset_minutes })
    }
}

fn offset(text: &str) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let minutes = if rest.contains(':') { minute(rest)? } else { number(rest)?.checked_mul(60)? };
    (minutes <= 14 * 60).then_some(sign * i32::try_from(minutes).ok()?)
}

fn window(text: &str) -> Option<(u32, u32)> {
    let (from, until) = text.trim().split_once('-')?;
    let (from, until) = (minute(from)?, minute(until)?);
    (from != until && from < MINUTES_OF_DAY).then_some((from, until))
}

fn minute(text: &str) -> Option<u32> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= MINUTES_OF_DAY).then_some(hours * 60 + minutes)
}

/// One or two digits.
fn number(text: &str) -> Option<u32> {
    (matches!(text.len(), 1 | 2) && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (from, until)) in self.windows.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, until / 60, until % 60)?;
        }
        match self.offset_minutes {
            0 => f.write_str(" UTC"),
            offset => {
                let sign = if offset < 0 { '-' } else { '+' };
                write!(f, " UTC{sign}{:02}:{:02}", offset.abs() / 60, offset.abs() % 60)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64, minutes: u64) -> u64 {
        1_000 * 86_400 + hours * 3600 + minutes * 60
    }

    #[test]
    fn a_window_is_open_from_its_first_minute_until_before_its_last() {
        let schedule: Schedule = "00:00-08:00,16:00-24:00 UTC".parse().unwrap();
        for (hours, minutes, open) in [(0, 0, true), (7, 59, true), (8, 0, false), (15, 59, false), (23, 59, true)] {
            assert_eq!(schedule.is_open_at(at(hours, minutes)), open, "{hours}:{minutes}");
        }
    }

    #[test]
    fn the_zone_counts_and_a_window_may_go_over_midnight() {
        let schedule: Schedule = "22:00-06:00 UTC+03:00".parse().unwrap();
        assert!(schedule.is_open_at(at(19, 0)) && schedule.is_open_at(at(2, 59)));
        assert!(!schedule.is_open_at(at(18, 59)) && !schedule.is_open_at(at(3, 0)));
        let west: Schedule = "08:00-09:00 UTC-5".parse().unwrap();
        assert!(west.is_open_at(at(13, 30)) && !west.is_open_at(at(8, 30)));
    }

    #[test]
    fn it_reads_as_it_is_written() {
        for text in ["00:00-08:00 UTC", "22:30-06:00,12:00-13:00 UTC+05:30", "16:00-24:00 UTC-05:00"] {
            assert_eq!(text.parse::<Schedule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in [
            "",
            "08:00-09:00",
            "UTC",
            "8-9 UTC",
            "08:00-08:00 UTC",
            "24:00-01:00 UTC",
            "08:60-09:00 UTC",
            "25:00-26:00 UTC",
            "08:00-09:00 UTC+15",
            "08:00-09:00 CET",
            "08:00-09:00, UTC",
            "08:00-09:00 UTC+",
        ] {
            let error = text.parse::<Schedule>().unwrap_err();
            assert!(error.contains("write for example") && !error.contains('\n'), "{text}: {error}");
        }
    }
}
