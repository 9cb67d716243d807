//! The workloads as they are shipped: Python files inside this binary.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file that is started.
pub const ENTRY: &str = "workload.py";

const FILES: [(&str, &str); 6] = [
    (ENTRY, include_str!("../../workloads/workload.py")),
    ("harness.py", include_str!("../../workloads/harness.py")),
    ("llama.py", include_str!("../../workloads/llama.py")),
    ("loops.py", include_str!("../../workloads/loops.py")),
    ("tuning.py", include_str!("../../workloads/tuning.py")),
    ("vision.py", include_str!("../../workloads/vision.py")),
];

/// Writes them into a folder, which is made if need be, and says which file to start.
///
/// # Errors
/// The system's own.
pub fn write(folder: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    for (name, text) in FILES {
        fs::write(folder.join(name), text)?;
    }
    Ok(folder.join(ENTRY))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_shipped() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let mut found: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "py"))
            .collect();
        found.sort();
        let mut shipped = FILES.map(|(name, _)| name);
        shipped.sort_unstable();
        assert_eq!(found, shipped);
    }

    #[test]
    fn they_are_written_where_they_can_be_started() {
        let folder = tempfile::tempdir().unwrap();
        let entry = write(&folder.path().join("a/b")).unwrap();
        assert_eq!(fs::read_to_string(entry).unwrap(), FILES[0].1);
    }
}
