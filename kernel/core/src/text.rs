// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only

//! Texts for people, made without allocation.

use core::fmt::{self, Write};

use crate::{
    ledger::Ledger,
    setup::{Config, GIB},
};

/// Text in a buffer of the caller. What does not fit is left out, at the end.
#[derive(Debug)]
pub struct Text<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> Text<'a> {
    /// An empty text that may grow to the length of `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, used: 0 }
    }

    /// The text so far.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only whole characters are put in.
        self.buffer.get(..self.used).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
    }

    /// Bytes of the text so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.used
    }

    /// Whether there is nothing yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.buffer.len().saturating_sub(self.used);
        let mut fits = text.len().min(room);
        // Whole characters only; 0 is a boundary.
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        for (place, byte) in self.buffer.iter_mut().skip(self.used).zip(text.bytes().take(fits)) {
            *place = byte;
        }
        self.used += fits;
        if fits < text.len() {
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// A number of bytes in the largest unit in which it is whole: `12 GB`, `512 MB`, `4096 bytes`. Units are powers of 1024, as
/// the article's are.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        match self.0 {
            0 => write!(f, "0 GB"),
            bytes if bytes % GIB == 0 => write!(f, "{} GB", bytes / GIB),
            bytes if bytes % MIB == 0 => write!(f, "{} MB", bytes / MIB),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

/// What `vram_info` prints: the article's five lines, then the use of now.
///
/// # Errors
/// If `into` is full.
pub fn vram_info(into: &mut dyn Write, config: &Config, ledger: &Ledger) -> fmt::Result {
    let (limits, used, peak) = (ledger.limits(), ledger.used(), ledger.peak());
    writeln!(into, "GPU: {}", config.gpu.name)?;
    writeln!(into, "Total VRAM: {}", Size(limits.vram_bytes.saturating_add(limits.ram_bytes)))?;
    writeln!(into, "Physical VRAM: {}", Size(limits.vram_bytes))?;
    writeln!(into, "Virtual VRAM: {}", Size(limits.ram_bytes))?;
    writeln!(into, "Allocation: {}", if config.lazy_allocation { "Lazy" } else { "Eager" })?;
    writeln!(into, "Physical used: {} (peak {})", Size(used.vram_bytes), Size(peak.vram_bytes))?;
    writeln!(into, "Virtual used: {} (peak {})", Size(used.ram_bytes), Size(peak.ram_bytes))?;
    writeln!(into, "Holders: {}", ledger.holders())
}
