// SPDX-License-Identifier: GPL-2.0

//! The ioctls of `/dev/emuvN`: `abi.rs` says what they mean.

use kernel::{
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::Arc,
    transmute::{AsBytes, FromBytes},
    uaccess::{UserPtr, UserSlice},
};

use crate::{
    abi::{self, Charge, Export, Query},
    ffi::{self, Wire},
    instance::Opener,
    ledger::Amount,
};

/// Carries out `command`. Whatever the argument is, the instance's books stay exact; a refusal changes nothing.
pub(crate) fn ioctl(opener: &Opener, command: u32, argument: UserPtr) -> Result {
    match command {
        abi::CHARGE => exchange(argument, |charge: &mut Charge| {
            let (charged, left) = opener.charge(asked(charge)?)?;
            tell(charge, left);
            charged
        }),
        abi::RELEASE => exchange(argument, |charge: &mut Charge| {
            let (released, left) = opener.release(asked(charge)?)?;
            tell(charge, left);
            released
        }),
        abi::QUERY => exchange(argument, |query: &mut Query| {
            check(query.version, query.flags)?;
            *query = opener.query()?;
            Ok(())
        }),
        abi::EXPORT => exchange(argument, |export: &mut Export| {
            check(export.version, export.flags | export.reserved)?;
            export.fd = export_range(opener, export.offset_bytes, export.length_bytes)?;
            Ok(())
        }),
        _ => Err(ENOTTY),
    }
}

/// Reads the argument, lets `f` work on it, writes it back (after a refusal as well: what is left is in it).
fn exchange<T>(argument: UserPtr, f: impl FnOnce(&mut T) -> Result) -> Result
where
    Wire<T>: AsBytes + FromBytes,
{
    let (mut reader, mut writer) = UserSlice::new(argument, size_of::<T>()).reader_writer();
    let mut value: Wire<T> = reader.read()?;
    let done = f(&mut value.0);
    writer.write(&value)?;
    done
}

fn check(version: u32, flags: u32) -> Result {
    if version != abi::VERSION {
        return Err(EPROTONOSUPPORT);
    }
    if flags != 0 {
        return Err(EINVAL);
    }
    Ok(())
}

fn asked(charge: &Charge) -> Result<Amount> {
    check(charge.version, charge.flags)?;
    Ok(Amount::new(charge.vram_bytes, charge.ram_bytes))
}

fn tell(charge: &mut Charge, left: Amount) {
    charge.vram_left_bytes = left.vram_bytes;
    charge.ram_left_bytes = left.ram_bytes;
}

/// A dma-buf of a range, all its pages made. The buffer is a holder of its own.
fn export_range(opener: &Opener, offset_bytes: u64, length_bytes: u64) -> Result<i32> {
    let page = PAGE_SIZE as u64;
    if length_bytes == 0 || offset_bytes % page != 0 || length_bytes % page != 0 {
        return Err(EINVAL);
    }
    let end_bytes = offset_bytes.checked_add(length_bytes).ok_or(EFBIG)?;
    if end_bytes > opener.instance.end_bytes() {
        return Err(EFBIG);
    }
    let holder = Opener::new(Arc::clone(&opener.instance))?;
    let (first, pages) = ((offset_bytes >> PAGE_SHIFT) as usize, (length_bytes >> PAGE_SHIFT) as usize);
    for index in first..first + pages {
        drop(holder.instance.page(index, true).map_err(|error| if error == ENOSPC { EDQUOT } else { error })?);
        if current!().signal_pending() {
            return Err(EINTR);
        }
    }
    ffi::export(holder, first, pages)
}
