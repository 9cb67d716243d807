//! What is installed, and where.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use super::{
    Release, call, licences, output,
    tree::{self, Tree},
};

/// In one line.
pub const SUMMARY: &str = "GPU programs on Linux that need more memory than the card has";

/// In a few.
pub const DESCRIPTION: &str = "\
Lets an unmodified CUDA program see VRAM and a share of RAM as one pool of
GPU memory, and moves data ahead of its use. Slices one GPU among programs,
containers and pods. Needs NVIDIA's driver for CUDA 12.2 or newer, and no
change of it.";

/// From the workspace, as they are: where to, from where.
const COPIED: &[(&str, &str)] = &[
    ("/usr/lib/systemd/system/emuv-serve.service", "packaging/emuv-serve.service"),
    ("/usr/lib/systemd/system/emuv-vgpu.service", "packaging/emuv-vgpu.service"),
    ("/usr/lib/systemd/system/emuv-cdi.service", "packaging/emuv-cdi.service"),
    ("/usr/lib/systemd/system/emuv-cdi.path", "packaging/emuv-cdi.path"),
    ("/usr/lib/sysusers.d/emuv.conf", "packaging/sysusers.conf"),
    ("/usr/lib/udev/rules.d/71-emuv.rules", "kernel/71-emuv.rules"),
    ("/usr/share/doc/emuv/copyright", "LICENSE-MIT"),
    ("/usr/share/doc/emuv/LICENSE-APACHE", "LICENSE-APACHE"),
    ("/usr/share/doc/emuv/README.md", "README.md"),
    ("/usr/share/doc/emuv/ARCHITECTURE.md", "ARCHITECTURE.md"),
];

/// The same, where the workspace has them.
const COPIED_IF_THERE: &[(&str, &str)] =
    &[("/usr/include/emuv.h", "include/emuv.h"), ("/usr/share/emuv/grafana.json", "docs/examples/grafana.json")];

/// What programs of the workspace make, by the command line that makes it: where to, arguments of `emuv`.
const PRINTED: &[(&str, &[&str])] = &[
    ("/usr/share/bash-completion/completions/emuv", &["completions", "bash"]),
    ("/usr/share/zsh/vendor-completions/_emuv", &["completions", "zsh"]),
    ("/usr/share/fish/vendor_completions.d/emuv.fish", &["completions", "fish"]),
];

/// The whole tree. Needs the release build.
pub fn collect(release: &Release) -> Result<Tree> {
    let mut tree = Tree::default();
    let built = release.built();
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    tree.add("/usr/bin/emuv", 0o755, binary(release, "emuv")?);
    for name in ["libemuv_shim.so", "libemuv_simgpu.so"] {
        tree.add(format!("/usr/lib/emuv/{name}"), 0o644, binary(release, name)?);
    }
    for (to, from) in COPIED {
        tree.add(*to, 0o644, read(&release.root.join(from))?);
    }
    for (to, from) in COPIED_IF_THERE.iter().filter(|(_, from)| release.root.join(from).is_file()) {
        tree.add(*to, 0o644, read(&release.root.join(from))?);
    }
    let emuv = built.join("emuv");
    for (to, arguments) in PRINTED {
        tree.add(*to, 0o644, output(Command::new(&emuv).args(*arguments))?);
    }
    tree.add_config("/etc/emuv/emuv.toml", output(Command::new(&emuv).args(["generate", "config"]))?);
    let pages = tempfile::tempdir()?;
    call(Command::new(&emuv).args(["generate", "man"]).arg(pages.path()))?;
    for entry in fs::read_dir(pages.path())? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a page's name is text")?;
        tree.add(format!("/usr/share/man/man1/{name}.gz"), 0o644, tree::compressed(&read(&entry.path())?)?);
    }
    tree.add("/usr/share/doc/emuv/changelog.gz", 0o644, tree::compressed(&read(&release.root.join("CHANGELOG.md"))?)?);
    tree.add("/usr/share/doc/emuv/THIRD-PARTY.txt", 0o644, licences::third_party(release)?);
    add_docs(&mut tree, release)?;
    Ok(tree)
}

/// What was built. A release has no symbols; without those a debug build is a fifth of its size.
fn binary(release: &Release, name: &str) -> Result<Vec<u8>> {
    let path = release.built().join(name);
    if !release.debug {
        return fs::read(&path).with_context(|| path.display().to_string());
    }
    let stripped = tempfile::NamedTempFile::new()?;
    call(Command::new("strip").arg("-o").arg(stripped.path()).arg(&path))?;
    Ok(fs::read(stripped.path())?)
}

/// Everything tracked below `docs/`.
fn add_docs(tree: &mut Tree, release: &Release) -> Result<()> {
    let listed = output(Command::new("git").args(["ls-files", "docs"]).current_dir(&release.root))?;
    for name in listed.lines() {
        let path = release.root.join(name);
        tree.add(format!("/usr/share/doc/emuv/{name}"), 0o644, fs::read(&path).context(name.to_owned())?);
    }
    Ok(())
}

/// What is done after the installation, before the removal, after it, and when nothing is to stay.
pub fn scripts(release: &Release) -> Result<[String; 4]> {
    let read = |name: &str| {
        let path = release.root.join("packaging/scripts").join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    Ok([read("after-install.sh")?, read("before-remove.sh")?, read("after-remove.sh")?, read("after-purge.sh")?])
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn what_is_copied_is_there() {
        for (to, from) in COPIED {
            assert!(root().join(from).is_file(), "{to}: no {from}");
        }
        let release = Release { root: root(), version: String::new(), epoch: 0, debug: true };
        scripts(&release).unwrap();
    }

    #[test]
    fn scripts_are_shell() {
        let release = Release { root: root(), version: String::new(), epoch: 0, debug: true };
        for script in scripts(&release).unwrap() {
            let checked = Command::new("sh").args(["-n", "-c", &script]).output().unwrap();
            assert!(checked.status.success(), "{}\n{script}", String::from_utf8_lossy(&checked.stderr));
        }
    }

    #[test]
    fn unit_files_are_right_where_systemd_is_there_to_say() {
        if Command::new("systemd-analyze").arg("--version").output().is_err() {
            return;
        }
        // Under a name and with a program that this machine has.
        let folder = tempfile::tempdir().unwrap();
        let mut units = Vec::new();
        for (to, from) in COPIED.iter().filter(|(to, _)| to.starts_with("/usr/lib/systemd/")) {
            let text = fs::read_to_string(root().join(from)).unwrap().replace("/usr/bin/emuv", "/bin/true");
            let unit = folder.path().join(Path::new(to).file_name().unwrap());
            fs::write(&unit, text).unwrap();
            units.push(unit);
        }
        let checked = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        // It also looks at units of this machine that ours refer to.
        let ours: Vec<_> = said.lines().filter(|line| line.contains("emuv-") && !line.contains("not found")).collect();
        assert!(ours.is_empty(), "{ours:#?}");
    }
}
