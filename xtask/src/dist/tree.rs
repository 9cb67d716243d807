//! A tree of files as it will lie on a user's machine, and archives of it that are the same each time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};

use super::Release;

/// A file to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// The user may change it, and keeps it when the package is upgraded.
    pub config: bool,
}

/// Files by their absolute paths.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    files: BTreeMap<String, File>,
}

impl Tree {
    /// Adds a file.
    pub fn add(&mut self, path: impl Into<String>, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), File { bytes: bytes.into(), mode, config: false });
    }

    /// Adds a file that the user may change.
    pub fn add_config(&mut self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.files.insert(path.into(), File { bytes: bytes.into(), mode: 0o644, config: true });
    }

    /// Takes a file out.
    #[cfg(test)]
    pub fn take(&mut self, path: &str) -> Option<File> {
        self.files.remove(path)
    }

    /// All files, by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// All folders that files lie in, without the root; each after those above it.
    pub fn folders(&self) -> BTreeSet<String> {
        let parents = |path: &str| {
            let above = Path::new(path).ancestors().skip(1).filter_map(Path::to_str).map(str::to_owned);
            above.filter(|folder| folder != "/" && !folder.is_empty()).collect::<Vec<_>>()
        };
        self.files.keys().flat_map(|path| parents(path)).collect()
    }

    /// What its files take, in KiB.
    pub fn kib(&self) -> u64 {
        self.files.values().map(|file| file.bytes.len().div_ceil(1024) as u64).sum()
    }

    /// A compressed archive: names start with `prefix`, which stands for the root.
    pub fn tar_gz(&self, prefix: &str, epoch: u32) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(gz());
        let name = |path: &str| format!("{prefix}{path}").trim_start_matches('/').to_owned();
        for folder in self.folders() {
            let header = header(tar::EntryType::Directory, 0o755, 0, epoch);
            append(&mut archive, header, &format!("{}/", name(&folder)), &[])?;
        }
        for (path, file) in &self.files {
            let header = header(tar::EntryType::Regular, file.mode, file.bytes.len() as u64, epoch);
            append(&mut archive, header, &name(path), &file.bytes)?;
        }
        Ok(archive.into_inner()?.finish()?)
    }

    /// `emuv-VERSION-x86_64-linux.tar.gz`: the same files below one folder, so that `emuv` in `bin` finds its libraries,
    /// wherever it is unpacked.
    pub fn write_tarball(&self, release: &Release, out: &Path) -> Result<PathBuf> {
        let name = format!("emuv-{}-x86_64-linux", release.version);
        let mut moved = Self::default();
        for (path, file) in &self.files {
            // What lies outside of /usr goes to share, for who wants it.
            let path = path.strip_prefix("/usr").map_or_else(|| format!("/share/emuv{path}"), str::to_owned);
            moved.files.insert(path, file.clone());
        }
        let path = out.join(format!("{name}.tar.gz"));
        fs::write(&path, moved.tar_gz(&name, release.epoch)?).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

/// Compresses what is written, without a name or a time.
fn gz() -> flate2::write::GzEncoder<Vec<u8>> {
    GzBuilder::new().mtime(0).write(Vec::new(), Compression::best())
}

/// Compressed bytes, the same each time.
pub fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = gz();
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn header(kind: tar::EntryType, mode: u32, bytes: u64, epoch: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header.set_mtime(epoch.into());
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(archive: &mut tar::Builder<impl Write>, mut header: tar::Header, path: &str, bytes: &[u8]) -> Result<()> {
    header.set_username("root")?;
    header.set_groupname("root")?;
    archive.append_data(&mut header, path, bytes).with_context(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.add("/usr/bin/emuv", 0o755, *b"program");
        tree.add_config("/etc/emuv/emuv.toml", *b"");
        tree
    }

    #[test]
    fn folders_come_with_their_files_those_above_first() {
        let folders: Vec<_> = tree().folders().into_iter().collect();
        assert_eq!(folders, ["/etc", "/etc/emuv", "/usr", "/usr/bin"]);
    }

    #[test]
    fn an_archive_has_no_owner_time_or_order_of_its_own() {
        let bytes = tree().tar_gz("", 77).unwrap();
        assert_eq!(bytes, tree().tar_gz("", 77).unwrap());
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (77, 0));
                assert_eq!(header.username().unwrap(), Some("root"));
                (String::from_utf8(entry.path_bytes().to_vec()).unwrap(), header.mode().unwrap())
            })
            .collect();
        let expected = [
            ("etc/", 0o755),
            ("etc/emuv/", 0o755),
            ("usr/", 0o755),
            ("usr/bin/", 0o755),
            ("etc/emuv/emuv.toml", 0o644),
            ("usr/bin/emuv", 0o755),
        ];
        assert_eq!(entries, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }
}
