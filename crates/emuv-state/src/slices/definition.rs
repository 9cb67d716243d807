//! What a slice is: its definition, and the file that it is kept in.
//!
//! The file is lines of `key=value`. It is written by `emuv vgpu` only, always whole, and read by every process in the
//! slice. Keys of another version are refused, so that nobody reads half of what a newer emuV meant.

use std::collections::BTreeMap;

use emuv_policy::Bytes;

use super::{
    Schedule,
    keyed::{self, Line},
};
use crate::{MAX_SIZE, Setting};

/// The version of the file.
const VERSION: &str = "1";

/// What keeps the account, where it is not the files.
const BY_MODULE: &str = "module";

/// The weight of a slice for which nothing is said.
pub const DEFAULT_WEIGHT: u32 = 100;

/// The largest weight.
pub const MAX_WEIGHT: u32 = 10_000;

/// The most GPUs that one slice may be of.
pub const MOST_GPUS: usize = 16;

/// A GPU that a slice is a share of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceGpu {
    /// As in nvidia-smi.
    pub uuid: String,
    /// The product's name.
    pub name: String,
    /// All of its VRAM, when the slice was made.
    pub vram: Bytes,
}

/// Who may use a slice, besides the administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceUser {
    /// This user.
    pub uid: u32,
    /// And everybody in this group.
    pub gid: Option<u32>,
}

/// A slice's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Names it. See [`valid_name`].
    pub name: String,
    /// Its number, from 1: no other slice of the registry has it.
    pub instance: u32,
    /// No slice that is or was has the same: one that is removed and made again is another.
    pub id: u64,
    /// What it is a share of: the first GPU.
    pub gpu: SliceGpu,
    /// The others, in the order in which programs see them. See [`Self::gpus`].
    pub more_gpus: Vec<SliceGpu>,
    /// The simulated machine that the GPUs belong to.
    pub sim: Option<String>,
    /// Its share of VRAM, on each of its GPUs.
    pub vram: Bytes,
    /// Its share of RAM, for all of its GPUs together.
    pub ram: Bytes,
    /// Its weight where slices compete for the GPU's time, 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// The most of the GPU's time that it may have, in percent.
    pub cap_percent: Option<u32>,
    /// When it may be used; `None`: always.
    pub schedule: Option<Schedule>,
    /// What it is labelled as.
    pub gpu_model: Option<String>,
    /// Who may use it.
    pub user: SliceUser,
    /// It may be that not all slices of the GPU can have their shares at once.
    pub overcommit: bool,
    /// Programs may be started in it.
    pub enabled: bool,
    /// The kernel module keeps its account, not the files. Never changed: all processes of a slice have one account.
    pub by_module: bool,
}

/// Whether a slice may be called so: 1 to 63 letters, digits, `-`, `_` or `.`, a letter or digit first. Such names are
/// file names, device names and Kubernetes names (once in lower case) without any quoting.
pub fn valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    (1..=63).contains(&name.len())
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The percentage that a text means.
pub(super) fn percent(text: &str) -> Result<u32, String> {
    let number = text.trim().trim_end_matches('%').parse().ok().filter(|percent| (1..=100).contains(percent));
    number.ok_or_else(|| format!("'{text}' is no percentage from 1 to 100"))
}

/// The weight that a text means.
pub(super) fn weight(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight));
    number.ok_or_else(|| format!("'{text}' is no weight from 1 to {MAX_WEIGHT}"))
}

impl Slice {
    /// All GPUs that it is a share of, in the order in which programs see them.
    pub fn gpus(&self) -> impl Iterator<Item = &SliceGpu> {
        std::iter::once(&self.gpu).chain(&self.more_gpus)
    }

    /// How many there are.
    pub fn gpu_count(&self) -> usize {
        1 + self.more_gpus.len()
    }

    /// Whether it shares its GPU's time by turns: on several GPUs at once there are none.
    pub fn takes_turns(&self) -> bool {
        self.more_gpus.is_empty()
    }

    /// Whether it is a share of the GPU with this UUID.
    pub fn is_of(&self, uuid: &str) -> bool {
        self.gpus().any(|gpu| gpu.uuid == uuid)
    }

    /// The UUIDs of its GPUs, as `CUDA_VISIBLE_DEVICES` lists them.
    pub fn uuids(&self) -> String {
        self.gpus().map(|gpu| gpu.uuid.as_str()).collect::<Vec<_>>().join(",")
    }

    /// What a slice of several GPUs cannot have and this one has: the key, as in a definition, and the words for it.
    ///
    /// # Errors
    /// The key and why not; the words do not name the key.
    pub fn check_several(&self) -> Result<(), (&'static str, String)> {
        let count = self.gpu_count();
        let has = [
            ("weight", self.weight != DEFAULT_WEIGHT),
            ("cap", self.cap_percent.is_some()),
            ("overcommit", self.overcommit),
        ];
        match has.iter().find(|(_, has)| *has && !self.takes_turns()) {
            Some((key, _)) => Err((
                key,
                format!(
                    "'{}' is a slice of {count} GPUs, which takes no turns: leave it out, or make a slice of each GPU",
                    self.name
                ),
            )),
            None => Ok(()),
        }
    }

    /// The definition as it is kept.
    pub fn to_text(&self) -> String {
        let mut text = String::from("# A slice of a GPU, kept by 'emuv vgpu': change it with that.\n");
        let mut pair = |key: &str, value: &dyn std::fmt::Display| text.push_str(&format!("{key}={value}\n"));
        pair("version", &VERSION);
        pair("name", &self.name);
        pair("instance", &self.instance);
        pair("id", &self.id);
        pair("gpu", &self.gpu.uuid);
        // A product's name is the driver's word; a line break in it would be a second line.
        pair("gpu_name", &self.gpu.name.replace(['\n', '\r'], " "));
        pair("gpu_vram_bytes", &self.gpu.vram.0);
        pair("vram_bytes", &self.vram.0);
        pair("ram_bytes", &self.ram.0);
        pair("weight", &self.weight);
        pair("uid", &self.user.uid);
        for (number, gpu) in (2..).zip(&self.more_gpus) {
            pair(&format!("gpu_{number}"), &gpu.uuid);
            pair(&format!("gpu_{number}_name"), &gpu.name.replace(['\n', '\r'], " "));
            pair(&format!("gpu_{number}_vram_bytes"), &gpu.vram.0);
        }
        let options: [(&str, Option<&dyn std::fmt::Display>); 5] = [
            ("sim", self.sim.as_ref().map(|value| value as _)),
            ("cap_percent", self.cap_percent.as_ref().map(|value| value as _)),
            ("schedule", self.schedule.as_ref().map(|value| value as _)),
            ("gpu_model", self.gpu_model.as_ref().map(|value| value as _)),
            ("gid", self.user.gid.as_ref().map(|value| value as _)),
        ];
        for (key, value) in options {
            if let Some(value) = value {
                pair(key, value);
            }
        }
        pair("overcommit", &u8::from(self.overcommit));
        pair("enabled", &u8::from(self.enabled));
        if self.by_module {
            // An emuV that does not know the key must not take the files for the account: it refuses the slice.
            pair("account", &BY_MODULE);
        }
        text
    }

    /// Reads a definition.
    ///
    /// # Errors
    /// One line without the file's name: `line 3: ...`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut found = Found::default();
        for (number, line) in keyed::lines(text) {
            line.and_then(|line| match line {
                Line::Pair(key, value) => found.take(key, value),
                Line::Section(name) => Err(format!("there are no sections, as [{name}] is one")),
            })
            .map_err(|why| format!("line {number}: {why}"))?;
        }
        found.finish()
    }
}

/// What a text has said so far.
#[derive(Default)]
struct Found {
    version: Option<String>,
    name: Option<String>,
    instance: Option<u64>,
    id: Option<u64>,
    gpu: Option<String>,
    gpu_name: Option<String>,
    gpu_vram_bytes: Option<u64>,
    more_gpus: BTreeMap<usize, MoreFound>,
    sim: Option<String>,
    vram_bytes: Option<u64>,
    ram_bytes: Option<u64>,
    weight: Option<u32>,
    cap_percent: Option<u32>,
    schedule: Option<Schedule>,
    gpu_model: Option<String>,
    uid: Option<u64>,
    gid: Option<u64>,
    overcommit: Option<u64>,
    enabled: Option<u64>,
    account: Option<String>,
}

/// What it has said of a further GPU.
#[derive(Default)]
struct MoreFound {
    uuid: Option<String>,
    name: Option<String>,
    vram_bytes: Option<u64>,
}

/// The number and the rest of a key of a further GPU, such as `gpu_2_name`.
fn further(key: &str) -> Option<(usize, &str)> {
    let key = key.strip_prefix("gpu_")?;
    let digits = key.len() - key.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let (number, rest) = key.split_at_checked(digits)?;
    let known = ["", "_name", "_vram_bytes"].contains(&rest) && !number.starts_with('0');
    number.parse().ok().filter(|number| known && (2..=MOST_GPUS).contains(number)).map(|number| (number, rest))
}

impl Found {
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|_| format!("{key}: '{value}' is not a whole number"));
        let text = || Ok(value.to_owned());
        match key {
            "version" if value != VERSION => {
                Err(format!("this is version '{value}' of the file, this emuV reads version {VERSION}"))
            }
            "version" => once(key, &mut self.version, text),
            "name" => once(key, &mut self.name, text),
            "instance" => once(key, &mut self.instance, number),
            "id" => once(key, &mut self.id, number),
            "gpu" => once(key, &mut self.gpu, text),
            "gpu_name" => once(key, &mut self.gpu_name, text),
            "gpu_vram_bytes" => once(key, &mut self.gpu_vram_bytes, number),
            "sim" => once(key, &mut self.sim, text),
            "vram_bytes" => once(key, &mut self.vram_bytes, number),
            "ram_bytes" => once(key, &mut self.ram_bytes, number),
            "weight" => once(key, &mut self.weight, || weight(value)),
            "cap_percent" => once(key, &mut self.cap_percent, || percent(value)),
            "schedule" => once(key, &mut self.schedule, || value.parse()),
            "gpu_model" => once(key, &mut self.gpu_model, text),
            "uid" => once(key, &mut self.uid, number),
            "gid" => once(key, &mut self.gid, number),
            "overcommit" => once(key, &mut self.overcommit, number),
            "enabled" => once(key, &mut self.enabled, number),
            "account" if value != BY_MODULE => Err(format!("account: '{value}' keeps none that is known")),
            "account" => once(key, &mut self.account, text),
            _ => match further(key) {
                Some((gpu, part)) => {
                    let gpu = self.more_gpus.entry(gpu).or_default();
                    match part {
                        "" => once(key, &mut gpu.uuid, text),
                        "_name" => once(key, &mut gpu.name, text),
                        _ => once(key, &mut gpu.vram_bytes, number),
                    }
                }
                None => Err(format!("there is no key '{key}'")),
            },
        }
    }

    fn finish(self) -> Result<Slice, String> {
        let missing = |key: &str| format!("'{key}' is missing");
        let size = |key: &str, bytes: Option<u64>| {
            let bytes = bytes.map(Bytes).ok_or_else(|| missing(key))?;
            Setting::new(bytes.0.to_string(), key).bytes()
        };
        let small = |key: &str, number: Option<u64>| {
            let number = number.ok_or_else(|| missing(key))?;
            u32::try_from(number).map_err(|_| format!("{key}: {number} is too large"))
        };
        self.version.ok_or_else(|| missing("version"))?;
        let name = self.name.ok_or_else(|| missing("name"))?;
        if !valid_name(&name) {
            return Err(format!("name: '{name}' is no name of a slice"));
        }
        let gpu = SliceGpu {
            uuid: self.gpu.filter(|uuid| !uuid.is_empty()).ok_or_else(|| missing("gpu"))?,
            name: self.gpu_name.unwrap_or_default(),
            vram: size("gpu_vram_bytes", self.gpu_vram_bytes)?,
        };
        let mut more_gpus = Vec::new();
        for (expected, (number, found)) in (2..).zip(self.more_gpus) {
            if number != expected {
                return Err(missing(&format!("gpu_{expected}")));
            }
            let key = format!("gpu_{number}");
            let uuid = found.uuid.filter(|uuid| !uuid.is_empty()).ok_or_else(|| missing(&key))?;
            if gpu.uuid == uuid || more_gpus.iter().any(|other: &SliceGpu| other.uuid == uuid) {
                return Err(format!("{key}: {uuid} is named twice"));
            }
            let vram = size(&format!("{key}_vram_bytes"), found.vram_bytes)?;
            more_gpus.push(SliceGpu { uuid, name: found.name.unwrap_or_default(), vram });
        }
        let vram = size("vram_bytes", self.vram_bytes)?;
        if vram == Bytes::ZERO {
            return Err("vram_bytes: 0 is no share".to_owned());
        }
        let slice = Slice {
            name,
            instance: small("instance", self.instance)?,
            id: self.id.ok_or_else(|| missing("id"))?,
            gpu,
            more_gpus,
            sim: self.sim,
            vram,
            ram: size("ram_bytes", self.ram_bytes)?,
            weight: self.weight.unwrap_or(DEFAULT_WEIGHT),
            cap_percent: self.cap_percent,
            schedule: self.schedule,
            gpu_model: self.gpu_model,
            user: SliceUser {
                uid: small("uid", self.uid)?,
                gid: self.gid.map(|gid| small("gid", Some(gid))).transpose()?,
            },
            overcommit: self.overcommit == Some(1),
            enabled: self.enabled != Some(0),
            by_module: self.account.is_some(),
        };
        slice.check_several().map_err(|(key, why)| format!("{key}: {why}"))?;
        if slice.by_module && slice.gpu_count() > 1 {
            return Err(format!("account: {BY_MODULE} keeps none of several GPUs"));
        }
        Ok(slice)
    }
}

/// Sets what must not be said twice.
fn once<T>(key: &str, slot: &mut Option<T>, read: impl FnOnce() -> Result<T, String>) -> Result<(), String> {
    if slot.is_some() {
        return Err(format!("{key} is said twice"));
    }
    *slot = Some(read().map_err(|why| if why.starts_with(key) { why } else { format!("{key}: {why}") })?);
    Ok(())
}

const _: () = assert!(MAX_SIZE.0 < i64::MAX as u64, "a size is an offset in a ledger");

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::slices) fn slice(name: &str) -> Slice {
        Slice {
            name: name.to_owned(),
            instance: 1,
            id: 77,
            gpu: SliceGpu {
                uuid: "GPU-1".to_owned(),
                name: "NVIDIA GeForce RTX 4090".to_owned(),
                vram: Bytes::gib(24),
            },
            more_gpus: Vec::new(),
            sim: Some("vram=24G,gpus=8".to_owned()),
            vram: Bytes::gib(6),
            ram: Bytes::gib(2),
            weight: 200,
            cap_percent: Some(50),
            schedule: Some("00:00-08:00 UTC+03:00".parse().unwrap()),
            gpu_model: Some("4090".to_owned()),
            user: SliceUser { uid: 1000, gid: Some(100) },
            overcommit: true,
            enabled: false,
            by_module: true,
        }
    }

    #[test]
    fn a_definition_reads_as_it_was_written() {
        let full = slice("ml-1");
        let bare = Slice {
            sim: None,
            cap_percent: None,
            schedule: None,
            gpu_model: None,
            user: SliceUser { uid: 0, gid: None },
            overcommit: false,
            enabled: true,
            by_module: false,
            ..full.clone()
        };
        let several = two_gpus(&bare);
        for slice in [full, bare, several] {
            assert_eq!(Slice::parse(&slice.to_text()), Ok(slice));
        }
    }

    /// The same, of a second GPU too, without what such a slice cannot have.
    pub(in crate::slices) fn two_gpus(slice: &Slice) -> Slice {
        let second = SliceGpu { uuid: "GPU-2".to_owned(), ..slice.gpu.clone() };
        Slice { more_gpus: vec![second], weight: DEFAULT_WEIGHT, cap_percent: None, by_module: false, ..slice.clone() }
    }

    #[test]
    fn of_one_gpu_the_file_is_as_it_was() {
        let text = Slice { by_module: false, ..slice("ml-1") }.to_text();
        let expected = "# A slice of a GPU, kept by 'emuv vgpu': change it with that.\nversion=1\nname=ml-1\ninstance=1\n\
            id=77\ngpu=GPU-1\ngpu_name=NVIDIA GeForce RTX 4090\ngpu_vram_bytes=25769803776\nvram_bytes=6442450944\n\
            ram_bytes=2147483648\nweight=200\nuid=1000\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains("gpu_2"), "{text}");
    }

    #[test]
    fn mistakes_about_further_gpus_are_said() {
        let good = two_gpus(&Slice { overcommit: false, ..slice("ml-1") }).to_text();
        assert!(Slice::parse(&good).is_ok());
        for (from, to, words) in [
            ("gpu_2=GPU-2", "gpu_2=GPU-1", "gpu_2: GPU-1 is named twice"),
            ("gpu_2=GPU-2\n", "", "'gpu_2' is missing"),
            ("gpu_2=GPU-2", "gpu_3=GPU-2", "'gpu_2' is missing"),
            ("gpu_2=GPU-2", "gpu_02=GPU-2", "no key 'gpu_02'"),
            ("gpu_2=GPU-2", "gpu_17=GPU-2", "no key 'gpu_17'"),
            ("gpu_2=GPU-2", "gpu_é=GPU-2", "no key 'gpu_é'"),
            ("gpu_2_name", "gpu_2_colour", "no key 'gpu_2_colour'"),
            ("weight=100", "weight=200", "weight: 'ml-1' is a slice of 2 GPUs"),
            ("enabled=0", "cap_percent=50", "cap: 'ml-1' is a slice of 2 GPUs"),
            ("overcommit=0", "overcommit=1", "overcommit: 'ml-1' is a slice of 2 GPUs"),
            ("enabled=0", "account=module", "account: module keeps none of several GPUs"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = Slice::parse(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{to}: {error}");
        }
    }

    #[test]
    fn each_mistake_is_said_with_its_line() {
        let good = slice("ml-1").to_text();
        for (from, to, words) in [
            ("version=1", "version=2", "line 2: this is version '2'"),
            ("name=ml-1", "name=../x", "name: '../x'"),
            ("weight=200", "weight=0", "weight: '0'"),
            ("\nvram_bytes=", "\nvram_bytes=-", "line 9: vram_bytes: '-"),
            ("\nvram_bytes=6", "\nvram_bytes=99999999996", "vram_bytes: "),
            ("enabled=0", "power=9", "there is no key 'power'"),
            ("enabled=0", "name=b", "name is said twice"),
            ("uid=1000\n", "", "'uid' is missing"),
            ("enabled=0", "[a]", "no sections"),
            ("account=module", "account=daemon", "account: 'daemon'"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = Slice::parse(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{to}: {error}");
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["ml-1", "a", "9", "Small_2.0", &"x".repeat(63)] {
            assert!(valid_name(name), "{name}");
        }
        for name in ["", "-a", ".new", "a/b", "a b", "é", "a\n", &"x".repeat(64)] {
            assert!(!valid_name(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
            let _ = Slice::parse(&text);
        }

        #[test]
        fn no_damage_makes_the_reader_panic(at in 0_usize..300, byte in any::<u8>()) {
            let mut bytes = slice("ml-1").to_text().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Slice::parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
