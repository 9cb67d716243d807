//! The file of profiles: slices that an administrator describes once, in sections. The form is that of
//! `/etc/emuv/vgpu-profiles.conf` as the project's first article shows it:
//!
//! ```text
//! [vGPU-Profile-1]
//! gpu_model=4090
//! physical_vram_gb=6
//! virtual_vram_gb=2
//! pci_device_id=0x2684
//! ```

use std::path::Path;

use emuv_policy::Bytes;

use super::{
    Schedule,
    definition::{percent, valid_name, weight},
    keyed::{self, Line},
    models,
};
use crate::Setting;

/// Where the file is, unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/emuv/vgpu-profiles.conf";

const KEYS: &str = "gpu_model, physical_vram_gb, virtual_vram_gb, pci_device_id, vram, ram, gpu, sim, weight, cap, \
                    schedule, user, group, overcommit";

/// What a section says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// The section's name, and the slice's.
    pub name: String,
    /// The line that the section begins at.
    pub line: usize,
    /// Share of VRAM.
    pub vram: Bytes,
    /// Share of RAM.
    pub ram: Bytes,
    /// The label, as in [`models::MODELS`].
    pub gpu_model: Option<String>,
    /// The card's PCI device id. It is the same for all cards of a model, so it chooses none.
    pub pci_device_id: Option<u16>,
    /// The GPU: its number as in nvidia-smi, or its UUID.
    pub gpu: Option<String>,
    /// The simulated machine's settings.
    pub sim: Option<String>,
    /// Weight for the GPU's time.
    pub weight: Option<u32>,
    /// The most of the GPU's time, in percent.
    pub cap_percent: Option<u32>,
    /// When it may be used.
    pub schedule: Option<Schedule>,
    /// Who may use it: a name or a number.
    pub user: Option<String>,
    /// And this group.
    pub group: Option<String>,
    /// It may be that not all slices can have their shares at once.
    pub overcommit: bool,
}

/// Reads a file's text; `path` is for the messages.
///
/// # Errors
/// Every mistake that there is, each one line: file, line, what is wrong.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Profile>, Vec<String>> {
    let mut reader = Reader::default();
    for (number, line) in keyed::lines(text) {
        let taken = line.and_then(|line| match line {
            Line::Section(name) => reader.begin(name, number),
            Line::Pair(key, value) => reader.take(key, value),
        });
        if let Err(why) = taken {
            reader.mistakes.push((number, why));
        }
    }
    reader.end();
    if reader.mistakes.is_empty() {
        return Ok(reader.profiles);
    }
    reader.mistakes.sort_by_key(|(number, _)| *number);
    let line = |(number, why): &(usize, String)| format!("{}: line {number}: {why}", path.display());
    Err(reader.mistakes.iter().map(line).collect())
}

#[derive(Default)]
struct Reader {
    profiles: Vec<Profile>,
    mistakes: Vec<(usize, String)>,
    open: Option<Profile>,
    said: Vec<String>,
}

impl Reader {
    fn begin(&mut self, name: &str, line: usize) -> Result<(), String> {
        self.end();
        self.open = Some(Profile { name: name.to_owned(), line, ..Profile::default() });
        if !valid_name(name) {
            return Err(format!("'{name}' is no name of a slice: up to 63 letters, digits, '-', '_' or '.'"));
        }
        match self.profiles.iter().find(|other| other.name == name) {
            Some(other) => Err(format!("[{name}] is there already, at line {}", other.line)),
            None => Ok(()),
        }
    }

    /// The section that is being read is over.
    fn end(&mut self) {
        let said = std::mem::take(&mut self.said);
        let Some(profile) = self.open.take() else { return };
        let has = |key: &str| said.iter().any(|other| other == key);
        let mut wrong = |why: String| self.mistakes.push((profile.line, format!("[{}]: {why}", profile.name)));
        if !has("physical_vram_gb") && !has("vram") {
            wrong("it does not say how much VRAM; write for example physical_vram_gb=6".to_owned());
        }
        if let Some(model) = profile.gpu_model.as_deref().and_then(models::find)
            && profile.vram > models::most_vram(model)
        {
            wrong(format!("{} of VRAM is more than a {} has ({})", profile.vram, model.name, models::most_vram(model)));
        }
        self.profiles.push(profile);
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        let profile = self.open.as_mut().ok_or_else(|| format!("'{key}' comes before the first [section]"))?;
        let same = |key: &str| match key {
            "physical_vram_gb" | "vram" => "VRAM",
            "virtual_vram_gb" | "ram" => "RAM",
            _ => "",
        };
        if let Some(before) =
            self.said.iter().find(|said| *said == key || (same(said) == same(key) && !same(key).is_empty()))
        {
            return Err(format!("{key}: '{before}' has been said in this section"));
        }
        self.said.push(key.to_owned());
        let text =
            || Some(value.to_owned()).filter(|value| !value.is_empty()).ok_or_else(|| format!("{key}: it is empty"));
        let gib = || {
            Setting::new(format!("{value}G"), key).bytes().map_err(|_| format!("{key}: '{value}' is no number of GiB"))
        };
        let keyed = |why: String| format!("{key}: {why}");
        match key {
            "physical_vram_gb" => profile.vram = some(key, gib()?)?,
            "vram" => profile.vram = some(key, Setting::new(value, key).bytes()?)?,
            "virtual_vram_gb" => profile.ram = gib()?,
            "ram" => profile.ram = Setting::new(value, key).bytes()?,
            "gpu_model" => {
                models::find(value)
                    .ok_or_else(|| format!("{key}: '{value}' is not known; known are {}", models::labels()))?;
                profile.gpu_model = Some(text()?);
            }
            "pci_device_id" => profile.pci_device_id = Some(pci(value).map_err(keyed)?),
            "gpu" => profile.gpu = Some(text()?),
            "sim" => profile.sim = Some(value.to_owned()),
            "weight" => profile.weight = Some(weight(value).map_err(keyed)?),
            "cap" => profile.cap_percent = Some(percent(value).map_err(keyed)?),
            "schedule" => profile.schedule = Some(value.parse().map_err(keyed)?),
            "user" => profile.user = Some(text()?),
            "group" => profile.group = Some(text()?),
            "overcommit" => {
                profile.overcommit = match value {
                    "0" | "no" => false,
                    "1" | "yes" => true,
                    _ => return Err(format!("{key}: '{value}' is neither yes nor no")),
                };
            }
            _ => return Err(format!("there is no key '{key}'; the keys are {KEYS}")),
        }
        Ok(())
    }
}

fn some(key: &str, bytes: Bytes) -> Result<Bytes, String> {
    if bytes == Bytes::ZERO { Err(format!("{key}: 0 is no share")) } else { Ok(bytes) }
}

fn pci(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let number = (1..=4).contains(&digits.len()).then(|| u16::from_str_radix(digits, 16).ok()).flatten();
    number.ok_or_else(|| format!("'{text}' is no PCI device id such as 0x2684"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<Profile>, Vec<String>> {
        parse(Path::new("/etc/p.conf"), text)
    }

    #[test]
    fn the_articles_file_is_read_as_it_is() {
        let text = "# /etc/emuv/vgpu-profiles.conf\n\
            [vGPU-Profile-1]\ngpu_model=4090\nphysical_vram_gb=6\nvirtual_vram_gb=2\npci_device_id=0x2684\n\
            [vGPU-Profile-2]\ngpu_model=4090\nphysical_vram_gb=6\nvirtual_vram_gb=2\npci_device_id=0x2685\n\
            [vGPU-Profile-3]\ngpu_model=4090\nphysical_vram_gb=6\nvirtual_vram_gb=2\npci_device_id=0x2686\n\
            [vGPU-Profile-4]\ngpu_model=4090\nphysical_vram_gb=6\nvirtual_vram_gb=2\npci_device_id=0x2687\n";
        let profiles = read(text).unwrap();
        assert_eq!(profiles.len(), 4);
        let third = &profiles[2];
        assert_eq!((third.name.as_str(), third.line), ("vGPU-Profile-3", 12));
        assert_eq!((third.vram, third.ram), (Bytes::gib(6), Bytes::gib(2)));
        assert_eq!((third.gpu_model.as_deref(), third.pci_device_id), (Some("4090"), Some(0x2686)));
    }

    #[test]
    fn everything_else_can_be_said_too() {
        let text = "[ml-1]\nvram=1.5G\nram=0\ngpu=0\nweight=300\ncap=40%\nschedule=00:00-08:00 UTC\nuser=ann\ngroup=lab\n\
                    overcommit=yes\nsim=vram=24G,gpus=2\n";
        let profile = &read(text).unwrap()[0];
        assert_eq!((profile.vram, profile.ram), (Bytes::mib(1536), Bytes::ZERO));
        assert_eq!((profile.weight, profile.cap_percent, profile.overcommit), (Some(300), Some(40), true));
        assert_eq!(profile.sim.as_deref(), Some("vram=24G,gpus=2"));
    }

    #[test]
    fn every_mistake_names_the_file_and_the_line() {
        for (text, line, words) in [
            ("[a]\nvram=1G\ncolour=red\n", 3, "'colour'"),
            ("vram=1G\n", 1, "before the first"),
            ("[a]\nvram=1G\n[a]\nvram=1G\n", 3, "at line 1"),
            ("[a]\nvram=1G\nvram=2G\n", 3, "'vram' has been said"),
            ("[a]\nvram=1G\nphysical_vram_gb=2\n", 3, "'vram' has been said"),
            ("[a]\nram=1G\n", 1, "how much VRAM"),
            ("[a b]\nvram=1G\n", 1, "'a b'"),
            ("[a]\nphysical_vram_gb=six\n", 2, "'six'"),
            ("[a]\nphysical_vram_gb=0\n", 2, "0 is no share"),
            ("[a]\nphysical_vram_gb=6\ngpu_model=4091\n", 3, "'4091'"),
            ("[a]\ngpu_model=4070\nphysical_vram_gb=16\n", 1, "12 GiB"),
            ("[a]\nvram=1G\npci_device_id=26845\n", 3, "'26845'"),
            ("[a]\nvram=1G\ncap=101\n", 3, "'101'"),
            ("[a]\nvram=1G\nschedule=8-9\n", 3, "time zone"),
            ("[a]\nvram=1G\nnonsense\n", 3, "'nonsense'"),
        ] {
            let mistakes = read(text).unwrap_err();
            let start = format!("/etc/p.conf: line {line}: ");
            assert!(mistakes.iter().any(|m| m.starts_with(&start) && m.contains(words)), "{text}: {mistakes:?}");
            assert!(mistakes.iter().all(|mistake| !mistake.contains('\n')));
        }
    }

    #[test]
    fn all_mistakes_are_said_at_once() {
        assert_eq!(read("[a]\nx=1\ny=2\n").unwrap_err().len(), 3);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "([a-z_]{0,12}[=\\[\\]\\n .0-9GxU+:,-]{0,4}){0,30}") {
            let _ = read(&text);
        }
    }
}
