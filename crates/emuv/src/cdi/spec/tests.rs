use emuv_policy::Bytes;
use emuv_state::slices::{SliceGpu, SliceUser};

use super::*;

pub fn slice(name: &str) -> Slice {
    Slice {
        name: name.to_owned(),
        instance: 1,
        id: 7,
        gpu: SliceGpu { uuid: "GPU-aa11".to_owned(), name: "card".to_owned(), vram: Bytes::gib(24) },
        more_gpus: Vec::new(),
        sim: None,
        vram: Bytes::gib(6),
        ram: Bytes::gib(2),
        weight: 100,
        cap_percent: None,
        schedule: None,
        gpu_model: None,
        user: SliceUser { uid: 0, gid: None },
        overcommit: false,
        enabled: true,
        by_module: false,
    }
}

fn spec_of(slice: &Slice, nvidia: Option<Versioned>) -> Value {
    let sources = Sources {
        shim: Path::new("/usr/lib/emuv/libemuv_shim.so"),
        preload: Path::new("/run/emuv/cdi/ld.so.preload"),
        hints: &[],
    };
    let dir = Path::new("/run/emuv/vgpu").join(&slice.name);
    let slice_file = Path::new("/run/emuv/cdi").join(&slice.name).join(SLICE_FILE);
    let simgpu = Some(Path::new("/usr/lib/emuv/libemuv_simgpu.so"));
    spec(&sources, &[Device { slice, dir: &dir, slice_file: &slice_file, simgpu, nvidia }])
}

/// What an engine makes of a device: the common part, then the device's own.
fn applied(spec: &Value) -> Edits {
    let mut edits = spec["containerEdits"].as_object().unwrap().clone();
    append(&mut edits, spec["devices"][0]["containerEdits"].as_object().unwrap());
    edits
}

fn mounted(edits: &Edits, inside: &str) -> Option<(String, String)> {
    let mounts = edits["mounts"].as_array().unwrap();
    let found = mounts.iter().find(|mount| mount["containerPath"] == inside)?;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Some((text(&found["hostPath"]), text(&found["options"][0])))
}

fn env(edits: &Edits) -> Vec<&str> {
    edits["env"].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect()
}

#[test]
fn a_container_gets_the_library_under_every_name_and_preloaded() {
    let edits = applied(&spec_of(&slice("ml-1"), None));
    for name in LIBRARY_NAMES {
        let (from, access) = mounted(&edits, &format!("/opt/emuv/lib/{name}")).unwrap();
        assert_eq!((from.as_str(), access.as_str()), ("/usr/lib/emuv/libemuv_shim.so", "ro"));
    }
    let preload = mounted(&edits, "/etc/ld.so.preload").unwrap();
    assert_eq!(preload, ("/run/emuv/cdi/ld.so.preload".to_owned(), "ro".to_owned()));
    assert!(mounted(&edits, preload_line().trim_end()).is_some(), "what is preloaded is mounted");
    let variables = env(&edits);
    assert!(variables.iter().all(|entry| !entry.starts_with("LD_")), "the image's own stay: {variables:?}");
}

#[test]
fn it_can_read_the_slices_and_write_to_nothing_but_the_accounts() {
    let edits = applied(&spec_of(&slice("ml-1"), None));
    let of = |inside: &str| mounted(&edits, inside).unwrap();
    assert_eq!(of("/run/emuv/vgpu"), ("/run/emuv/vgpu".to_owned(), "ro".to_owned()), "turns are taken with the others");
    assert_eq!(of("/run/emuv/vgpu/ml-1/use"), ("/run/emuv/vgpu/ml-1/use".to_owned(), "rw".to_owned()));
    assert_eq!(of("/opt/emuv/emuv-slice").1, "ro");
    assert_eq!(slice_line("ml-1"), "/run/emuv/vgpu/ml-1\n");
    let mounts = edits["mounts"].as_array().unwrap();
    let writable = mounts.iter().filter(|mount| mount["options"][0] != "ro").count();
    assert_eq!(writable, 1);
    let place = |inside: &str| mounts.iter().position(|mount| mount["containerPath"] == inside);
    assert!(place("/run/emuv/vgpu") < place("/run/emuv/vgpu/ml-1/use"), "the inner one is mounted last");
}

#[test]
fn a_slice_that_the_kernel_module_keeps_brings_its_node_and_no_other() {
    let kept = Slice { by_module: true, instance: 3, ..slice("ml-1") };
    let nvidia = json!({ "deviceNodes": [{ "path": "/dev/nvidia0" }] });
    let spec = spec_of(&kept, Some((nvidia.as_object().unwrap().clone(), "0.5.0".to_owned())));
    let expected = json!([{ "path": "/dev/nvidia0" }, { "path": "/dev/emuv3", "permissions": "rw" }]);
    assert_eq!(applied(&spec)["deviceNodes"], expected);
    assert!(applied(&spec_of(&slice("ml-1"), None)).get("deviceNodes").is_none());
}

#[test]
fn only_the_slices_gpu_is_seen() {
    assert!(env(&applied(&spec_of(&slice("ml-1"), None))).contains(&"CUDA_VISIBLE_DEVICES=GPU-aa11"));
}

#[test]
fn what_the_toolkit_says_is_taken_in_and_tells_where_the_driver_is() {
    let nvidia = json!({
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{ "path": "/dev/nvidia0" }],
        "mounts": [
            { "hostPath": "/usr/lib32/libcuda.so.580.1", "containerPath": "/usr/lib32/libcuda.so.580.1" },
            { "hostPath": "/x", "containerPath": "/usr/lib/x86_64-linux-gnu/libcuda.so.580.1" },
            { "hostPath": "/y", "containerPath": "/usr/lib/x86_64-linux-gnu/libcudadebugger.so.580.1" },
            { "hostPath": "/z", "containerPath": "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.1" },
        ],
    });
    let nvidia = nvidia.as_object().unwrap().clone();
    let spec = spec_of(&slice("ml-1"), Some((nvidia, "0.6.0".to_owned())));
    assert_eq!(spec["cdiVersion"], "0.6.0");
    let edits = applied(&spec);
    assert_eq!(edits["deviceNodes"], json!([{ "path": "/dev/nvidia0" }]));
    let variables = env(&edits);
    for entry in [
        "NVIDIA_VISIBLE_DEVICES=void",
        "EMUV_REAL_LIBCUDA=/usr/lib/x86_64-linux-gnu/libcuda.so.580.1",
        "EMUV_REAL_LIBNVML=/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.1",
    ] {
        assert!(variables.contains(&entry), "{entry} in {variables:?}");
    }
}

#[test]
fn a_slice_of_a_simulated_gpu_brings_it_along() {
    let mut simulated = slice("ml-1");
    simulated.sim = Some("vram=256M,gpus=2".to_owned());
    let edits = applied(&spec_of(&simulated, None));
    assert!(mounted(&edits, "/opt/emuv/sim/libemuv_simgpu.so").is_some());
    let variables = env(&edits);
    assert!(variables.contains(&"EMUV_SIM=vram=256M,gpus=2"), "{variables:?}");
    assert!(variables.contains(&"EMUV_REAL_LIBNVML=/opt/emuv/sim/libemuv_simgpu.so"), "{variables:?}");
}

#[test]
fn a_group_comes_with_the_version_that_knows_groups_and_no_version_is_newer_than_it_must_be() {
    let mut shared = slice("9");
    assert_eq!(spec_of(&shared, None)["cdiVersion"], "0.5.0");
    shared.user.gid = Some(1234);
    let spec = spec_of(&shared, None);
    assert_eq!((&spec["cdiVersion"], &applied(&spec)["additionalGids"]), (&json!("0.7.0"), &json!([1234])));
    assert_eq!(newer("0.10.0".into(), "0.9.0".into()), "0.10.0");
}

#[test]
fn names_of_devices_end_with_a_letter_or_digit() {
    assert!(valid_device("ml-1") && valid_device("9") && !valid_device("ml-") && !valid_device("a."));
}

/// What the specification of CDI knows in these places, as of version 0.7.0. Engines refuse a file with anything else in it;
/// `tests/cdi/run` asks the CDI project's own crate.
#[test]
fn nothing_is_in_it_that_engines_do_not_know() {
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let all_known = |value: &Value, known: &[&str]| {
        assert!(keys(value).iter().all(|key| known.contains(&key.as_str())), "{value:#}");
    };
    let mut shared = slice("ml-1");
    (shared.user.gid, shared.sim) = (Some(7), Some(String::new()));
    let spec = spec_of(&shared, None);
    all_known(&spec, &["cdiVersion", "kind", "devices", "containerEdits"]);
    assert_eq!(spec["kind"], "emuv.dev/vgpu");
    all_known(&spec["devices"][0], &["name", "containerEdits"]);
    for edits in [&spec["containerEdits"], &spec["devices"][0]["containerEdits"]] {
        all_known(edits, &["env", "mounts", "additionalGids"]);
        for mount in edits["mounts"].as_array().unwrap() {
            all_known(mount, &["hostPath", "containerPath", "options"]);
            assert!(mount["containerPath"].as_str().unwrap().starts_with('/'));
        }
        for entry in edits["env"].as_array().into_iter().flatten() {
            assert!(entry.as_str().unwrap().find('=').is_some_and(|at| at > 0));
        }
    }
}
