//! The .rpm, by the crate that cargo-generate-rpm stands on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, PackageBuilder};

use super::{GLIBC, Release, layout, tree::Tree};

/// Folders that every system has.
const OF_THE_SYSTEM: [&str; 9] = [
    "/etc",
    "/usr",
    "/usr/bin",
    "/usr/include",
    "/usr/lib",
    "/usr/share",
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/man/man1",
];

/// Where Debian's zsh looks for completions, and where others' do.
fn here(path: &str) -> String {
    path.replace("/zsh/vendor-completions", "/zsh/site-functions")
}

/// Writes `emuv-VERSION-1.x86_64.rpm`.
pub fn write(release: &Release, tree: &Tree, out: &Path) -> Result<PathBuf> {
    let config = BuildConfig::v4().compression(CompressionType::Gzip).source_date(release.epoch);
    let mut builder = PackageBuilder::new("emuv", &release.version, "MIT OR Apache-2.0", "x86_64", layout::SUMMARY);
    builder.using_config(config).release("1").build_host("localhost").description(layout::DESCRIPTION);
    builder.requires(Dependency::any("libgcc_s.so.1()(64bit)"));
    builder.requires(Dependency::any(format!("libc.so.6(GLIBC_{}.{})(64bit)", GLIBC.0, GLIBC.1)));
    // A folder goes with the last package that has it. Those of a bare system are nobody's business here.
    for folder in tree.folders().iter().filter(|folder| !OF_THE_SYSTEM.contains(&folder.as_str())) {
        builder.with_dir_entry(FileOptions::dir(here(folder)).permissions(0o755))?;
    }
    for (path, file) in tree.files() {
        let path = here(path);
        let options = FileOptions::new(path).permissions(u16::try_from(file.mode)?);
        let options = if file.config { options.config().noreplace() } else { options };
        builder.with_file_contents(file.bytes.clone(), options)?;
    }
    let [installed, removing, removed, purged] = layout::scripts(release)?;
    // rpm says as the first word how many of them will be installed: none is a removal, else it is an upgrade.
    let last = |body: &str| format!("if [ \"$1\" = 0 ]; then\n{body}fi\n");
    builder.post_install_script(installed);
    builder.pre_uninstall_script(last(&removing));
    builder.post_uninstall_script(last(&format!("{removed}{purged}")));
    let path = out.join(format!("emuv-{}-1.x86_64.rpm", release.version));
    builder.build()?.write_file(&path)?;
    Ok(path)
}
