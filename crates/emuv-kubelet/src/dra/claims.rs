//! The claims that are prepared: a file each, written whole before it counts.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

const FOLDER: &str = "claims";
const SCHEMA: u32 = 1;

/// A device that a claim was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// The request of the claim.
    pub request: String,
    /// The pool.
    pub pool: String,
    /// The device.
    pub device: String,
    /// Its CDI names.
    pub cdi: Vec<String>,
    /// For looking on: others may have it as well.
    #[serde(default)]
    pub admin: bool,
}

/// A claim that is prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    schema: u32,
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub name: String,
    /// What it was given.
    pub devices: Vec<Given>,
}

impl Prepared {
    pub(super) fn new(namespace: &str, name: &str, devices: Vec<Given>) -> Self {
        Self { schema: SCHEMA, namespace: namespace.to_owned(), name: name.to_owned(), devices }
    }
}

/// The folder of them. Used by one process at a time, and there under a lock.
#[derive(Debug)]
pub(super) struct Claims {
    folder: PathBuf,
}

impl Claims {
    /// Makes the folder if need be.
    ///
    /// # Errors
    /// One line.
    pub fn open(state_dir: &Path) -> Result<Self, String> {
        let folder = state_dir.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self { folder })
    }

    /// The claim, if it is prepared. One that cannot be read is not, and is prepared anew.
    ///
    /// # Errors
    /// The uid is none.
    pub fn get(&self, uid: &str) -> Result<Option<Prepared>, String> {
        Ok(read(&self.path(uid)?))
    }

    /// Remembers a claim. It is on the disk when this returns.
    ///
    /// # Errors
    /// One line; then it is not remembered.
    pub fn put(&self, uid: &str, claim: &Prepared) -> Result<(), String> {
        let path = self.path(uid)?;
        // Not a name that is read.
        let beside = path.with_extension("new");
        let written = (|| {
            let mut file = File::create(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(claim)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        })();
        written.map_err(|error: io::Error| format!("{}: {error}", path.display()))
    }

    /// Forgets a claim; true if there was one.
    ///
    /// # Errors
    /// One line; then it is still remembered.
    pub fn forget(&self, uid: &str) -> Result<bool, String> {
        let path = self.path(uid)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Of all claims but that one, the one that has the device for itself.
    pub fn holder(&self, device: &str, but: &str) -> Option<Prepared> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|file| file.path());
        let others = files.filter(|path| path.file_stem().is_none_or(|uid| uid != but));
        let has = |claim: &Prepared| claim.devices.iter().any(|given| given.device == device && !given.admin);
        others.filter_map(|path| read(&path)).find(has)
    }

    /// A uid is a file's name: letters, digits and `-`.
    fn path(&self, uid: &str) -> Result<PathBuf, String> {
        let plain =
            (1..=128).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if plain { Ok(self.folder.join(format!("{uid}.json"))) } else { Err(format!("'{uid}' is no uid of a claim")) }
    }
}

fn read(path: &Path) -> Option<Prepared> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return None;
    }
    let claim: Prepared = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (claim.schema == SCHEMA).then_some(claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(device: &str, admin: bool) -> Prepared {
        let given = Given {
            request: "gpu".into(),
            pool: "node".into(),
            device: device.into(),
            cdi: vec![format!("emuv.dev/vgpu={device}")],
            admin,
        };
        Prepared::new("default", "claim", vec![given])
    }

    #[test]
    fn what_is_remembered_is_there_for_the_next_process() {
        let root = tempfile::tempdir().unwrap();
        let claims = || Claims::open(root.path()).unwrap();
        claims().put("u-1", &claim("ml-1", false)).unwrap();
        claims().put("u-1", &claim("ml-2", false)).unwrap();
        assert_eq!(claims().get("u-1").unwrap(), Some(claim("ml-2", false)));
        assert_eq!((claims().forget("u-1"), claims().forget("u-1")), (Ok(true), Ok(false)));
        assert_eq!(claims().get("u-1").unwrap(), None);
    }

    #[test]
    fn a_device_has_one_holder_but_for_those_who_look_on() {
        let root = tempfile::tempdir().unwrap();
        let claims = Claims::open(root.path()).unwrap();
        claims.put("u-1", &claim("ml-1", false)).unwrap();
        claims.put("u-2", &claim("ml-2", true)).unwrap();
        assert!(claims.holder("ml-1", "u-9").is_some());
        assert!(claims.holder("ml-1", "u-1").is_none() && claims.holder("ml-2", "u-9").is_none());
    }

    #[test]
    fn rubbish_is_not_remembered_and_no_uid_leads_out_of_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let claims = Claims::open(root.path()).unwrap();
        for text in ["", "{", "{\"schema\":2}", "[]"] {
            fs::write(root.path().join("claims/u-1.json"), text).unwrap();
            assert_eq!(claims.get("u-1").unwrap(), None, "{text}");
        }
        claims.put("u-1", &claim("ml-1", false)).unwrap();
        for uid in ["", "../x", "a/b", ".", "a b"] {
            assert!(
                claims.get(uid).is_err() && claims.put(uid, &claim("x", false)).is_err() && claims.forget(uid).is_err()
            );
        }
    }
}
