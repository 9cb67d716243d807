//! What a slice is: its definition, and the file that it is kept in.
//!
//! The file is lines of `key=value`. It is written by `emuv vgpu` only, always whole, and read by every process in the
//! slice. Keys of another version are refused, so that nobody reads half of what a newer emuV meant.

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

/// The GPU that a slice is a share of.
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
    /// What it is a share of.
    pub gpu: SliceGpu,
    /// The simulated machine that the GPU belongs to.
    pub sim: Option<String>,
    /// Its share of VRAM.
    pub vram: Bytes,
    /// Its share of RAM.
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
            _ => Err(format!("there is no key '{key}'")),
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
        let vram = size("vram_bytes", self.vram_bytes)?;
        if vram == Bytes::ZERO {
            return Err("vram_bytes: 0 is no share".to_owned());
        }
        Ok(Slice {
            name,
            instance: small("instance", self.instance)?,
            id: self.id.ok_or_else(|| missing("id"))?,
            gpu,
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
        })
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
        for slice in [full, bare] {
            assert_eq!(Slice::parse(&slice.to_text()), Ok(slice));
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
