//! How a container gets the GPU itself: its device nodes and the driver's libraries.
//!
//! NVIDIA's container toolkit knows that, and writes it as a specification of the kind `nvidia.com/gpu`. A specification
//! cannot refer to another one, so there are two ways:
//!
//! - *taken in*: what the toolkit says for the slice's GPU is copied into the slice's device, and the slice alone is enough.
//!   It is as old as the day it was made: after a new driver, `emuv cdi generate` again.
//! - *by name*: the container is given both devices, `nvidia.com/gpu=UUID` and the slice. Nothing can be out of date, and
//!   nothing of the toolkit is needed where the specification is made. `emuv kubelet` answers with both names by itself.

use std::{
    convert::Infallible,
    fs, io,
    path::PathBuf,
    process::{Command, Stdio},
    str::FromStr,
};

use serde_json::Value;

use super::spec::{self, Edits, Versioned};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Taken in if the toolkit is there, else by name.
    Auto,
    /// By name.
    ByName,
    /// Taken in, from this file.
    File(PathBuf),
}

impl FromStr for Way {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "by-name" => Self::ByName,
            path => Self::File(path.into()),
        })
    }
}

/// What is known of the GPUs.
#[derive(Debug, Clone, PartialEq)]
pub enum Nvidia {
    /// The user, or the kubelet, names the GPU as well.
    ByName,
    /// The toolkit's specification.
    Spec(Value),
}

const TOOLKIT: &str = "nvidia-ctk";
const TOOLKIT_ARGUMENTS: [&str; 4] = ["cdi", "generate", "--format=json", "--device-name-strategy=uuid"];

impl Nvidia {
    /// Finds it.
    ///
    /// # Errors
    /// One line: the file, or the toolkit's answer, is not what it should be.
    pub fn find(way: &Way) -> Result<Self, String> {
        match way {
            Way::ByName => Ok(Self::ByName),
            Way::File(path) => {
                let of = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
                let bytes = fs::read(path).map_err(|error| of(&error))?;
                Self::parse(&bytes).map_err(|why| of(&why))
            }
            Way::Auto => {
                let output = match Command::new(TOOLKIT).args(TOOLKIT_ARGUMENTS).stdin(Stdio::null()).output() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::ByName),
                    output => output.map_err(|error| format!("{TOOLKIT}: {error}"))?,
                };
                if !output.status.success() {
                    let words = String::from_utf8_lossy(&output.stderr);
                    let last = words.trim_end().lines().next_back().unwrap_or("no word why");
                    return Err(format!("{TOOLKIT} cdi generate failed: {last}; --nvidia by-name goes without it"));
                }
                Self::parse(&output.stdout).map_err(|why| format!("{TOOLKIT}: {why}"))
            }
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let made = format!("{TOOLKIT} {} makes one", TOOLKIT_ARGUMENTS.join(" "));
        let spec: Value = serde_json::from_slice(bytes).map_err(|error| format!("not JSON ({error}); {made}"))?;
        match spec["kind"].as_str() {
            Some("nvidia.com/gpu") if spec["devices"].is_array() => Ok(Self::Spec(spec)),
            Some(kind) => Err(format!("a specification of '{kind}', not of nvidia.com/gpu; {made}")),
            None => Err(format!("not a CDI specification; {made}")),
        }
    }

    /// What a container gets with this GPU, and the version of the specification that says it; `None`: by name.
    ///
    /// # Errors
    /// One line: the specification does not have it.
    pub fn edits(&self, uuid: &str) -> Result<Option<Versioned>, String> {
        let Self::Spec(spec) = self else { return Ok(None) };
        let devices = spec["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        let device = devices.iter().find(|device| device["name"].as_str() == Some(uuid)).ok_or_else(|| {
            format!(
                "NVIDIA's specification has no device '{uuid}'; it is made with --device-name-strategy=uuid, \
                 and again when GPUs change"
            )
        })?;
        let mut edits = Edits::new();
        for part in [&spec["containerEdits"], &device["containerEdits"]] {
            if let Some(part) = part.as_object() {
                spec::append(&mut edits, part);
            }
        }
        Ok(Some((edits, spec["cdiVersion"].as_str().unwrap_or_default().to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edits_of(nvidia: &Nvidia, uuid: &str) -> Edits {
        nvidia.edits(uuid).unwrap().unwrap().0
    }

    #[test]
    fn a_gpu_gets_what_all_get_and_what_is_its_own() {
        let text = json!({
            "cdiVersion": "0.6.0", "kind": "nvidia.com/gpu",
            "devices": [
                { "name": "GPU-a", "containerEdits": { "deviceNodes": [{ "path": "/dev/nvidia0" }] } },
                { "name": "GPU-b", "containerEdits": { "deviceNodes": [{ "path": "/dev/nvidia1" }] } },
            ],
            "containerEdits": { "deviceNodes": [{ "path": "/dev/nvidiactl" }], "env": ["NVIDIA_VISIBLE_DEVICES=void"] },
        });
        let nvidia = Nvidia::parse(text.to_string().as_bytes()).unwrap();
        let (edits, version) = nvidia.edits("GPU-b").unwrap().unwrap();
        assert_eq!(version, "0.6.0");
        let expected = json!({
            "deviceNodes": [{ "path": "/dev/nvidiactl" }, { "path": "/dev/nvidia1" }],
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        });
        assert_eq!(Value::Object(edits), expected);
        assert!(nvidia.edits("GPU-c").unwrap_err().contains("--device-name-strategy=uuid"));
        assert_eq!(Nvidia::ByName.edits("GPU-c"), Ok(None));
        // Of both, what they have in common once.
        let (mut both, _) = nvidia.edits("GPU-a").unwrap().unwrap();
        spec::unite(&mut both, &edits_of(&nvidia, "GPU-b"));
        let expected = json!({
            "deviceNodes": [{ "path": "/dev/nvidiactl" }, { "path": "/dev/nvidia0" }, { "path": "/dev/nvidia1" }],
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        });
        assert_eq!(Value::Object(both), expected);
    }

    #[test]
    fn what_is_no_such_specification_is_refused_with_what_makes_one() {
        for (text, words) in [
            ("kind: nvidia.com/gpu", "not JSON"),
            ("{}", "not a CDI specification"),
            ("[1]", "not a CDI specification"),
            (r#"{"kind":"emuv.dev/vgpu","devices":[]}"#, "'emuv.dev/vgpu'"),
        ] {
            let error = Nvidia::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(words) && error.contains("nvidia-ctk cdi generate"), "{error}");
        }
    }
}
