//! The manifests in docs/kubernetes: they are read, and say what the command and each other say.

use std::{collections::BTreeSet, process::Command};

use yaml_rust2::{Yaml, YamlLoader};

fn manifests(name: &str) -> Vec<Yaml> {
    let path = format!("{}/../../docs/kubernetes/{name}", env!("CARGO_MANIFEST_DIR"));
    YamlLoader::load_from_str(&std::fs::read_to_string(path).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn text<'y>(yaml: &'y Yaml, path: &[&str]) -> &'y str {
    path.iter().fold(yaml, |yaml, key| &yaml[*key]).as_str().unwrap_or_default()
}

fn of_kind<'y>(all: &'y [Yaml], kind: &str) -> &'y Yaml {
    all.iter().find(|one| text(one, &["kind"]) == kind).unwrap_or_else(|| panic!("there is a {kind}"))
}

fn texts(yaml: &Yaml) -> Vec<&str> {
    yaml.as_vec().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

#[test]
fn every_object_has_a_kind_a_version_and_a_name() {
    for file in ["plugin.yaml", "pods.yaml", "dra.yaml", "claims.yaml"] {
        let all = manifests(file);
        assert!(!all.is_empty());
        for one in &all {
            for path in [&["apiVersion"][..], &["kind"], &["metadata", "name"]] {
                assert!(!text(one, path).is_empty(), "{file}: {path:?} of {one:?}");
            }
        }
    }
}

#[test]
fn daemon_sets_start_commands_that_there_are_with_what_they_need_mounted() {
    for (file, needed) in [
        ("plugin.yaml", &["/run/emuv", "/var/run/cdi", "/var/lib/kubelet/device-plugins"][..]),
        (
            "dra.yaml",
            &["/run/emuv", "/var/run/cdi", "/var/lib/kubelet/plugins/emuv.dev", "/var/lib/kubelet/plugins_registry"],
        ),
    ] {
        let all = manifests(file);
        let pod = &of_kind(&all, "DaemonSet")["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let command = texts(&container["command"]);
        assert_eq!(command[..2], ["/opt/emuv/bin/emuv", "kubelet"], "{file}");
        // Each flag is known.
        let help = Command::new(env!("CARGO_BIN_EXE_emuv")).args(["kubelet", "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        for flag in command.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{file}: {flag}");
        }
        let mounts: BTreeSet<_> =
            container["volumeMounts"].as_vec().unwrap().iter().map(|mount| text(mount, &["mountPath"])).collect();
        assert!(needed.iter().all(|path| mounts.contains(path)), "{file}: {mounts:?}");
        // The engine and the kubelet read the same paths on the host.
        for volume in pod["volumes"].as_vec().unwrap() {
            assert!(mounts.contains(text(volume, &["hostPath", "path"])), "{file}: {volume:?}");
        }
    }
}

#[test]
fn the_driver_has_the_rights_that_it_uses_and_no_others() {
    let all = manifests("dra.yaml");
    let role = of_kind(&all, "ClusterRole");
    let rules: Vec<_> =
        role["rules"].as_vec().unwrap().iter().map(|rule| (texts(&rule["resources"]), texts(&rule["verbs"]))).collect();
    let expected = [
        (vec!["resourceslices"], vec!["list", "create", "update", "delete"]),
        (vec!["resourceclaims"], vec!["get"]),
        (vec!["nodes"], vec!["get"]),
    ];
    assert_eq!(rules, expected);
    let account = text(of_kind(&all, "ServiceAccount"), &["metadata", "name"]);
    let binding = of_kind(&all, "ClusterRoleBinding");
    assert_eq!(text(&binding["subjects"][0], &["name"]), account);
    assert_eq!(text(binding, &["roleRef", "name"]), text(role, &["metadata", "name"]));
    let pod = &of_kind(&all, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(text(pod, &["serviceAccountName"]), account);
    assert_eq!(text(&pod["containers"][0]["env"][0], &["name"]), "NODE_NAME");
}

#[test]
fn the_example_claims_what_the_driver_publishes() {
    let (driver, example) = (manifests("dra.yaml"), manifests("claims.yaml"));
    let class = of_kind(&driver, "DeviceClass");
    assert!(text(&class["spec"]["selectors"][0], &["cel", "expression"]).contains("device.driver == \"emuv.dev\""));
    let template = of_kind(&example, "ResourceClaimTemplate");
    let request = &template["spec"]["spec"]["devices"]["requests"][0]["exactly"];
    assert_eq!(text(request, &["deviceClassName"]), text(class, &["metadata", "name"]));
    let wanted = text(&request["selectors"][0], &["cel", "expression"]);
    assert!(wanted.contains("device.capacity[\"emuv.dev\"].vram") && wanted.contains(".compute"), "{wanted}");
    let pod = of_kind(&example, "Pod");
    let claim = &pod["spec"]["resourceClaims"][0];
    assert_eq!(text(claim, &["resourceClaimTemplateName"]), text(template, &["metadata", "name"]));
    assert_eq!(text(&pod["spec"]["containers"][0]["resources"]["claims"][0], &["name"]), text(claim, &["name"]));
}
