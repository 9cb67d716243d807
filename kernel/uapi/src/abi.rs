// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only

//! The ioctls of `/dev/emuvN` and their structures.
//!
//! Every structure begins with [`VERSION`]; the module refuses another one with `EPROTONOSUPPORT` and changes nothing. A
//! structure never changes its size or meaning within a version. Padding is explicit, all fields have the same place on 32 and
//! 64 bits. Unknown flags are `EINVAL`, unknown numbers or sizes `ENOTTY`.
//!
//! | ioctl | does | errors of its own |
//! |---|---|---|
//! | [`CHARGE`] | takes VRAM and RAM bytes for this open file, both or neither | `EDQUOT`: no room, see below |
//! | [`RELEASE`] | gives some back | `EINVAL`: more than this file holds; nothing changes |
//! | [`QUERY`] | limits, use, peak, holders; limits are then seen (see below) | |
//! | [`EXPORT`] | a dma-buf of a range of the RAM part | `EFBIG`: beyond its end, `EDQUOT`, `ENOMEM` |
//!
//! `CHARGE` is refused with `EDQUOT` if the instance has no room (what is left is in the structure), `ENOSPC` if the task's dmem
//! cgroup has none, `ENODEV` if the instance is gone, `EOVERFLOW` for more than any memory.
//!
//! What an open file holds is given back when it is closed, however its process ended.
//!
//! `poll`: `POLLIN` always (reading RAM never waits); `POLLOUT` unless the file's last charge was refused and would be refused
//! again; `POLLPRI` when the limits changed since the file's last query; `POLLHUP | POLLERR` when the instance is gone.

/// Version of every structure here.
pub const VERSION: u32 = 1;

/// Takes bytes for this open file: [`Charge`].
pub const CHARGE: u32 = read_write(0x00, size_of::<Charge>());
/// Gives bytes of this open file back: [`Charge`].
pub const RELEASE: u32 = read_write(0x01, size_of::<Charge>());
/// Limits and use: [`Query`].
pub const QUERY: u32 = read_write(0x02, size_of::<Query>());
/// A dma-buf of a range of the RAM part: [`Export`].
pub const EXPORT: u32 = read_write(0x03, size_of::<Export>());

/// Length of a name in [`Query`], with its ending zero.
pub const NAME_BYTES: usize = 64;

/// Highest number of instances, and so one more than the highest instance id.
pub const MAX_INSTANCES: usize = 64;

/// Argument of [`CHARGE`] and [`RELEASE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// [`VERSION`].
    pub version: u32,
    /// 0.
    pub flags: u32,
    /// VRAM to take or give back, bytes.
    pub vram_bytes: u64,
    /// RAM to take or give back, bytes.
    pub ram_bytes: u64,
    /// Out: VRAM that the instance has left, bytes. Filled in when there was no room, too.
    pub vram_left_bytes: u64,
    /// Out: RAM that the instance has left, bytes. Filled in when there was no room, too.
    pub ram_left_bytes: u64,
}

/// Argument of [`QUERY`]: `version` and `flags` in, the rest out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// [`VERSION`].
    pub version: u32,
    /// 0.
    pub flags: u32,
    /// N of `/dev/emuvN`.
    pub instance_id: u32,
    /// Open files (and exported buffers) of the instance.
    pub holders: u32,
    /// VRAM share, bytes.
    pub vram_limit_bytes: u64,
    /// RAM share, bytes.
    pub ram_limit_bytes: u64,
    /// VRAM charged by all holders, bytes.
    pub vram_used_bytes: u64,
    /// RAM charged by all holders plus `resident_bytes`, bytes.
    pub ram_used_bytes: u64,
    /// Most VRAM ever charged at once, bytes.
    pub vram_peak_bytes: u64,
    /// Most RAM ever used at once, bytes.
    pub ram_peak_bytes: u64,
    /// Pages that the RAM part of the node has, bytes.
    pub resident_bytes: u64,
    /// VRAM charged by this open file, bytes.
    pub own_vram_bytes: u64,
    /// RAM charged by this open file, bytes.
    pub own_ram_bytes: u64,
    /// Grows by one with every change of the limits.
    pub generation: u64,
    /// Name of the GPU model, zero-terminated UTF-8.
    pub gpu: [u8; NAME_BYTES],
    /// The name given to the instance, zero-terminated; empty if none was given.
    pub label: [u8; NAME_BYTES],
}

impl Default for Query {
    fn default() -> Self {
        Self {
            version: VERSION,
            flags: 0,
            instance_id: 0,
            holders: 0,
            vram_limit_bytes: 0,
            ram_limit_bytes: 0,
            vram_used_bytes: 0,
            ram_used_bytes: 0,
            vram_peak_bytes: 0,
            ram_peak_bytes: 0,
            resident_bytes: 0,
            own_vram_bytes: 0,
            own_ram_bytes: 0,
            generation: 0,
            gpu: [0; NAME_BYTES],
            label: [0; NAME_BYTES],
        }
    }
}

/// Argument of [`EXPORT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Export {
    /// [`VERSION`].
    pub version: u32,
    /// 0.
    pub flags: u32,
    /// Where the range begins in the RAM part, bytes; a multiple of the page size.
    pub offset_bytes: u64,
    /// Its length, bytes; a multiple of the page size, not 0.
    pub length_bytes: u64,
    /// Out: descriptor of the dma-buf, close-on-exec.
    pub fd: i32,
    /// 0.
    pub reserved: u32,
}

/// The layouts are part of the interface.
const _: () = {
    assert!(size_of::<Charge>() == 40 && align_of::<Charge>() == 8);
    assert!(size_of::<Query>() == 224 && align_of::<Query>() == 8);
    assert!(size_of::<Export>() == 32 && align_of::<Export>() == 8);
};

/// `_IOWR(0xE6, number, size)` of `asm-generic/ioctl.h`; 0xE6 is free in the kernel's list.
#[allow(clippy::cast_possible_truncation)] // the assertion
const fn read_write(number: u8, size: usize) -> u32 {
    assert!(size < 1 << 14);
    (3 << 30) | ((size as u32) << 16) | (0xE6 << 8) | number as u32
}
