//! The documents' own commands: every block that is marked as a shell's (```sh) runs as it is written, on the simulated GPU.
#![allow(clippy::unwrap_used, clippy::expect_used)] // In the functions that the tests share.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The blocks of a document, as one script: they are for one shell.
fn script(document: &str) -> String {
    let text = fs::read_to_string(docs().join(document)).unwrap();
    let blocks: Vec<_> = text.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect();
    assert!(!blocks.is_empty(), "{document} has no blocks to run");
    blocks.join("\n") + "\n"
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// Runs a document's blocks in a folder of their own, and gives what they print. `emuv` is this build's; where a document
/// makes slices of the machine's GPU, that is a simulated one of 24 GiB.
fn run(document: &str) -> String {
    let place = tempfile::tempdir().unwrap();
    let (bin, home) = (place.path().join("bin"), place.path().join("home"));
    for folder in [&bin, &home, &place.path().join("state")] {
        fs::create_dir(folder).unwrap();
    }
    let emuv = env!("CARGO_BIN_EXE_emuv");
    let create =
        "[ \"$1 $2\" = 'vgpu create' ] && [ -z \"$EMUV_SIM\" ] && shift 2 && set -- vgpu create --sim=vram=24G \"$@\"";
    write_program(&bin.join("emuv"), &format!("#!/bin/sh\n{create}\nexec {emuv} \"$@\"\n"));
    // What the reader has of their own.
    fs::write(home.join("train.py"), "print('trained')\n").unwrap();

    let mut shell = Command::new("timeout");
    shell.args(["--kill-after=5", "600", "bash", "-euo", "pipefail"]).current_dir(&home);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("EMUV_") || name.starts_with("CUDA_")) {
            shell.env_remove(name);
        }
    }
    let path = std::env::var("PATH").unwrap();
    shell
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("HOME", &home)
        .env("EMUV_STATE_DIR", place.path().join("state"))
        .env("EMUV_CONFIG", place.path().join("emuv.toml"));
    fs::write(place.path().join("emuv.toml"), "").unwrap();
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script(document).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{document}: {}\n{printed}\n{said}", output.status);
    printed
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_tutorial_runs_as_written() {
    let printed = run("tutorial.md");
    for expected in
        ["as expected: exit code", "the GPU has 384 MiB", "192 MiB used", "moved in", "Card: 64 MiB", "tutorial"]
    {
        assert!(printed.contains(expected), "no '{expected}' in:\n{printed}");
    }
    // The same word, with all the memory that it asks for and with a third of it.
    let words: Vec<_> = printed.lines().filter(|line| line.contains("the first word is")).collect();
    assert!(words.len() >= 3 && words.iter().all(|line| *line == words[0]), "{words:?}");
}

/// What stands for the modules that the service imports: they answer at once.
const STAND_INS: [(&str, &str); 4] = [
    (
        "torch.py",
        "class Of:\n    def sum(self): return self\n    def item(self): return 1\ndef ones(*_, **__): return Of()\n",
    ),
    (
        "fastapi.py",
        "class Response: pass\nclass FastAPI:\n    def post(self, _): return lambda act: act\n    get = post\n",
    ),
    (
        "transformers.py",
        "class BitsAndBytesConfig:\n    def __init__(self, **_): pass\n\
         def pipeline(*_, **__): return lambda prompts, **_: [prompt + '!' for prompt in prompts]\n",
    ),
    (
        "ask.py",
        "import asyncio, fastapi, server\n\
         async def ask():\n    response = fastapi.Response()\n\
         \x20   print(*await asyncio.gather(*[server.generate(str(number)) for number in range(20)]))\n\
         \x20   await server.health(response)\n    print('health', response.status_code)\nasyncio.run(ask())\n",
    ),
];

#[test]
fn the_service_on_its_page_answers_every_request_and_is_well() {
    let text = fs::read_to_string(docs().join("how-to/inference-service.md")).unwrap();
    let lines = text.lines().skip_while(|line| !line.contains("import asyncio"));
    let source: Vec<_> = lines.map_while(|line| line.strip_prefix("    ").or(line.is_empty().then_some(""))).collect();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("server.py"), source.join("\n")).unwrap();
    STAND_INS.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
    let output = Command::new("python3").arg("-B").arg("ask.py").current_dir(folder.path()).output().unwrap();
    let expected: Vec<_> = (0..20).map(|number| format!("{number}!")).collect();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(printed, format!("{}\nhealth 200\n", expected.join(" ")), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_pages_on_slices_run_as_written() {
    let printed = run("how-to/four-slices.md");
    assert!(printed.contains("trained") && printed.contains("ml-4"), "{printed}");
    assert!(run("how-to/lab-schedule.md").contains("group-b"));
    assert!(run("how-to/dev-environments.md").contains("medium"));
}
