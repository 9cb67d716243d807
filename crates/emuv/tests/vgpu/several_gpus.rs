//! Slices on a machine with several GPUs, and when one of them is gone.

use std::{fs, process::Stdio};

use crate::place::{Place, stderr};

const GPU_0: &str = "GPU-e5656d75-562d-7340-696d-806770750000";
const GPU_1: &str = "GPU-34656d75-562d-7340-696d-806770750001";

/// One slice on each of two GPUs.
fn on_each_gpu() -> Place {
    let place = Place::new();
    for (name, gpu) in [("first", "0"), ("second", "1")] {
        place.vgpu(&["create", name, "--vram", "64M", "--ram", "32M", "--sim=vram=256M,gpus=2", "--gpu", gpu]);
    }
    place
}

#[test]
fn a_slice_on_each_gpu_has_its_own_quota() {
    let place = on_each_gpu();
    let (mut one, mut two) = (place.start("first"), place.start("second"));
    assert_eq!(one.tell("alloc 80"), "ok 0");
    assert_eq!(two.tell("alloc 90"), "ok 0", "what the other GPU's slice holds is not its");
    assert_eq!(one.tell("alloc 30"), "oom");
    for (name, program, held) in [("first", &mut one, 80), ("second", &mut two, 90)] {
        let nvml = program.ask("nvml");
        assert_eq!((nvml[0], nvml[1], nvml[3]), (1, 96, 1), "{name}: one GPU, the slice's total, one process");
        let (vram, ram) = place.used(name);
        assert!(vram <= 64 && ram <= 32 && vram + ram >= held, "{name}: {vram} + {ram} MiB");
        assert!(program.tell("verify").starts_with("ok"));
    }
    one.kill();
    assert_eq!(place.used("first"), (0, 0));
    assert!(two.tell("verify").starts_with("ok"));
    two.end();
}

#[test]
fn of_gpus_that_differ_each_has_room_for_what_it_has() {
    let place = Place::new();
    let create = |name: &str, vram: &str, gpu: &str| {
        place.output(&["vgpu", "create", name, "--vram", vram, "--sim=vram=256M/64M,gpus=2", "--gpu", gpu])
    };
    let refused = create("large", "128M", "1");
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("has 64 MiB of VRAM"), "{}", stderr(&refused));
    assert!(create("large", "128M", "0").status.success());
    assert!(create("small", "48M", "1").status.success());
}

#[test]
fn of_a_slice_whose_gpu_is_gone_it_is_said_and_the_others_go_on() {
    let place = on_each_gpu();
    // The machine comes up again with one GPU fewer.
    for name in ["first", "second"] {
        let definition = place.state().join("vgpu").join(name).join("slice");
        let text = fs::read_to_string(&definition).unwrap();
        fs::write(&definition, text.replace("gpus=2", "gpus=1")).unwrap();
    }
    let mut one = place.start("first");
    let gone = place.run_command("second", &[], "on_command").stdin(Stdio::null()).output().unwrap();
    assert_eq!(gone.status.code(), Some(2));
    let said = stderr(&gone);
    for words in ["slice 'second'", GPU_1, GPU_0, "emuv vgpu delete second"] {
        assert!(said.contains(words), "no '{words}' in: {said}");
    }
    assert_eq!(one.tell("alloc 80"), "ok 0");
    assert!(one.tell("verify").starts_with("ok"));
    one.end();
    assert!(place.vgpu(&["list"]).contains("second"), "it is still there to be deleted");
    place.vgpu(&["delete", "second"]);
}
