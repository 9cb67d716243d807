// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/config/emuv/NAME`: instances at run time.
//!
//! ```text
//! mkdir ml-1; echo 4090 > ml-1/gpu_model; echo 6442450944 > ml-1/physical_vram_bytes; echo 1 > ml-1/enable
//! ```
//!
//! `gpu_model`, `instance_id` and `lazy_allocation` are fixed while the instance is enabled (`EBUSY`); the two sizes change
//! its limits at once. `rmdir` disables. The directories hold the module.

use core::fmt::Write;

use kernel::{
    configfs::{AttributeOperations, Group, GroupOperations, ItemType, Subsystem, configfs_attrs},
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{Arc, Mutex},
};

use crate::{
    abi, ffi,
    gpus::Gpu,
    instance::{Instance, Name, complain, name, number, word},
    ledger::Amount,
    registry,
    setup::{self, Config, Mistake},
    text::Text,
};

/// The directory `emuv`.
pub(crate) struct Tree;

/// What [`Tree`] and its files are to configfs.
pub(crate) fn tree_type() -> &'static ItemType<Subsystem<Tree>, Tree> {
    let tree_type = configfs_attrs! {
        container: Subsystem<Tree>,
        data: Tree,
        child: Draft,
        attributes: [version: 0],
    };
    ffi::own_attributes(tree_type);
    tree_type
}

#[vtable]
impl AttributeOperations<0> for Tree {
    type Data = Tree;

    fn show(_tree: &Tree, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        print(page, |text| writeln!(text, "{}", abi::VERSION))
    }
}

#[vtable]
impl GroupOperations for Tree {
    type Child = Draft;

    fn make_group(&self, directory: &CStr) -> Result<impl PinInit<Group<Draft>, Error>> {
        let label = directory.to_str().map_err(|_| EINVAL)?;
        if label.len() >= abi::NAME_BYTES {
            return Err(ENAMETOOLONG);
        }
        let draft_type = configfs_attrs! {
            container: Group<Draft>,
            data: Draft,
            attributes: [
                gpu_model: 0,
                physical_vram_bytes: 1,
                virtual_vram_bytes: 2,
                instance_id: 3,
                lazy_allocation: 4,
                enable: 5,
            ],
        };
        ffi::own_attributes(draft_type);
        Ok(Group::new(directory.try_into()?, draft_type, Draft::new(name(label))))
    }
}

/// A directory: an instance, or what it is to be.
///
/// `rmdir` drops it, once nobody has one of its files open.
#[pin_data(PinnedDrop)]
pub(crate) struct Draft {
    label: Name,
    #[pin]
    wish: Mutex<Wish>,
}

struct Wish {
    gpu: Option<&'static Gpu>,
    /// While it is enabled, the instance knows them.
    limits: Amount,
    instance_id: Option<u32>,
    lazy_allocation: bool,
    enabled: Option<Arc<Instance>>,
}

impl Wish {
    fn limits(&self) -> Amount {
        self.enabled.as_ref().map_or(self.limits, |instance| instance.limits())
    }
}

impl Draft {
    fn new(label: Name) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            label,
            wish <- new_mutex!(Wish {
                gpu: None,
                limits: Amount::new(0, 0),
                instance_id: None,
                lazy_allocation: true,
                enabled: None,
            }, "emuv_draft"),
        })
    }

    /// Changes what is fixed while the instance is enabled.
    fn change(&self, f: impl FnOnce(&mut Wish) -> Result) -> Result {
        let mut wish = self.wish.lock();
        if wish.enabled.is_some() {
            return Err(EBUSY);
        }
        f(&mut wish)
    }

    /// Changes a limit: the instance's, or that of the instance to be.
    fn limit(&self, f: impl FnOnce(Amount) -> Amount) -> Result {
        let mut wish = self.wish.lock();
        match &wish.enabled {
            Some(instance) => instance.resize(f)?,
            None => wish.limits = f(wish.limits),
        }
        Ok(())
    }

    fn enable(&self) -> Result {
        let mut wish = self.wish.lock();
        if wish.enabled.is_some() {
            return Ok(());
        }
        let gpu = wish.gpu.ok_or_else(|| complain(&Mistake::Missing("gpu_model")))?;
        setup::check_limits(gpu, wish.limits, ffi::ram_bytes()).map_err(|mistake| complain(&mistake))?;
        let config = Config {
            instance_id: wish.instance_id.unwrap_or(0),
            gpu,
            limits: wish.limits,
            lazy_allocation: wish.lazy_allocation,
        };
        let instance = registry::add(config, wish.instance_id, self.label)?;
        wish.enabled = Some(instance);
        Ok(())
    }

    fn disable(&self) {
        let mut wish = self.wish.lock();
        if let Some(instance) = wish.enabled.take() {
            // They may have been changed in sysfs as well.
            wish.limits = instance.limits();
            registry::remove(instance.config().instance_id);
        }
    }
}

#[pinned_drop]
#[allow(unsafe_code)] // the macro's
impl PinnedDrop for Draft {
    fn drop(self: Pin<&mut Self>) {
        self.disable();
    }
}

/// An attribute of [`Draft`]: its number, what it shows, what it does with a text.
macro_rules! attribute {
    ($number:literal, $show:expr, $store:expr) => {
        #[vtable]
        impl AttributeOperations<$number> for Draft {
            type Data = Draft;

            fn show(draft: &Draft, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
                let show: fn(&Wish, &mut Text<'_>) -> core::fmt::Result = $show;
                let wish = draft.wish.lock();
                print(page, |text| show(&wish, text))
            }

            fn store(draft: &Draft, page: &[u8]) -> Result {
                let store: fn(&Draft, &[u8]) -> Result = $store;
                store(draft, page)
            }
        }
    };
}

attribute!(0, |wish, text| writeln!(text, "{}", wish.gpu.map_or("", |gpu| gpu.name)), |draft, text| {
    let gpu = setup::model(word(text)?).map_err(|mistake| complain(&mistake))?;
    draft.change(|wish| {
        wish.gpu = Some(gpu);
        Ok(())
    })
});
attribute!(1, |wish, text| writeln!(text, "{}", wish.limits().vram_bytes), |draft, text| {
    let vram_bytes = number(text)?;
    draft.limit(|limits| Amount { vram_bytes, ..limits })
});
attribute!(2, |wish, text| writeln!(text, "{}", wish.limits().ram_bytes), |draft, text| {
    let ram_bytes = number(text)?;
    draft.limit(|limits| Amount { ram_bytes, ..limits })
});
attribute!(
    3,
    |wish, text| match wish.enabled.as_ref().map(|instance| instance.config().instance_id).or(wish.instance_id) {
        Some(id) => writeln!(text, "{id}"),
        None => writeln!(text),
    },
    |draft, text| {
        let id = u32::try_from(number(text)?).unwrap_or(u32::MAX);
        if id as usize >= abi::MAX_INSTANCES {
            return Err(complain(&Mistake::IdTooHigh(id)));
        }
        draft.change(|wish| {
            wish.instance_id = Some(id);
            Ok(())
        })
    }
);
attribute!(4, |wish, text| writeln!(text, "{}", u8::from(wish.lazy_allocation)), |draft, text| {
    let lazy_allocation = yes(text)?;
    draft.change(|wish| {
        wish.lazy_allocation = lazy_allocation;
        Ok(())
    })
});
attribute!(5, |wish, text| writeln!(text, "{}", u8::from(wish.enabled.is_some())), |draft, text| {
    if yes(text)? {
        draft.enable()
    } else {
        draft.disable();
        Ok(())
    }
});

fn yes(text: &[u8]) -> Result<bool> {
    match word(text)? {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(EINVAL),
    }
}

fn print(page: &mut [u8; PAGE_SIZE], f: impl FnOnce(&mut Text<'_>) -> core::fmt::Result) -> Result<usize> {
    let mut text = Text::new(page);
    f(&mut text).map_err(|_| EOVERFLOW)?;
    Ok(text.len())
}
