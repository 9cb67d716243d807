//! Definitions of slices, files of profiles and schedules are read or refused; what is read is written and read again as
//! the same.
#![no_main]

use std::path::Path;

use emuv_state::slices::{Schedule, Slice, parse_profiles, valid_name};
use libfuzzer_sys::fuzz_target;

const PATH: &str = "/etc/emuv/vgpu-profiles.conf";

fuzz_target!(|text: &str| {
    match Slice::parse(text) {
        Ok(slice) => assert_eq!(Slice::parse(&slice.to_text()).as_ref(), Ok(&slice)),
        Err(error) => assert!(emuv_fuzz::is_one_line(&error, &[text]), "{error:?}"),
    }
    match parse_profiles(Path::new(PATH), text) {
        Ok(profiles) => assert!(profiles.iter().all(|profile| valid_name(&profile.name) && profile.vram.0 > 0)),
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            assert!(mistakes.iter().all(|m| m.starts_with(PATH) && emuv_fuzz::is_one_line(m, &[text])), "{mistakes:?}");
        }
    }
    if let Ok(schedule) = text.parse::<Schedule>() {
        assert_eq!(schedule.to_string().parse().as_ref(), Ok(&schedule));
    }
});
