//! Sizes as people, or anything else, may write them.

use emuv_policy::Bytes;
use proptest::prelude::*;

proptest! {
    #[test]
    fn any_text_is_a_size_or_an_error(text in ".{0,40}") {
        let _ = text.parse::<Bytes>();
    }

    #[test]
    fn what_looks_like_a_size_never_overflows(text in "-?[0-9]{0,25}(\\.[0-9]{0,12})? ?[kKmMgGtTbBi]{0,3}") {
        let _ = text.parse::<Bytes>();
    }

    #[test]
    fn a_number_of_bytes_reads_back_as_itself(bytes: u64) {
        prop_assert_eq!(bytes.to_string().parse(), Ok(Bytes(bytes)));
    }

    #[test]
    fn what_is_shown_reads_back_within_half_a_percent(bytes: u64) {
        let shown: Bytes = Bytes(bytes).to_string().parse().map_err(|error| TestCaseError::fail(format!("{error}")))?;
        let difference = shown.0.abs_diff(bytes);
        prop_assert!(difference <= bytes / 200 + 1, "{bytes} shown as {shown}");
    }
}
