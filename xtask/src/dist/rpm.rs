//! The .rpm, by the crate that cargo-generate-rpm stands on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, PackageBuilder};

use super::{GLIBC, Release, layout, tree::Tree};

/// Writes `emuv-VERSION-1.x86_64.rpm`.
pub fn write(release: &Release, tree: &Tree, out: &Path) -> Result<PathBuf> {
    let config = BuildConfig::v4().compression(CompressionType::Gzip).source_date(release.epoch);
    let mut builder = PackageBuilder::new("emuv", &release.version, "MIT OR Apache-2.0", "x86_64", layout::SUMMARY);
    builder.using_config(config).release("1").build_host("localhost").description(layout::DESCRIPTION);
    builder.requires(Dependency::any("libgcc_s.so.1()(64bit)"));
    builder.requires(Dependency::any(format!("libc.so.6(GLIBC_{}.{})(64bit)", GLIBC.0, GLIBC.1)));
    for own in ["/etc/emuv", "/usr/lib/emuv", "/usr/share/doc/emuv"] {
        builder.with_dir_entry(FileOptions::dir(own).permissions(0o755))?;
    }
    for (path, file) in tree.files() {
        // Where Debian's zsh looks, and where others' do.
        let path = path.replace("/zsh/vendor-completions/", "/zsh/site-functions/");
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
