//! `CUDA_VISIBLE_DEVICES`: which GPUs a process sees, and in which order.

/// The physical indices of the visible GPUs, in CUDA's order. `uuids` are the GPUs' identities as
/// `GPU-xxxxxxxx-...`. As the driver does, the list ends before the first entry that names no GPU, or one twice.
pub fn visible(list: Option<&str>, uuids: &[String]) -> Vec<usize> {
    let Some(list) = list else {
        return (0..uuids.len()).collect();
    };
    let mut seen = Vec::new();
    for entry in list.split(',') {
        match find(entry.trim(), uuids) {
            Some(index) if !seen.contains(&index) => seen.push(index),
            // A GPU named twice makes the whole list invalid.
            Some(_) => return Vec::new(),
            None => break,
        }
    }
    seen
}

fn find(entry: &str, uuids: &[String]) -> Option<usize> {
    if let Ok(index) = entry.parse::<usize>() {
        return (index < uuids.len()).then_some(index);
    }
    if !entry.starts_with("GPU-") {
        return None;
    }
    let mut matching = uuids.iter().enumerate().filter(|(_, uuid)| uuid.starts_with(entry));
    match (matching.next(), matching.next()) {
        (Some((index, _)), None) => Some(index),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uuids() -> Vec<String> {
        ["GPU-aa11", "GPU-ab22", "GPU-cc33"].map(str::to_owned).to_vec()
    }

    #[test]
    fn unset_is_all_and_empty_is_none() {
        assert_eq!(visible(None, &uuids()), [0, 1, 2]);
        assert!(visible(Some(""), &uuids()).is_empty());
    }

    #[test]
    fn the_order_of_the_list_is_the_order_of_the_devices() {
        assert_eq!(visible(Some("2,0"), &uuids()), [2, 0]);
        assert_eq!(visible(Some("GPU-cc, 1"), &uuids()), [2, 1]);
    }

    #[test]
    fn the_list_ends_at_the_first_invalid_entry() {
        assert_eq!(visible(Some("1,7,0"), &uuids()), [1]);
        assert_eq!(visible(Some("0,-1,1"), &uuids()), [0]);
        // A prefix of two GPUs names neither.
        assert!(visible(Some("GPU-a"), &uuids()).is_empty());
        assert!(visible(Some("0,0"), &uuids()).is_empty());
    }
}
