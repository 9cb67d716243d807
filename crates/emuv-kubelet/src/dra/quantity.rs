//! Amounts, as Kubernetes writes them. What is published is compared with what the API server has made of it, so it is written as the
//! server writes it: the largest unit in which it is whole.

/// Binary units, each 1024 of the one before, from `Ki`.
const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// Bytes in whole MiB.
pub(super) fn of_bytes(bytes: u64) -> String {
    let mut number = bytes >> 20;
    if number == 0 {
        return "0".to_owned();
    }
    let mut unit = 1;
    while number.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        number /= 1024;
        unit += 1;
    }
    format!("{number}{}", UNITS[unit])
}

/// A count. From a thousand on the server writes some with a decimal unit: those are rounded down to what has none of them.
pub(super) fn of_count(count: u64) -> String {
    count.min(999).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_in_the_largest_unit_in_which_they_are_whole() {
        for (bytes, text) in [
            (0, "0"),
            ((1 << 20) - 1, "0"),
            (1 << 20, "1Mi"),
            (1536 << 20, "1536Mi"),
            (6 << 30, "6Gi"),
            ((6 << 30) + 5, "6Gi"),
            (1 << 40, "1Ti"),
            (1 << 60, "1Ei"),
        ] {
            assert_eq!(of_bytes(bytes), text);
        }
        assert_eq!((of_count(100), of_count(1000)), ("100".to_owned(), "999".to_owned()));
    }
}
