//! What the driver says of the GPUs. Who has a driver implements [`Gpus`]; here nothing of it is known.

/// Where readings of the GPUs come from.
pub trait Gpus: Send {
    /// All GPUs as they are now, in the driver's order.
    ///
    /// # Errors
    /// Why nothing is known of any, in one line.
    fn look(&mut self) -> Result<Vec<GpuReading>, String>;
}

/// One GPU, as the driver sees it. `None`: it does not say.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuReading {
    /// As in nvidia-smi.
    pub index: u32,
    pub uuid: Option<String>,
    pub name: Option<String>,
    pub vram_total_bytes: Option<u64>,
    pub vram_used_bytes: Option<u64>,
    /// Of the time lately, how much something ran.
    pub busy_percent: Option<u32>,
    /// Who has a context on it.
    pub processes: Vec<GpuProcess>,
}

/// A process that uses a GPU, as the driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuProcess {
    /// Its number, in the namespace of who asks.
    pub pid: u32,
    /// The VRAM that it has; `None` where the driver does not say.
    pub vram_bytes: Option<u64>,
}

/// A machine without a driver.
#[derive(Debug, Clone, Default)]
pub struct NoGpus(
    /// Why.
    pub String,
);

impl Gpus for NoGpus {
    fn look(&mut self) -> Result<Vec<GpuReading>, String> {
        Err(self.0.clone())
    }
}
