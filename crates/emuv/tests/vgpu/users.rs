//! Two users and an administrator. Only root can play all three; elsewhere these tests pass without a word.

use std::{
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::{Command, Output},
};

use crate::place::{Place, stderr};

const ANN: u32 = 41_001;
const BEN: u32 = 41_002;
const TEAM: u32 = 41_900;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A copy of emuV that every user may run, wherever the build is.
fn installed(place: &Place) -> PathBuf {
    use std::{fs, os::unix::fs::PermissionsExt};
    let folder = place.path("bin");
    fs::create_dir(&folder).unwrap();
    let beside = std::path::Path::new(env!("CARGO_BIN_EXE_emuv")).parent().unwrap();
    fs::copy(env!("CARGO_BIN_EXE_emuv"), folder.join("emuv")).unwrap();
    for name in ["libemuv_shim.so", "libemuv_simgpu.so"] {
        let from = [beside.join("deps").join(name), beside.join(name)].into_iter().find(|path| path.is_file()).unwrap();
        fs::copy(from, folder.join(name)).unwrap();
    }
    fs::copy(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emuv.ptx"), folder.join("emuv.ptx"))
        .unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Two slices, Ann's and Ben's; what each of them does.
struct Users {
    place: Place,
    bin: PathBuf,
}

impl Users {
    fn new() -> Self {
        let place = Place::new();
        let bin = installed(&place);
        for (name, uid) in [("ann", ANN), ("ben", BEN)] {
            place.vgpu(&[
                "create",
                name,
                "--vram",
                "64M",
                "--ram",
                "16M",
                "--sim=vram=256M",
                "--user",
                &uid.to_string(),
            ]);
        }
        Self { place, bin }
    }

    fn command(&self, uid: u32, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let own = self.place.path(&format!("own-{uid}"));
        if !own.exists() {
            std::fs::create_dir(&own).unwrap();
            std::os::unix::fs::chown(&own, Some(uid), Some(uid)).unwrap();
        }
        let mut command = Command::new(program);
        command.env_clear().args(arguments).uid(uid).gid(uid).current_dir("/");
        command.env("PATH", "/usr/bin:/bin").env("EMUV_STATE_DIR", self.place.state()).env("XDG_RUNTIME_DIR", own);
        command.env("EMUV_TEST_PTX", self.bin.join("emuv.ptx")).env("EMUV_RAM_FLOOR", "16M");
        command
    }

    fn emuv(&self, uid: u32, arguments: &[&str]) -> Output {
        self.command(uid, self.bin.join("emuv"), arguments).output().unwrap()
    }

    fn in_slice(&self, uid: u32, slice: &str, orders: &[&str]) -> Output {
        let program = self.place.run_command(slice, &[], "on_command");
        let program = program.get_args().last().unwrap().to_str().unwrap().to_owned();
        self.emuv(uid, &[&["run", "-q", "--vgpu", slice, "--", &program], orders].concat())
    }
}

#[test]
fn each_user_uses_the_own_slice_and_sees_of_the_others_what_list_shows() {
    if !is_root() {
        return;
    }
    let users = Users::new();
    let output = users.in_slice(ANN, "ann", &["alloc 40", "info", "verify"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let refused = users.in_slice(BEN, "ann", &["info"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("this user may not use the slice 'ann'"), "{}", stderr(&refused));
    // Ann's program runs while Ben looks.
    let program = users.place.run_command("ann", &[], "on_command");
    let program = program.get_args().last().unwrap().to_str().unwrap().to_owned();
    let emuv = users.bin.join("emuv");
    let mut ann =
        crate::place::Obedient::start(users.command(ANN, emuv, &["run", "-q", "--vgpu", "ann", "--", &program]));
    assert_eq!(ann.tell("alloc 20"), "ok 0");
    let seen = users.emuv(BEN, &["vgpu", "list"]);
    let text = String::from_utf8_lossy(&seen.stdout);
    let row =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row("ann")[7..], ["-", "-", "-", "enabled"], "{text}");
    assert_eq!(row("ben")[7..], ["0", "B", "0", "B", "0", "enabled"], "{text}");
    let shown = users.emuv(BEN, &["vgpu", "show", "ann"]);
    assert!(!String::from_utf8_lossy(&shown.stdout).contains("process"), "{}", String::from_utf8_lossy(&shown.stdout));
    ann.end();
}

#[test]
fn a_user_changes_neither_another_slice_nor_the_own_limit() {
    if !is_root() {
        return;
    }
    let users = Users::new();
    for arguments in [
        &["vgpu", "resize", "ben", "--vram", "128M"][..],
        &["vgpu", "resize", "ann", "--vram", "1M"],
        &["vgpu", "delete", "ann", "--force"],
        &["vgpu", "disable", "ann"],
        &["vgpu", "create", "mine", "--vram", "100M", "--sim=vram=256M"],
    ] {
        let output = users.emuv(BEN, arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    }
    // By hand.
    let vgpu = users.place.state().join("vgpu");
    for (script, path) in [
        ("echo vram_bytes=1 >> \"$1\"", "ben/slice"),
        ("mv \"$1\" \"$1.x\"", "ben/slice"),
        ("mv \"$1\" \"$1.x\"", "ben"),
        ("rm -f \"$1\" && test ! -e \"$1\"", "ben/use/vram"),
        ("cat \"$1\"", "ann/use/processes"),
        ("echo x >> \"$1\"", "ann/use/vram"),
        ("rm -f \"$1\" && test ! -e \"$1\"", "ann/use/vram"),
    ] {
        let path = vgpu.join(path);
        let output = users.command(BEN, "sh", &["-c", script, "sh", path.to_str().unwrap()]).output().unwrap();
        assert!(!output.status.success(), "{script} {}", path.display());
    }
    // What a user may write to changes nothing either.
    let program = users.place.run_command("ben", &[], "on_command");
    let program = program.get_args().last().unwrap().to_str().unwrap().to_owned();
    let emuv = users.bin.join("emuv");
    let mut ben =
        crate::place::Obedient::start(users.command(BEN, emuv, &["run", "-q", "--vgpu", "ben", "--", &program]));
    assert_eq!(ben.tell("alloc 60"), "ok 0");
    for file in ["vram", "ram", "processes"] {
        let path = vgpu.join("ben/use").join(file);
        let script = "head -c 100000 /dev/zero > \"$1\"; : > \"$1\"";
        assert!(users.command(BEN, "sh", &["-c", script, "sh", path.to_str().unwrap()]).status().unwrap().success());
    }
    assert_eq!(ben.tell("alloc 40"), "oom");
    let output = users.in_slice(BEN, "ben", &["alloc 40"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "oom\n", "{}", stderr(&output));
    ben.end();
}

#[test]
fn a_group_may_use_a_slice_together() {
    if !is_root() {
        return;
    }
    let users = Users::new();
    let (uid, gid) = (ANN.to_string(), TEAM.to_string());
    users.place.vgpu(&["create", "team", "--vram", "64M", "--sim=vram=256M", "--user", &uid, "--group", &gid]);
    let data = std::fs::metadata(users.place.state().join("vgpu/team/use/vram")).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o777), (ANN, TEAM, 0o660));
    let mut member = users.command(BEN, users.bin.join("emuv"), &["run", "--vgpu", "team", "--", "true"]);
    assert!(!member.output().unwrap().status.success(), "Ben is not in it");
    let output = member.gid(TEAM).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}
