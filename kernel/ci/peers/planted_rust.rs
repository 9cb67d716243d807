// SPDX-License-Identifier: GPL-2.0

//! Mistakes on purpose, in Rust, as `emuv.ko` might make them: that the detectors of the debug kernel see them shows that they
//! watch Rust too, and the locks of its abstractions.

use kernel::{new_mutex, prelude::*};

module! {
    type: Planted,
    name: "planted_rust",
    authors: ["emuV contributors"],
    description: "Mistakes on purpose",
    license: "GPL",
    params: {
        bug: u32 {
            default: 0,
            description: "1: an access after freeing; 2: locks in both orders; 3: leaks",
        },
    },
}

struct Planted;

impl kernel::Module for Planted {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        match module_parameters::bug.value() {
            1 => after_freeing()?,
            2 => both_orders()?,
            3 => leaks()?,
            _ => {}
        }
        // Nothing is left to stay for.
        Err(ENODEV)
    }
}

fn after_freeing() -> Result {
    let memory = KBox::into_raw(KBox::new([0_u8; 64], GFP_KERNEL)?);
    // SAFETY: None: that is the mistake. The debug kernel does not give freed memory away at once.
    unsafe {
        drop(KBox::from_raw(memory));
        memory.cast::<u8>().add(5).read_volatile();
    }
    Ok(())
}

fn both_orders() -> Result {
    let one = KBox::pin_init(new_mutex!((), "planted_one"), GFP_KERNEL)?;
    let other = KBox::pin_init(new_mutex!((), "planted_other"), GFP_KERNEL)?;
    for (first, second) in [(&one, &other), (&other, &one)] {
        let first = first.lock();
        drop(second.lock());
        drop(first);
    }
    Ok(())
}

/// Some are found through what registers and stacks still hold, so one would not be enough.
fn leaks() -> Result {
    for _ in 0..64 {
        let mut memory = KBox::new([0_u8; 48], GFP_KERNEL)?;
        memory[..15].copy_from_slice(b"planted in Rust");
        KBox::leak(memory);
    }
    Ok(())
}
