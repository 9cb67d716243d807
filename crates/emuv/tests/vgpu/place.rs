//! A place with a registry of its own, and programs that run in its slices.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    sync::LazyLock,
};

use emuv_state::slices::{Listing, Registry};
use tempfile::TempDir;

/// The compiled programs, beside a folder that plays the part of the installed driver.
static PROGRAMS: LazyLock<TempDir> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    // Other users run them too.
    open_to_all(root.path());
    let driver = root.path().join("driver");
    fs::create_dir(&driver).unwrap();
    let beside = Path::new(env!("CARGO_BIN_EXE_emuv")).parent().unwrap();
    let simulated = ["deps", "."].map(|folder| beside.join(folder).join("libemuv_simgpu.so"));
    let simulated = simulated.into_iter().find(|path| path.is_file()).expect("build the workspace first");
    std::os::unix::fs::symlink(simulated, driver.join("libcuda.so")).unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs");
    for name in ["on_command", "churn", "busy"] {
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"])
            .arg(root.path().join(name))
            .arg(sources.join(format!("{name}.c")));
        cc.arg("-L").arg(&driver).args(["-lcuda", "-ldl", "-lpthread"]);
        let output = cc.output().expect("a C compiler named cc");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    root
});

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// One of the compiled programs.
pub fn program(name: &str) -> PathBuf {
    PROGRAMS.path().join(name)
}

pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        open_to_all(place.0.path());
        fs::create_dir(place.path("state")).unwrap();
        fs::write(place.path("emuv.toml"), "").unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emuv"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["EMUV_", "CUDA_", "LD_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emuv.ptx");
        command.args(arguments).env("EMUV_STATE_DIR", self.state()).env("EMUV_CONFIG", self.path("emuv.toml"));
        command.env("EMUV_TEST_PTX", kernels).env("EMUV_RAM_FLOOR", "16M").stdin(Stdio::null());
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Does `emuv vgpu ...`, which must succeed; gives what it printed.
    pub fn vgpu(&self, arguments: &[&str]) -> String {
        let output = self.output(&[&["vgpu"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A slice of these shares in MiB, of a simulated GPU of 256.
    pub fn slice(&self, name: &str, vram_mib: u64, ram_mib: u64) {
        let (vram, ram) = (format!("{vram_mib}M"), format!("{ram_mib}M"));
        self.vgpu(&["create", name, "--vram", &vram, "--ram", &ram, "--sim=vram=256M"]);
    }

    /// What is charged in a slice, in MiB of VRAM and RAM.
    pub fn used(&self, name: &str) -> (u64, u64) {
        let (usage, _) = self.listing(name).used.unwrap();
        (usage.vram >> 20, usage.ram >> 20)
    }

    pub fn listing(&self, name: &str) -> Listing {
        Registry::of(&self.state()).listing(name).unwrap()
    }

    /// Runs a program in a slice until it ends.
    pub fn run(&self, slice: &str, program: &str, arguments: &[&str]) -> Output {
        self.run_command(slice, &[], program).args(arguments).output().unwrap()
    }

    /// `emuv run` with that program.
    pub fn run_command(&self, slice: &str, flags: &[&str], program: &str) -> Command {
        let mut command = self.command(&["run", "-q", "--vgpu", slice]);
        command.args(flags).arg("--").arg(self::program(program));
        command
    }

    /// Starts `on_command` in a slice.
    pub fn start(&self, slice: &str) -> Obedient {
        Obedient::start(self.run_command(slice, &[], "on_command"))
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A program that does what it is told.
pub struct Obedient {
    emuv: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The program itself, which emuv started.
    pub pid: u32,
}

impl Obedient {
    pub fn start(mut command: Command) -> Self {
        let mut emuv = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (emuv.stdin.take().unwrap(), BufReader::new(emuv.stdout.take().unwrap()));
        let mut started = Self { emuv, orders, answers, pid: 0 };
        let ready = started.answer();
        started.pid = ready.strip_prefix("ready ").unwrap_or_else(|| panic!("'{ready}'")).parse().unwrap();
        started
    }

    pub fn tell(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        self.answer()
    }

    /// The numbers of an answer.
    pub fn ask(&mut self, order: &str) -> Vec<u64> {
        self.tell(order).split(' ').map(|word| word.parse().unwrap()).collect()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Kills the program; it is gone when this returns.
    pub fn kill(mut self) {
        kill(self.pid);
        self.emuv.wait().unwrap();
    }

    /// Ends it as programs end.
    pub fn end(self) {
        let Self { mut emuv, orders, .. } = self;
        drop(orders);
        assert!(emuv.wait().unwrap().success());
    }
}

/// SIGKILL.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Waits for something that another process does by itself.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed().as_secs() < 120, "never so: {what}");
        std::thread::yield_now();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
