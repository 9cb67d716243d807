//! Which GPU `--gpu` means.

use crate::gpus::GpuFacts;

/// The UUID of the GPU with this number, as nvidia-smi counts, or with this UUID or the beginning of one.
///
/// # Errors
/// One line, without the flag's name, that says what there is.
pub fn choose(wanted: &str, gpus: &[GpuFacts]) -> Result<String, String> {
    let there = || {
        let list: Vec<_> = gpus.iter().map(|gpu| format!("{} ({})", gpu.index, label(gpu))).collect();
        if list.is_empty() { "this machine has none".to_owned() } else { format!("there are {}", list.join(", ")) }
    };
    let wanted = wanted.trim();
    let found: Vec<_> = if let Ok(index) = wanted.parse::<u32>() {
        gpus.iter().filter(|gpu| gpu.index == index).collect()
    } else if wanted.starts_with("GPU-") && wanted.len() > 4 {
        gpus.iter().filter(|gpu| gpu.uuid.as_ref().is_some_and(|uuid| uuid.starts_with(wanted))).collect()
    } else {
        return Err(format!("'{wanted}' is neither a GPU's number nor its UUID (GPU-…); {}", there()));
    };
    match found[..] {
        [] => Err(format!("there is no GPU {wanted}; {}", there())),
        [gpu] => gpu.uuid.clone().ok_or_else(|| format!("GPU {wanted} does not tell its UUID")),
        _ => Err(format!("'{wanted}' fits more than one GPU; {}", there())),
    }
}

/// The same for several, with commas between them, in the order in which they are named.
///
/// # Errors
/// As [`choose`]; one is named twice.
pub fn choose_all(wanted: &str, gpus: &[GpuFacts]) -> Result<Vec<String>, String> {
    let mut all: Vec<String> = Vec::new();
    for one in wanted.split(',') {
        let uuid = choose(one, gpus)?;
        if all.contains(&uuid) {
            return Err(format!("'{wanted}' names {uuid} twice"));
        }
        all.push(uuid);
    }
    Ok(all)
}

/// What to say where `CUDA_VISIBLE_DEVICES` names a GPU by UUID that is not there (any more): the driver then hides it and
/// all that come after it, without a word.
pub fn missing(list: &str, gpus: &[GpuFacts]) -> Option<String> {
    let there = |wanted: &&str| gpus.iter().any(|gpu| gpu.uuid.as_ref().is_none_or(|uuid| uuid.starts_with(*wanted)));
    let gone = list.split(',').map(str::trim).find(|entry| entry.starts_with("GPU-") && !there(entry))?;
    let have: Vec<_> = gpus.iter().map(|gpu| format!("{} ({})", gpu.index, label(gpu))).collect();
    Some(format!(
        "CUDA_VISIBLE_DEVICES: there is no GPU {gone}, so the program sees none from there on; there are {}",
        have.join(", ")
    ))
}

fn label(gpu: &GpuFacts) -> &str {
    gpu.uuid.as_deref().or(gpu.name.as_deref()).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::Link;

    fn gpus() -> Vec<GpuFacts> {
        let gpu = |index, uuid: &str| GpuFacts {
            index,
            name: Some("card".into()),
            uuid: Some(uuid.into()),
            vram_total: None,
            vram_free: None,
            link: Link::default(),
        };
        vec![gpu(0, "GPU-aa11"), gpu(1, "GPU-aa22")]
    }

    #[test]
    fn by_number_by_uuid_or_by_the_beginning_of_one() {
        for (wanted, uuid) in [("0", "GPU-aa11"), ("1", "GPU-aa22"), ("GPU-aa22", "GPU-aa22"), ("GPU-aa1", "GPU-aa11")]
        {
            assert_eq!(choose(wanted, &gpus()), Ok(uuid.to_owned()), "{wanted}");
        }
    }

    #[test]
    fn several_are_named_with_commas_each_once() {
        assert_eq!(choose_all("1, GPU-aa1", &gpus()), Ok(vec!["GPU-aa22".to_owned(), "GPU-aa11".to_owned()]));
        assert_eq!(choose_all("0", &gpus()), Ok(vec!["GPU-aa11".to_owned()]));
        for (wanted, words) in
            [("0,GPU-aa11", "GPU-aa11 twice"), ("0,2", "no GPU 2"), ("0,", "'' is neither"), ("", "''")]
        {
            assert!(choose_all(wanted, &gpus()).unwrap_err().contains(words), "{wanted}");
        }
    }

    #[test]
    fn a_gpu_that_has_gone_is_missed_in_the_list_of_visible_devices() {
        for list in ["", "0,1", "7", "GPU-aa11", "GPU-aa,GPU-aa22", "-1", "MIG-aa11"] {
            assert_eq!(missing(list, &gpus()), None, "{list}");
        }
        let words = missing("GPU-aa11, GPU-bb33,GPU-aa22", &gpus()).unwrap();
        for part in ["GPU-bb33", "0 (GPU-aa11)", "1 (GPU-aa22)"] {
            assert!(words.contains(part) && !words.contains('\n'), "{words}");
        }
    }

    #[test]
    fn one_that_does_not_exist_is_refused_with_a_list_of_what_does() {
        for wanted in ["2", "GPU-bb", "GPU-aa", "-1", "first", "GPU-", ""] {
            let error = choose(wanted, &gpus()).unwrap_err();
            assert!(error.contains("0 (GPU-aa11), 1 (GPU-aa22)") && !error.contains('\n'), "{wanted}: {error}");
        }
        assert!(choose("0", &[]).unwrap_err().contains("this machine has none"));
    }
}
