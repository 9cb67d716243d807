//! Programs in one slice: one quota for all of them, and what they see of it.

use crate::place::{Place, kill, stderr, until};

#[test]
fn two_programs_share_one_quota_and_neither_can_have_more() {
    let place = Place::new();
    place.slice("ml-1", 64, 0);
    let (mut one, mut two) = (place.start("ml-1"), place.start("ml-1"));
    assert_eq!(one.tell("alloc 40"), "ok 0");
    assert_eq!(two.tell("alloc 40"), "oom");
    assert_eq!(two.tell("alloc 20"), "ok 0");
    assert_eq!(two.tell("alloc 6"), "oom");
    assert_eq!(two.tell("huge"), "oom");
    assert_eq!(one.tell("free 0"), "ok");
    assert_eq!(two.tell("async 40"), "ok 1");
    assert_eq!((one.tell("verify"), two.tell("verify")), ("ok".to_owned(), "ok".to_owned()));
    let (vram, ram) = place.used("ml-1");
    assert!((60..=64).contains(&vram) && ram == 0, "{vram} {ram}");
    one.end();
    two.end();
    assert_eq!(place.used("ml-1"), (0, 0));
}

#[test]
fn what_does_not_fit_in_the_slices_vram_goes_to_its_ram_and_no_further() {
    let place = Place::new();
    place.slice("ml-1", 32, 32);
    let (mut one, mut two) = (place.start("ml-1"), place.start("ml-1"));
    assert_eq!(one.tell("alloc 20"), "ok 0");
    assert_eq!(two.tell("alloc 30"), "ok 0");
    assert_eq!(one.tell("alloc 20"), "oom");
    assert_eq!((one.tell("verify"), two.tell("verify")), ("ok".to_owned(), "ok".to_owned()));
    let usage = place.listing("ml-1").used.unwrap().0;
    assert!(usage.vram <= 32 << 20 && usage.ram <= 32 << 20, "{usage:?}");
    assert!(usage.ram >= 16 << 20, "{usage:?}");
    one.kill();
    assert_eq!(two.tell("alloc 12"), "ok 1");
    two.end();
}

#[test]
fn memory_that_emuv_only_accounts_counts_as_well() {
    let place = Place::new();
    place.slice("ml-1", 32, 64);
    let (mut one, mut two) = (place.start("ml-1"), place.start("ml-1"));
    assert_eq!(one.tell("array 24"), "ok 0");
    assert_eq!(two.tell("array 10"), "oom");
    assert_eq!(one.tell("free 0"), "ok");
    assert_eq!(two.tell("array 8"), "ok 0");
    one.end();
    two.end();
}

#[test]
fn a_killed_program_has_given_everything_back_when_it_is_gone() {
    let place = Place::new();
    place.slice("ml-1", 64, 64);
    let mut two = place.start("ml-1");
    for round in 0..3 {
        let mut one = place.start("ml-1");
        assert_eq!(one.tell("alloc 90"), "ok 0");
        assert_eq!(two.tell("alloc 90"), "oom");
        one.kill();
        assert_eq!(two.tell("alloc 90"), format!("ok {round}"));
        assert_eq!(two.tell(&format!("free {round}")), "ok");
    }
    two.end();
    let (usage, processes) = place.listing("ml-1").used.unwrap();
    assert_eq!((usage.vram, usage.ram, processes.len()), (0, 0, 0));
    place.vgpu(&["delete", "ml-1"]);
}

#[test]
fn a_forked_child_that_outlives_its_parent_holds_nothing() {
    let place = Place::new();
    place.slice("ml-1", 64, 0);
    let mut one = place.start("ml-1");
    assert_eq!(one.tell("alloc 40"), "ok 0");
    let child: u32 = one.tell("fork").parse().unwrap();
    one.kill();
    assert_eq!(place.used("ml-1"), (0, 0));
    assert_eq!(place.listing("ml-1").used.unwrap().1.len(), 0);
    kill(child);
}

#[test]
fn inside_everything_shows_the_slice_only() {
    let place = Place::new();
    place.vgpu(&["create", "a", "--vram", "64M", "--ram", "32M", "--sim=vram=256M,gpus=2", "--gpu", "1"]);
    place.vgpu(&["create", "b", "--vram", "64M", "--sim=vram=256M,gpus=2", "--gpu", "1"]);
    let (mut one, mut two, mut other) = (place.start("a"), place.start("a"), place.start("b"));
    assert_eq!(other.tell("alloc 40"), "ok 0");
    assert_eq!(one.tell("alloc 30"), "ok 0");
    assert_eq!(two.tell("alloc 2"), "ok 0");
    let info = two.ask("info");
    assert_eq!(info[1], 96, "the total");
    assert!((62..=64).contains(&info[0]), "free: {}", info[0]);
    let nvml = one.ask("nvml");
    assert_eq!((nvml[0], nvml[1]), (1, 96), "one GPU, the slice's total");
    assert!((62..=64).contains(&nvml[2]), "free: {}", nvml[2]);
    assert_eq!(nvml[3], 2, "the slice's two processes");
    assert!((30..=34).contains(&nvml[4]), "this one's: {}", nvml[4]);
    for program in [one, two, other] {
        program.end();
    }
}

#[test]
fn growing_is_used_at_once() {
    let place = Place::new();
    place.slice("ml-1", 32, 0);
    let mut one = place.start("ml-1");
    assert_eq!(one.tell("alloc 40"), "oom");
    place.vgpu(&["resize", "ml-1", "--vram", "64M"]);
    assert_eq!(one.tell("alloc 40"), "ok 0");
    until("the total follows", || one.ask("info")[1] == 64);
    one.end();
}

/// A limit that falls is kept to by all policies, and no byte is lost.
fn shrinks(policy: &[&str]) {
    let place = Place::new();
    place.slice("ml-1", 96, 128);
    let programs = [(); 2].map(|()| crate::place::Obedient::start(place.run_command("ml-1", policy, "on_command")));
    let [mut one, mut two] = programs;
    for program in [&mut one, &mut two] {
        for number in 0..5 {
            assert_eq!(program.tell("alloc 8"), format!("ok {number}"));
        }
    }
    place.vgpu(&["resize", "ml-1", "--vram", "40M"]);
    until("VRAM is as small as it is to be", || place.used("ml-1").0 <= 40);
    assert!(place.used("ml-1").1 >= 40, "{:?}", place.used("ml-1"));
    assert_eq!((one.tell("verify"), two.tell("verify")), ("ok".to_owned(), "ok".to_owned()));
    let usage = place.listing("ml-1").used.unwrap().0;
    assert!(usage.vram <= 40 << 20 && usage.ram <= 128 << 20, "{usage:?}");
    // And back. Where there is room for it now is the policy's to say.
    place.vgpu(&["resize", "ml-1", "--vram", "96M"]);
    assert_eq!(one.tell("alloc 20"), "ok 5");
    assert_eq!((one.tell("verify"), two.tell("verify")), ("ok".to_owned(), "ok".to_owned()));
    one.end();
    two.end();
    assert_eq!(place.used("ml-1"), (0, 0));
}

#[test]
fn shrinking_sends_data_to_ram_while_programs_run() {
    shrinks(&[]);
}

#[test]
fn shrinking_sends_data_to_ram_when_nothing_else_moves() {
    shrinks(&["--policy", "static"]);
}

#[test]
fn shrinking_sends_data_to_ram_while_everything_moves_at_random() {
    shrinks(&["--policy", "torture:3"]);
}

#[test]
fn shrinking_without_ram_stops_all_growth_until_memory_is_given_back() {
    let place = Place::new();
    place.slice("ml-1", 64, 0);
    let mut one = place.start("ml-1");
    assert_eq!((one.tell("alloc 20"), one.tell("alloc 20")), ("ok 0".to_owned(), "ok 1".to_owned()));
    let output = place.output(&["vgpu", "resize", "ml-1", "--vram", "32M"]);
    assert!(stderr(&output).contains("nobody gets more until it is 32 MiB or less"), "{}", stderr(&output));
    assert_eq!(one.tell("alloc 2"), "oom");
    assert_eq!(one.tell("free 0"), "ok");
    assert_eq!(one.tell("alloc 8"), "ok 2");
    assert_eq!(one.tell("verify"), "ok");
    one.end();
}

#[test]
fn no_variable_gives_a_program_more_than_its_slice() {
    let place = Place::new();
    place.slice("ml-1", 32, 0);
    let mut command = place.command(&["run", "-q", "--vgpu", "ml-1", "--", "env"]);
    // What a tenant may set for its own programs.
    let set = ["-u", "EMUV_VGPU", "EMUV_VRAM=1G", "EMUV_RAM=1G", "EMUV_DISABLE=1", "CUDA_DEVICE_MEMORY_LIMIT=1g"];
    command.args(set).args(["EMUV_STATE_DIR=/nonexistent", "EMUV_RUN_DIR=/nonexistent"]);
    command.args(["EMUV_POLICY=none of them", "EMUV_RAM_FLOOR=much", "EMUV_REPORT=x"]);
    let program = place.run_command("ml-1", &[], "on_command");
    command.arg(program.get_args().last().unwrap());
    let mut one = crate::place::Obedient::start(command);
    assert_eq!(one.ask("info")[1], 32);
    assert_eq!(one.tell("alloc 40"), "oom");
    assert_eq!(one.tell("alloc 20"), "ok 0");
    one.end();
}

#[test]
fn a_slice_that_is_removed_or_disabled_gives_nothing_more() {
    let place = Place::new();
    place.slice("ml-1", 64, 0);
    let mut one = place.start("ml-1");
    assert_eq!(one.tell("alloc 20"), "ok 0");
    place.vgpu(&["disable", "ml-1"]);
    assert_eq!(one.tell("alloc 20"), "oom");
    let refused = place.run("ml-1", "on_command", &["info"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("emuv vgpu enable ml-1"), "{}", stderr(&refused));
    place.vgpu(&["enable", "ml-1"]);
    assert_eq!(one.tell("alloc 20"), "ok 1");
    assert_eq!(place.output(&["vgpu", "delete", "ml-1"]).status.code(), Some(1));
    place.vgpu(&["delete", "--force", "ml-1"]);
    assert_eq!(one.tell("alloc 2"), "oom");
    assert_eq!(one.tell("verify"), "ok");
    one.end();
}
