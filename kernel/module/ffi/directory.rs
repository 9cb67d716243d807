// SPDX-License-Identifier: GPL-2.0

//! Registering a directory in configfs.
//!
//! The kernel's own [`Subsystem::new`] (7.3) drops what could not be registered, whose drop unregisters it and follows a null
//! pointer: without memory, loading the module would be an oops. So it is done here; what is in the directory is the abstraction's.

use kernel::{
    bindings,
    configfs::{ItemType, Subsystem},
    error::to_result,
    prelude::*,
    types::Opaque,
};

/// A directory of configfs, there until this is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Directory {
    #[pin]
    subsystem: Opaque<bindings::configfs_subsystem>,
}

// SAFETY: It is only dropped, which any thread may do.
unsafe impl Send for Directory {}
// SAFETY: Nothing can be done with a reference.
unsafe impl Sync for Directory {}

impl Directory {
    /// Of type `of`. `Data` must have no size: there is none of it.
    pub(crate) fn new<Data>(
        name: &'static CStr,
        of: &'static ItemType<Subsystem<Data>, Data>,
    ) -> impl PinInit<Self, Error> {
        // The functions of `of` find a `Subsystem<Data>` around the C structure: it is exactly that, and a `Data` of no size.
        const { assert!(size_of::<Data>() == 0 && align_of::<Data>() == 1) };
        const { assert!(size_of::<Subsystem<Data>>() == size_of::<bindings::configfs_subsystem>()) };
        let item_type = super::item_type(of);
        let register = move |place: *mut bindings::configfs_subsystem| {
            // SAFETY: `place` is memory for it, where it stays. It is zeroed before its parts are made; all that is named is static.
            unsafe {
                place.write_bytes(0, 1);
                bindings::config_group_init_type_name(&raw mut (*place).su_group, name.as_char_ptr(), item_type);
                bindings::__mutex_init(
                    &raw mut (*place).su_mutex,
                    c"emuv_configfs".as_char_ptr(),
                    kernel::static_lock_class!().as_ptr(),
                );
                to_result(bindings::configfs_register_subsystem(place))
                    .inspect_err(|_| bindings::mutex_destroy(&raw mut (*place).su_mutex))
            }
        };
        try_pin_init!(Self { subsystem <- Opaque::try_ffi_init(register) })
    }
}

#[pinned_drop]
impl PinnedDrop for Directory {
    fn drop(self: Pin<&mut Self>) {
        let subsystem = self.subsystem.get();
        // SAFETY: Registered by `new`, else there would be nothing to drop; nothing uses it afterwards.
        unsafe {
            bindings::configfs_unregister_subsystem(subsystem);
            bindings::mutex_destroy(&raw mut (*subsystem).su_mutex);
        }
    }
}
