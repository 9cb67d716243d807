//! A size as people write it: refused in one line, or a number that is shown and read back within its last digit.
#![no_main]

use emuv_policy::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Bytes>() {
        Ok(bytes) => {
            // The largest are rounded up to more than there is.
            let Ok(again) = bytes.to_string().parse::<Bytes>() else {
                assert!(bytes.0 > 1 << 63, "what is shown cannot be read: {bytes}");
                return;
            };
            assert!(again.0.abs_diff(bytes.0) <= bytes.0 / 100 + 1, "{text:?}: {bytes:?} is shown as {bytes}");
        }
        Err(error) => assert!(emuv_fuzz::is_one_line(&error.to_string(), &[text]), "{error}"),
    }
});
