//! What may be asked of the module, and what it says otherwise.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use emuv_kernel_core::{
    ledger::{Amount, Ledger},
    setup::{Asked, Config, GIB, Mistake, check_free, check_limits, instances, model},
    text::{Size, Text, vram_info},
};

const RAM_BYTES: u64 = 64 * GIB;

fn plan<'a>(asked: &Asked<'a>) -> Result<Vec<Config>, Mistake<'a>> {
    let mut into = [None; 64];
    let count = instances(asked, RAM_BYTES, &mut into)?;
    Ok(into.into_iter().take(count).flatten().collect())
}

fn message(asked: &Asked<'_>) -> (String, i32) {
    let mistake = plan(asked).expect_err("this is a mistake");
    (mistake.to_string(), mistake.errno())
}

#[test]
fn the_articles_command_line_makes_one_instance() {
    let asked = Asked {
        gpu_model: &["4070"],
        physical_vram_gb: &[12],
        virtual_vram_gb: &[4],
        lazy_allocation: true,
        ..Asked::default()
    };
    let configs = plan(&asked).unwrap();
    assert_eq!(configs.len(), 1);
    let mut buffer = [0; 512];
    let mut text = Text::new(&mut buffer);
    vram_info(&mut text, &configs[0], &Ledger::new(configs[0].limits)).unwrap();
    assert_eq!(
        text.as_str(),
        "GPU: NVIDIA GeForce RTX 4070\nTotal VRAM: 16 GB\nPhysical VRAM: 12 GB\nVirtual VRAM: 4 GB\nAllocation: Lazy\n\
         Physical used: 0 GB (peak 0 GB)\nVirtual used: 0 GB (peak 0 GB)\nHolders: 0\n"
    );
}

#[test]
fn the_articles_four_slices_come_from_one_load() {
    let asked = Asked {
        gpu_model: &["4090"],
        physical_vram_gb: &[6],
        virtual_vram_gb: &[2],
        instance_id: &[1, 2, 3, 4],
        lazy_allocation: true,
    };
    let ids: Vec<u32> = plan(&asked).unwrap().iter().map(|config| config.instance_id).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
}

#[test]
fn nothing_asked_is_no_instance() {
    assert_eq!(plan(&Asked::default()).unwrap(), []);
}

#[test]
fn mistakes_say_which_parameter_and_why() {
    let good = Asked {
        gpu_model: &["4070"],
        physical_vram_gb: &[12],
        virtual_vram_gb: &[4],
        instance_id: &[0],
        lazy_allocation: true,
    };
    let cases: &[(Asked<'_>, &str, i32)] = &[
        (Asked { gpu_model: &["4071"], ..good }, "gpu_model=4071 is not known: give a model such as", 19),
        (Asked { gpu_model: &[""], ..good }, "gpu_model= is not known", 19),
        (Asked { gpu_model: &[], ..good }, "gpu_model is missing", 22),
        (Asked { physical_vram_gb: &[], ..good }, "physical_vram_gb is missing", 22),
        (Asked { physical_vram_gb: &[0], ..good }, "physical_vram_gb is 0", 22),
        (
            Asked { physical_vram_gb: &[13], ..good },
            "physical_vram_gb: 13 GB is more than the NVIDIA GeForce RTX 4070 has (12 GB)",
            34,
        ),
        (Asked { physical_vram_gb: &[u32::MAX], ..good }, "physical_vram_gb: 4294967295 GB is more", 34),
        (
            Asked { virtual_vram_gb: &[65], ..good },
            "virtual_vram_gb: 65 GB is more RAM than this machine has (64 GB)",
            12,
        ),
        (Asked { virtual_vram_gb: &[u32::MAX], ..good }, "virtual_vram_gb: 4294967295 GB is more RAM", 12),
        (Asked { instance_id: &[64], ..good }, "instance_id=64 is too high: at most 63", 34),
        (Asked { instance_id: &[3, 3], ..good }, "instance_id=3 is taken", 16),
        (
            Asked { physical_vram_gb: &[6, 6], instance_id: &[1, 2, 3], ..good },
            "physical_vram_gb has 2 values for 3 instances",
            22,
        ),
        (
            Asked { physical_vram_gb: &[6, 6], instance_id: &[1], ..good },
            "instance_id has 1 values for 2 instances",
            22,
        ),
        (Asked { instance_id: &[0; 65], ..good }, "instance_id=64 is too high", 34),
    ];
    for (asked, beginning, errno) in cases {
        let (text, number) = message(asked);
        assert!(text.starts_with(beginning), "{text}");
        assert_eq!(number, *errno, "{text}");
    }
}

#[test]
fn models_are_found_as_people_write_them() {
    for (asked, name) in [
        ("4070", "NVIDIA GeForce RTX 4070"),
        ("rtx4070", "NVIDIA GeForce RTX 4070"),
        ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti"),
        ("4070ti-super", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("NVIDIA GeForce RTX 5090", "NVIDIA GeForce RTX 5090"),
        ("a100", "NVIDIA A100"),
        ("H200", "NVIDIA H200"),
        ("rtx_a6000", "NVIDIA RTX A6000"),
        ("v100", "Tesla V100"),
    ] {
        assert_eq!(model(asked).map(|gpu| gpu.name), Ok(name), "{asked}");
    }
    for asked in ["", " ", "407", "40700", "geforce", "nvidia", "4070\u{e9}"] {
        assert!(model(asked).is_err(), "{asked}");
    }
}

#[test]
fn no_two_models_share_a_name_and_each_has_vram() {
    for gpu in emuv_uapi::gpus::GPUS {
        assert_eq!((model(gpu.label), model(gpu.name)), (Ok(gpu), Ok(gpu)));
        assert!(gpu.vram_gib.is_sorted() && gpu.most_vram_gib() > 0, "{}", gpu.name);
        assert!(gpu.name.len() < emuv_uapi::abi::NAME_BYTES);
    }
}

#[test]
fn limits_are_checked_alike_when_they_change() {
    let gpu = model("5090").unwrap();
    assert_eq!(check_limits(gpu, Amount::new(32 * GIB, RAM_BYTES), RAM_BYTES), Ok(()));
    assert!(check_limits(gpu, Amount::new(32 * GIB + 1, 0), RAM_BYTES).is_err());
    assert!(check_limits(gpu, Amount::new(1, u64::MAX), RAM_BYTES).is_err());
    assert_eq!(check_free(GIB, GIB), Ok(()));
    let mistake = check_free(6 * GIB, GIB).expect_err("that is more");
    assert_eq!(
        (mistake.to_string().as_str(), mistake.errno()),
        ("lazy_allocation=0: 6 GB of RAM are not free now", 12)
    );
}

#[test]
fn sizes_are_printed_in_whole_units_and_a_full_buffer_keeps_what_fits() {
    let shown = [0, 1, 4096, 512 << 20, 12 * GIB, u64::MAX].map(|bytes| Size(bytes).to_string());
    assert_eq!(shown, ["0 GB", "1 bytes", "4096 bytes", "512 MB", "12 GB", "18446744073709551615 bytes"]);
    let mut buffer = [0; 4];
    let mut text = Text::new(&mut buffer);
    assert!(std::fmt::Write::write_str(&mut text, "ab\u{e9}\u{e9}").is_err());
    assert_eq!(text.as_str(), "ab\u{e9}");
}
