//! The .deb: an `ar` archive of two compressed tar archives, what dpkg is told and what it installs.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{GLIBC, Release, layout, tree::Tree};

/// Writes `emuv_VERSION_amd64.deb`.
pub fn write(release: &Release, tree: &Tree, out: &Path) -> Result<PathBuf> {
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", control(release, tree)?.tar_gz("", release.epoch)?),
        ("data.tar.gz", tree.tar_gz("", release.epoch)?),
    ];
    let path = out.join(format!("emuv_{}_amd64.deb", release.version));
    let mut archive = ar::Builder::new(fs::File::create(&path)?);
    for (name, bytes) in members {
        let mut header = ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64);
        header.set_mtime(release.epoch.into());
        header.set_mode(0o100_644);
        archive.append(&header, bytes.as_slice())?;
    }
    Ok(path)
}

/// What dpkg is told.
fn control(release: &Release, tree: &Tree) -> Result<Tree> {
    let mut control = Tree::default();
    let configs: String = tree.files().filter(|(_, file)| file.config).map(|(path, _)| format!("{path}\n")).collect();
    control.add("/control", 0o644, about(release, tree));
    control.add("/conffiles", 0o644, configs);
    let [installed, removing, removed, purged] = layout::scripts(release)?;
    // dpkg says as the first word what is going on.
    control.add("/postinst", 0o755, script("configure", &installed));
    control.add("/prerm", 0o755, script("remove", &removing));
    control.add("/postrm", 0o755, format!("{}{}", script("remove", &removed), when("purge", &purged)));
    Ok(control)
}

fn script(on: &str, body: &str) -> String {
    format!("#!/bin/sh\nset -e\n{}", when(on, body))
}

fn when(on: &str, body: &str) -> String {
    format!("if [ \"$1\" = {on} ]; then\n{body}fi\n")
}

fn about(release: &Release, tree: &Tree) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "Package: emuv\nVersion: {}\nArchitecture: amd64\nMaintainer: The emuV authors <emuv@localhost>\n\
         Installed-Size: {}\nDepends: libc6 (>= {}.{}), libgcc-s1\nSection: utils\nPriority: optional\n\
         Description: {}\n",
        release.version,
        tree.kib(),
        GLIBC.0,
        GLIBC.1,
        layout::SUMMARY
    );
    for line in layout::DESCRIPTION.lines() {
        let _ = writeln!(text, " {line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_is_told_names_the_configuration_and_what_is_needed() {
        let release = Release {
            root: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
            version: "1.2.3".to_owned(),
            epoch: 0,
            debug: true,
        };
        let mut tree = Tree::default();
        tree.add_config("/etc/emuv/emuv.toml", *b"");
        let mut control = control(&release, &tree).unwrap();
        let mut text = |path: &str| String::from_utf8(control.take(path).unwrap().bytes).unwrap();
        assert_eq!(text("/conffiles"), "/etc/emuv/emuv.toml\n");
        assert!(text("/control").contains("Version: 1.2.3\n") && !text_has_blank_line(&about(&release, &tree)));
        assert!(text("/prerm").contains("emuv install --uninstall"), "the library goes off the loader's list first");
    }

    fn text_has_blank_line(text: &str) -> bool {
        text.lines().any(|line| line.trim().is_empty())
    }
}
