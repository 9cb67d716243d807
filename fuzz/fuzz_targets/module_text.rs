//! A module's text (PTX) as the simulated driver reads it: it names nothing that is not in the text.
#![no_main]

use emuv_simgpu::kernel::image::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let image = Image::parse(text);
    for name in image.entries.iter().chain(image.globals.iter().map(|(name, _)| name)) {
        assert!(text.contains(name.as_str()) && !name.is_empty(), "{name:?}");
    }
});
