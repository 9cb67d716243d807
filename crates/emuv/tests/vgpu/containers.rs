//! Slices in containers: what `emuv cdi` writes is applied as an engine applies it, in a mount namespace with a root
//! folder of its own, and programs there are in the slice.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::place::{Obedient, Place, program, stderr};

/// Where the specification puts the simulated driver.
const SIMULATED: &str = "/opt/emuv/sim/libemuv_simgpu.so";

/// A container's root folder: the machine's own programs and libraries, and an `/etc` and `/opt` that are empty.
struct Container {
    /// A driver is installed in it, as NVIDIA's toolkit does, and emuV is not told where.
    driver: bool,
    root: PathBuf,
    edits: Vec<Value>,
}

impl Container {
    /// With this device of the place's specification.
    fn new(place: &Place, device: &str) -> Self {
        let spec: Value = serde_json::from_slice(&fs::read(place.path("cdi/emuv.json")).unwrap()).unwrap();
        let mut devices = spec["devices"].as_array().unwrap().iter();
        let device = devices.find(|found| found["name"] == device).expect("the device");
        let edits = vec![spec["containerEdits"].clone(), device["containerEdits"].clone()];
        let root = place.path(&format!("root-{}", device["name"].as_str().unwrap()));
        Self { driver: false, root, edits }
    }

    fn all<'s>(&'s self, list: &'s str) -> impl Iterator<Item = &'s Value> {
        self.edits.iter().filter_map(move |edits| edits[list].as_array()).flatten()
    }

    /// Runs a program in it, with nothing of our environment.
    fn command(&self, program: &Path) -> Command {
        let mut script = String::from("set -e\n");
        let root = self.root.display();
        let mut bind = |from: &str, to: &str, read_only: bool| {
            let to = format!("{root}{to}");
            let make = if Path::new(from).is_dir() {
                format!("mkdir -p '{to}'")
            } else {
                format!("mkdir -p \"$(dirname '{to}')\"; touch '{to}'")
            };
            script.push_str(&format!("{make}\nmount --rbind '{from}' '{to}'\n"));
            if read_only {
                script.push_str(&format!("mount -o remount,bind,ro '{to}'\n"));
            }
        };
        for folder in ["/usr", "/lib", "/lib64", "/bin", "/proc", "/dev"] {
            if Path::new(folder).is_dir() {
                bind(folder, folder, false);
            }
        }
        bind(program.to_str().unwrap(), "/program", true);
        bind(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/emuv.ptx"), "/emuv.ptx", true);
        for mount in self.all("mounts") {
            let text = |key: &str| mount[key].as_str().unwrap();
            let read_only = mount["options"].as_array().unwrap().iter().any(|option| option == "ro");
            bind(text("hostPath"), text("containerPath"), read_only);
        }
        let mut settings = vec!["EMUV_RAM_FLOOR=16M".to_owned(), "EMUV_TEST_PTX=/emuv.ptx".to_owned()];
        let mut left_out = None;
        if self.driver {
            let simulated = self.all("mounts").find(|mount| mount["containerPath"] == SIMULATED).expect("the driver");
            for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
                bind(simulated["hostPath"].as_str().unwrap(), &format!("/driver/{name}"), true);
            }
            settings.push("LD_LIBRARY_PATH=/driver".to_owned());
            left_out = Some(["EMUV_REAL_", "LD_LIBRARY_PATH"]);
        }
        // The floor is only so low for the sake of small machines.
        let variables = self.all("env").map(|entry| entry.as_str().unwrap().to_owned());
        let known = |entry: &String| left_out.iter().flatten().all(|left_out| !entry.starts_with(left_out));
        let variables = variables.filter(known).chain(settings).map(|entry| format!("'{entry}'"));
        let variables: Vec<_> = variables.collect();
        script.push_str(&format!("exec chroot '{root}' /usr/bin/env -i {} /program \"$@\"\n", variables.join(" ")));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"]);
        command.stdin(Stdio::null());
        command
    }

    fn start(&self) -> Obedient {
        Obedient::start(self.command(&program("on_command")))
    }
}

/// Whether this machine lets us have a mount namespace; some that run tests do not.
fn possible() -> bool {
    let mut command = Command::new("unshare");
    let tried = command.args(["--mount", "--map-root-user", "mount", "--bind", "/usr", "/usr"]).output();
    let possible = tried.is_ok_and(|output| output.status.success());
    if !possible {
        let _ = writeln!(std::io::stderr(), "skipped: no mount namespaces here");
    }
    possible
}

fn generate(place: &Place) {
    let path = place.path("cdi/emuv.json");
    let output = place.output(&["cdi", "generate", "--output", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn every_program_of_a_container_is_in_its_slice() {
    let place = Place::new();
    place.slice("ml-1", 64, 32);
    place.slice("ml-2", 32, 16);
    generate(&place);
    if !possible() {
        return;
    }
    let (container, other) = (Container::new(&place, "ml-1"), Container::new(&place, "ml-2"));
    let mut first = container.start();
    assert_eq!(first.ask("info")[1], 96, "the slice's total, in MiB");
    assert!(first.tell("alloc 40").starts_with("ok"));
    assert!(place.used("ml-1").0 >= 40, "the host sees what is charged in the container");

    let mut second = container.start();
    assert_eq!(second.ask("info")[1], 96);
    assert!(second.tell("alloc 40").starts_with("ok"), "a part of it in RAM");
    assert_eq!(second.tell("alloc 40"), "oom", "the quota is that of both");
    assert_eq!((first.tell("verify"), second.tell("verify")), ("ok".to_owned(), "ok".to_owned()));
    let nvml = first.ask("nvml");
    assert_eq!((nvml[0], nvml[1], nvml[3]), (1, 96, 2), "GPUs, total and processes by NVML");

    let mut stranger = other.start();
    assert_eq!(stranger.ask("info")[1], 48);
    assert!(stranger.tell("alloc 20").starts_with("ok"));
    assert!((20..32).contains(&place.used("ml-2").0), "each is charged to its own");

    place.vgpu(&["resize", "ml-1", "--vram", "96M"]);
    assert!(second.tell("alloc 24").starts_with("ok"), "more is had at once");
    first.end();
    second.end();
    stranger.end();
    assert_eq!((place.used("ml-1"), place.used("ml-2")), ((0, 0), (0, 0)));
}

#[test]
fn a_driver_that_comes_with_the_container_is_found_behind_emuv() {
    let place = Place::new();
    place.slice("ml-1", 64, 32);
    generate(&place);
    if !possible() {
        return;
    }
    let mut container = Container::new(&place, "ml-1");
    container.driver = true;
    let mut program = container.start();
    assert_eq!(program.ask("info")[1], 96);
    assert!(program.tell("alloc 80").starts_with("ok"));
    let nvml = program.ask("nvml");
    assert_eq!((nvml[0], nvml[1], nvml[3]), (1, 96, 1), "GPUs, total and processes by NVML, opened by name");
    program.end();
}

#[test]
fn a_container_cannot_write_to_its_definition() {
    let place = Place::new();
    place.slice("ml-1", 64, 32);
    generate(&place);
    if !possible() {
        return;
    }
    let container = Container::new(&place, "ml-1");
    let tried = |line: &str| {
        let output = container.command(Path::new("/bin/sh")).args(["-c", line]).output().unwrap();
        (output.status.success(), stderr(&output))
    };
    assert!(tried("test -f /run/emuv/vgpu/ml-1/slice && test -w /run/emuv/vgpu/ml-1/use/vram").0);
    for line in [
        "echo vram_bytes=99999999999 > /run/emuv/vgpu/ml-1/slice",
        "rm /run/emuv/vgpu/ml-1/slice",
        "echo /tmp > /opt/emuv/emuv-slice",
        "echo > /etc/ld.so.preload",
    ] {
        let (did, words) = tried(line);
        assert!(!did && words.contains("Read-only"), "{line}: {words}");
    }
}

#[test]
fn the_list_says_what_the_specification_does_not_know_yet() {
    let place = Place::new();
    place.slice("ml-1", 64, 32);
    let folder = place.path("cdi");
    let list = || place.output(&["cdi", "list", "--dir", folder.to_str().unwrap()]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&list().stdout);
    assert!(said.starts_with("emuv.dev/vgpu=ml-1  64 MiB VRAM, 32 MiB RAM of GPU-"), "{said}");
    assert!(said.contains("not generated yet"), "{said}");
    let file = folder.join("emuv.dev-vgpu.json");
    let output = place.output(&["cdi", "generate", "--output", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!text(&list().stdout).contains("not generated"));
    place.vgpu(&["delete", "ml-1"]);
    let after = list();
    assert!(after.stdout.is_empty() && stderr(&after).contains("no slice 'ml-1' any more"), "{}", stderr(&after));
}

#[test]
fn mistakes_are_said_in_one_line() {
    let place = Place::new();
    let refused = |arguments: &[&str], code: i32, words: &str| {
        let output = place.output(&[&["cdi", "generate"], arguments].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    };
    refused(&["--output", "-"], 1, "'emuv vgpu create' makes one");
    place.slice("ml-1", 64, 32);
    refused(&["--output", "/tmp/emuv.yaml"], 2, "--output: engines read files whose names end with .json");
    refused(&["--nvidia", "/nonexistent.json"], 2, "--nvidia: /nonexistent.json: ");
    refused(&["--output", "/proc/nonexistent/x.json"], 2, "--output: /proc/nonexistent/x.json: ");
}
