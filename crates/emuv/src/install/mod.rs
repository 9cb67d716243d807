//! `emuv install`: emuV for every CUDA program, without `emuv run`, by the dynamic loader's list of libraries that it puts
//! into all programs. docs/install.md says what that means; what the library then does is in the shim's `system.rs`.

mod preload_list;
mod trial;

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use emuv_state::config::{ConfigFile, DEFAULT_PATH, Flags, Settings};

use crate::{
    cli::{self, Failure},
    libs::{self, RealLibraries},
};
use trial::Through;

/// Something is not as it would have to be; nothing was changed.
const REFUSED: u8 = 1;
/// Only the administrator may do that.
const NOT_ALLOWED: u8 = 4;

/// Where packages put the library.
const PACKAGED: &str = "/usr/lib/emuv/libemuv_shim.so";
/// The loader of 32-bit programs.
const LOADER_32: &str = "lib/ld-linux.so.2";
const OTHERS_MAY_WRITE: u32 = 0o022;

/// Flags of `emuv install`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// From now on every CUDA program that starts uses emuV, by the settings of /etc/emuv/emuv.toml
    #[arg(long, conflicts_with = "uninstall")]
    system: bool,

    /// Undo that: programs that start from now on are as without it
    #[arg(long)]
    uninstall: bool,

    /// The folder of another system, e.g. an image that is being built; its library is DIR/usr/lib/emuv/libemuv_shim.so
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Check everything, say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

const AFTER_HELP: &str = "\
Without --system and --uninstall it says how things stand. The library is put first on /etc/ld.so.preload, which is
replaced in one step; what others have there stays. Refused where programs would not start with it.

/etc/emuv/emuv.toml says how much RAM each program gets, and which programs take part:
  ram = \"8G\"
  [system]
  only = [\"python3*\", \"llama-server\"]
enabled = false there, or EMUV_DISABLE=1 for one program, switches it off without a change of the list.

Exit code: 0; 1 refused, nothing changed; 2 bad argument or file; 4 not the administrator.";

/// Does it.
///
/// # Errors
/// Why nothing was changed.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let place = Place::of(options)?;
    let list = preload_list::read(&place.list).map_err(|error| place.cannot("read", &error))?;
    let said = match (options.system, options.uninstall) {
        (true, _) => install(&place, &list, options.dry_run)?,
        (_, true) => uninstall(&place, &list, options.dry_run)?,
        _ => state(&place, &list),
    };
    cli::print(&said).map_err(|error| Failure::new(REFUSED, error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// Where it is done.
struct Place {
    /// `None`: this system.
    root: Option<PathBuf>,
    /// The list of preloaded libraries.
    list: PathBuf,
    /// The library, as programs of that system see it.
    library: String,
}

impl Place {
    fn of(options: &Options) -> Result<Self, Failure> {
        let root = options.root.as_deref().filter(|root| *root != Path::new("/"));
        let Some(root) = root else {
            // Without a library it can still be taken off the list.
            let library = libs::shim_path().unwrap_or_else(|_| PACKAGED.into());
            let library = library.to_str().map(str::to_owned);
            let library = library.ok_or_else(|| Failure::new(REFUSED, "the library's path is no text"))?;
            return Ok(Self { root: None, list: preload_list::PATH.into(), library });
        };
        let root =
            root.canonicalize().map_err(|error| Failure::wrong("--root", format!("{}: {error}", root.display())))?;
        let list = root.join(preload_list::PATH.trim_start_matches('/'));
        Ok(Self { root: Some(root), list, library: PACKAGED.to_owned() })
    }

    /// A file of that system, as it is found from here.
    fn inside(&self, path: &str) -> PathBuf {
        self.root.as_deref().unwrap_or(Path::new("/")).join(path.trim_start_matches('/'))
    }

    fn cannot(&self, what: &str, error: &io::Error) -> Failure {
        let code = if error.kind() == io::ErrorKind::PermissionDenied { NOT_ALLOWED } else { REFUSED };
        let hint = if code == NOT_ALLOWED { "; run it as root" } else { "" };
        Failure::new(code, format!("cannot {what} {}: {error}{hint}", self.list.display()))
    }

    /// What ends up in every program must be nobody's but the administrator's.
    fn check_library(&self) -> Result<(), Failure> {
        let path = self.inside(&self.library);
        if !path.is_file() {
            return Err(Failure::new(REFUSED, format!("there is no {}", path.display())));
        }
        let not_in_a_list = |byte: u8| b": #".contains(&byte) || byte.is_ascii_whitespace();
        if self.library.bytes().any(not_in_a_list) {
            let words = format!("{}: the loader's list cannot hold a path with blanks, colons or '#'", self.library);
            return Err(Failure::new(REFUSED, words));
        }
        let top = self.root.clone().unwrap_or_default();
        for part in path.ancestors().take_while(|part| self.root.is_none() || **part != *top) {
            let data = fs::metadata(part).map_err(|error| self.cannot("look at the library for", &error))?;
            if data.mode() & OTHERS_MAY_WRITE != 0 || (self.root.is_none() && data.uid() != 0) {
                let words = format!(
                    "{} can be changed by others than root, and would be in every program, also those of root; \
                     install emuV from a package, or under /opt or /usr/local as root",
                    part.display()
                );
                return Err(Failure::new(REFUSED, words));
            }
        }
        Ok(())
    }

    /// The settings that will count, seen to be right.
    fn check_config(&self) -> Result<(), Failure> {
        let path = self.inside(DEFAULT_PATH);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::wrong(path.display(), error)),
        };
        let file = ConfigFile::parse(&path, &text).map_err(Failure::bad_argument)?;
        Settings::resolve(Flags::default(), |_| None, &file).map(drop).map_err(Failure::bad_argument)
    }

    /// Of an image nobody knows what machine it will run on.
    fn check_driver(&self) -> Result<(), Failure> {
        if self.root.is_some() {
            return Ok(());
        }
        let found = RealLibraries::find(Some(Path::new(&self.library)));
        found
            .map(drop)
            .map_err(|error| Failure::new(REFUSED, format!("no NVIDIA driver: {error}; no program would use it")))
    }
}

fn install(place: &Place, list: &[u8], dry_run: bool) -> Result<String, Failure> {
    place.check_library()?;
    place.check_config()?;
    place.check_driver()?;
    let root = place.root.as_deref();
    let as_it_is = |why: String| Failure::new(REFUSED, format!("programs have trouble already without it: {why}"));
    trial::run(root, Through::List).map_err(as_it_is)?;
    let would_fail = |why: String| Failure::new(REFUSED, format!("programs would not start with it: {why}"));
    trial::run(root, Through::Variable(Path::new(&place.library))).map_err(would_fail)?;
    let path = place.list.display();
    let new = preload_list::with(list, &place.library);
    let mut said = String::new();
    if new == list {
        said += &format!("{path} names {} already\n", place.library);
    } else if dry_run {
        said += &format!("would put {} first on {path}\n", place.library);
    } else {
        preload_list::replace(&place.list, &new).map_err(|error| place.cannot("write", &error))?;
        // Once more, as it is for everybody.
        if let Err(why) = trial::run(root, Through::List) {
            preload_list::replace(&place.list, list).map_err(|error| place.cannot("restore", &error))?;
            return Err(would_fail(why));
        }
        said += &format!("{} is first on {path}: CUDA programs that start from now on use emuV\n", place.library);
    }
    if place.inside(LOADER_32).exists() {
        said += "32-bit programs cannot load it; they start, but say so on standard error\n";
    }
    if place.root.is_none() && !dry_run {
        said += "settings: /etc/emuv/emuv.toml; undo: emuv install --uninstall\n";
    }
    Ok(said)
}

fn uninstall(place: &Place, list: &[u8], dry_run: bool) -> Result<String, Failure> {
    let path = place.list.display();
    // Also what another copy of emuV put there, from the place of packages.
    let new =
        [place.library.as_str(), PACKAGED].iter().fold(list.to_vec(), |list, ours| preload_list::without(&list, ours));
    if new == list {
        return Ok(format!("{path} does not name emuV\n"));
    }
    if dry_run {
        return Ok(format!("would take {} off {path}\n", place.library));
    }
    preload_list::replace(&place.list, &new).map_err(|error| place.cannot("write", &error))?;
    Ok(format!("{path} no longer names emuV; programs that run keep what they have\n"))
}

fn state(place: &Place, list: &[u8]) -> String {
    let path = place.list.display();
    if !preload_list::names(list, &place.library) {
        return format!("{path} does not name emuV: only 'emuv run' gives it to programs\n");
    }
    let missing = if place.inside(&place.library).is_file() { "" } else { ", which is not there" };
    format!(
        "{path} names {}{missing}: every CUDA program uses emuV, by the settings of {DEFAULT_PATH}\n",
        place.library
    )
}

/// Whether this system's programs are given emuV: for the doctor. `None`: they are not.
pub fn system_wide() -> Option<Result<String, String>> {
    let list = preload_list::read(Path::new(preload_list::PATH)).ok()?;
    let library = libs::shim_path().ok().and_then(|path| path.to_str().map(str::to_owned));
    let named = library.into_iter().chain([PACKAGED.to_owned()]).find(|library| preload_list::names(&list, library))?;
    if !Path::new(&named).is_file() {
        return Some(Err(format!("{} names {named}, which is not there", preload_list::PATH)));
    }
    Some(ConfigFile::read(|name| env::var(name).ok()).map(|_| named))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A root with a library in it and no programs.
    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let root = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(root.path("usr/lib/emuv")).unwrap();
            fs::create_dir_all(root.path("etc/emuv")).unwrap();
            fs::write(root.path("usr/lib/emuv/libemuv_shim.so"), b"library").unwrap();
            // Whatever the umask.
            for (part, mode) in [("usr", 0o755), ("usr/lib", 0o755), ("usr/lib/emuv", 0o755), (&PACKAGED[1..], 0o644)] {
                fs::set_permissions(root.path(part), PermissionsExt::from_mode(mode)).unwrap();
            }
            root
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn list(&self) -> Option<String> {
            fs::read_to_string(self.path("etc/ld.so.preload")).ok()
        }

        fn run(&self, system: bool, uninstall: bool, dry_run: bool) -> Result<ExitCode, Failure> {
            run(&Options { system, uninstall, dry_run, root: Some(self.0.path().to_owned()) })
        }
    }

    #[test]
    fn it_is_installed_once_and_undone_to_the_byte() {
        let root = Root::new();
        fs::write(root.path("etc/ld.so.preload"), "/lib/theirs.so").unwrap();
        for _ in 0..2 {
            root.run(true, false, false).unwrap();
            assert_eq!(root.list().unwrap(), format!("{PACKAGED}\n/lib/theirs.so"));
        }
        root.run(false, true, false).unwrap();
        assert_eq!(root.list().unwrap(), "/lib/theirs.so");
        fs::remove_file(root.path("etc/ld.so.preload")).unwrap();
        root.run(true, false, false).unwrap();
        root.run(false, true, false).unwrap();
        assert_eq!(root.list(), None, "where there was no list there is none");
        root.run(false, true, false).unwrap();
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let root = Root::new();
        root.run(true, false, true).unwrap();
        assert_eq!(root.list(), None);
        root.run(true, false, false).unwrap();
        root.run(false, true, true).unwrap();
        assert!(root.list().is_some());
    }

    #[test]
    fn a_library_that_others_may_change_is_refused() {
        let root = Root::new();
        for part in ["usr/lib/emuv/libemuv_shim.so", "usr/lib/emuv", "usr"] {
            let path = root.path(part);
            let before = fs::metadata(&path).unwrap().permissions();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
            let refused = root.run(true, false, false).unwrap_err();
            assert_eq!(refused.code, REFUSED);
            assert!(refused.message.contains("can be changed by others than root"), "{}", refused.message);
            fs::set_permissions(&path, before).unwrap();
        }
        assert_eq!(root.list(), None);
    }

    #[test]
    fn without_a_library_or_with_a_wrong_setting_nothing_is_changed() {
        let root = Root::new();
        fs::write(root.path("etc/emuv/emuv.toml"), "[system]\nonyl = []\n").unwrap();
        let refused = root.run(true, false, false).unwrap_err();
        assert_eq!(refused.code, cli::BAD_ARGUMENT);
        assert!(refused.message.contains("emuv.toml: line 2: unknown field `onyl`"), "{}", refused.message);
        fs::remove_file(root.path("usr/lib/emuv/libemuv_shim.so")).unwrap();
        assert_eq!(root.run(true, false, false).unwrap_err().code, REFUSED);
        assert_eq!(root.list(), None);
    }

    #[test]
    fn a_root_that_is_not_there_is_named() {
        let options = Options { system: true, uninstall: false, dry_run: false, root: Some("/nonexistent".into()) };
        assert!(run(&options).unwrap_err().message.starts_with("--root: /nonexistent: "));
    }
}
