// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only

//! From what was asked (module parameters, configfs) to instances that can be made, or to a mistake that says which parameter
//! and why. Everything is checked before anything is made.

use core::fmt;

use crate::{
    abi::MAX_INSTANCES,
    gpus::{self, Gpu},
    ledger::Amount,
    text::Size,
};

/// Bytes of the article's "GB".
pub const GIB: u64 = 1 << 30;

/// An instance that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// N of `/dev/emuvN`.
    pub instance_id: u32,
    /// The model it is labelled with.
    pub gpu: &'static Gpu,
    /// Its shares.
    pub limits: Amount,
    /// Whether its RAM pages are made at their first touch; otherwise all at once.
    pub lazy_allocation: bool,
}

/// Module parameters as they were given. Each list has one value for all instances or one for each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// `gpu_model`
    pub gpu_model: &'a [&'a str],
    /// `physical_vram_gb`
    pub physical_vram_gb: &'a [u32],
    /// `virtual_vram_gb`
    pub virtual_vram_gb: &'a [u32],
    /// `instance_id`
    pub instance_id: &'a [u32],
    /// `lazy_allocation`
    pub lazy_allocation: bool,
}

/// Why nothing was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake<'a> {
    /// A parameter that every instance needs was not given.
    Missing(&'static str),
    /// A list has neither one value nor one for each instance.
    Count {
        /// Which.
        parameter: &'static str,
        /// Values that it has.
        given: usize,
        /// Instances.
        instances: usize,
    },
    /// No such model in the table.
    UnknownModel(&'a str),
    /// An instance without VRAM.
    NoVram,
    /// More VRAM than the model has.
    MoreThanCard {
        /// Asked for, bytes.
        asked_bytes: u64,
        /// The model.
        gpu: &'static Gpu,
    },
    /// More virtual VRAM than the machine has RAM.
    MoreThanRam {
        /// Asked for, bytes.
        asked_bytes: u64,
        /// RAM of the machine, bytes.
        ram_bytes: u64,
    },
    /// Not so much RAM is free as the pages need that are to be made at once.
    NotFree {
        /// Asked for, bytes.
        asked_bytes: u64,
    },
    /// An instance id from [`MAX_INSTANCES`] on.
    IdTooHigh(u32),
    /// An instance id that is taken.
    IdTaken(u32),
}

impl Mistake<'_> {
    /// The error number that says it best (positive).
    #[must_use]
    pub const fn errno(&self) -> i32 {
        const ENOMEM: i32 = 12;
        const EBUSY: i32 = 16;
        const ENODEV: i32 = 19;
        const EINVAL: i32 = 22;
        const ERANGE: i32 = 34;
        match self {
            Mistake::Missing(_) | Mistake::Count { .. } | Mistake::NoVram => EINVAL,
            Mistake::UnknownModel(_) => ENODEV,
            Mistake::MoreThanCard { .. } | Mistake::IdTooHigh(_) => ERANGE,
            Mistake::MoreThanRam { .. } | Mistake::NotFree { .. } => ENOMEM,
            // Not EEXIST, which from a module means that it is loaded already.
            Mistake::IdTaken(_) => EBUSY,
        }
    }
}

impl fmt::Display for Mistake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Mistake::Missing(parameter) => write!(f, "{parameter} is missing: every instance needs it"),
            Mistake::Count { parameter, given, instances } => {
                write!(f, "{parameter} has {given} values for {instances} instances: give one for all or one for each")
            }
            Mistake::UnknownModel(model) => {
                write!(f, "gpu_model={model} is not known: give a model such as 4070, 4090, 5090, A100 or H100")
            }
            Mistake::NoVram => write!(f, "physical_vram_gb is 0: an instance has VRAM"),
            Mistake::MoreThanCard { asked_bytes, gpu } => write!(
                f,
                "physical_vram_gb: {} is more than the {} has ({} GB)",
                Size(asked_bytes),
                gpu.name,
                gpu.most_vram_gib()
            ),
            Mistake::MoreThanRam { asked_bytes, ram_bytes } => write!(
                f,
                "virtual_vram_gb: {} is more RAM than this machine has ({})",
                Size(asked_bytes),
                Size(ram_bytes & !((1 << 20) - 1))
            ),
            Mistake::NotFree { asked_bytes } => {
                write!(f, "lazy_allocation=0: {} of RAM are not free now", Size(asked_bytes))
            }
            Mistake::IdTooHigh(id) => write!(f, "instance_id={id} is too high: at most {}", MAX_INSTANCES - 1),
            Mistake::IdTaken(id) => write!(f, "instance_id={id} is taken"),
        }
    }
}

/// Whether an instance of `gpu` may have these limits on a machine with so much RAM.
///
/// # Errors
/// [`Mistake::NoVram`], [`Mistake::MoreThanCard`], [`Mistake::MoreThanRam`].
pub fn check_limits(gpu: &'static Gpu, limits: Amount, ram_bytes: u64) -> Result<(), Mistake<'static>> {
    if limits.vram_bytes == 0 {
        return Err(Mistake::NoVram);
    }
    if limits.vram_bytes > u64::from(gpu.most_vram_gib()) * GIB {
        return Err(Mistake::MoreThanCard { asked_bytes: limits.vram_bytes, gpu });
    }
    if limits.ram_bytes > ram_bytes {
        return Err(Mistake::MoreThanRam { asked_bytes: limits.ram_bytes, ram_bytes });
    }
    Ok(())
}

/// Whether the pages of eager instances, `asked_bytes` together, can be made now.
///
/// # Errors
/// [`Mistake::NotFree`].
pub fn check_free(asked_bytes: u64, free_bytes: u64) -> Result<(), Mistake<'static>> {
    if asked_bytes > free_bytes { Err(Mistake::NotFree { asked_bytes }) } else { Ok(()) }
}

/// The model that `asked` names.
///
/// # Errors
/// [`Mistake::UnknownModel`].
pub fn model(asked: &str) -> Result<&'static Gpu, Mistake<'_>> {
    gpus::find(asked).ok_or(Mistake::UnknownModel(asked))
}

/// The instances that the module parameters ask for, in their order. None of the four lists given means none; instances can
/// then be made in configfs.
///
/// # Errors
/// The first mistake; then nothing of `into` means anything.
pub fn instances<'a>(
    asked: &Asked<'a>,
    ram_bytes: u64,
    into: &mut [Option<Config>; MAX_INSTANCES],
) -> Result<usize, Mistake<'a>> {
    let lengths = [
        ("gpu_model", asked.gpu_model.len()),
        ("physical_vram_gb", asked.physical_vram_gb.len()),
        ("virtual_vram_gb", asked.virtual_vram_gb.len()),
        ("instance_id", asked.instance_id.len()),
    ];
    let count = lengths.iter().map(|(_, given)| *given).max().unwrap_or(0);
    if count == 0 {
        return Ok(0);
    }
    for (parameter, given) in lengths {
        match given {
            0 if parameter == "gpu_model" || parameter == "physical_vram_gb" => {
                return Err(Mistake::Missing(parameter));
            }
            // One id cannot be everyone's.
            1 if parameter != "instance_id" => {}
            given if given == 0 || given == count => {}
            given => return Err(Mistake::Count { parameter, given, instances: count }),
        }
    }
    if count > MAX_INSTANCES {
        return Err(Mistake::IdTooHigh(u32::try_from(count - 1).unwrap_or(u32::MAX)));
    }
    let mut taken = [false; MAX_INSTANCES];
    for (index, place) in into.iter_mut().enumerate().take(count) {
        let gpu = model(value_for(asked.gpu_model, index).unwrap_or_default())?;
        let vram_bytes = gib(value_for(asked.physical_vram_gb, index));
        let ram_bytes_asked = gib(value_for(asked.virtual_vram_gb, index));
        let limits = Amount::new(vram_bytes, ram_bytes_asked);
        check_limits(gpu, limits, ram_bytes)?;
        // Fewer than MAX_INSTANCES.
        let in_order = u32::try_from(index).unwrap_or(u32::MAX);
        let instance_id = value_for(asked.instance_id, index).unwrap_or(in_order);
        let is_taken = usize::try_from(instance_id)
            .ok()
            .and_then(|id| taken.get_mut(id))
            .ok_or(Mistake::IdTooHigh(instance_id))?;
        if core::mem::replace(is_taken, true) {
            return Err(Mistake::IdTaken(instance_id));
        }
        *place = Some(Config { instance_id, gpu, limits, lazy_allocation: asked.lazy_allocation });
    }
    Ok(count)
}

fn value_for<T: Copy>(values: &[T], index: usize) -> Option<T> {
    if values.len() == 1 { values.first().copied() } else { values.get(index).copied() }
}

/// A 32-bit number of GiB always fits.
fn gib(count: Option<u32>) -> u64 {
    u64::from(count.unwrap_or(0)) * GIB
}
