//! Making, changing and removing slices: what the administrator does, one change at a time.
//!
//! A slice is made under a name with a dot in front, and renamed when all of it is there; it is removed by renaming it
//! back and then taking it apart. What a change that died has left has such a name, and the next change removes it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use emuv_policy::Bytes;
use rustix::fs::{FlockOperation, flock};

use super::{
    Entry, KernelModule, Registry, Slice, SliceError, SliceProcess, Usage, file_account,
    registry::{DEFINITION, PROCESSES, RAM, SYSTEM, TURNS, USE, VRAM, of_gpu},
    turn_book::{self, TimeUse},
    valid_name,
};
use crate::{env, state_dir};

const LOCK: &str = "lock";
const NEW_PREFIX: &str = ".new-";
const OLD_PREFIX: &str = ".old-";

/// A slice to be made: its definition, in which the number counts only if it is not 0.
pub type NewSlice = Slice;

/// A slice as it is listed.
#[derive(Debug)]
pub struct Listing {
    /// The slice.
    pub entry: Entry,
    /// What is used (VRAM: on all its GPUs together) and by whom, if this user may see it.
    pub used: Option<(Usage, Vec<SliceProcess>)>,
    /// VRAM that is used on each of its GPUs; empty where this user may not see it.
    pub vram_on_gpus: Vec<u64>,
    /// How it has had the GPU's time; `None` for a slice that takes no turns: of several GPUs, or made by an older emuV.
    pub time: Option<TimeUse>,
}

impl Listing {
    fn of(entry: Entry) -> Self {
        let (used, vram_on_gpus) = match file_account::look(&entry) {
            Ok((usage, processes, on_gpus)) => (Some((usage, processes)), on_gpus),
            Err(_) => (None, Vec::new()),
        };
        Self { used, vram_on_gpus, time: turn_book::look(&entry).ok(), entry }
    }
}

impl Registry {
    /// The registry that this user makes slices in, made if need be: in `EMUV_STATE_DIR`, else in `/run/emuv` for root,
    /// else in the user's own directory. `get` looks a variable up.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn for_changes(get: impl Fn(&str) -> Option<String>) -> Result<Self, SliceError> {
        let root = rustix::process::geteuid().is_root();
        let given = get(env::STATE_DIR).filter(|value| !value.is_empty());
        let given = given.or_else(|| root.then(|| SYSTEM.to_owned()));
        let state_dir = state_dir(|name| if name == env::STATE_DIR { given.clone() } else { get(name) })
            .map_err(SliceError::StateDir)?;
        if root {
            // Users look slices up in here. What else is in here is closed by itself.
            let closed =
                |path: &Path| fs::metadata(path).is_ok_and(|data| data.uid() == 0 && data.mode() & 0o11 != 0o11);
            if closed(&state_dir) {
                change_mode(&state_dir, |mode| mode | 0o11)?;
            }
        }
        let registry = Self::of(&state_dir);
        let system = Self::of(Path::new(SYSTEM));
        if !root && system.is_roots() && !registry.is_roots() {
            // They would count for nobody.
            let dir = system.dir().display();
            return Err(SliceError::StateDir(format!("the slices of this machine are root's to make, in {dir}")));
        }
        make_folder(registry.dir(), 0o755)?;
        Ok(registry)
    }

    /// All slices with what is used of them, as far as this user may see it.
    pub fn listings(&self) -> (Vec<Listing>, Vec<SliceError>) {
        let (entries, problems) = self.entries();
        (entries.into_iter().map(Listing::of).collect(), problems)
    }

    /// One slice with what is used of it.
    ///
    /// # Errors
    /// As [`Self::entry`].
    pub fn listing(&self, name: &str) -> Result<Listing, SliceError> {
        self.entry(name).map(Listing::of)
    }

    /// The kernel module, if the accounts of new slices are its to keep: it is loaded, and this is root's registry of the machine.
    /// (Its instances have the slices' names, which two registries could both have.)
    fn module(&self) -> Option<KernelModule> {
        let is_the_machines = *self == Self::of(Path::new(SYSTEM)) && rustix::process::geteuid().is_root();
        is_the_machines.then(KernelModule::of_system).filter(KernelModule::is_loaded)
    }

    /// Makes a slice. The kernel module keeps its account where it is loaded, and root makes it in the machine's registry.
    ///
    /// # Errors
    /// See [`SliceError`]; nothing has changed then.
    pub fn create(&self, new: NewSlice) -> Result<Entry, SliceError> {
        if !valid_name(&new.name) {
            return Err(SliceError::BadName(new.name));
        }
        check_several(&new)?;
        let _lock = self.lock()?;
        let (entries, problems) = self.entries();
        if let Some(problem) = problems.into_iter().next() {
            // What cannot be read may have the number, or the VRAM.
            return Err(problem);
        }
        let mut slice = new;
        if self.dir().join(&slice.name).exists() {
            return Err(SliceError::Exists(slice.name));
        }
        let taken = |number: u32| entries.iter().find(|entry| entry.slice.instance == number);
        let asked = Some(slice.instance).filter(|number| *number != 0);
        if let Some(other) = asked.and_then(taken) {
            return Err(SliceError::InstanceTaken { instance: slice.instance, name: other.slice.name.clone() });
        }
        let is_free = |number: u32| taken(number).is_none();
        // Where the module has no number left, the files keep the account.
        // Nor has it any of several GPUs.
        let module = self.module().filter(|_| slice.gpu_count() == 1);
        let by_module =
            module.as_ref().map(|module| module.number_for(&slice.name, asked, is_free)).transpose()?.flatten();
        slice.by_module = by_module.is_some();
        slice.instance = by_module.or(asked).unwrap_or_else(|| (1..).find(|number| is_free(*number)).unwrap_or(1));
        check_room(&entries, &slice)?;
        let (dir, new) = (self.dir().join(&slice.name), self.dir().join(format!("{NEW_PREFIX}{}", slice.name)));
        let keeper = module.filter(|_| slice.by_module);
        let in_kernel = || keeper.as_ref().map_or(Ok(()), |module| module.ensure(&slice));
        let made = build(&new, &slice)
            .and_then(|()| in_kernel())
            .and_then(|()| fs::rename(&new, &dir).map_err(|error| SliceError::System(dir.clone(), error)));
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&new);
            // But not an instance of that name that has been somebody else's all along.
            if let (Some(module), false) = (keeper, matches!(error, SliceError::InstanceTaken { .. })) {
                module.remove(&slice.name, by_module);
            }
            return Err(error);
        }
        Ok(Entry { dir, slice })
    }

    /// Changes a slice's definition. Who is in it sees the change at the next charge.
    ///
    /// # Errors
    /// See [`SliceError`]; nothing has changed then.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Slice)) -> Result<Entry, SliceError> {
        let _lock = self.lock()?;
        let mut entry = self.entry(name)?;
        let before = entry.slice.clone();
        change(&mut entry.slice);
        // Everybody would refuse to read it.
        check_several(&entry.slice)?;
        if entry.slice.vram > before.vram || entry.slice.overcommit != before.overcommit {
            check_room(&self.entries().0, &entry.slice)?;
        }
        // First what may be refused. It is said again where nothing changes, so that an instance that is gone comes back.
        let module = KernelModule::of_system();
        if entry.slice.by_module {
            module.ensure(&entry.slice)?;
        }
        let new = entry.dir.join(format!("{DEFINITION}.new"));
        let written = write(&new, entry.slice.to_text().as_bytes(), 0o644).and_then(|()| {
            fs::rename(&new, entry.dir.join(DEFINITION)).map_err(|error| SliceError::System(new.clone(), error))
        });
        if written.is_err() && entry.slice.by_module {
            let _ = module.ensure(&before);
        }
        written.map(|()| entry)
    }

    /// Removes a slice. With `force` also one that is in use: who is in it keeps what it has and gets nothing more.
    ///
    /// # Errors
    /// See [`SliceError`]; nothing has changed then.
    pub fn delete(&self, name: &str, force: bool) -> Result<(), SliceError> {
        let _lock = self.lock()?;
        let dir = self.dir().join(name);
        let entry = match self.entry(name) {
            Err(error) if !force || !dir.is_dir() || !valid_name(name) => return Err(error),
            found => found.ok(),
        };
        let kept = entry.as_ref().filter(|entry| entry.slice.by_module).map(|entry| entry.slice.instance);
        let module = KernelModule::of_system();
        if let Some(entry) = entry.filter(|_| !force) {
            let listed =
                file_account::processes(&entry).map_err(|error| SliceError::System(entry.dir.join(USE), error))?.len();
            let holders = kept.and_then(|number| module.instance(number)).map_or(0, |instance| instance.holders);
            let processes = listed.max(holders as usize);
            if processes > 0 {
                return Err(SliceError::InUse { name: name.to_owned(), processes });
            }
        }
        let old = self.dir().join(format!("{OLD_PREFIX}{name}"));
        fs::rename(&dir, &old).map_err(|error| SliceError::System(dir, error))?;
        if kept.is_some() {
            module.remove(name, kept);
        }
        fs::remove_dir_all(&old).map_err(|error| SliceError::System(old, error))
    }

    /// Keeps other changes out, and removes what those that died have left.
    fn lock(&self) -> Result<File, SliceError> {
        let path = self.dir().join(LOCK);
        let failed = |error: io::Error| SliceError::System(path.clone(), error);
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        let module = self.module();
        for entry in fs::read_dir(self.dir()).map_err(failed)?.flatten() {
            let name = entry.file_name();
            let prefixes = [NEW_PREFIX, OLD_PREFIX];
            let left = name.to_str().and_then(|name| prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)));
            let Some(slice) = left else { continue };
            if let Some(module) = module.as_ref().filter(|_| !self.dir().join(slice).exists()) {
                module.remove(slice, None);
            }
            let _ = fs::remove_dir_all(entry.path());
        }
        Ok(file)
    }
}

fn check_several(slice: &Slice) -> Result<(), SliceError> {
    slice.check_several().map_err(|(key, why)| SliceError::NotForSeveral { key, why })
}

/// Whether the GPU has the VRAM that its slices are promised.
fn check_room(entries: &[Entry], slice: &Slice) -> Result<(), SliceError> {
    for gpu in slice.gpus() {
        let same_gpu = |other: &Slice| other.is_of(&gpu.uuid) && other.sim.is_some() == slice.sim.is_some();
        let others = entries.iter().map(|entry| &entry.slice).filter(|o| o.name != slice.name && same_gpu(o));
        let given: Bytes = others.clone().map(|other| other.vram).sum();
        // Without turns nothing makes room for who is promised it: that share is there in any case.
        let set_aside: Bytes = others.filter(|other| !other.takes_turns()).map(|other| other.vram).sum();
        // One slice that is larger than its GPU is never right.
        let too_much = given.saturating_add(slice.vram) > gpu.vram && !slice.overcommit;
        if too_much || set_aside.saturating_add(slice.vram) > gpu.vram {
            let given = if too_much { given } else { set_aside };
            let name = if gpu.name.is_empty() { gpu.uuid.clone() } else { gpu.name.clone() };
            return Err(SliceError::Overcommitted { gpu: name, has: gpu.vram, given, wanted: slice.vram });
        }
    }
    Ok(())
}

fn build(dir: &Path, slice: &Slice) -> Result<(), SliceError> {
    let _ = fs::remove_dir_all(dir);
    make_folder(dir, 0o755)?;
    let folder = dir.join(USE);
    make_folder(&folder, 0o711)?;
    let mode = if slice.user.gid.is_some() { 0o660 } else { 0o600 };
    let me = rustix::process::geteuid().as_raw();
    // Other slices of the GPU see whose turn it is.
    let turns = Some((TURNS.to_owned(), mode | 0o044)).filter(|_| slice.takes_turns());
    let of_each = |name| (0..slice.gpu_count()).map(move |gpu| (of_gpu(name, gpu), mode));
    for (name, mode) in of_each(VRAM).chain([(RAM.to_owned(), mode)]).chain(of_each(PROCESSES)).chain(turns) {
        let path = folder.join(name);
        write(&path, b"", mode)?;
        let uid = (slice.user.uid != me).then_some(slice.user.uid);
        if uid.is_some() || slice.user.gid.is_some() {
            chown(&path, uid, slice.user.gid).map_err(|error| SliceError::System(path, error))?;
        }
    }
    write(&dir.join(DEFINITION), slice.to_text().as_bytes(), 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SliceError> {
    let failed = |error| SliceError::System(path.to_owned(), error);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    // Whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)
}

fn make_folder(path: &Path, mode: u32) -> Result<(), SliceError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => change_mode(path, |_| mode),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(SliceError::System(path.to_owned(), error)),
    }
}

fn change_mode(path: &Path, to: impl Fn(u32) -> u32) -> Result<(), SliceError> {
    let failed = |error| SliceError::System(PathBuf::from(path), error);
    let mode = fs::metadata(path).map_err(failed)?.mode() & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(to(mode))).map_err(failed)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use super::*;
    use crate::slices::{
        Account, Demand, FileAccount, Refused, SliceGpu, SliceState, SliceUser, definition::tests::slice,
        definition::tests::two_gpus,
    };

    pub(in crate::slices) fn registry() -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::of(folder.path());
        make_folder(registry.dir(), 0o755).unwrap();
        (folder, registry)
    }

    /// 6 GiB of 24 and 2 GiB of RAM, this user's.
    fn new(name: &str) -> NewSlice {
        let user = SliceUser { uid: rustix::process::geteuid().as_raw(), gid: None };
        Slice { instance: 0, overcommit: false, enabled: true, by_module: false, user, ..slice(name) }
    }

    fn vram(bytes: u64) -> Demand {
        Demand { vram: bytes, ram: 0 }
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn slices_are_made_listed_changed_and_removed() {
        let (_folder, registry) = registry();
        for name in ["ml-1", "ml-2"] {
            registry.create(new(name)).unwrap();
        }
        registry.change("ml-2", |slice| slice.vram = Bytes::gib(9)).unwrap();
        let (listed, problems) = registry.listings();
        assert!(problems.is_empty(), "{problems:?}");
        let seen: Vec<_> = listed.iter().map(|l| (l.entry.slice.instance, l.entry.slice.vram)).collect();
        assert_eq!(seen, [(1, Bytes::gib(6)), (2, Bytes::gib(9))]);
        registry.delete("ml-1", false).unwrap();
        assert_eq!(registry.create(new("ml-3")).unwrap().slice.instance, 1, "the lowest that is free");
        assert!(matches!(registry.delete("ml-1", true), Err(SliceError::NoSuch { .. })));
    }

    #[test]
    fn a_name_a_number_and_vram_are_given_once() {
        let (_folder, registry) = registry();
        registry.create(new("a")).unwrap();
        assert!(matches!(registry.create(new("a")), Err(SliceError::Exists(_))));
        let one = Slice { instance: 1, ..new("b") };
        assert!(matches!(registry.create(one), Err(SliceError::InstanceTaken { .. })));
        let large = Slice { vram: Bytes::gib(19), ..new("b") };
        let error = registry.create(large.clone()).unwrap_err().to_string();
        assert!(error.contains("24 GiB") && error.contains("6 GiB") && error.contains("--overcommit"), "{error}");
        registry.create(Slice { overcommit: true, ..large }).unwrap();
        assert!(registry.change("a", |slice| slice.vram = Bytes::gib(7)).is_err());
        let larger_than_the_gpu = Slice { vram: Bytes::gib(25), overcommit: true, ..new("c") };
        assert!(registry.create(larger_than_the_gpu).is_err());
        assert_eq!(registry.entries().0.len(), 2);
    }

    #[test]
    fn what_a_dead_change_left_is_swept_by_the_next() {
        let (folder, registry) = registry();
        let left = folder.path().join("vgpu/.new-x/use");
        fs::create_dir_all(&left).unwrap();
        fs::create_dir_all(folder.path().join("vgpu/.old-y")).unwrap();
        registry.create(new("a")).unwrap();
        assert!(!left.exists() && !folder.path().join("vgpu/.old-y").exists());
    }

    #[test]
    fn a_limit_counts_from_the_next_charge_on_both_ways() {
        let (_folder, registry) = registry();
        let account = FileAccount::open(&registry.create(new("a")).unwrap()).unwrap();
        account.charge(vram(4 * GIB)).unwrap();
        registry.change("a", |slice| slice.vram = Bytes::gib(4)).unwrap();
        assert!(matches!(account.charge(vram(1)), Err(Refused::NoRoom)));
        registry.change("a", |slice| slice.vram = Bytes::gib(8)).unwrap();
        account.charge(vram(4 * GIB)).unwrap();
        registry.change("a", |slice| slice.vram = Bytes::gib(3)).unwrap();
        account.release(vram(5 * GIB));
        assert!(account.charge(vram(1)).is_err());
        account.release(vram(1));
        account.charge(vram(1)).unwrap();
        assert_eq!(account.usage().vram, 3 * GIB);
    }

    #[test]
    fn both_tiers_are_charged_or_neither() {
        let (_folder, registry) = registry();
        let account = FileAccount::open(&registry.create(new("a")).unwrap()).unwrap();
        assert!(account.charge(Demand { vram: GIB, ram: 3 * GIB }).is_err());
        assert_eq!((account.usage().vram, account.usage().ram), (0, 0));
        account.charge(Demand { vram: GIB, ram: 2 * GIB }).unwrap();
        assert_eq!((account.usage().vram, account.usage().ram), (GIB, 2 * GIB));
    }

    #[test]
    fn a_slice_in_use_is_not_removed_unless_forced_and_then_gives_nothing() {
        let (_folder, registry) = registry();
        let account = FileAccount::open(&registry.create(new("a")).unwrap()).unwrap();
        account.charge(vram(GIB)).unwrap();
        assert!(matches!(registry.delete("a", false), Err(SliceError::InUse { processes: 1, .. })));
        registry.delete("a", true).unwrap();
        assert_eq!(account.limits().state, SliceState::Removed);
        assert!(account.charge(vram(1)).is_err());
        // One of the same name is another one.
        registry.create(Slice { id: 78, ..new("a") }).unwrap();
        assert_eq!(account.limits().state, SliceState::Removed);
        account.release(vram(GIB));
    }

    #[test]
    fn a_disabled_slice_takes_nobody_in_and_gives_nothing_more() {
        let (_folder, registry) = registry();
        let entry = registry.create(new("a")).unwrap();
        let account = FileAccount::open(&entry).unwrap();
        account.charge(vram(GIB)).unwrap();
        let disabled = registry.change("a", |slice| slice.enabled = false).unwrap();
        assert!(matches!(FileAccount::open(&disabled), Err(SliceError::Disabled(_))));
        assert!(account.charge(vram(1)).is_err());
        registry.change("a", |slice| slice.enabled = true).unwrap();
        account.charge(vram(1)).unwrap();
    }

    #[test]
    fn a_change_wakes_who_waits_for_it() {
        let (_folder, registry) = registry();
        let account = Arc::new(FileAccount::open(&registry.create(new("a")).unwrap()).unwrap());
        let seen = account.limits();
        assert_eq!(account.wait_for_change(seen, Duration::ZERO), seen);
        let waiter = thread::spawn({
            let account = Arc::clone(&account);
            move || account.wait_for_change(seen, Duration::from_secs(600)).ram
        });
        registry.change("a", |slice| slice.ram = Bytes::gib(1)).unwrap();
        assert_eq!(waiter.join().unwrap(), GIB);
    }

    #[test]
    fn who_is_in_it_is_listed_with_what_it_says() {
        let (_folder, registry) = registry();
        let account = FileAccount::open(&registry.create(new("a")).unwrap()).unwrap();
        account.charge(Demand { vram: 5, ram: 6 }).unwrap();
        account.say(Demand { vram: 5, ram: 6 });
        let (usage, processes) = registry.listings().0.remove(0).used.unwrap();
        assert_eq!((usage.vram, usage.ram), (5, 6));
        assert_eq!((processes.len(), processes[0].pid), (1, std::process::id()));
        assert_eq!((processes[0].vram_bytes, processes[0].ram_bytes), (5, 6));
    }

    /// 6 GiB of each of two GPUs of 24, and 2 GiB of RAM.
    fn pair(name: &str) -> NewSlice {
        two_gpus(&new(name))
    }

    #[test]
    fn of_two_gpus_each_has_its_vram_and_both_have_the_ram() {
        let (_folder, registry) = registry();
        let entry = registry.create(pair("pair")).unwrap();
        let open = |gpu| FileAccount::open_on(&entry, gpu).unwrap();
        let (first, second, other) = (open(0), open(1), open(1));
        first.charge(vram(6 * GIB)).unwrap();
        second.charge(Demand { vram: 4 * GIB, ram: GIB }).unwrap();
        assert!(other.charge(vram(3 * GIB)).is_err(), "another process, on the second GPU");
        other.charge(vram(2 * GIB)).unwrap();
        assert!(first.charge(Demand { vram: 0, ram: GIB + 1 }).is_err(), "of RAM there is one share");
        first.charge(Demand { vram: 0, ram: GIB }).unwrap();
        let usage = first.usage();
        assert_eq!((usage.vram, usage.ram, usage.own_ram), (6 * GIB, 2 * GIB, GIB));
        assert_eq!(second.usage().vram, 6 * GIB);
        second.say(Demand { vram: 4, ram: 1 });
        first.say(Demand { vram: 6, ram: 2 });
        let listing = registry.listings().0.remove(0);
        let (usage, processes) = listing.used.unwrap();
        assert_eq!((usage.vram, usage.ram), (12 * GIB, 2 * GIB));
        assert_eq!(listing.vram_on_gpus, [6 * GIB, 6 * GIB]);
        // This test is two of them on the second GPU, where one is not on the first.
        let said: Vec<_> = processes.iter().map(|p| (p.vram_bytes, p.ram_bytes, p.on_gpus.len())).collect();
        assert_eq!(said, [(10, 3, 2), (0, 0, 2)]);
        drop(second);
        assert_eq!((first.usage().ram, other.usage().vram), (GIB, 2 * GIB), "what ends gives back what it had");
    }

    #[test]
    fn a_slice_of_two_gpus_is_resized_and_removed_on_both() {
        let (_folder, registry) = registry();
        let entry = registry.create(pair("pair")).unwrap();
        let accounts = [0, 1].map(|gpu| FileAccount::open_on(&entry, gpu).unwrap());
        accounts.iter().for_each(|account| account.charge(vram(5 * GIB)).unwrap());
        registry.change("pair", |slice| slice.vram = Bytes::gib(4)).unwrap();
        assert!(accounts.iter().all(|account| account.charge(vram(1)).is_err() && account.limits().vram == 4 * GIB));
        accounts[1].release(vram(2 * GIB));
        assert!(accounts[0].charge(vram(1)).is_err(), "the first still has too much");
        accounts[1].charge(vram(GIB)).unwrap();
        // Only on the second GPU: it is in use all the same.
        let [first, second] = accounts;
        drop(first);
        assert!(matches!(registry.delete("pair", false), Err(SliceError::InUse { processes: 1, .. })));
        registry.change("pair", |slice| slice.enabled = false).unwrap();
        assert!(second.charge(vram(1)).is_err());
        registry.delete("pair", true).unwrap();
        assert_eq!(second.limits().state, SliceState::Removed);
    }

    #[test]
    fn what_a_slice_of_two_gpus_is_promised_is_set_aside_on_both() {
        let (_folder, registry) = registry();
        registry.create(pair("pair")).unwrap();
        let on = |uuid: &str, name: &str, gib| {
            let gpu = SliceGpu { uuid: uuid.to_owned(), ..new(name).gpu };
            Slice { gpu, vram: Bytes::gib(gib), ..new(name) }
        };
        for uuid in ["GPU-1", "GPU-2"] {
            assert!(registry.create(on(uuid, "a", 19)).is_err(), "{uuid}");
            let forced = Slice { overcommit: true, ..on(uuid, "a", 19) };
            assert!(registry.create(forced).is_err(), "{uuid}: not even then");
            for number in 0..2 {
                registry.create(Slice { overcommit: true, ..on(uuid, &format!("{uuid}-{number}"), 18) }).unwrap();
            }
        }
        assert!(registry.change("pair", |slice| slice.vram = Bytes::gib(7)).is_err());
        let weighed = registry.change("pair", |slice| slice.weight = 200);
        assert!(matches!(weighed, Err(SliceError::NotForSeveral { key: "weight", .. })), "{weighed:?}");
        let unlike = SliceGpu { uuid: "GPU-3".to_owned(), vram: Bytes::gib(5), ..pair("b").gpu };
        let fits_one =
            Slice { gpu: SliceGpu { uuid: "GPU-4".to_owned(), ..pair("b").gpu }, more_gpus: vec![unlike], ..pair("b") };
        let error = registry.create(fits_one).unwrap_err().to_string();
        assert!(error.contains("5 GiB"), "{error}");
    }

    #[test]
    fn a_thousand_slices_come_and_go() {
        let (folder, registry) = registry();
        for number in 0..1000 {
            let entry = registry.create(new(&format!("s-{number}"))).unwrap();
            assert_eq!(entry.slice.instance, 1);
            registry.delete(&entry.slice.name, false).unwrap();
        }
        let left: Vec<_> = fs::read_dir(folder.path().join("vgpu")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["lock"]);
    }
}
