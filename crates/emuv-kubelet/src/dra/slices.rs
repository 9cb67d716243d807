//! The list of a node's devices, as ResourceSlices (`resource.k8s.io/v1`), and how what is published becomes what there is.

use serde_json::{Map, Value, json};

use super::{Attribute, Capacity, Cluster, Driver, PoolDevice, field, quantity, text};

/// Devices that one ResourceSlice may have.
const MOST_DEVICES: usize = 128;
/// Characters that the text of an attribute may have.
const MOST_CHARACTERS: usize = 64;

const PATH: &str = "/apis/resource.k8s.io/v1/resourceslices";

/// What has to be done for the published list to be the one that is wanted.
#[derive(Debug, PartialEq)]
enum Step {
    Create(Value),
    Replace(String, Value),
    Delete(String),
}

/// The devices as ResourceSlices of this generation of the pool. `node_uid`: they go when the node goes.
pub fn resource_slices(driver: &Driver, devices: &[PoolDevice], generation: u64, node_uid: Option<&str>) -> Vec<Value> {
    let chunks: Vec<_> = devices.chunks(MOST_DEVICES).collect();
    let slice = |(index, chunk): (usize, &&[PoolDevice])| {
        let mut metadata = json!({ "name": format!("{}-{}-{index}", driver.node, driver.name) });
        if let Some(uid) = node_uid {
            let owner =
                json!({ "apiVersion": "v1", "kind": "Node", "name": driver.node, "uid": uid, "controller": true });
            metadata["ownerReferences"] = json!([owner]);
        }
        json!({
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": metadata,
            "spec": {
                "driver": driver.name,
                "nodeName": driver.node,
                "pool": { "name": driver.node, "generation": generation, "resourceSliceCount": chunks.len() },
                "devices": chunk.iter().map(device).collect::<Vec<_>>(),
            },
        })
    };
    chunks.iter().enumerate().map(slice).collect()
}

fn device(device: &PoolDevice) -> Value {
    let attribute = |attribute: &Attribute| match attribute {
        Attribute::Text(text) => json!({ "string": text.chars().take(MOST_CHARACTERS).collect::<String>() }),
        Attribute::Number(number) => json!({ "int": number }),
        Attribute::Truth(truth) => json!({ "bool": truth }),
    };
    let capacity = |capacity: &Capacity| match capacity {
        Capacity::Bytes(bytes) => json!({ "value": quantity::of_bytes(*bytes) }),
        Capacity::Count(count) => json!({ "value": quantity::of_count(*count) }),
    };
    let attributes: Map<_, _> =
        device.attributes.iter().map(|(name, value)| (name.clone(), attribute(value))).collect();
    let capacity: Map<_, _> = device.capacity.iter().map(|(name, value)| (name.clone(), capacity(value))).collect();
    json!({ "name": device.name, "attributes": attributes, "capacity": capacity })
}

/// Publishes the list. Gives the pool's new generation if anything had to change.
///
/// # Errors
/// One line; some of it may be done, and the next call does the rest.
pub(super) fn publish(cluster: &Cluster, driver: &Driver, devices: &[PoolDevice]) -> Result<Option<u64>, String> {
    let selected = format!("{PATH}?fieldSelector=spec.nodeName%3D{}%2Cspec.driver%3D{}", driver.node, driver.name);
    let found = cluster
        .get(&selected)?
        .ok_or("the API server has no ResourceSlices of resource.k8s.io/v1: Kubernetes 1.34 or newer has")?;
    let found = found["items"].as_array().cloned().unwrap_or_default();
    if is_published(&found, driver, devices) {
        return Ok(None);
    }
    let node = cluster.get(&format!("/api/v1/nodes/{}", driver.node))?;
    let node = node.ok_or_else(|| format!("there is no node '{}' (--node)", driver.node))?;
    let generation = found.iter().filter_map(generation).max().unwrap_or(0) + 1;
    let wanted = resource_slices(driver, devices, generation, Some(text(&node, &["metadata", "uid"])));
    for step in steps(&found, wanted) {
        match step {
            Step::Create(slice) => cluster.create(PATH, &slice)?,
            Step::Replace(name, slice) => cluster.replace(&format!("{PATH}/{name}"), &slice)?,
            Step::Delete(name) => cluster.delete(&format!("{PATH}/{name}"))?,
        }
    }
    Ok(Some(generation))
}

/// Whether what was found is the list, whole and of one generation. Fields that the server has added do not matter.
fn is_published(found: &[Value], driver: &Driver, devices: &[PoolDevice]) -> bool {
    let generation = found.first().and_then(generation).unwrap_or(1);
    let wanted = resource_slices(driver, devices, generation, None);
    let by_name = |name: &str| found.iter().find(|slice| text(slice, &["metadata", "name"]) == name);
    found.len() == wanted.len()
        && wanted.iter().all(|slice| {
            by_name(text(slice, &["metadata", "name"]))
                .is_some_and(|there| has(field(there, &["spec"]), &slice["spec"]))
        })
}

/// Whether all that is in `wanted` is in `there`; lists have to be alike in length.
fn has(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(name, value)| has(there.get(name).unwrap_or(&Value::Null), value))
        }
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(there, wanted)| has(there, wanted))
        }
        // The server leaves empty objects out.
        (Value::Null, Value::Object(wanted)) => wanted.is_empty(),
        (there, wanted) => there == wanted,
    }
}

fn generation(slice: &Value) -> Option<u64> {
    field(slice, &["spec", "pool", "generation"]).as_u64()
}

fn steps(found: &[Value], wanted: Vec<Value>) -> Vec<Step> {
    let name = |slice: &Value| text(slice, &["metadata", "name"]).to_owned();
    let names: Vec<_> = wanted.iter().map(name).collect();
    let surplus = found.iter().map(name).filter(|found| !names.contains(found)).map(Step::Delete);
    let step = |mut slice: Value| match found.iter().find(|there| name(there) == name(&slice)) {
        Some(there) => {
            slice["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
            Step::Replace(name(there), slice)
        }
        None => Step::Create(slice),
    };
    // What names devices that are gone goes first: fewer slices than the pool says are incomplete, and then nothing is allocated.
    let surplus: Vec<_> = surplus.collect();
    surplus.into_iter().chain(wanted.into_iter().map(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver() -> Driver {
        Driver {
            name: "emuv.dev".into(),
            node: "node-1".into(),
            kubelet_dir: "/k".into(),
            state_dir: "/s".into(),
            interval: std::time::Duration::from_secs(1),
        }
    }

    fn devices(count: usize) -> Vec<PoolDevice> {
        let device = |number: usize| PoolDevice {
            name: format!("ml-{number}"),
            attributes: [("gpu", Attribute::Text("A".repeat(70))), ("weight", Attribute::Number(100))]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            capacity: [("vram".to_owned(), Capacity::Bytes(6 << 30))].into(),
        };
        (0..count).map(device).collect()
    }

    /// As the server has it after it was told.
    fn kept(mut slice: Value, version: u64) -> Value {
        slice["metadata"]["resourceVersion"] = json!(version.to_string());
        slice["metadata"]["uid"] = json!("u");
        slice["spec"]["devices"][0]["allowMultipleAllocations"] = json!(false);
        slice
    }

    #[test]
    fn a_device_is_what_the_scheduler_reads() {
        let slices = resource_slices(&driver(), &devices(1), 3, Some("n-uid"));
        assert_eq!(slices.len(), 1);
        let expected = json!({
            "driver": "emuv.dev",
            "nodeName": "node-1",
            "pool": { "name": "node-1", "generation": 3, "resourceSliceCount": 1 },
            "devices": [{
                "name": "ml-0",
                "attributes": { "gpu": { "string": "A".repeat(64) }, "weight": { "int": 100 } },
                "capacity": { "vram": { "value": "6Gi" } },
            }],
        });
        assert_eq!(slices[0]["spec"], expected);
        assert_eq!(slices[0]["metadata"]["name"], "node-1-emuv.dev-0");
        assert_eq!(slices[0]["metadata"]["ownerReferences"][0]["uid"], "n-uid");
    }

    #[test]
    fn more_devices_than_one_slice_may_have_are_several_of_one_pool() {
        let slices = resource_slices(&driver(), &devices(300), 1, None);
        let counts: Vec<_> = slices.iter().map(|slice| slice["spec"]["devices"].as_array().unwrap().len()).collect();
        assert_eq!(counts, [128, 128, 44]);
        assert!(slices.iter().all(|slice| slice["spec"]["pool"]["resourceSliceCount"] == 3));
        assert!(resource_slices(&driver(), &[], 1, None).is_empty());
    }

    #[test]
    fn what_is_published_already_is_left_alone() {
        let found: Vec<_> =
            resource_slices(&driver(), &devices(130), 4, Some("n")).into_iter().map(|slice| kept(slice, 9)).collect();
        assert!(is_published(&found, &driver(), &devices(130)));
        assert!(
            !is_published(&found, &driver(), &devices(129)) && !is_published(&found[..1], &driver(), &devices(130))
        );
        let mut mixed = found.clone();
        mixed[1]["spec"]["pool"]["generation"] = json!(3);
        assert!(!is_published(&mixed, &driver(), &devices(130)), "half of a change");
        assert!(is_published(&[], &driver(), &[]));
    }

    #[test]
    fn a_change_makes_replaces_and_removes() {
        let found: Vec<_> =
            resource_slices(&driver(), &devices(130), 4, None).into_iter().map(|slice| kept(slice, 9)).collect();
        let fewer = steps(&found, resource_slices(&driver(), &devices(2), 5, None));
        assert_eq!(fewer[0], Step::Delete("node-1-emuv.dev-1".into()));
        let [_, Step::Replace(name, slice)] = &fewer[..] else { panic!("{fewer:?}") };
        assert_eq!((name.as_str(), &slice["metadata"]["resourceVersion"]), ("node-1-emuv.dev-0", &json!("9")));
        let more = steps(&found[..1], resource_slices(&driver(), &devices(130), 5, None));
        assert!(matches!(&more[..], [Step::Replace(..), Step::Create(_)]), "{more:?}");
        assert_eq!(steps(&found, Vec::new()).len(), 2);
    }
}
