//! Text that comes from outside is read or refused, never more.

use proptest::prelude::*;

use crate::{config::Config, kernel::image::Image, visible::visible};

proptest! {
    #[test]
    fn any_setting_is_a_configuration_or_an_error_that_says_something(
        text in "((vram|gpus|h2d|fail|pin|driver|lost_after|numa|x)=[0-9a-zA-Z:*+.-]{0,12},?){0,4}.{0,8}"
    ) {
        if let Err(error) = text.parse::<Config>() {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_list_of_visible_devices_names_each_gpu_at_most_once(list in "((GPU-)?[0-9a-f]{0,4},?){0,6}.{0,6}") {
        let uuids: Vec<String> = (0..4).map(|gpu| format!("GPU-{gpu}a{gpu}b")).collect();
        let seen = visible(Some(&list), &uuids);
        let mut once = seen.clone();
        once.sort_unstable();
        once.dedup();
        prop_assert_eq!(once.len(), seen.len());
        prop_assert!(seen.iter().all(|&gpu| gpu < uuids.len()));
    }

    #[test]
    fn any_module_text_has_entries_that_it_really_names(text in "(\\.(entry|global|align|u32|b8)|[a-z_]{1,6}|[({;\\[\\]0-9 \n/]){0,40}") {
        for entry in Image::parse(&text).entries {
            prop_assert!(text.contains(&entry));
        }
    }
}
