// SPDX-License-Identifier: GPL-2.0

//! The instances by their ids. Instances and their nodes come and go together, under one lock.

use core::fmt::Write;

use kernel::{prelude::*, sync::Arc, sync::global_lock};

use crate::{
    abi::MAX_INSTANCES,
    ffi,
    instance::{complain, Attribute, Instance, Name},
    setup::{self, Asked, Config, Mistake},
    text::Text,
};

/// Which instances there are.
pub(crate) struct Table {
    by_id: [Option<Arc<Instance>>; MAX_INSTANCES],
    /// The one that is also `/dev/emuv`: made by the module parameters, as their only one.
    only: Option<u32>,
}

global_lock! {
    /// Initialised by [`ffi::Devices::register`], before anything else can be called.
    pub(crate) unsafe(uninit) static REGISTRY: Mutex<Table> =
        Table { by_id: [const { None }; MAX_INSTANCES], only: None };
}

/// Makes an instance and its node. Without an id, the lowest that is free.
pub(crate) fn add(mut config: Config, wanted_id: Option<u32>, label: Name) -> Result<Arc<Instance>> {
    if wanted_id.is_some_and(|id| id as usize >= MAX_INSTANCES) {
        return Err(complain(&Mistake::IdTooHigh(config.instance_id)));
    }
    let mut table = REGISTRY.lock();
    let id = match wanted_id {
        Some(id) => id as usize,
        None => table.by_id.iter().position(Option::is_none).ok_or(ENOSPC)?,
    };
    if table.by_id[id].is_some() {
        drop(table);
        return Err(complain(&Mistake::IdTaken(id as u32)));
    }
    config.instance_id = id as u32;
    let instance = Instance::new(config, label)?;
    table.by_id[id] = Some(instance.clone());
    if let Err(error) = ffi::add_device(id as u32, &device_name(Some(id)), &instance) {
        table.by_id[id] = None;
        return Err(error);
    }
    Ok(instance)
}

/// Takes an instance and its nodes away. Who has it open keeps what they hold until they close.
pub(crate) fn remove(id: u32) {
    let mut table = REGISTRY.lock();
    if table.only == Some(id) {
        ffi::remove_device(ffi::INFO_MINOR);
        table.only = None;
    }
    if let Some(instance) = table.by_id.get_mut(id as usize).and_then(Option::take) {
        // Nobody is in an attribute afterwards; openers have a reference of their own.
        ffi::remove_device(id);
        instance.remove();
    }
}

/// The instance with this id.
pub(crate) fn get(id: u32) -> Option<Arc<Instance>> {
    REGISTRY.lock().by_id.get(id as usize)?.clone()
}

/// What `/dev/emuv` prints.
pub(crate) fn info(into: &mut Text<'_>) -> Result {
    let instance = {
        let table = REGISTRY.lock();
        table.only.and_then(|id| table.by_id.get(id as usize)?.clone())
    };
    instance.ok_or(ENODEV)?.show(Attribute::VramInfo, into)
}

/// All instances; they go when this is dropped.
pub(crate) struct All;

impl All {
    /// Those that the module parameters ask for: all of them, or none and an error.
    pub(crate) fn from_parameters() -> Result<Self> {
        // From here on a failure takes back what has been made.
        let all = Self;
        let mut configs = KBox::new([None; MAX_INSTANCES], GFP_KERNEL)?;
        let count = ffi::with_parameters(|asked: &Asked<'_>| {
            setup::instances(asked, ffi::ram_bytes(), &mut configs).map_err(|mistake| complain(&mistake))
        })?;
        if configs.iter().flatten().any(|config| !config.lazy_allocation) {
            let asked_bytes = configs.iter().flatten().map(|config| config.limits.ram_bytes).fold(0, u64::saturating_add);
            setup::check_free(asked_bytes, ffi::free_ram_bytes()).map_err(|mistake| complain(&mistake))?;
        }
        for config in configs.iter().flatten() {
            add(*config, Some(config.instance_id), [0; crate::abi::NAME_BYTES])?;
        }
        if let ([Some(only), ..], 1) = (&configs[..], count) {
            let mut table = REGISTRY.lock();
            if let Some(instance) = &table.by_id[only.instance_id as usize] {
                ffi::add_device(ffi::INFO_MINOR, &device_name(None), instance)?;
                table.only = Some(only.instance_id);
            }
        }
        for config in configs.iter().flatten() {
            let mut buffer = [0; 160];
            let mut line = Text::new(&mut buffer);
            let _ = write!(
                line,
                "emuv{}: {}, {} VRAM and {} RAM",
                config.instance_id,
                config.gpu.name,
                crate::text::Size(config.limits.vram_bytes),
                crate::text::Size(config.limits.ram_bytes)
            );
            pr_info!("{}\n", line.as_str());
        }
        Ok(all)
    }
}

impl Drop for All {
    fn drop(&mut self) {
        (0..MAX_INSTANCES as u32).for_each(remove);
    }
}

/// `emuvN`, or `emuv`, zero-terminated.
fn device_name(id: Option<usize>) -> [u8; 16] {
    let mut name = [0; 16];
    let mut text = Text::new(&mut name[..15]);
    // Both fit.
    let _ = match id {
        Some(id) => write!(text, "emuv{id}"),
        None => text.write_str("emuv"),
    };
    name
}
