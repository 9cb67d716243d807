//! emuV itself in the machine: the real command, its library, the simulated GPU, and slices whose accounts the module keeps. They lie in
//! /emuv, with the C library that they are linked to.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use crate::{
    Test,
    machine::{MIB, Module, attribute, number},
    sys,
};

pub const TESTS: &[Test] = &[
    ("emuv: a slice that root makes is an instance, its node its user's", made),
    ("emuv: programs in a slice share what the module gives them, to the last MiB", shared),
    ("emuv: a slice that shrinks sends what is too much to RAM", shrinks),
    ("emuv: an instance that the module's parameters made becomes a slice's", adopted),
    ("emuv: without the module, files; a slice of the module's is closed then", without),
];

/// Where emuV is.
const HOME: &str = "/emuv";
const SLICES: &str = "/run/emuv";

/// Whether emuV came with the machine.
pub fn is_here() -> bool {
    Path::new(HOME).is_dir()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(format!("{HOME}/emuv"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command.env("EMUV_TEST_PTX", format!("{HOME}/emuv.ptx")).env("EMUV_RAM_FLOOR", "16M").env("PATH", "/");
    command
}

fn output(arguments: &[&str]) -> Output {
    command(arguments).output().expect("emuv starts")
}

/// What it printed; it must succeed.
#[track_caller]
fn emuv(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it complained of; it must fail.
#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert!(!output.status.success(), "{arguments:?} is refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A slice of a simulated GPU of 256 MiB, removed when dropped.
struct Slice(&'static str);

impl Slice {
    fn new(name: &'static str, vram: &str, ram: &str, more: &[&str]) -> Self {
        let always = ["vgpu", "create", name, "--vram", vram, "--ram", ram, "--sim=vram=256M"];
        emuv(&[&always, more].concat());
        Self(name)
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        drop(output(&["vgpu", "delete", "--force", self.0]));
    }
}

/// `on_command`, run in a slice.
struct Program {
    emuv: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    pid: i32,
}

impl Program {
    fn start(slice: &str) -> Self {
        let on_command = format!("{HOME}/on_command");
        let mut command = command(&["run", "-q", "--vgpu", slice, "--", &on_command]);
        let mut emuv = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("emuv starts");
        let (orders, answers) = (emuv.stdin.take().expect("piped"), emuv.stdout.take().expect("piped"));
        // Until it has said its number, what there is to kill is emuv.
        let pid = i32::try_from(emuv.id()).expect("a number");
        let mut program = Self { emuv, orders, answers: BufReader::new(answers), pid };
        let ready = program.answer();
        let pid = ready.strip_prefix("ready ").and_then(|pid| pid.parse().ok());
        program.pid = pid.expect("it is ready");
        program
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        line.trim_end().to_owned()
    }

    fn tell(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").expect("it listens");
        self.answer()
    }

    /// SIGKILL; it is gone when this returns.
    fn kill(self) {
        drop(self);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        sys::kill(self.pid);
        let _ = self.emuv.wait();
    }
}

fn used(instance: u32) -> [u64; 2] {
    ["physical_used_bytes", "virtual_used_bytes"].map(|name| number(instance, name) / MIB)
}

fn made() {
    let _module = Module::load("").expect("it loads");
    let _slice = Slice::new("ml-1", "64M", "32M", &["--user", "1000"]);
    assert_eq!((attribute(1, "label"), attribute(1, "gpu")), ("ml-1".into(), "another GPU".into()));
    assert_eq!((number(1, "physical_bytes"), number(1, "virtual_bytes")), (64 * MIB, 32 * MIB));
    let node = fs::metadata("/dev/emuv1").expect("it is there");
    assert_eq!((node.uid(), node.gid(), node.permissions().mode() & 0o777), (1000, 0, 0o600));
    let definition = fs::read_to_string(format!("{SLICES}/vgpu/ml-1/slice")).expect("it is there");
    assert!(definition.contains("account=module\n"), "{definition}");
    assert!(emuv(&["info", "--sim"]).contains("emuv.ko, 1 instances"));
    assert!(emuv(&["cdi", "generate", "--output", "-"]).contains("\"/dev/emuv1\""));
    let _other = Slice::new("ml-2", "32M", "0", &[]);
    assert_eq!(attribute(2, "label"), "ml-2");
    // Neither user has the other's; root has both.
    for (slice, uid, may) in [("ml-1", 1000, true), ("ml-1", 2000, false), ("ml-2", 1000, false), ("ml-2", 0, true)] {
        let mut run = command(&["run", "-q", "--vgpu", slice, "--", "/emuv/on_command", "info"]);
        let output = run.uid(uid).gid(uid).output().expect("emuv starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), may, "{uid} in {slice}: {errors}");
        assert!(may || errors.contains("may not use"), "{errors}");
    }
    let again = refused(&["vgpu", "create", "ml-3", "--vram", "1M", "--instance", "2", "--sim=vram=256M"]);
    assert!(again.contains("instance 2 is the slice 'ml-2'"), "{again}");
    emuv(&["vgpu", "delete", "ml-1"]);
    assert!(!Path::new("/dev/emuv1").exists() && Path::new("/dev/emuv2").exists());
}

fn shared() {
    let _module = Module::load("").expect("it loads");
    let _slice = Slice::new("ml-1", "64M", "32M", &[]);
    let (mut one, mut two) = (Program::start("ml-1"), Program::start("ml-1"));
    assert_eq!(number(1, "holders"), 2);
    assert!(one.tell("alloc 48").starts_with("ok"));
    assert!(two.tell("alloc 40").starts_with("ok"), "what does not fit in VRAM goes to RAM");
    let [vram, ram] = used(1);
    // What a process has spare is charged too.
    assert!(vram + ram >= 88 && vram <= 64 && ram <= 32, "{vram} and {ram} MiB");
    assert_eq!(two.tell("alloc 16"), "oom");
    assert!(emuv(&["vgpu", "show", "ml-1"]).contains("in use"));
    assert!(refused(&["vgpu", "delete", "ml-1"]).contains("in use by 2 processes"));
    assert_eq!(two.tell("verify"), "ok");
    one.kill();
    let [vram, ram] = used(1);
    assert!((40..=48).contains(&(vram + ram)), "a killed process has given back all: {vram} and {ram} MiB");
    assert!(two.tell("alloc 48").starts_with("ok"));
    assert_eq!(two.tell("verify"), "ok");
    two.kill();
    assert_eq!((used(1), number(1, "holders")), ([0, 0], 0));
}

fn shrinks() {
    let _module = Module::load("").expect("it loads");
    let _slice = Slice::new("ml-1", "64M", "64M", &[]);
    let mut program = Program::start("ml-1");
    assert!(program.tell("alloc 24").starts_with("ok") && program.tell("alloc 24").starts_with("ok"));
    emuv(&["vgpu", "resize", "ml-1", "--vram", "32M"]);
    assert_eq!(number(1, "physical_bytes"), 32 * MIB);
    while used(1)[0] > 32 {
        std::thread::yield_now();
    }
    assert_eq!(program.tell("verify"), "ok");
    emuv(&["vgpu", "disable", "ml-1"]);
    assert_eq!(program.tell("alloc 16"), "oom");
    emuv(&["vgpu", "enable", "ml-1"]);
    assert!(program.tell("alloc 16").starts_with("ok"));
    program.kill();
    assert_eq!(used(1), [0, 0]);
}

fn adopted() {
    let _module =
        Module::load("gpu_model=4090 physical_vram_gb=6 virtual_vram_gb=1 instance_id=1,2").expect("it loads");
    let _slice = Slice::new("ml-1", "64M", "32M", &["--instance", "2", "--user", "1000"]);
    assert_eq!((number(2, "physical_bytes"), number(2, "virtual_bytes")), (64 * MIB, 32 * MIB));
    assert_eq!(number(1, "physical_bytes"), 6 << 30, "the other is as it was");
    let mut program = Program::start("ml-1");
    assert!(program.tell("alloc 48").starts_with("ok"));
    assert!(used(2)[0] >= 48);
    program.kill();
    emuv(&["vgpu", "delete", "ml-1"]);
    assert_eq!(fs::metadata("/dev/emuv2").expect("it stays").uid(), 0, "it is nobody's again");
}

fn without() {
    let by_files = Slice::new("ml-1", "64M", "32M", &[]);
    let module = Module::load("").expect("it loads");
    let _kept = Slice::new("ml-2", "32M", "0", &[]);
    let mut program = Program::start("ml-1");
    assert!(program.tell("alloc 48").starts_with("ok"));
    assert_eq!(used(2), [0, 0], "a slice of the files stays one");
    program.kill();
    drop(by_files);
    // Somebody takes the instance away.
    fs::remove_dir("/sys/kernel/config/emuv/ml-2").expect("nothing is in it");
    drop(module);
    let words = refused(&["run", "-q", "--vgpu", "ml-2", "--", "/emuv/on_command", "info"]);
    assert!(words.contains("/dev/emuv2 is not its node") && words.contains("emuv vgpu enable ml-2"), "{words}");
    let _module = Module::load("").expect("it loads");
    emuv(&["vgpu", "enable", "ml-2"]);
    assert_eq!((attribute(2, "label"), number(2, "physical_bytes")), ("ml-2".into(), 32 * MIB));
    emuv(&["run", "-q", "--vgpu", "ml-2", "--", "/emuv/on_command", "info"]);
    emuv(&["vgpu", "delete", "ml-2"]);
}
