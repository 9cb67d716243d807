// SPDX-License-Identifier: GPL-2.0

//! The instances by their ids. Instances and their nodes come and go together, under one lock.

use core::fmt::Write;

use kernel::{
    prelude::*,
    sync::{Arc, global_lock},
};

use crate::{
    abi::MAX_INSTANCES,
    ffi,
    instance::{Attribute, Instance, Name, complain},
    setup::{self, Asked, Config, Mistake},
    text::Text,
};

/// Which instances there are.
pub(crate) struct Table {
    by_id: [Slot; MAX_INSTANCES],
    /// The one that is also `/dev/emuv`: made by the module parameters, as their only one.
    only: Option<u32>,
}

/// What an id stands for.
enum Slot {
    Free,
    /// An instance is being made, which can take long: all its pages, if it is eager.
    Reserved,
    There(Arc<Instance>),
}

impl Table {
    fn get(&self, id: u32) -> Option<Arc<Instance>> {
        match self.by_id.get(id as usize)? {
            Slot::There(instance) => Some(instance.clone()),
            Slot::Free | Slot::Reserved => None,
        }
    }

    /// Reserves `wanted`, or the lowest id that is free.
    fn reserve(&mut self, wanted: Option<u32>) -> Result<u32> {
        let free = |slot: &Slot| matches!(slot, Slot::Free);
        let id = match wanted {
            Some(id) if !self.by_id.get(id as usize).is_some_and(free) => return Err(complain(&Mistake::IdTaken(id))),
            Some(id) => id as usize,
            None => self.by_id.iter().position(free).ok_or(ENOSPC)?,
        };
        self.by_id[id] = Slot::Reserved;
        Ok(id as u32)
    }
}

global_lock! {
    /// Initialised by [`ffi::Devices::register`], before anything else can be called.
    pub(crate) unsafe(uninit) static REGISTRY: Mutex<Table> =
        Table { by_id: [const { Slot::Free }; MAX_INSTANCES], only: None };
}

/// Makes an instance and its node. Without an id, with the lowest that is free.
pub(crate) fn add(mut config: Config, wanted_id: Option<u32>, label: Name) -> Result<Arc<Instance>> {
    let id = REGISTRY.lock().reserve(wanted_id)?;
    config.instance_id = id;
    let made = Instance::new(config, label);
    let mut table = REGISTRY.lock();
    let added = made.and_then(|instance| {
        // Who opens the node at once finds the instance there when this lock is free.
        ffi::add_device(id, &device_name(Some(id)), &instance)?;
        Ok(instance)
    });
    table.by_id[id as usize] = match &added {
        Ok(instance) => Slot::There(instance.clone()),
        Err(_) => Slot::Free,
    };
    added
}

/// Takes an instance and its nodes away. Who has it open keeps what they hold until they close.
pub(crate) fn remove(id: u32) {
    let mut table = REGISTRY.lock();
    let Some(instance) = table.get(id) else { return };
    if table.only == Some(id) {
        ffi::remove_device(ffi::INFO_MINOR);
        table.only = None;
    }
    // Nobody is in an attribute afterwards; openers have a reference of their own.
    ffi::remove_device(id);
    table.by_id[id as usize] = Slot::Free;
    instance.remove();
}

/// The instance with this id.
pub(crate) fn get(id: u32) -> Option<Arc<Instance>> {
    REGISTRY.lock().get(id)
}

/// What `/dev/emuv` prints.
pub(crate) fn info(into: &mut Text<'_>) -> Result {
    let instance = {
        let table = REGISTRY.lock();
        table.only.and_then(|id| table.get(id))
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
            let asked_bytes =
                configs.iter().flatten().map(|config| config.limits.ram_bytes).fold(0, u64::saturating_add);
            setup::check_free(asked_bytes, ffi::free_ram_bytes()).map_err(|mistake| complain(&mistake))?;
        }
        for config in configs.iter().flatten() {
            add(*config, Some(config.instance_id), [0; crate::abi::NAME_BYTES])?;
        }
        if let ([Some(only), ..], 1) = (&configs[..], count) {
            let mut table = REGISTRY.lock();
            if let Some(instance) = table.get(only.instance_id) {
                ffi::add_device(ffi::INFO_MINOR, &device_name(None), &instance)?;
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
pub(crate) fn device_name(id: Option<u32>) -> [u8; 16] {
    let mut name = [0; 16];
    let mut text = Text::new(&mut name[..15]);
    // Both fit.
    let _ = match id {
        Some(id) => write!(text, "emuv{id}"),
        None => text.write_str("emuv"),
    };
    name
}
